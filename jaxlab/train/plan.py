"""Which steps a run takes: batch size and hyper-parameters as functions of tokens, on the host, in exact integers."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxlab.optim.fragments import Event
from jaxlab.optim.schedules import crossed, reached
from jaxlab.train.state import Clock


class Batch(NamedTuple):
    """The size of a global batch, all replicas together, and of its sequences, in tokens."""

    tokens: int
    context: int


class Shape(NamedTuple):
    """Of the tokens of a block, an array with these axes: steps, replicas, micro-batches of a step and replica,
    sequences of a micro-batch, and the tokens of a sequence, context + 1."""

    steps: int
    replicas: int
    micro_batches: int
    sequences: int
    tokens: int


class Block(NamedTuple):
    """Steps on batches of one size, taken by one call of the compiled program: `count` of them, the hyper-parameters
    of each, and the events of the outer loop after the last of them."""

    start: Clock
    end: Clock
    batch: Batch
    hypers: dict[str, list[float]]
    events: tuple[Event, ...] = ()

    @property
    def count(self) -> int:
        return self.end.steps - self.start.steps


def blocks(
    clock: Clock,
    *,
    total_tokens: int,
    batch_at: Callable[[int], Batch],
    hypers: Callable[[float, int], dict[str, float]],
    most_steps: int = 1,
    stops: tuple[int, ...] = (),
    changes: tuple[int, ...] = (),
    events: Callable[[int, bool], tuple[Event, ...]] = lambda step, last: (),
) -> Iterator[Block]:
    """The blocks from `clock` to the last whole step within total_tokens.

    batch_at(tokens): the batch of a step that starts there. hypers(tokens, batch tokens) is evaluated at the middle of
    each step. A block has at most `most_steps` steps. It ends at the first step that reaches a multiple of one of
    `stops`, in tokens, or one of the tokens `changes`, and at a step with events of the outer loop: events(step, last),
    steps counted from 1; last: no step follows.
    """

    changes = sorted(changes)

    def fits(tokens):
        return tokens + batch_at(tokens).tokens <= total_tokens

    while fits(clock.tokens):
        batch = batch_at(clock.tokens)
        count, tokens, due = 0, clock.tokens, ()
        while count < most_steps and batch_at(tokens) == batch and fits(tokens):
            before, count, tokens = tokens, count + 1, tokens + batch.tokens
            due = events(clock.steps + count, not fits(tokens))
            if due or any(crossed(before, tokens, n) for n in stops) or reached(before, tokens, changes):
                break
        values = [hypers(clock.tokens + (i + 0.5) * batch.tokens, batch.tokens) for i in range(count)]
        end = Clock(tokens, clock.steps + count)
        yield Block(clock, end, batch, {name: [v[name] for v in values] for name in values[0]}, due)
        clock = end

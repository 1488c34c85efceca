"""Which steps a run takes: batch size and hyper-parameters as functions of tokens, on the host, in exact integers."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jaxlab.train.state import Clock


class Batch(NamedTuple):
    """The size of a global batch, all replicas together, and of its sequences, in tokens."""

    tokens: int
    context: int


class Call(NamedTuple):
    """One call of the compiled steps: `count` steps on batches of one size, the hyper-parameters of each, and what is
    to happen to the state after the last of them."""

    start: Clock
    end: Clock
    batch: Batch
    hypers: dict[str, list[float]]
    events: tuple = ()

    @property
    def count(self) -> int:
        return self.end.steps - self.start.steps


def calls(
    clock: Clock,
    *,
    total_tokens: int,
    batch_at: Callable[[int], Batch],
    hypers: Callable[[float, int], dict[str, float]],
    steps_per_call: int = 1,
    stops: tuple[int, ...] = (),
    changes: tuple[int, ...] = (),
    events: Callable[[int, bool], tuple] = lambda step, last: (),
) -> Iterator[Call]:
    """The calls from `clock` to the last whole step within total_tokens.

    batch_at(tokens): the batch of a step that starts there; a call has batches of one size. hypers(tokens, batch
    tokens) is asked at the middle of each step. stops: intervals in tokens; a call never runs past a multiple
    of one of them without ending at the first step that reaches it, nor past one of `changes`. events(step, last): what
    is due after that step, counted from 1; a call ends where something is. last: no step follows.
    """

    changes = sorted(changes)

    def fits(tokens):
        return tokens + batch_at(tokens).tokens <= total_tokens

    while fits(clock.tokens):
        batch = batch_at(clock.tokens)
        count, tokens, due = 0, clock.tokens, ()
        while count < steps_per_call and batch_at(tokens) == batch and fits(tokens):
            before, count, tokens = tokens, count + 1, tokens + batch.tokens
            due = events(clock.steps + count, not fits(tokens))
            if due or any(crossed(before, tokens, n) for n in stops) or reached(before, tokens, changes):
                break
        values = [hypers(clock.tokens + (i + 0.5) * batch.tokens, batch.tokens) for i in range(count)]
        end = Clock(tokens, clock.steps + count)
        yield Call(clock, end, batch, {name: [v[name] for v in values] for name in values[0]}, due)
        clock = end


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` tokens lies in (before, after]; never if every is 0."""
    return every > 0 and after // every > before // every


def reached(before: int, after: int, points: Sequence[int]) -> bool:
    """Whether one of `points`, in order, lies in (before, after]."""
    return bisect_right(points, before) < bisect_right(points, after)

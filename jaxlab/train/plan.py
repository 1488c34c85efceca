"""Which steps a run takes: batch size and hyper-parameters as functions of tokens, on the host, in exact integers."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxlab.train.state import Clock


class Call(NamedTuple):
    """One call of the compiled steps: `count` steps of `sequences` each, the hyper-parameters of each, and what is to
    happen to the state after the last of them."""

    start: Clock
    end: Clock
    sequences: int
    hypers: dict[str, list[float]]
    events: tuple = ()

    @property
    def count(self) -> int:
        return self.end.steps - self.start.steps


def calls(
    clock: Clock,
    *,
    total_tokens: int,
    context: int,
    batch_tokens: int,
    hypers: Callable[[float], dict[str, float]],
    steps_per_call: int = 1,
    stops: tuple[int, ...] = (),
    changes: tuple[int, ...] = (),
    events: Callable[[int, bool], tuple] = lambda step, last: (),
) -> Iterator[Call]:
    """The calls from `clock` to the last whole step within total_tokens.

    hypers(tokens) is asked at the middle of each step. stops: intervals in tokens; a call never runs past a multiple
    of one of them without ending at the first step that reaches it, nor past one of `changes`. events(step, last): what
    is due after that step, counted from 1; a call ends where something is. last: no step follows.
    """
    while clock.tokens + batch_tokens <= total_tokens:
        count, tokens, due = 0, clock.tokens, ()
        while count < steps_per_call and tokens + batch_tokens <= total_tokens:
            count, tokens = count + 1, tokens + batch_tokens
            due = events(clock.steps + count, tokens + batch_tokens > total_tokens)
            before = tokens - batch_tokens
            if due or any(crossed(before, tokens, n) for n in stops) or any(before < at <= tokens for at in changes):
                break
        middles = [clock.tokens + (i + 0.5) * batch_tokens for i in range(count)]
        values = [hypers(middle) for middle in middles]
        sequences = batch_tokens // context
        end = Clock(tokens, clock.sequences + count * sequences, clock.steps + count)
        yield Call(clock, end, sequences, {name: [v[name] for v in values] for name in values[0]}, due)
        clock = end


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` tokens lies in (before, after]; never if every is 0."""
    return every > 0 and after // every > before // every

"""A batch that grows with the tokens consumed (Zhou et al. 2601.05034): its sizes, an optax wrapper that accumulates up
to them, and what growth does to the learning rate.

Sizes are `stages`, {tokens consumed: batch size in tokens}, in Python integers: each holds from its start to the next,
and a step takes the size at the token where it starts, so that a run resumes from its token count alone.
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxlab.config import InputError

FORMS = "stages, 0:2Mi 125B:4Mi, or curve:A,b,c every 125B [momentum 0.5], or seesaw:1.1 [most 4Mi]"
CURVE = re.compile(r"\s*curve:([^\s,]+),([^\s,]+),([^\s,]+)\s+every\s+(\S+)(?:\s+momentum\s+(\S+))?\s*")
SEESAW = re.compile(r"\s*seesaw:(\S+)(?:\s+most\s+(\S+))?\s*")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
WORD = 2**32
MOST = 10_000  # stages: each may be a compilation, and all are looked at in every step


def from_text(
    text: str,
    *,
    until: int,
    parameters: float,
    first: int | None = None,
    fraction: Callable[[float], float] | None = None,
    start: int = 0,
) -> dict[int, int]:
    """Stages below `until` of a text in one of FORMS. InputError names what is wrong, and the forms.

    curve: `from_curve` of A N^b D^c, N = parameters. seesaw: the sizes of `seesaw` for the schedule `fraction`, from
    `start`; its learning rates are those of `sqrt` on that schedule. Both take their size before from `first`.
    """
    try:
        if match := CURVE.fullmatch(text):
            *law, every, momentum = match.groups(default="1")
            A, b, c = map(float, law)
            options = {"until": until, "every": count(every), "momentum": float(momentum), "first": first}
            return from_curve(lambda tokens: A * parameters**b * tokens**c, **options)
        if match := SEESAW.fullmatch(text):
            if fraction is None:
                raise InputError(f"{text!r}: needs the schedule of a learning rate")
            drop, most = float(match[1]), count(match[2]) if match[2] else math.inf
            stages, _ = seesaw(fraction, first=first, until=until, start=start, drop=drop, most=most)
            return checked(stages)
        return sizes(text)
    except OverflowError as error:
        raise InputError(f"{text!r}: beyond any batch; must be {FORMS}") from error
    except ValueError as error:  # InputError is one
        raise InputError(f"{error}; must be {FORMS}") from error


def sizes(text: str | int) -> dict[int, int]:
    """Stages of `0:2Mi 125B:4Mi 250B:5Mi 375B:6Mi`, or of one size that stays. InputError names what is wrong.

    K, M, B, T count in thousands, Ki, Mi, Gi in 1024s; 2.5M and 500_000 are numbers too.
    """
    stages, last = {}, -1
    for word in str(text).split():
        start, colon, size = word.partition(":")
        tokens, size = (count(start), count(size)) if colon else (0, count(word))
        if tokens <= last:
            raise InputError(f"{word!r} in {text!r}: stages must start one after the other, each once")
        stages[tokens] = size
        last = tokens
    return checked(stages)


def count(text: str) -> int:
    """An exact number of tokens, as in `500_000`, `2.5Mi` or `125B`."""
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([A-Za-z]*)", text)
    if match and match[2] in UNITS and len(text) <= 40:
        value = Fraction(match[1]) * UNITS[match[2]]
        if value.denominator == 1:
            return int(value)
    raise InputError(f"{text!r}: must be a whole number, as in 500_000 or 125B, units {' '.join(UNITS).strip()}")


def checked(stages: dict[int, int]) -> dict[int, int]:
    """The stages in order; InputError unless they start at 0, are at most MOST and every size is 1 to 2^31 - 1."""
    if not stages or min(stages) != 0:
        raise InputError(f"batch sizes {stages}: the first stage must start at 0 tokens")
    if len(stages) > MOST:
        raise InputError(f"{len(stages):,} stages: must be at most {MOST:,}")
    for tokens, size in stages.items():
        if not 1 <= size < 2**31:
            raise InputError(f"batch size {size} from {tokens} tokens: must be 1 to 2^31 - 1")
    return dict(sorted(stages.items()))


def from_curve(
    f: Callable[[int], float], *, until: int, every: int, momentum: float = 1.0, first: int | None = None
) -> dict[int, int]:
    """Stages of a fitted best batch f(D), asked again each `every` tokens below `until` (Zhou et al., the schedule).

    B_new = B_old + momentum (f(D) - B_old). first: the size before, f(every) where left out, as a power law is 0 at 0.
    """
    if not 0 < momentum <= 1:
        raise InputError(f"momentum={momentum}: must be above 0, up to 1")
    if every < 1:
        raise InputError(f"every={every}: must be at least 1 token")
    if every * MOST < until:
        raise InputError(f"every={every}: must be at least {-(-until // MOST)} for {MOST:,} stages in {until} tokens")
    size = f(every) if first is None else first
    stages = {0: size}
    for tokens in range(every, until, every):
        size += momentum * (f(tokens) - size)
        stages[tokens] = size
    return {tokens: round(size) for tokens, size in checked(stages).items()}


def doubled(critical: dict[int, float], first: int) -> dict[int, int]:
    """Stages that double where the critical batch, measured as {tokens: batch}, exceeds twice the size (Merrill et al.
    2505.23971, `noise_scale.branched`)."""
    stages, size = {0: first}, first
    for tokens, largest in sorted(critical.items()):
        if not math.isfinite(largest):
            raise InputError(f"critical batch {largest} at {tokens} tokens: must be finite")
        while largest > 2 * size:
            size *= 2
            stages[tokens] = size
    return checked(stages)


def rounded(stages: dict[int, int], unit: int) -> dict[int, int]:
    """Each size at its nearest multiple, at least one, of `unit`: a micro-batch on every device of the data axis."""
    return {tokens: max(1, (2 * size + unit) // (2 * unit)) * unit for tokens, size in stages.items()}


def size_at(stages: dict[int, int], tokens: int) -> int:
    """The batch size of a step that starts at `tokens`."""
    starts = sorted(stages)
    return stages[starts[bisect_right(starts, tokens) - 1]]


class Stage(NamedTuple):
    """`steps` of `size` tokens each, the first of which starts at `start`."""

    start: int
    size: int
    steps: int


def walk(stages: dict[int, int], until: int) -> list[Stage]:
    """The steps that a run takes, to its last whole one within `until` tokens.

    The last step of a stage may reach beyond it; a stage that is over before a step could start in it is left out.
    """
    taken, tokens, starts = [], 0, sorted(stages)
    for start, end in zip(starts, [*starts[1:], until], strict=True):
        size = stages[start]
        wanted = -((tokens - min(end, until)) // size)
        steps = min(wanted, (until - tokens) // size)
        if steps > 0:
            taken.append(Stage(tokens, size, steps))
            tokens += steps * size
        if steps < wanted:
            break
    return taken


def kept(batch: float, first: float) -> float:
    """The learning rate stays (Zhou et al.)."""
    return 1.0


def sqrt(batch: float, first: float) -> float:
    """LR ~ sqrt(B): Adam's noise per token stays."""
    return math.sqrt(batch / first)


def linear(batch: float, first: float) -> float:
    """LR ~ B: SGD's noise per token stays."""
    return batch / first


def merrill(batch: float, first: float, critical: float = math.inf) -> float:
    """LR times sqrt 2 for every whole doubling, only for those that end within the critical batch (2505.23971)."""
    return math.sqrt(2) ** max(0, math.floor(math.log2(min(batch, critical) / first)))


RULES = {"kept": kept, "sqrt": sqrt, "linear": linear, "merrill": merrill}


def factors(stages: dict[int, int], rule: Callable[[float, float], float]) -> dict[int, float]:
    """{tokens: factor on the learning rate} of a rule, against the first stage's size."""
    return {tokens: rule(size, stages[0]) for tokens, size in stages.items()}


def seesaw(
    fraction: Callable[[float], float],
    *,
    first: int,
    until: int,
    start: int = 0,
    drop: float = 1.1,
    unit: int = 1,
    most: float = math.inf,
) -> tuple[dict[int, int], dict[int, float]]:
    """Growth in place of decay (Seesaw, 2510.14717): (stages, {tokens: factor that replaces the decay}).

    Where the base schedule `fraction(tokens)`, falling from `start` (its warm-up's end) to `until`, has dropped by
    another `drop` = a, the batch grows by a and the learning rate falls by sqrt(a): LR / sqrt(B) is the base schedule's
    in steps of a. Sizes are multiples of `unit`, up to `most` (the critical batch), where LR goes on falling by a;
    factors are those of the sizes after rounding. Ends where a batch no longer fits before `until`.
    Raises InputError unless 1 < drop < inf, and for a drop so small that there are more than MOST stages.
    """
    if not 1 < drop < math.inf:
        raise InputError(f"drop={drop}: the learning rate must fall by a factor above 1")
    stages, scale, level, tokens = {0: first}, {0: 1.0}, 1.0, start
    for _ in range(MOST):
        level /= drop
        wanted = level * fraction(start)
        tokens += bisect_left(range(tokens, until), -wanted, key=lambda t: -fraction(t))
        size = rounded({tokens: round(min(first / level, most))}, unit)[tokens]
        if tokens + size > until:
            return stages, scale
        stages[tokens], scale[tokens] = size, level * math.sqrt(size / first)
    raise InputError(f"drop={drop}: must be larger, for at most {MOST:,} stages")


class Accumulation(NamedTuple):
    """State of `accumulate`: sums [...] float32 of the batch's gradients times tokens; `filled`, uint32, its tokens;
    `consumed`, uint32 [2], the high and low words of the tokens of all batches before it."""

    inner: Any
    sums: Any
    filled: jax.Array
    consumed: jax.Array


def accumulate(
    inner: optax.GradientTransformation, stages: dict[int, int], scales: dict[int, float] | None = None
) -> optax.GradientTransformationExtraArgs:
    """`inner`, applied when micro-batches have filled the scheduled batch: update(grads, state, params, tokens=).

    grads: of a micro-batch's mean loss over its `tokens`, an integer scalar that may differ every time; where it is 0
    they are not read, NaN included. `inner` takes the mean over the batch's tokens, accumulated in float32; its update
    is multiplied by the stage's entry in `scales` (`factors`). Until then updates are 0 and `inner` neither runs nor
    changes (under vmap with a mapped token count it runs, and what it returns is dropped). Other arguments go to
    `inner` with the last micro-batch. Token counts are exact to 2^64 without 64-bit types.
    Raises InputError for stages that are none, and scales that are not theirs.
    """
    stages, inner = checked(stages), optax.with_extra_args_support(inner)
    scales = factors(stages, kept) if scales is None else scales
    if set(scales) != set(stages):
        raise InputError(f"scales from {sorted(scales)} tokens: must be those of the stages, {list(stages)}")
    starts = np.array([divmod(start, WORD) for start in stages], np.uint32)
    size = jnp.asarray(list(stages.values()), jnp.uint32)
    scale = jnp.asarray([scales[start] for start in stages], jnp.float32)

    def init(params):
        sums = optax.tree.zeros_like(params, dtype=jnp.float32)
        return Accumulation(inner.init(params), sums, jnp.uint32(0), jnp.zeros(2, jnp.uint32))

    def update(grads, state, params=None, *, tokens, **extra):
        tokens = jnp.asarray(tokens).astype(jnp.uint32)
        stage = jnp.sum(_reached(state.consumed, starts)) - 1
        sums = jax.tree.map(lambda s, g: jnp.where(tokens > 0, s + g.astype(s.dtype) * tokens, s), state.sums, grads)
        filled = state.filled + tokens

        def step():
            mean = jax.tree.map(lambda s, g: (s / jnp.maximum(filled, 1)).astype(g.dtype), sums, grads)
            updates, new = inner.update(mean, state.inner, params, **extra)
            updates = jax.tree.map(lambda u: (u * scale[stage]).astype(u.dtype), updates)
            zeros = optax.tree.zeros_like(sums)
            return updates, Accumulation(new, zeros, jnp.uint32(0), _plus(state.consumed, filled))

        shapes, _ = jax.eval_shape(step)

        def wait():
            return optax.tree.zeros_like(shapes), Accumulation(state.inner, sums, filled, state.consumed)

        return lax.cond(filled >= size[stage], step, wait)

    return optax.GradientTransformationExtraArgs(init, update)


def consumed(state: Accumulation) -> int:
    """Tokens seen so far, those of the batch under way included."""
    high, low = (int(word) for word in state.consumed)
    return high * WORD + low + int(state.filled)


def _reached(words, starts):
    """Which of starts [n, 2] the count [2] has reached."""
    high, low = words[0], words[1]
    return (high > starts[:, 0]) | ((high == starts[:, 0]) & (low >= starts[:, 1]))


def _plus(words, tokens):
    low = words[1] + tokens
    return jnp.stack([words[0] + (low < tokens), low])

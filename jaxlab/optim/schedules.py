"""Learning-rate schedules and times as plain functions of tokens consumed, evaluated on the host.

A step that consumes tokens [t, t + B) takes the value at t + B/2, so that the mean over a run does not depend on how
it is cut into steps: a growing batch neither stretches a schedule nor shifts it.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from jaxlab.config import InputError

MOST = 10_000  # times that a run is measured at
DECAYS = {
    "linear": lambda x: 1 - x,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
}


def schedule(
    name: str,
    *,
    total_tokens: int,
    warmup_tokens: int = 0,
    final_fraction: float = 0.0,
    decay_tokens: int = 0,
    decay_shape: str = "linear",
) -> Callable[[float], float]:
    """tokens -> fraction of the peak in [0, 1]: linear warm-up from 0, then by name.

    constant: 1. cosine: half a cosine from 1 at the end of the warm-up to final_fraction at total_tokens (DiLoCo
    paper: 0.05). wsd: 1, then over the last decay_tokens a decay of the given shape to final_fraction (batch-size
    paper: linear to 0.1).
    """
    decay = {"constant": 0, "cosine": total_tokens - warmup_tokens, "wsd": decay_tokens}[name]
    shape = DECAYS["cosine" if name == "cosine" else decay_shape]

    def fraction(tokens: float) -> float:
        warm = min(1.0, tokens / warmup_tokens) if warmup_tokens else 1.0
        if not decay:
            return warm
        progress = min(1.0, max(0.0, 1 - (total_tokens - tokens) / decay))
        return warm * (final_fraction + (1 - final_fraction) * shape(progress))

    return fraction


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` tokens lies in (before, after]; never if every is 0."""
    return every > 0 and after // every > before // every


def reached(before: int, after: int, points: Sequence[int]) -> bool:
    """Whether one of `points`, in order, lies in (before, after]."""
    return bisect_right(points, before) < bisect_right(points, after)


class Times(NamedTuple):
    """When something is due, in tokens: at the multiples of `every`, and at points, in order."""

    every: int = 0
    points: tuple[int, ...] = ()

    def due(self, before: int, after: int) -> bool:
        """Whether one of them lies in (before, after]."""
        return crossed(before, after, self.every) or reached(before, after, self.points)


def times(at: str, first: int, last: int) -> Times:
    """What `config.spectra.at` says of a run whose first step ends at `first` tokens, the last by `last`.

    "" never; "every:N" at the multiples of N; "log:N" N times from first to last, at equal ratios; "N N N" there.
    Raises InputError for anything else, and for points outside (0, last] or more than MOST of them.
    """
    kind, _, number = at.rpartition(":")
    try:
        values = [_whole(word) for word in number.split()]
    except ValueError:
        values = [0]
    if not at:
        return Times()
    if kind not in ("", "every", "log") or min(values, default=0) < 1 or (kind and len(values) > 1):
        raise InputError(f"spectra.at={at!r}: must be as log:50, every:500000, or tokens as in 1e5 2e5 5e5")
    if kind == "every":
        return Times(every=values[0])
    if (number := values[0] if kind else len(values)) > MOST:
        raise InputError(f"spectra.at={at[:40]!r}: has {number:,} times; must be at most {MOST:,}")
    points = np.rint(np.geomspace(first, last, values[0])).astype(int).tolist() if kind else values
    if max(points) > last:
        raise InputError(f"spectra.at={at!r}: {max(points):,} is past the end of the run, tokens={last:,}")
    return Times(points=tuple(sorted({*points})))


def _whole(word: str) -> int:
    if not re.fullmatch(r"\d{1,19}(\.\d{0,19})?(e\d{1,2})?", word) or Fraction(word) % 1:
        raise ValueError(word)
    return int(Fraction(word))

"""A finding as code: what was published, and a judgement of it from results, with its interval."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jaxlab.config import InputError
from jaxlab.studies.tuning import interval

NEGATIVE, POSITIVE = (-math.inf, 0.0), (0.0, math.inf)


class Verdict(NamedTuple):
    """verdict: supported, contradicted or inconclusive at this scale. effect and its interval, in the unit of `what`;
    nan where there is nothing to measure, and `what` says why."""

    verdict: str
    effect: float
    low: float
    high: float
    what: str


@dataclass(frozen=True)
class Claim:
    """id and text; `published`: the figure and its source; parts: of the study whose runs it rests on."""

    id: str
    text: str
    published: str
    parts: tuple[str, ...]
    judge: Callable[[list[dict]], Verdict]


class Judged(NamedTuple):
    """A claim, its verdict, and the runs, training tokens and seconds behind it."""

    claim: Claim
    verdict: Verdict
    runs: int
    tokens: int
    seconds: float


def compare(effect: float, low: float, high: float, supports: tuple[float, float], what: str) -> Verdict:
    """Supported if the whole interval lies in the range `supports`, contradicted if none of it does."""
    if not all(map(math.isfinite, (effect, low, high))):
        return Verdict("inconclusive", effect, low, high, f"{what}: its interval is not finite")
    if supports[0] <= low and high <= supports[1]:
        verdict = "supported"
    elif high < supports[0] or low > supports[1]:
        verdict = "contradicted"
    else:
        verdict = "inconclusive"
    return Verdict(verdict, effect, low, high, what)


def by_interval(
    settings: Callable, quantity: Callable, supports: tuple[float, float], what: str, detail: Callable | None = None
) -> Callable[[list[dict]], Verdict]:
    """Judges quantity(settings(rows)), a number, by its interval over redrawn losses. detail: what else there is to
    say of the settings."""

    def judge(rows: list[dict]) -> Verdict:
        runs = settings(rows)
        found = float(quantity(runs))
        text = f"{what}; {detail(runs)}" if detail else what
        return compare(found, *interval(runs, quantity), supports, text)

    return judge


def judged(claim: Claim, results: list[dict]) -> Judged:
    """The claim's verdict on its parts of the results; inconclusive where they are too few to measure anything."""
    rows = [r for r in results if r["part"] in claim.parts]
    try:
        verdict = claim.judge(rows)
    except InputError as error:  # of a fit: too few points, a column without variation
        verdict = Verdict("inconclusive", math.nan, math.nan, math.nan, f"cannot be measured: {error}")
    return Judged(claim, verdict, len(rows), sum(r["tokens"] for r in rows), sum(r["seconds"] for r in rows))

"""What arms of one model differ in, claims B8 to B14: numbers of mean curves (`measures.Curves`), in nats/token."""

import math
from collections.abc import Callable

import numpy as np

from jaxlab.config import InputError
from jaxlab.studies.batch_size import measures as measure
from jaxlab.studies.batch_size.grid import RAMP, decay_tokens
from jaxlab.studies.batch_size.measures import Curves


def ramp(**values) -> dict:
    return {"name": "ramp", "schedule": "wsd"} | values


def constant(**values) -> dict:
    """At twice the ramp's first batch."""
    return {"name": "constant", "times": 2, "schedule": "wsd"} | values


def loss(curves: Curves, which: dict, share: float = 1.0) -> float:
    """Of an arm when this share of the tokens before the decay is trained on, the mean of three evaluations; at 1 + of
    the whole run, the last one."""
    setting, curve = measure.arm(curves, **which)
    stable = setting.tokens - decay_tokens(setting)
    return measure.loss_at(curve, setting.tokens, 1) if share > 1 else measure.loss_at(curve, share * stable, 3)


END = 2.0  # the share that stands for the end of the run, after the decay


def gap(first: dict, second: dict, share: float = 1.0) -> Callable[[Curves], float]:
    """Loss of the first arm less that of the second, nats."""
    return lambda curves: loss(curves, first, share) - loss(curves, second, share)


def best_constant(curves: Curves, share: float, **values) -> float:
    """Loss of the best run of constant batch: 1, 2 and the ramp's mean."""
    ones = ({"times": 1}, {"times": 2}, {"name": "mean", "times": 1})
    return min(loss(curves, constant(**one, **values), share) for one in ones)


def worst_stage(curves: Curves) -> float:
    """The largest gap of ramp and constant at the ends of the ramp's stages."""
    ends = [share for share, _ in RAMP[1:]] + [1.0]
    return max(gap(ramp(), constant(), share)(curves) for share in ends)


def lrs(curves: Curves) -> list[float]:
    """At which the ramp ran, lowest first."""
    return sorted({s.lr for s in measure.arms(curves) if s.arm == "ramp"})


def kept_or(rule: str, share: float) -> Callable[[Curves], dict[float, float]]:
    """{lr: loss with the learning rate kept less that with it scaled}."""

    def of(curves):
        return {lr: gap(ramp(lr=lr), ramp(lr=lr, rule=rule), share)(curves) for lr in lrs(curves)}

    return of


def jump(curves: Curves, other: str = "more", first: str = "longer", after: int = 2) -> float:
    """Loss of one arm less another's in the first evaluations after both grew, or in the last ones (after = -2)."""
    lines = []
    for name in (first, other):
        setting, curve = measure.arm(curves, name, schedule="constant")
        later = curve.loss[curve.tokens > setting.tokens / 2]
        lines.append(later[:after] if after > 0 else later[after:])
    return float(np.mean(lines[0]) - np.mean(lines[1]))


def advantage(weight_decay: float, share: float = 1.0) -> Callable[[Curves], float]:
    """By how much the ramp's loss is below the constant run's."""
    return gap(constant(weight_decay=weight_decay), ramp(weight_decay=weight_decay), share)


def decays(curves: Curves) -> list[float]:
    return sorted({s.weight_decay for s in measure.arms(curves) if s.arm == "ramp"})


def tuned_decay(curves: Curves) -> float:
    """Loss of the ramp at weight decay 0.1 less that of the constant run at its best one."""
    return loss(curves, ramp()) - min(loss(curves, constant(weight_decay=w)) for w in decays(curves))


def noise_growth(rows: list[dict]) -> list[float]:
    """Octaves by which B_simple rises from the second quarter to the last, of each run that measured it and kept its
    batch."""
    found = []
    for row in rows:
        if row["noise"] and row["arm"] == "constant" and row["status"] == "finished":
            signal, noise = (measure.numbers(row[name]).reshape(4, -1).mean(1) for name in ("signal", "noise"))
            if min(signal[1], signal[3]) <= 0:
                raise InputError("the averaged gradient signal is not above 0")
            found.append(math.log2(noise[3] / signal[3] / (noise[1] / signal[1])))
    return found

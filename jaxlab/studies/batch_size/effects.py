"""The numbers that the claims are about, each of the study's mean curves (`measures.Curves`)."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from jaxlab.config import InputError
from jaxlab.laws import batch_size as law
from jaxlab.laws.lines import PowerLaw, parabola
from jaxlab.laws.resample import leave_one_out
from jaxlab.studies.batch_size import measures as measure
from jaxlab.studies.batch_size.grid import MODELS
from jaxlab.studies.batch_size.measures import Best, Curves, Sweep

LAWS = (law.THREE_PIECE, law.HYPERBOLA, law.NOISE_FLOOR)
LONG = 10  # times the steps of the best batch, after which a small batch has had its time
MOST = math.log(10)  # waste beyond which it is not counted


# B1: crossings


def fewest(found: dict) -> int:
    """Index of the batch that needs the fewest tokens, of `measures.points`."""
    if not np.isfinite(found["E"]).any():
        raise InputError("no batch reaches the target")
    return int(np.nanargmin(found["E"]))


def cheapest(found: dict) -> float:
    """The batch that needs the fewest tokens: between batches, where its neighbours reach the target too."""
    i = fewest(found)
    try:
        return vertex(found["B"], np.log(found["E"]))
    except InputError:
        return float(found["B"][i])


def rise(sweep: Sweep) -> float:
    """Octaves by which the batch that needs the fewest tokens is larger at the hardest target than at the easiest."""
    easy, hard = (cheapest(measure.points(sweep, target)) for target in measure.targets(sweep)[[0, -1]])
    return math.log2(hard / easy)


def of_base(quantity: Callable[[Sweep], float]) -> Callable[[Curves], float]:
    return lambda curves: quantity(measure.base(curves))


def rates(curves: Curves) -> dict[float, Sweep]:
    """{lr: sweep} of the base's model, lowest first."""
    model, _ = measure.base_key(curves)
    return {lr: sweep for (name, lr), sweep in sorted(measure.sweeps(curves).items()) if name == model}


def least_rise(curves: Curves) -> float:
    """`rise` of the other learning rates of the base's model, the least."""
    _, own = measure.base_key(curves)
    others = [rise(sweep) for lr, sweep in rates(curves).items() if lr != own]
    if not others:
        raise InputError("the base's model ran at one learning rate")
    return min(others)


def neighbours(sweep: Sweep) -> list[float]:
    """Tokens from which on each batch has a lower loss than the next smaller one: inf where it never has, 0 where it
    always had."""
    found, window = [], measure.window(sweep)
    for smaller, larger in pairwise(sweep):
        tokens, loss = law.smoothed(*larger[1:], window)
        above = np.flatnonzero(loss >= np.interp(tokens, *law.smoothed(*smaller[1:], window)))
        last = above[-1] if len(above) else -1
        found.append(math.inf if last == len(tokens) - 1 else float(tokens[last + 1]) if last >= 0 else 0.0)
    return found


# B2: forms of E(B)


def left_out(sweep: Sweep) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(batches [n], {law: |log residual| [n]}) of every batch but the smallest and the largest, predicted from the
    others, at those of the easiest, the middle and the hardest target that eight batches reach; residuals above 1 count
    as 1."""
    batches, residuals = [], {which.name: [] for which in LAWS}
    for target in measure.targets(sweep)[:: measure.TARGETS // 2]:
        B, E = measure.reached(sweep, float(target))
        if len(B) < len(law.THREE_PIECE.names) + 2:
            continue
        batches.extend(B[1:-1])
        for which in LAWS:
            inner = np.abs(leave_one_out(measure.fitted(which, B, E)))[1:-1]
            residuals[which.name].extend(np.nan_to_num(inner, nan=1, posinf=1).clip(max=1))
    if not batches:
        raise InputError("no target is reached by eight batches, which six parameters and a batch left out need")
    return np.array(batches), {name: np.array(values) for name, values in residuals.items()}


# B3: the smallest batch


def plateaus(sweep: Sweep) -> list[tuple[float, float, float]]:
    """(batch, target, lowest loss less target) of batches up to 0.8 of the B_min that larger ones predict, trained for
    LONG times the steps of the best batch."""
    found, lowest = [], measure.lowest(sweep)
    for target in measure.targets(sweep):
        for i, (batch, tokens, _) in enumerate(sweep[: len(sweep) // 2]):
            try:
                found_by = measure.fitted(law.NOISE_FLOOR, *measure.reached(sweep[i + 1 :], float(target)))
            except InputError:
                continue
            constants = law.floor_constants(found_by.params)
            steps = constants["E_min"] / constants["B_opt"]
            if batch <= 0.8 * constants["B_min"] and tokens[-1] / batch >= LONG * steps:
                found.append((batch, float(target), float(lowest[i] - target)))
    if not found:
        raise InputError(f"no batch below 0.8 B_min has run for {LONG} times the steps of the best one")
    return found


def floor_and_rate(curves: Curves) -> np.ndarray:
    """[1 + REFITS]: e of B_min ~ lr^e between the lowest and the highest rate, the mean over the targets at which both
    determine it within a factor of two."""
    sweeps = rates(curves)
    low, high = min(sweeps), max(sweeps)
    exponents = []
    for target in sorted({float(t) for lr in (low, high) for t in measure.targets(sweeps[lr])}):
        try:
            ends = [drawn(measure.best(sweeps[lr], target), "B_min") for lr in (low, high)]
        except InputError:
            continue
        if all(high_end < 2 * low_end for low_end, high_end in map(measure.percentiles, ends)):
            exponents.append(np.log(ends[1] / ends[0]) / math.log(high / low))
    if low == high or not exponents:
        raise InputError("no target has a B_min that two learning rates determine")
    return np.mean(exponents, 0)


def drawn(best: Best, name: str) -> np.ndarray:
    """[1 + REFITS]: a constant, and its draws."""
    with np.errstate(divide="ignore"):
        return np.concatenate([[best.constants[name]], best.draws[name]])


# B4: the best batch


def at_best(prediction: Sweep, trial: Sweep) -> list[tuple[float, float]]:
    """(predicted B_opt, log of the tokens at the nearest batch over the fewest) for each target: predicted from every
    other batch of one sweep, tried on another with other seeds."""
    found = []
    for target in measure.targets(prediction):
        try:
            fitted = measure.fitted(law.NOISE_FLOOR, *measure.reached(prediction[::2], float(target)))
        except InputError:
            continue
        B_opt = law.floor_constants(fitted.params)["B_opt"]
        tried = measure.points(trial, float(target))
        nearest = int(np.argmin(np.abs(np.log(tried["B"] / B_opt))))
        if np.isfinite(tried["E"][fewest(tried)]):
            waste = math.log(tried["E"][nearest] / tried["E"][fewest(tried)])
            found.append((B_opt, min(waste, MOST) if not math.isnan(waste) else MOST))
    if not found:
        raise InputError("no target is reached by five of every other batch")
    return found


# B5: over targets


def octaves(curves: Curves, name: str) -> dict[str, np.ndarray]:
    """{model: [1 + REFITS] octaves by which a constant rises from the easiest target to the hardest}, base's rate."""
    _, rate = measure.base_key(curves)
    found = {}
    for (model, lr), sweep in measure.sweeps(curves).items():
        if lr == rate:
            first, *_, last = measure.all_best(sweep).values()
            found[model] = np.log2(drawn(last, name) / drawn(first, name))
    return found


# B6: for a budget and for a target


def budget_or_target(sweep: Sweep) -> float:
    """Octaves by which the best batch for a target loss is above the best for the budget that reaches it, the mean over
    budgets; both by the parabola through the best batch and its neighbours."""
    smooth = [(batch, *law.smoothed(tokens, loss, measure.window(sweep))) for batch, tokens, loss in sweep]
    last = min(tokens[-1] for _, tokens, _ in smooth)
    batches, found = np.array([batch for batch, *_ in smooth], float), []
    for budget in np.geomspace(last / 8, last, 7):
        losses = np.array([np.interp(np.log(budget), np.log(tokens), loss) for _, tokens, loss in smooth])
        tokens = measure.points(sweep, losses.min())["E"]
        try:
            found.append(math.log2(vertex(batches, np.log(tokens)) / vertex(batches, losses)))
        except InputError:
            continue
    if len(found) < 2:
        raise InputError("the best batch is at an end of the sweep at nearly all budgets")
    return float(np.mean(found))


def vertex(batches: np.ndarray, y: np.ndarray) -> float:
    """Raises InputError where the best is at an end, or a neighbour has no value."""
    known = np.isfinite(y)
    i = int(np.argmin(np.where(known, y, np.inf)))
    if not 0 < i < len(y) - 1 or not known[i - 1 : i + 2].all():
        raise InputError("the best batch is at an end of the sweep")
    return parabola(batches[i - 1 : i + 2], y[i - 1 : i + 2]).minimiser


# B7: from small models to a large one


def waste(constants: dict, batch: np.ndarray) -> np.ndarray:
    """log E(batch) / E_min by the law of a noise floor, from B_min and B_opt; MOST at most, as below B_min."""
    s, x = 1 / (constants["B_opt"] / constants["B_min"] - 1), batch / constants["B_min"]
    with np.errstate(all="ignore"):
        E = np.log(x) - np.log1p(-1 / x) / s - np.log1p(1 / s) - np.log1p(s) / s
    return np.where(np.isfinite(E), np.minimum(E, MOST), MOST)


def by_size(curves: Curves) -> dict[str, Sweep]:
    """{model: sweep} at the base's rate, smallest model first."""
    _, rate = measure.base_key(curves)
    found = {name: sweep for (name, lr), sweep in measure.sweeps(curves).items() if lr == rate}
    return dict(sorted(found.items(), key=lambda item: MODELS[item[0]].parameters))


def all_best(sizes: dict[str, Sweep]) -> list[tuple[int, Best]]:
    """(N, constants) of every target of these sizes."""
    return [(MODELS[name].parameters, best) for name in sizes for best in measure.all_best(sizes[name]).values()]


def curve(found: list[tuple[int, Best]], draw: int = 0) -> PowerLaw:
    """f(N, D) through the best batches of several sizes, f(D) of one; of the constants' draws where that is above 0."""
    N, B_opt, D = np.array([(N, drawn(best, "B_opt")[draw], drawn(best, "E_min")[draw]) for N, best in found]).T
    return law.best_batch(B_opt, D, N if len(set(N)) > 1 else None)


def transferred(curves: Curves) -> np.ndarray:
    """[1 + REFITS, 2]: mean waste of the largest model's tokens over its targets, as log: by f(N, D) fitted to the
    smaller ones, and at its best constant batch."""
    smaller = by_size(curves)
    largest, sweep = smaller.popitem()
    if len(smaller) < 2:
        raise InputError("three sizes are needed: two to fit f(N, D) to, one to try it on")
    known, tried = all_best(smaller), list(measure.all_best(sweep).values())
    constants = np.geomspace(sweep[0][0], sweep[-1][0], 200)
    rows = []
    for i in range(1 + measure.REFITS):
        f = curve(known, i)
        of = [{name: drawn(best, name)[i] for name in ("B_min", "B_opt", "E_min")} for best in tried]
        asked = [float(f.predict({"N": MODELS[largest].parameters, "D": c["E_min"]})) for c in of]
        by_f = np.mean([waste(c, np.array(b)) for c, b in zip(of, asked, strict=True)])
        rows.append((by_f, np.mean([waste(c, constants) for c in of], 0).min()))
    return np.array(rows)


def of_curve(rows: list[dict]) -> list[dict]:
    """Rows of part curve, and those of its constant batches that ran in part size."""
    own = [row for row in rows if row["part"] == "curve"]
    cells = {(row["model"], row["batch"]) for row in own if row["arm"] == "constant"}
    shared = [row for row in rows if row["part"] == "size" and (row["model"], row["batch"]) in cells]
    return [row | {"part": "curve"} for row in shared] + own


def trained(curves: Curves) -> dict[str, float]:
    """{arm of part curve: loss at the end, mean of three evaluations}; of constant batches the best one's."""
    found = {}
    for setting, line in curves.items():
        end = measure.loss_at(line, setting.tokens, 3)
        found[setting.arm] = min(end, found.get(setting.arm, math.inf))
    return found


def by_curve_less(arm: str) -> Callable[[Curves], float]:
    """Nats by which a model whose batch follows f of the smaller ones ends above an arm of part curve."""

    def of(curves):
        found = trained(curves)
        if not {"curve", arm} <= found.keys():
            raise InputError(f"arms curve and {arm} of part curve have not both run")
        return found["curve"] - found[arm]

    return of

"""The numbers that the paper's claims are about, each a function of the study's results."""

import math
from collections.abc import Callable

import numpy as np

from jaxlab.config import InputError
from jaxlab.cost import wallclock
from jaxlab.cost.wallclock import Algorithm
from jaxlab.studies.diloco import measures as measure
from jaxlab.studies.tuning import slope

SIZE = 2.4e9  # parameters at which the wall-clock model is asked: the largest size that the paper swept
BATCH = 2**18  # its data-parallel batch, tokens


# D1: hyper-parameters


def prediction(runs: list[dict]) -> dict[int, tuple[float, float]]:
    """{M: (|log ratio| of predicted and best learning rate, loss lost by it in per cent)} of the largest swept model,
    predicted from the smaller ones: DiLoCo by a law in N and M, data-parallel by its own in N."""
    found, sizes = measure.rates(runs), {s["model"]: s["parameters"] for s in runs}
    cells = sorted(found.at, key=lambda cell: sizes[cell[0]])
    largest = sizes[cells[-1][0]]
    result = {}
    for dp in (True, False):
        group = [(sizes[model], m, found.at[model, m]) for model, m in cells if (m == 0) == dp]
        n, m, rate = np.array(group, float).reshape(-1, 3).T
        held = n == largest
        design = np.stack([np.ones_like(n), np.log2(n), *([] if dp else [np.log2(m)])], 1)
        if not held.any() or np.linalg.matrix_rank(design[~held]) < design.shape[1]:
            raise InputError(f"{len(set(n))} sizes were swept: a law of the learning rate and its test need 3")
        octaves = design[held] @ np.linalg.lstsq(design[~held], rate[~held], rcond=None)[0] - rate[held]
        for k, o in zip(m[held].astype(int).tolist(), octaves.tolist(), strict=True):
            result[k] = math.log(2) * abs(o), 100 * found.curvature * o * o
    return result


def penalty(runs: list[dict]) -> float:
    found = prediction(runs)
    return float(np.mean([lost for m, (_, lost) in found.items() if m]) - found[0][1])


# D2 to D4, D12: loss against size


def gap_slopes(runs: list[dict]) -> dict[int, float]:
    """{M: change of the gap to data-parallel, percentage points a doubling of N}."""
    sizes = {s["model"]: s["parameters"] for s in runs}
    lines = {}
    for (model, m), gap in measure.gaps(runs).items():
        lines.setdefault(m, []).append((math.log2(sizes[model]), gap))
    return {m: slope(*zip(*line, strict=True)) for m, line in sorted(lines.items()) if len(line) > 2}


def mean_slope(runs: list[dict]) -> float:
    slopes = gap_slopes(runs)
    if not slopes:
        raise InputError("fewer than three sizes ran with DiLoCo and data-parallel")
    return float(np.mean(list(slopes.values())))


def slope_of_one(runs: list[dict]) -> float:
    slopes = gap_slopes(runs)
    if 1 not in slopes:
        raise InputError("fewer than three sizes ran with M = 1 and data-parallel")
    return slopes[1]


def loss_lines(runs: list[dict], without_largest: bool = False) -> dict[int, tuple[float, float]]:
    """{M: (log A, alpha)} of L = A N^alpha."""
    found = measure.tuned(runs)
    points = {}
    for (_, m), s in found.items():
        points.setdefault(m, []).append((math.log(s["parameters"]), s["y"]))
    lines = {}
    for m, line in points.items():
        kept = sorted(line)[: -1 if without_largest else None]
        if len(kept) < 2:
            raise InputError(f"M = {m} ran at {len(line)} sizes: a law needs {3 if without_largest else 2}")
        lines[m] = tuple(np.polyfit(*zip(*kept, strict=True), 1)[::-1])
    return lines


def residuals(runs: list[dict]) -> dict[int, float]:
    """{M: log prediction less log loss of the largest model, by the law of the smaller ones}."""
    largest = {m: s for (_, m), s in measure.tuned(runs).items()}  # in the order of N
    lines = loss_lines(runs, without_largest=True)
    return {m: float(a + b * math.log(largest[m]["parameters"]) - largest[m]["y"]) for m, (a, b) in lines.items()}


def residual(runs: list[dict]) -> float:
    """Mean |log residual| over M."""
    return float(np.mean(np.abs(list(residuals(runs).values()))))


def convergence(runs: list[dict]) -> float:
    """Exponent of M = 2 less data-parallel's: below 0 the laws meet at a larger size."""
    lines = loss_lines(runs)
    if not {0, 2} <= lines.keys():
        raise InputError("M = 2 and data-parallel have not both run")
    return lines[2][1] - lines[0][1]


def crossing(runs: list[dict]) -> float:
    """log10 of the N at which the laws of M = 2 and data-parallel meet; infinite where they part."""
    closing, lines = convergence(runs), loss_lines(runs)
    return (lines[2][0] - lines[0][0]) / -closing / math.log(10) if closing < 0 else math.inf


def of_one(runs: list[dict], m: int = 1) -> float:
    values = [gap for (_, k), gap in measure.gaps(runs).items() if k == m]
    if not values:
        raise InputError(f"M = {m} and data-parallel have not both run")
    return float(np.mean(values))


# D5 to D7: batch


def rises(runs: list[dict], factor: int = 4) -> dict[int, float]:
    """{M: per cent above its own lowest loss at `factor` times the batch of it}, the mean of the models swept."""
    found = {}
    for (_, m), line in measure.batches(runs).items():
        own = min(line, key=line.get)
        if own * factor not in line:
            raise InputError(f"batches end before {factor} times the best of M = {m}")
        found.setdefault(m, []).append(100 * (line[own * factor] - line[own]))
    return {m: float(np.mean(rise)) for m, rise in found.items()}


def less_rise(runs: list[dict]) -> float:
    found = rises(runs)
    if not {0, 1} <= found.keys():
        raise InputError("no model was swept over batches with M = 1 and data-parallel")
    return found[0] - found[1]


def batch_exponent(runs: list[dict]) -> float:
    """e of B ~ M^e, a constant a model."""
    found = measure.best_batches(runs)
    x, y = [], []
    for model in {model for model, _ in found}:
        cells = [(math.log(m), math.log(b)) for (name, m), b in found.items() if name == model and m]
        middle = np.mean(cells, 0) if cells else 0
        x, y = x + [c[0] - middle[0] for c in cells], y + [c[1] - middle[1] for c in cells]
    return slope(x, y)


def large_batch_gap(runs: list[dict]) -> float:
    """Per cent by which M = 2 is above data-parallel at 4 and 8 times the best batch of data-parallel."""
    lines, values = measure.batches(runs), []
    for (model, m), dp in lines.items():
        own, other = min(dp, key=dp.get), lines.get((model, 2), {})
        values += [100 * (other[b] - dp[b]) for b in (4 * own, 8 * own) if m == 0 and b in dp and b in other]
    if not values:
        raise InputError("no batch of 4 or 8 times data-parallel's best ran with M = 2")
    return float(np.mean(values))


# D8, D15: the outer optimiser


def best_outer_rates(runs: list[dict]) -> dict[tuple, float]:
    """{cell: best outer learning rate}, by parabolas of one curvature in its logarithm."""
    lines = {c: {math.log2(eta): y for eta, y in line.items()} for c, line in measure.outer_rates(runs).items()}
    return {cell: 2**x for cell, x in measure.minima(lines).at.items()}


def with_replicas(runs: list[dict]) -> float:
    found = best_outer_rates(runs)
    return slope([math.log2(m) for _, m in found], list(found.values()))


def mean_outer_rates(runs: list[dict]) -> dict[int, float]:
    found = best_outer_rates(runs)
    return {m: float(np.mean([eta for (_, k), eta in found.items() if k == m])) for m in sorted({m for _, m in found})}


def with_size(runs: list[dict]) -> float:
    """Best outer learning rate of the largest model less the smallest's, the mean over M."""
    found, sizes = best_outer_rates(runs), {s["model"]: s["parameters"] for s in runs}
    models = sorted({model for model, _ in found}, key=sizes.get)
    pairs = [(found[models[0], m], found[models[-1], m]) for name, m in found if name == models[0]]
    if len(models) < 2:
        raise InputError("one size was swept over the outer learning rate")
    return float(np.mean([b - a for a, b in pairs]))


def of_every_step(runs: list[dict]) -> float:
    """Loss at H = 1 less the highest at another H, per cent, the mean over the cells."""
    lines = measure.series(measure.periods(runs), "sync_every").values()
    return mean_of([100 * (line[1] - max(y for h, y in line.items() if h > 1)) for line in lines if 1 in line])


def period_slopes(runs: list[dict]) -> dict[int, float]:
    """{M: per cent of loss a doubling of H, from H = 5 on}, the mean of the models swept."""
    found = {}
    for (_, m), line in measure.series(measure.periods(runs), "sync_every").items():
        points = [(math.log2(h), 100 * y) for h, y in line.items() if h >= 5]
        found.setdefault(m, []).append(slope(*zip(*points, strict=True)))
    return {m: float(np.mean(v)) for m, v in found.items()}


def mean_period_slope(runs: list[dict]) -> float:
    return mean_of(list(period_slopes(runs).values()))


def rate_with_period(runs: list[dict]) -> float:
    """Doublings of the best outer learning rate a doubling of H."""
    lines = {}
    for s in measure.periods(runs):
        line = lines.setdefault((s["model"], s["replicas"], s["sync_every"]), {})
        line[math.log2(s["outer_lr"])] = s["y"]
    found = measure.minima({cell: line for cell, line in lines.items() if len(line) > 2}).at
    return slope([math.log2(h) for *_, h in found], list(found.values()))


def mean_of(values: list[float]) -> float:
    if not values:
        raise InputError("H was not swept")
    return float(np.mean(values))


# D9 to D11, D14: cost


def batch_ratio(runs: list[dict], m: int = 2) -> float:
    """Best batch of M replicas over data-parallel's, the mean of its logarithm over the models swept."""
    found = measure.best_batches(runs)
    ratios = [math.log(b / found[model, 0]) for (model, k), b in found.items() if k == m and (model, 0) in found]
    if not ratios:
        raise InputError(f"no model's best batch was found for both M = {m} and data-parallel")
    return math.exp(np.mean(ratios))


def fitting_tokens(runs: list[dict], m: int = 2, network: str = "medium") -> float:
    """How many times data-parallel's tokens M replicas train on in data-parallel's time, each at its best batch."""
    other = BATCH * batch_ratio(runs, m)
    return wallclock.over_training(Algorithm(m), SIZE, other, BATCH, wallclock.NETWORKS[network])


def time_to_loss(runs: list[dict], m: int = 2, network: str = "medium") -> float:
    """Time of M replicas over data-parallel's to one loss, each at its best batch: more tokens make up for a gap."""
    lines, swept = measure.longer(runs), measure.batches(runs)
    falls = [-slope([math.log(x) for x in line], list(line.values())) for line in lines.values()]
    gaps = [
        min(swept[model, m].values()) - min(swept[model, 0].values())
        for model, k in swept
        if k == m and (model, 0) in swept
    ]
    if not falls or not gaps:
        raise InputError("needs batches and over-training, both with data-parallel")
    return math.exp(np.mean(gaps) / np.mean(falls)) / fitting_tokens(runs, m, network)


def gap_with_tokens(runs: list[dict]) -> float:
    """Change of the gap of M = 2 to data-parallel, percentage points a doubling of tokens."""
    lines, slopes = measure.longer(runs), []
    for (model, m), line in lines.items():
        dp = lines.get((model, 0), {})
        shared = [x for x in line if x in dp]
        if m == 2 and len(shared) > 1:
            slopes.append(slope([math.log2(x) for x in shared], [100 * (line[x] - dp[x]) for x in shared]))
    if not slopes:
        raise InputError("M = 2 and data-parallel have not both run on more tokens")
    return float(np.mean(slopes))


# D13: stability


def wider(letter: str) -> Callable:
    """Octaves by which the range of good learning rates is wider with a stabiliser, "qk" or "z", than without."""

    def quantity(runs: list[dict]) -> float:
        found = measure.widths(runs)
        with_it = [width for name, width in found.items() if letter in name]
        without = [width for name, width in found.items() if letter not in name]
        if not with_it or not without:
            raise InputError("learning rates were not swept with and without")
        return float(np.mean(with_it) - np.mean(without))

    return quantity

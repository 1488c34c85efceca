"""From runs of the batch-size study to loss curves, tokens to a target loss, and what noise makes of them.

Curves are of held-out loss. Runs of one seed see the same tokens in the same order, whatever their batch: noise is what
is left of a setting's runs when what a seed does to all settings of its part is taken out. Intervals of what is read
off curves come from redrawing every mean curve with such remainders, those of fitted constants from resampling batches.
Raises InputError where the runs are too few.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxlab.config import InputError
from jaxlab.laws import batch_size as law
from jaxlab.laws.fit import Fit, fit
from jaxlab.laws.law import Law
from jaxlab.laws.resample import bootstrap
from jaxlab.studies.batch_size.grid import EVALUATIONS, SWEPT, Setting
from jaxlab.studies.tuning import DRAWS
from jaxlab.train.log import read

REFITS = 100  # to resampled batches
PARTS = 8  # of a run, over which gradients are averaged
WINDOW = 2 / EVALUATIONS  # of a run, over which curves are smoothed: three evaluations
TARGETS = 5
ENOUGH = 5  # batches that determine three parameters
GRADIENTS = ("grad_norm", "clipped", "signal", "noise")


def measured(folder: Path) -> dict:
    """Columns of a run, numbers in text separated by spaces: held-out `losses`, nats/token, and the tokens `at` which
    they were taken; over eighths of the run mean gradient norms, the share of steps clipped at 1 and, of runs that
    accumulate, the mean signal and noise of a gradient (optim.noise_scale); steps."""
    rows = read(folder / "metrics.jsonl")
    seen = [row for row in rows if row["kind"] == "eval"]
    train = [row | {"clipped": row["grad_norm"] > 1} for row in rows if row["kind"] == "train"]
    found = {"at": " ".join(str(row["tokens"]) for row in seen), "losses": words(row["loss"] for row in seen)}
    tokens = [row["tokens"] for row in train]
    for name in GRADIENTS:
        values = [row[name] for row in train if name in row]
        found[name] = words(eighths(tokens, np.array(values, float))) if values else ""
    return found | {"steps": len(train)}


def eighths(tokens: list[int], values: np.ndarray) -> list[float]:
    """Means over equal parts of the tokens; of a part without a step, those of the step that reaches over it."""
    edges = np.searchsorted(tokens, np.linspace(0, tokens[-1], PARTS + 1), "right")
    edges[-1] = len(tokens)
    return [float(np.mean(values[a : max(b, a + 1)])) for a, b in pairwise(edges)]


def words(values) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def numbers(text: str) -> np.ndarray:
    return np.array(str(text).split(), float)


class Line(NamedTuple):
    """The runs of a setting: tokens [t], losses [seeds, t], the seeds."""

    tokens: np.ndarray
    losses: np.ndarray
    seeds: tuple[int, ...]


class Curve(NamedTuple):
    """tokens [t], loss [t], of one run or a mean over seeds."""

    tokens: np.ndarray
    loss: np.ndarray


Curves = dict[Setting, Curve]


def lines(rows: list[dict]) -> dict[Setting, Line]:
    """{setting with seed 0: its finished runs}."""
    groups = {}
    for row in rows:
        if row["status"] == "finished":
            setting = Setting(*(row[name] for name in Setting._fields))
            groups.setdefault(setting._replace(seed=0), []).append(row)
    return {
        setting: Line(
            numbers(group[0]["at"]), np.array([numbers(r["losses"]) for r in group]), tuple(r["seed"] for r in group)
        )
        for setting, group in groups.items()
    }  # fmt: skip


def means(found: dict[Setting, Line]) -> Curves:
    return {setting: Curve(line.tokens, line.losses.mean(0)) for setting, line in found.items()}


def remainders(found: dict[Setting, Line]) -> dict[str, np.ndarray]:
    """{part: [n, t]}: runs less their setting's mean and what the seed does to all of the part, at the scale of a run's
    noise. Of parts without two settings of several seeds, all others'."""
    parts = {}
    for part in {setting.part for setting in found}:
        several = [line for setting, line in found.items() if setting.part == part and len(line.seeds) > 1]
        several = [line for line in several if line.seeds == several[0].seeds]
        if len(several) > 1:
            length = min(line.losses.shape[1] for line in several)
            table = np.stack([line.losses[:, :length] for line in several])
            left = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean((0, 1))
            settings, seeds = left.shape[:2]
            scale = (settings * seeds / ((settings - 1) * (seeds - 1))) ** 0.5
            parts[part] = scale * left.reshape(-1, length)
    if not parts:
        raise InputError("no part has two settings that ran with several seeds, so that the noise is not known")
    length = min(left.shape[1] for left in parts.values())
    everywhere = np.concatenate([left[:, :length] for left in parts.values()])
    return {setting.part: parts.get(setting.part, everywhere) for setting in found}


def redrawn(found: dict[Setting, Line]) -> Iterator[Curves]:
    """DRAWS sets of mean curves, each with noise added: a run's remainder, whole, times a Student variate."""
    rng, left, plain = np.random.default_rng(0), remainders(found), means(found)
    for _ in range(DRAWS):
        drawn = {}
        for setting, curve in plain.items():
            pool = left[setting.part]
            noise = pool[rng.integers(len(pool))] * rng.standard_t(max(len(pool) // 2, 3))
            at = np.linspace(0, 1, len(curve.tokens)), np.linspace(0, 1, len(noise))
            drawn[setting] = Curve(curve.tokens, curve.loss + np.interp(*at, noise) / len(found[setting].seeds) ** 0.5)
        yield drawn


def interval(found: dict[Setting, Line], quantity: Callable[[Curves], float]) -> tuple[float, float]:
    """Percentiles of 95 % of a number over redrawn curves; infinite where a draw in 20 cannot be measured."""
    values = []
    for curves in redrawn(found):
        try:
            values.append(quantity(curves))
        except InputError:
            values.append(np.nan)
    return percentiles(np.array(values, float))


def percentiles(values: np.ndarray) -> tuple[float, float]:
    known = np.isfinite(values)
    if known.mean() < 0.95:
        return -np.inf, np.inf
    low, high = np.quantile(values[known], [0.025, 0.975])
    return float(low), float(high)


def student(values: list[float]) -> tuple[float, float, float]:
    """(mean, low, high) over seeds."""
    if len(values) < 2:
        raise InputError(f"{len(values)} values: an interval needs two")
    mean, half = np.mean(values), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(mean), float(mean - half), float(mean + half)


# Runs of constant batch

Sweep = list[tuple[int, np.ndarray, np.ndarray]]  # (batch, tokens [t], loss [t]), smallest batch first


def sweeps(curves: Curves) -> dict[tuple[str, float], Sweep]:
    """{(model, lr): runs of constant batch and rate}, of the longest runs there are, to the last whole batch, four
    batches at least."""
    cells = {}
    for setting, curve in curves.items():
        if setting.part in SWEPT:
            cells.setdefault((setting.model, setting.lr), {})[setting.batch, setting.tokens] = curve
    found = {}
    for key, cell in cells.items():
        longest = max(tokens for _, tokens in cell)
        sweep = [(batch, *curve) for (batch, tokens), curve in sorted(cell.items()) if tokens + batch > longest]
        if len(sweep) >= 4:
            found[key] = sweep
    return found


def base_key(curves: Curves) -> tuple[str, float]:
    """(model, lr) of the sweep with the most batches."""
    found = sweeps(curves)
    if not found:
        raise InputError("no model ran with four constant batches")
    return max(found, key=lambda key: len(found[key]))


def base(curves: Curves) -> Sweep:
    return sweeps(curves)[base_key(curves)]


def window(sweep: Sweep) -> float:
    return WINDOW * sweep[0][1][-1]


def lowest(sweep: Sweep) -> np.ndarray:
    """[batches]: the least smoothed loss of each."""
    return np.array([law.smoothed(tokens, loss, window(sweep))[1].min() for _, tokens, loss in sweep])


def targets(sweep: Sweep) -> np.ndarray:
    """Losses from one that all batches reach, none of them before its second measurement, down to one that half of
    them reach, five at least."""
    first = min(law.smoothed(tokens, loss, window(sweep))[1][1] for _, tokens, loss in sweep)
    reached = np.sort(lowest(sweep))
    hardest = reached[min(max(len(reached) // 2, ENOUGH), len(reached)) - 1]
    return np.linspace(min(reached[-1], first), hardest, TARGETS)


def points(sweep: Sweep, target: float) -> dict[str, np.ndarray]:
    """B, E, S at a target loss (`laws.batch_size.crossings`)."""
    return law.crossings(sweep, target, window(sweep))


class Best(NamedTuple):
    """Of one target loss, by the law of a noise floor: constants B_min, B_opt, E_min, their draws [REFITS] over
    resampled batches, and the fit's parameters."""

    constants: dict[str, float]
    draws: dict[str, np.ndarray]
    params: dict[str, float]


def best(sweep: Sweep, target: float) -> Best:
    """Raises InputError where fewer than five batches reach the target."""
    found = fitted(law.NOISE_FLOOR, *reached(sweep, target))
    return Best(law.floor_constants(found.params), law.floor_constants(_draws(found)), found.params)


def reached(sweep: Sweep, target: float) -> tuple[tuple, tuple]:
    """(B, E) of the batches that reach the target."""
    found = points(sweep, target)
    known = np.isfinite(found["E"])
    return tuple(found["B"][known]), tuple(found["E"][known])


@cache
def fitted(which: Law, B: tuple, E: tuple) -> Fit:
    """E(B) by a law, from 80 starts. Raises InputError unless there are two batches more than parameters."""
    if len(B) < len(which.names) + 2:
        raise InputError(f"{len(B)} batches reach the target: {which.name} needs {len(which.names) + 2}")
    return fit(which, {"B": np.array(B)}, np.array(E), starts=80)


@cache
def _draws(found: Fit) -> dict[str, np.ndarray]:
    return bootstrap(found, REFITS).draws


def all_best(sweep: Sweep) -> dict[float, Best]:
    """{target: constants}, of the targets that enough batches reach, easiest first."""
    found = {}
    for target in targets(sweep):
        try:
            found[float(target)] = best(sweep, target)
        except InputError:
            continue
    if len(found) < 3:
        raise InputError(f"{len(found)} targets are reached by enough batches: 3 are needed")
    return found


# Arms


def arms(curves: Curves) -> Curves:
    """The settings of the parts with arms, of the model with the most of them."""
    found = [s for s in curves if s.part not in (*SWEPT, "curve")]
    if not found:
        raise InputError("no arm has run")
    model = Counter(s.model for s in found).most_common(1)[0][0]
    return {s: curves[s] for s in found if s.model == model}


def arm(curves: Curves, name: str, *, times: int = 1, lr: float = 0.0, **values) -> tuple[Setting, Curve]:
    """The one setting of an arm. times: its batch as a multiple of the least; lr: the middle one unless given; weight
    decay 0.1 and the learning rate kept unless `values` say otherwise."""
    found = arms(curves)
    unit, rates = min(s.batch for s in found), sorted({s.lr for s in found})
    wanted = {"arm": name, "batch": times * unit, "lr": lr or rates[len(rates) // 2]}
    wanted |= {"rule": "kept", "weight_decay": 0.1} | values
    chosen = [(s, c) for s, c in found.items() if all(getattr(s, k) == v for k, v in wanted.items())]
    if len(chosen) != 1:
        raise InputError(f"{len(chosen)} settings have {', '.join(f'{k} {v}' for k, v in wanted.items())}, not one")
    return chosen[0]


def loss_at(curve: Curve, tokens: float, last: int) -> float:
    """Mean of the `last` evaluations up to there."""
    end = int(np.searchsorted(curve.tokens, tokens, "right"))
    return float(curve.loss[max(end - last, 0) : max(end, 1)].mean())

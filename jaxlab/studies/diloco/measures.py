"""From runs of the DiLoCo study to tuned losses, gaps to data-parallel, best settings, and their noise between seeds.

Everything is computed from the logarithm of the loss, so that a difference times 100 is a percentage. Runs of one model
and seed share initial weights and data: what a seed does to all of them is taken out before settings are compared.
Raises InputError where the runs are too few. M is `replicas`, 0 for data-parallel; a cell is (model, M).
"""

import math
from typing import NamedTuple

import numpy as np

from jaxlab.config import InputError
from jaxlab.studies.tuning import grouped, select

SETTING = ("model", "replicas", "log2_lr", "batch", "outer_lr", "sync_every", "over_training", "stabilisers")


def repeated(rows: list[dict]) -> dict[str, tuple[list, np.ndarray]]:
    """{model: (its seeds, log losses [settings, seeds] of the settings that ran with all of them)}."""
    found = {}
    for (model,), of_model in grouped(rows, ("model",)).items():
        seeds = sorted({row["seed"] for row in of_model})
        complete = [g for g in grouped(of_model, SETTING).values() if len(g) == len(seeds) > 1]
        if complete:
            losses = [[row["loss"] for row in sorted(g, key=lambda row: row["seed"])] for g in complete]
            found[model] = seeds, np.log(losses)
    return found


def noise(rows: list[dict]) -> dict[str, tuple[float, float]]:
    """{model: standard deviations between its seeds of log loss, of a run's own and of what a seed does to all runs}.

    Models that ran with one seed have the mean of the others'; nan where there are none.
    """
    found = {}
    for model, (seeds, losses) in repeated(rows).items():
        apart = losses - losses.mean(1, keepdims=True)
        shared, count = apart.mean(0), len(losses)
        own = np.sum((apart - shared * (count > 1)) ** 2) / ((len(seeds) - 1) * max(count - 1, 1))
        common = np.sum(shared**2) / (len(seeds) - 1) - own / count
        found[model] = float(own**0.5), float(max(common, 0.0) ** 0.5)
    others = tuple(np.mean(list(found.values()), 0).tolist()) if found else (math.nan, math.nan)
    return {row["model"]: found.get(row["model"], others) for row in rows}


def settings(rows: list[dict]) -> list[dict]:
    """One row a setting, of its runs that finished: its columns, part, N, D; y, the mean log loss without the seeds'
    effects; own and shared, the standard deviations of y of its own and of what all settings of its model share."""
    effects, spread, made = {}, noise(rows), []
    for model, (seeds, losses) in repeated(rows).items():
        apart = (losses - losses.mean(1, keepdims=True)).mean(0)
        effects |= {(model, seed): e for seed, e in zip(seeds, apart.tolist(), strict=True)}
    for runs in grouped(rows, SETTING).values():
        model, first = runs[0]["model"], {k: runs[0][k] for k in ("part", *SETTING, "parameters", "tokens")}
        y = np.mean([np.log(run["loss"]) - effects.get((model, run["seed"]), 0.0) for run in runs])
        own, shared = spread[model]
        seeds = len([1 for name, _ in effects if name == model]) or 1
        made.append(first | {"y": float(y), "own": own / len(runs) ** 0.5, "shared": shared / seeds**0.5})
    return made


def best(found: list[dict], keys: tuple[str, ...] = ("model", "replicas")) -> dict[tuple, dict]:
    """{values of the keys: the setting of lowest loss}."""
    lowest = {}
    for s in sorted(found, key=lambda s: s["y"]):
        lowest.setdefault(tuple(s[k] for k in keys), s)
    return dict(sorted(lowest.items(), key=lambda item: (item[1]["parameters"], item[0])))


def tuned(runs: list[dict]) -> dict[tuple, dict]:
    """{cell: the best setting of part loss}: the paper's best run per (N, M)."""
    found = best(select(runs, part="loss"))
    if not found:
        raise InputError("no run of part loss has finished")
    return found


def gaps(runs: list[dict]) -> dict[tuple, float]:
    """{cell: loss above tuned data-parallel's of the same model, per cent}, M >= 1."""
    found = tuned(runs)
    pairs = {(model, m): found.get((model, 0)) for model, m in found if m}
    return {cell: 100 * (np.exp(found[cell]["y"] - dp["y"]) - 1) for cell, dp in pairs.items() if dp}


def series(found: list[dict], x: str, at_least: int = 3) -> dict[tuple, dict]:
    """{cell: {x: lowest y}} of the cells that have so many values of x, whatever else was tuned."""
    of_cell = {}
    for (model, replicas, value), s in best(found, ("model", "replicas", x)).items():
        of_cell.setdefault((model, replicas), {})[value] = s["y"]
    return {cell: dict(sorted(line.items())) for cell, line in of_cell.items() if len(line) >= at_least}


class Minima(NamedTuple):
    """curvature of y in x, one for all cells; of each cell where its parabola is lowest, within the range swept."""

    curvature: float
    at: dict


def minima(lines: dict[tuple, dict]) -> Minima:
    """Least squares of y = c + a x + k x^2, with c and a a cell's own and one k: {cell: {x: y}} -> Minima."""
    if not lines:
        raise InputError("no model was swept over three values or more")
    parts = []
    for line in lines.values():
        x, y = np.array(list(line)), np.array(list(line.values()))
        square, x, y = x * x - np.mean(x * x), x - x.mean(), y - y.mean()
        parts.append((x, y, square, (square @ x) / (x @ x)))
    curved = [(square - b * x, y) for x, y, square, b in parts]
    k = sum(q @ y for q, y in curved) / sum(q @ q for q, _ in curved)
    if not k > 0:
        raise InputError(f"the losses have no minimum (curvature {k:.3g})")
    at = {}
    for cell, (x, y, square, _) in zip(lines, parts, strict=True):
        lowest = -(x @ (y - k * square)) / (x @ x) / (2 * k)
        at[cell] = float(np.clip(lowest, min(lines[cell]), max(lines[cell])))
    return Minima(float(k), at)


def usual(runs: list[dict]) -> list[dict]:
    """Settings whose outer learning rate and H are those of part loss."""
    outer = {(run["replicas"], run["outer_lr"], run["sync_every"]) for run in select(runs, part="loss")}
    found = select(runs, stabilisers="qk+z")
    return [run for run in found if (run["replicas"], run["outer_lr"], run["sync_every"]) in outer]


def rates(runs: list[dict]) -> Minima:
    """log2 of the best peak learning rate of every cell of part loss that was swept."""
    return minima(series(select(runs, part="loss"), "log2_lr", at_least=2))


def batches(runs: list[dict]) -> dict[tuple, dict]:
    """{cell: {tokens of a batch: lowest y}} where the batch was swept."""
    return series(select(usual(runs), over_training=1), "batch")


def best_batches(runs: list[dict]) -> dict[tuple, float]:
    """{cell: tokens}, by a parabola in log2 B of each cell's own; without the cells that are best at an end."""
    found = {}
    for cell, line in batches(runs).items():
        x = np.log2(list(line))
        k, a, _ = np.polyfit(x, list(line.values()), 2)
        if k > 0 and x[0] < -a / (2 * k) < x[-1]:
            found[cell] = float(2 ** (-a / (2 * k)))
    return found


def outer_rates(runs: list[dict]) -> dict[tuple, dict]:
    """{cell: {outer learning rate: y}} at the H of part loss, learning rate and batch fixed."""
    periods = {run["sync_every"] for run in select(runs, part="loss") if run["replicas"]}
    found = [run for run in select(runs, over_training=1, stabilisers="qk+z") if run["sync_every"] in periods]
    return series(at_one_setting(found, "outer_lr"), "outer_lr")


def periods(runs: list[dict]) -> list[dict]:
    """Settings of the cells that were swept over H, learning rate and batch fixed, at the outer learning rates that ran
    with every H."""
    found = [s for s in select(runs, over_training=1, stabilisers="qk+z") if s["replicas"]]
    cells = {}
    for s in at_one_setting(found, "sync_every"):
        etas = cells.setdefault((s["model"], s["replicas"]), {}).setdefault(s["sync_every"], {})
        etas[s["outer_lr"]] = s
    kept = []
    for by_period in cells.values():
        shared = set.intersection(*(set(etas) for etas in by_period.values()))
        kept += [s for etas in by_period.values() for eta, s in etas.items() if eta in shared]
    return kept


def at_one_setting(found: list[dict], x: str) -> list[dict]:
    """Of every cell, the settings with the learning rate and batch that were swept over the most values of x."""
    groups = {}
    for s in found:
        groups.setdefault((s["model"], s["replicas"]), {}).setdefault((s["log2_lr"], s["batch"]), []).append(s)
    return [s for options in groups.values() for s in max(options.values(), key=lambda o: len({s[x] for s in o}))]


def longer(runs: list[dict]) -> dict[tuple, dict]:
    """{cell: {tokens over those of 20 a parameter: y}} where that was swept, nothing tuned anew."""
    return series(at_one_setting(usual(runs), "over_training"), "over_training", at_least=2)


def stability(runs: list[dict]) -> dict[str, dict]:
    """{stabilisers: {log2 of the learning rate: y}}, data-parallel, at the one model and batch that ran without any."""
    found = select(runs, replicas=0, over_training=1)
    bare = next((s for s in found if s["stabilisers"] != "qk+z"), None)
    lines = {}
    if bare:
        for s in select(found, model=bare["model"], batch=bare["batch"]):
            lines.setdefault(s["stabilisers"], {})[s["log2_lr"]] = s["y"]
    return {name: dict(sorted(line.items())) for name, line in lines.items()}


def widths(runs: list[dict], share: float = 0.01) -> dict[str, float]:
    """{stabilisers: octaves of learning rate within `share` of their own lowest loss}, by interpolation."""
    result = {}
    for name, line in stability(runs).items():
        x, y = np.array(list(line)), np.array(list(line.values()))
        fine = np.linspace(x[0], x[-1], 1 + int(64 * (x[-1] - x[0])))
        result[name] = float(np.mean(np.interp(fine, x, y) <= y.min() + share) * (x[-1] - x[0]))
    return result

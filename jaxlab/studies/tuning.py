"""What a sweep over learning rates and seeds says: tuned losses, the law of the best rate, the noise between seeds.

A cell is everything that is tuned for by itself, for instance a model and a budget of tokens. Rows are those of
`study.results`, with `log2_lr` and `seed` among their tags.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from jaxlab.config import InputError

CELL = ("model", "tokens")
DRAWS = 200


def column(rows: list[dict], name: str) -> np.ndarray:
    """A column of the results as float64 [rows]."""
    return np.array([row[name] for row in rows], float)


def mean_loss(rows: list[dict]) -> float:
    """nats/token."""
    return float(np.mean([row["loss"] for row in rows]))


def grouped(results: list[dict], keys: tuple[str, ...]) -> dict[tuple, list[dict]]:
    """{values of the keys: the finished runs that have them}."""
    groups = {}
    for row in results:
        if row["status"] == "finished":
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def once(grids: Iterable[tuple], kind: Callable) -> Iterator[tuple]:
    """kind(part, *values) for all combinations in grids of (part, *lists of values), each once: in the first part that
    has it."""
    seen = set()
    for part, *lists in grids:
        for values in product(*lists):
            if values not in seen:
                seen.add(values)
                yield kind(part, *values)


def select(rows: list[dict], **values) -> list[dict]:
    """The rows with these values."""
    return [row for row in rows if all(row[k] == v for k, v in values.items())]


def tuned(results: list[dict], cell: tuple[str, ...] = CELL) -> list[dict]:
    """The rows at each cell's best learning rate, by the mean loss over its seeds."""
    best = []
    for rows in grouped(results, cell).values():
        best += min(grouped(rows, ("log2_lr",)).values(), key=mean_loss)
    return best


def seed_noise(results: list[dict], cell: tuple[str, ...] = CELL) -> float:
    """Standard deviation of the loss over seeds, nats/token, pooled over all settings that ran with several."""
    settings = grouped(results, (*cell, "log2_lr")).values()
    variances = [np.var(column(rows, "loss"), ddof=1) for rows in settings if len(rows) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else math.nan


def redrawn(runs: list[dict], quantity: Callable) -> np.ndarray:
    """quantity(runs), an array or number, for DRAWS sets of losses with noise between seeds added: [DRAWS, ...].

    Of each run: its model, y, and own and shared, the standard deviations of what noise adds to y alone and to all of
    its model. nan where a draw cannot be measured. Raises InputError where no setting ran twice.
    """
    rng, missing = np.random.default_rng(0), np.full_like(quantity(runs), np.nan, float)
    y, own, shared = (np.array([run[k] for run in runs]) for k in ("y", "own", "shared"))
    if np.isnan(own).any():
        raise InputError("no setting ran with two seeds, so that the noise is not known")
    models, of_run = np.unique([run["model"] for run in runs], return_inverse=True)
    draws = []
    for _ in range(DRAWS):
        noisy = y + own * rng.standard_normal(len(y)) + shared * rng.standard_normal(len(models))[of_run]
        try:
            draws.append(quantity([run | {"y": value} for run, value in zip(runs, noisy.tolist(), strict=True)]))
        except InputError:
            draws.append(missing)
    return np.array(draws, float)


def interval(runs: list[dict], quantity: Callable) -> tuple[float, float]:
    """Percentiles of 95 % of a number over redrawn losses; infinite where a draw in 20 cannot be measured."""
    draws = redrawn(runs, quantity)
    if np.isnan(draws).mean() > 0.05:
        return -np.inf, np.inf
    low, high = np.quantile(draws[~np.isnan(draws)], [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def slope(x, y) -> float:
    """Of the straight line through points."""
    if len(set(x)) < 2:
        raise InputError("a slope needs two values to compare")
    return float(np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)[0])


class Rates(NamedTuple):
    """The best peak learning rate A prod x_i^e_i: exponents {name: e}, and refits of them to resampled cells, [draws]
    each; minima {cell: (log2 of the best rate, the loss there)}."""

    A: float
    exponents: dict[str, float]
    draws: dict[str, np.ndarray]
    minima: dict[tuple, tuple[float, float]]

    def interval(self, name: str) -> tuple[float, float]:
        """Percentiles of 95 %."""
        low, high = np.quantile(self.draws[name], [0.025, 0.975])
        return float(low), float(high)


def best_rates(results: list[dict], inputs: dict[str, str], cell: tuple[str, ...] = CELL) -> Rates:
    """Least squares of log loss = c(cell) + k (r - a - sum_i e_i log2 x_i)^2 in r = log2 peak_lr, all runs at once.

    inputs: {name: column of x_i}. One curvature k for all cells: a parabola through the few rates of one cell is no
    match for the noise between seeds. Linear in c, k, k a and k e_i; differences from a cell's means take out its c.
    Raises InputError for too few cells, or losses that have no minimum.
    """
    cells = grouped(results, cell)
    if len(cells) < len(inputs) + 3:
        raise InputError(
            f"{len(cells)} cells ({', '.join(cell)}): the law of the learning rate needs {len(inputs) + 3}"
        )
    means, products = [], []
    for rows in cells.values():
        rate, x = column(rows, "log2_lr"), np.log2([column(rows, name) for name in inputs.values()])
        table = np.stack([rate * rate, rate, *(rate * x), np.log(column(rows, "loss"))])
        means.append((*table[[0, 1, -1]].mean(1), x[:, 0]))
        apart = table - table.mean(1, keepdims=True)
        products.append(apart @ apart.T)
    count = len(cells)
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=1_000)
    sums = np.tensordot(np.concatenate([np.ones((1, count)), times]), np.stack(products), 1)  # the first: all, once
    design = sums[:, :-1, :-1] + 1e-12 * np.eye(len(inputs) + 2)
    k, *slopes = np.moveaxis(np.linalg.solve(design, sums[:, :-1, -1:])[..., 0], 1, 0)
    if not k[0] > 0:
        raise InputError(f"the losses have no minimum in the learning rate (curvature {k[0]:.3g})")
    a, *exponents = (-slope / (2 * k) for slope in slopes)
    minima = {}
    for name, (square, rate, loss, x) in zip(cells, means, strict=True):
        best = a[0] + sum(e[0] * v for e, v in zip(exponents, x, strict=True))
        minima[name] = best, math.exp(loss - k[0] * (square - 2 * best * rate + best * best))
    found = dict(zip(inputs, exponents, strict=True))
    draws = {name: e[1:][k[1:] > 0] for name, e in found.items()}
    return Rates(float(2 ** a[0]), {name: float(e[0]) for name, e in found.items()}, draws, minima)

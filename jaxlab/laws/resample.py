"""Bootstrap intervals and held-out residuals of a fit. Refits of a law run in the compiled program of the fit."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxlab.config import InputError
from jaxlab.laws import solve
from jaxlab.laws.chinchilla import IsoFlop
from jaxlab.laws.columns import check_level
from jaxlab.laws.fit import STEPS, Fit
from jaxlab.laws.lines import PowerLaw


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """draws {name: [draws]}, natural units; intervals {name: (low, high)}, the 95 % percentile intervals.

    A draw is nan if its rows do not determine a line or an IsoFLOP sweep; `lost` counts these draws and intervals leave
    them out. Draws of a `Fit` are never nan, since every descent ends somewhere; with hardly more rows than parameters
    they are therefore unreliable, and `Fit.interval` is better."""

    draws: dict

    @property
    def lost(self) -> int:
        return int(np.any(np.isnan(list(self.draws.values())), axis=0).sum())

    @property
    def intervals(self) -> dict:
        return {name: self.interval(name) for name in self.draws}

    def interval(self, quantity: str | Callable, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of a parameter, or of a function of {name: float}; nan if every draw is lost."""
        check_level(level)
        values = self.draws[quantity] if isinstance(quantity, str) else self.derived(quantity)
        values = values[~np.isnan(values)]
        if not len(values):
            return np.nan, np.nan
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def derived(self, quantity: Callable) -> np.ndarray:
        """quantity({name: float}) for every draw: [draws]."""
        rows = zip(*self.draws.values(), strict=True)
        return np.array([quantity(dict(zip(self.draws, row, strict=True))) for row in rows])


def refit(fit: Fit, weights, y=None) -> np.ndarray:
    """theta [draws, p] of the law fitted again with row weights [draws, n] and, if given, y [draws, n].

    Each refit starts from the fit itself and from two more of its `ends`.
    """
    starts = fit.ends[[0, len(fit.ends) // 4, len(fit.ends) // 2]]
    weights = np.repeat(np.asarray(weights, np.float64), len(starts), axis=0)
    y = fit.problem.y if y is None else np.repeat(np.asarray(y, np.float64), len(starts), axis=0)
    problem = fit.problem._replace(weights=weights, y=y)
    ends = solve.descend(fit.law, fit.space, problem, np.tile(starts, (len(weights) // len(starts), 1)), STEPS)
    best = ends.value.reshape(-1, len(starts)).argmin(1)
    return ends.theta.reshape(-1, len(starts), starts.shape[1])[np.arange(len(best)), best]


def bootstrap(fit: Fit | PowerLaw | IsoFlop, draws: int = 1000, groups=None, seed: int = 0) -> Bootstrap:
    """Refits to rows drawn with replacement, or to whole groups of rows (groups [n]: seed, run or configuration).

    For IsoFLOP sweeps each draw repeats everything, from the runs to the power law of the minimisers, and runs are
    drawn within their budget. Raises InputError unless groups has one label for each row and at least two labels.
    """
    if not (isinstance(draws, int | np.integer) and draws >= 1):
        raise InputError(f"draws={draws}: must be a whole number of at least 1")
    strata = fit.budgets if groups is None and isinstance(fit, IsoFlop) else np.zeros(fit.n)
    labels = np.arange(fit.n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if labels.shape != (fit.n,):
        raise InputError(f"groups has shape {labels.shape}: must have a label for each of {fit.n} rows")
    if labels.max() == 0:
        raise InputError("groups has one label: draws of one group are all the same")
    random, times = np.random.default_rng(seed), np.zeros((draws, fit.n), int)
    for stratum in np.unique(strata):
        rows = strata == stratum
        group = np.unique(labels[rows], return_inverse=True)[1]
        count = group.max() + 1
        times[:, rows] = random.multinomial(count, np.full(count, 1 / count), size=draws)[:, group]
    if not isinstance(fit, Fit):
        return Bootstrap(fit.refitted(times))
    thetas = refit(fit, times)
    return Bootstrap({k: np.asarray(v) for k, v in fit.law.natural(thetas.T).items()})


def leave_one_out(fit: Fit) -> np.ndarray:
    """[n]: log prediction minus log y of each row, predicted by the law fitted to the other rows."""
    thetas = refit(fit, 1 - np.eye(fit.n))
    rows = [{k: v[i : i + 1] for k, v in fit.problem.inputs.items()} for i in range(fit.n)]
    predicted = [fit.law(fit.law.natural(t), row)[0] for t, row in zip(thetas, rows, strict=True)]
    return np.log(predicted) - np.log(fit.problem.y)


def leave_largest_out(fit: Fit, by: str = "N") -> tuple[dict, np.ndarray]:
    """(parameters fitted without the rows of the largest input `by`, log prediction minus log y of those rows)."""
    if by not in fit.problem.inputs:
        raise InputError(f"by={by!r}: {fit.law.name} has the inputs {', '.join(fit.problem.inputs)}")
    column = fit.problem.inputs[by]
    largest = column == column.max()
    if np.sum(~largest) < fit.problem.free.sum():
        raise InputError(f"by={by!r}: {np.sum(~largest)} rows are left without the largest: too few for {fit.law.name}")
    theta = refit(fit, ~largest[None])[0]
    params = {k: float(v) for k, v in fit.law.natural(theta).items()}
    return params, np.log(fit.law(params, fit.problem.inputs)[largest]) - np.log(fit.problem.y[largest])

"""What a fit is worth: bootstrap intervals and held-out residuals; the refits run in the fit's own compiled program."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxlab.config import InputError
from jaxlab.laws import solve
from jaxlab.laws.fit import STEPS, Fit


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """draws {name: [draws]}, natural units; intervals {name: (low, high)}, 95 %, percentiles."""

    draws: dict

    @property
    def intervals(self) -> dict:
        return {name: self.interval(name) for name in self.draws}

    def interval(self, quantity: str | Callable, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of a parameter, or of a function of {name: float}."""
        values = self.draws[quantity] if isinstance(quantity, str) else self.derived(quantity)
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def derived(self, quantity: Callable) -> np.ndarray:
        """quantity({name: float}) for every draw: [draws]."""
        rows = zip(*self.draws.values(), strict=True)
        return np.array([quantity(dict(zip(self.draws, row, strict=True))) for row in rows])


def refit(fit: Fit, weights, y=None) -> np.ndarray:
    """theta [draws, p] of the law fitted again, with row weights [draws, n] and y [draws, n] instead of the fit's.

    From the fit and from two more of its ends.
    """
    starts = fit.ends[[0, len(fit.ends) // 4, len(fit.ends) // 2]]
    weights = np.repeat(np.asarray(weights, np.float64), len(starts), axis=0)
    y = fit.problem.y if y is None else np.repeat(np.asarray(y, np.float64), len(starts), axis=0)
    problem = fit.problem._replace(weights=weights, y=y)
    ends = solve.descend(fit.law, fit.space, problem, np.tile(starts, (len(weights) // len(starts), 1)), STEPS)
    best = ends.value.reshape(-1, len(starts)).argmin(1)
    return ends.theta.reshape(-1, len(starts), starts.shape[1])[np.arange(len(best)), best]


def bootstrap(fit: Fit, draws: int = 1000, groups=None, seed: int = 0) -> Bootstrap:
    """Refits to rows drawn with replacement, or to groups of rows drawn whole (groups [n]: seed or configuration)."""
    labels = np.arange(fit.n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if labels.shape != (fit.n,):
        raise InputError(f"groups has shape {labels.shape}: must have a label for each of {fit.n} rows")
    count = labels.max() + 1
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    thetas = refit(fit, times[:, labels])
    return Bootstrap({k: np.asarray(v) for k, v in fit.law.natural(thetas.T).items()})


def leave_one_out(fit: Fit) -> np.ndarray:
    """[n]: log prediction minus log y of each row, by the law fitted to the others."""
    thetas = refit(fit, 1 - np.eye(fit.n))
    rows = [{k: v[i : i + 1] for k, v in fit.problem.inputs.items()} for i in range(fit.n)]
    predicted = [fit.law(fit.law.natural(t), row)[0] for t, row in zip(thetas, rows, strict=True)]
    return np.log(predicted) - np.log(fit.problem.y)


def leave_largest_out(fit: Fit, by: str = "N") -> tuple[dict, np.ndarray]:
    """(parameters fitted without the rows of the largest input `by`, log prediction minus log y of those rows)."""
    if by not in fit.problem.inputs:
        raise InputError(f"by={by!r}: {fit.law.name} has the inputs {', '.join(fit.problem.inputs)}")
    column = fit.problem.inputs[by]
    held = column == column.max()
    theta = refit(fit, ~held[None])[0]
    params = {k: float(v) for k, v in fit.law.natural(theta).items()}
    return params, np.log(fit.law(params, fit.problem.inputs)[held]) - np.log(fit.problem.y[held])

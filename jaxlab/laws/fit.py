"""Fitting a scaling law: Huber or least squares on logarithms, many starts in one compiled float64 program.

`fit` needs a `Law`, its inputs and y. Standard errors and intervals come with it (`Fit.interval`); resampling is in
`jaxlab.laws.resample`, and straight lines and parabolas, which have closed forms, in `jaxlab.laws.lines`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, special, stats

from jaxlab.config import InputError
from jaxlab.laws import solve
from jaxlab.laws.law import TRANSFORMS, Law, Parameter

__all__ = ["Fit", "Law", "Parameter", "at_end", "covariance", "fit"]

STEPS, POLISH = 60, 150  # descent steps of every start, then of the best ones


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law.

    params, stderr: {name: float}, natural units; stderr by the delta method, nan where held. covariance [p, p] of theta
    (the logarithm of positive, the logit of unit parameters), see `covariance`. residuals [n]: prediction minus y, of
    logarithms in log space; r2 in that space. value: the objective. aic, bic: from the density exp(-Huber / s), normal
    for least squares, s fitted; comparable between laws fitted alike to the same y. ends [K, p]: theta where each
    start ended, best first. undetermined: names of parameters that the data do not determine; `warning` says it.
    """

    law: Law
    params: dict
    stderr: dict
    covariance: np.ndarray = field(repr=False)
    residuals: np.ndarray = field(repr=False)
    r2: float
    aic: float
    bic: float
    value: float
    n: int
    undetermined: tuple[str, ...]
    objective: str
    space: str
    problem: solve.Problem = field(repr=False)
    ends: np.ndarray = field(repr=False)

    def predict(self, inputs: dict) -> np.ndarray:
        """The law at inputs {name: array}, float64."""
        return self.law(self.params, inputs)

    @property
    def theta(self) -> np.ndarray:
        """[p]: the parameters in unconstrained coordinates."""
        return self.ends[0]

    @property
    def warning(self) -> str:
        """One line where the data leave parameters undetermined, else empty."""
        names = ", ".join(f"{k} ({self.params[k]:.3g})" for k in self.undetermined)
        return f"{self.law.name}: {self.n} points do not determine {names}" if names else ""

    def interval(self, quantity: str | Callable, level: float = 0.95) -> tuple[float, float]:
        """t interval of a parameter, symmetric in theta, or of a positive function of params, symmetric in its log.

        The function may be any Python function of {name: float}: its slope is taken by central differences.
        """
        if isinstance(quantity, str):
            i = self.law.names.index(quantity)
            transform, centre, slope = self.law.parameters[i].transform, self.theta[i], np.eye(len(self.theta))[i]
        else:
            transform, (centre, slope) = "positive", self._log_slope(quantity)
        seen = np.isfinite(np.diag(self.covariance))
        blind = np.any(np.abs(slope[~seen]) > 1e-6)
        slope = np.where(seen, slope, 0)
        error = np.inf if blind else np.sqrt(slope @ np.where(np.isfinite(self.covariance), self.covariance, 0) @ slope)
        width = stats.t.ppf((1 + level) / 2, self.n - self.problem.free.sum()) * error
        back = TRANSFORMS[transform][1]
        return float(back(centre - width, np)), float(back(centre + width, np))

    def _log_slope(self, quantity: Callable, step: float = 1e-5):
        """log quantity and its gradient in theta [p]."""

        def log(theta):
            return np.log(quantity(self.law.natural(theta)))

        moves = step * np.diag(self.problem.free)
        return log(self.theta), np.array([(log(self.theta + m) - log(self.theta - m)) / (2 * step) for m in moves])


def fit(
    law: Law,
    inputs: dict,
    y,
    *,
    objective: str = "huber",
    delta: float = 1e-3,
    space: str = "log",
    starts: int = 256,
    fixed: dict | None = None,
    seed: int = 0,
) -> Fit:
    """The parameters with the smallest objective over `starts` starting points of the law's grid.

    inputs: {name: [n]}, at least `law.inputs`; y [n]. objective: `huber` (the sum of Huber losses of the residuals with
    delta in their unit; Hoffmann et al. 2203.15556, approach 3: 1e-3 on logarithms) or `least_squares`. space: `log` or
    `linear`. starts: how many points of the grid, drawn by `seed`; all of them where it has fewer. fixed: {name: value}
    of parameters to hold. Raises InputError for input that cannot be fitted.
    """
    fixed = fixed or {}
    _check_options(law, objective, delta, space, starts, fixed)
    columns, y = _check_data(law, inputs, y, space, len(law.names) - len(fixed))
    begin = starting_points(law, columns, y, starts, fixed, seed)
    free = np.array([name not in fixed for name in law.names], float)
    problem = solve.Problem(columns, y, np.ones_like(y), float(delta if objective == "huber" else np.inf), free)
    _check_columns(law, space, problem, begin)
    rough = solve.descend(law, space, problem, begin, STEPS)
    order = np.argsort(rough.value)
    if not np.isfinite(rough.value[order[0]]):
        raise InputError(f"{law.name}: not finite at any of {len(begin)} starts: are the inputs in the law's units?")
    best = solve.descend(law, space, problem, rough.theta[order[: solve.CHUNK]], POLISH)
    ends = np.concatenate([best.theta[np.argsort(best.value)], rough.theta[order[solve.CHUNK :]]])
    return _describe(law, objective, space, problem, ends)


def at_end(fit: Fit, index: int) -> Fit:
    """The same fit at another of its ends, which comes first in the new one's."""
    ends = np.roll(fit.ends, -index, axis=0)
    return _describe(fit.law, fit.objective, fit.space, fit.problem, ends)


def _describe(law: Law, objective: str, space: str, problem: solve.Problem, ends) -> Fit:
    """The Fit at theta = ends[0]: parameters, errors, quality."""
    theta, delta, n, free = ends[0], problem.delta, len(problem.y), problem.free > 0
    _, _, (residuals,), (jacobian,) = solve.descend(law, space, problem, ends[:1], 1)
    cov = np.zeros((len(theta), len(theta)))
    cov[np.ix_(free, free)] = covariance(jacobian[:, free], residuals, delta)
    errors = np.where(free, np.sqrt(np.diag(cov)), np.nan)
    _, _, slopes, limits = zip(*(TRANSFORMS[q.transform] for q in law.parameters), strict=True)
    inner = np.clip(residuals, -delta, delta)
    value = float(np.sum(inner * (residuals - inner / 2)))
    deviance = _deviance(value, n, delta)
    target = np.log(problem.y) if space == "log" else problem.y
    return Fit(
        law=law,
        params={name: float(v) for name, v in law.natural(theta).items()},
        stderr={name: float(e * f(t)) for name, e, f, t in zip(law.names, errors, slopes, theta, strict=True)},
        covariance=cov,
        residuals=residuals,
        r2=float(1 - np.sum(residuals**2) / np.sum((target - target.mean()) ** 2)),
        aic=float(deviance + 2 * (free.sum() + 1)),
        bic=float(deviance + np.log(n) * (free.sum() + 1)),
        value=value,
        n=n,
        undetermined=tuple(k for k, e, most in zip(law.names, errors, limits, strict=True) if e > most or np.isinf(e)),
        objective=objective,
        space=space,
        problem=problem,
        ends=ends,
    )


def covariance(jacobian, residuals, delta: float) -> np.ndarray:
    """Covariance [..., p, p] of theta from J [..., n, p] and residuals [..., n]; errors independent and alike.

    tau^2 (J^T J)^-1. Least squares (delta inf): tau^2 = RSS / (n - p). Huber: the sandwich's tau^2 = mean psi^2 /
    (mean psi')^2 n / (n - p); mean psi' is the slope of mean psi over a window of n^-1/5 robust standard deviations,
    since with a small delta few rows have psi' = 1, and leaves out the p smallest residuals, since a fit close to least
    absolute values passes through p points. Infinite along directions that J does not see.
    """
    size = np.maximum(np.linalg.norm(jacobian, axis=-2, keepdims=True), 1e-150)
    _, singular, rows = np.linalg.svd(jacobian / size, full_matrices=False)
    seen = singular > 1e-9 * singular[..., :1]
    hidden = np.any(~seen[..., None] & (np.abs(rows) > 1e-3), axis=-2)
    root = np.swapaxes(rows, -1, -2) * np.where(seen, 1 / np.where(seen, singular, 1), 0)[..., None, :]
    inverse = root @ np.swapaxes(root, -1, -2) / (np.swapaxes(size, -1, -2) * size)
    inverse = np.where(hidden[..., None] & np.eye(size.shape[-1], dtype=bool), np.inf, inverse)
    return _scale(residuals, delta, size.shape[-1])[..., None, None] * inverse


def _scale(residuals, delta: float, p: int) -> np.ndarray:
    """tau^2 [...] of `covariance`."""
    n = residuals.shape[-1]
    if n == p:
        return np.full(residuals.shape[:-1], np.nan)
    spread = np.mean(np.clip(residuals, -delta, delta) ** 2, axis=-1) * n / (n - p)
    if np.isinf(delta):
        return spread
    rest = np.take_along_axis(residuals, np.argsort(np.abs(residuals), axis=-1)[..., p:], axis=-1)
    window = 1.4826 * np.median(np.abs(rest), axis=-1, keepdims=True) * n**-0.2 + 1e-12
    rise = np.clip(rest + window, -delta, delta) - np.clip(rest - window, -delta, delta)
    return spread / np.mean(rise / (2 * window), axis=-1) ** 2


def _deviance(value: float, n: int, delta: float) -> float:
    """-2 log likelihood of the density exp(-Huber / s) / Z(s) at its best s."""

    def of(log_s):
        s = np.exp(log_s)
        z = np.sqrt(2 * np.pi * s)
        if np.isfinite(delta):
            z = z * special.erf(delta / np.sqrt(2 * s)) + 2 * s / delta * np.exp(-(delta**2) / (2 * s))
        return 2 * value / s + 2 * n * np.log(z)

    guess = np.log(2 * value / n + 1e-300)
    return float(optimize.minimize_scalar(of, bounds=(guess - 10, guess + 10), method="bounded").fun)


def starting_points(law: Law, columns: dict, y, count: int, fixed: dict, seed: int) -> np.ndarray:
    """theta [K, p] of grid points drawn without replacement, parameters of `fixed` at their values."""
    grids = [(fixed[q.name],) if q.name in fixed else q.values(columns, y) for q in law.parameters]
    sizes = [len(grid) for grid in grids]
    total = int(np.prod(sizes))
    chosen = np.arange(total)
    if total > count:
        chosen = np.random.default_rng(seed).choice(total, count, replace=False)
    points = np.stack([np.asarray(g, float)[i] for g, i in zip(grids, np.unravel_index(chosen, sizes), strict=True)])
    return law.theta(dict(zip(law.names, points, strict=True)))


def _check_options(law: Law, objective: str, delta: float, space: str, starts: int, fixed: dict) -> None:
    if objective not in ("huber", "least_squares"):
        raise InputError(f"objective={objective!r}: must be huber or least_squares")
    if space not in ("log", "linear"):
        raise InputError(f"space={space!r}: must be log or linear")
    if not delta > 0:
        raise InputError(f"delta={delta}: must be above 0")
    if starts < 1:
        raise InputError(f"starts={starts}: must be at least 1")
    for name in fixed:
        if name not in law.names:
            raise InputError(f"fixed={name!r}: {law.name} has the parameters {', '.join(law.names)}")


def _check_data(law: Law, inputs: dict, y, space: str, free: int) -> tuple[dict, np.ndarray]:
    """The law's columns and y as float64, or an InputError."""
    y = np.asarray(y, np.float64)
    if y.ndim != 1:
        raise InputError(f"y has shape {y.shape}: must be one column")
    for name in law.inputs:
        if name not in inputs:
            raise InputError(f"input {name!r} is missing: {law.name} needs {', '.join(law.inputs)}")
    columns = {name: np.asarray(inputs[name], np.float64) for name in law.inputs}
    for name, column in columns.items():
        if column.shape != y.shape:
            raise InputError(f"input {name!r} has shape {column.shape}: must be that of y, {y.shape}")
        for row in np.flatnonzero(~np.isfinite(column))[:1]:
            raise InputError(f"input {name!r}, row {row}: {column[row]} must be finite")
    for row in np.flatnonzero(~np.isfinite(y) | ((y <= 0) & (space == "log")))[:1]:
        raise InputError(f"y, row {row}: {y[row]} must be finite{' and above 0' if space == 'log' else ''}")
    if len(y) < free:
        raise InputError(f"{len(y)} points: {law.name} has {free} parameters to fit")
    return columns, y


def _check_columns(law: Law, space: str, problem: solve.Problem, starts: np.ndarray) -> None:
    """Raises InputError where a column that never changes leaves parameters undetermined at every start."""
    constant = [name for name, column in problem.inputs.items() if np.all(column == column[0])]
    if not constant or len(problem.y) < 2:
        return
    jacobians = solve.descend(law, space, problem, starts[: solve.CHUNK], 1).jacobian[..., problem.free > 0]
    jacobians = jacobians / np.maximum(np.linalg.norm(jacobians, axis=-2, keepdims=True), 1e-300)
    singular = np.linalg.svd(jacobians, compute_uv=False)
    if np.max(singular[:, -1] / np.maximum(singular[:, 0], 1e-300)) < 1e-9:
        name, value = constant[0], problem.inputs[constant[0]][0]
        raise InputError(f"input {name!r} is {value:g} in every row: it has to vary to determine {law.name}")

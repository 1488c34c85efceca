"""Fits a scaling law: Huber or least squares on logarithms, from many starts in one compiled float64 program.

`fit` needs a `Law`, its inputs and y. Its result has standard errors and intervals (`Fit.interval`). Bootstrap is in
`jaxlab.laws.resample`; power laws and parabolas, which have closed forms, are in `jaxlab.laws.lines`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, special, stats

from jaxlab.config import InputError
from jaxlab.laws import solve
from jaxlab.laws.columns import check_level, columns, explained, relative_weights
from jaxlab.laws.law import LIMITS, TRANSFORMS, Law, Parameter

__all__ = ["Fit", "Law", "Parameter", "at_end", "covariance", "fit"]

STEPS, POLISH = 60, 150  # descent steps from every start, and then for the best ones


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law.

    params, stderr: {name: float}, natural units; stderr by the delta method, nan for parameters that were fixed.
    covariance [p, p]: of theta, the unconstrained coordinates (logarithms of positive, logits of unit parameters), see
    `covariance`. residuals [n]: prediction minus y, of their logarithms in log space; r2: in the same space, nan if y
    is the same in every row. value: the objective. aic, bic: from the error density exp(-Huber / s) with fitted s
    (normal for least squares), nan without degrees of freedom; they compare laws fitted to the same y with the same
    objective. ends [K, p]: theta where the descent from each start ended, best first. undetermined: names of parameters
    that the data do not determine: their error is large or unknown, or they are at a bound; `warning` says so.
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
        """One line that names the undetermined parameters; empty if there are none."""
        at_bound = (self.theta == self.problem.low) | (self.theta == self.problem.high)
        notes = {name: ", its bound" * bool(stands) for name, stands in zip(self.law.names, at_bound, strict=True)}
        names = ", ".join(f"{k} ({self.params[k]:.3g}{notes[k]})" for k in self.undetermined)
        return f"{self.law.name}: {self.n} points do not determine {names}" if names else ""

    def interval(self, quantity: str | Callable, level: float = 0.95) -> tuple[float, float]:
        """t interval of a parameter, symmetric in theta, or of a positive function of params, symmetric in its log.

        The function may be any Python function of {name: float}: its gradient is taken by central differences. The
        interval is unbounded if the data do not determine the quantity.
        """
        if isinstance(quantity, str):
            if quantity not in self.law.names:
                raise InputError(f"{quantity!r}: {self.law.name} has the parameters {', '.join(self.law.names)}")
            i = self.law.names.index(quantity)
            transform, centre, slope = self.law.parameters[i].transform, self.theta[i], np.eye(len(self.theta))[i]
        else:
            transform, (centre, slope) = "positive", self._log_slope(quantity)
        low, high = self._around(transform, centre, self._variance(slope), level)
        return float(low), float(high)

    def prediction(self, inputs: dict, level: float = 0.95, new: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) [m]: t interval of the law at inputs {name: [m]}; with `new`, of one new observation there.

        Symmetric in the space of the fit. A new observation is taken to have a normal error with the variance of the
        residuals, at the mean weight; outliers, which a Huber fit weighs little, widen its interval. Raises InputError
        for inputs that are not columns of numbers, and where the law is not finite.
        """
        inputs = dict(zip(self.law.inputs, columns({f"input {k!r}": inputs[k] for k in self.law.inputs}), strict=True))
        centre = np.broadcast_to(self.predict(inputs), len(next(iter(inputs.values()))))
        log = self.space == "log"
        for row in np.flatnonzero(~(np.isfinite(centre) & ((centre > 0) | (not log))))[:1]:
            raise InputError(f"{_row(inputs, row)}: {self.law.name} is {centre[row]} there")
        ones = np.ones(len(centre))
        problem = self.problem._replace(inputs=inputs, y=ones, weights=ones, scale=ones)
        slopes = solve.descend(self.law, self.space, problem, self.ends[:1], 1).jacobian[0]
        spread = np.sum((self.problem.scale * self.residuals) ** 2) / self.freedom if self.freedom else np.inf
        variance = self._variance(slopes) + (spread if new else 0.0)
        return self._around("positive" if log else "real", np.log(centre) if log else centre, variance, level)

    @property
    def freedom(self) -> int:
        """Degrees of freedom: rows less fitted parameters."""
        return self.n - int(self.problem.free.sum())

    def _variance(self, slopes) -> np.ndarray:
        """[...]: variance of quantities with gradients [..., p] in theta; infinite if they depend on a parameter that
        has no finite error."""
        seen = np.isfinite(np.diag(self.covariance))
        slopes, blind = np.where(seen, slopes, 0), np.any(np.abs(slopes[..., ~seen]) > 1e-6, axis=-1)
        known = np.where(np.isfinite(self.covariance), self.covariance, 0)
        return np.where(blind, np.inf, np.einsum("...i,ij,...j->...", slopes, known, slopes))

    def _around(self, transform: str, centre, variance, level: float) -> tuple:
        """The ends of t intervals around `centre`, a value in theta's coordinates, in natural units."""
        check_level(level)
        # without degrees of freedom variances are infinite, or 0 for fixed parameters
        width = np.sqrt(variance) * (stats.t.ppf((1 + level) / 2, self.freedom) if self.freedom else 1.0)
        with np.errstate(over="ignore"):  # an end beyond float64 is infinite
            return tuple(TRANSFORMS[transform][1](end, np) for end in (centre - width, centre + width))

    def _log_slope(self, quantity: Callable, step: float = 1e-5):
        """log quantity and its gradient in theta [p]."""

        def log(theta):
            value = float(quantity(self.law.natural(theta)))
            if not 0 < value < np.inf:
                raise InputError(f"the quantity is {value:g} near the fit: an interval needs it above 0 and finite")
            return np.log(value)

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
    weights=None,
    bounds: dict | None = None,
    seed: int = 0,
) -> Fit:
    """The fit with the smallest objective of those that start from `starts` points of the law's grid.

    inputs: {name: [n]}, at least `law.inputs`; y [n]. objective: `huber` (the sum of Huber losses of the residuals,
    delta in the residuals' unit; Hoffmann et al. 2203.15556, approach 3, use 1e-3 on logarithms) or `least_squares`.
    space: `log` or `linear`. starts: number of grid points, drawn with `seed`; all if the grid has fewer. fixed: {name:
    value} of parameters that are not fitted. weights [n]: the variance of a row's error is proportional to 1 / weight,
    as if the row were the mean of that many observations; only ratios matter, and residuals are multiplied by
    sqrt(weight / mean weight). bounds: {name: (low, high)} in natural units, None for no bound. Raises InputError for
    input that cannot be fitted.
    """
    fixed, bounds = fixed or {}, bounds or {}
    _check_options(law, objective, delta, space, starts, fixed)
    inputs, y = _check_data(law, inputs, y, space, len(law.names) - len(fixed))
    low, high = _check_bounds(law, bounds, fixed)
    scale = np.sqrt(relative_weights(weights, y))
    begin = starting_points(law, inputs, y, starts, fixed, seed)
    free = np.array([name not in fixed for name in law.names], float)
    delta = float(delta if objective == "huber" else np.inf)
    problem = solve.Problem(inputs, y, np.ones_like(y), delta, free, low, high, scale)
    _check_columns(law, space, problem, begin)
    rough = solve.descend(law, space, problem, begin, STEPS)
    order = np.argsort(rough.value)
    if not np.isfinite(rough.value[order[0]]):
        row = _row(inputs, _first_bad_row(law, space, inputs, begin))
        raise InputError(f"{law.name}: not finite at any of {len(begin)} starts, {row}: are these the law's units?")
    best = solve.descend(law, space, problem, rough.theta[order[: solve.CHUNK]], POLISH)
    ends = np.concatenate([best.theta[np.argsort(best.value)], rough.theta[order[solve.CHUNK :]]])
    return _describe(law, objective, space, problem, ends)


def at_end(fit: Fit, index: int) -> Fit:
    """The same fit at the end with this index, which comes first in the result's `ends`."""
    ends = np.roll(fit.ends, -index, axis=0)
    return _describe(fit.law, fit.objective, fit.space, fit.problem, ends)


def _describe(law: Law, objective: str, space: str, problem: solve.Problem, ends) -> Fit:
    """The Fit at theta = ends[0]: parameters, errors, quality."""
    theta, delta, n, free = ends[0], problem.delta, len(problem.y), problem.free > 0
    _, _, (residuals,), (jacobian,) = solve.descend(law, space, problem, ends[:1], 1)
    weights = problem.scale**2
    at_bound = free & ((theta <= problem.low) | (theta >= problem.high))
    inner, cov = free & ~at_bound, np.diag(np.where(at_bound, np.inf, 0.0))
    cov[np.ix_(inner, inner)] = covariance(jacobian[:, inner], residuals, delta)
    errors = np.where(free, np.sqrt(np.diag(cov)), np.nan)
    _, _, slopes, limits = zip(*(TRANSFORMS[q.transform] for q in law.parameters), strict=True)
    clipped = np.clip(residuals, -delta, delta)
    value = float(np.sum(clipped * (residuals - clipped / 2)))
    # With as many points as parameters every law passes through all points, so there is no criterion to compare them.
    deviance = _deviance(value, n, delta) - np.sum(np.log(weights)) if n > free.sum() else np.nan
    target = np.log(problem.y) if space == "log" else problem.y
    unclear = free & ~(np.isfinite(errors) & (errors <= limits))
    return Fit(
        law=law,
        params={name: float(v) for name, v in law.natural(theta).items()},
        stderr={
            name: float(e if np.isinf(e) else e * f(t))  # if e is infinite, f(t) may have underflowed to 0
            for name, e, f, t in zip(law.names, errors, slopes, theta, strict=True)
        },
        covariance=cov,
        residuals=residuals / problem.scale,
        r2=explained(residuals**2, target, weights),
        aic=float(deviance + 2 * (free.sum() + 1)),
        bic=float(deviance + np.log(n) * (free.sum() + 1)),
        value=value,
        n=n,
        undetermined=tuple(name for name, bad in zip(law.names, unclear, strict=True) if bad),
        objective=objective,
        space=space,
        problem=problem,
        ends=ends,
    )


def covariance(jacobian, residuals, delta: float) -> np.ndarray:
    """Covariance [..., p, p] of theta from the Jacobian J [..., n, p] and residuals [..., n], for independent errors of
    equal distribution.

    It is tau^2 (J^T J)^-1. Least squares (delta inf): tau^2 = RSS / (n - p). Huber: the sandwich estimator, tau^2 =
    mean psi^2 / (mean psi')^2 n / (n - p). Here mean psi' is the slope of mean psi over a window of n^-1/5 robust
    standard deviations, because with a small delta few rows have psi' = 1; it leaves out the p smallest residuals,
    because a fit close to least absolute values passes through p points. The variance of parameters that the residuals
    do not depend on, or not by finite numbers, is infinite.
    """
    jacobian = _finite(jacobian)
    size = np.maximum(np.linalg.norm(jacobian, axis=-2, keepdims=True), 1e-150)
    _, singular, rows = np.linalg.svd(jacobian / size, full_matrices=False)
    seen = singular > 1e-9 * singular[..., :1]
    hidden = np.any(~seen[..., None] & (np.abs(rows) > 1e-3), axis=-2)
    root = np.swapaxes(rows, -1, -2) * np.where(seen, 1 / np.where(seen, singular, 1), 0)[..., None, :]
    inverse = root @ np.swapaxes(root, -1, -2) / (np.swapaxes(size, -1, -2) * size)
    scaled = _scale(residuals, delta, size.shape[-1])[..., None, None] * inverse
    return np.where(hidden[..., None] & np.eye(size.shape[-1], dtype=bool), np.inf, scaled)


def _finite(jacobian) -> np.ndarray:
    """The Jacobian with 0 in columns that are not finite, as for parameters that have no effect."""
    return np.where(np.isfinite(jacobian).all(axis=-2, keepdims=True), jacobian, 0)


def _scale(residuals, delta: float, p: int) -> np.ndarray:
    """tau^2 [...] of `covariance`; nan if unknown: as many rows as parameters, or no residual near enough to 0."""
    n = residuals.shape[-1]
    if n == p:
        return np.full(residuals.shape[:-1], np.nan)
    spread = np.mean(np.clip(residuals, -delta, delta) ** 2, axis=-1) * n / (n - p)
    if np.isinf(delta):
        return spread
    rest = np.take_along_axis(residuals, np.argsort(np.abs(residuals), axis=-1)[..., p:], axis=-1)
    window = 1.4826 * np.median(np.abs(rest), axis=-1, keepdims=True) * n**-0.2 + 1e-12
    rise = np.clip(rest + window, -delta, delta) - np.clip(rest - window, -delta, delta)
    slope = np.mean(rise / (2 * window), axis=-1)
    return spread / np.where(slope > 0, slope, np.nan) ** 2


def _deviance(value: float, n: int, delta: float) -> float:
    """-2 log likelihood of the density exp(-Huber / s) / Z(s) at its best s."""

    def deviance_at(log_s):
        s = np.exp(log_s)
        z = np.sqrt(2 * np.pi * s)
        if np.isfinite(delta):
            z = z * special.erf(delta / np.sqrt(2 * s)) + 2 * s / delta * np.exp(-(delta**2) / (2 * s))
        return 2 * value / s + 2 * n * np.log(z)

    guess = np.log(2 * value / n + 1e-300)
    return float(optimize.minimize_scalar(deviance_at, bounds=(guess - 10, guess + 10), method="bounded").fun)


def starting_points(law: Law, columns: dict, y, count: int, fixed: dict, seed: int) -> np.ndarray:
    """theta [K, p] of grid points drawn without replacement, with the parameters of `fixed` at their values."""
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
    if not (isinstance(starts, int | np.integer) and starts >= 1):
        raise InputError(f"starts={starts}: must be at least 1, a whole number")
    for name, value in fixed.items():
        if name not in law.names:
            raise InputError(f"fixed={name!r}: {law.name} has the parameters {', '.join(law.names)}")
        least, most = LIMITS[law.parameters[law.names.index(name)].transform]
        if isinstance(value, str) or not least < value < most:
            raise InputError(f"fixed={name!r}: {value!r} must be between {least:g} and {most:g}")


def _check_data(law: Law, inputs: dict, y, space: str, free: int) -> tuple[dict, np.ndarray]:
    """The law's inputs and y as columns. Raises InputError."""
    for name in law.inputs:
        if name not in inputs:
            raise InputError(f"input {name!r} is missing: {law.name} needs {', '.join(law.inputs)}")
    named = {"y": y} | {f"input {name!r}": inputs[name] for name in law.inputs}
    y, *rest = columns(named, {"y"} if space == "log" else ())
    if len(y) < free:
        raise InputError(f"{len(y)} points: {law.name} has {free} parameters to fit")
    return dict(zip(law.inputs, rest, strict=True)), y


def _check_bounds(law: Law, bounds: dict, fixed: dict) -> tuple[np.ndarray, np.ndarray]:
    """The range of theta, low and high [p]. Raises InputError."""
    ends = np.array([[-np.inf, np.inf]] * len(law.names))
    for name, pair in bounds.items():
        if name not in law.names or name in fixed:
            free = [k for k in law.names if k not in fixed]
            raise InputError(f"bounds={name!r}: {law.name} has the parameters {', '.join(free)} to fit")
        i = law.names.index(name)
        transform = law.parameters[i].transform
        least, most = LIMITS[transform]
        try:
            low, high = (end if given is None else float(given) for given, end in zip(pair, (least, most), strict=True))
        except (TypeError, ValueError):
            raise InputError(f"bounds={name!r}: {pair!r} must be two numbers, (low, high), None for none") from None
        if not (low < high and high > least and low < most):
            raise InputError(f"bounds={name!r}: ({low:g}, {high:g}) must rise, within ({least:g}, {most:g})")
        with np.errstate(divide="ignore"):  # the limits themselves are at infinity
            ends[i] = TRANSFORMS[transform][0](np.clip([low, high], least, most))
    return ends[:, 0], ends[:, 1]


def _first_bad_row(law: Law, space: str, inputs: dict, begin: np.ndarray) -> int:
    """The row in which the law is most often not finite, or not above 0 in log space, over the starts."""
    bad = []
    for theta in begin:
        value = np.broadcast_to(law(law.natural(theta), inputs), len(next(iter(inputs.values()))))
        bad.append(~(np.isfinite(value) & ((value > 0) | (space == "linear"))))
    return int(np.argmax(np.mean(bad, axis=0)))


def _row(inputs: dict, row: int) -> str:
    return f"row {row} ({', '.join(f'{name}={column[row]:g}' for name, column in inputs.items())})"


def _check_columns(law: Law, space: str, problem: solve.Problem, starts: np.ndarray) -> None:
    """Raises InputError if a constant column leaves parameters undetermined at every start."""
    constant = [name for name, column in problem.inputs.items() if np.all(column == column[0])]
    if not constant or len(problem.y) < 2:
        return
    jacobians = _finite(solve.descend(law, space, problem, starts[: solve.CHUNK], 1).jacobian[..., problem.free > 0])
    jacobians = jacobians / np.maximum(np.linalg.norm(jacobians, axis=-2, keepdims=True), 1e-300)
    singular = np.linalg.svd(jacobians, compute_uv=False)
    if np.max(singular[:, -1] / np.maximum(singular[:, 0], 1e-300)) < 1e-9:
        name, value = constant[0], problem.inputs[constant[0]][0]
        raise InputError(f"input {name!r} is {value:g} in every row: it has to vary to determine {law.name}")

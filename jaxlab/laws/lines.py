"""Closed forms: power laws as straight lines in logarithms, and the minimiser of a parabola in log2 x."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from jaxlab.config import InputError


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """y = A prod x_k^e_k by ordinary least squares on natural logarithms.

    A; exponents {name: e_k}; stderr {"log A" and each name: float}; covariance [1 + k, 1 + k] of (log A, e...);
    residuals [n]: log prediction minus log y; r2 of the logarithms; n.
    """

    A: float
    exponents: dict
    stderr: dict
    covariance: np.ndarray
    residuals: np.ndarray
    r2: float
    n: int

    def predict(self, inputs: dict) -> np.ndarray:
        """A prod x_k^e_k at inputs {name: array}."""
        return self.A * np.prod([np.asarray(inputs[k], float) ** e for k, e in self.exponents.items()], axis=0)

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """t interval of an exponent, or of `A`, symmetric in its logarithm; n - 1 - k degrees of freedom."""
        freedom = self.n - len(self.exponents) - 1
        width = stats.t.ppf((1 + level) / 2, freedom) * self.stderr["log A" if name == "A" else name]
        if name == "A":
            return float(self.A * np.exp(-width)), float(self.A * np.exp(width))
        return self.exponents[name] - width, self.exponents[name] + width


def power_law(inputs: dict, y) -> PowerLaw:
    """Fits log y = log A + sum_k e_k log x_k; inputs {name: [n]}, y [n], all positive.

    Raises InputError for fewer than 2 + k points, values that are not positive, columns that do not determine a line.
    """
    y = _positive("y", y)
    columns = {name: _positive(f"input {name!r}", x) for name, x in inputs.items()}
    for name, x in columns.items():
        if x.shape != y.shape:
            raise InputError(f"input {name!r} has shape {x.shape}: must be that of y, {y.shape}")
        if np.all(x == x[0]):
            raise InputError(f"input {name!r} is {x[0]:g} in every row: its exponent needs it to vary")
    n, p = len(y), 1 + len(columns)
    if n < p + 1:
        raise InputError(f"{n} points: a line with {p} coefficients and their errors needs {p + 1}")
    design = np.stack([np.ones(n), *(np.log(x) for x in columns.values())], -1)
    if np.linalg.matrix_rank(design) < p:
        raise InputError(f"inputs {', '.join(columns)} are collinear in their logarithms")
    coefficients, *_ = np.linalg.lstsq(design, np.log(y), rcond=None)
    residuals = design @ coefficients - np.log(y)
    cov = np.sum(residuals**2) / (n - p) * np.linalg.inv(design.T @ design)
    spread = np.log(y) - np.log(y).mean()
    return PowerLaw(
        A=float(np.exp(coefficients[0])),
        exponents={k: float(e) for k, e in zip(columns, coefficients[1:], strict=True)},
        stderr={k: float(e) for k, e in zip(("log A", *columns), np.sqrt(np.diag(cov)), strict=True)},
        covariance=cov,
        residuals=residuals,
        r2=float(1 - np.sum(residuals**2) / np.sum(spread**2)),
        n=n,
    )


@dataclass(frozen=True, eq=False)
class Parabola:
    """y = lowest + curvature (log2 x - log2 minimiser)^2; stderr of log2 minimiser, delta method."""

    minimiser: float
    lowest: float
    curvature: float
    stderr: float
    residuals: np.ndarray
    n: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """t interval of the minimiser, symmetric in its logarithm; n - 3 degrees of freedom."""
        factor = 2 ** (stats.t.ppf((1 + level) / 2, self.n - 3) * self.stderr) if self.n > 3 else np.nan
        return float(self.minimiser / factor), float(self.minimiser * factor)


def parabola(x, y) -> Parabola:
    """Least-squares parabola of y in log2 x (best batch size: Charles et al. 2503.09799; IsoFLOP: Hoffmann et al.).

    x [n] positive, y [n]. Raises InputError for fewer than 3 distinct x, or where the parabola has no minimum.
    """
    x, y = _positive("x", x), np.asarray(y, float)
    if len(np.unique(x)) < 3:
        raise InputError(f"{len(np.unique(x))} distinct x: a parabola needs 3")
    centre = np.log2(x).mean()
    design = np.stack([np.ones_like(x), np.log2(x) - centre, (np.log2(x) - centre) ** 2], -1)
    (a, b, c), *_ = np.linalg.lstsq(design, y, rcond=None)
    if c <= 0:
        raise InputError(f"the parabola through {len(x)} points opens downwards (curvature {c:.3g}): no minimum")
    residuals = design @ np.array([a, b, c]) - y
    slope = np.array([0, -1 / (2 * c), b / (2 * c * c)])
    freedom = len(x) - 3
    variance = np.sum(residuals**2) / freedom if freedom else np.nan
    return Parabola(
        minimiser=float(2 ** (centre - b / (2 * c))),
        lowest=float(a - b * b / (4 * c)),
        curvature=float(c),
        stderr=float(np.sqrt(variance * slope @ np.linalg.inv(design.T @ design) @ slope)),
        residuals=residuals,
        n=len(x),
    )


def _positive(name: str, values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise InputError(f"{name} has shape {values.shape}: must be one column")
    for row in np.flatnonzero(~(np.isfinite(values) & (values > 0)))[:1]:
        raise InputError(f"{name}, row {row}: {values[row]} must be finite and above 0")
    return values

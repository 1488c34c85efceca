"""Fits in closed form: power laws as straight lines in logarithms, and parabolas in log2 x with their minimiser."""

from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from jaxlab.config import InputError
from jaxlab.laws.columns import check_given, check_level, columns, explained, relative_weights


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """y = A prod x_k^e_k by least squares on natural logarithms.

    A; exponents {name: e_k}; stderr {"log A" and each name: float}; covariance [1 + k, 1 + k] of (log A, e...);
    residuals [n]: log prediction minus log y; r2 of the logarithms, nan if y is the same in every row; n. The data of
    the fit: design [n, 1 + k] with rows (1, log x...), target [n] = log y, and weights [n] with mean 1.
    """

    A: float
    exponents: dict
    stderr: dict
    covariance: np.ndarray
    residuals: np.ndarray
    r2: float
    n: int
    design: np.ndarray = field(repr=False)
    target: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)

    def predict(self, inputs: dict) -> np.ndarray:
        """A prod x_k^e_k at inputs {name: array}. Raises InputError if one is missing."""
        check_given(self.exponents, inputs)
        return self.A * np.prod([np.asarray(inputs[k], float) ** e for k, e in self.exponents.items()], axis=0)

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """t interval of an exponent, or of `A`, symmetric in its logarithm; n - 1 - k degrees of freedom."""
        check_given([name], {"A": self.A, **self.exponents}, "coefficient")
        width = self._quantile(level) * self.stderr["log A" if name == "A" else name]
        if name == "A":
            return float(self.A * np.exp(-width)), float(self.A * np.exp(width))
        return self.exponents[name] - width, self.exponents[name] + width

    def prediction(self, inputs: dict, level: float = 0.95, new: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) [m]: t interval of the law at inputs {name: [m]}; with `new`, of one new observation there, at
        the mean weight. Symmetric in logarithms. Raises InputError for inputs that are not positive columns."""
        check_given(self.exponents, inputs)
        names = {f"input {name!r}": inputs[name] for name in self.exponents}
        logs = np.log(columns(names, names))
        rows = np.stack([np.ones(logs.shape[1]), *logs], -1)
        variance = np.einsum("mi,ij,mj->m", rows, self.covariance, rows)
        if new:
            variance = variance + np.sum(self.weights * self.residuals**2) / (self.n - rows.shape[1])
        width, centre = self._quantile(level) * np.sqrt(variance), rows @ [np.log(self.A), *self.exponents.values()]
        with np.errstate(over="ignore"):  # an end beyond float64 is infinite
            return np.exp(centre - width), np.exp(centre + width)

    def _quantile(self, level: float) -> float:
        check_level(level)
        return float(stats.t.ppf((1 + level) / 2, self.n - len(self.exponents) - 1))

    def refitted(self, times) -> dict:
        """{"A" and each name: [draws]}: coefficients fitted to each row repeated times [draws, n] times; nan for draws
        whose rows do not determine them."""
        centre, size = self.design[:, 1:].mean(0), self.design[:, 1:].std(0)
        rows = np.column_stack([np.ones(self.n), (self.design[:, 1:] - centre) / size])
        weights = np.asarray(times) * self.weights
        gram = np.einsum("dn,ni,nj->dij", weights, rows, rows)
        values = np.linalg.eigvalsh(gram)
        clear = values[:, 0] > 1e-10 * values[:, -1]
        theta = np.full((len(gram), rows.shape[1]), np.nan)
        moments = np.einsum("dn,ni,n->di", weights[clear], rows, self.target)
        theta[clear] = np.linalg.solve(gram[clear], moments[..., None])[..., 0]
        theta[:, 1:] /= size
        with np.errstate(over="ignore"):
            constant = np.exp(theta[:, 0] - theta[:, 1:] @ centre)
        return {"A": constant} | dict(zip(self.exponents, theta[:, 1:].T, strict=True))


def power_law(inputs: dict, y, weights=None) -> PowerLaw:
    """Fits log y = log A + sum_k e_k log x_k; inputs {name: [n]}, y [n], all positive; weights [n] as in `fit`.

    Raises InputError for fewer than 2 + k points, values that are not positive, and columns that do not determine a
    line.
    """
    if not inputs:
        raise InputError("inputs has no column: a power law needs one or more")
    names = [f"input {name!r}" for name in inputs]
    y, *rest = columns({"y": y} | dict(zip(names, inputs.values(), strict=True)), {"y", *names})
    for name, x in zip(names, rest, strict=True):
        if np.all(x == x[0]):
            raise InputError(f"{name} is {x[0]:g} in every row: its exponent needs it to vary")
    n, p = len(y), 1 + len(rest)
    if n < p + 1:
        raise InputError(f"{n} points: a line with {p} coefficients and their errors needs {p + 1}")
    weights, target = relative_weights(weights, y), np.log(y)
    design, root = np.stack([np.ones(n), *map(np.log, rest)], -1), np.sqrt(weights)
    weighted = design * root[:, None]
    if np.linalg.matrix_rank(weighted) < p:
        raise InputError(f"inputs {', '.join(inputs)} are collinear in their logarithms, weighted as they are")
    coefficients, *_ = np.linalg.lstsq(weighted, target * root, rcond=None)
    residuals = design @ coefficients - target
    squares = weights * residuals**2
    cov = np.sum(squares) / (n - p) * np.linalg.inv(weighted.T @ weighted)
    if abs(coefficients[0]) > 700:
        raise InputError(f"log A is {coefficients[0]:.4g}, beyond float64: choose units nearer to the data")
    return PowerLaw(
        A=float(np.exp(coefficients[0])),
        exponents={k: float(e) for k, e in zip(inputs, coefficients[1:], strict=True)},
        stderr={k: float(e) for k, e in zip(("log A", *inputs), np.sqrt(np.diag(cov)), strict=True)},
        covariance=cov,
        residuals=residuals,
        r2=explained(squares, target, weights),
        n=n,
        design=design,
        target=target,
        weights=weights,
    )


@dataclass(frozen=True, eq=False)
class Parabola:
    """y = lowest + curvature (log2 x - log2 minimiser)^2; stderr: of log2 minimiser, by the delta method."""

    minimiser: float
    lowest: float
    curvature: float
    stderr: float
    residuals: np.ndarray
    n: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """t interval of the minimiser, symmetric in its logarithm; n - 3 degrees of freedom."""
        check_level(level)
        if self.n == 3:
            return np.nan, np.nan
        width, centre = stats.t.ppf((1 + level) / 2, self.n - 3) * self.stderr, np.log2(self.minimiser)
        with np.errstate(over="ignore"):  # an end beyond float64 is infinite
            return float(np.exp2(centre - width)), float(np.exp2(centre + width))


def parabola(x, y) -> Parabola:
    """Least-squares parabola of y in log2 x (best batch size: Charles et al. 2503.09799; IsoFLOP: Hoffmann et al.).

    x [n] positive, y [n]; with exactly 3 points stderr is nan. Raises InputError for values that are not such columns,
    for fewer than 3 distinct x, and if the parabola has no minimum or one beyond float64.
    """
    y, x = columns({"y": y, "x": x}, {"x"})
    centre = np.log2(x).mean()
    offset = np.log2(x) - centre
    distinct = len(np.unique(np.round(offset, 9)))  # closer ones do not tell a slope from a curvature
    if distinct < 3:
        raise InputError(f"{distinct} distinct x: a parabola needs 3")
    design = np.stack([np.ones_like(x), offset, offset**2], -1)
    (a, b, c), *_ = np.linalg.lstsq(design, y, rcond=None)
    if not c * np.ptp(offset) ** 2 > 1e-12 * np.abs(y).max():
        raise InputError(f"the parabola through {len(x)} points opens downwards or is flat (curvature {c:.3g})")
    if not abs(centre - b / (2 * c)) < 1_000:
        raise InputError(f"the parabola's minimum is at 2^{centre - b / (2 * c):.4g}, beyond float64")
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

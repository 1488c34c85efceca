"""Loss in parameters N and tokens D: the parametric law, compute-optimal allocation, IsoFLOP, envelope, repeated data.

Hoffmann et al. 2203.15556, approaches 1 to 3; repeated epochs: Muennighoff et al. 2305.16264. Compute is C = 6 N D.
"""

import jax.numpy as jnp
import numpy as np

from jaxlab.config import InputError
from jaxlab.laws.columns import columns
from jaxlab.laws.law import Law, Parameter
from jaxlab.laws.lines import Parabola, PowerLaw, parabola, power_law

# Besiroglu et al. 2404.10102, a refit to figure 4 of Hoffmann et al.; Hoffmann et al., appendix D.2.
BESIROGLU = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
HOFFMANN = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
# Muennighoff et al. 2305.16264, appendix A (C4): their base law, and R* of repeated tokens and of excess parameters.
MUENNIGHOFF = {
    "E": float(np.exp(0.6254804)), "A": float(np.exp(6.255414)), "alpha": 0.3526596,
    "B": float(np.exp(7.3049974)), "beta": 0.3526596, "R_D": 15.387756, "R_N": 5.309743,
}  # fmt: skip

EXPONENTS = (0.1, 0.2, 0.35, 0.5, 0.8, 1.2)
COEFFICIENTS = tuple(float(np.exp(k)) for k in range(0, 26, 5))
BASE = (
    Parameter("E", tuple(float(np.exp(k)) for k in (-1, -0.5, 0, 0.5, 1))),
    Parameter("A", COEFFICIENTS),
    Parameter("alpha", EXPONENTS),
    Parameter("B", COEFFICIENTS),
    Parameter("beta", EXPONENTS),
)


def parametric_loss(p: dict, x: dict):
    """E + A / N^alpha + B / D^beta, nats per token (Hoffmann et al., equation 2)."""
    return p["E"] + p["A"] * x["N"] ** -p["alpha"] + p["B"] * x["D"] ** -p["beta"]


PARAMETRIC = Law("chinchilla", BASE, ("N", "D"), parametric_loss)


def _ratio(p: dict):
    """G of Hoffmann et al., equation 4."""
    return (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))


def effective_data(unique, tokens, decay):
    """D' = U + U R* (1 - exp(-R / R*)), R = D / U - 1: the number of unique tokens that D tokens are worth, of which U
    are unique and the rest repeats (equation 5). decay: R*.

    Equal to D up to one epoch, at most U (1 + R*). The same form discounts excess parameters (equation 6).
    """
    repeats = jnp.maximum(tokens / unique - 1, 0)
    return jnp.minimum(tokens, unique) - unique * decay * jnp.expm1(-repeats / decay)


def repeated_loss(p: dict, x: dict):
    """E + A / N'^alpha + B / D'^beta with U unique tokens among D (Muennighoff et al., section 3.1).

    Parameters beyond the compute-optimal number for U tokens are in excess and are discounted.
    """
    unique, ratio = jnp.minimum(x["U"], x["D"]), _ratio(p)
    useful = jnp.minimum(x["N"], ratio * (ratio * unique) ** (p["beta"] / p["alpha"]))
    effective = {"N": effective_data(useful, x["N"], p["R_N"]), "D": effective_data(unique, x["D"], p["R_D"])}
    return parametric_loss(p, effective)


REPEATED = Law(
    "chinchilla with repeated data",
    (*BASE, Parameter("R_D", (3.0, 15.0, 50.0)), Parameter("R_N", (1.0, 5.0, 20.0))),
    ("N", "D", "U"),
    repeated_loss,
)


def exponents(p: dict) -> tuple[float, float]:
    """(a, b): N_opt ~ C^a, D_opt ~ C^b of the parametric law (Hoffmann et al., equation 4)."""
    total = p["alpha"] + p["beta"]
    return p["beta"] / total, p["alpha"] / total


def allocation(p: dict, compute):
    """(N_opt, D_opt) of the parametric law at C = 6 N D FLOP: G (C/6)^a, (C/6)^b / G (Hoffmann et al., equation 4)."""
    (a, b), ratio = exponents(p), _ratio(p)
    pairs = np.asarray(compute, float) / 6
    return ratio * pairs**a, pairs**b / ratio


class IsoFlop(dict):
    """{C: parabola of loss in log2 x} of sweeps at fixed compute (approach 2), C the median FLOPs of a budget's runs.

    aside {C: reason}: budgets without a minimum. Of all n runs: budgets [n], the C of each; x and loss [n]; window.
    """

    def __init__(self, minima: dict[float, Parabola], aside: dict[float, str], budgets, x, loss, window: float):
        super().__init__(minima)
        self.aside, self.budgets, self.x, self.loss, self.window, self.n = aside, budgets, x, loss, window, len(loss)

    def law(self) -> PowerLaw:
        """The minimisers as a power law of C. Raises InputError, naming the budgets without one, for fewer than 3."""
        if len(self) < 3:
            reasons = "; ".join(f"C={C:.4g}: {text}" for C, text in self.aside.items())
            raise InputError(f"{len(self)} budgets with a minimum: a power law needs 3{reasons and f' ({reasons})'}")
        return power_law({"C": list(self)}, [q.minimiser for q in self.values()])

    def refitted(self, times) -> dict:
        """{"A" and "C": [draws]}: A and the exponent of C in `law`, fitted anew to each run repeated times [draws, n]
        times; nan for draws in which fewer than 3 budgets have a minimum."""
        theta = []
        for counts in times:
            rows = np.repeat(np.arange(self.n), counts)
            try:
                line = _minima(self.budgets[rows], self.x[rows], self.loss[rows], self.window).law()
                theta.append((line.A, line.exponents["C"]))
            except InputError:
                theta.append((np.nan, np.nan))
        return dict(zip(("A", "C"), np.transpose(theta), strict=True))


def isoflop(compute, x, loss, window: float = 4.0, tolerance: float = 0.05) -> IsoFlop:
    """Parabolas of loss in log2 x through the runs of each budget (approach 2); x: N or D, all arrays [n].

    Runs whose C differs by at most the fraction `tolerance` from the middle of their range form one budget. A parabola
    is fitted to runs whose x is within a factor of `window` of that of the lowest loss, since far from the minimum the
    loss is not a parabola. A budget is set aside if its lowest loss is at an end of the runs, if the parabola's minimum
    is not between them, or if no parabola can be fitted. Raises InputError for arrays that are not columns of numbers,
    positive where logarithms are taken.
    """
    if not window > 1:
        raise InputError(f"window={window}: must be above 1, infinite for all runs of a budget")
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance={tolerance}: must be 0 or above, and below 1")
    loss, compute, x = columns({"loss": loss, "compute": compute, "x": x}, {"compute", "x"})
    return _minima(_budgets(compute, tolerance), x, loss, window)


def _budgets(compute: np.ndarray, tolerance: float) -> np.ndarray:
    """The budget [n] of each run: repeatedly takes the range of the tolerance that contains the most remaining runs."""
    budgets, left, logs = np.empty_like(compute), np.argsort(compute), np.log(compute)
    reach = 2 * np.log1p(tolerance) + 1e-9
    while len(left):
        ends = np.searchsorted(logs[left], logs[left] + reach, "right")
        start = np.argmax(ends - np.arange(len(left)))
        rows = left[start : ends[start]]
        budgets[rows] = np.median(compute[rows])
        left = np.delete(left, np.arange(start, ends[start]))
    return budgets


def _minima(budgets: np.ndarray, x: np.ndarray, loss: np.ndarray, window: float) -> IsoFlop:
    minima, aside = {}, {}
    for budget in np.unique(budgets):
        rows = budgets == budget
        try:
            minima[float(budget)] = _minimum(x[rows], loss[rows], window)
        except InputError as error:
            aside[float(budget)] = str(error)
    return IsoFlop(minima, aside, budgets, x, loss, window)


def _minimum(x: np.ndarray, loss: np.ndarray, window: float) -> Parabola:
    """The parabola around the lowest loss. Raises InputError if it has no minimum between the runs."""
    best = x[loss.argmin()]
    near = (x >= best / window) & (x <= best * window)
    if len(np.unique(x)) >= 3 and best in (x.min(), x.max()):
        raise InputError(f"the lowest loss is at x={best:.4g}, an end of the runs: the minimum may lie beyond")
    curve = parabola(x[near], loss[near])
    low, high = x[near].min(), x[near].max()
    if not low < curve.minimiser < high:
        raise InputError(
            f"the parabola's minimum, x={curve.minimiser:.4g}, is not between the runs, {low:.4g} to {high:.4g}"
        )
    return curve


def envelope(run, compute, loss, points: int = 1500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C, run, loss) of the training curve with the lowest loss at each of `points` log-spaced budgets (approach 1).

    run, compute, loss [n]: the points of all curves, in any order. Curves are interpolated in log C and never
    extrapolated. Budgets that no curve covers are left out.
    """
    if not (isinstance(points, int | np.integer) and points >= 2):
        raise InputError(f"points={points}: must be a whole number of at least 2")
    run = np.asarray(run)
    loss, compute = columns({"loss": loss, "compute": compute}, {"compute"})
    if run.shape != loss.shape:
        raise InputError(f"run has shape {run.shape}: must be that of loss, {loss.shape}")
    budgets = np.geomspace(compute.min(), compute.max(), points)
    runs = np.unique(run)
    curves = np.full((len(runs), points), np.inf)
    for curve, name in zip(curves, runs, strict=True):
        rows = np.flatnonzero(run == name)
        rows = rows[np.argsort(compute[rows])]
        curve[:] = np.interp(np.log(budgets), np.log(compute[rows]), loss[rows], left=np.inf, right=np.inf)
    best = curves.argmin(0)
    covered = np.isfinite(curves.min(0))
    return budgets[covered], runs[best[covered]], curves.min(0)[covered]

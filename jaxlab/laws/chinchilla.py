"""Loss in parameters N and tokens D: the parametric law, compute-optimal allocation, IsoFLOP, envelope, repeated data.

Hoffmann et al. 2203.15556, approaches 1 to 3; repeated epochs: Muennighoff et al. 2305.16264. Compute is C = 6 N D.
"""

import jax.numpy as jnp
import numpy as np

from jaxlab.config import InputError
from jaxlab.laws.law import Law, Parameter
from jaxlab.laws.lines import Parabola, parabola

# Besiroglu et al. 2404.10102, refit of Hoffmann et al. figure 4; Hoffmann et al. appendix D.2 print the second.
BESIROGLU = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
HOFFMANN = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
# Muennighoff et al. 2305.16264, appendix A (C4): their base law, then repeated tokens and excess parameters.
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
    """D' = U + U R* (1 - exp(-R / R*)), R = D / U - 1: what D tokens of U unique ones are worth (equation 5).

    Equal to D up to one epoch, at most U (1 + R*). The same form discounts excess parameters (equation 6).
    """
    repeats = jnp.maximum(tokens / unique - 1, 0)
    return jnp.minimum(tokens, unique) - unique * decay * jnp.expm1(-repeats / decay)


def repeated_loss(p: dict, x: dict):
    """E + A / N'^alpha + B / D'^beta with U unique tokens among D (Muennighoff et al., section 3.1).

    The parameters that count in full are those which U unique tokens would be given compute-optimally.
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


def isoflop(compute, x, loss) -> dict[float, Parabola]:
    """{C: parabola of loss in log2 x} for the runs of each budget (approach 2); x: N or D, all arrays [n].

    The minimisers are then a power law of C: `power_law({"C": list(found)}, [q.minimiser for q in found.values()])`.
    """
    compute, x, loss = (np.asarray(v, float) for v in (compute, x, loss))
    found = {}
    for budget in np.unique(compute):
        rows = compute == budget
        try:
            found[float(budget)] = parabola(x[rows], loss[rows])
        except InputError as error:
            raise InputError(f"C={budget:g}: {error}") from None
    return found


def envelope(run, compute, loss, points: int = 1500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C, run, loss) of the lowest training curve at `points` log-spaced budgets (approach 1); arrays [n] of all logs.

    Curves are interpolated in log C and never extended. Budgets that no curve covers are left out.
    """
    run, compute, loss = np.asarray(run), np.asarray(compute, float), np.asarray(loss, float)
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

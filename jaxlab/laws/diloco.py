"""Scaling laws of DiLoCo in parameters N and replicas M (Charles et al. 2503.09799, section 5 and tables of its fits).

Independent A N^alpha and joint A N^alpha M^beta, for loss, peak learning rate and batch size, are lines in logarithms:
`power_law({"N": N}, y)` and `power_law({"N": N, "M": M}, y)`. The best batch size of one (N, M) is
`parabola(batch, loss).minimiser`. This module has the published coefficients, and the paper's four forms of the loss.
"""

import numpy as np

from jaxlab.laws.fit import Fit, at_end
from jaxlab.laws.law import Law, Parameter
from jaxlab.laws.lines import PowerLaw

# Published laws: A N^alpha, {M: (A, alpha)}, M = 0 for data-parallel; and A N^alpha M^beta. The batch is in tokens.
INDEPENDENT = {
    "loss": {
        0: (18.129, -0.0953), 1: (18.363, -0.0961), 2: (18.768, -0.0969), 4: (19.762, -0.0992), 8: (21.051, -0.1018)
    },
    "lr": {0: (16319.2, -0.819), 1: (74620.6, -0.945), 2: (3978.82, -0.780), 4: (4512.99, -0.789), 8: (618986, -1.102)},
    "batch": {0: (462.68, 0.281), 1: (27.873, 0.435), 2: (15.749, 0.479), 4: (10.957, 0.510), 8: (38.072, 0.455)},
}  # fmt: skip
JOINT = {"loss": (19.226, -0.0985, 0.0116), "lr": (22256, -0.8827, 0.2929), "batch": (14.521, 0.4695, 0.3399)}
# (layers, width) of the sizes 35M to 2.4B, and the best C4 validation losses, nats per token, by algorithm as above.
SHAPES = ((6, 512), (9, 768), (12, 1024), (15, 1280), (18, 1536), (24, 2048), (30, 2560))
LOSS = {
    0: (3.485, 3.167, 2.950, 2.784, 2.653, 2.460, 2.326),
    1: (3.482, 3.162, 2.943, 2.777, 2.645, 2.451, 2.317),
    2: (3.508, 3.182, 2.957, 2.788, 2.657, 2.464, 2.323),
    4: (3.554, 3.213, 2.981, 2.808, 2.673, 2.472, 2.332),
    8: (3.621, 3.265, 3.019, 2.841, 2.698, 2.493, 2.351),
}


def size(layers: int, width: int) -> int:
    """Parameters N = 12 L d^2 + 32,101 d: with this count, least squares on LOSS gives the published residuals."""
    return 12 * layers * width**2 + 32_101 * width


def crossing(first: PowerLaw, second: PowerLaw) -> float:
    """The N at which two laws f(N) = A N^alpha are equal."""
    return float((second.A / first.A) ** (1 / (first.exponents["N"] - second.exponents["N"])))


def _product(p, x):
    return p["A"] * x["N"] ** p["alpha"] * x["M"] ** p["beta"]


def _offset(p, x):
    return _product(p, x) + p["C"]


def _interaction(p, x):
    return p["A"] * x["N"] ** (p["alpha"] + p["beta"] * x["M"]) + p["C"]


def _sum(p, x):
    return p["A"] * x["N"] ** p["alpha"] + p["B"] * x["M"] ** p["beta"] + p["C"]


_A, _ALPHA = Parameter("A", (5.0, 20.0, 80.0)), Parameter("alpha", (-0.3, -0.15, -0.05), "real")
_BETA, _C = Parameter("beta", (0.001, 0.01, 0.05), "real"), Parameter("C", (0.3, 1.0, 2.0))
_B, _POWER = Parameter("B", (0.003, 0.02, 0.1)), Parameter("beta", (0.3, 0.7, 1.2), "real")
# The four forms of the loss, in the order of the paper's table.
FORMS = (
    Law("A N^alpha M^beta", (_A, _ALPHA, _BETA), ("N", "M"), _product),
    Law("A N^alpha M^beta + C", (_A, _ALPHA, _BETA, _C), ("N", "M"), _offset),
    Law("A N^(alpha + beta M) + C", (_A, _ALPHA, _BETA, _C), ("N", "M"), _interaction),
    Law("A N^alpha + B M^beta + C", (_A, _ALPHA, _B, _POWER, _C), ("N", "M"), _sum),
)


def choose_held_out(fit: Fit, inputs: dict, y) -> Fit:
    """The paper's rule: of the minima that the starts of `fit` reached, that with the smallest mean |log residual| on
    held-out inputs, y.

    It chooses on the same points on which it is then judged. `fit` itself takes the minimum with the lowest objective;
    if there is only one minimum, both choose the same.
    """

    def error(theta):
        return np.mean(np.abs(np.log(fit.law(fit.law.natural(theta), inputs) / np.asarray(y))))

    return at_end(fit, int(np.nanargmin([error(theta) for theta in fit.ends])))


# Best outer learning rate by M. The paper fits no law to it: it is the same for every N from 335M up.
OUTER_LR = {1: 0.4, 2: 0.6, 4: 0.6, 8: 0.8}


def published(quantity: str, N: float, M: int) -> float:
    """The published value of "loss", "lr" or "batch" (tokens) for N parameters and M replicas; M = 0: data-parallel.

    M >= 1 takes the joint law. The independent laws are less consistent: at 2.4B and M = 8 the independent law gives a
    seventh of the joint law's learning rate.
    """
    if M == 0:
        A, alpha = INDEPENDENT[quantity][0]
        return A * N**alpha
    A, alpha, beta = JOINT[quantity]
    return A * N**alpha * M**beta


def published_batch(N: float, M: int, sequence: int = 2_048) -> int:
    """The published batch, all replicas together, rounded to the paper's grid: tokens per replica are the power of two
    nearest in ratio, and at least one sequence of `sequence` tokens.
    """
    replicas = max(M, 1)
    return replicas * max(2 ** round(np.log2(published("batch", N, M) / replicas)), sequence)


def nearest_lr(lr: float) -> float:
    """The learning rate on the paper's grid, integer powers of sqrt 2, that is nearest in ratio."""
    return 2 ** (round(2 * np.log2(lr)) / 2)


def outer_lr(M: int) -> float:
    """The best outer learning rate of the published M that is nearest in ratio; M >= 1."""
    return OUTER_LR[min(OUTER_LR, key=lambda m: abs(np.log2(M / m)))]

"""Floating-point quantised training: the Capybara law, the simpler laws that lead to it, and what follows from it
(Sun et al. 2501.02423).

Inputs: N parameters in the linear layers of the blocks, D tokens, E exponent bits, M mantissa bits, B elements per
scale. P = E + M + 1 bits, with the sign. Equation numbers are the paper's.
"""

import jax.numpy as jnp
import numpy as np

from jaxlab.laws.law import Law, Parameter

# Section 4.3, equation 26.
CAPYBARA_CONSTANTS = {
    "n": 69.2343, "alpha": 0.2368, "d": 68973.0621, "beta": 0.5162, "epsilon": 1.9061,
    "gamma": 11334.5197, "delta": 3.1926, "nu": 2.9543,
}  # fmt: skip
CHANNEL = 2.0**13.1567  # the B that stands for one scale per channel
FLOP_PER_BIT = 6 / 16  # k in C = k P N D: 16 bits cost 6 N D

N = Parameter("n", (10.0, 100.0, 1000.0))
ALPHA = Parameter("alpha", (0.15, 0.25, 0.4))
D = Parameter("d", (1e3, 3e4, 1e6))
BETA = Parameter("beta", (0.3, 0.45, 0.6))
EPSILON = Parameter("epsilon", (0.5, 1.0, 2.0))
GAMMA = Parameter("gamma", (10.0, 1e3, 1e5))
DELTA = Parameter("delta", (1.0, 3.0, 6.0))
NU = Parameter("nu", (1.0, 3.0, 6.0))
KAPPA = Parameter("kappa", (1e3, 1e5, 1e7))
OFFSET = (0.5, 2.0, 4.0)


def base(p, x):
    """n / N^alpha + d / D^beta + epsilon: the BF16 loss (equation 2)."""
    return p["n"] * x["N"] ** -p["alpha"] + p["d"] * x["D"] ** -p["beta"] + p["epsilon"]


def openai(p, x):
    """[(n / N)^(alpha / beta) + d / D]^beta + epsilon (equation 3; Kaplan et al. 2001.08361, equation 1.5)."""
    return ((p["n"] / x["N"]) ** (p["alpha"] / p["beta"]) + p["d"] / x["D"]) ** p["beta"] + p["epsilon"]


def kumar(p, x):
    """n / N_eff^alpha + d / D^beta + epsilon, N_eff = N (1 - exp(-(1 + E + M) / gamma)) (equations 4 and 6)."""
    return base(p, x | {"N": -x["N"] * jnp.expm1(-(1 + x["E"] + x["M"]) / p["gamma"])})


def exponent(p, x):
    """1 / (gamma (E + 1/2)^delta) + iota at one N and D (equation 9)."""
    return 1 / (p["gamma"] * (x["E"] + 0.5) ** p["delta"]) + p["iota"]


def mantissa(p, x):
    """1 / (gamma (M + 1/2)^nu) + iota at one N and D."""
    return 1 / (p["gamma"] * (x["M"] + 0.5) ** p["nu"]) + p["iota"]


def block(p, x):
    """kappa log2 B + psi at one N and D (equation 14)."""
    return p["kappa"] * jnp.log2(x["B"]) + p["psi"]


def density(p, x):
    """D^beta / N^alpha, 'knowledge intensity': grows with the tokens that each parameter has to represent."""
    return x["D"] ** p["beta"] / x["N"] ** p["alpha"]


def exponent_joint(p, x):
    """Equation 11."""
    return base(p, x) + density(p, x) / (p["gamma"] * (x["E"] + 0.5) ** p["delta"])


def mantissa_joint(p, x):
    """Equation 12."""
    return base(p, x) + density(p, x) / (p["gamma"] * (x["M"] + 0.5) ** p["nu"])


def bits(p, x):
    """gamma (E + 1/2)^delta (M + 1/2)^nu: the divisor of the quantisation loss, which grows with the format's bits."""
    return p["gamma"] * (x["E"] + 0.5) ** p["delta"] * (x["M"] + 0.5) ** p["nu"]


def bits_joint(p, x):
    """Equation 13."""
    return base(p, x) + density(p, x) / bits(p, x)


def block_joint(p, x):
    """Equation 15."""
    return base(p, x) + density(p, x) * jnp.log2(x["B"]) / p["kappa"]


def capybara(p, x):
    """Equations 1, 18 and 26; B = 1 is the BF16 loss."""
    return base(p, x) + density(p, x) * jnp.log2(x["B"]) / bits(p, x)


_BASE = (N, ALPHA, D, BETA, EPSILON)
BASE = Law("base", _BASE, ("N", "D"), base)
_KAPLAN = (Parameter("n", (1e-2, 1e2, 1e6, 1e10)), ALPHA, Parameter("d", (1e4, 1e7, 1e10)), BETA, EPSILON)
OPENAI = Law("OpenAI form", _KAPLAN, ("N", "D"), openai)
KUMAR = Law("Kumar form", (*_BASE, Parameter("gamma", (0.5, 1.0, 2.0, 4.0))), ("N", "D", "E", "M"), kumar)
_LOCAL = Parameter("gamma", (0.1, 1.0, 10.0, 100.0)), Parameter("iota", OFFSET)
EXPONENT = Law("exponent", (*_LOCAL, DELTA), ("E",), exponent)
MANTISSA = Law("mantissa", (*_LOCAL, NU), ("M",), mantissa)
BLOCK = Law("block", (Parameter("kappa", (1e-3, 1e-2, 1e-1)), Parameter("psi", OFFSET)), ("B",), block)
EXPONENT_JOINT = Law("exponent, joint", (*_BASE, GAMMA, DELTA), ("N", "D", "E"), exponent_joint)
MANTISSA_JOINT = Law("mantissa, joint", (*_BASE, GAMMA, NU), ("N", "D", "M"), mantissa_joint)
BITS_JOINT = Law("exponent and mantissa, joint", (*_BASE, GAMMA, DELTA, NU), ("N", "D", "E", "M"), bits_joint)
BLOCK_JOINT = Law("block, joint", (*_BASE, KAPPA), ("N", "D", "B"), block_joint)
CAPYBARA = Law("Capybara", (*_BASE, GAMMA, DELTA, NU), ("N", "D", "E", "M", "B"), capybara)


def critical_tokens(p: dict, parameters, E, M, B) -> float:
    """D beyond which more tokens raise the loss: [d gamma N^alpha (E+1/2)^delta (M+1/2)^nu / log2 B]^(1 / 2 beta)."""
    bracket = p["d"] * parameters ** p["alpha"] * bits(p, {"E": E, "M": M}) / np.log2(B)
    return bracket ** (1 / (2 * p["beta"]))


def layout(p: dict, P):
    """Best (E, M) for P bits, as real numbers: P shared in proportion to delta and nu, less a half each."""
    share = p["delta"] / (p["delta"] + p["nu"])
    return share * P - 0.5, (1 - share) * P - 0.5


def integer_layout(p: dict, P: int) -> tuple[int, int]:
    """Best (E, M) for P bits in whole numbers (the paper's table of optimal layouts)."""
    return max(((E, P - 1 - E) for E in range(P)), key=lambda f: bits(p, {"E": f[0], "M": f[1]}))


def gamma_rho(p: dict) -> float:
    """The constant gamma_rho with which `bits` is gamma_rho P^(delta + nu) at the best layout."""
    delta, nu = p["delta"], p["nu"]
    return p["gamma"] * delta**delta * nu**nu / (delta + nu) ** (delta + nu)


def effective_parameters(p: dict, parameters, tokens, P, B):
    """N_eff, the parameters that reach the same loss unquantised: N (1 + D^beta log2 B / (n bits))^(-1 / alpha), at the
    best layout of P bits."""
    loss = tokens ** p["beta"] * np.log2(B) / (p["n"] * gamma_rho(p) * P ** (p["delta"] + p["nu"]))
    return parameters * (1 + loss) ** (-1 / p["alpha"])


def _gamma_D(p: dict) -> float:
    return (p["delta"] + p["nu"] - p["alpha"]) / (p["n"] * p["alpha"] * gamma_rho(p))


def precision_at_tokens(p: dict, tokens, B):
    """Compute-optimal P at fixed D, the same for every C = k P N D: P^(delta + nu) = gamma_D D^beta log2 B."""
    return (_gamma_D(p) * tokens ** p["beta"] * np.log2(B)) ** (1 / (p["delta"] + p["nu"]))


def precision_at_size(p: dict, parameters, compute, B, k: float = FLOP_PER_BIT):
    """Compute-optimal P at fixed N: P^(delta + nu + 2 beta) = gamma_N (C / k)^(2 beta) N^-(alpha + 2 beta) log2 B."""
    alpha, beta, both = p["alpha"], p["beta"], p["delta"] + p["nu"]
    gamma_N = (beta + both) / (p["d"] * beta * gamma_rho(p))
    right = gamma_N * (compute / k) ** (2 * beta) * parameters ** -(alpha + 2 * beta) * np.log2(B)
    return right ** (1 / (both + 2 * beta))


def allocation(p: dict, compute, B, k: float = FLOP_PER_BIT) -> tuple:
    """(P, N, D) with the lowest loss at compute C = k P N D."""
    alpha, beta, both = p["alpha"], p["beta"], p["delta"] + p["nu"]
    ratio = p["d"] * beta / (p["n"] * alpha) * (both - alpha) / (both + beta)
    scale = _gamma_D(p) * np.log2(B)
    right = ratio * scale ** ((alpha + beta) / beta) * (compute / k) ** alpha
    P = right ** (1 / (both * (alpha + beta) / beta + alpha))
    tokens = (P**both / scale) ** (1 / beta)
    return P, compute / (k * P * tokens), tokens

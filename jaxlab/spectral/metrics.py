"""How many of D directions are used: ranks and shares of a covariance's eigenvalues (Jha and Reagen 2510.00537).

With p_i = lambda_i / sum lambda, descending, every metric is a function of p: neither a rotation nor a rescaling of the
activations changes it, and there is no epsilon. Eigenvalues lie along the last axis, other axes are mapped over.
Without any variance p is 0 / 0, and ranks and shares are NaN: no number in their range says that nothing is used. Equal
tokens that are not zero may leave their mean's rounding, and a rank that means nothing: "variance" shows it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import entr, logsumexp

from jaxlab.config import InputError
from jaxlab.spectral.covariance import Moments, covariance

# A rank as a share of the width; the second makes eDim of k equal modes k exactly.
UTILISATIONS = {"r/D": lambda r, width: r / width, "(r-1)/(D-1)": lambda r, width: (r - 1) / (width - 1)}
ORDERS = (0.5, 4, jnp.inf)  # of the Renyi ranks beside the soft (1) and the hard one (2)
FRACTIONS = (0.5, 0.9, 0.99)  # of the variance, whose directions are counted


def eigenvalues(c, count=None) -> jax.Array:
    """Eigenvalues [..., D] of covariances c [..., D, D], descending, float32.

    A covariance has no negative eigenvalue: those found are rounding, and become 0. From `count` tokens [...] its rank
    is at most count - 1: what follows is rounding too, and becomes 0. The others are off by about 1e-6 of the largest.
    Needs one more array of c's size. Raises InputError unless c is square.
    """
    c = jnp.asarray(c)
    if c.ndim < 2 or c.shape[-1] != c.shape[-2]:
        raise InputError(f"covariance of shape {c.shape}: must be [..., D, D]")
    found = jnp.maximum(jnp.linalg.eigvalsh(c)[..., ::-1], 0)
    if count is None:
        return found
    return jnp.where(jnp.arange(c.shape[-1]) < jnp.asarray(count)[..., None] - 1, found, 0)


def shares(eigenvalues) -> jax.Array:
    """p_i = lambda_i / sum lambda."""
    eigenvalues = jnp.asarray(eigenvalues)
    return eigenvalues / eigenvalues.sum(-1, keepdims=True)


def hard_rank(eigenvalues) -> jax.Array:
    """Participation ratio, (sum lambda)^2 / sum lambda^2, in [1, D]."""
    return _bounded(1 / (shares(eigenvalues) ** 2).sum(-1), eigenvalues)


def soft_rank(eigenvalues) -> jax.Array:
    """exp(H), H = -sum p ln p, in [1, D]."""
    return _bounded(jnp.exp(entr(shares(eigenvalues)).sum(-1)), eigenvalues)


def renyi_rank(eigenvalues, order: float) -> jax.Array:
    """R_a = (sum p^a)^(1 / (1 - a)), in [1, D], falling in the order a: R_1 is the soft rank, R_2 the hard one, R_inf
    the trace over the largest eigenvalue. Raises InputError unless a > 0."""
    if not order > 0:
        raise InputError(f"order={order}: must be above 0")
    if order == 1:
        return soft_rank(eigenvalues)
    p = shares(eigenvalues)
    if order == jnp.inf:
        return _bounded(1 / p.max(-1), eigenvalues)
    return _bounded(jnp.exp(logsumexp(order * jnp.log(p), axis=-1) / (1 - order)), eigenvalues)


def concentration(eigenvalues) -> jax.Array:
    """SC = (2 / D) sum_k (C_k - k / D) in [0, 1), C_k = p_1 + ... + p_k: 0 of an even spectrum, (D - 1) / D of one
    direction. Eigenvalues descending. Eigenvalue early enrichment (NerVE, 2603.06922, equation 3).

    Summed over i first, it is sum_i p_i (D + 1 - 2 i) / D, Gini's coefficient: nothing cumulates rounding.
    """
    width = jnp.shape(eigenvalues)[-1]
    lever = (width + 1 - 2 * jnp.arange(1, width + 1)) / width
    return jnp.clip((shares(eigenvalues) * lever).sum(-1), 0, 1)


def directions(eigenvalues, fraction: float) -> jax.Array:
    """How many of the largest eigenvalues hold this fraction of the variance (to 1e-6), int32. Raises InputError unless
    the fraction is in (0, 1)."""
    if not 0 < fraction < 1:
        raise InputError(f"fraction={fraction}: must be between 0 and 1")
    return 1 + (jnp.cumsum(shares(eigenvalues), -1) < fraction - 1e-6).sum(-1)


def utilisation(rank, width: int, form: str = "r/D") -> jax.Array:
    """A rank as a share of the width, in one of the forms of UTILISATIONS. Raises InputError for another."""
    if form not in UTILISATIONS:
        raise InputError(f"form={form!r}: must be one of {', '.join(UTILISATIONS)}")
    return UTILISATIONS[form](rank, width)


def sui(eigenvalues, form: str = "r/D") -> jax.Array:
    """Spectral utilisation index: the harmonic mean of hard and soft utilisation, in [0, 1]."""
    width = jnp.shape(eigenvalues)[-1]
    hard, soft = (utilisation(rank(eigenvalues), width, form) for rank in (hard_rank, soft_rank))
    return 2 * hard * soft / jnp.maximum(hard + soft, jnp.finfo(jnp.float32).tiny)  # 0 of two zeros


def edim(eigenvalues, form: str = "r/D") -> jax.Array:
    """Effective dimension 1 + (D - 1) SUI, in [1, D]."""
    return 1 + (jnp.shape(eigenvalues)[-1] - 1) * sui(eigenvalues, form)


def covariance_hard_rank(c) -> jax.Array:
    """The hard rank without eigenvalues, (trace C)^2 / ||C||_F^2 of covariances c [..., D, D]."""
    trace = jnp.trace(c, axis1=-2, axis2=-1)
    return 1 / ((c / trace[..., None, None]) ** 2).sum((-2, -1))


def corrected_hard_rank(hard, count) -> jax.Array:
    """The hard rank that unlimited tokens would show: 1 / (1 / hard - 1 / count) (2509.26560, its row part).

    For independent tokens; neighbours in a text are worth fewer. The naive one reads low, the more so the wider the
    layer, which flattens a fitted exponent. Not cut off at D: noise may carry it past.
    """
    return 1 / (1 / hard - 1 / count)


@partial(jax.jit, static_argnames="form")
def measure(m: Moments, form: str = "r/D") -> dict[str, jax.Array]:
    """Every metric of moments with any leading axes [...], each [...]; form: of utilisation.

    "tokens_per_dimension" is n / D: below 3 hard ranks are severely biased, from 10 on little; "deficient" where the
    tokens cannot span the width, n <= D. Needs two more arrays of the scatter's size; for large D,
    `jax.lax.map(measure, m)` takes one layer at a time.
    """
    c, width = covariance(m), m.mean.shape[-1]
    found = eigenvalues(c, m.count)
    hard, soft = hard_rank(found), soft_rank(found)
    return {
        "hard_rank": hard,
        "soft_rank": soft,
        **{f"renyi_{order:g}": renyi_rank(found, order) for order in ORDERS},
        **{f"directions_{100 * fraction:g}": directions(found, fraction) for fraction in FRACTIONS},
        "concentration": concentration(found),
        "hard_utilisation": utilisation(hard, width, form),
        "soft_utilisation": utilisation(soft, width, form),
        "sui": sui(found, form),
        "edim": edim(found, form),
        "variance": jnp.trace(c, axis1=-2, axis2=-1),
        "hard_rank_corrected": corrected_hard_rank(hard, m.count),
        "tokens_per_dimension": m.count / width,
        "deficient": m.count <= width,
    }


def companion(eigenvalues) -> dict[str, jax.Array]:
    """Hard rank, soft rank and concentration as the authors' code computes them (2603.06922, 2605.21803), to compare
    with its numbers: 1e-12 clamps the eigenvalues and is added to every sum, so small activations read low."""
    eps, width = 1e-12, jnp.shape(eigenvalues)[-1]
    clamped = jnp.maximum(jnp.asarray(eigenvalues), eps)
    total = clamped.sum(-1) + eps
    p = clamped / total[..., None]
    k = jnp.arange(1, width + 1)
    return {
        "hard_rank": total**2 / ((clamped**2).sum(-1) + eps),
        "soft_rank": jnp.exp(-(p * jnp.log(p + eps)).sum(-1)),
        "concentration": jnp.clip(2 / width * (jnp.cumsum(p, -1) - k / width).sum(-1), 0, 1),
    }


def stable_rank(weights) -> jax.Array:
    """||W||_F^2 / ||W||_2^2 of weights [..., m, n]: R_inf of their squared singular values."""
    return renyi_rank(_singular_values(weights) ** 2, jnp.inf)


def effective_rank(weights) -> jax.Array:
    """exp of the entropy of the singular values, sum normalised (Roy and Vetterli 2007), of weights [..., m, n].

    Not squared: of the same matrix it is larger than the soft rank of a covariance."""
    return soft_rank(_singular_values(weights))


def _singular_values(weights) -> jax.Array:
    return jnp.linalg.svd(weights, compute_uv=False)


def _bounded(rank, eigenvalues) -> jax.Array:
    """The rank without the rounding that would carry it out of [1, D]."""
    return jnp.clip(rank, 1, jnp.shape(eigenvalues)[-1])

"""Ranks and other metrics of a covariance's eigenvalues: how many of D directions are used (Jha and Reagen 2510.00537).

Every metric is a function of p_i = lambda_i / sum lambda, in descending order, without any epsilon. Rotating or
rescaling the activations therefore does not change it. Eigenvalues are along the last axis; other axes are mapped over.
Without variance p is 0 / 0 and ranks are NaN, since no number in their range would mean that nothing is used. If all
tokens are equal but not zero, rounding of their mean may leave a meaningless rank; "variance" then is nearly 0.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import entr, logsumexp

from jaxlab.config import InputError
from jaxlab.spectral.covariance import Moments, covariance

# A rank as a fraction of the width. With the second form the eDim of k equal eigenvalues is exactly k.
UTILISATIONS = {"r/D": lambda r, width: r / width, "(r-1)/(D-1)": lambda r, width: (r - 1) / (width - 1)}
ORDERS = (0.5, 4, jnp.inf)  # of the Renyi ranks, in addition to the soft rank (order 1) and the hard rank (order 2)
FRACTIONS = (0.5, 0.9, 0.99)  # of the variance, for `directions`


def eigenvalues(c, count=None) -> jax.Array:
    """Eigenvalues [..., D] of covariances c [..., D, D], descending, float32.

    A covariance has no negative eigenvalues: computed ones are rounding errors and are set to 0. The rank of a
    covariance of `count` tokens [...] is at most count - 1, so further eigenvalues are set to 0 too. The others have an
    error of about 1e-6 of the largest. Needs one more array of c's size. Raises InputError unless c is square.
    """
    c = jnp.asarray(c)
    if c.ndim < 2 or c.shape[-1] != c.shape[-2]:
        raise InputError(f"covariance of shape {c.shape}: must be [..., D, D]")
    values = jnp.maximum(jnp.linalg.eigvalsh(c)[..., ::-1], 0)
    if count is None:
        return values
    return jnp.where(jnp.arange(c.shape[-1]) < jnp.asarray(count)[..., None] - 1, values, 0)


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
    """R_a = (sum p^a)^(1 / (1 - a)), in [1, D], which falls with the order a. R_1 is the soft rank, R_2 the hard rank,
    and R_inf the trace divided by the largest eigenvalue. Raises InputError unless a > 0."""
    if not order > 0:
        raise InputError(f"order={order}: must be above 0")
    if order == 1:
        return soft_rank(eigenvalues)
    p = shares(eigenvalues)
    if order == jnp.inf:
        return _bounded(1 / p.max(-1), eigenvalues)
    return _bounded(jnp.exp(logsumexp(order * jnp.log(p), axis=-1) / (1 - order)), eigenvalues)


def concentration(eigenvalues) -> jax.Array:
    """SC = (2 / D) sum_k (C_k - k / D) in [0, 1), C_k = p_1 + ... + p_k: 0 if all eigenvalues are equal, (D - 1) / D if
    only one is not 0. Eigenvalues descending. 'Eigenvalue early enrichment' (NerVE, 2603.06922, equation 3).

    Computed as sum_i p_i (D + 1 - 2 i) / D, Gini's coefficient, in which no cumulative sum accumulates rounding errors.
    """
    width = jnp.shape(eigenvalues)[-1]
    lever = (width + 1 - 2 * jnp.arange(1, width + 1)) / width
    return jnp.clip((shares(eigenvalues) * lever).sum(-1), 0, 1)


def directions(eigenvalues, fraction: float) -> jax.Array:
    """The smallest number of eigenvalues that hold this fraction of the variance (to 1e-6), int32. Raises InputError
    unless the fraction is in (0, 1)."""
    if not 0 < fraction < 1:
        raise InputError(f"fraction={fraction}: must be between 0 and 1")
    return 1 + (jnp.cumsum(shares(eigenvalues), -1) < fraction - 1e-6).sum(-1)


def utilisation(rank, width: int, form: str = "r/D") -> jax.Array:
    """A rank as a fraction of the width, in one of the forms of UTILISATIONS. Raises InputError for another form."""
    if form not in UTILISATIONS:
        raise InputError(f"form={form!r}: must be one of {', '.join(UTILISATIONS)}")
    return UTILISATIONS[form](rank, width)


def sui(eigenvalues, form: str = "r/D") -> jax.Array:
    """Spectral utilisation index: the harmonic mean of hard and soft utilisation, in [0, 1]."""
    width = jnp.shape(eigenvalues)[-1]
    hard, soft = (utilisation(rank(eigenvalues), width, form) for rank in (hard_rank, soft_rank))
    return 2 * hard * soft / jnp.maximum(hard + soft, jnp.finfo(jnp.float32).tiny)  # 0 if both are 0


def edim(eigenvalues, form: str = "r/D") -> jax.Array:
    """Effective dimension 1 + (D - 1) SUI, in [1, D]."""
    return 1 + (jnp.shape(eigenvalues)[-1] - 1) * sui(eigenvalues, form)


def covariance_hard_rank(c) -> jax.Array:
    """The hard rank without eigenvalues: (trace C)^2 / ||C||_F^2, for covariances c [..., D, D]."""
    trace = jnp.trace(c, axis1=-2, axis2=-1)
    return 1 / ((c / trace[..., None, None]) ** 2).sum((-2, -1))


def corrected_hard_rank(hard, count) -> jax.Array:
    """Estimate of the hard rank for infinitely many tokens: 1 / (1 / hard - 1 / count) (2509.26560, the correction for
    a finite number of rows).

    It assumes independent tokens, which those of a text are not. The uncorrected rank is too low, the more so the wider
    the layer, which lowers fitted exponents. The estimate is not limited to D, which noise may carry it beyond.
    """
    return 1 / (1 / hard - 1 / count)


@partial(jax.jit, static_argnames="form")
def measure(m: Moments, form: str = "r/D") -> dict[str, jax.Array]:
    """{name: [...]}: all metrics of moments with any leading axes [...]; form: of utilisation.

    "tokens_per_dimension" is n / D: below 3 hard ranks are strongly biased, from 10 on only a little. "deficient" says
    that there are too few tokens to span the width, n <= D. Needs two more arrays of the scatter's size; for large D,
    `jax.lax.map(measure, m)` takes one layer at a time.
    """
    c, width = covariance(m), m.mean.shape[-1]
    spectrum = eigenvalues(c, m.count)
    hard, soft = hard_rank(spectrum), soft_rank(spectrum)
    return {
        "hard_rank": hard,
        "soft_rank": soft,
        **{f"renyi_{order:g}": renyi_rank(spectrum, order) for order in ORDERS},
        **{f"directions_{100 * fraction:g}": directions(spectrum, fraction) for fraction in FRACTIONS},
        "concentration": concentration(spectrum),
        "hard_utilisation": utilisation(hard, width, form),
        "soft_utilisation": utilisation(soft, width, form),
        "sui": sui(spectrum, form),
        "edim": edim(spectrum, form),
        "variance": jnp.trace(c, axis1=-2, axis2=-1),
        "hard_rank_corrected": corrected_hard_rank(hard, m.count),
        "tokens_per_dimension": m.count / width,
        "deficient": m.count <= width,
    }


def companion(eigenvalues) -> dict[str, jax.Array]:
    """Hard rank, soft rank and concentration as the authors' code computes them (2603.06922, 2605.21803), to compare
    with its results. It clamps eigenvalues at 1e-12 and adds 1e-12 to every sum, so small activations get low ranks."""
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
    """||W||_F^2 / ||W||_2^2 of weights [..., m, n]: the Renyi rank R_inf of their squared singular values."""
    return renyi_rank(_singular_values(weights) ** 2, jnp.inf)


def effective_rank(weights) -> jax.Array:
    """exp of the entropy of the singular values, normalised to sum 1, of weights [..., m, n] (Roy and Vetterli 2007).

    The singular values are not squared, so it is larger than the soft rank of the corresponding covariance."""
    return soft_rank(_singular_values(weights))


def _singular_values(weights) -> jax.Array:
    return jnp.linalg.svd(weights, compute_uv=False)


def _bounded(rank, eigenvalues) -> jax.Array:
    """The rank, clipped to [1, D], out of which rounding may carry it."""
    return jnp.clip(rank, 1, jnp.shape(eigenvalues)[-1])

"""Covariance of activations over batches and devices, in one pass and without cancellation (Jha and Reagen 2510.00537;
merging: Chan, Golub and LeVeque 1979).

Sums of x and of x x^T would have an error of eps (mean / deviation)^2, and activations have large means. So the count,
the mean and the scatter about that mean are accumulated. The error of C, relative to its Frobenius norm, is at most
4 eps (1 + mean / deviation) over 2,000 batches, with eps = 1.2e-7 and the deviation of the direction that varies most.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.config import InputError


class Moments(NamedTuple):
    """Count, mean and scatter of tokens, float32. Leading axes [...] stack layers, replicas or devices; each takes
    4 (D^2 + D + 1) bytes."""

    count: jax.Array  # [...]: tokens, the sum of their weights
    mean: jax.Array  # [..., D]
    scatter: jax.Array  # [..., D, D]: sum of w (x - mean) (x - mean)^T


def empty(width: int) -> Moments:
    """Moments of no tokens, from which accumulation starts."""
    return Moments(jnp.zeros(()), jnp.zeros(width), jnp.zeros((width, width)))


def moments(x, weights=None) -> Moments:
    """Moments of one batch.

    x [..., D] of any float type: all axes but the last enumerate tokens. weights [...]: how often each token counts;
    tokens of weight 0 are ignored, even if they are NaN. Computed in float32 at the highest matmul precision: 2 n D^2
    FLOPs, and a centred float32 copy of x (two with weights). Raises InputError for shapes and types that do not fit.
    """
    x = jnp.asarray(x)
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"activations of shape {x.shape}, {x.dtype}: must be floats [..., D] with an axis of tokens")
    weights = jnp.ones(x.shape[:-1]) if weights is None else jnp.asarray(weights, jnp.float32)
    if weights.shape != x.shape[:-1]:
        raise InputError(f"weights of shape {weights.shape}: must be {x.shape[:-1]}, one for each token")
    tokens, weights = tuple(range(x.ndim - 1)), weights[..., None]
    count = weights.sum()
    x = jnp.where(weights > 0, x.astype(jnp.float32), 0)
    first = (weights * x).sum(tokens) / _positive(count)
    x = x - first
    second = (weights * x).sum(tokens) / _positive(count)  # the rounding error of `first`, if the mean is large
    x = jnp.sqrt(weights) * (x - second)
    return Moments(count, first + second, jnp.tensordot(x, x, (tokens, tokens), precision=lax.Precision.HIGHEST))


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the tokens of a and b together; their leading axes must be equal."""
    count = a.count + b.count
    share = b.count / _positive(count)
    delta = b.mean - a.mean
    between = (a.count * share)[..., None, None] * delta[..., :, None] * delta[..., None, :]
    return Moments(count, a.mean + share[..., None] * delta, a.scatter + b.scatter + between)


def pool(parts: Moments) -> Moments:
    """Moments of the tokens of all parts, which are stacked along the first axis.

    The scatter is the sum of the parts' scatters and of sum_i n_i (m_i - m) (m_i - m)^T between them. If the parts are
    on different devices, this takes one reduction of D^2 numbers, after one of D.
    """
    count = parts.count.sum(0)
    mean = (parts.count[..., None] * parts.mean).sum(0) / _positive(count)[..., None]
    delta = parts.mean - mean
    between = parts.count[..., None, None] * delta[..., :, None] * delta[..., None, :]
    return Moments(count, mean, (parts.scatter + between).sum(0))


def covariance(m: Moments) -> jax.Array:
    """C = (A - mean)^T (A - mean) / (n - 1), A [n, D] the tokens; float32 [..., D, D]; NaN below two tokens."""
    return m.scatter / jnp.where(m.count > 1, m.count - 1, jnp.nan)[..., None, None]


def _positive(count):
    """The count, or 1 if it is 0, so that it can be a divisor."""
    return jnp.where(count > 0, count, 1)

"""Covariance of activations over batches and devices, in one pass and without cancellation (Jha and Reagen 2510.00537;
merging: Chan, Golub and LeVeque 1979).

Sums of x and of x x^T would be off by eps (mean / deviation)^2, and activations have large means. What is kept is
centred from the start: the count, the mean and the scatter about that mean. The error of C, relative to its Frobenius
norm, is within 4 eps (1 + mean / deviation) over 2,000 batches; eps = 1.2e-7, deviation of the widest direction.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.config import InputError


class Moments(NamedTuple):
    """Tokens summed up, float32; leading axes stack layers, replicas or devices. 4 (D^2 + D + 1) bytes each."""

    count: jax.Array  # [...]: tokens, the sum of their weights
    mean: jax.Array  # [..., D]
    scatter: jax.Array  # [..., D, D]: sum of w (x - mean) (x - mean)^T


def empty(width: int) -> Moments:
    """Moments of no tokens: what accumulation starts from."""
    return Moments(jnp.zeros(()), jnp.zeros(width), jnp.zeros((width, width)))


def moments(x, weights=None) -> Moments:
    """Moments of one batch.

    x [..., D] of any float type: every axis but the last counts tokens. weights [...]: how often each token counts;
    those of weight 0 are left out, whatever they hold. In float32 at the highest matmul precision: 2 n D^2 operations,
    and a centred float32 copy of x (two with weights). Raises InputError for shapes and types that do not fit.
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
    second = (weights * x).sum(tokens) / _positive(count)  # of a large mean the first rounds, and this is the rest
    x = jnp.sqrt(weights) * (x - second)
    return Moments(count, first + second, jnp.tensordot(x, x, (tokens, tokens), precision=lax.Precision.HIGHEST))


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the tokens of both; leading axes alike."""
    count = a.count + b.count
    share = b.count / _positive(count)
    delta = b.mean - a.mean
    between = (a.count * share)[..., None, None] * delta[..., :, None] * delta[..., None, :]
    return Moments(count, a.mean + share[..., None] * delta, a.scatter + b.scatter + between)


def pool(parts: Moments) -> Moments:
    """Moments of the tokens of all parts, which lie along the first axis: sum_i n_i (m_i - m) (m_i - m)^T is between.

    Of parts on different devices, one reduction of D^2 numbers (and before it one of D).
    """
    count = parts.count.sum(0)
    mean = (parts.count[..., None] * parts.mean).sum(0) / _positive(count)[..., None]
    delta = parts.mean - mean
    between = parts.count[..., None, None] * delta[..., :, None] * delta[..., None, :]
    return Moments(count, mean, (parts.scatter + between).sum(0))


def covariance(m: Moments) -> jax.Array:
    """C = (A - mean)^T (A - mean) / (n - 1), float32 [..., D, D]; NaN of fewer than two tokens."""
    return m.scatter / jnp.where(m.count > 1, m.count - 1, jnp.nan)[..., None, None]


def _positive(count):
    """The count as a divisor: of nothing, 1."""
    return jnp.where(count > 0, count, 1)

"""Gradient noise scale B_simple = tr(Sigma) / |G|^2 (McCandlish et al. 1812.06162), and the critical batch by branches.

Norms are of gradients of the mean loss, before clipping; tokens are the unit of batches and so of B_simple.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.config import InputError


class Estimate(NamedTuple):
    """Unbiased signal |G|^2 and noise tr(Sigma), of one token; either may be negative, their ratio is biased."""

    signal: jax.Array
    noise: jax.Array


def pair(small, large, small_batch, large_batch) -> Estimate:
    """From squared gradient norms at two batches (McCandlish et al., appendix A.1): E|g|^2 = |G|^2 + tr(Sigma) / B."""
    signal = (large_batch * large - small_batch * small) / (large_batch - small_batch)
    noise = (small - large) / (1 / small_batch - 1 / large_batch)
    return Estimate(signal, noise)


def micro_batches(squares, tokens, total) -> Estimate:
    """From a batch that is accumulated: squares [k] = |g_i|^2 of its micro-batches, tokens [k], total = |g|^2 of all.

    The mean of |g_i|^2 weighted by tokens belongs to the batch sum(tokens) / k, whether or not counts are equal; those
    of 0 tokens are left out. Raises InputError for one micro-batch, which tells nothing.
    """
    squares, tokens = jnp.asarray(squares), jnp.asarray(tokens, jnp.float32)
    if squares.shape[0] < 2:
        raise InputError("1 micro-batch: the noise scale needs at least 2 in a batch")
    batch, k = jnp.sum(tokens), jnp.sum(tokens > 0)
    mean = jnp.sum(jnp.where(tokens > 0, tokens * squares, 0)) / batch
    return pair(mean, total, batch / k, batch)


class Average(NamedTuple):
    """Sums of an exponential moving average; all estimates weigh `weight` together."""

    signal: jax.Array
    noise: jax.Array
    weight: jax.Array


def start() -> Average:
    """No estimates yet."""
    return Average(*jnp.zeros(3))


def add(average: Average, estimate: Estimate, memory: float = 0.99) -> Average:
    """The average with one more estimate, if that is finite; `memory`: what those before keep of their weight."""
    new = Average(*estimate, 1.0)
    finite = jnp.isfinite(estimate.signal) & jnp.isfinite(estimate.noise)
    return jax.tree.map(lambda old, x: jnp.where(finite, memory * old + (1 - memory) * x, old), average, new)


def mean(average: Average) -> Estimate:
    """The averaged signal and noise, each corrected for the start from 0."""
    return Estimate(average.signal / average.weight, average.noise / average.weight)


def b_simple(average: Average):
    """tr(Sigma) / |G|^2 in tokens, averages divided; nan where the averaged signal is not above 0."""
    return jnp.where(average.signal > 0, average.noise / jnp.where(average.signal > 0, average.signal, 1), jnp.nan)


def branched(losses: dict[float, float], batch: float, tolerance: float = 0.01) -> tuple[float, float]:
    """(k*, critical batch k* B) from the losses {k: loss} of branches that went on from one checkpoint at batch k B.

    k* is the largest k whose loss is at most `tolerance` above that of every smaller k (Merrill et al. 2505.23971:
    Adam, LR times sqrt(k), 2B tokens, loss smoothed). A branch that diverged, whose loss is not finite, is passed over.
    Raises InputError where none is left.
    """
    finite = {k: loss for k, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        raise InputError(f"losses of branches {losses}: none is finite")
    k = max(k for k in finite if all(finite[k] <= finite[j] + tolerance for j in finite if j < k))
    return k, k * batch

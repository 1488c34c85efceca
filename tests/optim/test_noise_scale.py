"""B_simple on a quadratic whose noise is known; branches of a checkpoint."""

import math

import jax
import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.optim import noise_scale as ns

CURVATURE = np.array([1.0, 0.5, 0.1, 2.0])
SPREAD = np.array([3.0, 1.0, 2.0, 0.5])  # of one token's gradient
WHERE = np.array([0.4, -0.6, 1.0, 0.1])
SIGNAL = float(np.sum((CURVATURE * WHERE) ** 2))  # |H theta|^2
NOISE = float(np.sum(SPREAD**2))  # tr(Sigma)


def gradients(trials, counts, seed=0):
    """Gradients of 1/2 theta H theta plus noise: means over micro-batches of `counts` tokens, [trials, k, 4]."""
    noise = np.random.default_rng(seed).normal(size=(trials, len(counts), 4)) / np.sqrt(counts)[:, None]
    return CURVATURE * WHERE + SPREAD * noise


def squared(x):
    return np.sum(x**2, -1)


def unbiased(estimates, truth):
    """The mean within 4 standard errors: one in 16,000 fails by chance, and the seed is fixed."""
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) < 4 * error
    assert error < 0.05 * truth  # so that the test means something


def test_pair_of_batches():
    small, large = gradients(20_000, [8])[:, 0], gradients(20_000, [64], seed=1)[:, 0]
    found = ns.pair(squared(small), squared(large), 8, 64)
    unbiased(found.signal, SIGNAL)
    unbiased(found.noise, NOISE)


@pytest.mark.parametrize("counts", [[8, 8], [8] * 5, [3, 20, 1, 8], [5, 0, 9]])
def test_micro_batches(counts):
    """Equal and ragged counts, and one that is empty, whose gradient is not a number."""
    counts = np.array(counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        g = np.where(counts[:, None] > 0, gradients(20_000, counts), np.nan)
    total = np.nansum(counts[:, None] * g, 1) / counts.sum()
    found = jax.jit(jax.vmap(lambda s, t: ns.micro_batches(s, counts, t)))(squared(g), squared(total))
    unbiased(np.asarray(found.signal, float), SIGNAL)
    unbiased(np.asarray(found.noise, float), NOISE)


def test_micro_batches_by_hand():
    """|G|^2 = (k |g|^2 - m) / (k - 1), tr(Sigma) = k b (m - |g|^2) / (k - 1), with k = 3, b = 7, m = 5, |g|^2 = 2."""
    found = ns.micro_batches(np.array([4.0, 5.0, 6.0]), [7, 7, 7], 2.0)
    np.testing.assert_allclose(found, [0.5, 31.5], rtol=1e-6)
    with pytest.raises(InputError, match="at least 2"):
        ns.micro_batches(np.ones(1), [8], 1.0)


def test_average_of_each_then_their_ratio():
    """Within 4 standard errors of tr(Sigma) / |G|^2 (delta method); single ratios are far off and often negative."""
    g, b = gradients(8_000, [8, 8], seed=3), 8
    totals = squared(g.mean(1))

    def one(average, x):
        estimate = ns.micro_batches(x[0], [b, b], x[1])
        return ns.add(average, estimate, 0.9995), estimate

    average, each = jax.jit(lambda s, t: jax.lax.scan(one, ns.start(), (s, t)))(squared(g), totals)
    signal, noise = (np.asarray(e, float) for e in each)
    weights = 0.9995 ** np.arange(8_000)[::-1]
    weights /= weights.sum()
    np.testing.assert_allclose(ns.mean(average), (weights @ signal, weights @ noise), rtol=1e-3)
    truth, found = NOISE / SIGNAL, float(ns.b_simple(average))
    error = truth * np.sqrt(np.sum(weights**2)) * np.std(noise / NOISE - signal / SIGNAL)
    assert abs(found - truth) < 4 * error
    assert error < 0.1 * truth
    assert np.mean(noise / signal < 0) > 0.1
    assert abs(np.median(noise / signal) - truth) > 4 * error


def test_the_start_is_corrected():
    """After one estimate the average is that estimate; one that is not finite changes nothing; no signal, no ratio."""
    one = ns.Estimate(np.float32(2), np.float32(10))
    average = ns.add(ns.start(), one)
    np.testing.assert_allclose(ns.mean(average), one, rtol=1e-6)
    assert ns.b_simple(average) == pytest.approx(5)
    two = ns.add(average, ns.Estimate(np.float32(4), np.float32(30)))  # by default the first keeps 99 % of its weight
    np.testing.assert_allclose(ns.mean(two), (np.array([2, 10]) * 0.99 + np.array([4, 30])) / 1.99, rtol=1e-5)
    memory = ns.add(average, ns.Estimate(np.float32(4), np.float32(30)), memory=0.5)
    np.testing.assert_allclose(memory, np.array([2, 10, 1]) * 0.01 * 0.5 + np.array([4, 30, 1]) * 0.5, rtol=1e-5)
    assert ns.add(average, ns.Estimate(np.float32(np.nan), np.float32(1))) == average
    assert np.isnan(ns.b_simple(ns.start()))
    assert np.isnan(ns.b_simple(ns.add(ns.start(), ns.Estimate(np.float32(-1), np.float32(1)))))


def test_branches():
    """k* is the largest k within the tolerance of all smaller ones (2505.23971): 4, though 16 is within it of 8."""
    losses = {1: 2.60, 2: 2.595, 4: 2.604, 8: 2.62, 16: 2.61, 32: math.nan}
    assert ns.branched(losses, 1024) == (4, 4096)
    assert ns.branched(losses, 1024, tolerance=0.03) == (16, 16_384)
    assert ns.branched({2: 3.0, 1: 2.0}, 1024) == (1, 1024)
    with pytest.raises(InputError, match="none is finite"):
        ns.branched({1: math.inf}, 1024)

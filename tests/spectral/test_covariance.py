"""Streamed moments against numpy's float64 covariance of the same numbers, pooled; eight devices each with its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.spectral.covariance import covariance, empty, merge, moments, pool
from tests import tiny
from tests.spectral import devices

EPS = np.finfo(np.float32).eps
WIDTH, TOKENS = 48, 900
DECAY = np.arange(1, WIDTH + 1.0) ** -1
observe, add = jax.jit(moments), jax.jit(merge)


def tokens(mean=0.0):
    """[n, D] float32, deviations from 1 to 1/48, mixed by a rotation."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    return np.float32(rng.normal(size=(TOKENS, WIDTH)) * DECAY @ rotation + mean)


def oracle(x):
    return np.cov(np.float64(x), rowvar=False)


def error(found, expected):
    """Relative, in Frobenius norm."""
    return np.linalg.norm(np.float64(found) - expected) / np.linalg.norm(expected)


def streamed(x, parts=9):
    held = empty(WIDTH)
    for batch in np.split(x, parts):
        held = add(held, observe(batch))
    return held


def stacked(x, parts=9):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(observe, np.split(x, parts)))


@pytest.mark.parametrize("mean", [0, 1, 1e2, 1e4])
def test_streamed_pooled_and_whole_are_float64s(mean):
    """Within the bound of the module's docstring; the sums of x and x x^T are past it from a mean of 100 on."""
    x = tokens(mean)
    expected, bound = oracle(x), 4 * EPS * (1 + mean)
    for found in (streamed(x), pool(stacked(x)), observe(x)):
        assert float(found.count) == TOKENS
        np.testing.assert_allclose(found.mean, np.float64(x).mean(0), rtol=2 * EPS, atol=1e-7)
        assert error(covariance(found), expected) < bound
    if mean >= 100:
        m = x.mean(0)
        assert error((x.T @ x - TOKENS * np.outer(m, m)) / (TOKENS - 1), expected) > 10 * bound


def test_one_batch_is_centred_whatever_its_mean():
    """A mean of 1e5 is itself rounded by 4e-3 deviations, which would be an error of 1e-5."""
    x = tokens(1e5)
    assert error(covariance(observe(x)), oracle(x)) < 4 * EPS


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale(scale):
    x = np.float32(scale * tokens(3))
    assert error(covariance(streamed(x)), oracle(x)) < 16 * EPS


def test_parts_of_any_size_in_any_order():
    x = tokens(2)
    parts = [observe(p) for p in np.split(x, [1, 2, 300])]
    left = add(add(add(parts[0], parts[1]), parts[2]), parts[3])
    right = add(parts[3], add(parts[2], add(parts[1], parts[0])))
    for found in (left, right):
        assert error(covariance(found), oracle(x)) < 12 * EPS


def test_no_tokens_change_nothing():
    held, none = observe(tokens(5)), empty(WIDTH)
    nothing = observe(tokens(5), np.zeros(TOKENS, np.float32))
    for same in (add(none, held), add(held, none), add(held, nothing)):
        jax.tree.map(np.testing.assert_array_equal, same, held)
    jax.tree.map(np.testing.assert_array_equal, nothing, none)
    pooled = pool(jax.tree.map(lambda *leaves: jnp.stack(leaves), none, held, none))
    assert error(covariance(pooled), np.float64(covariance(held))) < 2 * EPS
    assert np.isnan(covariance(none)).all()
    assert np.isnan(covariance(observe(tokens()[:1]))).all()  # of one token there is none


def test_weights_count_tokens():
    """0 leaves a token out even where it is no number; 3 is three tokens."""
    x = tokens(1)
    weights = np.random.default_rng(1).choice([0, 1, 3], TOKENS)
    expected = oracle(np.repeat(x, weights, axis=0))
    x[weights == 0] = np.nan
    found = observe(x.reshape(30, -1, WIDTH), weights.reshape(30, -1))
    assert float(found.count) == weights.sum()
    assert error(covariance(found), expected) < 8 * EPS


def test_bfloat16_activations_are_accumulated_in_float32():
    x = jnp.asarray(tokens(3), jnp.bfloat16)
    assert error(covariance(observe(x)), oracle(np.float64(x))) < 16 * EPS


def test_mapped_over_layers_and_replicas():
    x = np.stack([[tokens(m) for m in row] for row in ((0, 1, 2), (3, 4, 5))])
    first, second = np.split(x, 2, axis=2)
    both = jax.vmap(jax.vmap(moments))
    found = np.asarray(covariance(jax.jit(lambda a, b: merge(both(a), both(b)))(first, second)))
    for index in np.ndindex(2, 3):
        assert error(found[index], oracle(x[index])) < 4 * EPS * (1 + sum(index) + 2 * index[0])


def test_bad_input():
    for x, weights, message in (
        (np.zeros(4, np.float32), None, r"activations of shape \(4,\), float32: must be floats"),
        (np.zeros((3, 4), np.int32), None, r"activations of shape \(3, 4\), int32: must be floats"),
        (np.zeros((3, 4), np.float32), np.ones(4), r"weights of shape \(4,\): must be \(3,\)"),
    ):
        with pytest.raises(InputError, match=message):
            moments(x, weights)


@pytest.fixture(scope="module")
def eight(request):
    return tiny.on_devices("tests.spectral.devices", cache=request.config.cache.mkdir("jax"), optimised=True)


@pytest.mark.slow
def test_sharded_is_pooled(eight):
    x = devices.activations().swapaxes(0, 1).reshape(devices.REPLICAS, -1, devices.WIDTH)
    for found, expected in zip(eight["covariance"], map(oracle, x), strict=True):
        assert error(found, expected) < 4 * EPS * 11


@pytest.mark.slow
def test_devices_meet_once(eight):
    """Batches exchange columns over `tensor` alone; pooling sums the scatter over `data` once, D^2 / 2 a device.
    Devices 0 to 7 are replica x data x tensor; nothing crosses between replicas."""
    tensor, data = [[0, 1], [2, 3], [4, 5], [6, 7]], [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert eight["add"]
    assert all(c["groups"] == tensor for c in eight["add"])
    scatter = 4 * devices.WIDTH**2 // 2
    large = [c for c in eight["pool"] if c["bytes"] >= scatter]
    assert [(c["name"], c["groups"]) for c in large] == [("all-reduce", data)]

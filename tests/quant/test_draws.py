"""The draws of stochastic rounding: without bias over all of them, and independent of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.quant import cast as module
from jaxlab.quant.cast import GOLDEN, cast, draws, mixed, round_to
from jaxlab.quant.formats import parse

ALL = jnp.arange(2**16, dtype=jnp.int32)
COUNT = 2**16  # of draws from one key
drawn = jax.jit(draws, static_argnums=1)


def test_all_draws_together_have_no_bias(monkeypatch):
    """Every draw once: the mean is within 2^-17 of a step of the value, and exact where the fraction has 16 bits."""
    monkeypatch.setattr(module, "draws", lambda key, shape: jnp.broadcast_to(ALL, shape))
    fractions = np.concatenate([np.arange(0, 1, 1 / 16), 2.0 ** -np.arange(1, 24), 1 - 2.0 ** -np.arange(1, 23)])
    fractions = np.concatenate([fractions, np.random.default_rng(0).uniform(size=64)]).astype(np.float32)
    exact = fractions * 2**16 % 1 == 0
    for name, start in (("e2m1", 2), ("e8m0ieee", 1), ("e8m3ieee", 1), ("e8m7ieee", 1), ("e8m10ieee", 1)):
        f = parse(name)
        step = start * 2.0**-f.mantissa  # between two values of the format from `start` to 2 start
        x = np.float32(start + step * np.float64(fractions))
        within = np.float64(x - np.float32(start)) / step  # what float32 keeps of the fraction
        for sign in (-1, 1):
            y = jax.jit(jax.vmap(lambda x, f=f: round_to(jnp.full(2**16, x), f, "stochastic", 0)))(sign * x)
            up = (np.float64(sign * np.asarray(y)) - start) / step
            assert set(np.unique(up)) == {0, 1}
            bias = up.mean(1) - within
            assert np.abs(bias).max() <= 2**-17, name
            np.testing.assert_array_equal(bias[exact & (within == fractions)], 0)


def test_means_of_many_draws():
    """Fractions 1/32 to 31/32 between 2 and 3, each within 5 standard errors; so is the mean of all."""
    fractions = np.arange(1, 32, dtype=np.float32) / 32
    x = np.repeat(2 + fractions, COUNT)
    y = jax.jit(lambda x: round_to(x, parse("e2m1"), "stochastic", jax.random.key(5)))(x).reshape(31, COUNT)
    spread = np.sqrt(fractions * (1 - fractions))
    assert (np.abs(np.mean(y, 1) - 2 - fractions) < 5 * spread / COUNT**0.5).all()
    assert abs(np.mean(y) - 2.5) < 5 * np.sqrt(np.mean(spread**2) / y.size)


KEYS = {
    "seeds": [jax.random.key_data(jax.random.key(i)) for i in range(8)],
    "one bit of the first word": [np.uint32([12345 ^ (1 << i), 7]) for i in range(0, 32, 4)],
    "one bit of the second word": [np.uint32([12345, 1 << i]) for i in range(0, 32, 4)],
    "words exchanged": [np.uint32(pair) for pair in ((1, 2), (2, 1), (0, 3), (3, 0), (0, 0), (1, 1))],
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_and_neighbours_are_independent(name):
    """Draws of keys that differ little, and of one key at different distances: numbers, their upper and lower bytes,
    and whether they are below a threshold do not correlate, within 5 standard errors; all bytes are as frequent."""
    u = np.stack([np.asarray(drawn(jnp.asarray(key), (COUNT,))) for key in KEYS[name]])
    assert u.min() >= 0
    assert u.max() < 2**16
    for view in (u, u >> 8, u & 255, u < 2**14, u < 2**10, u & 1):
        v = view - view.mean(1, keepdims=True, dtype=np.float64)
        v /= v.std(1, keepdims=True)
        assert np.abs(v @ v.T / COUNT - np.eye(len(v))).max() < 5 / COUNT**0.5
        for lag in (1, 2, 3, 4, 8, 16, 31, 64, 128, 256, 1024, 4096, 32768):
            assert np.abs((v * np.roll(v, lag, 1)).mean(1)).max() < 5.5 / COUNT**0.5
    for one in u:
        for byte in (one >> 8, one & 255):
            square = ((np.bincount(byte, minlength=256) - COUNT / 256) ** 2).sum() / (COUNT / 256)
            assert abs(square - 255) < 5 * (2 * 255) ** 0.5  # chi-squared of 255 degrees of freedom


def test_every_bit_of_the_key_and_of_the_index_changes_every_bit_half_the_time():
    """Of 4,096 draws, within 5 standard errors; the bits of the index in the hash of 4,096 indices."""
    base, indices = np.random.default_rng(0).integers(0, 2**32, 2, np.uint32), jnp.arange(4096, dtype=jnp.uint32)

    def half(a, b):
        share = ((np.asarray(a) ^ np.asarray(b))[:, None] >> np.arange(16) & 1).mean(0)
        assert np.abs(share - 0.5).max() < 5 * 0.5 / 4096**0.5

    for bit in np.uint32(1) << np.arange(32, dtype=np.uint32):
        for flip in ([bit, 0], [0, bit]):
            half(drawn(base, (4096,)), drawn(base ^ np.uint32(flip), (4096,)))
        half(*(mixed(GOLDEN * i ^ base[0]) >> 16 for i in (indices, indices ^ bit)))


def test_keys_of_every_kind():
    """Typed keys of two implementations and a raw one; under vmap over keys each draws as it does alone."""
    x = jnp.full((64, 64), 0.3)
    keys = [jax.random.key(3), jax.random.key(3, impl="rbg"), jax.random.PRNGKey(4)]
    found = [np.asarray(cast(x, "e2m1", scale=None, rounding="stochastic", key=key)) for key in keys]
    assert all(set(np.unique(a)) == {0, 0.5} for a in found)
    assert all(0.3 < np.mean(a != b) < 0.7 for a, b in ((found[0], found[1]), (found[0], found[2])))
    many = jax.random.split(jax.random.key(0), 3)
    mapped = jax.vmap(lambda key: draws(key, (5, 7)))(many)
    np.testing.assert_array_equal(mapped, [draws(key, (5, 7)) for key in many])

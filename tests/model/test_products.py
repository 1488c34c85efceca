"""Hand-written gradients: the linear map's product, and GELU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.model.feedforward import ACTIVATIONS, gelu
from jaxlab.model.linear import dot

POINTS = np.float32([0, 1e-6, 1e-3, 0.1, 0.5, 0.7, 1, 2, 3, 5, 8, 10, 12, 30, 1e2, 1e4])
POINTS = np.concatenate((-POINTS[::-1], POINTS))


def exact_gelu(x):
    """Value and slope of the tanh form in float64; sigmoid by its stable form."""
    x = np.float64(x)
    u = 2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    gate = np.where(u > 0, 1, np.exp(np.minimum(u, 0))) / (1 + np.exp(-np.abs(u)))
    slope = gate + x * gate * (1 - gate) * 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return x * gate, slope


def test_the_exact_form_is_that_of_jax():
    """The float64 formula above against jax.nn.gelu in float64, where that does not cancel: 0.5 (1 + tanh) of large
    negative x is zero to 1e-16."""
    with jax.enable_x64(True):
        x = np.float64(POINTS)
        value, slope = jax.vmap(jax.value_and_grad(jax.nn.gelu))(x)
        np.testing.assert_allclose(value, exact_gelu(x)[0], atol=1e-14)
        np.testing.assert_allclose(slope, exact_gelu(x)[1], atol=1e-13)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"])
def test_gelu_and_its_slope(transform):
    value, slope = transform(gelu)(POINTS), transform(jax.grad(lambda x: gelu(x).sum()))(POINTS)
    # Relative to max(|x|, 1): exp in float32 of arguments up to 87.
    for found, wanted in zip((value, slope), exact_gelu(POINTS), strict=True):
        assert (np.abs(found - wanted) <= 5e-7 * np.maximum(np.abs(POINTS), 1)).all()  # NaN fails


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_stay_finite(name, dtype):
    x = jnp.asarray(POINTS, dtype)
    value, pull = jax.vjp(ACTIVATIONS[name], x)
    (slope,) = pull(jnp.ones_like(value))
    assert value.dtype == slope.dtype == dtype
    assert jnp.isfinite(value).all()
    assert jnp.isfinite(slope).all()


def test_gelu_in_bfloat16_is_close():
    x = jnp.asarray(np.linspace(-6, 6, 1001), jnp.bfloat16)
    value, slope = gelu(x), jax.grad(lambda x: gelu(x).sum())(x)
    for found, wanted in zip((value, slope), exact_gelu(np.float64(x)), strict=True):
        assert np.abs(np.float64(found) - wanted).max() < 0.05  # six roundings of 2^-9 of numbers up to 6


def pull(product, x, w, dy):
    return jax.vjp(product, x, w)[1](dy)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)], ids=str)
def test_dot_gradient(shape):
    """Integers, so that every order of summation gives the same float32 number."""
    rng = np.random.default_rng(0)
    x, w, dy = (np.float32(rng.integers(-9, 10, s)) for s in (shape, (5, 4), (*shape[:-1], 4)))
    np.testing.assert_array_equal(dot(x, w), x @ w)
    for found, wanted in zip(pull(dot, x, w, dy), pull(jnp.matmul, x, w, dy), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_dot_gradient_under_vmap_and_scan():
    rng = np.random.default_rng(0)
    x, w = (np.float32(rng.integers(-2, 3, s)) for s in ((2, 3, 4), (2, 5, 4, 4)))  # 2 replicas, 5 layers

    def network(product):
        def through(x, layers):
            return jax.lax.scan(lambda x, w: (product(x, w), None), x, layers)[0].sum()

        return jax.jit(jax.vmap(jax.grad(through, (0, 1))))(x, w)

    for found, wanted in zip(network(dot), network(jnp.matmul), strict=True):
        np.testing.assert_array_equal(found, wanted)

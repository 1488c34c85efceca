"""The norms' hand-written gradient against finite differences in float64, under vmap and in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.model.norm import Norm
from tests.model import reference

KINDS = {"layer": {"norm": "layer"}, "layer-bias": {"norm": "layer", "use_bias": True}, "rms": {"norm": "rms"}}
RNG = np.random.default_rng(0)
D = 48  # 1 / d is not exact in binary
X, DY = (RNG.normal(size=(2, 3, 5, D)) for _ in range(2))  # two replicas


def params(use_bias=False, **_):
    names = ("scale", "bias") if use_bias else ("scale",)
    return {name: np.float32(1 + 0.3 * np.random.default_rng(len(name)).normal(size=D)) for name in names}


def in_float64(c, p, x):
    """Value, and the gradient of sum(value * DY) by central differences along every direction of one row at a time."""
    p = jax.tree.map(np.float64, p)
    gradient = np.zeros_like(x)
    for i in range(D):
        step = 1e-5 * np.eye(D)[i]
        slope = (reference.norm(c, p, x + step) - reference.norm(c, p, x - step)) / 2e-5
        gradient[..., i] = (slope * DY).sum(-1)
    return reference.norm(c, p, x), gradient


def run(c, p, x, dtype):
    """Value, and gradients by parameters (a replica's own) and input."""
    norm = jax.vmap(lambda p, x: Norm(c).apply({"params": p}, x), in_axes=(None, 0))
    value, pull = jax.vjp(norm, p, jnp.asarray(x, dtype))
    return value, pull(jnp.asarray(DY, dtype))


@pytest.mark.parametrize("offset", [0, 100], ids=["centred", "far from 0"])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient(kind, offset):
    c, p, x = reference.tiny(**KINDS[kind]), params(**KINDS[kind]), X + offset
    value, (by_params, by_x) = run(c, p, x, jnp.float32)
    wanted, slope = in_float64(c, p, np.float64(np.float32(x)))
    tolerance = 5e-6 + 2e-6 * offset  # a mean of 100 is good to 1e-5 in float32, and so is what is left of x
    np.testing.assert_allclose(value, wanted, atol=tolerance)
    np.testing.assert_allclose(by_x, slope, atol=2 * tolerance)
    unit = (wanted - p.get("bias", 0)) / p["scale"]
    np.testing.assert_allclose(by_params["scale"], (DY * unit).sum((0, 1, 2)), atol=30 * tolerance)
    if "bias" in p:
        np.testing.assert_allclose(by_params["bias"], DY.sum((0, 1, 2)), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_rounded_once(kind):
    """Statistics are float32: the value of bfloat16 inputs is off by its own rounding alone, 2^-9 relative."""
    c, p, x = reference.tiny(**KINDS[kind]), params(**KINDS[kind]), np.float64(jnp.bfloat16(X))
    value, (by_params, by_x) = run(c, p, x, jnp.bfloat16)
    assert (value.dtype, by_x.dtype, by_params["scale"].dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    wanted, slope = in_float64(c, p, x)
    np.testing.assert_allclose(np.float64(value), wanted, rtol=2**-8, atol=1e-5)
    assert np.abs(np.float64(by_x) - slope).max() < 2**-7 * np.abs(slope).max()

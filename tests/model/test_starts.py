"""Parameters as they are drawn: their deviations, where a normal is cut off, what starts at 1 and at 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.model import ngpt
from jaxlab.model.decoder import Decoder
from jaxlab.model.families import ARCHITECTURES
from jaxlab.model.linear import initializer
from jaxlab.model.moe import Experts
from tests.model import reference

WIDE = {"d_model": 256, "num_heads": 2, "num_kv_heads": 1, "head_dim": 128, "d_ff": 512, "vocab_size": 500}
# A standard normal cut off at +-2 has this deviation, by which the cut is divided.
CUT = 2 / 0.87962566


def is_truncated(x, std):
    """100,000 draws have their deviation to 0.3 %; some come within 1 % of the cut, none past it."""
    assert np.std(x) == pytest.approx(std, rel=0.015)
    assert abs(np.mean(x)) < 0.02 * std
    assert 0.99 * CUT * std < np.abs(x).max() <= 1.0001 * CUT * std


def is_normal(x, std):
    assert np.std(x) == pytest.approx(std, rel=0.015)
    assert abs(np.mean(x)) < 0.02 * std
    assert np.abs(x).max() > 3 * std


def test_linear():
    """The inputs count, not the outputs: 1/16 of 256."""
    is_truncated(initializer(0.0)(jax.random.key(0), (256, 512)), 1 / 16)
    is_normal(initializer(0.3)(jax.random.key(0), (256, 512)), 0.3)


@pytest.mark.parametrize("init_std", [0.0, 0.05])
def test_experts_are_drawn_each_for_itself(init_std):
    c = reference.tiny(**WIDE | {"num_experts": 3, "experts_per_token": 2, "ffn": "swiglu", "init_std": init_std})
    params = jax.jit(Experts(c).init)(jax.random.key(0), jnp.zeros((1, 1, 256)))["params"]
    for name, inputs in (("gate", 256), ("up", 256), ("down", 512)):
        kernels = params[name]["kernel"]
        for one in kernels:
            (is_normal if init_std else is_truncated)(one, init_std or inputs**-0.5)
        assert np.abs(np.corrcoef(np.reshape(kernels, (3, -1))) - np.eye(3)).max() < 0.02
    assert np.std(params["router"]["kernel"]) == pytest.approx(init_std or 1 / 16, rel=0.1)  # of 768 draws


@pytest.mark.parametrize("init_std", [0.0, 0.05])
def test_decoder(init_std):
    """Embeddings are normal of 1/16 at width 256 unless a deviation is given; norms start at 1 and biases at 0."""
    c = reference.tiny(
        **WIDE | {"init_std": init_std, "positions": "learned", "context": 400, "use_bias": True}, tied=False
    )
    params = jax.jit(Decoder(c, scan=True).init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    for name in ("embedding", "position_embedding"):
        is_normal(params[name], init_std or 1 / 16)
    layer = params["blocks"]
    check = is_normal if init_std else is_truncated
    check(params["head"], init_std or 1 / 16)
    check(layer["attention"]["query"]["kernel"], init_std or 1 / 16)
    check(layer["ffn"]["up"]["kernel"], init_std or 1 / 16)
    check(layer["ffn"]["down"]["kernel"], init_std or 512**-0.5)
    kernels = np.reshape(layer["ffn"]["up"]["kernel"], (2, -1))
    assert abs(np.corrcoef(kernels)[0, 1]) < 0.02  # layers are drawn each for itself
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key in ("scale", "bias"):
            np.testing.assert_array_equal(leaf, path[-1].key == "scale")


def test_ngpt_scales():
    """2410.01131, table of initial values: alpha 0.05 stored as 1 / sqrt(d), s_qk and s_z 1 stored as 1 / sqrt(d), s_u
    and s_v 1 stored as 1."""
    c = reference.tiny(**ARCHITECTURES["ngpt"] | {"d_model": 64})
    params = jax.jit(Decoder(c, scan=True).init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    layer = params["blocks"]
    for leaf in (layer["attention_alpha"], layer["ffn_alpha"], layer["attention"]["s_qk"], params["s_z"]):
        np.testing.assert_array_equal(leaf, np.float32(1 / 8))
    for name in ("s_u", "s_v"):
        np.testing.assert_array_equal(layer["ffn"][name], 1)
    # Between orthogonal unit vectors a step of 0.05: (0.95, 0.05) of norm sqrt(0.905).
    found = ngpt.residual(jnp.array([3.0, 0.0]), jnp.array([0.0, 0.2]), jnp.array([0.05, -0.05]))
    np.testing.assert_allclose(found, np.array([0.95, 0.05]) / 0.905**0.5, rtol=1e-6)

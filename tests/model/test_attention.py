"""Attention kernels against a loop over positions, causality of the whole model, and rotary positions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.model import attention
from jaxlab.model.decoder import Decoder
from tests.model import reference

KERNELS = {"plain": attention.plain, "chunked": attention.chunked, "xla": attention.fused("xla")}
SHAPES = [(1, 4, 4), (2, 4, 2), (63, 2, 1), (127, 2, 2), (128, 4, 1), (129, 4, 2), (300, 2, 1)]  # length, H, K


def inputs(length, heads, kv_heads, head_dim=6):
    rng = np.random.default_rng(length)
    return [np.float32(rng.normal(size=(2, length, n, head_dim)) * 2) for n in (heads, kv_heads, kv_heads)]


def by_position(q, k, v):
    """Softmax over the keys up to each position, in float64."""
    q, k, v = (np.float64(a) for a in (q, k, v))
    y = np.zeros_like(q)
    for head in range(q.shape[2]):
        shared = head // (q.shape[2] // k.shape[2])
        for t in range(q.shape[1]):
            scores = np.einsum("bd,bsd->bs", q[:, t, head], k[:, : t + 1, shared]) / q.shape[-1] ** 0.5
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            y[:, t, head] = np.einsum("bs,bsd->bd", weights, v[:, : t + 1, shared])
    return y


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_equals_the_loop(kernel, shape):
    q, k, v = inputs(*shape)
    y = jax.jit(KERNELS[kernel])(q, k, v)
    assert y.shape == q.shape
    np.testing.assert_allclose(y, by_position(q, k, v), atol=2e-5)  # float32: scores up to 20, values up to 6


def gradient(kernel, qkv):
    """Of a sum over replicas, which are mapped as in the trainer: qkv [M, b, L, heads, head_dim]."""
    return jax.jit(jax.grad(lambda qkv: jnp.sin(jax.vmap(KERNELS[kernel])(*qkv).astype(jnp.float32)).sum()))(qkv)


@pytest.mark.parametrize("kernel", ["chunked", "xla"])
@pytest.mark.parametrize("shape", [(5, 4, 2), (129, 4, 2), (300, 2, 2)], ids=str)
def test_gradients_equal_those_of_plain(kernel, shape):
    qkv = [a[:, None] for a in inputs(*shape)]
    for g, wanted in zip(gradient(kernel, qkv), gradient("plain", qkv), strict=True):
        np.testing.assert_allclose(g, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_gradients_are_close_to_float32(kernel):
    """Weights and their gradients are rounded to 2^-9 and summed: 3 % of the largest value."""
    qkv = [jnp.bfloat16(a[:, None] / 2) for a in inputs(129, 4, 2)]
    exact = gradient("plain", [jnp.float32(a) for a in qkv])
    for g, wanted in zip(gradient(kernel, qkv), exact, strict=True):
        assert g.dtype == jnp.bfloat16
        assert np.abs(np.float32(g) - wanted).max() < 0.03 * np.abs(wanted).max()


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_is_close_to_float32(kernel):
    """Inputs are the same bfloat16 numbers. Rounding of scores (up to 10, 2^-9 relative) and of the softmax's weights
    leaves 2^-6 of the largest value."""
    q, k, v = (jnp.bfloat16(a / 2) for a in inputs(129, 4, 2))
    y = jax.jit(KERNELS[kernel])(q, k, v)
    assert y.dtype == jnp.bfloat16
    wanted = by_position(q, k, v)
    assert np.abs(np.float64(y) - wanted).max() < 2**-6 * np.abs(wanted).max()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_later_token_changes_no_earlier_logit(kernel):
    c = reference.tiny(context=130)
    params, tokens = reference.random_params(c), np.random.default_rng(0).integers(0, 28, (1, 130)).astype(np.int32)
    logits = jax.jit(partial(Decoder(c, kernel=KERNELS[kernel]).apply, {"params": jax.tree.map(jnp.asarray, params)}))
    before = np.asarray(logits(tokens))
    for changed in (1, 64, 65, 129):
        other = tokens.copy()
        other[0, changed] = 28
        after = np.asarray(logits(other))
        np.testing.assert_array_equal(after[:, :changed], before[:, :changed])
        assert (np.abs(after[0, changed] - before[0, changed]) > 1e-3).any()


def test_rotary_keeps_norms_and_depends_on_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (np.float32(rng.normal(size=8)) for _ in range(2))
    length = 40
    rotated_q, rotated_k = (attention.rotary(jnp.tile(a, (1, length, 1, 1)), 100.0)[0, :, 0] for a in (q, k))
    # float32: angles up to 40 are good to 2e-6.
    np.testing.assert_allclose(np.linalg.norm(rotated_q, axis=-1), np.linalg.norm(q), rtol=1e-6)
    products = np.asarray(rotated_q @ rotated_k.T)
    for distance in range(-length + 1, length):
        np.testing.assert_allclose(np.diagonal(products, distance), products.diagonal(distance)[0], atol=2e-5)
    assert abs(products[0, 0] - q @ k) < 1e-5
    assert np.ptp(products[0]) > 1  # and it does depend on distance


def test_rotary_by_hand():
    """theta 100, h 4: the pairs (0, 2) and (1, 3) turn by p and by p 100^(-1/2)."""
    found = attention.rotary(jnp.tile(jnp.array([1.0, 2, 3, 4]), (1, 3, 1, 1)), 100.0)[0, :, 0]
    for p, row in enumerate(found):
        fast, slow = (1 + 3j) * np.exp(1j * p), (2 + 4j) * np.exp(0.1j * p)
        np.testing.assert_allclose(row, [fast.real, slow.real, fast.imag, slow.imag], atol=1e-6)


def test_rotary_angles_are_float32_in_bfloat16():
    """At position 1000 a bfloat16 angle would be off by radians; the result is off by its own rounding only."""
    x = jnp.ones((1, 1001, 1, 8))
    exact = attention.rotary(x, 10_000.0)
    np.testing.assert_allclose(np.float32(attention.rotary(x.astype(jnp.bfloat16), 10_000.0)), exact, atol=2**-8)

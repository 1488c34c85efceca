"""What is random in a product of cast operands: the signs of the rotation, which cancel, and stochastic rounding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.quant import dot as module
from jaxlab.quant.dot import dot_general
from jaxlab.quant.recipes import RECIPES, Operand, Recipe
from tests.quant.layer import DY, W, X, assert_same, linear_of, products


def test_rotations_cancel():
    """With no format nvfp4's rotation changes dw by rounding alone, 1e-5 of the largest, but does rotate; half of it
    would not cancel and is refused."""
    turn = Operand(hadamard=4)
    dw = jax.jit(lambda *a: products(linear_of(Recipe(P5=turn, P6=turn)), *a))(X, W, DY)[2]
    expected = np.tensordot(X.astype(np.float64), DY, ((0, 1), (0, 1)))
    np.testing.assert_allclose(dw, expected, atol=1e-5 * np.abs(expected).max())
    turned = module._rotated(jnp.asarray(X), 1, 4)
    np.testing.assert_allclose((turned**2).sum(1), (X**2).sum(1), rtol=1e-5)
    assert np.abs(turned - X).max() > 1
    one = np.zeros((16, 1), np.float32)
    one[5] = 1
    np.testing.assert_allclose(np.abs(module._rotated(jnp.asarray(one), 0, 16)), 0.25)
    # By hand: signs + + + - (numpy's default_rng(0)); Sylvester's matrix has ++++, +-+-, ++-- and +--+, halved.
    np.testing.assert_array_equal(module._rotated(jnp.array([1.0, 2.0, 4.0, 8.0]), 0, 4), [-0.5, 5.5, 3.5, -6.5])
    with pytest.raises(InputError, match=r"P6.hadamard=0: must be that of P5, 16, in the same product"):
        Recipe(P5=Operand(hadamard=16))
    with pytest.raises(InputError, match="hadamard=16: must divide the 60 elements that the product contracts"):
        jax.eval_shape(lambda *a: products(linear_of(RECIPES["nvfp4"]), *a), X, W, DY)


def test_stochastic_rounding_is_unbiased_and_of_the_data():
    """0.3 between 0 and 0.5 of E2M1's grid, with x = w = 1 so that dx and dw are P3 and P5 of dy. Over 2,000 tensors
    that differ in one element the mean is 0.3, for all and for every place, and places do not correlate, each within
    5 standard errors (of a draw: 0.245); equal tensors draw equally, P3 and P5 apart, and so does another seed."""
    half = Operand("e2m1", scale=None, rounding="stochastic")
    n, eye = 2_000, jnp.eye(8)
    dy = np.full((n, 8, 8), 0.3, np.float32)
    dy[:, 0, 0] = np.linspace(0.1, 0.2, n)

    @jax.jit
    @jax.vmap
    def draws(dy):
        dims = (((1,), (0,)), ((), ()))
        rules = Recipe(P3=half, P5=half), Recipe(P3=half, seed=1)
        (_, p3, p5), (_, other, _) = (
            products(lambda x, w, rule=rule: dot_general(rule)(x, w, dims), eye, eye, dy) for rule in rules
        )
        return p3, p5, other

    drawn = [np.asarray(a).reshape(n, 64) for a in draws(dy)]
    for values in drawn:
        rest = values[:, 1:]
        assert set(np.unique(rest)) == {0.0, 0.5}
        assert abs(rest.mean() - 0.3) < 5 * 0.245 / np.sqrt(rest.size)
        assert np.abs(rest.mean(0) - 0.3).max() < 5 * 0.245 / np.sqrt(n)
        assert np.abs(np.corrcoef(rest.T) - np.eye(63)).max() < 5 / np.sqrt(n)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(drawn[a][:, 1:].ravel(), drawn[b][:, 1:].ravel())[0, 1]) < 5 / np.sqrt(63 * n)
    again = draws(dy)
    assert_same(drawn, [np.asarray(a).reshape(n, 64) for a in again])


def test_tensors_that_differ_have_other_keys():
    """One number, +-2^-8 to 2^7, at one of 32 places: 1,024 tensors whose bits differ at the top alone, 1,024 keys (two
    of 32 random bits would be alike once in 8,000 trials); in bfloat16 too."""
    numbers = np.kron(np.eye(32), np.outer([1, -1], 2.0 ** np.arange(-8, 8)).reshape(-1, 1))
    for dtype in (jnp.float32, jnp.bfloat16):
        tensors = jnp.asarray(numbers.reshape(1024, 4, 8), dtype)
        keys = jax.random.key_data(jax.jit(jax.vmap(partial(module._key, seed=5)))(tensors))
        assert len(np.unique(keys[:, 0])) == 1024
        assert set(np.asarray(keys[:, 1])) == {5}

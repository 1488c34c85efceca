"""A linear layer, small and of odd sizes, and products of other shapes, for the tests of `quant.dot`."""

import jax
import numpy as np

from jaxlab.quant.dot import dot_general
from jaxlab.quant.recipes import Recipe

RNG = np.random.default_rng(0)
# No contracted axis is a multiple of the block: 24 inputs, 40 outputs, 3 x 20 tokens.
X, W, DY = (RNG.normal(size=s).astype(np.float32) for s in ((3, 20, 24), (24, 40), (3, 20, 40)))
BLOCK = 16
LINEAR = (((2,), (0,)), ((), ()))


def products(function, x, w, dy):
    """(y, dx, dw) of function(x, w)."""
    y, pull = jax.vjp(function, x, w)
    return y, *pull(dy)


def linear_of(rule: Recipe):
    return lambda x, w: dot_general(rule)(x, w, LINEAR)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


ATTENTION = {  # dimension numbers, shapes
    "scores": ((((3,), (3,)), ((0, 2), (0, 2))), (2, 5, 3, 8), (2, 7, 3, 8)),
    "mixture": ((((3,), (1,)), ((0, 1), (0, 2))), (2, 3, 5, 7), (2, 7, 3, 8)),
    "two contracted, crossed": ((((3, 1), (0, 2)), ((), ())), (2, 5, 3, 8), (8, 4, 5)),
    "crossed the other way": ((((1, 3), (2, 0)), ((), ())), (2, 5, 3, 8), (8, 4, 5)),
    "in lists": ((([2], [1]), ([0], [0])), (2, 5, 8), (2, 8, 3)),
}

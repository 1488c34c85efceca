"""The same bits in every program: one operation at a time, compiled with all passes or few, looped, scanned, mapped."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy.linalg import hadamard

from jaxlab.quant import dot as module
from jaxlab.quant.cast import cast, quantise
from tests import quick
from tests.quant.oracle import blockwise, same_bits

X = (np.random.default_rng(0).standard_t(3, (2, 6, 24)) * 0.02).astype(np.float32)
CASES = {  # format, axes, block, scale
    "blocks": ("e4m3", (1,), (16,), "float32"),
    "nvfp4": ("e2m1", (0, 1), (2, 8), "e4m3"),
}


def run(x):
    """Casts and NVFP4's rotation."""
    found = {
        name: cast(x, format, axis=axes, block=block, scale=scale)
        for name, (format, axes, block, scale) in CASES.items()
    }
    return found | {"rotated": module._rotated(x, 1, 8)}


def drawn(x):
    """The same and draws whose key is the rotated tensor's."""
    found = run(x)
    turned = found["rotated"]
    q, _ = quantise(turned, "e2m1", block=8, rounding="stochastic", key=module._key(turned, 5))
    return found | {"drawn": q}


def programs(xs):
    """{how: the runs of all xs in one program}."""
    return {
        "loop": jax.tree.map(lambda *a: jnp.stack(a), *map(drawn, xs)),
        "scan": lax.scan(lambda c, x: (c, drawn(x)), 0, xs)[1],
        "vmap": jax.vmap(drawn)(xs),
        "constants": jax.vmap(run)(jnp.asarray(X)),
        "times 3": jax.vmap(run)(3 * xs),  # which XLA may move past the blocks' scales
        "rows alike": run(jnp.broadcast_to(xs[0, :1], xs[0].shape)),  # a / b it makes a * (1 / b) where b is broadcast
    }


def rotated(x):
    """Sums and differences in numpy's float32, and that they are a product with scipy's matrix."""
    signs = np.random.default_rng(0).choice([-1, 1], 8)
    y = np.float32(x * np.tile(signs, 3)).reshape(6, 3, 2, 2, 2)
    for axis in (4, 3, 2):
        a, b = np.split(y, 2, axis)
        y = np.concatenate((a + b, a - b), axis)
    y = y.reshape(x.shape) * np.float32(8**-0.5)
    by_matrix = x.reshape(6, 3, 8) @ (signs[:, None] * hadamard(8) / 8**0.5)
    np.testing.assert_allclose(y, by_matrix.reshape(x.shape), atol=1e-6 * np.abs(x).max())
    return y


def expected(x):
    return {name: blockwise(x, *case) for name, case in CASES.items()} | {"rotated": rotated(x)}


def test_operation_after_operation():
    format, axes, block, scale = CASES["nvfp4"]
    with jax.disable_jit():
        found = cast(jnp.asarray(X[0]), format, axis=axes, block=block, scale=scale)
    same_bits(found, expected(X[0])["nvfp4"])


@pytest.mark.parametrize("passes", ["all", "few"])
def test_every_program_has_numpys_bits(passes):
    with nullcontext() if passes == "all" else quick.compiling():
        found = jax.jit(lambda xs: programs(xs))(X)  # a function of its own: others are compiled already
    found["rows alike"] = jax.tree.map(lambda a: a[None], found["rows alike"])
    for how, runs in found.items():
        xs = {"times 3": 3 * X, "rows alike": [np.repeat(X[0, :1], 6, axis=0)]}.get(how, X)
        for i, x in enumerate(xs):
            for name, value in expected(x).items():
                assert (np.asarray(runs[name][i]).view(np.int32) == value.view(np.int32)).all(), (how, name)
        if "drawn" in runs:
            same_bits(runs["drawn"], found["loop"]["drawn"])

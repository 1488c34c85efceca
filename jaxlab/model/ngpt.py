"""nGPT (arXiv 2410.01131): hidden states and weights of unit norm, learned step lengths and scales in place of norms.

The weights are put back on their spheres by the optimiser (`optim.sphere`), along the axes that `unit_axis` names.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlab.model.norm import normalise

ALPHA = 0.05  # initial step length of a residual branch
OUTPUTS = ("embedding", "out", "down")  # their rows are vectors of d_model, of all other matrices the columns


def unit_axis(path: tuple) -> int | None:
    """The axis of d_model of a matrix at a path of the decoder's parameters; None for the vectors."""
    name, owner = path[-1].key, path[max(len(path) - 2, 0)].key
    if name not in ("kernel", "embedding", "head"):
        return None
    return -1 if owner in OUTPUTS else -2


def unit(x: jax.Array) -> jax.Array:
    """x / ||x|| along the last axis, float32; zeros stay zeros."""
    d = x.shape[-1]
    return normalise(x.astype(jnp.float32), jnp.full((d,), d**-0.5), False, 1e-30)


def scale(module: nn.Module, name: str, size: int, stored: float, init: float = 1.0) -> jax.Array:
    """A learned vector [size] that starts at `init`. It is kept as `stored` at first, which sets its learning rate
    relative to that of the matrices, whose entries are near 1 / sqrt(d_model)."""
    return module.param(name, nn.initializers.constant(stored), (size,)) * (init / stored)


def residual(x: jax.Array, y: jax.Array, alpha: jax.Array) -> jax.Array:
    """unit(a + |alpha| (b - a)) with a = unit(x), b = unit(y): from x [b, L, d] a step towards y, in x's dtype."""
    a, b = unit(x), unit(y)
    return unit(a + jnp.abs(alpha) * (b - a)).astype(x.dtype)

"""What a run carries from step to step: arrays on the devices, integers on the host."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class State(NamedTuple):
    """Every leaf of params and opt_state has a leading replica axis M. Data-parallel training is M = 1 without `outer`,
    what replicas have in common (train.outer_loop)."""

    params: Any
    opt_state: Any
    outer: Any = None

    @property
    def replicas(self) -> int:
        return jax.tree.leaves(self.params)[0].shape[0]


class Clock(NamedTuple):
    """Where a run stands, in exact Python integers; the position in the data is that of `tokens`."""

    tokens: int = 0
    steps: int = 0


def fingerprint(tree) -> jax.Array:
    """uint32 [leaves]: the sum of each leaf's bits modulo 2^32, however sharded: a change of one element shows."""

    def bits(x):
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        return jnp.sum(lax.bitcast_convert_type(x, width).astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([bits(leaf) for leaf in jax.tree.leaves(tree)])


def finite(tree) -> jax.Array:
    """bool [leaves]: whether every element of a leaf is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])

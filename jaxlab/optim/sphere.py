"""Parameters that are held on spheres: matrices of unit norm along one axis (nGPT 2410.01131, section 2.6, step 2)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def unit_norm(params: Any, axis: Callable[[tuple], int | None]) -> Any:
    """Every leaf for whose tree path `axis` gives an axis, divided by its L2 norm along it, in float32 if it is; the
    others as they are. Axes counted from the end hold for stacked layers and replicas too."""

    def normalised(path, p):
        along = axis(path)
        return p if along is None else p / jnp.linalg.norm(p, axis=along, keepdims=True)

    return jax.tree_util.tree_map_with_path(normalised, params)


def projected(transformation: optax.GradientTransformation, project: Callable[[Any], Any] | None):
    """The transformation with updates u that lead to project(params + u) instead; as it is where project is None."""
    if project is None:
        return transformation

    def update(updates, state, params):
        moved = project(optax.apply_updates(params, updates))
        return jax.tree.map(jnp.subtract, moved, params), state

    return optax.chain(transformation, optax.GradientTransformation(lambda params: optax.EmptyState(), update))

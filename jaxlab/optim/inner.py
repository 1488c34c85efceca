"""The inner optimiser: AdamW whose learning rate and decay arrive with every update, as arrays."""

from typing import Any

import jax
import optax


def adamw(*, b1: float, b2: float, eps: float, clip: float = 0.0, decay_mask: str = "matrices"):
    """AdamW as an optax transformation over any pytree; `update(grads, state, params, lr=, decay=)`.

    params <- params - lr * m_hat / (sqrt(v_hat) + eps) - decay * params, after clipping the gradient to global norm
    `clip` (0: off). `decay` is the share by which weights shrink in this step, so that both readings of weight decay
    are the caller's arithmetic: coupled is lr * weight_decay (optax, torch), independent is weight_decay itself (the
    DiLoCo paper's 1/T). Being arguments, neither recompiles anything. Adam is decay = 0. State: 2x the parameters.
    decay_mask: matrices (leaves named kernel, embedding or head), or all.
    """
    direction = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(), optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    )

    def update(grads, state, params, *, lr, decay):
        directions, state = direction.update(grads, state, params)
        decayed = jax.tree.map(lambda p: True, params) if decay_mask == "all" else matrices(params)
        updates = jax.tree.map(lambda u, p, d: -lr * u - decay * p if d else -lr * u, directions, params, decayed)
        return updates, state

    return optax.GradientTransformationExtraArgs(direction.init, update)


def matrices(params: Any) -> Any:
    """Tree of bools: which leaves are matrices (kernels, embeddings, heads), by name, since layers are stacked."""

    def is_matrix(path, _):
        return path[-1].key in ("kernel", "embedding", "position_embedding", "head")

    return jax.tree_util.tree_map_with_path(is_matrix, params)

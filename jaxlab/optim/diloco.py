"""DiLoCo's outer optimiser: replicas that train apart, their changes averaged, one step of the global parameters.

Charles et al. 2503.09799, algorithm 1, with the variants of Streaming DiLoCo (2501.18512). Pure functions over any
pytree and any optax transformation. `replicas` is the tree of the parameters with a leading axis of M models, which may
be sharded: the average is then the round's only communication. A round is H inner steps on every replica, of which
nothing here knows: the inner optimiser keeps its state, and the learning rates come from the caller's schedule.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Outer(NamedTuple):
    """theta, the global parameters (those to evaluate and to export), and the state of the outer transformation."""

    params: Any
    opt_state: Any


def nesterov(momentum: float = 0.9) -> optax.GradientTransformationExtraArgs:
    """SGD with Nesterov momentum whose rate arrives with the update: v <- mu v + Delta; theta <- theta - lr (Delta +
    mu v). With momentum 0 and lr 1 it averages parameters (FedAvg); with M = 1 and momentum 0 it is Lookahead."""
    direction = optax.trace(momentum, nesterov=True) if momentum else optax.identity()

    def update(delta, state, params=None, *, lr):
        del params
        directions, state = direction.update(delta, state)
        return jax.tree.map(lambda d: -lr * d, directions), state

    return optax.GradientTransformationExtraArgs(direction.init, update)


def init(params: Any, outer: optax.GradientTransformation) -> Outer:
    """The state before the first round; all replicas must start from these same parameters."""
    return Outer(params, outer.init(params))


def mean(deltas: Any, weights: jax.Array) -> Any:
    """sum_m w_m Delta_m / sum_m w_m, leaf by leaf, accumulated in float32; zero where all weights are.

    weights [M]: 1 for each replica, 0 for one that is lost (what it holds is not read: it may be NaN), or the tokens
    that each has seen.
    """
    total = jnp.sum(weights)
    share = weights / jnp.where(total == 0, 1, total)
    return jax.tree.map(lambda d: jnp.sum(_times(share, d), axis=0), deltas)


def radial_directional(deltas: Any, weights: jax.Array) -> Any:
    """Norm and direction averaged apart, leaf by leaf: the mean of the norms times the direction of the mean of the
    unit vectors (Decoupled DiLoCo 2604.21428). The plain mean of M nearly orthogonal changes is sqrt(M) shorter."""
    norms = jax.tree.map(lambda d: jnp.sqrt(jnp.sum(d * d, axis=tuple(range(1, d.ndim)))), deltas)
    units = jax.tree.map(lambda d, n: _times(1 / jnp.where(n == 0, 1, n), d), deltas, norms)

    def scaled(direction, norm):
        length = jnp.sqrt(jnp.sum(direction * direction))
        return direction * (norm / jnp.where(length == 0, 1, length))

    return jax.tree.map(scaled, mean(units, weights), mean(norms, weights))


def outer_gradient(params: Any, replicas: Any, weights: jax.Array | None = None, average: Callable = mean) -> Any:
    """Delta = average over m of Delta_m, Delta_m = theta - theta_m: old minus new, a descent direction with the sign
    of a gradient. Differences and sums are taken in float32."""
    deltas = jax.tree.map(lambda t, r: t.astype(jnp.float32) - r.astype(jnp.float32), params, replicas)
    count = jax.tree.leaves(replicas)[0].shape[0]
    return average(deltas, jnp.ones(count) if weights is None else weights.astype(jnp.float32))


def apply(state: Outer, replicas: Any, delta: Any, outer, *, mix: float = 0.0, **hypers) -> tuple[Outer, Any]:
    """theta <- OuterOpt(theta, Delta), and every replica takes it over: theta_m <- mix theta_m + (1 - mix) theta.

    Replicas that were lost rejoin here. mix is alpha of Streaming DiLoCo: 0 after a Delta that arrives at once, 0.5
    after one that has been under way for some inner steps. hypers go to the outer transformation (`lr`).
    """
    update = optax.with_extra_args_support(outer).update
    updates, opt_state = update(delta, state.opt_state, state.params, **hypers)
    params = optax.apply_updates(state.params, updates)

    def taken_over(theta, old):
        new = jnp.broadcast_to(theta, old.shape).astype(old.dtype)
        return new if mix == 0 else mix * old + (1 - mix) * new

    return Outer(params, opt_state), jax.tree.map(taken_over, params, replicas)


def outer_step(state: Outer, replicas: Any, outer, *, weights=None, average: Callable = mean, **hypers):
    """A whole synchronisation: (state, replicas) after which all replicas are theta, bit for bit."""
    return apply(state, replicas, outer_gradient(state.params, replicas, weights, average), outer, **hypers)


def diagnostics(params: Any, replicas: Any) -> dict[str, jax.Array]:
    """{"delta_norm" [M], "cosine" [M, M]}: length of each replica's change since the last round, and the cosines
    between them (about 0.1 at the start of training, 0 in its middle, -0.1 at its end, 2501.18512)."""
    deltas = jax.tree.map(lambda t, r: t.astype(jnp.float32) - r.astype(jnp.float32), params, replicas)
    flat = [d.reshape(d.shape[0], -1) for d in jax.tree.leaves(deltas)]
    products = sum(jnp.matmul(d, d.T, precision=jax.lax.Precision.HIGHEST) for d in flat)
    norms = jnp.sqrt(jnp.diag(products))
    scale = jnp.where(norms == 0, 1, norms)
    return {"delta_norm": norms, "cosine": products / (scale[:, None] * scale)}


def fragments(params: Any, count: int, how: str = "strided", stacked: str = "blocks") -> list[Any]:
    """Streaming DiLoCo's fragments: for each, a tree of the parameters' structure with the layers that belong to it.

    Leaves below the key `stacked` have a leading layer axis: theirs are int arrays [layers]. The others (embeddings,
    last norm) are whole: True in the first fragment. how: `strided` (layer l in fragment l mod count, the paper's
    choice) or `sequential`. Raises ValueError for more fragments than layers, or an unknown `how`.
    """
    layers = len(jax.tree.leaves(params[stacked])[0])
    if not 1 <= count <= layers:
        raise ValueError(f"count={count}: must be 1 to {layers}, the number of layers")
    if how not in ("strided", "sequential"):
        raise ValueError(f"how={how!r}: must be strided or sequential")
    parts = (
        [np.arange(layers)[i::count] for i in range(count)]
        if how == "strided"
        else np.array_split(range(layers), count)
    )

    def fragment(i, part):
        belongs = lambda path, _: part if path[0].key == stacked else i == 0  # noqa: E731
        return jax.tree_util.tree_map_with_path(belongs, params)

    return [fragment(i, part) for i, part in enumerate(parts)]


def take(tree: Any, fragment: Any, axis: int = 0) -> Any:
    """The leaves of a fragment, layers cut out along `axis` (1 for replicas); None where nothing belongs to it."""

    def cut(layers, leaf):
        if isinstance(layers, np.ndarray):
            return jnp.take(leaf, layers, axis=axis)
        return leaf if layers else None

    return jax.tree.map(cut, fragment, tree)


def put(tree: Any, fragment: Any, part: Any, axis: int = 0) -> Any:
    """The tree with a fragment's leaves replaced by those of `part`."""

    def replaced(layers, leaf, new):
        if isinstance(layers, np.ndarray):
            return leaf.at[(slice(None),) * axis + (layers,)].set(new)
        return new if layers else leaf

    return jax.tree.map(replaced, fragment, tree, part)


def due(step: int, sync_every: int, count: int) -> list[int]:
    """Fragments to synchronise after inner step `step` (from 1): fragment p at multiples of H plus its offset p H / P,
    so that communication spreads evenly over a round. None before its own H steps have been taken."""
    offsets = [p * sync_every // count for p in range(count)]
    return [p for p, offset in enumerate(offsets) if step - offset >= sync_every and (step - offset) % sync_every == 0]


def _times(share: jax.Array, deltas: jax.Array) -> jax.Array:
    """share_m deltas_m; nothing of a replica whose share is 0 gets through, NaN neither."""
    share = share.reshape(-1, *[1] * (deltas.ndim - 1))
    return jnp.where(share == 0, 0, share * deltas)

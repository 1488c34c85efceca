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


def changes(params: Any, replicas: Any) -> Any:
    """Delta_m = theta - theta_m of every replica, float32 [M, ...]: old minus new, a descent direction with the sign
    of a gradient. The difference is taken in float32."""
    return jax.tree.map(lambda t, r: t.astype(jnp.float32) - r.astype(jnp.float32), params, replicas)


def outer_gradient(params, replicas, weights=None, average: Callable = mean, exchange: Callable = lambda d: d) -> Any:
    """Delta = average over m of Delta_m, as they arrive, in float32; to be kept while it is under way.

    weights [M]: default all 1. average(deltas, weights): mean or radial_directional. exchange(deltas): what arrives
    of what each replica sends, such as `codec.exchange("e3m0", share)`.
    """
    deltas = exchange(changes(params, replicas))
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


def outer_step(state: Outer, replicas, outer, *, weights=None, average=mean, exchange=lambda d: d, **hypers):
    """A whole synchronisation: (state, replicas) after which all replicas are theta, bit for bit."""
    delta = outer_gradient(state.params, replicas, weights, average, exchange)
    return apply(state, replicas, delta, outer, **hypers)


class Eager(NamedTuple):
    """State of eager updates (2502.12996), with a leading replica axis [M, ...] on every leaf.

    params: theta_m, which each replica updates by itself. To evaluate and export is their mean: the outer SGD is
    linear in its gradients, so that the mean of the theta_m is what it makes of the mean of the gradients,
    Delta(t) / M + (1 - 1/M) Delta(t-1), Delta(t) the mean of the Delta_m(t): DiLoCo, partly one round late.
    others: sum over m' != m of Delta_m'(t-1) / M, float32: what is under way to replica m for a whole round.
    """

    params: Any
    opt_state: Any
    others: Any


def eager_init(params: Any, outer: optax.GradientTransformation, replicas: int) -> Eager:
    """The state before the first round, from the parameters [...] that all `replicas` start with.

    Nothing of the others arrives after the first round (Delta_m'(0) = 0): every change then enters every replica
    exactly once, its own at once and the others' a round later, but for the others' of the last round.
    """
    stacked = jax.tree.map(lambda p: jnp.broadcast_to(p, (replicas, *p.shape)), params)
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), stacked)
    return Eager(stacked, jax.vmap(outer.init)(stacked), zeros)


def eager_step(state: Eager, replicas: Any, outer, *, exchange: Callable = lambda d: d, **hypers) -> tuple[Eager, Any]:
    """theta_m <- OuterOpt(theta_m, (Delta_m(t) + sum over m' != m of Delta_m'(t-1)) / M); replicas go on from theta_m.

    Nothing that is communicated here is used here: the others' changes of this round are in the next one's state. A
    replica's own change is applied as it is, what the others get of it is what arrives by `exchange`.
    """
    deltas = changes(state.params, replicas)
    mixed = jax.tree.map(lambda d, others: d / d.shape[0] + others, deltas, state.others)
    others = jax.tree.map(lambda d: (jnp.sum(d, axis=0) - d) / d.shape[0], exchange(deltas))
    update = optax.with_extra_args_support(outer).update
    updates, opt_state = jax.vmap(lambda *args: update(*args, **hypers))(mixed, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return Eager(params, opt_state, others), jax.tree.map(lambda p, r: p.astype(r.dtype), params, replicas)


def diagnostics(params: Any, replicas: Any) -> dict[str, jax.Array]:
    """{"delta_norm" [M], "cosine" [M, M]}: length of each replica's change since the last round, and the cosines
    between them (about 0.1 at the start of training, 0 in its middle, -0.1 at its end, 2501.18512)."""
    flat = [d.reshape(d.shape[0], -1) for d in jax.tree.leaves(changes(params, replicas))]
    products = sum(jnp.matmul(d, d.T, precision=jax.lax.Precision.HIGHEST) for d in flat)
    norms = jnp.sqrt(jnp.diag(products))
    scale = jnp.where(norms == 0, 1, norms)
    return {"delta_norm": norms, "cosine": products / (scale[:, None] * scale)}


def agreement(deltas, others) -> dict[str, jax.Array]:
    """{"delta_norm", "cosine"}, scalars, of changes Delta_m [M, ...]: their root mean square over replicas, and the
    mean product of two replicas' changes over the mean square of one.

    others: the sum over m' != m of Delta_m' / M, which follows from the average: only numbers cross the replica axis.
    With one replica, or None: no cosine.
    """
    leaves = jax.tree.leaves(deltas)
    m = leaves[0].shape[0]
    square = sum(jnp.sum(d * d) for d in leaves) / m
    if m == 1 or others is None:
        return {"delta_norm": jnp.sqrt(square)}
    product = sum(jnp.sum(d * o) for d, o in zip(leaves, jax.tree.leaves(others), strict=True)) / (m - 1)
    return {"delta_norm": jnp.sqrt(square), "cosine": product / jnp.where(square == 0, 1, square)}


def _times(share: jax.Array, deltas: jax.Array) -> jax.Array:
    """share_m deltas_m; nothing of a replica whose share is 0 gets through, NaN neither."""
    share = share.reshape(-1, *[1] * (deltas.ndim - 1))
    return jnp.where(share == 0, 0, share * deltas)

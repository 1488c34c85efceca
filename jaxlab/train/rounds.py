"""Rounds: where replicas meet between their inner steps, when they do, and which parameters are the run's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxlab.optim import codec, diloco
from jaxlab.optim.fragments import events, fragments, put, take
from jaxlab.optim.sphere import projected
from jaxlab.train.state import State


class Fragment(NamedTuple):
    """What replicas have in common of a part of the model, and the outer gradient that is under way, if any."""

    outer: diloco.Outer | diloco.Eager
    sent: Any = None


class Rounds:
    """The outer optimiser that `config.diloco` describes, for one model. State.outer is a tuple of `Fragment`s.

    Methods that take arrays are pure, and compiled by their callers.
    """

    def __init__(self, d: ConfigDict, params: Any, replicas: int, mesh: Mesh, project: Callable | None = None):
        """params: shapes of the model's parameters, without a replica axis. project(parameters, or a fragment of them):
        where global parameters and replicas must lie, for a model that constrains them."""
        self._d, self._params, self._replicas = d, params, replicas
        self._parts = fragments(params, d.fragments, d.fragment_order)
        parts = [jax.eval_shape(lambda params, part=part: take(params, part), params) for part in self._parts]
        self._bytes = [codec.sent_bytes(part, d.codec) for part in parts]
        self._optimiser, self._project = diloco.nesterov(d.outer_momentum), project or (lambda params: params)
        if project:
            self._optimiser = optax.chain(self._optimiser, projected(project))
        self._exchange = codec.exchange(d.codec, _gather(mesh) if replicas > 1 else lambda x: x)

    def init(self, params) -> tuple[Fragment, ...]:
        """Before the first round: all replicas start from `params`."""
        return tuple(self._start(take(params, part)) for part in self._parts)

    def _start(self, params) -> Fragment:
        if self._d.eager:
            return Fragment(diloco.eager_init(params, self._optimiser, self._replicas))
        sent = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params) if self._d.overlap else None
        return Fragment(diloco.init(params, self._optimiser), sent)

    def events(self, step: int, last: bool) -> tuple:
        """What is due after inner step `step`, counted from 1; last: no step follows. Functions of these alone."""
        d = self._d
        due = events(step, sync_every=d.sync_every, fragments=d.fragments, overlap=d.overlap, last=last)
        return tuple(due)

    def apply(self, state: State, event: tuple, lr) -> tuple[State, dict]:
        """The state after an event, and metrics: of what replicas send, "delta_norm" (root mean square over replicas)
        and, of a plain mean, "cosine" (mean product of two replicas' changes over the mean square of one)."""
        what, index = event
        part, fragment = self._parts[index], state.outer[index]
        replicas = take(state.params, part, axis=1)
        fragment, replicas, metrics = getattr(self, f"_{what}")(fragment, replicas, lr)
        outer = (*state.outer[:index], fragment, *state.outer[index + 1 :])
        return state._replace(params=put(state.params, part, replicas, axis=1), outer=outer), metrics

    def _sync(self, fragment, replicas, lr):
        if self._d.eager:
            before = fragment.outer.params
            outer, new = diloco.eager_step(fragment.outer, replicas, self._optimiser, exchange=self._exchange, lr=lr)
            return Fragment(outer), new, agreement(diloco.changes(before, replicas), outer.others)
        fragment, replicas, metrics = self._send(fragment, replicas, lr)
        return *self._receive(fragment, replicas, lr)[:2], metrics

    def _send(self, fragment, replicas, lr):
        del lr
        theta, m = fragment.outer.params, self._replicas
        average = getattr(diloco, self._d.average)
        delta = diloco.outer_gradient(theta, replicas, average=average, exchange=self._exchange)
        deltas = diloco.changes(theta, replicas)
        others = jax.tree.map(lambda mean, d: mean - d / m, delta, deltas) if self._d.average == "mean" else None
        return fragment._replace(sent=delta), replicas, agreement(deltas, others)

    def _receive(self, fragment, replicas, lr):
        optimiser, mix = self._optimiser, self._d.mix
        outer, replicas = diloco.apply(fragment.outer, replicas, fragment.sent, optimiser, mix=mix, lr=lr)
        replicas = self._project(replicas) if mix else replicas
        return Fragment(outer, fragment.sent if self._d.overlap else None), replicas, {}

    def params(self, state: State):
        """The global parameters, [1, ...]: those to evaluate and to export. With eager updates, where every replica
        has its own, their mean."""
        whole = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), self._params)
        for part, fragment in zip(self._parts, state.outer, strict=True):
            theta = fragment.outer.params
            whole = put(whole, part, jax.tree.map(lambda p: p.mean(0), theta) if self._d.eager else theta)
        whole = self._project(whole) if self._d.eager else whole
        return jax.tree.map(lambda p: p[None], whole)

    def sent_bytes(self, event: tuple) -> int:
        """Bytes that one replica sends at an event."""
        what, index = event
        return 0 if what == "receive" else self._bytes[index]

    def describe(self, steps: int, outer_lr: float) -> str:
        """What happens in a run of so many steps, for a person."""
        d = self._d
        left = steps % d.sync_every
        variants = {
            f"{d.fragments} {d.fragment_order} fragments": d.fragments > 1,
            f"received {d.overlap} steps later, mixed {d.mix:g}": d.overlap,
            "eager": d.eager,
            f"sent as {d.codec}": d.codec != "float32",
            f"{d.average} average": d.average != "mean",
            f"the last round has {left} steps, and its meeting counts in full": left,
        }
        usual = (
            f"{steps // d.sync_every:,} of {d.sync_every} steps, {self._replicas} replicas, "
            f"outer lr {outer_lr:g}, Nesterov {d.outer_momentum:g}"
        )
        return ", ".join([usual, *(text for text, wanted in variants.items() if wanted)])


def agreement(deltas, others) -> dict[str, jax.Array]:
    """{"delta_norm", "cosine"} of changes Delta_m [M, ...]. others: the sum over m' != m of Delta_m' / M, which they
    know once they have met: only numbers cross the replica axis. With one replica, or None: no cosine."""
    leaves = jax.tree.leaves(deltas)
    m = leaves[0].shape[0]
    square = sum(jnp.sum(d * d) for d in leaves) / m
    if m == 1 or others is None:
        return {"delta_norm": jnp.sqrt(square)}
    product = sum(jnp.sum(d * o) for d, o in zip(leaves, jax.tree.leaves(others), strict=True)) / (m - 1)
    return {"delta_norm": jnp.sqrt(square), "cosine": product / jnp.where(square == 0, 1, square)}


def regrouped(state: State, params, replicas: int) -> State:
    """The state of another number of replicas: all start from the global `params` [1, ...], with the mean of the old
    ones' optimiser states."""

    def mean(x):
        return x.mean(0, keepdims=True).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x[:1]

    inner = State(params, jax.tree.map(mean, state.opt_state))
    inner = jax.tree.map(lambda x: jnp.broadcast_to(x, (replicas, *x.shape[1:])), inner)
    return inner._replace(outer=state.outer)


def _gather(mesh: Mesh):
    """share(x [M, ...]): encoded where its replica lives, then on the devices of all."""

    def share(x):
        for first in ("replica", None):
            spec = PartitionSpec(first, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
            x = lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
        return x

    return share

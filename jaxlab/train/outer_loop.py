"""DiLoCo's outer loop in the trainer: the outer optimiser's state, and outer steps of the fragments of a model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxlab.optim import codec, diloco
from jaxlab.optim.fragments import Event, events, fragments, put, take
from jaxlab.optim.sphere import projected
from jaxlab.train.state import State


class Fragment(NamedTuple):
    """The global parameters and outer optimiser state of a part of the model, and with an overlap the outer gradient
    that was sent last, to be applied some inner steps later."""

    outer: diloco.Outer | diloco.Eager
    sent: Any = None


class OuterLoop:
    """The outer loop that `config.diloco` describes, for one model. State.outer is a tuple of `Fragment`s.

    Methods that take arrays are pure, and compiled by their callers.
    """

    def __init__(self, d: ConfigDict, params: Any, *, replicas: int, mesh: Mesh, project: Callable | None = None):
        """params: shapes of the model's parameters, without a replica axis. project: `Decoder.project`, of a whole tree
        of parameters or of a fragment; outer steps end there, and so do averages and mixtures of parameters."""
        self._d, self._params, self._replicas = d, params, replicas
        self._parts = fragments(params, d.fragments, d.fragment_order)
        parts = [jax.eval_shape(lambda params, part=part: take(params, part), params) for part in self._parts]
        self._bytes = [codec.sent_bytes(part, d.codec) for part in parts]
        self._optimiser = projected(diloco.nesterov(d.outer_momentum), project)
        self._project = project or (lambda params: params)
        self._exchange = codec.exchange(d.codec, _gather(mesh) if replicas > 1 else lambda x: x)

    def init(self, params) -> tuple[Fragment, ...]:
        """Before the first round: all replicas start from `params`."""
        return tuple(self._start(take(params, part)) for part in self._parts)

    def _start(self, params) -> Fragment:
        if self._d.eager:
            return Fragment(diloco.eager_init(params, self._optimiser, self._replicas))
        sent = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params) if self._d.overlap else None
        return Fragment(diloco.init(params, self._optimiser), sent)

    def events(self, step: int, last: bool) -> tuple[Event, ...]:
        """What is due after inner step `step`, counted from 1; last: no step follows. Functions of these alone."""
        d = self._d
        due = events(step, sync_every=d.sync_every, fragments=d.fragments, overlap=d.overlap, last=last)
        return tuple(due)

    def step(self, state: State, event: Event, lr) -> tuple[State, dict]:
        """The state after an event, and metrics of what replicas send (`diloco.agreement`)."""
        part, fragment, metrics = self._parts[event.fragment], state.outer[event.fragment], {}
        replicas = take(state.params, part, axis=1)
        if self._d.eager:
            fragment, replicas, metrics = self._eager(fragment, replicas, lr)
        else:
            if event.kind in ("send", "sync"):
                fragment, metrics = self._send(fragment, replicas)
            if event.kind in ("receive", "sync"):
                fragment, replicas = self._receive(fragment, replicas, lr)
        outer = (*state.outer[: event.fragment], fragment, *state.outer[event.fragment + 1 :])
        return state._replace(params=put(state.params, part, replicas, axis=1), outer=outer), metrics

    def _send(self, fragment: Fragment, replicas) -> tuple[Fragment, dict]:
        """The outer gradient, the average over replicas of old minus new parameters, is computed and sent."""
        theta, m = fragment.outer.params, self._replicas
        average = getattr(diloco, self._d.average)
        delta = diloco.outer_gradient(theta, replicas, average=average, exchange=self._exchange)
        deltas = diloco.changes(theta, replicas)
        others = jax.tree.map(lambda mean, d: mean - d / m, delta, deltas) if self._d.average == "mean" else None
        return fragment._replace(sent=delta), diloco.agreement(deltas, others)

    def _receive(self, fragment: Fragment, replicas, lr) -> tuple[Fragment, Any]:
        """The outer optimiser applies the gradient that was sent, and replicas go on from the global parameters."""
        optimiser, mix = self._optimiser, self._d.mix
        outer, replicas = diloco.apply(fragment.outer, replicas, fragment.sent, optimiser, mix=mix, lr=lr)
        replicas = self._project(replicas) if mix else replicas
        return Fragment(outer, fragment.sent if self._d.overlap else None), replicas

    def _eager(self, fragment: Fragment, replicas, lr) -> tuple[Fragment, Any, dict]:
        """Every replica applies its own change in this round and the others' changes in the round before."""
        before = fragment.outer.params
        outer, new = diloco.eager_step(fragment.outer, replicas, self._optimiser, exchange=self._exchange, lr=lr)
        return Fragment(outer), new, diloco.agreement(diloco.changes(before, replicas), outer.others)

    def params(self, state: State):
        """The global parameters, [1, ...]: those to evaluate and to export. With eager updates, where every replica
        has its own, their mean."""
        whole = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), self._params)
        for part, fragment in zip(self._parts, state.outer, strict=True):
            theta = fragment.outer.params
            whole = put(whole, part, jax.tree.map(lambda p: p.mean(0), theta) if self._d.eager else theta)
        whole = self._project(whole) if self._d.eager else whole
        return jax.tree.map(lambda p: p[None], whole)

    def sent_bytes(self, event: Event) -> int:
        """Bytes that one replica sends at an event."""
        return 0 if event.kind == "receive" else self._bytes[event.fragment]

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
            f"the last round has {left} steps, and its outer step counts in full": left,
        }
        always = (
            f"{steps // d.sync_every:,} of {d.sync_every} steps, {self._replicas} replicas, "
            f"outer lr {outer_lr:g}, Nesterov {d.outer_momentum:g}"
        )
        return ", ".join([always, *(text for text, wanted in variants.items() if wanted)])


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

"""Cross-entropy from hidden states, a chunk of positions at a time: the logits never exist all at once."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


def cross_entropy(hidden, head, targets, *, chunk: int, z_loss: float = 0.0):
    """Objective summed over tokens, and its parts.

    hidden [b, L, d], head [V, d], targets [b, L] int32 (negative: padding, ignored); chunk divides L or exceeds it.
    Returns (sum of nll + z_loss * log(Z)^2, {"nll", "z", "tokens"} summed), float32, nats. Only the first has a
    gradient.
    """
    return _objective(hidden, head, targets, min(chunk, hidden.shape[1]), z_loss)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _objective(hidden, head, targets, chunk, z_loss):
    def body(total, xs):
        _, _, sums = _logits(*xs, head)
        return jax.tree.map(jnp.add, total, sums), None

    sums = _over_chunks(body, _zeros(), hidden, targets, chunk)[0]
    return sums["nll"] + z_loss * sums["z"], sums


def _logits(hidden, targets, head):
    """Logits [b, l, V] and log Z [b, l] of one chunk, float32, and the sums over its tokens."""
    logits = jnp.einsum("bld,vd->blv", hidden, head, preferred_element_type=jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    mask = targets >= 0
    # A masked sum, not a gather: it fuses, and stays local where the vocabulary is sharded.
    target_logit = jnp.sum(jnp.where(_is_target(logits, targets), logits, 0), axis=-1)
    sums = {
        "nll": jnp.sum(jnp.where(mask, log_z - target_logit, 0)),
        "z": jnp.sum(jnp.where(mask, log_z**2, 0)),
        "tokens": jnp.sum(mask, dtype=jnp.float32),
    }
    return logits, log_z, sums


def _is_target(logits, targets):
    return lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]


def _forward(hidden, head, targets, chunk, z_loss):
    """The gradient is made here, where the logits are: the backward pass only scales it."""

    def body(carry, xs):
        total, d_head = carry
        hidden, targets = xs
        logits, log_z, sums = _logits(hidden, targets, head)
        weight = jnp.where(targets >= 0, 1 + 2 * z_loss * log_z, 0)[..., None]
        d_logits = jnp.exp(logits - log_z[..., None]) * weight
        d_logits = (d_logits - _is_target(logits, targets)).astype(hidden.dtype)
        d_hidden = jnp.einsum("blv,vd->bld", d_logits, head)
        d_head += jnp.einsum("blv,bld->vd", d_logits, hidden, preferred_element_type=jnp.float32)
        return (jax.tree.map(jnp.add, total, sums), d_head), d_hidden

    carry = (_zeros(), jnp.zeros(head.shape, jnp.float32))
    (sums, d_head), d_hidden = _over_chunks(body, carry, hidden, targets, chunk)
    return (sums["nll"] + z_loss * sums["z"], sums), (d_hidden, d_head.astype(head.dtype))


def _backward(chunk, z_loss, gradients, cotangent):
    d_hidden, d_head = gradients
    scale = cotangent[0]
    return (d_hidden * scale).astype(d_hidden.dtype), (d_head * scale).astype(d_head.dtype), None


_objective.defvjp(_forward, _backward)


def _zeros():
    return {name: jnp.zeros((), jnp.float32) for name in ("nll", "z", "tokens")}


def _over_chunks(body, carry, hidden, targets, chunk):
    """Scans body over [b, chunk] pieces along the positions; without a loop where there is one piece only."""
    b, length, d = hidden.shape
    if chunk == length:
        return body(carry, (hidden, targets))
    pieces = length // chunk
    xs = (
        hidden.reshape(b, pieces, chunk, d).swapaxes(0, 1),
        targets.reshape(b, pieces, chunk).swapaxes(0, 1),
    )
    carry, ys = lax.scan(body, carry, xs)
    return carry, None if ys is None else ys.swapaxes(0, 1).reshape(b, length, d)


def objective(model: nn.Module, chunk: int) -> Callable:
    """loss_fn(params, tokens [b, L+1]) -> (objective summed over tokens, sums): next-token prediction, and of
    experts the mean load-balancing loss of the layers. Negative ids are padding: never a target, and the embedding of
    id 0 as an input."""

    def loss_fn(params, tokens):
        inputs, targets = jnp.maximum(tokens[:, :-1], 0), tokens[:, 1:]
        (hidden, head), sown = model.apply(
            {"params": params}, inputs, targets >= 0, method="features", mutable=["losses"]
        )
        total, sums = cross_entropy(hidden, head, targets, chunk=chunk, z_loss=model.c.z_loss)
        if sown:  # by experts
            sums["balance"] = sums["tokens"] * jnp.mean(jnp.concatenate(jax.tree.leaves(sown)))
            total += model.c.balance_loss * sums["balance"]
        return total, sums

    return loss_fn

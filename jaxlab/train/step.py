"""The compiled training step: gradients summed over micro-batches, one optimiser update, mapped over replicas."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxlab.optim.noise_scale import pair
from jaxlab.train.state import State


def inner_steps(
    loss_fn: Callable, optimiser, *, spmd_axis_name: str | None = None, one_by_one: bool = False
) -> Callable:
    """steps(state, batches, hypers, counts) -> (state, metrics): optimiser steps on every replica.

    loss_fn(params, tokens [b, L+1]) -> (objective summed over tokens, sums with at least "nll" and "tokens").
    batches [n, M, k, b, L+1] int32: n steps, M replicas, k micro-batches of b sequences.
    hypers {"lr", "weight_decay"}: float32 [n]; weights shrink by the latter. counts, int32 [2], traced: how many of the
    n steps are taken, and how many of the k micro-batches there are: a remainder and a smaller batch run the same
    program.
    metrics: float32 [n, M] each; entries of steps not taken are zero.
    With micro-batches they hold unbiased "signal" and "noise" of the gradient before clipping, whose averages' ratio is
    the noise scale in tokens (optim.noise_scale).
    one_by_one: the gradients of one replica after another, in a loop, instead of all at once: on one CPU 8 replicas
    then cost 5 to 10 % less.

    No replica ever waits for another: the program contains no communication across the replica axis.
    """
    each = partial(jax.vmap, spmd_axis_name=spmd_axis_name)

    def gradients(params, batch, k):
        if one_by_one:
            return lax.map(lambda replica: gradient_sums(loss_fn, *replica, k), (params, batch))
        return each(partial(gradient_sums, loss_fn), in_axes=(0, 0, None))(params, batch, k)

    def update(params, opt_state, grads, sums, hypers):
        tokens = jnp.maximum(sums["tokens"], 1)  # a batch of padding alone has no gradient, not NaN
        grads = jax.tree.map(lambda g: g / tokens, grads)
        rates = {"lr": hypers["lr"], "decay": hypers["weight_decay"]}
        updates, opt_state = optimiser.update(grads, opt_state, params, **rates)
        metrics = {
            "loss": sums["nll"] / tokens,
            **{name: sums[name] / tokens for name in ("z", "balance") if name in sums},
            "grad_norm": optax.tree.norm(grads),
        }
        if "square" in sums:
            metrics |= _signal_and_noise(sums, metrics["grad_norm"], tokens)
        return optax.apply_updates(params, updates), opt_state, metrics

    def one(state, batch, hypers, k):
        grads, sums = gradients(state.params, batch, k)
        updated = each(update, in_axes=(0, 0, 0, 0, None))
        params, opt_state, metrics = updated(state.params, state.opt_state, grads, sums, hypers)
        return State(params, opt_state), metrics

    def steps(state, batches, hypers, counts):
        n, (count, k) = batches.shape[0], counts
        if n == 1:  # no loop in the program: on CPU it would cost a tenth
            state, metrics = one(state, batches[0], jax.tree.map(lambda h: h[0], hypers), k)
            return state, jax.tree.map(lambda m: m[None], metrics)

        def body(i, carry):
            state, metrics = carry
            state, new = one(state, batches[i], jax.tree.map(lambda h: h[i], hypers), k)
            return state, jax.tree.map(lambda all_, m: all_.at[i].set(m), metrics, new)

        shapes = jax.eval_shape(one, state, batches[0], jax.tree.map(lambda h: h[0], hypers), k)[1]
        return lax.fori_loop(0, count, body, (state, jax.tree.map(lambda m: jnp.zeros((n, *m.shape), m.dtype), shapes)))

    return steps


def _signal_and_noise(sums: dict, norm, tokens) -> dict:
    """Of the gradient of one step, from the sums of `gradient_sums`; 0 where only one micro-batch has tokens."""
    estimate = pair(sums["square"] / tokens, norm**2, tokens / jnp.maximum(sums["filled"], 2), tokens)
    return jax.tree.map(lambda x: jnp.where(sums["filled"] > 1, x, 0), estimate)._asdict()


def gradient_sums(loss_fn: Callable, params, batch, count):
    """Gradient of the summed objective and the sums, over the first `count` micro-batches of [k, b, L+1]: weighted by
    tokens by construction, since sums are divided by all tokens only once. float32 accumulators exist only if k > 1,
    and only within the step (`optim.batch_growth.accumulate` keeps them in the state of an optax optimiser instead,
    for pipelines that update it at every micro-batch).

    With k > 1 the sums have "square", the squared norms of the micro-batches' mean gradients weighted by their tokens,
    and "filled", how many have tokens at all."""
    gradient = partial(jax.grad(loss_fn, has_aux=True), params)
    if batch.shape[0] == 1:
        return gradient(batch[0])

    def measured(tokens):
        grads, sums = gradient(tokens)
        square = optax.tree.norm(grads, squared=True) / jnp.maximum(sums["tokens"], 1)
        return grads, sums | {"square": square, "filled": jnp.float32(sums["tokens"] > 0)}

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(measured, batch[0]))
    return lax.fori_loop(0, count, lambda i, total: jax.tree.map(jnp.add, total, measured(batch[i])), zeros)

"""Validation loss in nats per token and bits per byte; every token is scored once."""

import math
from collections.abc import Callable

import jax
import numpy as np


def evaluator(loss_fn: Callable) -> Callable:
    """batch(params [M, ...], tokens [b, L+1]) -> {"nll", "tokens"}: sums over tokens, averaged over replicas."""

    def batch(params, tokens):
        _, sums = jax.vmap(loss_fn, in_axes=(0, None))(params, tokens)
        return {name: sums[name].mean() for name in ("nll", "tokens")}

    return batch


def evaluate(batch: Callable, params, validation, put: Callable, *, sequences: int, batch_sequences: int) -> dict:
    """{"loss" nats/token, "bits_per_byte", "scored_tokens"} over the first `sequences` windows of a validation split.

    batch: a compiled `evaluator`. put(positions [b]) -> device array [b, L+1] of the windows at these positions; those
    past the end are padding. All batches are dispatched before the results are fetched.
    """
    sums = []
    for first in range(0, sequences, batch_sequences):
        positions = np.arange(first, first + batch_sequences)
        positions[positions >= sequences] = validation.num_sequences  # reads as padding
        sums.append(batch(params, put(positions)))
    total = {name: math.fsum(float(s[name]) for s in jax.device_get(sums)) for name in ("nll", "tokens")}
    loss = total["nll"] / total["tokens"]
    split = validation.split
    return {
        "loss": loss,
        "bits_per_byte": loss / math.log(2) * split.num_tokens / split.num_bytes,
        "scored_tokens": int(total["tokens"]),
    }

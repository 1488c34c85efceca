"""Held-out loss against float64: every token's log-probability from the full logits, the text's bytes counted apart."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from jaxlab.data.order import Validation
from jaxlab.evaluate.loss import evaluate, evaluator
from jaxlab.model.decoder import Decoder
from jaxlab.train.build import build
from tests import tiny


def held_out(run, params, count: int | None = None) -> dict:
    """What `Run.evaluate` gives, for the parameters of one model (no replica axis): the first `count` tokens of the
    split, all unless told, each predicted from those before it in its window of batch.context, the end-of-text id ahead
    of the first. Numbers are added in float64; the text has a byte for every id below 256."""
    split, context = run.store.split("validation"), run.config.batch.context
    ids = split.array.read().result().astype(np.int64)
    targets, before = ids[:count], np.concatenate(([256], ids[:-1]))[:count]
    logits = jax.jit(Decoder(FrozenConfigDict(run.program.model.c)).apply)
    nll = 0.0
    for first in range(0, len(targets), context):
        inputs, wanted = before[first : first + context], targets[first : first + context]
        padded = np.zeros((1, context), np.int32)
        padded[0, : len(inputs)] = inputs
        rows = np.asarray(logits({"params": params}, padded)[0, : len(inputs)], np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        nll -= (rows[np.arange(len(wanted)), wanted] - np.log(np.exp(rows).sum(axis=1))).sum()
    loss = nll / len(targets)
    return {
        "loss": loss,
        "bits_per_byte": loss * len(ids) / (math.log(2) * int((ids < 256).sum())),
        "scored_tokens": len(targets),
    }


def test_loss_and_bits_per_byte_are_those_of_the_full_logits(data):
    run = build(tiny.config(data))
    state = run.program.init(np.uint32(3))
    wanted = held_out(run, jax.tree.map(lambda x: x[0], state.params))
    assert wanted["scored_tokens"] % 64  # the last window is not full
    assert run.evaluate(state) == pytest.approx(wanted, rel=1e-6)


def test_tokens_to_score_are_rounded_up_to_whole_windows(data):
    """1,000 tokens at a context of 64 are 16 windows: 1,024 tokens."""
    run = build(tiny.config(data, evaluate__tokens=1_000))
    state = run.program.init(np.uint32(3))
    wanted = held_out(run, jax.tree.map(lambda x: x[0], state.params), 1_024)
    assert run.evaluate(state) == pytest.approx(wanted, rel=1e-6)


def test_of_replicas_the_mean(data):
    run = build(tiny.config(data, replicas=2, evaluate__tokens=1_000))
    state = run.program.init(np.uint32(3))
    scale = np.float32([1.0, 3.0])
    params = jax.tree.map(lambda x: x * scale.reshape(2, *(1,) * (x.ndim - 1)), state.params)
    each = [held_out(run, jax.tree.map(lambda x, i=i: x[i], params), 1_024) for i in (0, 1)]
    assert each[1]["loss"] - each[0]["loss"] > 0.01
    found = run.evaluate(
        state._replace(params=jax.device_put(params, jax.tree.map(lambda x: x.sharding, state.params)))
    )
    for name in ("loss", "bits_per_byte"):
        assert found[name] == pytest.approx((each[0][name] + each[1][name]) / 2, rel=1e-6)


def test_sums_by_hand(data):
    """Two replicas with losses of 2 and 4 nats a token; 5 sequences in batches of 2: the sixth is padding."""
    split = replace(build(tiny.config(data)).store.split("validation"), num_tokens=300, num_bytes=250)
    validation = Validation(split, 64)

    def loss_fn(scale, tokens):
        scored = (tokens[:, 1:] >= 0).sum()
        return None, {"nll": scale * scored, "tokens": scored.astype(np.float32)}

    seen = []

    def put(positions):
        seen.extend(positions.tolist())
        return validation.read(positions)

    found = evaluate(jax.jit(evaluator(loss_fn)), np.float32([2, 4]), validation, put, sequences=5, batch_sequences=2)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert found["scored_tokens"] == 300
    assert found["loss"] == 3.0
    assert found["bits_per_byte"] == pytest.approx(3 / 0.6931471805599453 * 300 / 250)

"""Replicas that meet, in the trainer: identities, everything at once, mid-round resumption, another number of them."""

import shutil
from contextlib import closing

import jax
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxlab.config import default
from jaxlab.interop.workdir import go_on_from, newest_params
from jaxlab.optim import codec
from jaxlab.optim.diloco import agreement
from jaxlab.optim.fragments import Event
from jaxlab.optim.inner import matrices
from jaxlab.train import loop
from jaxlab.train.build import build, hypers
from jaxlab.train.checkpoint import Checkpoints
from jaxlab.train.program import initial_params
from jaxlab.train.session import starting_state
from jaxlab.train.state import Clock
from tests import tiny
from tests.train.steps import losses_and_end

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figure")]
QUIET = Console(quiet=True)
BASE = {"compute__layers": "scan", "log__tensorboard": False, "tokens": 8_192, "evaluate__every_tokens": 4_096}
# Everything that a run can be made of at once; checkpoints fall between meetings, evaluations between calls of 3 steps.
EVERYTHING = {
    "replicas": 2, "diloco__sync_every": 5, "diloco__fragments": 2, "diloco__fragment_order": "balanced",
    "diloco__overlap": 2, "diloco__mix": 0.5, "diloco__codec": "e3m0", "diloco__average": "radial_directional",
    "quant__recipe": "capybara", "quant__cast": "rounding=stochastic",
    "quant__stages": "0:e2m1,block=16/4000:e4m3,block=16", "spectra__at": "every:2048", "spectra__taps": "pre+post",
    "tokens": 12_288, "batch__growth": "0:512 4000:1024", "batch__lr_rule": "sqrt", "batch__micro_tokens": 128,
    "compute__steps_per_call": 3, "optim__weight_decay": 0.05,
    "schedule__name": "wsd", "schedule__decay_tokens": 2_048, "model__ffn": "swiglu", "model__norm": "rms",
    "model__num_kv_heads": 1, "model__tied": False, "checkpoint__every_tokens": 1_024, "checkpoint__keep": 9,
}  # fmt: skip
EAGER = {"replicas": 2, "diloco__sync_every": 5, "diloco__eager": True}
EAGER |= {"checkpoint__every_tokens": 1_536, "checkpoint__keep": 9}


def steps(run):
    """(losses of all steps of a run, its last state), without files."""
    losses, state, _ = losses_and_end(run)
    return losses.mean(axis=1), state


def a_run(data, **changes):
    return build(tiny.config(data, **BASE | changes))


@pytest.fixture(scope="module")
def apart(data):
    """Two replicas that never meet."""
    return steps(a_run(data, replicas=2))


def test_one_replica_whose_outer_step_takes_it_over_is_data_parallel(data):
    """theta - (theta - theta_m) is theta_m to a rounding of float32; AdamW divides by the root of small squares, which
    makes of such roundings 1e-5 nats within 16 steps."""
    plain, state = steps(a_run(data))
    taken, met = steps(a_run(data, diloco__sync_every=5, diloco__outer_lr=1.0, diloco__outer_momentum=0.0))
    np.testing.assert_allclose(taken, plain, atol=1e-5)
    nesterov, _ = steps(a_run(data, diloco__sync_every=5))
    assert np.abs(nesterov - plain)[5:].max() > 1e-3
    run = a_run(data, diloco__sync_every=5)
    assert run.evaluate(met)["loss"] == pytest.approx(a_run(data).evaluate(state)["loss"], abs=1e-5)


def test_it_is_the_algorithm_written_out_with_optax(data):
    """Two replicas, one after another, and SGD with Nesterov momentum of optax on the mean of old minus new. The same
    sums in another order: 1e-5 nats, as above."""
    run = a_run(data, replicas=2, diloco__sync_every=4, optim__weight_decay=0.01)
    theta = jax.jit(initial_params, static_argnums=0)(run.program.model, np.uint32(0))
    at = hypers(run.config, 512)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-8))
    outer = optax.sgd(0.6, momentum=0.9, nesterov=True)
    replicas, inner, momentum, wanted = [theta] * 2, [jax.jit(adam.init)(theta)] * 2, outer.init(theta), []

    @jax.jit
    def step(params, state, tokens, lr, weight_decay):
        grads, sums = jax.grad(run.program.loss_fn, has_aux=True)(params, tokens)
        updates, state = adam.update(jax.tree.map(lambda g: g / sums["tokens"], grads), state)
        new = jax.tree.map(lambda p, u, d: p - lr * u - weight_decay * d * p, params, updates, matrices(params))
        return new, state, sums["nll"] / sums["tokens"]

    @jax.jit
    def outer_step(theta, momentum, a, b):
        updates, momentum = outer.update(jax.tree.map(lambda t, a, b: t - (a + b) / 2, theta, a, b), momentum)
        return optax.apply_updates(theta, updates), momentum

    for block in run.blocks(Clock()):
        tokens, losses = run.arrays(block)[0][0, :, 0], [0, 0]
        for m in range(2):
            hyper = at(block.start.tokens + 256, 512)
            replicas[m], inner[m], losses[m] = step(replicas[m], inner[m], tokens[m], **hyper)
        wanted.append(np.mean(losses))
        if block.end.steps % 4 == 0:
            theta, momentum = outer_step(theta, momentum, *replicas)
            replicas = [theta] * 2
    found, _ = steps(run)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_replicas_that_keep_all_of_themselves_are_apart(data, apart):
    losses, state = steps(a_run(data, replicas=2, diloco__sync_every=4, diloco__mix=1.0))
    np.testing.assert_array_equal(losses, apart[0])
    jax.tree.map(np.testing.assert_array_equal, state.params, apart[1].params)


def test_replicas_are_what_they_have_in_common_after_they_met_and_only_then(data):
    """And evaluation is on that: between meetings the loss of the run's parameters does not move."""
    run = a_run(data, replicas=2, diloco__sync_every=4, evaluate__tokens=640)
    seen = []
    for state, done in loop.trained(run, run.program.init(np.uint32(0)), Clock()):
        theta = run.program.params(state)
        pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(theta), strict=True)
        equal = [np.array_equal(p, np.broadcast_to(t, p.shape)) for p, t in pairs]
        assert all(equal) if done.block.end.steps % 4 == 0 else not any(equal)
        assert ("delta_norm" in done.at_end) == (done.block.end.steps % 4 == 0)
        seen.append(run.evaluate(state)["loss"])
    assert len(set(seen)) == 5  # the start, and four meetings


def test_the_last_part_of_a_round_counts(data):
    """16 steps in rounds of 10: the second meeting is after 6, and the header says so."""
    run = a_run(data, replicas=2, diloco__sync_every=10)
    due = {block.end.steps: block.events for block in run.blocks(Clock())}
    sync = (Event("sync", 0),)
    assert {step: events for step, events in due.items() if events} == {10: sync, 16: sync}
    assert "the last round has 6 steps" in run.program.outer_loop.describe(16, 0.6)
    assert "last round" not in run.program.outer_loop.describe(20, 0.6)


@pytest.fixture(scope="module", params=[EVERYTHING, EAGER], ids=["everything", "eager"])
def trained(request, data, tmp_path_factory):
    run = a_run(data, **request.param)
    workdir = tmp_path_factory.mktemp("trained")
    loop.train(run, workdir, QUIET)
    return run, workdir


def back_to(workdir, folder, tokens):
    """A copy of a workdir as it was when its checkpoint at `tokens` had just been written."""
    shutil.copytree(workdir, folder)
    (folder / "result.json").unlink()
    for later in tiny.saved(folder):
        if later > tokens:
            shutil.rmtree(folder / "checkpoints" / str(later))
    return folder


def test_resumed_in_mid_round_it_is_bit_for_bit_the_same(trained, tmp_path):
    """From every checkpoint, with outer gradients under way or not: parameters, momentum, rows."""
    run, workdir = trained
    step = {row["tokens"]: row["steps"] for row in tiny.rows(workdir) if row["kind"] == "train"}
    some = [tokens for tokens in tiny.saved(workdir)[:-1] if step[tokens] % 5][1::2]
    assert len(some) >= 2
    for tokens in some:
        again = back_to(workdir, tmp_path / str(tokens), tokens)
        loop.train(run, again, QUIET)
        assert tiny.fingerprint(again) == tiny.fingerprint(workdir)
        assert tiny.rows(again) == tiny.rows(workdir)
        assert files(again / "spectra") == files(workdir / "spectra")


def files(folder):
    """Their contents by name."""
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def test_rows_tell_what_was_sent(trained):
    run, workdir = trained
    rows = [row for row in tiny.rows(workdir) if "sent_bytes" in row]
    assert [row["steps"] for row in rows] == (
        [5, 7, 10, 12, 15, 16] if run.config.diloco.fragments > 1 else [5, 10, 15, 16]
    )
    sent = [row for row in rows if row["sent_bytes"]]
    assert all(row["delta_norm"] > 0 for row in sent)
    assert all(-1 <= row["cosine"] <= 1 for row in sent) if run.config.diloco.eager else "cosine" not in sent[0]
    assert sent[-1]["sent_bytes"] == codec.sent_bytes(newest_params(run, workdir), run.config.diloco.codec)


def test_it_goes_on_with_another_number_of_replicas(data, tmp_path):
    """From the global parameters, which the first evaluation shows, with the mean of the optimiser states; and back."""
    changes = {"diloco__sync_every": 6, "checkpoint__every_tokens": 4_096, "checkpoint__keep": 3}
    run = a_run(data, replicas=2, **changes)
    loop.train(run, tmp_path / "two", QUIET)
    again = back_to(tmp_path / "two", tmp_path / "four", 4_096)  # step 8
    four = a_run(data, replicas=4, **changes)
    with (tmp_path / "out.txt").open("w") as out:
        result = loop.train(four, again, Console(file=out, width=150))
    assert "saved with 2 replicas: 4 go on from the global parameters" in (tmp_path / "out.txt").read_text()
    assert result["steps"] == 16
    rows = [row for row in tiny.rows(again) if row["kind"] == "train"]
    assert [row["steps"] for row in rows] == list(range(1, 17))
    with closing(Checkpoints(back_to(tmp_path / "two", tmp_path / "again", 4_096) / "checkpoints", keep=3)) as saved:
        two, _ = saved.restore(run.program.abstract_state(), print)
        found, _ = starting_state(four, saved.restore(four.program.abstract_state(), print), print)
    theta = run.program.params(two)
    for kept, new in zip(jax.tree.leaves(theta), jax.tree.leaves(found.params), strict=True):
        np.testing.assert_array_equal(new, np.broadcast_to(kept, new.shape))
    for old, new in zip(jax.tree.leaves(two.opt_state), jax.tree.leaves(found.opt_state), strict=True):
        wanted = np.mean(np.float64(old), axis=0)
        np.testing.assert_allclose(new, np.broadcast_to(wanted, new.shape), rtol=1e-6, atol=1e-12)


def test_an_ordinary_run_starts_from_the_global_parameters(trained, tmp_path):
    run, workdir = trained
    config = run.config.copy_and_resolve_references()
    config.replicas, config.diloco = 1, default().diloco
    ordinary = build(config)
    for _ in range(2):  # the second time nothing is left to do
        go_on_from(ordinary, tmp_path / "new", str(workdir))
    with closing(Checkpoints(tmp_path / "new" / "checkpoints", keep=1)) as saved:
        state, clock = starting_state(ordinary, saved.restore(ordinary.program.abstract_state(), print), print)
    assert clock == Clock()
    last = [row["loss"] for row in tiny.rows(workdir) if row["kind"] == "eval"][-1]
    assert ordinary.evaluate(state)["loss"] == pytest.approx(last, abs=1e-5)  # one replica or two: other sums


def test_with_eager_updates_the_parameters_are_the_mean_of_replicas_that_differ(data):
    run, draw = a_run(data, **EAGER), np.random.default_rng(0)
    state = run.program.init(np.uint32(0))
    (fragment,) = state.outer
    apart = jax.tree.map(lambda p: draw.normal(size=p.shape).astype(np.float32), fragment.outer.params)
    state = state._replace(outer=(fragment._replace(outer=fragment.outer._replace(params=apart)),))
    found = jax.tree.leaves(run.program.params(state))
    assert len(found) == len(jax.tree.leaves(apart))
    for one, of_each in zip(found, jax.tree.leaves(apart), strict=True):
        assert len(of_each) == 2
        np.testing.assert_allclose(one[0], (np.float64(of_each[0]) + of_each[1]) / 2, rtol=1e-6, atol=1e-6)


def test_agreement_is_the_mean_of_all_pairs():
    deltas = {"a": np.random.default_rng(0).normal(size=(3, 4, 5)), "b": np.random.default_rng(1).normal(size=(3, 7))}
    flat = np.concatenate([d.reshape(3, -1) for d in deltas.values()], axis=1)
    products = flat @ flat.T
    found = agreement(jax.tree.map(np.float32, deltas), jax.tree.map(lambda d: np.float32((d.sum(0) - d) / 3), deltas))
    np.testing.assert_allclose(found["delta_norm"], np.sqrt(np.trace(products) / 3), rtol=1e-6)
    pairs = (products.sum() - np.trace(products)) / 6
    np.testing.assert_allclose(found["cosine"], pairs / (np.trace(products) / 3), rtol=1e-4)
    same = agreement({"a": np.ones((4, 3), np.float32)}, {"a": np.full((4, 3), 0.75, np.float32)})
    np.testing.assert_allclose(same["cosine"], 1, rtol=1e-6)
    assert set(agreement({"a": np.ones((1, 3), np.float32)}, {"a": np.zeros((1, 3), np.float32)})) == {"delta_norm"}

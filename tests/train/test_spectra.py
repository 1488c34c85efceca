"""Spectra measured during training: the numbers against numpy, and a run that measures is the run that does not."""

import csv
import signal
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import jax
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import FrozenConfigDict
from rich.console import Console

from jaxlab import parallel
from jaxlab.config import InputError, check
from jaxlab.model.decoder import Decoder
from jaxlab.model.feedforward import FeedForward
from jaxlab.optim.schedules import Times, times
from jaxlab.spectral.collapse import Watch, collapsed
from jaxlab.train import loop
from jaxlab.train.build import build
from jaxlab.train.plan import Batch, blocks
from jaxlab.train.session import Session
from jaxlab.train.spectra import prober
from jaxlab.train.state import Clock
from tests import tiny

pytestmark = pytest.mark.slow

pytestmark = pytest.mark.usefixtures("no_figure")
QUIET = Console(quiet=True)
SHORT = {
    "compute__layers": "scan", "log__tensorboard": False, "tokens": 8_300, "evaluate__every_tokens": 0,
    "checkpoint__every_tokens": 2_048, "replicas": 2, "diloco__sync_every": 5, "model__ffn": "relu",
}  # fmt: skip
MEASURED = {"spectra__at": "log:5", "spectra__tokens": 1_300}  # 21 sequences: batches of 4, the last partly padding


# --- the numbers ---


@pytest.fixture(scope="module", params=["scan", "unroll"])
def probed(request, data):
    """(values, eigenvalues, what entered each FFN, its parameters): three gated layers of two widths, on two batches
    the second of which is half padding."""
    changes = {"ffn": "swiglu", "num_layers": 3, "layer_d_ff": "24,40,40", "vocab_size": 60}
    c = FrozenConfigDict(tiny.config(data).model.to_dict() | changes)
    params = jax.jit(Decoder(c).init)(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    tokens = np.random.default_rng(0).integers(0, 60, (2, 4, 33))
    tokens[1, 2:] = -1

    @jax.jit
    def inputs(params, tokens):
        entered = []

        def record(call, args, kwargs, context):
            if isinstance(context.module, FeedForward) and args[0].shape[:2] == tokens.shape:  # not of one token, as
                entered.append(args[0])  # flax asks for shapes
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            Decoder(c).apply({"params": params}, tokens, method="features")
        return entered

    entered = [np.float64(x).reshape(-1, c.d_model) for x in inputs(params, tokens[tokens[:, :, 0] >= 0][:, :-1])]
    model = Decoder(c, scan=request.param == "scan")
    probe = prober(model, parallel.mesh(1, 1, 1), "data")
    probe = jax.jit(probe, static_argnums=2)
    values, found = jax.device_get(probe(jax.tree.map(lambda p: p[None], params), tokens, "pre+post"))
    stacks = [params["blocks"], params["blocks_1"], params["blocks_1"]]
    layers = [jax.tree.map(lambda p, j=j: np.float64(p[j]), s["ffn"]) for s, j in zip(stacks, (0, 0, 1), strict=True)]
    return values, found, entered, layers


def test_spectra_are_those_of_the_activations(probed):
    """Against float64 numpy: what enters an FFN times its matrices, the covariance of all tokens but padding."""
    values, found, entered, layers = probed
    assert len(entered) == 3
    for i, (x, params) in enumerate(zip(entered, layers, strict=True)):
        gate, up = x @ params["gate"]["kernel"], x @ params["up"]["kernel"]
        for tap, activations in {"pre": gate, "post": gate / (1 + np.exp(-gate)) * up}.items():
            expected = np.linalg.eigvalsh(np.cov(activations.T))[::-1]
            # float32 activations of a float32 model: a few 1e-6 of the largest eigenvalue
            np.testing.assert_allclose(found[f"{tap}/{i}"], expected, atol=2e-5 * expected[0])
            assert values[f"{tap}/hard_rank/{i}"] == pytest.approx(expected.sum() ** 2 / (expected**2).sum(), rel=1e-4)
            assert values[f"{tap}/tokens_per_dimension/{i}"] == len(activations) / len(expected) == 192 / len(expected)


# --- when ---


def test_times_say_when():
    assert times("", 512, 8_192) == Times()
    assert times("every:500000", 512, 10**9) == Times(every=500_000)
    assert times("1e5 2e5 350000", 512, 10**6) == Times(points=(100_000, 200_000, 350_000))
    assert times("log:5", 512, 8_192).points == (512, 1_024, 2_048, 4_096, 8_192)
    assert times("log:1", 512, 8_192).points == (512,)
    assert times("3e3 1e3 1e3 9007199254740993", 512, 2**60).points == (1_000, 3_000, 2**53 + 1)
    assert times("log:10000", 512, 600).points == (*range(512, 601),)


@pytest.mark.parametrize(
    "at",
    [
        "lin:5",
        "log:",
        "log:0",
        "log:2 3",
        "every:-1",
        "every:1.5",
        "0",
        "1e5,2e5",
        "nan",
        " ",
        "1e999",
        "log:1e99999999",
    ],
)
def test_bad_times_are_refused(data, at):
    with pytest.raises(InputError, match=r"spectra\.at='.*': must be as log:50, every:500000, or tokens as in 1e5 2e5"):
        build(tiny.config(data, spectra__at=at))


@pytest.mark.parametrize("at", ["log:10001", "log:1000000000", " ".join(map(str, range(1, 10_002)))])
def test_too_many_times_are_refused(at):
    with pytest.raises(InputError, match=r"spectra\.at='.{,40}': has [\d,]+ times; must be at most 10,000"):
        times(at, 512, 10**14)


def test_other_bad_keys_are_refused(data):
    with pytest.raises(InputError, match=r"spectra\.at='1e4 2e4': 20,000 is past the end of the run, tokens=16,384"):
        build(tiny.config(data, spectra__at="1e4 2e4"))
    with pytest.raises(InputError, match=r"spectra\.taps='pre': must be one of post, pre\+post"):
        check(tiny.config(data, spectra__taps="pre"))
    with pytest.raises(InputError, match=r"spectra\.tokens=-1: must not be negative"):
        check(tiny.config(data, spectra__tokens=-1))


@pytest.mark.parametrize("at", [Times(every=700), Times(points=(1, 512, 513, 3_000)), Times(300, (1_000,))])
def test_calls_end_where_a_measurement_is_due(at):
    """By brute force over all tokens: a step after which one is due is the last of its call."""
    plan = {"total_tokens": 8_192, "batch_at": lambda _: Batch(512, 64), "hypers": lambda *_: {}}
    ends = {c.end.tokens for c in blocks(Clock(), **plan, most_steps=100, stops=(at.every,), changes=at.points)}
    moments = {*at.points, *(range(at.every, 8_193, at.every) if at.every else ())}
    due = {end for end in range(512, 8_193, 512) if moments & set(range(end - 511, end + 1))}
    assert due == {end for end in range(512, 8_193, 512) if at.due(end - 512, end)}
    assert ends == due | {8_192}


# --- in a run ---


@pytest.fixture(scope="module")
def run(data):
    return build(tiny.config(data, **SHORT, **MEASURED))


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("measured")
    loop.train(run, workdir, QUIET)
    return workdir


def kinds(rows, kind):
    return [row for row in rows if row["kind"] == kind]


def test_measured_at_these_tokens_and_no_others(finished):
    """After the steps that reach 512, 1,027, 2,061 and 4,136 tokens, and at the end: no step reaches 8,300."""
    rows = kinds(tiny.rows(finished), "spectra")
    assert [row["tokens"] for row in rows] == [512, 1_536, 2_560, 4_608, 8_192]
    assert all(row[f"post/tokens_per_dimension/{i}"] == 21 * 64 / 64 for row in rows for i in (0, 1))
    for row in rows:
        with np.load(finished / "spectra" / f"{row['tokens']}.npz") as file:
            found = dict(file)
        assert sorted(found) == ["post/0", "post/1"]
        for name, values in found.items():
            hard = np.float64(values).sum() ** 2 / (np.float64(values) ** 2).sum()
            assert row[name.replace("/", "/hard_rank/")] == pytest.approx(hard, rel=1e-5)


def test_training_is_bit_for_bit_that_without_spectra(run, finished, data, tmp_path):
    """And with the same program: nothing is compiled again, nor traced into it."""
    plain = build(tiny.config(data, **SHORT), compiled=run.program)
    assert plain.program is run.program
    loop.train(plain, tmp_path, QUIET)
    assert kinds(tiny.rows(tmp_path), "train") == kinds(tiny.rows(finished), "train")
    assert tiny.fingerprint(tmp_path) == tiny.fingerprint(finished)
    assert not (tmp_path / "spectra").exists()


def test_a_training_step_does_not_reach_the_tap(run, monkeypatch):
    def sow(*_):
        raise AssertionError("a training step measures")

    monkeypatch.setattr(FeedForward, "sow", sow)
    params = jax.eval_shape(lambda s: jax.tree.map(lambda p: p[0], s.params), run.program.abstract_state())
    tokens = jax.ShapeDtypeStruct((2, 65), np.int32)
    jax.eval_shape(jax.grad(run.program.loss_fn, has_aux=True), params, tokens)
    with pytest.raises(AssertionError, match="a training step measures"):
        jax.eval_shape(lambda p, t: run.program.model.apply({"params": p}, t, mutable=["spectra"]), params, tokens)


@pytest.mark.parametrize("event", ["after step 3", "after the measurement", "before the last one"])
def test_killed_and_resumed_it_measures_the_same(run, finished, tmp_path, monkeypatch, event):
    """Stopped after the third step; killed between the measurement at 2,560 tokens and the save that follows; killed
    when everything has been saved and the last measurement has not been taken."""

    class Killed(BaseException):
        pass

    measure_, log_previous_ = Session.measure, Session.log_previous

    def measure(self, callback, state, clock):
        if event == "before the last one" and clock.tokens == 8_192 and callback.kind == "spectra":
            raise Killed
        measure_(self, callback, state, clock)
        if event == "after the measurement" and clock.tokens == 2_560:
            raise Killed

    def log_previous(self, done):
        if event == "after step 3" and done.block.end.steps == 4:
            signal.raise_signal(signal.SIGTERM)
        log_previous_(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "measure", measure)
        patch.setattr(Session, "log_previous", log_previous)
        with suppress(Killed):
            assert loop.train(run, tmp_path, QUIET) is None
    assert not (tmp_path / "result.json").exists()
    loop.train(run, tmp_path, QUIET)
    assert tiny.rows(tmp_path) == tiny.rows(finished)
    ours, theirs = (
        {p.name: {k: v.tobytes() for k, v in np.load(p).items()} for p in (folder / "spectra").iterdir()}
        for folder in (tmp_path, finished)
    )
    assert ours == theirs


def test_spectra_may_be_asked_of_a_run_that_has_begun(run, finished, data):
    """They change nothing of what is trained."""
    other = build(tiny.config(data, **SHORT, spectra__at="every:1000"), compiled=run.program)
    assert loop.train(other, finished, QUIET) == tiny.result(finished)


def test_what_is_measured_are_the_global_parameters(run):
    """On the next tokens of the run's order, whole micro-batches of which are filled up with padding."""
    *_, (state, done) = islice(loop.trained(run, run.program.init(0), Clock()), 4)  # of a round's 5 steps
    clock, given = done.block.end, []
    program = replace(run.program, probe=lambda *arguments: given.append(arguments) or ({}, {}))
    replace(run, program=program).spectra(state, clock)
    (params, tokens, taps), common = given[0], state.outer[0].outer.params
    jax.tree.map(lambda p, theta: np.testing.assert_array_equal(p, theta[None]), params, common)
    assert (params["final_norm"]["scale"] != state.params["final_norm"]["scale"]).any(axis=1).all()  # nor of a replica
    expected = run.train.read(np.arange(2_048 // 64, 2_048 // 64 + 21))
    np.testing.assert_array_equal(tokens, np.append(expected, np.full((3, 65), -1), axis=0).reshape(6, 4, 65))
    assert taps == "post"


def test_a_layer_that_collapses_is_named_once(run):
    """Layer 1 is given one direction: all its rows are multiples, with relu all its activations are. Layer 0 not."""
    state = run.program.init(0)
    sound, _ = run.spectra(state, Clock())
    up = np.array(state.outer[0].outer.params["blocks"]["ffn"]["up"]["kernel"])
    up[1] = np.outer(up[1, :, 0], np.abs(up[1, 0]))
    params = jax.tree.map(lambda p: p, state.outer[0].outer.params)
    params["blocks"]["ffn"]["up"]["kernel"] = jax.numpy.asarray(up)
    broken = (state.outer[0]._replace(outer=state.outer[0].outer._replace(params=params)), *state.outer[1:])
    narrow, _ = run.spectra(state._replace(outer=broken), Clock())
    assert narrow["post/hard_rank/1"] == pytest.approx(1, abs=1e-3)
    assert collapsed(sound) == set()
    assert collapsed(narrow) == {1}
    at = [sound | {"tokens": 512}, *(narrow | {"tokens": n} for n in (1_024, 8_191, 8_192, 9_000))]
    at += [sound | {"tokens": 10_000}, narrow | {"tokens": 20_000}, narrow | {"tokens": 160_000}]
    watch = Watch()
    told = [watch(row, before)[1:] for row, before in zip(at, [{}, *at], strict=False)]
    figures = f"hard rank 1.00, concentration {narrow['post/concentration/1']:.3f}"
    assert told[:3] == [[], [], []]
    assert told[3] == [f"warning: layer 1 has collapsed since 1,024 tokens: {figures}"]
    assert told[4] == []
    assert told[5][0].startswith("layer 1 recovered: hard rank ")
    assert told[6:] == [[], [f"warning: layer 1 has collapsed since 20,000 tokens: {figures}"]]
    resumed = Watch()
    assert resumed(at[2], at[1])[1:] == []
    assert resumed(at[3], at[2])[1:] == told[3]


def test_sound_runs_of_every_kind_are_not_called_collapsed():
    """The 325 runs of the study of spectra: by the least sound layer of each measurement, layers that hold directions
    only while token frequencies are learnt are not named; by the loss, 264 of the runs are sound."""
    alarms = {True: [], False: []}
    with (tiny.ROOT / "results/spectral/laptop/results.csv").open() as file:
        for run in csv.DictReader(file):
            names = ("tokens", "least_hard_rank", "most_concentration")
            watch, before, named = Watch(), {}, []
            for tokens, hard, share in zip(*(map(float, run[f"over_{name}"].split()) for name in names), strict=True):
                row = {"tokens": int(tokens), "post/hard_rank/0": hard, "post/concentration/0": share}
                row |= {"post/soft_rank/0": hard, "post/tokens_per_dimension/0": 10.0}
                named += watch(row, before)[1:]
                before = row
            learnt = bool(run["loss"]) and float(run["loss"]) <= float(run["unigram"]) - 0.1
            alarms[learnt].append(any("warning" in line for line in named))
    assert (len(alarms[True]), len(alarms[False])) == (264, 61)
    assert np.mean(alarms[True]) < 0.04
    assert np.mean(alarms[False]) > 0.6


def test_a_sound_run_is_not_called_collapsed(data, tmp_path, capsys):
    """It does pass through hard ranks below 2 on its way."""
    changes = {"log__tensorboard": False, "spectra__at": "log:20", "checkpoint__every_tokens": 0}
    run = build(tiny.config(data, **changes))
    loop.train(run, tmp_path, Console())
    rows = kinds(tiny.rows(tmp_path), "spectra")
    assert min(row[f"post/hard_rank/{i}"] for row in rows for i in (0, 1)) < 2
    told = capsys.readouterr().out
    assert "hard rank" in told
    assert "collapsed" not in told


def test_what_counts_as_collapsed():
    """Few directions by either number; NaN, of no variance, is few."""
    figures = [(10, 0.9), (2, 0.9), (np.nan, 0.9), (10, 0.99), (10, np.nan), (2.1, 0.98)]
    row = {
        f"post/{name}/{i}": x[j] for i, x in enumerate(figures) for j, name in enumerate(("hard_rank", "concentration"))
    }
    assert collapsed(row) == {1, 2, 3, 4}

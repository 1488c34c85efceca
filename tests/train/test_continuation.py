"""Runs that go on have the bits of runs that were planned so."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxlab.config import InputError
from jaxlab.interop.workdir import continue_from, recorded_config
from jaxlab.train import continuation, loop
from jaxlab.train.build import build
from jaxlab.train.checkpoint import load
from tests import tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figure")]
QUIET = Console(quiet=True)
BASE = {
    "compute__layers": "scan", "log__tensorboard": False, "evaluate__tokens": 1_024, "checkpoint__every_tokens": 2_048,
    "checkpoint__keep": 9, "tokens": 8_192,
}  # fmt: skip
RUNS = {  # changes, tokens of the shorter run, where the longer one goes on
    "constant": ({"schedule__name": "constant"}, 4_096, 4_096),
    "constant, not a whole step": ({"schedule__name": "constant"}, 4_500, 4_096),
    "wsd": ({"schedule__name": "wsd", "schedule__decay_tokens": 2_048}, 6_144, 4_096),
    "an outer step at the end": (
        {"schedule__name": "constant", "replicas": 2, "diloco__sync_every": 3, "diloco__fragments": 2}, 4_096, 2_048
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def program():
    return {}


def trained(data, workdir, program, **changes):
    """A run of these changes, whose program is that of an earlier one if it serves."""
    run = build(tiny.config(data, **BASE | changes), compiled=program.get("last"))
    program["last"] = run.program
    return loop.train(run, workdir, QUIET)


@pytest.mark.parametrize(("changes", "shorter", "at"), RUNS.values(), ids=RUNS)
def test_more_tokens_are_as_if_they_had_been_planned(data, tmp_path, program, changes, shorter, at):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = trained(data, whole, program, **changes)
    first = trained(data, parts, program, **changes, tokens=shorter)
    rows = tiny.rows(parts)
    assert trained(data, parts, program, **changes) | {"seconds": 0} == result | {"seconds": 0}
    assert tiny.fingerprint(parts) == tiny.fingerprint(whole)
    training = [[row for row in tiny.rows(folder) if row["kind"] == "train"] for folder in (parts, whole)]
    assert training[0] == training[1]
    assert json.loads((parts / "config.json").read_text())["config"]["tokens"] == BASE["tokens"]
    # What the shorter run ended with is still there.
    assert tiny.result(parts)["loss"] == result["loss"]
    assert json.loads((parts / f"result-{shorter}.json").read_text())["loss"] == first["loss"]
    copied = (parts / f"metrics-{shorter}.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in copied] == [row["tokens"] for row in rows]
    ended = {int(path.name.removeprefix("ended-")) for path in (parts / "checkpoints").glob("ended-*")}
    assert ended == {tokens for tokens in (6_144, 4_096) if at < tokens <= shorter // 512 * 512}


def test_cut_off_while_it_is_made_longer_it_goes_on(data, tmp_path, program, monkeypatch):
    """Before config.json says so: the same command again does what is left, and what was put aside stays."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trained(data, whole, program, schedule__name="wsd", schedule__decay_tokens=2_048)
    first = trained(data, parts, program, schedule__name="wsd", schedule__decay_tokens=2_048, tokens=6_144)
    with monkeypatch.context() as patch:
        patch.setattr(continuation, "write_record", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(data, parts, program, schedule__name="wsd", schedule__decay_tokens=2_048)
    trained(data, parts, program, schedule__name="wsd", schedule__decay_tokens=2_048)
    assert tiny.fingerprint(parts) == tiny.fingerprint(whole)
    assert json.loads((parts / "result-6144.json").read_text())["loss"] == first["loss"]
    assert (parts / "checkpoints" / "ended-6144").is_dir()


def test_on_other_data_nothing_is_put_aside(data, tmp_path, program, monkeypatch):
    trained(data, tmp_path, program, schedule__name="constant", tokens=4_096)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    run = build(tiny.config(data, **BASE | {"schedule__name": "constant"}), compiled=program["last"])
    monkeypatch.setitem(run.store.meta, "corpus_sha256", "another")
    with pytest.raises(InputError, match=r"holds a run that differs in tokens: 4096 -> 8192; corpus_sha256"):
        loop.train(run, tmp_path, QUIET)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_schedule_that_hangs_on_the_tokens_cannot_be_longer(data, tmp_path, program):
    """The cosine begins after the warm-up, at 2,048 tokens, and the checkpoint there is gone."""
    trained(data, tmp_path, program, tokens=4_096, checkpoint__keep=1)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    wrong = "tokens=8192: the run in .* has 4096, a longer one takes other steps from 2,048 tokens on, .* only at 4096"
    with pytest.raises(InputError, match=wrong):
        trained(data, tmp_path, program, checkpoint__keep=1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_fewer_tokens_are_another_run(data, tmp_path, program):
    trained(data, tmp_path, program, schedule__name="constant")
    with pytest.raises(InputError, match="differs in tokens: 8192 -> 4096"):
        trained(data, tmp_path, program, schedule__name="constant", tokens=4_096)


def test_a_decay_from_a_stable_checkpoint_is_the_run_planned_with_it(data, tmp_path, program):
    """A constant rate to 6,144 tokens, then from its checkpoint at 4,096 the last 4,096 tokens of WSD."""
    wsd = {"schedule__name": "wsd", "schedule__decay_tokens": 4_096}
    trained(data, tmp_path / "planned", program, **wsd)
    trained(data, tmp_path / "stable", program, schedule__name="constant", tokens=6_144)
    run = build(tiny.config(data, **BASE | wsd), compiled=program["last"])
    for _ in range(2):  # the second finds it begun
        continue_from(run, tmp_path / "decay", tmp_path / "stable", 4_096)
    loop.train(run, tmp_path / "decay", QUIET)
    assert tiny.fingerprint(tmp_path / "decay") == tiny.fingerprint(tmp_path / "planned")
    with pytest.raises(InputError, match=r"has no checkpoint at 4000 tokens, but 2048, 4096, 6144"):
        continue_from(run, tmp_path / "other", tmp_path / "stable", 4_000)
    short = build(tiny.config(data, **BASE | wsd | {"tokens": 6_144}), compiled=program["last"])
    with pytest.raises(InputError, match="tokens=6144: must be more than the 6144 of the checkpoint"):
        continue_from(short, tmp_path / "other", tmp_path / "stable")


@pytest.fixture(scope="module")
def sources(data, tmp_path_factory, program):
    folder = tmp_path_factory.mktemp("sources")
    replicas = {"replicas": 2, "diloco__sync_every": 3, "schedule__name": "constant"}
    trained(data, folder / "one", program, schedule__name="constant", tokens=4_096)
    trained(data, folder / "two", program, **replicas, tokens=4_608)  # ends with an outer step
    trained(data, folder / "apart", program, replicas=2, schedule__name="constant", tokens=4_096)
    return folder


@pytest.mark.parametrize(
    ("source", "changes"),
    [("one", {"replicas": 2, "diloco__sync_every": 3}), ("two", {}), ("two", {"replicas": 4, "diloco__sync_every": 3})],
    ids=["replicas from one", "one from replicas", "more replicas"],
)
def test_with_other_replicas_all_go_on_from_the_global_parameters(data, tmp_path, program, sources, source, changes):
    run = build(tiny.config(data, **BASE | {"schedule__name": "constant"} | changes), compiled=program["last"])
    continue_from(run, tmp_path, sources / source)
    state, clock = load(tmp_path, run.program.abstract_state())
    before = build(recorded_config(sources / source))
    old, at = load(sources / source, before.program.abstract_state())
    assert clock == at
    common = jax.tree.map(lambda x: np.array(x[0]), before.program.params(old))
    for replica in range(run.config.replicas):
        jax.tree.map(np.testing.assert_array_equal, common, jax.tree.map(lambda x: x[replica], state.params))  # noqa: B023
    if run.program.outer_loop:
        jax.tree.map(np.testing.assert_array_equal, common, jax.tree.map(lambda x: x[0], run.program.params(state)))
    wanted = jax.tree.map(lambda x: np.asarray(x, np.float64).mean(0), old.opt_state)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), jax.tree.map(lambda x: x[-1], state.opt_state), wanted)
    assert np.isfinite(loop.train(run, tmp_path, QUIET)["loss"])


def test_given_functions_must_be_given_again(data, tmp_path, program, sources):
    """The source was trained without a loss of the user's own."""
    config = tiny.config(data, **BASE | {"schedule__name": "constant"})
    run = build(config, loss_fn=build(config, compiled=program["last"]).program.loss_fn)
    with pytest.raises(InputError, match=r"functions given to build: loss_fn; must be those of the run in .*, none"):
        continue_from(run, tmp_path / "run", sources / "one")


@pytest.mark.parametrize(
    ("source", "changes", "why"),
    [
        (
            "one",
            {"model__d_ff": 32},
            "is another model than the config's, which it would be with --config.model.d_ff=64",
        ),
        ("two", {"replicas": 2, "diloco__sync_every": 3, "diloco__eager": True}, "diloco: fragments, overlap, mix and"),
        ("apart", {}, "replicas=1: must be 2, as many models as in"),
        ("nowhere", {}, "nowhere: holds no run"),
    ],
)
def test_what_does_not_fit_is_refused(data, tmp_path, program, sources, source, changes, why):
    run = build(tiny.config(data, **BASE | {"schedule__name": "constant"} | changes), compiled=program["last"])
    with pytest.raises(InputError, match=why):
        continue_from(run, tmp_path / "run", sources / source)
    assert not (tmp_path / "run").exists()

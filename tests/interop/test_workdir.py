"""Out of a run, into the format of transformers, and into another run."""

import json
import re
import shutil
from contextlib import closing
from functools import partial

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxlab.config import InputError
from jaxlab.data.store import load_tokenizer
from jaxlab.files import write_record
from jaxlab.interop.hugging_face import export, load
from jaxlab.interop.workdir import go_on_from, newest_params, recorded_config, start_from
from jaxlab.train import claim, loop
from jaxlab.train.build import build
from jaxlab.train.checkpoint import Checkpoints
from jaxlab.train.log import read
from jaxlab.train.state import Clock
from tests import tiny
from tests.interop.conftest import LLAMA, SHORT, train

pytest.importorskip("safetensors", reason="needs the package safetensors")


@pytest.fixture(scope="module")
def folder(llama, workdir, tmp_path_factory):
    """The run, exported."""
    folder, run = tmp_path_factory.mktemp("exported"), build(llama)
    export(folder, newest_params(run, workdir), run.program.model.c, load_tokenizer(llama.data.store))
    return folder


def test_a_run_goes_on_from_imported_parameters(llama, workdir, folder, tmp_path):
    """With them and at the learning rate 0 it has the loss that they had at the end of their run."""
    still = llama.copy_and_resolve_references()
    still.schedule.peak_lr, still.tokens, still.schedule.warmup_tokens = 1e-30, 512, 0
    run = build(still)
    start_from(run, tmp_path, *load(folder), source=str(folder))
    assert tiny.saved(tmp_path) == [0]
    imported = newest_params(run, tmp_path)
    assert jax.tree.all(jax.tree.map(np.array_equal, imported, newest_params(build(llama), workdir)))
    result = train(still, tmp_path)
    rows = [row for row in read(workdir / "metrics.jsonl") if row["kind"] == "eval"]
    np.testing.assert_allclose(result["loss"], rows[-1]["loss"], rtol=1e-6)


def test_every_replica_starts_from_them(data, folder, tmp_path):
    config = tiny.config(data, **LLAMA | SHORT, replicas=2)
    run = build(config)
    model, params = load(folder)
    start_from(run, tmp_path, model, params, source=str(folder))
    with closing(Checkpoints(tmp_path / "checkpoints", keep=1)) as checkpoints:
        state, clock = checkpoints.restore(run.program.abstract_state(), print)
    assert clock == Clock(0, 0)
    for replica in range(2):
        found = jax.tree.map(lambda x, replica=replica: x[replica], state.params)
        assert jax.tree.all(jax.tree.map(np.array_equal, found, params))
    with pytest.raises(InputError, match="replicas=2: the checkpoint holds as many models; must be 1"):
        newest_params(run, tmp_path)


def test_the_config_is_in_the_workdir(llama, workdir, tmp_path):
    assert recorded_config(workdir) == llama
    with pytest.raises(InputError, match="holds no run"):
        recorded_config(tmp_path)


def test_another_model_is_refused_with_the_flags_that_it_takes(data, folder, tmp_path):
    run = build(tiny.config(data, **LLAMA | SHORT | {"model__d_ff": 96, "model__rope_theta": 1e6}))
    message = "with --config.model.rope_theta=10000.0 --config.model.d_ff=64"
    with pytest.raises(InputError, match=re.escape(message)):
        start_from(run, tmp_path, *load(folder), source=str(folder))
    assert not any(tmp_path.iterdir())


def test_a_context_of_rotary_positions_may_differ(data, folder, tmp_path):
    run = build(tiny.config(data, **LLAMA | SHORT | {"model__context": 64}))
    start_from(run, tmp_path, *load(folder), source=str(folder))
    assert tiny.saved(tmp_path) == [0]


def test_a_workdir_with_checkpoints_is_left_alone(llama, workdir, folder):
    before = tiny.saved(workdir)
    with pytest.raises(InputError, match="holds checkpoints already"):
        start_from(build(llama), workdir, *load(folder), source=str(folder))
    assert tiny.saved(workdir) == before


def test_a_config_other_than_the_runs_is_refused(data, workdir):
    run = build(tiny.config(data, **LLAMA | SHORT | {"model__rope_theta": 1e6}))
    with pytest.raises(InputError, match=re.escape("model.rope_theta: 10000.0 -> 1000000.0")):
        newest_params(run, workdir)


def test_no_checkpoint_and_a_damaged_one(llama, workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "copy")
    record = tmp_path / "copy" / "checkpoints" / "2048" / "record" / "metadata"
    record.write_text(re.sub(r'"fingerprint": ?\[\d+', '"fingerprint": [1', record.read_text()))
    with pytest.raises(InputError, match=r"checkpoint 2048 is damaged \(.*record/metadata: is damaged"):
        newest_params(build(llama), tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "checkpoints")
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        newest_params(build(llama), tmp_path / "copy")


@pytest.fixture
def fresh(llama):
    """Another run of the same model: a second seed, and one step."""
    config = llama.copy_and_resolve_references()
    config.seed, config.tokens, config.schedule.warmup_tokens, config.evaluate.every_tokens = 1, 512, 0, 0
    return build(config)


def cut_off(run, workdir, monkeypatch, begin):
    """What a kill in the first save of begin(run, workdir) leaves: Orbax's folder of a save that is under way."""

    class Killed(BaseException):
        pass

    def die(self, *_):
        self._manager._maybe_await_cleanup_tmp_directory()  # which would take away what is put there below
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", die)
        with pytest.raises(Killed):
            begin(run, workdir)
    leftover = workdir / "checkpoints" / "0.orbax-checkpoint-tmp"
    leftover.mkdir(parents=True)
    (leftover / "_CHECKPOINT_METADATA").write_text("{}")


def first_loss(workdir):
    return next(row["loss"] for row in read(workdir / "metrics.jsonl"))


@pytest.mark.parametrize("leftover", ["killed save", "empty folder", "file"])
def test_cut_off_at_the_start_it_starts_from_those_parameters_or_says_what_to_do(
    fresh, workdir, tmp_path, monkeypatch, leftover
):
    """As with --start_from."""
    begin = partial(go_on_from, source=workdir)
    begin(fresh, tmp_path / "whole")
    loop.train(fresh, tmp_path / "whole", Console(quiet=True))
    cut_off(fresh, tmp_path / "run", monkeypatch, begin)
    assert "params_from" not in json.loads((tmp_path / "run" / "config.json").read_text())
    if leftover != "killed save":
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "0.orbax-checkpoint-tmp")
        place = tmp_path / "run" / "checkpoints" / "0"
        place.mkdir() if leftover == "empty folder" else place.write_text("x")
    with pytest.raises(InputError, match=f"the parameters of {workdir}.* are not there yet: give the command again"):
        loop.train(fresh, tmp_path / "run", Console(quiet=True))
    with pytest.raises(InputError, match="are not there yet"):
        newest_params(fresh, tmp_path / "run")
    begin(fresh, tmp_path / "run")
    loop.train(fresh, tmp_path / "run", Console(quiet=True))
    assert tiny.rows(tmp_path / "run") == tiny.rows(tmp_path / "whole")
    assert tiny.fingerprint(tmp_path / "run") == tiny.fingerprint(tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["params_from"] == str(workdir)
    assert first_loss(tmp_path / "run") < np.log(257) - 0.4  # a model that knows nothing has log(257) at best


def test_a_claim_of_an_older_version_awaits_its_parameters_too(fresh, workdir, tmp_path):
    write_record(tmp_path / "config.json", claim.record(fresh) | {"params_from": str(workdir)})
    with pytest.raises(InputError, match="are not there yet"):
        loop.train(fresh, tmp_path, Console(quiet=True))
    go_on_from(fresh, tmp_path, workdir)
    assert tiny.saved(tmp_path) == [0]


def test_a_run_that_began_otherwise_is_refused(fresh, workdir, tmp_path):
    go_on_from(fresh, tmp_path / "begun", workdir)
    go_on_from(fresh, tmp_path / "begun", str(workdir) + "/")
    with pytest.raises(InputError, match=f"starts from {workdir}, not /elsewhere"):
        go_on_from(fresh, tmp_path / "begun", "/elsewhere")
    loop.train(fresh, tmp_path / "random", Console(quiet=True))
    assert first_loss(tmp_path / "random") > np.log(257) - 0.1
    with pytest.raises(InputError, match=f"starts from random parameters, not {workdir}"):
        go_on_from(fresh, tmp_path / "random", workdir)


def test_a_disk_without_room_leaves_nothing_behind(fresh, workdir, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000))
    with pytest.raises(InputError, match="MB free, and the checkpoints need"):
        go_on_from(fresh, tmp_path / "run", workdir)
    assert not (tmp_path / "run").exists()

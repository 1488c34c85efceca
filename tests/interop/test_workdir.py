"""Out of a run, into the format of transformers, and into another run."""

import re
import shutil
from contextlib import closing

import jax
import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.data.store import load_tokenizer
from jaxlab.interop.hugging_face import export, load
from jaxlab.interop.workdir import newest_params, recorded_config, start_from
from jaxlab.train.build import build
from jaxlab.train.checkpoint import Checkpoints
from jaxlab.train.loop import read
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
    with pytest.raises(InputError, match=re.escape("checkpoint 2048 is damaged (its bits differ from those saved)")):
        newest_params(build(llama), tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "checkpoints")
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        newest_params(build(llama), tmp_path / "copy")

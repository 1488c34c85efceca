"""The loop: what stops a run, what it refuses, and what it must not do between steps."""

import io
import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxlab.config import InputError
from jaxlab.files import read_record, write_record
from jaxlab.interop.workdir import recorded_config
from jaxlab.train import callbacks, claim, loop
from jaxlab.train.build import build
from jaxlab.train.checkpoint import Checkpoints, NonFinite
from jaxlab.train.meter import Meter, measured_flops
from jaxlab.train.plan import Batch, Block
from jaxlab.train.state import Clock
from tests import tiny

pytestmark = pytest.mark.usefixtures("no_figure")
FAST = {"compute__layers": "scan", "log__tensorboard": False, "tokens": 4_096, "evaluate__every_tokens": 0}


@pytest.fixture(scope="module")
def run(data):
    return build(tiny.config(data, **FAST, checkpoint__every_tokens=1_024))


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    with Console(file=(workdir / "out.txt").open("w"), width=80) as console:
        loop.train(run, workdir, console)
    return workdir


def test_a_finished_run_says_so_and_does_not_compile(finished, data, monkeypatch):
    again = build(tiny.config(data, **FAST, checkpoint__every_tokens=1_024))
    monkeypatch.setattr(type(again.program), "compiling", property(lambda self: 1 / 0))
    console = Console(record=True, quiet=False, file=(finished / "again.txt").open("w"), width=200)
    result = loop.train(again, finished, console)
    assert result == tiny.result(finished)
    assert "already finished" in console.export_text()


def test_header_says_what_will_run(finished):
    text = (finished / "out.txt").read_text()
    # 257 x 32 embedding; 2 layers of 4 x 32 x 32 + 2 x 32 x 64, norms 2 x 32 + 2 x 16 each, last norm 32
    assert f"{257 * 32 + 2 * (4 * 1024 + 2 * 2048 + 64 + 32) + 32:,} parameters" in text
    assert f"({2 * (4 * 1024 + 2 * 2048 + 64 + 32) + 32:,} without embeddings)" in text
    assert "4,096 tokens in 8 steps" in text
    assert "512 tokens: 1 replicas x 1 micro-batches x 8 sequences of 64" in text
    assert "replica 1 x data 1 x tensor 1" in text
    assert "measured" in text
    assert "layers scanned" in text
    assert "compiled  in " in text


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"optim__b1": 0.8}, "optim.b1: 0.9 -> 0.8"),
        ({"model__d_ff": 96}, "model.d_ff: 64 -> 96"),
    ],
)
def test_another_config_in_the_same_folder_is_refused(finished, data, changes, key):
    other = build(tiny.config(data, **FAST | {"checkpoint__every_tokens": 1_024} | changes))
    with pytest.raises(InputError, match=key):
        loop.train(other, finished, Console(quiet=True))


def test_another_store_in_the_same_folder_is_refused(run, finished, tmp_path):
    claimed = read_record(finished / "config.json")
    write_record(tmp_path / "config.json", claimed | {"data": claimed["data"] | {"corpus_sha256": "abc"}})
    with pytest.raises(InputError, match="corpus_sha256: abc -> "):
        loop.train(run, tmp_path, Console(quiet=True))


def train(run, workdir):
    """The result, and what was said."""
    out = io.StringIO()
    return loop.train(run, workdir, Console(file=out, width=500)), out.getvalue()


BAD_RECORDS = [b"", b"[]", b"null", b"{}", b"\xff\x00", b'{"config": []}', b"[" * 5_000]


@pytest.mark.parametrize("content", [*BAD_RECORDS, None], ids=lambda c: repr(c)[:20])
def test_a_damaged_result_is_set_aside_and_reached_again(run, finished, tmp_path, content):
    """None: one digit of the loss."""
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    whole = path.read_text()
    content = content if content is not None else re.sub(r'("loss": \d\.)(\d)', r"\g<1>0", whole, count=1).encode()
    assert content != whole.encode()
    path.write_bytes(content)
    result, said = train(run, tmp_path / "run")
    assert result == tiny.result(tmp_path / "run") == tiny.result(finished)
    assert (tmp_path / "run" / "result.json.damaged").read_bytes() == content
    assert f"{path}: " in said
    assert "set aside as result.json.damaged" in said
    assert tiny.rows(tmp_path / "run") == tiny.rows(finished)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"result\.json: "):
        train(run, tmp_path / "run")
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", BAD_RECORDS, ids=lambda c: repr(c)[:20])
def test_a_damaged_config_is_one_line_that_names_it(run, finished, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    for read in (lambda: train(run, tmp_path), lambda: recorded_config(tmp_path)):
        with pytest.raises(InputError, match=r"config\.json: ") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [0, 3])
def test_missing_rows_of_a_run_that_goes_on_are_said(run, finished, tmp_path, left):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4096")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:left]))
    result, said = train(run, tmp_path / "run")
    assert result["loss"] == tiny.result(finished)["loss"]
    assert f"{path}: the rows from {left * 512:,} to 3,072 tokens, where training goes on, are missing" in said
    path.unlink()
    (tmp_path / "run" / "result.json").unlink()
    result, said = train(run, tmp_path / "run")  # no step is left, and no row of any
    assert result["loss"] == tiny.result(finished)["loss"]
    assert f"{path}: the rows from 0 to 4,096 tokens, where training goes on, are missing" in said


@pytest.mark.parametrize("changes", [{"clock": [3_072, 7]}, {"clock": [3_584, 7]}, {"clock": [10**30, 6]}])
def test_a_clock_that_the_plan_does_not_have_is_damaged(run, finished, tmp_path, changes):
    """In a record without a checksum, as older versions wrote it: the run goes on from the checkpoint before."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4096")
    record = tmp_path / "run" / "checkpoints" / "3072" / "record" / "metadata"
    content = json.loads(record.read_text()) | changes
    del content["crc32"]
    record.write_text(json.dumps(content))
    with pytest.raises(InputError, match="all checkpoints are damaged"):
        train(run, tmp_path / "run")
    record.write_text(json.dumps(content | {"clock": [3_072, 6]}))
    assert train(run, tmp_path / "run")[0]["loss"] == tiny.result(finished)["loss"]


def test_names_in_brackets_are_printed_as_they_are(run, tmp_path):
    train(run, tmp_path / "[bold]x[/]")
    assert train(run, tmp_path / "[bold]x[/]")[1] == f"{tmp_path}/[bold]x[/] is already finished: nothing to do\n"


def test_other_compute_settings_may_go_on(finished, data):
    changes = {"compute__steps_per_call": 2, "compute__remat": "full", "checkpoint__keep": 5}
    assert loop.train(build(tiny.config(data, **FAST | changes)), finished, Console(quiet=True))


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_metric_that_is_not_finite_stops_the_run(run, tmp_path, monkeypatch, name):
    """In step 5: the message says so, and what was saved before is the last thing saved."""
    original = run.compiled(0)

    def compiled(state, *arguments):
        compiled.steps += 1
        state, metrics = original(state, *arguments)
        return state, metrics | ({name: metrics[name] * np.nan} if compiled.steps == 5 else {})

    compiled.steps = 0
    compiled.memory_analysis = original.memory_analysis
    with monkeypatch.context() as patch:
        patch.setitem(run.program.__dict__, "compiling", lambda shape: SimpleNamespace(result=lambda: compiled))
        patch.setattr(loop.jax, "transfer_guard", lambda _: nullcontext())
        with pytest.raises(NonFinite, match=f"{name} is nan at step 5, 2,560 tokens"):
            loop.train(run, tmp_path, Console(quiet=True))
    assert tiny.saved(tmp_path) == [1_024, 2_048]
    assert loop.train(run, tmp_path, Console(quiet=True))["steps"] == 8


def test_a_state_that_is_not_finite_is_not_saved_though_all_metrics_are(run, tmp_path, monkeypatch):
    original = run.compiled(0)

    def compiled(state, *arguments):
        compiled.steps += 1
        state, metrics = original(state, *arguments)
        if compiled.steps == 4:
            state.params["final_norm"]["scale"] = state.params["final_norm"]["scale"] * jnp.inf
        return state, metrics

    compiled.steps = 0
    compiled.memory_analysis = original.memory_analysis
    with monkeypatch.context() as patch:
        patch.setitem(run.program.__dict__, "compiling", lambda shape: SimpleNamespace(result=lambda: compiled))
        patch.setattr(loop.jax, "transfer_guard", lambda _: nullcontext())
        with pytest.raises(NonFinite, match="params/final_norm/scale is not finite at step 4, 2,048 tokens"):
            loop.train(run, tmp_path, Console(quiet=True))
    assert tiny.saved(tmp_path) == [1_024]


def test_a_host_array_in_the_loop_raises(run, tmp_path, monkeypatch):
    def careless(self, state, *_):
        return jnp.add(state.params["final_norm"]["scale"], np.ones(32, np.float32))

    monkeypatch.setattr(Checkpoints, "save", careless)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        loop.train(run, tmp_path, Console(quiet=True))


def test_speed_leaves_out_pauses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("jaxlab.train.meter.time.perf_counter", lambda: now[0])
    meter = Meter(flops_per_token=lambda context: 10 * context, peak=1e6)
    block = Block(Clock(0, 0), Clock(1000, 2), Batch(500, 100), {})
    now[0] += 2
    expected = {"seconds": 1.0, "data_seconds": 0.25, "tokens_per_second": 500.0, "utilisation": 0.5}
    assert meter.read(block, 0.5) == expected
    now[0] += 100  # an evaluation
    meter.restart()
    now[0] += 2
    assert meter.read(block, 0.5) == expected
    assert meter.status(30_000) == "500 tokens/s  MFU 50%  25% waiting for data  0:01:00 left"


def test_measured_peak_is_that_of_a_computer():
    assert 1e9 < measured_flops(256) < 1e14


def test_a_hang_shows_the_stacks_of_all_threads():
    program = (
        "import time\nfrom jaxlab import process\nprocess.HANG_SECONDS = 0.3\n"
        "def stuck_here(): time.sleep(1)\n"
        "with process.watched(): stuck_here()\ntime.sleep(0.5)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tiny.ROOT, capture_output=True, text=True)
    assert "Timeout (0:00:00.3" in result.stderr
    assert "in stuck_here" in result.stderr
    assert result.stderr.count("in stuck_here") <= 4  # and none once it is over


def test_an_evaluation_does_not_slow_the_steps_around_it(data, tmp_path, monkeypatch):
    run = build(tiny.config(data, **FAST | {"evaluate__every_tokens": 1_024}, checkpoint__every_tokens=0))
    original, clock, passed = callbacks._loss, time.perf_counter, [0.0]
    monkeypatch.setattr("jaxlab.train.meter.time.perf_counter", lambda: clock() + passed[0])

    def slowly(*args):
        passed[0] += 1e6
        return original(*args)

    monkeypatch.setattr(callbacks, "_loss", slowly)
    result = loop.train(run, tmp_path, Console(quiet=True))
    assert passed == [4e6]
    assert result["seconds"] < 1e6  # of 8 steps, without the evaluations


def test_two_commands_do_not_train_one_run(data, tmp_path):
    """The second is one line, whether the run has begun or not; the lock is gone with the first."""
    run = build(tiny.config(data, tokens=1_024, schedule__warmup_tokens=0, log__tensorboard=False))
    with claim.alone(tmp_path), pytest.raises(InputError, match="another command is training this run"):
        loop.train(run, tmp_path, Console(quiet=True))
    assert loop.train(run, tmp_path, Console(quiet=True))["tokens"] == 1_024

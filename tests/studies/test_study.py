"""Studies as users start them: killed, beside each other, with runs that fail; and what may be asked of them."""

import csv
import multiprocessing
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jaxlab.config import InputError
from jaxlab.studies import worker
from jaxlab.studies.study import DEVICES, ENDED, facts, held, holder, load, pace, results, status
from launch import study as launcher
from tests import tiny
from tests.studies import planned
from tests.studies.test_damage import leave

SMALL = Path(__file__).parent / "small.py"
NAMES = [f"{part}-seed={seed}" for part in "abc" for seed in (0, 1)]
ENDING = [name for name in NAMES if name != "a-seed=1"]


@pytest.fixture(scope="module")
def flags(data):
    changes = {**data, "data.tokenizer": "bytes", "data.validation_fraction": 0.05}
    return [f"--study={SMALL}:smoke", *(f"--set={key}={value}" for key, value in changes.items())]


def command(flags, runs, *more):
    return tiny.command("study", *flags, f"--runs={runs}", *more)


def start(flags, runs, cache, *more):
    env = tiny.environment(cache) | {"PYTHONPATH": str(tiny.ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(flags, runs, *more), cwd=tiny.ROOT, env=env, start_new_session=True, **pipes)


def ended(folder):
    return sum((folder / name / file).exists() for name in NAMES for file in ENDED.values())


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory):
    """The folder of the study's runs, done by two commands started together; and what they printed."""
    runs = tmp_path_factory.mktemp("runs")
    both = [start(flags, runs, runs / "cache", "--workers=1", "run") for _ in range(2)]
    return runs, [process.communicate()[0] for process in both]


@pytest.mark.slow
def test_two_commands_on_one_study_share_its_runs(undisturbed):
    runs, texts = undisturbed
    folder = runs / "small" / "smoke"
    assert ended(folder) == len(ENDING)
    for name in ENDING:
        log = (folder / name / "log.txt").read_text()
        assert log.count("model     ") == 1, (name, log)  # the header of a run that starts
    for text in texts:
        assert "Traceback" not in text
    assert any("5 of 6 runs have ended" in text for text in texts)  # says the one that ends last


@pytest.mark.slow
def test_a_run_that_fails_or_diverges_does_not_stop_the_others(undisturbed):
    folder = undisturbed[0] / "small" / "smoke"
    state, reason = status(folder / "a-seed=1")
    assert state == "failed"
    assert "needs 7 devices" in reason
    for seed in (0, 1):
        state, reason = status(folder / f"c-seed={seed}")
        assert state == "diverged"
        assert " at step " in reason


@pytest.mark.slow
def test_killed_half_way_it_ends_with_the_same_table(undisturbed, flags, tmp_path):
    """Workers are killed with the command, when two runs have ended and another is on."""
    whole = undisturbed[0]
    folder, cache = tmp_path / "small" / "smoke", whole / "cache"
    process = start(flags, tmp_path, cache, "--workers=2", "run")
    until = time.monotonic() + 120
    while ended(folder) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 2 <= ended(folder) < len(ENDING), "the kill came too late or too early to test anything"
    again = start(flags, tmp_path, cache, "--workers=2", "run")
    assert "5 of 6 runs have ended" in again.communicate()[0]
    assert again.returncode == 1  # one has failed
    for runs in (whole, tmp_path):
        made = tiny.launch("study", *flags, f"--runs={runs}", f"--results={runs}/results", "report")
        assert made.returncode == 0, made.stderr
    tables = [(runs / "results" / "small" / "smoke" / "results.csv").read_text() for runs in (whole, tmp_path)]
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].splitlines()))
    assert [row["name"] for row in rows] == ENDING
    assert {row["status"] for row in rows} == {"finished", "diverged"}
    page = (whole / "results" / "small" / "smoke" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "<b style=color:#1a7f37>supported</b>" in page


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"study": "nothing:smoke"}, "--study=nothing:smoke: must be NAME:SCALE with NAME one of batch_size"),
        ({"study": "chinchilla:huge"}, "has no scale 'huge'; it has smoke, laptop, gpu, paper"),
        ({"study": "chinchilla"}, "must be NAME:SCALE"),
        ({"study": "absent.py:smoke"}, "there is no file absent.py"),
        ({"part": "nothing"}, "--part=nothing: chinchilla:smoke has no such part; it has grid"),
        ({"changes": {"model.depth": "3"}}, "--set config: unknown key model.depth; the nearest is"),
        ({"changes": {"tokens": "many"}}, "--set tokens=many: must be a whole number"),
        ({"changes": {"tokens": "7"}}, "tokens=7: less than one batch"),
    ],
)
def test_what_may_not_be_asked(asked, says, tmp_path):
    with pytest.raises(InputError, match=re.escape(says)):
        load(**{"study": "chinchilla:smoke", "runs": tmp_path} | asked)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dance"], "dance: say one of run, list, report"),
        (["--index=99", "run"], "--index=99: the study has runs 0 to 35"),
        (["report"], "no run has ended; first python -m launch.study"),
    ],
)
def test_bad_input_is_one_line(words, says, tmp_path):
    found = tiny.launch("study", "--study=chinchilla:smoke", f"--runs={tmp_path}", *words)
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert says in found.stderr


def test_a_part_has_its_own_runs_alone(tmp_path):
    names = [trial.name for trial in load(f"{SMALL}:smoke", tmp_path, part="b").trials]
    assert names == ["b-seed=0", "b-seed=1"]


def test_a_pipe_has_wide_tables_whole(tmp_path):
    """Of 13 columns, every run on a line of its own, nothing cut."""
    found = tiny.launch(
        "study", "--study=floating_point:smoke", "--part=targets", f"--runs={tmp_path}", "--dry_run", "run"
    )
    trials = load("floating_point:smoke", tmp_path, part="targets").trials
    rows = [line.split("│")[1:-1] for line in found.stdout.splitlines() if line.startswith("│")]
    tags = [[str(value) for name, value in trial.tags.items() if name != "tokens"] for trial in trials]
    assert [[cell.strip() for cell in row[: len(tags[0])]] for row in rows] == tags


def die(folder):
    with held(folder):
        os.kill(os.getpid(), signal.SIGKILL)


def test_it_says_which_run_a_killed_worker_had(tmp_path):
    study = load(f"{planned.__file__}:smoke", tmp_path)
    trial = study.trials[3]
    process = multiprocessing.get_context("spawn").Process(target=die, args=(study.folder / trial.name,))
    process.start()
    process.join()
    line = worker._lost(study, study.trials, process)
    assert line == f"a worker was ended by SIGKILL, as for want of memory; it had {trial.name}"
    assert status(study.folder / trial.name) == ("stopped", "")
    leave(study, study.trials[4])
    (study.folder / study.trials[4].name / "lock").write_text(f"{process.pid}\n")  # that one it had finished
    other = study.folder / study.trials[5].name  # and this one is another's
    other.mkdir()
    (other / "lock").write_text(f"{process.pid + 1}\n")
    assert worker._lost(study, study.trials, process) == line
    assert worker._lost(study, study.trials[:3], process).endswith("it had no run")


def test_more_workers_than_cores_are_refused():
    cores = len(os.sched_getaffinity(0))
    worker.check_workers(cores)
    with pytest.raises(InputError, match=f"--workers={cores + 1}: this machine has {cores} cores"):
        worker.check_workers(cores + 1)


def test_a_lock_goes_with_its_process(tmp_path):
    with held(tmp_path / "run") as first, held(tmp_path / "run") as second:
        assert first
        assert not second
        assert holder(tmp_path / "run") == os.getpid()
        assert status(tmp_path / "run")[0] == "running"
    assert status(tmp_path / "run")[0] == "stopped"
    assert status(tmp_path / "other")[0] == "planned"


def test_facts_of_a_batch_and_a_context_that_grow():
    """By hand: 8 steps of 512 to 4,096, 4 of 1,024 to 8,192, 3 of 2,048; the next would be past 15,000. FLOPs of a
    token: 6 for each of 2 (4 32^2 + 2 32 64) weights and of 256 x 32 of the head, 12 x 32 x 2 for each position."""
    c = planned.default()
    changes = {"tokens": 15_000, "batch.growth": "0:512 4096:1024 8192:2048", "batch.context_growth": "0:32 4096:64"}
    c.update_from_flattened_dict(tiny.SMALL | changes | {"model.vocab_size": 256})
    linear = 6 * (2 * (4 * 32**2 + 2 * 32 * 64) + 256 * 32)
    found = facts(c)
    assert found["tokens"] == 14_336
    assert found["flops"] == 4_096 * (linear + 768 * 32) + 10_240 * (linear + 768 * 64)
    norms = 2 * (2 * 32 + 2 * 16) + 32
    assert found["non_embedding"] == 2 * (4 * 32**2 + 2 * 32 * 64) + norms
    assert found["parameters"] == found["non_embedding"] + 256 * 32
    c.update_from_flattened_dict({"batch.growth": "", "batch.context_growth": ""})
    assert facts(c)["tokens"] == 14_848
    c.tokens = 10**15  # no step is walked
    assert facts(c)["tokens"] == 10**15 // 512 * 512
    c.batch.growth = "0:512 4096:1024"
    assert facts(c)["tokens"] == 10**15 // 1_024 * 1_024


PER_TOKEN = 6 * 2 * (4 * 32**2 + 2 * 32 * 64) + 768 * 64  # of the planned study, whose vocabulary is not known


def test_pace_is_that_of_the_finished_runs(tmp_path):
    study = load(f"{planned.__file__}:smoke", tmp_path)
    leave(study, study.trials[0], seconds=10.0)
    leave(study, study.trials[1], seconds=30.0)
    found, basis = pace(study)
    assert found == pytest.approx(40 / ((1_024 + 2_048) * PER_TOKEN))
    assert basis == "as its 2 finished runs went"
    title = launcher.cost(study, study.trials).title
    flop = sum(1_024 * (i + 1) for i in range(12)) * PER_TOKEN
    assert title == f"12 runs, {flop:.3g} FLOP, {flop * found / 3600:.3g} chip-hours (as its 2 finished runs went)"


@pytest.mark.parametrize(
    ("scale", "seconds", "basis"),
    [
        ("smoke", 1 / (0.4 * 56e9), "one CPU core, 0.056 TFLOP/s at 40 %"),
        ("gpu", 1 / (0.4 * 989e12), "NVIDIA H100, 989 TFLOP/s at 40 %"),
    ],
)
def test_pace_is_that_of_the_scales_device_before(scale, seconds, basis, tmp_path):
    found = pace(load(f"{planned.__file__}:{scale}", tmp_path))
    assert found == (pytest.approx(seconds), basis)


def test_devices_reach_what_data_sheets_and_runs_say():
    """TPU v5e: 197 TFLOP/s in bfloat16; a CPU core as the committed runs went."""
    folder = tiny.ROOT / "results" / "chinchilla" / "laptop"
    flop, seconds = (
        sum(float(row[name]) for row in csv.DictReader((folder / file).read_text().splitlines()))
        for file, name in (("results.csv", "flops"), ("seconds.csv", "seconds"))
    )
    assert DEVICES["laptop"][1] == pytest.approx(flop / seconds / 0.4, rel=0.01)
    assert DEVICES["paper"] == ("TPU v5e", 197e12)
    assert DEVICES["gpu"] == ("NVIDIA H100", 989e12)


def test_the_longest_runs_of_the_largest_shape_come_first(tmp_path, monkeypatch):
    """But not those that have ended."""
    study = load(f"{SMALL}:smoke", tmp_path, changes={"checkpoint.keep": "1"})
    sizes = {"a-seed=0": (64, 8_192), "a-seed=1": (128, 8_192), "b-seed=0": (128, 16_384), "c-seed=0": (64, 16_384)}
    for trial in study.trials:
        d_ff, tokens = sizes.get(trial.name, (64, 8_192))
        trial.config.model.d_ff, trial.config.tokens = d_ff, tokens
    leave(study, study.trials[3])  # b-seed=1
    taken = []
    monkeypatch.setattr(worker, "_train", lambda trial, *_: (taken.append(trial.name), False))
    worker.train_all(study, study.trials)
    assert taken == ["b-seed=0", "a-seed=1", "c-seed=0", "a-seed=0", "c-seed=1"]


def test_every_scale_has_runs_that_can_be_built():
    """Names are unique, shapes divide, and D/N spans what the scale says."""
    for scale, count in (("smoke", 36), ("laptop", 80), ("gpu", 80), ("paper", 84)):
        study = load(f"chinchilla:{scale}", "runs")
        assert len(study.trials) == count
        assert len({trial.name for trial in study.trials}) == count
    sizes = {facts(trial.config)["non_embedding"] for trial in load("chinchilla:laptop", "runs").trials}
    assert 30_000 < min(sizes) < 40_000
    assert 500_000 < max(sizes) < 600_000
    assert results(load("chinchilla:laptop", "nowhere")) == []

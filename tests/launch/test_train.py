"""The trainer as a process: stopped, killed, out of disk, out of numbers, watched by a person."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from tests import kill, tiny


@pytest.fixture(scope="module")
def cache(request):
    return request.config.cache.mkdir("jax")


@pytest.fixture(scope="module")
def straight(data, cache, tmp_path_factory):
    """(config file, workdir, result) of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    file = tiny.config_file(folder / "config.py", data)
    return file, folder / "run", tiny.launch("train", f"--config={file}", f"--workdir={folder / 'run'}", cache=cache)


def test_ends_with_what_it_reached(straight):
    _, workdir, result = straight
    assert result.returncode == 0, result.stderr
    reached = json.loads((workdir / "result.json").read_text())
    assert result.stdout.splitlines()[-2:] == [
        f"validation {reached['loss']:.4f} nats/token",
        f"{reached['bits_per_byte']:.2f} bits/byte",
    ]
    assert (workdir / "curves.png").stat().st_size > 10_000


def test_a_finished_run_says_so(straight, cache):
    file, workdir, first = straight
    again = tiny.launch("train", f"--config={file}", f"--workdir={workdir}", cache=cache)
    assert again.returncode == 0
    assert "already finished" in again.stdout
    assert "compiled" not in again.stdout
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]


@pytest.mark.parametrize("line", ["compute", "compiled"])
def test_sigterm_saves_and_the_same_command_goes_on(straight, cache, tmp_path, line):
    """Sent while the step compiles, and while it trains."""
    file, whole, _ = straight
    flags = f"--config={file}", f"--workdir={tmp_path / 'run'}"
    command, env = tiny.command("train", *flags), tiny.environment(cache if line == "compiled" else None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tiny.ROOT, env=env, **pipes) as process:
        while not process.stdout.readline().startswith(line):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    stopped = [text for text in output.splitlines() if text.startswith("stopped at ")]
    assert len(stopped) == 1
    assert f"{tiny.saved(tmp_path / 'run')[-1]:,} tokens" in stopped[0]
    assert tiny.launch("train", *flags, cache=cache).returncode == 0
    assert tiny.rows(tmp_path / "run") == tiny.rows(whole)
    assert tiny.fingerprint(tmp_path / "run") == tiny.fingerprint(whole)


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    assert kill.killed("saving", 1, seed=1, folder=tmp_path)["kills"] == 1


@pytest.mark.slow
def test_goes_on_with_eight_devices(straight, cache, tmp_path):
    """Half on one device, half on eight: the losses stay those of one within float32 rounding, grown by training."""
    file, whole, _ = straight
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for name in ("result.json", "checkpoints/16384"):
        (shutil.rmtree if (workdir / name).is_dir() else os.remove)(workdir / name)
    result = tiny.launch("train", f"--config={file}", f"--workdir={workdir}", cache=cache, devices=8)
    assert result.returncode == 0, result.stderr
    assert "resuming  at 12,288 tokens" in result.stdout
    assert "data 8" in result.stdout
    rows, expected = tiny.rows(workdir), tiny.rows(whole)
    assert [r["tokens"] for r in rows] == [r["tokens"] for r in expected]
    assert [r["loss"] for r in rows] == pytest.approx([r["loss"] for r in expected], abs=1e-4)


def test_a_damaged_checkpoint_is_one_line(straight, cache, tmp_path):
    file, whole, _ = straight
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "result.json").unlink()
    for name in ("manifest.ocdbt", "_METADATA"):
        (workdir / "checkpoints" / "16384" / "state" / name).write_bytes(b"damage")
    result = tiny.launch("train", f"--config={file}", f"--workdir={workdir}", cache=cache)
    assert result.returncode == 0
    assert result.stderr == ""
    assert sum("16384 is damaged" in line for line in result.stdout.splitlines()) == 1
    assert "resuming  at 12,288 tokens" in result.stdout
    assert (workdir / "checkpoints" / "damaged-16384").is_dir()
    assert tiny.rows(workdir) == tiny.rows(whole)
    assert tiny.fingerprint(workdir) == tiny.fingerprint(whole)


@pytest.mark.parametrize("flag", ["--workdir=gs://bucket/run", "--start_from=gs://bucket/run"])
def test_an_address_for_a_workdir_is_refused_before_anything_else(flag, tmp_path):
    flags = [flag] if "workdir" in flag else [f"--workdir={tmp_path / 'run'}", flag]
    result = tiny.launch("train", f"--config={tiny.ROOT / 'configs' / 'demo.py'}", *flags)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"error: {flag}: must be on a disk" in result.stderr
    assert not result.stdout


def test_not_a_number_is_one_line(data, cache, tmp_path):
    file = tiny.config_file(tmp_path / "config.py", data, checkpoint__every_tokens=512, schedule__peak_lr=1e20)
    result = tiny.launch("train", f"--config={file}", f"--workdir={tmp_path / 'run'}", cache=cache)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "step" in result.stderr
    assert "tokens; what was saved before is kept" in result.stderr


@pytest.fixture
def small_disk(tmp_path):
    """mount(bytes) -> a folder on a file system of that size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system is not permitted here")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


def test_a_disk_without_room_is_refused_before_compiling(data, cache, tmp_path, small_disk):
    file = tiny.config_file(tmp_path / "config.py", data)
    workdir = small_disk(400_000) / "run"
    result = tiny.launch("train", f"--config={file}", f"--workdir={workdir}", cache=cache)
    assert result.returncode == 2
    assert "0.4 MB free, and the checkpoints need 0.9 MB more" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not workdir.exists()


def test_a_disk_that_fills_up_is_one_line_and_the_checkpoints_stay(data, cache, tmp_path, small_disk):
    # Evaluations between the saves leave the time to fill it while none is being written.
    changes = {"tokens": 20_480, "checkpoint.every_tokens": 8_192, "evaluate.every_tokens": 512, "checkpoint.keep": 1}
    file = tiny.config_file(tmp_path / "config.py", data | changes)
    disk = small_disk(2_000_000)
    flags = f"--config={file}", f"--workdir={disk / 'run'}"
    command, env = tiny.command("train", *flags), tiny.environment(cache)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tiny.ROOT, env=env, **pipes) as process:
        while not process.stdout.readline().startswith("compiled"):
            assert process.poll() is None
        while not tiny.saved(disk / "run"):
            time.sleep(0.001)
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 65_536))
        output, errors = process.communicate()
    assert process.returncode in (1, 2), output
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("error: ")
    (disk / "filler").unlink()
    result = tiny.launch("train", *flags, cache=cache)
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stdout

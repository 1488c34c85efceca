"""A run of several processes, as on the hosts of a pod: each reads its own part of every batch."""

import time

import pytest
from rich.console import Console

from jaxlab.train import loop
from jaxlab.train.build import build
from tests import tiny

LONGER = {"tokens": 16_384, "checkpoint__every_tokens": 2_048}


@pytest.mark.slow
def test_two_processes_train_as_one(data, tmp_path, request):
    """Losses equal to 1e-5 nats: only the order of float32 sums differs. Then both resume together, from the checkpoint
    before a damaged one."""
    cache = request.config.cache.mkdir("jax")
    file = tiny.config_file(tmp_path / "config.py", data, tokens=8_192)
    alone = tiny.launch("train", f"--config={file}", f"--workdir={tmp_path / 'one'}", cache=cache, devices=4)
    assert alone.returncode == 0, alone.stderr
    outputs = together(file, tmp_path / "two", cache)
    assert outputs[0].splitlines()[-1] == alone.stdout.splitlines()[-1]
    assert "bits/byte" not in outputs[1]
    one, two = tiny.rows(tmp_path / "one"), tiny.rows(tmp_path / "two")
    assert [(r["kind"], r["tokens"]) for r in one] == [(r["kind"], r["tokens"]) for r in two]
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], abs=1e-5)

    (tmp_path / "two" / "result.json").unlink()
    (tmp_path / "two" / "checkpoints" / "8192" / "record" / "metadata").write_text("{}")
    again = together(file, tmp_path / "two", cache)[0]
    assert "checkpoint 8192 is damaged" in again
    assert "resuming  at 4,096 tokens" in again
    assert again.splitlines()[-1] == alone.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """Rows of a run of one process."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    loop.train(build(tiny.config(data, **LONGER)), workdir, Console(quiet=True))
    return tiny.rows(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_ends_with_one_line_and_fewer_go_on(data, undisturbed, tmp_path, request, victim):
    """Whether the killed one is that which the others register with, or not. What one process then makes of it is the
    undisturbed run, but for the order of sums."""
    cache = request.config.cache.mkdir("jax")
    file = tiny.config_file(tmp_path / "config.py", data, **LONGER)
    started = tiny.side_by_side(file, tmp_path / "run", 2, cache)
    while not tiny.saved(tmp_path / "run"):
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    started[victim].kill()
    _, errors = started[1 - victim].communicate(timeout=100)
    started[victim].communicate()
    assert started[1 - victim].returncode == 1
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("error: another process of the run is lost")
    rest = tiny.launch("train", f"--config={file}", f"--workdir={tmp_path / 'run'}", cache=cache)
    assert rest.returncode == 0, rest.stderr
    assert "resuming" in rest.stdout
    rows = tiny.rows(tmp_path / "run")
    assert [(r["kind"], r["steps"]) for r in rows] == [(r["kind"], r["steps"]) for r in undisturbed]
    assert [r["loss"] for r in rows] == pytest.approx([r["loss"] for r in undisturbed], abs=1e-4)


def together(file, workdir, cache) -> list[str]:
    """Standard output of two processes, which must both succeed."""
    started = tiny.side_by_side(file, workdir, 2, cache)
    outputs = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    return [out for out, _ in outputs]

"""A run of several processes, as on the hosts of a pod: each reads its own part of every batch."""

import socket
import subprocess

import pytest

from tests import tiny


@pytest.mark.slow
def test_two_processes_train_as_one(data, tmp_path, request):
    """Losses equal to 1e-5 nats: only the order of float32 sums differs. Then both resume together."""
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
    assert "resuming  at 8,192 tokens" in together(file, tmp_path / "two", cache)[0]


def together(file, workdir, cache) -> list[str]:
    """Standard output of two processes of two devices each, which must both succeed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f"--config={file}", f"--workdir={workdir}"]
    started = [
        subprocess.Popen(
            tiny.command("train", *flags, f"--processes=localhost:{port},{i},2"),
            cwd=tiny.ROOT,
            env=tiny.environment(cache, devices=2),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    return [out for out, _ in outputs]

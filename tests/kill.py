"""Kills a small run again and again at random moments, and compares what comes out with an undisturbed run:
python -m tests.kill --kills=50"""

import argparse
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests import tiny

SAVE_EVERY = 8_192  # tokens: 16 steps


def run(kills: int, seed: int, folder: Path) -> dict:
    """Undisturbed run, then one killed `kills` times; asserts that they are equal. Returns what happened.

    Its replicas meet every 5 steps, half of the model at a time, and are saved in mid-round with a change under way.
    Most kills come within a second of the first new step, during which the run saves several times; the others at
    any moment from the start of the process on.
    """
    draw, data = random.Random(seed), tiny.make_store(folder)
    file = tiny.config_file(
        folder / "config.py", data, tokens=512 * (100 + 40 * kills), checkpoint__every_tokens=SAVE_EVERY,
        evaluate__every_tokens=32_768, evaluate__tokens=256, replicas=2, diloco__sync_every=5, diloco__fragments=2,
        diloco__overlap=2, log__tensorboard=False,
    )  # fmt: skip
    straight, killed = folder / "straight", folder / "killed"
    began = time.monotonic()
    whole = tiny.launch("train", f"--config={file}", f"--workdir={straight}", cache=folder / "cache")
    assert whole.returncode == 0, whole.stderr
    life = time.monotonic() - began
    done, lost, lives = 0, [], 0
    while done < kills:
        lives += 1
        before = _tokens(killed)
        command = tiny.command("train", f"--config={file}", f"--workdir={killed}")
        env = tiny.environment(folder / "cache")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=tiny.ROOT, env=env, **pipes) as process:
            _wait(process, draw)
            process.kill()
            errors = process.stderr.read()
        assert process.returncode in (0, -signal.SIGKILL), errors
        if process.returncode == 0:
            break
        done += 1
        held = tiny.saved(killed)[-1:] if (killed / "checkpoints").exists() else []
        lost.append(_tokens(killed) - (held[0] if held else 0))
        print(f"kill {done:3d}: from {before:8,} to {_tokens(killed):8,} tokens, {lost[-1]:6,} not saved")
    last = tiny.launch("train", f"--config={file}", f"--workdir={killed}", cache=folder / "cache")
    assert last.returncode == 0, last.stderr
    assert "damaged" not in last.stdout, last.stdout
    assert tiny.fingerprint(killed) == tiny.fingerprint(straight), "the final parameters differ"
    assert tiny.rows(killed) == tiny.rows(straight), "metrics.jsonl differs"
    return {"kills": done, "lives": lives, "most_lost": max(lost, default=0), "seconds_undisturbed": round(life, 1)}


def _wait(process, draw: random.Random) -> None:
    """Until the moment of the kill, or the end of the process."""
    if draw.random() < 0.7:
        while process.poll() is None and not process.stdout.readline().startswith("compiled"):
            pass
        until = time.monotonic() + draw.uniform(0, 1)
    else:
        until = time.monotonic() + draw.uniform(0, 6)
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


def _tokens(workdir: Path) -> int:
    from jaxlab.train.log import read

    path = workdir / "metrics.jsonl"
    return max((row["tokens"] for row in read(path)), default=0) if path.exists() else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(run(options.kills, options.seed, Path(folder)))
    print("final parameters and metrics are those of the undisturbed run, bit for bit")

"""Kills small runs at random moments, again and again, and compares what comes out with undisturbed ones:
python -m tests.kill --kills=10 [--only=saving,everything,start_from,branches,studies,processes]"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests import tiny

STUDY = Path(__file__).parent / "studies" / "small.py"
OFTEN = {"checkpoint__every_tokens": 2_048, "log__tensorboard": False, "evaluate__tokens": 256}
EVERYTHING = OFTEN | {  # the four studies in one run, saved in mid-round with an outer gradient on its way
    "replicas": 2, "diloco__sync_every": 5, "diloco__fragments": 2, "diloco__overlap": 2, "diloco__mix": 0.5,
    "quant__recipe": "capybara", "quant__cast": "block=32,rounding=stochastic", "batch__micro_tokens": 128,
    "batch__growth": "0:512 8192:1024", "spectra__at": "every:4096", "schedule__name": "wsd",
    "schedule__decay_tokens": 4_096, "batch__lr_rule": "sqrt",
}  # fmt: skip
GONE_SECONDS = 60  # within which a process ends whose peer was killed


class Scenario(NamedTuple):
    """begin(folder): makes what the command needs. words(folder): the command. outcome(folder): what must be equal in
    the end. moment(process, folder): waits until the kill."""

    begin: Callable[[Path], None]
    words: Callable[[Path], list[str]]
    outcome: Callable[[Path], object]
    moment: Callable | None = None


def trained(workdir: Path) -> tuple:
    """The final parameters, bit for bit, and all rows of metrics without times."""
    return tiny.fingerprint(workdir), tiny.rows(workdir)


def training(folder: Path, data: dict, changes: dict, *flags: str, moment=None) -> Scenario:
    file = tiny.config_file(folder / "config.py", data, **changes)
    return Scenario(
        begin=lambda target: target.mkdir(),
        words=lambda target: tiny.command("train", f"--config={file}", f"--workdir={target}/run", *flags),
        outcome=lambda target: trained(target / "run"),
        moment=moment,
    )


def saving(folder: Path, data: dict) -> Scenario:
    """Killed while a checkpoint is being written."""

    def moment(process, target, draw):
        count = draw.randrange(4)  # of the saves to let pass
        names: set[str] = set()
        while process.poll() is None and len(names) <= count:
            names |= {path.name for path in (target / "run" / "checkpoints").glob("*") if not path.name.isdecimal()}
        time.sleep(draw.uniform(0, 0.04))

    return training(folder, data, OFTEN, moment=moment)


def everything(folder: Path, data: dict) -> Scenario:
    return training(folder, data, EVERYTHING)


def start_from(folder: Path, data: dict) -> Scenario:
    source = tiny.config_file(folder / "source.py", data, **OFTEN, seed=1, tokens=4_096)
    done = tiny.launch("train", f"--config={source}", f"--workdir={folder}/source", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    return training(folder, data, OFTEN | {"tokens": 8_192}, f"--start_from={folder}/source")


def branches(folder: Path, data: dict) -> Scenario:
    constant = OFTEN | {"schedule__name": "constant", "tokens": 8_192, "checkpoint__keep": 9}
    file = tiny.config_file(folder / "parent.py", data, **constant)
    parent = folder / "parent"
    done = tiny.launch("train", f"--config={file}", f"--workdir={parent}", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    options = ["--at=2048,4096", "--times=1,2", "--window=4096"]
    return Scenario(
        begin=lambda target: shutil.copytree(parent, target / "run"),
        words=lambda target: tiny.command("branch", f"--workdir={target}/run", *options),
        outcome=lambda target: [trained(path) for path in sorted((target / "run" / "branches").glob("*-x*"))],
    )


def studies(folder: Path, data: dict) -> Scenario:
    changes = {**data, "data.tokenizer": "bytes", "data.validation_fraction": 0.05}
    changes = [f"--set={key}={value}" for key, value in changes.items()]

    def outcome(target):
        from jaxlab.studies.study import load, results

        rows = results(load(f"{STUDY}:smoke", target))
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    return Scenario(
        begin=lambda target: target.mkdir(),
        words=lambda target: tiny.command(
            "study", f"--study={STUDY}:smoke", *changes, f"--runs={target}", "--workers=2", "run"
        ),
        outcome=outcome,
    )


SCENARIOS = {f.__name__: f for f in (saving, everything, start_from, branches, studies)}


def killed(name: str, kills: int, seed: int, folder: Path) -> dict:
    """Runs a scenario undisturbed, then killed `kills` times in as many lives as that takes; every run that comes to
    its end must have the undisturbed outcome. Returns what happened."""
    draw, data = random.Random(f"{seed} {name}"), tiny.make_store(folder)
    scenario = SCENARIOS[name](folder, data)
    env = tiny.environment(folder / "cache") | {"PYTHONPATH": str(tiny.ROOT)}

    def life(target, moment=None):
        """Exit status and what was printed of one process, killed at `moment`, if it is not None."""
        text = target / "printed.txt"
        with text.open("w") as out:
            process = subprocess.Popen(
                scenario.words(target), cwd=tiny.ROOT, env=env, stdout=out, stderr=out, start_new_session=True
            )
            if moment:
                moment(process, target, draw)
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert "Traceback" not in text.read_text(), text.read_text()
        return process.returncode, text.read_text()

    def uniform(process, target, draw):
        until = time.monotonic() + draw.uniform(0, whole)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)

    wanted, names = None, ["straight"]
    if not scenario.moment:
        names += ["again"]  # which finds its programs compiled, and says how long a whole life is
    for straight in (folder / name for name in names):
        scenario.begin(straight)
        began = time.monotonic()
        status, text = life(straight)
        whole = time.monotonic() - began
        assert not status or "of 6 runs have ended" in text, text  # of the small study one run cannot start
        wanted = scenario.outcome(straight) if wanted is None else wanted
        assert scenario.outcome(straight) == wanted
    done, lives, targets, target, said = 0, 0, 0, None, set()
    while done < kills or target:
        if target is None:
            targets, target = targets + 1, folder / f"killed-{targets + 1}"
            scenario.begin(target)
        lives += 1
        status, text = life(target, (scenario.moment or uniform) if done < kills else None)
        said |= {line for line in text.splitlines() if "damaged" in line}
        if status == -signal.SIGKILL:
            done += 1
            print(f"{name}: kill {done}, life {lives}, run {targets}", flush=True)
        else:
            assert not status or "of 6 runs have ended" in text, text
            assert scenario.outcome(target) == wanted
            target = None
    return {"scenario": name, "kills": done, "lives": lives, "runs compared": targets, "said damaged": len(said)}


def processes(kills: int, seed: int, folder: Path) -> dict:
    """Two processes of one run, one of them killed at random: the other must end within a minute, with one line and
    status 1; then 1, 2 and 4 processes in turn go on, and all end at the undisturbed loss within rounding."""
    draw, data = random.Random(seed), tiny.make_store(folder)
    file = tiny.config_file(folder / "config.py", data, **OFTEN, tokens=65_536)
    straight = tiny.launch("train", f"--config={file}", f"--workdir={folder}/one", cache=folder / "cache", devices=4)
    assert straight.returncode == 0, straight.stderr
    slowest, lines = 0.0, []
    for number in range(kills):
        target = folder / f"two-{number}"
        started = tiny.side_by_side(file, target, 2, folder / "cache")
        victim = draw.randrange(2)
        until = time.monotonic() + draw.uniform(4, 25)
        while time.monotonic() < until and all(p.poll() is None for p in started):
            time.sleep(0.02)
        assert all(p.poll() is None for p in started), "the run ended before the kill"
        started[victim].kill()
        began = time.monotonic()
        _, errors = started[1 - victim].communicate(timeout=2 * GONE_SECONDS)
        seconds = time.monotonic() - began
        slowest, lines = max(slowest, seconds), [*lines, *errors.splitlines()]
        print(f"processes: kill {number + 1} of process {victim}: {seconds:.1f} s, status "
              f"{started[1 - victim].returncode}: {errors.strip()}", flush=True)  # fmt: skip
        assert started[1 - victim].returncode == 1
        assert len(errors.splitlines()) == 1, errors
        assert seconds < GONE_SECONDS
        count = (1, 2, 4)[number % 3]
        again = tiny.side_by_side(file, target, count, folder / "cache")
        texts = [process.communicate(timeout=600) for process in again]
        assert all(process.returncode == 0 for process in again), texts
        losses = [[r["loss"] for r in tiny.rows(path)] for path in (target, folder / "one")]
        assert len(losses[0]) == len(losses[1])
        assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-3
    return {"scenario": "processes", "kills": kills, "slowest end": round(slowest, 1), "lines": len(lines)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="of each scenario")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join([*SCENARIOS, "processes"]))
    options = parser.parse_args()
    for scenario in options.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            if scenario == "processes":
                print(processes(options.kills, options.seed, Path(folder)), flush=True)
            else:
                print(killed(scenario, options.kills, options.seed, Path(folder)), flush=True)
    print("every run that came to its end is the undisturbed one")

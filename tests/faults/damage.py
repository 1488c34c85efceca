"""Single bytes changed at random in what runs have saved, and the same command again."""

import csv
import json
import random
import shutil
from pathlib import Path

from tests import tiny
from tests.faults.case import last_line
from tests.faults.runner import Ended, Job, run
from tests.faults.template import Template

TRAIN, STUDY = ("train", "--config=config.py"), ("study", "--study=study.py:smoke")
KINDS = {  # damaged folder: parts of the template, the commands after it
    "half": ("config store half", [(*TRAIN, "--workdir=half")]),
    "store": ("config texts store", [("prepare", "--config=config.py"), (*TRAIN, "--workdir=new")]),
    "runs": ("config texts store study runs", [(*STUDY, "--workers=1", "run"), (*STUDY, "report")]),
}  # fmt: skip


def main(template: Template, folder: Path, options) -> int:
    """Prints a line a damage; 1 if any ends in another result, a traceback, or no line that names the file."""
    draw, bad = random.Random(options.seed), 0
    wanted = {kind: undisturbed(kind, template, folder, options.patience) for kind in KINDS}
    print(f"{'damage':84s} {'exit':>4s}  verdict: line", flush=True)
    for number in range(options.damages):
        kind = list(KINDS)[number % len(KINDS)]
        place = folder / f"damage-{number:03d}"
        template.copy(KINDS[kind][0], place)
        half_done(kind, place)
        files = sorted(p for p in (place / kind).rglob("*") if p.is_file() and p.stat().st_size)
        file = draw.choice(files)
        at, bit = draw.randrange(file.stat().st_size), draw.randrange(1, 256)
        content = bytearray(file.read_bytes())
        content[at] ^= bit
        file.write_bytes(content)
        ends = commands(kind, place, options.patience)
        problem = judged(kind, place, file.relative_to(place), ends, wanted[kind])
        bad += bool(problem)
        name = f"{file.relative_to(place)} [{at}] ^ {bit}"
        text = ends[-1].err if ends[-1].err.strip() else ends[-1].out
        status = "-" if ends[-1].status is None else ends[-1].status
        print(f"{name[-84:]:84s} {status:>4}  {problem.upper() or 'ok'}: {last_line(text)}"[:400], flush=True)
        if not (options.keep and problem):
            shutil.rmtree(place, ignore_errors=True)
    print(f"\n{options.damages} damages, {bad} of them not as they must be")
    return int(bad > 0)


def half_done(kind: str, place: Path) -> None:
    """One run of a study is brought back to before its end."""
    if kind == "runs":
        last = place / "runs/study/smoke/b-seed=1"
        (last / "result.json").unlink()
        shutil.rmtree(last / "checkpoints" / "2048")


def commands(kind: str, place: Path, patience: float) -> list[Ended]:
    """How the commands ended, up to the first that did not end well."""
    ends = []
    for launcher, *flags in KINDS[kind][1]:
        ends.append(run(Job(place, launcher, tuple(flags)), patience))
        if ends[-1].status != 0:
            break
    return ends


def undisturbed(kind: str, template: Template, folder: Path, patience: float) -> dict:
    place = folder / f"undisturbed-{kind}"
    template.copy(KINDS[kind][0], place)
    half_done(kind, place)
    ends = commands(kind, place, patience)
    if ends[-1].status != 0:
        raise RuntimeError(f"{kind}: exit {ends[-1].status}\n{ends[-1].out}\n{ends[-1].err}")
    return result(kind, place)


def result(kind: str, place: Path) -> dict:
    """What the commands have made, without what a clock measured: values, and rows of which some may be missing."""
    if kind == "runs":
        with (place / "results/study/smoke/results.csv").open(newline="") as file:
            return {"rows": list(csv.DictReader(file))}
    workdir = place / {"half": "half", "store": "new"}[kind]
    loss = json.loads((workdir / "result.json").read_text())["loss"]
    return {"fingerprint": tiny.fingerprint(workdir), "loss": loss, "rows": tiny.rows(workdir)}


def judged(kind: str, place: Path, file: Path, ends: list[Ended], wanted: dict) -> str:
    """What is wrong; empty: nothing. A file is named by any part of its path that is no mere number or letter."""
    text, last = "".join(end.out + end.err for end in ends), ends[-1]
    named = any(part in text for part in file.parts[1:] if len(part) > 3 and part not in ("study", "smoke"))
    if last.status is None:
        return "time-out"
    if "Traceback (most recent call last)" in text or last.status < 0:
        return "traceback"
    if last.status:
        if not named:
            return "not named"
        return "" if len(last.err.splitlines()) == 1 or kind == "runs" else f"{len(last.err.splitlines())} lines"
    found = result(kind, place)
    if found == wanted:
        return ""
    rows, all_rows = found.pop("rows"), wanted["rows"]
    if found != {k: v for k, v in wanted.items() if k != "rows"} or any(row not in all_rows for row in rows):
        return "another result"
    return "" if named else "rows lost without a word"

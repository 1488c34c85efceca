"""A study: its planned runs, their folders and states, and the table of their results.

A study is a module of this package with

    SCALES    {scale: its settings}
    runs(scale) -> [(config, tags)]       every run; tags name it and become columns, "part" among them
    analyse(results) -> Analysis          fits, figures and claims from the rows of `results`
    measured(folder) -> columns           optional: what else `results` takes from a run that has ended
"""

import csv
import fcntl
import importlib.util
import json
import pkgutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxlab import studies
from jaxlab.config import InputError, check, flatten
from jaxlab.cost import flops
from jaxlab.model.families import parameters
from jaxlab.studies.claim import Claim

MACHINERY = ("study", "claim", "worker", "tuning", "report")
# What each scale is meant for, and its peak FLOP/s: of data sheets; for a CPU core, such that 40 % of it is what the
# runs of results/chinchilla/laptop reached, 1.45e14 FLOP in 6,420 seconds.
DEVICES = {
    "smoke": ("one CPU core", 56e9),
    "laptop": ("one CPU core", 56e9),
    "gpu": ("NVIDIA H100", flops.PEAK["NVIDIA H100"]),
    "paper": ("TPU v5e", flops.PEAK["TPU v5 lite"]),
}
ENDED = {"finished": "result.json", "diverged": "diverged.json"}  # a run that diverged is a result too


class Trial(NamedTuple):
    """One planned run. name: its folder, unique in the study."""

    name: str
    config: ConfigDict
    tags: dict


class Analysis(NamedTuple):
    """What a study makes of its results. fits: {title: table rows}; figures: {name: (figure, caption)}."""

    fits: dict[str, list[dict]]
    figures: dict[str, tuple]
    claims: list[Claim]


@dataclass(frozen=True)
class Study:
    """A study at one scale; folder: where its runs are."""

    name: str
    scale: str
    module: ModuleType
    folder: Path
    trials: tuple[Trial, ...]


def names() -> list[str]:
    """The studies that there are."""
    return sorted(m.name for m in pkgutil.iter_modules(studies.__path__) if m.name not in MACHINERY)


def load(study: str, runs: str | Path, *, part: str = "", changes: dict | None = None) -> Study:
    """The study `NAME:SCALE` or `FILE.py:SCALE`, or one part of it, its runs below the folder `runs`.

    changes: {dotted key: value} set in the config of every run. Raises InputError for an unknown name, scale, part or
    key, or a run whose config cannot work.
    """
    source, _, scale = study.rpartition(":")
    module = _module(study, source)
    if scale not in module.SCALES:
        raise InputError(f"--study={study}: {source} has no scale {scale!r}; it has {', '.join(module.SCALES)}")
    trials = [Trial(_folder_name(tags), config, tags) for config, tags in module.runs(scale)]
    parts = list(dict.fromkeys(t.tags["part"] for t in trials))
    if part and part not in parts:
        raise InputError(f"--part={part}: {study} has no such part; it has {', '.join(parts)}")
    trials = [t for t in trials if part in ("", t.tags["part"])]
    for trial in trials:
        for key, value in (changes or {}).items():
            _change(trial.config, key, value)
        check(trial.config)
    name = Path(source).stem
    return Study(name, scale, module, Path(runs) / name / scale, tuple(trials))


def _module(study: str, source: str) -> ModuleType:
    if source.endswith(".py"):
        if not Path(source).is_file():
            raise InputError(f"--study={study}: there is no file {source}")
        spec = importlib.util.spec_from_file_location(Path(source).stem, source)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if source not in names():
        raise InputError(f"--study={study}: must be NAME:SCALE with NAME one of {', '.join(names())}, or a file")
    return importlib.import_module(f"jaxlab.studies.{source}")


def _folder_name(tags: dict) -> str:
    return "-".join([tags["part"], *(f"{key}={value}" for key, value in tags.items() if key != "part")])


def _change(config: ConfigDict, key: str, value: str) -> None:
    known = flatten(config)
    if key not in known:
        raise InputError(f"--set {key}={value}: there is no such key in the config")
    kind = type(known[key])
    try:
        config.update_from_flattened_dict({key: value == "True" if kind is bool else kind(value)})
    except ValueError as error:
        raise InputError(f"--set {key}={value}: must be {kind.__name__}") from error


def status(folder: Path, running: bool | None = None) -> tuple[str, str]:
    """(state, reason) of a run: finished, diverged, failed, running, stopped, planned.

    running: whether a process holds it, where that is known.
    """
    for state, file in ENDED.items():
        if (folder / file).exists():
            return state, json.loads((folder / file).read_text()).get("reason", "")
    if not folder.exists():
        return "planned", ""
    if running is None:
        with held(folder) as ours:
            running = not ours
    if running:
        return "running", ""
    failure = folder / "failed.json"
    return ("failed", json.loads(failure.read_text())["reason"]) if failure.exists() else ("stopped", "")


@contextmanager
def held(folder: Path, patience: float = 0.0) -> Iterator[bool]:
    """Whether this process now holds `folder`: a lock of the file system's, gone with the process that held it.

    patience: seconds for which to try; `status` holds a run for a moment only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + patience
    with (folder / "lock").open("w") as file:
        while not (ours := _locked(file)) and time.monotonic() < until:
            time.sleep(0.01)
        yield ours


def _locked(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def facts(config: ConfigDict) -> dict:
    """Columns that the config decides: parameters N without and with embeddings, tokens D, FLOPs of training."""
    count = parameters(config.model)
    tokens = config.tokens // config.batch.tokens * config.batch.tokens
    return {
        "non_embedding": count["non_embedding"],
        "parameters": count["total"],
        "tokens": tokens,
        "flops": tokens * flops.training_per_token(config.model, config.batch.context),
    }


def results(study: Study) -> list[dict]:
    """A row for each run that has ended: tags, facts, status, loss (nats/token; none where it diverged), bits per
    byte, epochs over the corpus, the seconds of training, and what the study measured."""
    measured, rows = getattr(study.module, "measured", lambda folder: {}), []
    for trial in study.trials:
        folder = study.folder / trial.name
        state, _ = status(folder)
        if state in ENDED:
            ended = json.loads((folder / ENDED[state]).read_text())
            found = {name: ended.get(name) for name in ("loss", "bits_per_byte", "epochs", "seconds")}
            row = {"name": trial.name} | trial.tags | facts(trial.config) | {"status": state} | found
            rows.append(row | measured(folder))
    return rows


def pace(study: Study) -> tuple[float, str]:
    """(seconds a FLOP of training, how that is known): as the study's ended runs went, else on the scale's device at
    40 % of its peak, which is what well-tuned programs reach."""
    rows = [row for row in results(study) if row["status"] == "finished"]
    if rows:
        return sum(r["seconds"] for r in rows) / sum(r["flops"] for r in rows), f"as its {len(rows)} finished runs went"
    device, peak = DEVICES.get(study.scale, DEVICES["laptop"])
    return 1 / (0.4 * peak), f"{device}, {peak / 1e12:,.3g} TFLOP/s at 40 %"


def write_csv(path: Path, rows: list[dict]) -> None:
    """A tidy table; columns in the order of the first row."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

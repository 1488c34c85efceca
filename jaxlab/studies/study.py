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
import io
import json
import math
import pkgutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxlab import files, studies
from jaxlab.config import InputError, check, check_keys, differences, flatten, from_text
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
NUMBER = (int, float)
RECORDS = {  # what a record has at least
    "result.json": {"tokens": int, "loss": NUMBER, "bits_per_byte": NUMBER, "epochs": NUMBER, "seconds": NUMBER},
    "diverged.json": {"reason": str, "seconds": NUMBER},
    "failed.json": {"reason": str},
    "config.json": {"config": dict, "versions": dict, "machine": str},
}


class OtherRun(InputError):
    """A run's folder holds one of another config than the study plans."""


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

    changes: {dotted key: text} set in the config of every run, each read as its key's default is. Raises InputError for
    an unknown name, scale, part or key, a file that is no study, or a run whose config cannot work.
    """
    source, _, scale = study.rpartition(":")
    module = _module(study, source)
    if scale not in module.SCALES:
        raise InputError(f"--study={study}: {source} has no scale {scale!r}; it has {', '.join(module.SCALES)}")
    name = Path(source).stem
    for text in (name, scale):
        _check_name(study, text)
    trials = _trials(study, module, scale)
    parts = list(dict.fromkeys(t.tags["part"] for t in trials))
    if part and part not in parts:
        raise InputError(f"--part={part}: {study} has no such part; it has {', '.join(parts)}")
    trials = [t for t in trials if part in ("", t.tags["part"])]
    values = _values(changes or {})
    for trial in trials:
        trial.config.update_from_flattened_dict(values)
        check(trial.config)
    folder = files.local(runs, "--runs") / name / scale
    for path in (*folder.parents[1::-1], folder):
        if path.exists() and not path.is_dir():
            raise InputError(f"--runs={runs}: {path} is a file; must be a folder")
    return Study(name, scale, module, folder, tuple(trials))


def _module(study: str, source: str) -> ModuleType:
    if not source.endswith(".py"):
        if source not in names():
            raise InputError(f"--study={study}: must be NAME:SCALE with NAME one of {', '.join(names())}, or a file")
        return importlib.import_module(f"jaxlab.studies.{source}")
    path = files.local(source, "--study")
    if not path.is_file():
        raise InputError(f"--study={study}: there is no file {source}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with of_the_study(study, "cannot be imported"):
        spec.loader.exec_module(module)
    scales = getattr(module, "SCALES", None)
    if not isinstance(scales, dict) or not scales or not all(isinstance(name, str) for name in scales):
        raise InputError(f"--study={study}: {source} needs SCALES, a dict of settings by the name of their scale")
    for name in ("runs", "analyse"):
        if not callable(getattr(module, name, None)):
            raise InputError(f"--study={study}: {source} needs a function {name}")
    return module


def _trials(study: str, module: ModuleType, scale: str) -> list[Trial]:
    """What the module plans, once it is known to be pairs of a whole config and tags of one kind."""
    with of_the_study(study, "runs(...) failed"):
        planned = list(module.runs(scale) or ())
        pairs = [(config, tags) for config, tags in planned]
    if not pairs:
        raise InputError(f"--study={study}: runs({scale!r}) plans no run")
    trials = {}
    for config, tags in pairs:
        if not isinstance(config, ConfigDict):
            raise InputError(f"--study={study}: the config of a run is {config!r:.60}; must be a ConfigDict")
        try:
            check_keys(flatten(config))
        except InputError as error:
            raise InputError(f"--study={study}: {error}") from error
        if not isinstance(tags, dict) or not isinstance(tags.get("part"), str):
            raise InputError(f"--study={study}: tags {tags!r}: must be a dict with the name of a part")
        if tags.keys() != pairs[0][1].keys():
            raise InputError(f"--study={study}: tags {tags!r}: must have the names {', '.join(map(str, pairs[0][1]))}")
        name = _folder_name(tags)
        _check_name(study, name)
        if name in trials:
            raise InputError(f"--study={study}: two runs have the tags {name}")
        trials[name] = Trial(name, config, tags)
    return list(trials.values())


@contextmanager
def of_the_study(study: str, what: str) -> Iterator[None]:
    """Within it, whatever the code of a study raises becomes one InputError that says where; SystemExit too."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(at.filename).name}, line {at.lineno}"
        raise InputError(f"--study={study}: {what}: {type(error).__name__}: {error} ({where})") from error


def _folder_name(tags: dict) -> str:
    return "-".join([tags["part"], *(f"{key}={value}" for key, value in tags.items() if key != "part")])


def _check_name(study: str, name: str) -> None:
    """A folder has this name, and tables and reports print it."""
    if not name.isprintable() or "/" in name or name.startswith(".") or not 0 < len(name.encode()) <= 200:
        raise InputError(f"--study={study}: {name!r}: must be the name of a folder, 1 to 200 bytes of printable text")


def _values(changes: dict[str, str]) -> dict:
    try:
        return {key: from_text(key, str(text)) for key, text in changes.items()}
    except InputError as error:
        raise InputError(f"--set {error}") from error


def status(folder: Path, running: bool | None = None) -> tuple[str, str]:
    """(state, reason) of a run: finished, diverged, failed, running, stopped, planned, or damaged where a record of it
    cannot be read. Writes nothing.

    running: whether a process holds it, where that is known.
    """
    try:
        for state, file in ENDED.items():
            if (folder / file).exists():
                return state, line_of(record(folder / file).get("reason", ""))
        if not folder.exists():
            return "planned", ""
        if _is_held(folder) if running is None else running:
            return "running", ""
        failure = folder / "failed.json"
        return ("failed", line_of(record(failure)["reason"])) if failure.exists() else ("stopped", "")
    except InputError as error:
        return "damaged", line_of(error)
    except OSError as error:
        return "damaged", line_of(f"{error.filename}: {error.strerror}")


def record(path: Path) -> dict:
    """One of the RECORDS of a run. Raises InputError."""
    content = files.read_record(path, **RECORDS[path.name])
    for key, value in content.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{path}: {key} is {value}; must be finite")
    return content


def line_of(reason) -> str:
    """A reason as one line that can be printed: control characters and what is not Unicode are escaped."""
    text = " ".join(str(reason).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def held(folder: Path, patience: float = 0.0) -> Iterator[bool]:
    """Whether this process now holds `folder`: a lock of the file system's, gone with the process that held it, whose
    number is in it.

    patience: seconds for which to try; `status` has the lock of a run for a moment only. Raises OSError where there can
    be no lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / "lock", patience) as ours:
        yield ours


def holder(folder: Path) -> int | None:
    """The process that holds a run, or held it last."""
    try:
        return int((folder / "lock").read_text())
    except (OSError, ValueError):
        return None


def _is_held(folder: Path) -> bool:
    try:
        with (folder / "lock").open() as file:  # to read: others' runs, and disks that cannot be written, are seen too
            return not files.lock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def facts(config: ConfigDict) -> dict:
    """Columns that the config decides: parameters N without and with embeddings, tokens D of its whole steps, FLOPs of
    training. Batches that grow are rounded as on one device."""
    count, steps = parameters(config.model), _steps(config)
    return {
        "non_embedding": count["non_embedding"],
        "parameters": count["total"],
        "tokens": sum(tokens for tokens, _ in steps),
        "flops": sum(tokens * flops.training_per_token(config.model, context) for tokens, context in steps),
    }


def _steps(config: ConfigDict) -> list[tuple[int, int]]:
    """(tokens, context) of the steps of each size that a run takes, to its last whole one."""
    b = config.batch
    if not b.growth and not b.context_growth:
        return [(config.tokens // b.tokens * b.tokens, b.context)]
    from jaxlab.optim.batch_growth import rounded, size_at, sizes, walk  # JAX counts its cores when it is imported
    from jaxlab.train.build import stages

    wanted, contexts = stages(config), sizes(b.context_growth or b.context)
    batches = {}
    for start in {*wanted, *contexts}:
        unit = config.replicas * (b.micro_tokens or size_at(contexts, start))
        batches |= rounded({start: size_at(wanted, start)}, unit)
    taken = walk(batches, config.tokens)
    return [(stage.size * stage.steps, size_at(contexts, stage.start)) for stage in taken]


def row(study: Study, trial: Trial) -> dict | None:
    """A run's row of `results`; None where it has not ended. Raises InputError where a file that the row is made of is
    damaged, or belongs to a run of another config."""
    folder = study.folder / trial.name
    state, reason = status(folder)
    if state == "damaged":
        raise InputError(reason)
    if state not in ENDED:
        return None
    ended, begun = record(folder / ENDED[state]), record(folder / "config.json")
    if differing := differences(begun["config"], json.loads(json.dumps(flatten(trial.config)))):
        raise OtherRun(f"{folder}: holds a run that differs in {'; '.join(differing)}")
    columns = {name: ended.get(name) for name in ("loss", "bits_per_byte", "epochs", "seconds")}
    made = {"name": trial.name} | trial.tags | facts(trial.config) | {"status": state} | columns
    if not hasattr(study.module, "measured"):
        return made
    check_metrics(folder, ended.get("steps"))
    with files.reading(folder):
        return made | study.module.measured(folder)


def check_metrics(folder: Path, steps: int | None) -> None:
    """Raises InputError unless all lines of a run's metrics.jsonl are sound, and those of all steps are there."""
    path = folder / "metrics.jsonl"
    rows, others = files.read_rows(path, kind=str, tokens=int)
    if others:
        raise InputError(f"{path}: {len(others)} of {len(rows) + len(others)} lines are damaged")
    trained = sum(r["kind"] == "train" for r in rows)
    if steps is not None and trained != steps:
        raise InputError(f"{path}: has {trained} of the run's {steps} steps")


def survey(study: Study) -> tuple[list[dict], dict[str, str]]:
    """(rows of the runs that have ended, {name: what is wrong with it} of those that cannot be read).

    A row has tags, facts, status, loss (nats/token; none where it diverged), bits per byte, epochs over the corpus, the
    seconds of training, and what the study measured.
    """
    rows, left = [], {}
    for trial in study.trials:
        try:
            found = row(study, trial)
        except InputError as error:
            why = "of another config" if isinstance(error, OtherRun) else "damaged"
            left[trial.name] = f"{why}: {line_of(error)}"
            continue
        if found:
            rows.append(found)
    return rows, left


def results(study: Study) -> list[dict]:
    """The rows of `survey`."""
    return survey(study)[0]


def pace(study: Study) -> tuple[float, str]:
    """(seconds a FLOP of training, how that is known): as the study's finished runs went, else on the scale's device at
    40 % of its peak, which is what well-tuned programs reach."""
    rows = [row for row in results(study) if row["status"] == "finished"]
    seconds = sum(row["seconds"] for row in rows)
    if seconds > 0:
        return seconds / sum(row["flops"] for row in rows), f"as its {len(rows)} finished runs went"
    device, peak = DEVICES.get(study.scale, DEVICES["laptop"])
    return 1 / (0.4 * peak), f"{device}, {peak / 1e12:,.3g} TFLOP/s at 40 %"


def csv_text(rows: list[dict]) -> str:
    """A tidy table; columns in the order of the first row."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()

"""Runs a study and reports on it: python -m launch.study --study=chinchilla:laptop run | list | report"""

from dataclasses import replace

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from jaxlab import files
from jaxlab.config import InputError
from jaxlab.studies.study import ENDED, Study, Trial, facts, held, line_of, load, pace, status, survey
from jaxlab.train.log import say
from launch import entry
from launch.prepare import prepare_with_progress

_STUDY = flags.DEFINE_string("study", None, "NAME:SCALE, as in chinchilla:laptop, or FILE.py:SCALE", required=True)
_PART = flags.DEFINE_string("part", "", "one named part of the study; empty: all of it")
_INDEX = flags.DEFINE_integer("index", None, "train only the run with this number in `list`, as for array jobs")
_WORKERS = flags.DEFINE_integer("workers", 0, "worker processes; 0: one per CPU core, one on accelerators", 0)
_RUNS = flags.DEFINE_string("runs", "runs", "folder of the runs")
_RESULTS = flags.DEFINE_string("results", "results", "folder of the reports")
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE: a change to the config of every run")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the runs that `run` would train, and their cost")
WIDE = 10_000  # characters; in a pipe or a file tables are not wrapped


def main(words: list[str], console: Console) -> int:
    console = console if console.is_terminal else entry.console(width=WIDE)
    actions = {"run": run, "list": show, "report": report}
    if len(words) != 1 or words[0] not in actions:
        raise InputError(f"{' '.join(words) or 'no action'}: say one of {', '.join(actions)}")
    changes = {}
    for change in _SET.value:
        key, given, value = change.partition("=")
        if not given:
            raise InputError(f"--set={change}: must be KEY=VALUE")
        if key in changes:
            raise InputError(f"--set={change}: {key} is set twice, to {changes[key]} too")
        changes[key] = value
    return actions[words[0]](load(_STUDY.value, _RUNS.value, part=_PART.value, changes=changes), changes, console)


def run(study: Study, changes: dict, console: Console) -> int:
    """Trains the runs that have not ended, damaged ones from the start; returns 1 unless all runs have ended."""
    trials = study.trials
    if _INDEX.value is not None:
        if not 0 <= _INDEX.value < len(trials):
            raise InputError(f"--index={_INDEX.value}: the study has runs 0 to {len(trials) - 1}")
        trials = trials[_INDEX.value : _INDEX.value + 1]
    if _DRY_RUN.value:
        console.print(cost(study, trials))
        return 0
    from jaxlab.studies import worker

    workers = _WORKERS.value or worker.as_many_as_fit()
    worker.check_workers(workers)
    prepare(study, console)
    for trial in trials:
        try:
            if mended := worker.mend(study, trial):
                say(console, f"{trial.name}: {mended}")
        except OSError as error:
            say(console, line_of(f"{trial.name}: {error.filename}: {error.strerror}"))
    plain = TextColumn("{task.description}", markup=False)
    columns = (MofNCompleteColumn(), BarColumn(), plain, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        watch = Watch(study, trials, bar)
        again = {"study": _STUDY.value, "runs": _RUNS.value, "part": _PART.value, "changes": changes}
        lost = worker.run(study, trials, workers, again, watch)
        watch()
    rows, left = survey(replace(study, trials=trials))
    ended = {row["name"] for row in rows}
    stand = {t.name: left.get(t.name) or " ".join(status(study.folder / t.name)).rstrip() for t in trials}
    failed = [f"{name}: {text}" for name, text in stand.items() if name not in ended]
    for line in (*lost, *failed):
        say(console, line)
    say(console, f"{len(trials) - len(failed)} of {len(trials)} runs have ended, in {line_of(study.folder)}")
    return int(bool(failed))


class Watch:
    """Reports every run that ends, and shows which are running."""

    def __init__(self, study: Study, trials: tuple[Trial, ...], bar: Progress):
        self._study, self._bar = study, bar
        self._waiting = {t.name for t in trials if self._state(t.name)[0] not in ENDED}
        self._task = bar.add_task("", total=len(trials), completed=len(trials) - len(self._waiting))

    def _state(self, name: str) -> tuple[str, str]:
        return status(self._study.folder / name)

    def __call__(self) -> None:
        running = []
        for name in sorted(self._waiting):
            state, reason = self._state(name)
            if state in ENDED:
                self._waiting.remove(name)
                self._bar.advance(self._task)
                say(self._bar.console, f"{name}: {state} {reason}".rstrip())
            elif state == "running":
                running.append(name)
        self._bar.update(self._task, description="  ".join(running))


def prepare(study: Study, console: Console) -> None:
    """Prepares the token stores of the runs that are not there yet."""
    for data in {trial.config.data.store: trial.config.data for trial in study.trials}.values():
        with held(study.folder.parent, patience=float("inf")):  # one process of an array job prepares, the others wait
            prepare_with_progress(data, console)


def show(study: Study, changes: dict, console: Console) -> int:
    """Prints every run with its status."""
    rows, left = survey(study)
    ended = {row["name"]: row for row in rows}
    table = wrapped("index", *study.trials[0].tags, "status", "loss", "bits/byte", "seconds")
    for i, trial in enumerate(study.trials):
        stands = left.get(trial.name) or " ".join(status(study.folder / trial.name)).rstrip()
        row = ended.get(trial.name, {})
        columns = (("loss", ".4f"), ("bits_per_byte", ".4f"), ("seconds", ",.0f"))
        numbers = (format(row[k], f) if row.get(k) is not None else "" for k, f in columns)
        table.add_row(*map(str, (i, *trial.tags.values(), stands, *numbers)))
    console.print(table)
    return 0


def wrapped(*columns: str) -> Table:
    """A table that wraps its cells in a narrow terminal instead of truncating them."""
    return Table(*(Column(name, overflow="fold") for name in columns), title_justify="left")


def report(study: Study, changes: dict, console: Console) -> int:
    """Writes the report of the runs that have ended, and docs/REPRODUCE.md if --results is a folder named results."""
    from jaxlab.studies.report import reproduce, write

    sets = "".join(f" --set={key}={value}" for key, value in changes.items())
    part = f" --part={_PART.value}" if _PART.value else ""
    folder = files.local(_RESULTS.value, "--results")
    paths, left = write(study, folder, f"python -m launch.study --study={_STUDY.value}{part}{sets} run")
    for path in paths:
        say(console, line_of(path))
    missing = [t.name for t in study.trials if status(study.folder / t.name)[0] not in (*ENDED, "damaged")]
    if missing:
        say(console, f"{len(missing)} of {len(study.trials)} runs have not ended and are left out: {missing[0]}, ...")
    if left:
        say(console, f"{len(left)} of {len(study.trials)} runs are left out:")
    for name, reason in left.items():
        say(console, f"{name}: {reason}")
    page = folder.parent / "docs" / "REPRODUCE.md"
    ours = page.exists() and "python -m launch.study" in page.read_text(errors="replace")
    if folder.name == "results" and page.parent.is_dir() and (ours or not page.exists()):
        files.write_atomic(page, reproduce(folder))
    return 0


def cost(study: Study, trials: tuple[Trial, ...]) -> Table:
    """A table of the runs: parameters N without and with embeddings, tokens D, FLOPs, predicted chip-hours."""
    seconds_per_flop, basis = pace(study)
    tags = [name for name in trials[0].tags if name != "tokens"]
    table = wrapped(*tags, "N", "N + embeddings", "D", "FLOP", "chip-hours")
    total = 0.0
    for trial in trials:
        f = facts(trial.config)
        total += f["flops"]
        counts = (f"{f[k]:,}" for k in ("non_embedding", "parameters", "tokens"))
        hours = f["flops"] * seconds_per_flop / 3600
        table.add_row(*(str(trial.tags[k]) for k in tags), *counts, f"{f['flops']:.3g}", f"{hours:,.3g}")
    hours = total * seconds_per_flop / 3600
    table.title = f"{len(trials)} runs, {total:.3g} FLOP, {hours:,.3g} chip-hours ({basis})"
    return table


if __name__ == "__main__":
    entry.with_huge_pages()
    entry.run_actions(main)

"""Runs a study and reports on it: python -m launch.study --study=chinchilla:laptop run | list | report"""

from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from jaxlab.config import InputError
from jaxlab.studies.study import ENDED, Study, Trial, facts, held, load, pace, results, status
from launch import entry
from launch.prepare import prepare_with_progress

_STUDY = flags.DEFINE_string("study", None, "NAME:SCALE, as in chinchilla:laptop, or FILE.py:SCALE", required=True)
_PART = flags.DEFINE_string("part", "", "one named part of the study; empty: all of it")
_INDEX = flags.DEFINE_integer("index", None, "run only the run of this number in `list`: an array job's index")
_WORKERS = flags.DEFINE_integer("workers", 0, "processes side by side; 0: one a core on CPU, one on accelerators", 0)
_POPULATION = flags.DEFINE_integer("population", 1, "runs of one shape that train as one vmapped program", 1)
_RUNS = flags.DEFINE_string("runs", "runs", "folder of the runs")
_RESULTS = flags.DEFINE_string("results", "results", "folder of the reports")
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE: a change to the config of every run")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print what `run` would run, and what it would cost")
WIDE = 10_000  # characters: a pipe or a file has tables whole


def main(words: list[str], console: Console) -> int:
    console = console if console.is_terminal else Console(width=WIDE)
    actions = {"run": run, "list": show, "report": report}
    if len(words) != 1 or words[0] not in actions:
        raise InputError(f"{' '.join(words) or 'no action'}: say one of {', '.join(actions)}")
    changes = dict(change.partition("=")[::2] for change in _SET.value)
    return actions[words[0]](load(_STUDY.value, _RUNS.value, part=_PART.value, changes=changes), changes, console)


def run(study: Study, changes: dict, console: Console) -> int:
    """Trains what has not ended; 1 if a run has failed."""
    trials = study.trials
    if _INDEX.value is not None:
        if not 0 <= _INDEX.value < len(trials):
            raise InputError(f"--index={_INDEX.value}: the study has runs 0 to {len(trials) - 1}")
        trials = trials[_INDEX.value : _INDEX.value + 1]
    if _DRY_RUN.value:
        console.print(cost(study, trials))
        return 0
    from jaxlab.studies import worker

    prepare(study, console)
    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        watch = Watch(study, trials, bar)
        again = {"study": _STUDY.value, "runs": _RUNS.value, "part": _PART.value, "changes": changes}
        worker.run(study, trials, _WORKERS.value or worker.as_many_as_fit(), _POPULATION.value, again, watch)
        watch()
    left = {t.name: status(study.folder / t.name) for t in trials}
    failed = [f"{name}: {state}, {reason}" for name, (state, reason) in left.items() if state not in ENDED]
    for line in failed:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"{len(trials) - len(failed)} of {len(trials)} runs have ended, in {study.folder}")
    return bool(failed)


class Watch:
    """Tells of every run when it ends, and which are on."""

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
                self._bar.console.print(f"{name}: {state} {reason}".rstrip(), highlight=False, soft_wrap=True)
            elif state == "running":
                running.append(name)
        self._bar.update(self._task, description="  ".join(running))


def prepare(study: Study, console: Console) -> None:
    """Prepares the token stores of the runs that are not there yet."""
    for data in {trial.config.data.store: trial.config.data for trial in study.trials}.values():
        with held(study.folder.parent, patience=float("inf")):  # one process prepares, the others of an array wait
            prepare_with_progress(data, console)


def show(study: Study, changes: dict, console: Console) -> int:
    """Prints every run and how it stands."""
    found = {row["name"]: row for row in results(study)}
    table = wrapped("index", *study.trials[0].tags, "status", "loss", "bits/byte", "seconds")
    for i, trial in enumerate(study.trials):
        state, reason = status(study.folder / trial.name)
        row = found.get(trial.name, {})
        columns = (("loss", ".4f"), ("bits_per_byte", ".4f"), ("seconds", ",.0f"))
        numbers = (format(row[k], f) if row.get(k) is not None else "" for k, f in columns)
        table.add_row(str(i), *map(str, trial.tags.values()), f"{state} {reason}".strip(), *numbers)
    console.print(table)
    return 0


def wrapped(*columns: str) -> Table:
    """A table that loses nothing where a terminal is too narrow."""
    return Table(*(Column(name, overflow="fold") for name in columns), title_justify="left")


def report(study: Study, changes: dict, console: Console) -> int:
    """Writes the report of what has ended so far, and docs/REPRODUCE.md anew, where there are docs."""
    from jaxlab.studies.report import reproduce, write

    sets = "".join(f" --set={key}={value}" for key, value in changes.items())
    part = f" --part={_PART.value}" if _PART.value else ""
    for path in write(study, _RESULTS.value, f"python -m launch.study --study={_STUDY.value}{part}{sets} run"):
        console.print(str(path), highlight=False, soft_wrap=True)
    docs = Path(_RESULTS.value).parent / "docs"
    if docs.is_dir():
        (docs / "REPRODUCE.md").write_text(reproduce(_RESULTS.value))
    missing = [t.name for t in study.trials if status(study.folder / t.name)[0] not in ENDED]
    if missing:
        console.print(f"{len(missing)} of {len(study.trials)} runs have not ended and are left out: {missing[0]}, ...")
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

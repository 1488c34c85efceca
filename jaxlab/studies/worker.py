"""Workers: processes that take the runs of a study one after another, beside each other, until all have ended."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rich.console import Console

from jaxlab import files
from jaxlab.config import InputError
from jaxlab.studies.study import (
    ENDED,
    RECORDS,
    Study,
    Trial,
    check_metrics,
    facts,
    held,
    holder,
    line_of,
    load,
    record,
    status,
)

STAY = ("lock", "log.txt")  # where the rest of a run is set aside
ALL = ("config.json", "metrics.jsonl")  # where one of these is damaged, the run is trained again from its start


def run(study: Study, trials: Sequence[Trial], workers: int, again: dict, watch: Callable) -> list[str]:
    """Trains the trials, in this process if workers is 1 and otherwise in that many, each on its own cores.

    again: the arguments of `load` that made the study, for the other processes. watch() is called while they work.
    Returns a line for each process that was killed, with the run that it had: the same command takes that up again.
    Small models leave a second core idle: two processes of one core each train 1.4 to 1.9 times as many tokens a second
    as one process of two (docs/LAB.md).
    """
    if workers == 1:
        train_all(study, trials)
        return []
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")  # JAX has threads, which a fork would lose
    names = [trial.name for trial in trials]
    work = [(again, names, cores[i::workers]) for i in range(workers)]
    processes = [context.Process(target=_work, args=args) for args in work]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes):
            for process in processes:
                process.join(1 / workers)
            watch()
    finally:  # Ctrl-C reaches the workers too, and they save what they hold
        for process in processes:
            process.join()
    return [_lost(study, trials, process) for process in processes if process.exitcode]


def _lost(study: Study, trials: Sequence[Trial], process) -> str:
    left = [t.name for t in trials if status(study.folder / t.name)[0] not in ENDED]
    runs = [name for name in left if holder(study.folder / name) == process.pid]
    code = process.exitcode
    how = f"with status {code}" if code > 0 else f"by {signal.Signals(-code).name}"
    how += ", as for want of memory" if code == -signal.SIGKILL else ""
    return f"a worker was ended {how}; it had {', '.join(runs) or 'no run'}"


def check_workers(workers: int) -> None:
    """Raises InputError for more workers than cores."""
    cores = len(os.sched_getaffinity(0))
    if workers > cores:
        raise InputError(f"--workers={workers}: this machine has {cores} cores")


def mend(study: Study, trial: Trial) -> str:
    """Sets aside what is damaged of a run that nobody holds: a record of its end, so that it is finished again, or all
    that there is where its config or its metrics are damaged. Returns a line that says so, or nothing.

    Raises OSError where the folder cannot be written.
    """
    folder = study.folder / trial.name
    if status(folder)[0] in ("planned", "running"):
        return ""
    with held(folder) as ours:
        damaged = _damaged(study, folder) if ours else {}
        if not damaged:
            return ""
        names = damaged.keys()
        if names & set(ALL):
            names = {p.name for p in folder.iterdir() if p.name not in STAY and not p.name.startswith("damaged-")}
        aside = folder / f"damaged-{1 + len(list(folder.glob('damaged-*')))}"
        aside.mkdir()
        for name in names:
            (folder / name).rename(aside / name)
        return f"{'; '.join(map(line_of, damaged.values()))}: set aside in {aside.name}, and made again"


def _damaged(study: Study, folder: Path) -> dict[str, InputError]:
    """{file: what is wrong with it} of the files by which a run is known."""
    wrong, steps = {}, None
    ended = any((folder / file).exists() for file in ENDED.values())
    for name in RECORDS:
        try:
            if (folder / name).exists() or (ended and name == "config.json"):
                content = record(folder / name)
                steps = content.get("steps", steps)
        except InputError as error:
            wrong[name] = error
    if ended and hasattr(study.module, "measured"):
        try:
            check_metrics(folder, steps)
        except InputError as error:
            wrong["metrics.jsonl"] = error
    return wrong


def as_many_as_fit() -> int:
    """One worker a core on a machine of CPUs; one on accelerators, which it takes all."""
    import jax

    return len(os.sched_getaffinity(0)) if jax.default_backend() == "cpu" else 1


def _work(again: dict, names: list[str], cores: list[int]) -> None:
    os.sched_setaffinity(0, cores)  # before JAX counts them
    threading.Thread(target=_stop_when_orphaned, daemon=True).start()
    try:
        study = load(**again)
        train_all(study, [trial for trial in study.trials if trial.name in names])
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, OSError) as error:  # of what all runs have in common
        print(f"error: {line_of(error)}", file=sys.stderr)
        sys.exit(2)


def _stop_when_orphaned() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)  # the run that is on saves, and stops


def train_all(study: Study, trials: Sequence[Trial]) -> None:
    """Trains, one after another, the trials that have not ended and that nobody else holds.

    Runs of one shape follow each other through one compiled program. What a run prints goes to its log.txt; a run
    that fails leaves its reason in failed.json, and the next one is taken. Told to stop, it saves and returns.
    """
    _keep_compiled_programs(study.folder.parent / ".compiled")
    program = None
    for trial in sorted(trials, key=_longest_shape_first):
        folder, ours = study.folder / trial.name, False
        with ExitStack() as lock:
            with suppress(OSError):  # of one run's folder, which `status` tells of
                ours = lock.enter_context(held(folder, patience=1.0))
            if ours and status(folder, running=False)[0] not in ENDED:
                program, stopped = _train(trial, folder, program)
                if stopped:
                    return


def _longest_shape_first(trial: Trial) -> tuple:
    """Workers that take the longest runs first end together."""
    found = facts(trial.config)
    per_token = found["flops"] // max(found["tokens"], 1)
    return -per_token, json.dumps(trial.config.model.to_dict()), trial.config.batch.tokens, -found["tokens"], trial.name


def _train(trial: Trial, folder: Path, program) -> tuple:
    """(the program that served last, whether the run was stopped by a signal)."""
    from jaxlab.train.build import build  # JAX counts its cores when it is imported
    from jaxlab.train.loop import train

    with _failure_noted(folder), (folder / "log.txt").open("a", encoding="utf-8") as file:
        run = build(trial.config, compiled=program)
        program = run.program
        return program, train(run, folder, Console(file=file, width=120, markup=False)) is None
    return program, False


@contextmanager
def _failure_noted(folder: Path) -> Iterator[None]:
    """Within it, a run that diverges leaves diverged.json and one that fails failed.json: the study goes on. Raises
    OSError where not even that can be written."""
    from jaxlab.train.checkpoint import NonFinite

    (folder / "failed.json").unlink(missing_ok=True)
    try:
        yield
    except NonFinite as error:
        _note_divergence(folder, error)
    except Exception as error:  # of any kind
        with suppress(OSError), (folder / "log.txt").open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        files.write_record(folder / "failed.json", {"reason": f"{type(error).__name__}: {error}"})


def _note_divergence(folder: Path, error: Exception) -> None:
    from jaxlab.train.log import read

    seconds = sum(row.get("seconds", 0) for row in read(folder / "metrics.jsonl"))
    files.write_record(folder / ENDED["diverged"], {"reason": str(error), "seconds": round(seconds, 1)})


def _keep_compiled_programs(folder: Path) -> None:
    """JAX's persistent cache of compiled programs, unless it is set up already.

    zlib notices a changed byte, and JAX then compiles anew. zstd, which JAX prefers where it is there, does not: a
    damaged program would be run.
    """
    import jax
    from jax._src import compilation_cache  # nothing public chooses

    if not jax.config.jax_compilation_cache_dir:
        compilation_cache.zstd = compilation_cache.zstandard = None
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))

"""Workers: processes that take the runs of a study one after another, beside each other, until all have ended."""

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from jaxlab.config import InputError
from jaxlab.studies.study import ENDED, Study, Trial, facts, held, load, status


def run(study: Study, trials: Sequence[Trial], workers: int, population: int, again: dict, watch: Callable) -> None:
    """Trains the trials, in this process if workers is 1 and otherwise in that many, each on its own cores.

    population: how many runs of one shape train as one program (train.population). again: the arguments of `load` that
    made the study, for the other processes. watch() is called while they work. Raises InputError for more workers than
    cores. Small models leave a second core idle: two processes of one core each train 1.4 to 1.9 times as many tokens a
    second as one process of two (docs/LAB.md).
    """
    cores = sorted(os.sched_getaffinity(0))
    if workers > len(cores):
        raise InputError(f"--workers={workers}: this machine has {len(cores)} cores")
    if workers == 1:
        return train_all(study, trials, population)
    context = multiprocessing.get_context("spawn")  # JAX has threads, which a fork would lose
    names = [trial.name for trial in trials]
    work = [(again, names, population, cores[i::workers]) for i in range(workers)]
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


def as_many_as_fit() -> int:
    """One worker a core on a machine of CPUs; one on accelerators, which it takes all."""
    import jax

    return len(os.sched_getaffinity(0)) if jax.default_backend() == "cpu" else 1


def _work(again: dict, names: list[str], population: int, cores: list[int]) -> None:
    os.sched_setaffinity(0, cores)  # before JAX counts them
    threading.Thread(target=_stop_when_orphaned, daemon=True).start()
    study = load(**again)
    train_all(study, [trial for trial in study.trials if trial.name in names], population)


def _stop_when_orphaned() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)  # the run that is on saves, and stops


def train_all(study: Study, trials: Sequence[Trial], population: int = 1) -> None:
    """Trains, one after another or `population` at once, the trials that have not ended and that nobody else holds.

    Runs of one shape follow each other through one compiled program. What a run prints goes to its log.txt; a run
    that fails leaves its reason in failed.json, and the next one is taken. Told to stop, it saves and returns.
    """
    _keep_compiled_programs(study.folder.parent / ".compiled")
    program, waiting = None, deque(sorted(trials, key=_longest_shape_first))
    while waiting:
        with ExitStack() as locks:
            taken = []
            while waiting and len(taken) < population and _same_plan(waiting[0], taken):
                trial = waiting.popleft()
                folder = study.folder / trial.name
                ours = locks.enter_context(held(folder, patience=1.0))
                if ours and status(folder, running=False)[0] not in ENDED:
                    taken.append(trial)
            program, stopped = _train(study, taken, program)
        if stopped:
            return


def _same_plan(trial: Trial, taken: list[Trial]) -> bool:
    """Whether a trial is of the shape and length of those taken, of which there may be none."""
    return all(_longest_shape_first(trial)[:-1] == _longest_shape_first(other)[:-1] for other in taken)


def _longest_shape_first(trial: Trial) -> tuple:
    """Workers that take the longest runs first end together."""
    found = facts(trial.config)
    per_token = found["flops"] // found["tokens"]
    return -per_token, json.dumps(trial.config.model.to_dict()), trial.config.batch.tokens, -found["tokens"], trial.name


def _train(study: Study, trials: list[Trial], program) -> tuple:
    """(the program that served last, whether told to stop)."""
    from jaxlab.train.build import build  # JAX counts its cores when it is imported
    from jaxlab.train.loop import train
    from jaxlab.train.population import alike, in_step, train_together

    with ExitStack() as logs:
        folders = [study.folder / trial.name for trial in trials]
        files = [logs.enter_context((folder / "log.txt").open("a")) for folder in folders]
        consoles = [Console(file=file, width=120) for file in files]
        runs = []
        for trial, folder, console in zip(trials, folders, consoles, strict=True):
            with _failure_noted([folder], console):
                runs.append((build(trial.config, program), folder, console))
                program = runs[-1][0].program
        if len(runs) > 1 and all(alike(run, runs[0][0]) for run, *_ in runs) and in_step([f for _, f, _ in runs]):
            with _failure_noted(folders, consoles[0]):
                outcomes = train_together(*map(list, zip(*runs, strict=True)))
                for folder, outcome in zip(folders, outcomes, strict=True):
                    _note_divergence(folder, outcome)
                return program, any(outcome is None for outcome in outcomes)
            return program, False
        for run, folder, console in runs:
            with _failure_noted([folder], console):
                if train(run, folder, console) is None:
                    return program, True
    return program, False


@contextmanager
def _failure_noted(folders: list[Path], console: Console) -> Iterator[None]:
    """Within it, a run that diverges leaves diverged.json and one that fails failed.json: the study goes on."""
    from jaxlab.train.checkpoint import NonFinite

    for folder in folders:
        (folder / "failed.json").unlink(missing_ok=True)
    try:
        yield
    except NonFinite as error:
        _note_divergence(*folders, error)
    except Exception as error:  # of any kind
        console.print_exception()
        for folder in folders:
            _write(folder / "failed.json", {"reason": f"{type(error).__name__}: {error}"})


def _note_divergence(folder: Path, outcome) -> None:
    from jaxlab.train.log import read

    if isinstance(outcome, Exception):
        seconds = sum(row.get("seconds", 0) for row in read(folder / "metrics.jsonl"))
        _write(folder / ENDED["diverged"], {"reason": str(outcome), "seconds": round(seconds, 1)})


def _write(path: Path, content: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content) + "\n")
    part.replace(path)


def _keep_compiled_programs(folder: Path) -> None:
    """JAX's persistent cache of compiled programs, unless it is set up already."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))

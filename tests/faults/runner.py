"""Launchers as forks of this process, which has imported what they import and started nothing of it: a case costs a
tenth of what a process of its own does. This process must have no threads, and no JAX backend."""

import atexit
import contextlib
import os
import resource
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MEMORY = 12 << 30  # bytes of data that a child may have: a runaway allocation ends the child, not the machine
TICK = 0.02  # seconds


@dataclass
class Ended:
    """What became of a process. status: of its exit; negative: the signal that ended it; None: out of time."""

    status: int | None
    out: str
    err: str
    seconds: float
    cpu: float


@dataclass
class Job:
    """A launcher to start in `folder`, where its output goes to FOLDER.out and FOLDER.err.

    target: what to call in place of a launcher. stop: text in the output at which the process is told to stop.
    """

    folder: Path
    launcher: str
    flags: tuple[str, ...] = ()
    target: Callable[[], None] | None = None
    stop: str = ""

    def output(self, kind: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{kind}")

    def text(self, kind: str) -> str:
        return self.output(kind).read_bytes().decode(errors="replace")


def run_all(jobs: Iterable[tuple[object, Job]], patience: float, count: int) -> Iterator[tuple[object, Ended]]:
    """(key, how it ended) of each (key, job), `count` of them at a time, as they end."""
    waiting, running = iter(jobs), {}
    while True:
        while len(running) < count and (following := next(waiting, None)) is not None:
            key, job = following
            running[_start(job)] = key, job, time.monotonic()
        if not running:
            return
        time.sleep(TICK)
        for pid, (key, job, began) in list(running.items()):
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            late = time.monotonic() - began > patience
            if not ended and not late:
                if job.stop and job.stop in job.text("out"):
                    job.stop = ""
                    os.kill(pid, signal.SIGTERM)
                continue
            _kill_group(pid)
            if not ended:
                _, _, usage = os.wait4(pid, 0)
            del running[pid]
            code = None if not ended else os.waitstatus_to_exitcode(status)
            cpu = usage.ru_utime + usage.ru_stime
            yield key, Ended(code, job.text("out"), job.text("err"), time.monotonic() - began, cpu)


def run(job: Job, patience: float) -> Ended:
    """How one job ended."""
    return next(run_all([(None, job)], patience, 1))[1]


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _start(job: Job) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        status = _in_child(job)
    except BaseException:
        traceback.print_exc()
        status = 99
    os._exit(status)


def _in_child(job: Job) -> int:
    """Exit status, as Python would have it."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for kind, number in (("out", 1), ("err", 2)):
        file = os.open(job.output(kind), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="strict", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)
    os.chdir(job.folder)
    sys.path.insert(0, str(job.folder))  # as `python -m` has it
    os.environ["HOME"] = str(job.folder)
    try:
        if job.target:
            job.target()
        else:
            sys.argv = [job.launcher, *job.flags]
            runpy.run_module(f"launch.{job.launcher}", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # what Python does when it ends: waits for threads, then calls what asked for it
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except Exception:
        traceback.print_exc()
        status = 120
    return status & 0xFF

"""The training loop: calls of the compiled steps, and between them the events whose time has come."""

import faulthandler
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from jaxlab.files import write_record
from jaxlab.train import report
from jaxlab.train.build import Run
from jaxlab.train.checkpoint import Checkpoints, NonFinite, check_space
from jaxlab.train.claim import alone, claim, finished, first_clock, possible, record
from jaxlab.train.log import Log, read, say
from jaxlab.train.meter import Meter, peak_flops
from jaxlab.train.plan import Call, crossed
from jaxlab.train.probes import Probe, probes
from jaxlab.train.state import Clock, State

HANG_SECONDS = 1_800  # without a step: longer than any compilation, and the stacks of all threads are printed


def train(run: Run, workdir: str | Path, console: Console) -> dict | None:
    """Trains from the newest checkpoint in workdir, or from the start, to the end of the run; returns its result.

    Returns None if told to stop by SIGTERM or Ctrl-C, after saving. Raises InputError if workdir holds a run of
    another config or cannot hold this one, NonFinite at the first number that is not finite, SaveFailed if a
    checkpoint cannot be written; what was saved before stays.
    """
    workdir, config, recorded = Path(workdir), run.config, record(run)
    if not (workdir / "result.json").exists():
        check_space(workdir, config.checkpoint.keep, run.program.abstract_state())
    claimed = claim(workdir, recorded)
    if result := finished(workdir, console):
        say(console, f"{workdir} is already finished: nothing to do")
        return result
    with (
        alone(workdir),
        stop_on_signal() as stopping,
        closing(Checkpoints(workdir / "checkpoints", config.checkpoint.keep)) as saved,
    ):
        peak, source = peak_flops(run.program.mesh)
        for line in report.header(run, peak, source):
            say(console, line)
        state, clock = _start(run, saved, console, possible(run, claimed))
        meter = Meter(run.program.flops_per_token, peak)
        with closing(open_log(run, workdir, console, clock, claimed)) as log, _watched():
            state, clock = steps(run, state, clock, log, meter, saved, recorded, stopping)
            if state is None:
                log.say(f"stopped at {clock.tokens:,} tokens, saved; the same command goes on from here")
                return None
            return finish(run, workdir, state, clock, log, saved, recorded)


def open_log(run: Run, workdir: Path, console: Console, clock: Clock, claimed: dict) -> Log:
    """The log of a run that goes on from `clock`, where it says if rows before that are missing."""
    first = jax.process_index() == 0
    log = Log(
        workdir if first else workdir / f"process-{jax.process_index()}",
        console,
        total_tokens=run.config.tokens,
        start_tokens=clock.tokens,
        tensorboard=run.config.log.tensorboard and first,
    )
    last = log.last.get("train", {"tokens": first_clock(claimed).tokens})["tokens"]
    if last != clock.tokens:
        log.say(f"{log.path}: the rows from {last:,} to {clock.tokens:,} tokens, where training goes on, are missing")
    return log


def _start(run: Run, checkpoints: Checkpoints, console: Console, possible: Callable) -> tuple[State, Clock]:
    """The state to go on from, and the step compiled for it where there are steps to take."""
    report_line = partial(say, console)
    state, clock = of_run(run, checkpoints.restore(run.program.abstract_state(), report_line, possible), report_line)
    if clock.steps:
        say(console, f"resuming  at {clock.tokens:,} tokens, step {clock.steps:,}")
    if next(run.calls(clock), None):
        began = time.perf_counter()
        memory = run.compiled(clock.tokens).memory_analysis()
        say(console, report.compiled(time.perf_counter() - began, memory))
    return state, clock


def of_run(run: Run, found: tuple[State, Clock] | None, report: Callable[[str], None]) -> tuple[State, Clock]:
    """What was found in a checkpoint, with the run's number of replicas; where nothing was, before the first step."""
    state, clock = found or (run.program.init(np.uint32(run.config.seed)), Clock())
    if state.replicas != run.config.replicas:
        report(f"saved with {state.replicas} replicas: {run.config.replicas} go on from the global parameters")
        state = run.program.regroup(state)
    return state, clock


def steps(run, state, clock, log, meter, checkpoints, record, stopping) -> tuple[State | None, Clock]:
    """Takes all steps that are left, and what is due between them: (state, clock), state None if told to stop."""
    pending, measured = None, probes(run)
    with jax.transfer_guard("disallow"):
        meter.restart()
        for call, arguments, data_seconds in prefetch(run, clock):
            state, metrics = run.step(state, call, arguments)
            write_train(log, meter, pending)  # of the call before: the device is busy with this one
            pending, clock = (call, metrics, data_seconds), call.end
            due = [probe for probe in measured if probe.due(call.start.tokens, clock.tokens)]
            for probe in due:  # before saving: a checkpoint owes no measurement
                pending = write_train(log, meter, pending)
                write_probe(log, probe, state, clock)
            # One process is told by its signal; several must agree on the step, which JAX arranges among them.
            stop = stopping.is_set() if jax.process_count() == 1 else checkpoints.interrupted(clock.tokens)
            save_due = stop or crossed(call.start.tokens, clock.tokens, run.config.checkpoint.every_tokens)
            if save_due:
                pending = write_train(log, meter, pending)  # nothing unchecked is saved
                log.flush()
                checkpoints.save(state, clock, record)
            if stop:
                checkpoints.wait()
                return None, clock
            if due or save_due:
                meter.restart()
        write_train(log, meter, pending)
    return state, clock


def prefetch(run: Run, clock: Clock) -> Iterator[tuple[Call, tuple, float]]:
    """The calls left, their device arrays, and how long they were waited for in seconds: the arrays of the next call
    are made while the current one is computed."""

    def waited(call, future):
        began = time.perf_counter()
        arguments = future.result()
        return call, arguments, time.perf_counter() - began

    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for call in run.calls(clock):
            following = call, reader.submit(run.arguments, call)
            if ahead:
                yield waited(*ahead)
            ahead = following
        if ahead:
            yield waited(*ahead)


def write_train(log: Log, meter: Meter, pending: tuple | None) -> None:
    """Fetches the metrics of a call, stops the run if one is not finite, and writes a row a step."""
    if pending is None:
        return
    call, metrics, data_seconds = pending
    metrics = jax.device_get(metrics)
    speed = meter.read(call, data_seconds)
    values = write_rows(log, call, metrics, speed)
    log.progress(call.end.tokens, f"loss {values['loss']:.3f}  {meter.status(log.total - call.end.tokens)}")


def write_rows(log: Log, call: Call, metrics: dict, speed: dict) -> dict:
    """Writes the row of every step of a call, metrics {name: [count or more], or of its end}; returns the last one's
    values. Raises NonFinite at the first number that is not finite."""
    _postpone_hang_report()
    for i in range(call.count):
        values = {name: float(m[i]) for name, m in metrics.items() if np.ndim(m)}
        if i == call.count - 1:
            values |= {name: m if isinstance(m, int) else float(m) for name, m in metrics.items() if not np.ndim(m)}
        values |= {name: h[i] for name, h in call.hypers.items()} | {"batch_tokens": call.batch.tokens}
        step, tokens = call.start.steps + i + 1, call.start.tokens + (i + 1) * call.batch.tokens
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFinite(f"{name} is {value} at step {step:,}, {tokens:,} tokens")
        log.row("train", step, tokens, values | speed)
    return values


def write_probe(log: Log, probe: Probe, state: State, clock: Clock) -> None:
    """Measures, and writes and shows the result."""
    values, arrays = probe.measure(state, clock)
    _postpone_hang_report()
    before = log.last.get(probe.kind, {})
    if arrays and jax.process_index() == 0:  # ahead of the row, which says that they are there
        log.arrays(probe.kind, clock.tokens, arrays)
    log.row(probe.kind, clock.steps, clock.tokens, values)
    for line in probe.say(log.last[probe.kind], before):
        log.say(f"{clock.tokens:>13,} tokens  {line}")


def finish(run, workdir, state, clock, log, checkpoints, record) -> dict:
    """The last checkpoint and measurements, the figure, and result.json, whose presence says that the run is done."""
    log.flush()
    checkpoints.save(state, clock, record)
    for probe in probes(run):
        if log.last.get(probe.kind, {}).get("tokens") != clock.tokens:
            write_probe(log, probe, state, clock)
    log.flush()
    rows = read(log.path)
    result = {"tokens": clock.tokens, "steps": clock.steps, "epochs": run.train.epochs(clock.tokens)}
    result |= {name: log.last["eval"][name] for name in ("loss", "bits_per_byte")}
    trained = [row for row in rows if row["kind"] == "train"]
    result["seconds"] = round(sum(row["seconds"] for row in trained), 1)
    checkpoints.wait()
    if jax.process_index() == 0:
        if trained:  # there are rows of steps, unless they were lost
            title = f"{run.config.model.family}, {run.config.data.source}"
            report.figure(rows, workdir / "curves.png", title)
        write_record(workdir / "result.json", result)
    return result


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets; a second one kills. Signals are left alone outside the main thread, and in
    runs of several processes, where JAX handles them."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number, _):
        event.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watched() -> Iterator[None]:
    """Within it, the stacks of all threads are printed whenever nothing has come back for HANG_SECONDS."""
    _postpone_hang_report()
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _postpone_hang_report() -> None:
    faulthandler.dump_traceback_later(HANG_SECONDS, repeat=True, file=sys.__stderr__)

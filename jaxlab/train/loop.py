"""The training loop: calls of the compiled steps, and between them the events whose time has come."""

import faulthandler
import json
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from jaxlab.config import InputError, differences, flatten
from jaxlab.cost import flops
from jaxlab.train import report
from jaxlab.train.build import Run
from jaxlab.train.checkpoint import Checkpoints, NonFinite, check_space
from jaxlab.train.log import Log, read, say
from jaxlab.train.meter import Meter, peak_flops
from jaxlab.train.plan import Call, crossed
from jaxlab.train.probes import Probe, probes
from jaxlab.train.state import Clock, State

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
HANG_SECONDS = 1_800  # without a step: longer than any compilation, and the stacks of all threads are printed


def train(run: Run, workdir: str | Path, console: Console) -> dict | None:
    """Trains from the newest checkpoint in workdir, or from the start, to the end of the run; returns its result.

    Returns None if told to stop by SIGTERM or Ctrl-C, after saving. Raises InputError if workdir holds a run of
    another config or cannot hold this one, NonFinite at the first number that is not finite, SaveFailed if a
    checkpoint cannot be written; what was saved before stays.
    """
    workdir, config, recorded = Path(workdir), run.config, record(run)
    finished = (workdir / "result.json").exists()
    if not finished:
        check_space(workdir, config.checkpoint.keep, run.program.abstract_state())
    claim(workdir, recorded)
    if finished:
        say(console, f"{workdir} is already finished: nothing to do")
        return json.loads((workdir / "result.json").read_text())
    with stop_on_signal() as stopping, closing(Checkpoints(workdir / "checkpoints", config.checkpoint.keep)) as saved:
        peak, source = peak_flops(run.program.mesh)
        for line in report.header(run, peak, source):
            say(console, line)
        state, clock = _start(run, saved, console)
        meter = Meter(partial(flops.training_per_token, run.program.model.c), peak)
        first = jax.process_index() == 0
        log = Log(
            workdir if first else workdir / f"process-{jax.process_index()}",
            console,
            total_tokens=config.tokens,
            start_tokens=clock.tokens,
            tensorboard=config.log.tensorboard and first,
        )
        with closing(log), _watched():
            state, clock = steps(run, state, clock, log, meter, saved, recorded, stopping)
            if state is None:
                log.say(f"stopped at {clock.tokens:,} tokens, saved; the same command goes on from here")
                return None
            return finish(run, workdir, state, clock, log, saved, recorded)


def _start(run: Run, checkpoints: Checkpoints, console: Console) -> tuple[State, Clock]:
    """The state to go on from, and the step compiled for it where there are steps to take."""
    state, clock = newest(run, checkpoints, lambda line: say(console, line))
    if clock.steps:
        say(console, f"resuming  at {clock.tokens:,} tokens, step {clock.steps:,}")
    if next(run.calls(clock), None):
        began = time.perf_counter()
        memory = run.compiled(clock.tokens).memory_analysis()
        say(console, report.compiled(time.perf_counter() - began, memory))
    return state, clock


def newest(run: Run, checkpoints: Checkpoints, report: Callable[[str], None]) -> tuple[State, Clock]:
    """The newest state in `checkpoints`, with the run's number of replicas, or that before the first step."""
    found = checkpoints.restore(run.program.abstract_state(), report)
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
    result["seconds"] = round(sum(r["seconds"] for r in rows if r["kind"] == "train"), 1)
    checkpoints.wait()
    if jax.process_index() == 0:
        report.figure(rows, workdir / "curves.png", f"{run.config.model.family}, {run.config.data.source}")
        _write_json(workdir / "result.json", result)
    return result


def record(run: Run) -> dict:
    """What config.json and every checkpoint record of a run: its config, data and versions."""
    data = {name: run.store.meta[name] for name in ("corpus_sha256", "tokenizer_sha256")}
    return {"config": flatten(run.config), "data": data, "versions": {p: version(p) for p in PACKAGES}}


def check_run(run: Run, workdir: Path) -> None:
    """Raises InputError unless workdir holds a run of this config, on these tokens."""
    if not (workdir / "config.json").exists():
        raise InputError(f"workdir={workdir}: holds no run; train one with python -m launch.train")
    claim(workdir, record(run))


def claim(workdir: Path, record: dict) -> None:
    """Makes workdir this run's, or checks that it is: InputError with the keys that differ."""
    path = workdir / "config.json"
    if path.exists():
        held = json.loads(path.read_text())
        differing = differences(held["config"], json.loads(json.dumps(record["config"])))
        differing += [f"{k}: {v} -> {record['data'][k]}" for k, v in held["data"].items() if v != record["data"][k]]
        if differing:
            raise InputError(f"workdir={workdir}: holds a run that differs in " + "; ".join(differing))
        return
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {devices}"
        _write_json(path, record | {"machine": machine})


def _write_json(path: Path, content: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


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

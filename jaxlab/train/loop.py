"""The training loop: calls of the compiled steps, and between them the events whose time has come."""

import json
import math
import platform
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import jax
from rich.console import Console

from jaxlab.config import InputError, differences, flatten
from jaxlab.cost import flops
from jaxlab.train.build import Run
from jaxlab.train.checkpoint import Checkpoints
from jaxlab.train.log import Log, figure, read
from jaxlab.train.plan import Call, crossed
from jaxlab.train.state import Clock, State

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class NonFinite(RuntimeError):
    """A metric is NaN or infinite: training has failed, and says where."""


def train(run: Run, workdir: str | Path, console: Console) -> dict | None:
    """Trains from the newest checkpoint in workdir, or from the start, to the end of the run; returns its result.

    Returns None if told to stop by SIGTERM, after saving. Raises InputError if workdir holds a run of another
    config, NonFinite at the first non-finite loss or gradient; what was saved before stays.
    """
    workdir = Path(workdir)
    config = run.config
    record = {"config": flatten(config), "data": _data_record(run), "versions": {p: version(p) for p in PACKAGES}}
    claim(workdir, record)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    state, clock = _start(run, checkpoints, console)
    log = Log(
        workdir, console, total_tokens=config.tokens, start_tokens=clock.tokens, tensorboard=config.log.tensorboard
    )
    meter = Meter(run)
    try:
        with _stop_on_sigterm() as stopping, jax.transfer_guard("disallow"):
            pending = None
            for call, arguments in prefetch(run, clock):
                state, metrics = run.compiled(state, *arguments)
                write_train(log, meter, pending)  # of the call before: the device is busy with this one
                pending, clock = (call, metrics), call.end
                if crossed(call.start.tokens, clock.tokens, config.evaluate.every_tokens):
                    write_eval(log, run, state, clock)
                stop = stopping.is_set() or checkpoints.interrupted(clock.tokens)
                if stop or crossed(call.start.tokens, clock.tokens, config.checkpoint.every_tokens):
                    pending = write_train(log, meter, pending)  # nothing unchecked is ever saved
                    checkpoints.save(state, clock, record)
                if stop:
                    log.say(f"stopped at {clock.tokens:,} tokens, saved; the same command goes on from here")
                    return None
            write_train(log, meter, pending)
            return finish(run, workdir, state, clock, log, checkpoints, record)
    finally:
        checkpoints.close()
        log.close()


def _start(run: Run, checkpoints: Checkpoints, console: Console) -> tuple[State, Clock]:
    found = checkpoints.restore(run.abstract_state(), console.print)
    if found is None:
        return run.init(), Clock()
    state, clock, _ = found
    console.print(f"resuming at {clock.tokens:,} tokens, step {clock.steps:,}")
    return state, clock


def prefetch(run: Run, clock: Clock) -> Iterator[tuple[Call, tuple]]:
    """The calls left and their device arrays, the next one being read while the current one is computed."""
    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for call in run.calls(clock):
            following = call, reader.submit(run.arguments, call)
            if ahead:
                yield ahead[0], ahead[1].result()
            ahead = following
        if ahead:
            yield ahead[0], ahead[1].result()


def write_train(log: Log, meter: "Meter", pending: tuple | None) -> None:
    """Fetches the metrics of a call, stops the run if one is not finite, and writes a row a step."""
    if pending is None:
        return
    call, metrics = pending
    metrics = jax.device_get(metrics)
    speed = meter.speed(call)
    tokens_a_step = (call.end.tokens - call.start.tokens) // call.count
    for i in range(call.count):
        values = {name: float(m[i]) for name, m in metrics.items()}
        values |= {name: h[i] for name, h in call.hypers.items()}
        steps, tokens = call.start.steps + i + 1, call.start.tokens + (i + 1) * tokens_a_step
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFinite(f"{name} is {value} at step {steps:,}, {tokens:,} tokens")
        log.row("train", steps, tokens, values | speed)
    status = f"loss {values['loss']:.3f}  {speed['tokens_per_second']:,.0f} tokens/s"
    if "utilisation" in speed:
        status += f"  MFU {speed['utilisation']:.0%}"
    log.progress(call.end.tokens, status)


def write_eval(log: Log, run: Run, state: State, clock: Clock) -> dict:
    """Evaluates, and writes and shows the result."""
    result = run.evaluate(state)
    if not math.isfinite(result["loss"]):
        raise NonFinite(f"validation loss is {result['loss']} at step {clock.steps:,}, {clock.tokens:,} tokens")
    log.row("eval", clock.steps, clock.tokens, result | {"epochs": run.train.epochs(clock.sequences)})
    log.say(
        f"{clock.tokens:>13,} tokens  step {clock.steps:>7,}  epoch {run.train.epochs(clock.sequences):.2f}  "
        f"validation {result['loss']:.4f} nats/token, {result['bits_per_byte']:.4f} bits/byte"
    )
    return result


def finish(run, workdir, state, clock, log, checkpoints, record) -> dict:
    """The last evaluation and checkpoint, result.json and the figure."""
    checkpoints.save(state, clock, record)
    result = {"tokens": clock.tokens, "steps": clock.steps, "epochs": run.train.epochs(clock.sequences)}
    rows = [r for r in read(log.path) if r["kind"] == "eval" and r["tokens"] == clock.tokens]
    last = rows[-1] if rows else write_eval(log, run, state, clock)
    result |= {name: last[name] for name in ("loss", "bits_per_byte")}
    rows = read(log.path)
    result["seconds"] = round(sum(r["seconds"] for r in rows if r["kind"] == "train"), 1)
    part = workdir / "result.json.part"
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(workdir / "result.json")
    figure(rows, workdir / "curves.png", f"{run.config.model.family}, {run.config.data.source}")
    return result


class Meter:
    """Speed from the time between results, over one call."""

    def __init__(self, run: Run):
        c = run.model.c
        self._flops = flops.training_per_token(c, run.config.batch.context)
        kind = run.mesh.devices.flat[0].device_kind
        peak = flops.peak(kind)
        self._peak = peak and peak * run.mesh.size
        self._last = time.perf_counter()

    def speed(self, call: Call) -> dict[str, float]:
        """{"seconds", "tokens_per_second"[, "utilisation"]} of a call whose results have just arrived."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        rate = (call.end.tokens - call.start.tokens) / seconds
        values = {"seconds": round(seconds / call.count, 6), "tokens_per_second": round(rate, 1)}
        return values | ({"utilisation": round(rate * self._flops / self._peak, 4)} if self._peak else {})


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
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record | {"machine": platform.platform()}, indent=1) + "\n")
    part.replace(path)


def _data_record(run: Run) -> dict:
    meta = run.store.meta
    return {name: meta[name] for name in ("corpus_sha256", "tokenizer_sha256")}


@contextmanager
def _stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; outside the main thread the signal is left alone."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)

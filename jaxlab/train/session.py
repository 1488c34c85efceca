"""A run as it trains in its folder: what is logged, measured and saved between blocks, and how it starts and ends."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from jaxlab.files import write_record
from jaxlab.optim.schedules import crossed
from jaxlab.process import postpone_hang_report, stop_on_signal, watched
from jaxlab.train import report
from jaxlab.train.build import Run
from jaxlab.train.callbacks import Callback, callbacks
from jaxlab.train.checkpoint import Checkpoints, NonFinite
from jaxlab.train.claim import alone, first_clock, possible, record
from jaxlab.train.log import Log, read, say
from jaxlab.train.meter import Meter, peak_flops
from jaxlab.train.plan import Block
from jaxlab.train.state import Clock, State


class Done(NamedTuple):
    """A block that has been dispatched, and its metrics, still on the devices: by_step, {name: [n, M]}, of each of its
    steps on each replica; at_end, {name: scalar}, of the outer steps after it. data_seconds: waited for its batches."""

    block: Block
    by_step: dict[str, jax.Array]
    at_end: dict[str, jax.Array]
    data_seconds: float


@dataclass
class Session:
    """One command that trains a run; `pending` is the block whose metrics have not been fetched yet."""

    run: Run
    workdir: Path
    record: dict  # what config.json says of the run, and every checkpoint
    log: Log
    meter: Meter
    checkpoints: Checkpoints
    callbacks: list[Callback]
    stopping: threading.Event
    pending: Done | None = None

    def log_previous(self, done: Done) -> None:
        """Writes the rows of the block before this one."""
        self.write_pending()
        self.pending = done

    def write_pending(self) -> None:
        """Fetches the metrics of the pending block and writes a row for each of its steps. Raises NonFinite at the
        first number that is not finite."""
        if self.pending is None:
            return
        (block, by_step, at_end, data_seconds), self.pending = self.pending, None
        by_step, at_end = jax.device_get((by_step, at_end))
        postpone_hang_report()
        speed = self.meter.read(block, data_seconds)
        by_step = {name: over_replicas(values) for name, values in by_step.items()}
        by_step |= block.hypers
        at_end = {name: float(value) for name, value in at_end.items()}
        if sent := sum(self.run.program.outer_loop.sent_bytes(event) for event in block.events):
            at_end["sent_bytes"] = sent
        for i in range(block.count):
            values = {name: float(each[i]) for name, each in by_step.items()} | {"batch_tokens": block.batch.tokens}
            values |= at_end if i == block.count - 1 else {}
            step, tokens = block.start.steps + i + 1, block.start.tokens + (i + 1) * block.batch.tokens
            for name, value in values.items():
                if not math.isfinite(value):
                    raise NonFinite(f"{name} is {value} at step {step:,}, {tokens:,} tokens")
            self.log.row("train", step, tokens, values | speed)
        status = f"loss {values['loss']:.3f}  {self.meter.status(self.log.total - block.end.tokens)}"
        self.log.progress(block.end.tokens, status)

    def due(self, block: Block) -> list[Callback]:
        """The callbacks that are due after a block."""
        return [callback for callback in self.callbacks if callback.due(block.start.tokens, block.end.tokens)]

    def measure(self, callback: Callback, state: State, clock: Clock) -> None:
        """Measures the state, writes the result and shows it."""
        self.write_pending()
        values, arrays = callback.measure(state, clock)
        postpone_hang_report()
        before = self.log.last.get(callback.kind, {})
        if arrays and jax.process_index() == 0:  # before the row, which says that they are there
            self.log.arrays(callback.kind, clock.tokens, arrays)
        self.log.row(callback.kind, clock.steps, clock.tokens, values)
        for line in callback.say(self.log.last[callback.kind], before):
            self.log.say(f"{clock.tokens:>13,} tokens  {line}")
        self.meter.restart()

    def save_if_due(self, state: State, block: Block) -> bool:
        """Saves the state after a block if it is time or the run has to stop, and says whether it has to."""
        start, clock = block.start.tokens, block.end
        # One process knows from its own signal. Several must stop at the same step, on which JAX makes them agree.
        one = jax.process_count() == 1
        stop = self.stopping.is_set() if one else self.checkpoints.interrupted(clock.tokens)
        if stop or crossed(start, clock.tokens, self.run.config.checkpoint.every_tokens):
            self.write_pending()  # nothing unchecked is saved
            self.log.flush()
            self.checkpoints.save(state, clock, self.record)
            self.meter.restart()
        if stop:
            self.checkpoints.wait()
            self.log.say(f"stopped at {clock.tokens:,} tokens, saved; the same command goes on from here")
        return stop

    def finish(self, state: State, clock: Clock) -> dict:
        """The last checkpoint and measurements, the figure, and result.json, whose presence says that the run is
        done."""
        self.log.flush()
        self.checkpoints.save(state, clock, self.record)
        for callback in self.callbacks:
            if self.log.last.get(callback.kind, {}).get("tokens") != clock.tokens:
                self.measure(callback, state, clock)
        self.log.flush()
        rows, config = read(self.log.path), self.run.config
        result = {"tokens": clock.tokens, "steps": clock.steps, "epochs": self.run.train.epochs(clock.tokens)}
        result |= {name: self.log.last["eval"][name] for name in ("loss", "bits_per_byte")}
        steps = [row for row in rows if row["kind"] == "train"]
        result["seconds"] = round(sum(row["seconds"] for row in steps), 1)
        self.checkpoints.wait()
        if jax.process_index() == 0:
            if steps:  # unless their rows were lost
                report.figure(rows, self.workdir / "curves.png", f"{config.model.family}, {config.data.source}")
            write_record(self.workdir / "result.json", result)
        return result


def over_replicas(values: np.ndarray) -> np.ndarray:
    """[n, M] float32 -> [n], the mean over replicas: in their order and times 1 / M, which up to M = 32 is bit for bit
    what XLA computes on CPUs."""
    return sum(values.T) * np.float32(1 / values.shape[1])


@contextmanager
def opened(run: Run, workdir: Path, console: Console, claimed: dict) -> Iterator[tuple[Session, State, Clock]]:
    """The session of a run in workdir, of which config.json says what is claimed, with the state and the clock that
    training goes on from. Within it no other command trains the run."""
    with (
        alone(workdir),
        stop_on_signal() as stopping,
        closing(Checkpoints(workdir / "checkpoints", run.config.checkpoint.keep)) as checkpoints,
    ):
        peak, source = peak_flops(run.program.mesh)
        for line in report.header(run, peak, source):
            say(console, line)
        restored = checkpoints.restore(run.program.abstract_state(), partial(say, console), possible(run, claimed))
        state, clock = starting_state(run, restored, partial(say, console))
        if clock.steps:
            say(console, f"resuming  at {clock.tokens:,} tokens, step {clock.steps:,}")
        if next(run.blocks(clock), None):
            began = time.perf_counter()
            memory = run.compiled(clock.tokens).memory_analysis()
            say(console, report.compiled(time.perf_counter() - began, memory))
        with closing(_log(run, workdir, console, clock, first_clock(claimed))) as log, watched():
            meter = Meter(run.program.flops_per_token, peak)
            yield Session(run, workdir, record(run), log, meter, checkpoints, callbacks(run), stopping), state, clock


def starting_state(
    run: Run, restored: tuple[State, Clock] | None, report: Callable[[str], None]
) -> tuple[State, Clock]:
    """The state and clock of a checkpoint, with the run's number of replicas; without one, those before the first
    step."""
    state, clock = restored or (run.program.init(np.uint32(run.config.seed)), Clock())
    if state.replicas != run.config.replicas:
        report(f"saved with {state.replicas} replicas: {run.config.replicas} go on from the global parameters")
        state = run.program.regroup(state)
    return state, clock


def _log(run: Run, workdir: Path, console: Console, clock: Clock, first: Clock) -> Log:
    """The log of a run that goes on from `clock` and whose first step was at `first`; it says if rows are missing."""
    index = jax.process_index()
    log = Log(
        workdir / f"process-{index}" if index else workdir,
        console,
        total_tokens=run.config.tokens,
        start_tokens=clock.tokens,
        tensorboard=run.config.log.tensorboard and not index,
    )
    last = log.last.get("train", {"tokens": first.tokens})["tokens"]
    if last != clock.tokens:
        log.say(f"{log.path}: the rows from {last:,} to {clock.tokens:,} tokens, where training goes on, are missing")
    return log

"""The training loop. A block is a few steps on batches of one shape; what is due after it happens before the next."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
from rich.console import Console

from jaxlab.train.build import Run
from jaxlab.train.checkpoint import check_space
from jaxlab.train.claim import claim, finished, record
from jaxlab.train.continuation import lengthen
from jaxlab.train.log import say
from jaxlab.train.plan import Block
from jaxlab.train.session import Done, opened
from jaxlab.train.state import Clock, State


def train(run: Run, workdir: str | Path, console: Console) -> dict | None:
    """Trains from the newest checkpoint in workdir, or from the start, to the end of the run; returns its result.

    A run in workdir with fewer tokens goes on to those of `run` (continuation.lengthen). Returns None after SIGTERM or
    Ctrl-C, when the state has been saved. Raises InputError if workdir holds a run of another config or cannot hold
    this one, NonFinite at the first number that is not finite, SaveFailed if a checkpoint cannot be written; what was
    saved before stays.
    """
    workdir = Path(workdir)
    lengthen(run, workdir, partial(say, console))
    if not (workdir / "result.json").exists():
        check_space(workdir, run.config.checkpoint.keep, run.program.abstract_state())
    claimed = claim(workdir, record(run))
    if result := finished(workdir, console):
        say(console, f"{workdir} is already finished: nothing to do")
        return result
    with opened(run, workdir, console, claimed) as (session, state, clock):
        with jax.transfer_guard("disallow"):
            training = trained(run, state, clock)
            for state, done in training:
                clock = done.block.end
                session.log_previous(done)  # one block late: the device is busy with this one
                for callback in session.due(done.block):  # before saving: a checkpoint owes no measurement
                    session.measure(callback, state, clock)
                if session.save_if_due(state, done.block):
                    return None
            session.write_pending()
        return session.finish(state, clock)


def trained(run: Run, state: State, clock: Clock) -> Iterator[tuple[State, Done]]:
    """The state after each block from `clock` to the end of the run, which the next block overwrites.

    With an outer optimiser this is algorithm 1 of DiLoCo (2503.09799): inner steps on every replica, and after them the
    outer steps of the fragments whose turn it is. Without one it is plain training.
    """
    for block, arrays, data_seconds in prefetch(run, clock):
        state, by_step = run.program.at(block.start.tokens).inner_steps(state, *arrays)
        run.compile_ahead(block.start.tokens)
        at_end = {}
        for event in block.events:
            state, metrics = run.program.outer_step(state, event, run.outer_lr)
            at_end |= metrics
        yield state, Done(block, by_step, at_end, data_seconds)


def prefetch(run: Run, clock: Clock) -> Iterator[tuple[Block, tuple, float]]:
    """The blocks from `clock` on, their device arrays, and for how many seconds those were waited for: the arrays of
    the next block are made while the current one is computed."""

    def waited(block, future):
        began = time.perf_counter()
        arrays = future.result()
        return block, arrays, time.perf_counter() - began

    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for block in run.blocks(clock):
            following = block, reader.submit(run.arrays, block)
            if ahead:
                yield waited(*ahead)
            ahead = following
        if ahead:
            yield waited(*ahead)

"""A population: runs of one program and one plan, trained as one compiled program, each a member of a `vmap`."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxlab.config import flatten
from jaxlab.cost import flops
from jaxlab.train import loop
from jaxlab.train.build import Run
from jaxlab.train.checkpoint import Checkpoints, NonFinite, complete, restore_together
from jaxlab.train.claim import alone, claim, possible, record
from jaxlab.train.log import Log, say
from jaxlab.train.meter import Meter, peak_flops
from jaxlab.train.plan import Call, crossed
from jaxlab.train.probes import Probe, probes
from jaxlab.train.state import Clock, State

# What members may differ in: their seeds and hyper-parameters.
OWN_KEYS = ("seed", "schedule", "optim.weight_decay", "optim.decay", "diloco.outer_lr")


@dataclass
class Member:
    """A run of the population, and what became of it: its result, or the error of one that diverged."""

    run: Run
    probes: list[Probe]
    workdir: Path
    record: dict
    log: Log
    checkpoints: Checkpoints
    outcome: dict | NonFinite | None = None


def alike(run: Run, other: Run) -> bool:
    """Whether two runs can be members of one population."""
    flat, other_flat = flatten(run.config), flatten(other.config)
    own = {key for key in flat if any(key == o or key.startswith(o + ".") for o in OWN_KEYS)}
    same = run.program is other.program and run.batches == other.batches  # sizes may follow from the schedule
    return same and all(flat[key] == other_flat[key] for key in flat.keys() - own)


def in_step(workdirs: list[Path]) -> bool:
    """Whether all runs have their newest checkpoint, or none, at the same token: only then can they go on together."""
    return len({max(complete(workdir), default=0) for workdir in workdirs}) == 1


def train_together(runs: list[Run], workdirs: list[Path], consoles: list[Console]) -> list[dict | NonFinite | None]:
    """Trains runs that are `alike` and `in_step` to their end; each workdir is left as `train` would leave it.

    Returns for each what `train` would: its result, NonFinite if it diverged (the others go on without it), or None if
    told to stop, all saved. Losses are those of the runs alone within rounding: products are batched over the members.
    A member's seconds are its share of the population's.
    """
    with loop.stop_on_signal() as stopping, ExitStack() as stack:
        members, states, clock = _start(runs, workdirs, consoles, stack)
        states, clock = _steps(members, states, clock, stopping)
        for i, member in enumerate(members):
            if states is not None and member.outcome is None:
                own = (_of(states, i), clock, member.log, member.checkpoints, member.record)
                _guarded(member, loop.finish, member.run, member.workdir, *own, keep=True)
    return [member.outcome for member in members]


def _start(
    runs: list[Run], workdirs: list[Path], consoles: list[Console], stack: ExitStack
) -> tuple[list[Member], State, Clock]:
    """The members, and what they go on from: their stacked states, and the clock that they share."""
    records, reports = [record(run) for run in runs], [partial(say, console) for console in consoles]
    claimed = [claim(*pair) for pair in zip(workdirs, records, strict=True)]
    for workdir in workdirs:
        stack.enter_context(alone(workdir))
    saved = [Checkpoints(workdir / "checkpoints", runs[0].config.checkpoint.keep) for workdir in workdirs]
    for checkpoints in saved:
        stack.enter_context(closing(checkpoints))
    for run, report in zip(runs, reports, strict=True):
        report(f"member of a population; seed {run.config.seed}, peak_lr {run.config.schedule.peak_lr:g}")
    is_possible = possible(runs[0], claimed[0])
    found = restore_together(saved, runs[0].program.abstract_state(), reports, is_possible) or [None] * len(runs)
    found = [loop.of_run(*parts) for parts in zip(runs, found, reports, strict=True)]
    clock, members = found[0][1], []
    for run, workdir, recorded, console, said, checkpoints in zip(
        runs, workdirs, records, consoles, claimed, saved, strict=True
    ):
        log = stack.enter_context(closing(loop.open_log(run, workdir, console, clock, said)))
        members.append(Member(run, probes(run), workdir, recorded, log, checkpoints))
    return members, jax.tree.map(lambda *x: jnp.stack(x), *[state for state, _ in found]), clock


class _Fed:
    """The calls of all members side by side, and their stacked arguments, as `loop.prefetch` asks for them."""

    def __init__(self, members: list[Member]):
        self._runs = [member.run for member in members]

    def calls(self, clock: Clock) -> Iterator[tuple[Call, ...]]:
        return zip(*(run.calls(clock) for run in self._runs), strict=True)

    def arguments(self, calls: tuple[Call, ...]) -> tuple:
        each = [run.arguments(call) for run, call in zip(self._runs, calls, strict=True)]
        batches, hypers, counts = zip(*each, strict=True)
        return jnp.stack(batches), jax.tree.map(lambda *h: jnp.stack(h), *hypers), counts[0]


def _steps(members: list[Member], states: State, clock: Clock, stopping) -> tuple[State | None, Clock]:
    """All steps that are left and what is due between them, as `loop.steps` takes them for one run."""
    program, config = members[0].run.program, members[0].run.config
    outer_lrs = np.float32([member.run.config.diloco.outer_lr for member in members])

    @cache
    def together(stage):
        steps = program.at(stage).inner_steps
        return jax.jit(jax.vmap(steps, in_axes=(0, 0, 0, None)), donate_argnums=0)

    @partial(jax.jit, static_argnums=1, donate_argnums=0)
    def meet(states, event):
        return jax.vmap(lambda state, lr: program.rounds.apply(state, event, lr))(states, outer_lrs)

    meter = Meter(partial(flops.training_per_token, program.model.c), peak_flops(program.mesh)[0])
    pending = None
    for calls, arguments, waited in loop.prefetch(_Fed(members), clock):
        stage = max((at for at in program.later if at <= calls[0].start.tokens), default=0)
        inner, metrics = together(stage)(states._replace(outer=None), *arguments)
        states = inner._replace(outer=states.outer)
        metrics = jax.tree.map(lambda m: m.mean(axis=2), metrics)  # [members, n]
        for event in calls[0].events:
            states, found = meet(states, event)
            metrics |= found
        if sent := sum(program.rounds.sent_bytes(event) for event in calls[0].events):
            metrics["sent_bytes"] = np.full(len(members), sent)
        pending = _write(members, meter, pending)
        pending, clock = (calls, metrics, waited), calls[0].end
        start, stop = calls[0].start.tokens, stopping.is_set()
        due = [i for i, probe in enumerate(members[0].probes) if probe.due(start, clock.tokens)]
        save_due = stop or crossed(start, clock.tokens, config.checkpoint.every_tokens)
        if due or save_due:
            pending = _write(members, meter, pending)
            for i, member in enumerate(members):
                for j in due:
                    _guarded(member, loop.write_probe, member.log, member.probes[j], _of(states, i), clock)
                if save_due:
                    member.log.flush()
                    _guarded(member, member.checkpoints.save, _of(states, i), clock, member.record)
            meter.restart()
        if stop:
            return None, clock
    _write(members, meter, pending)
    return states, clock


def _write(members: list[Member], meter: Meter, pending: tuple | None) -> None:
    """Fetches the metrics of a call, and writes every member's rows with its share of the time."""
    if pending is None:
        return
    calls, metrics, waited = pending
    metrics = jax.device_get(metrics)
    speed = meter.read(calls[0], waited)
    shares = {name: v / len(members) if name.endswith("seconds") else v * len(members) for name, v in speed.items()}
    for i, (member, call) in enumerate(zip(members, calls, strict=True)):
        own = {name: m[i] for name, m in metrics.items()}
        _guarded(member, loop.write_rows, member.log, call, own, shares)


def _guarded(member: Member, call, *args, keep: bool = False) -> None:
    """call(*args) for a member that has not diverged; its result is kept if asked for, NonFinite always."""
    if isinstance(member.outcome, NonFinite):
        return
    try:
        result = call(*args)
    except NonFinite as error:
        member.outcome = error
    else:
        member.outcome = result if keep else None


def _of(states: State, i: int) -> State:
    """Member i's state."""
    return jax.tree.map(lambda x: x[i], states)

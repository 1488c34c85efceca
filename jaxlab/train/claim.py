"""Whose run a workdir holds: config.json, where its first parameters come from, result.json, and the lock."""

import errno
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path

import jax
from rich.console import Console

from jaxlab.config import InputError, differences, flatten
from jaxlab.files import locked, read_record, write_record
from jaxlab.train.build import Run
from jaxlab.train.checkpoint import Checkpoints, check_space, complete
from jaxlab.train.log import say
from jaxlab.train.state import Clock, State

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def record(run: Run) -> dict:
    """What config.json and every checkpoint record of a run: its config, data and versions."""
    data = {name: run.store.meta[name] for name in ("corpus_sha256", "tokenizer_sha256")}
    own = [name for name, value in run.program.own._asdict().items() if value]
    return {"config": flatten(run.config), "data": data, "own": own, "versions": {p: version(p) for p in PACKAGES}}


def check_run(run: Run, workdir: Path) -> None:
    """Raises InputError unless workdir holds a run of this config, on these tokens."""
    if not (workdir / "config.json").exists():
        raise InputError(f"workdir={workdir}: holds no run; train one with python -m launch.train")
    claim(workdir, record(run))


def claim(workdir: Path, record: dict) -> dict:
    """Makes workdir this run's, or checks that it is, and returns what config.json says.

    record["awaits"]: where the parameters that the run starts with come from, {"params_from": FOLDER} or {"branch_of":
    WORKDIR}; it stays in config.json until the first checkpoint is complete. Raises InputError with the keys that
    differ, for a damaged config.json, and for a run that still awaits its parameters or got others.
    """
    path = workdir / "config.json"
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
            machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {devices}"
            write_record(path, record | {"machine": machine})
        return record
    claimed = read_record(path, config=dict, data=dict)
    differing = differences(claimed["config"], json.loads(json.dumps(record["config"])))
    differing += [
        f"{k}: {v} -> {record['data'].get(k)}" for k, v in claimed["data"].items() if v != record["data"].get(k)
    ]
    before, now = claimed.get("own", []), record.get("own", [])  # older runs had nothing of their own
    if before != now:
        differing.append(f"functions given to build: {', '.join(before) or 'none'} -> {', '.join(now) or 'none'}")
    if differing:
        raise InputError(f"workdir={workdir}: holds a run that differs in " + "; ".join(differing))
    arrived, source, wanted = complete(workdir), _source(claimed), _source(record)
    if wanted and wanted != source:
        raise InputError(
            f"workdir={workdir}: holds a run that starts from {source or 'random parameters'}, not {wanted}"
        )
    if source and not wanted and not arrived:
        raise InputError(
            f"workdir={workdir}: the parameters of {source}, from which its run starts, are not there yet: give the "
            "command again that began it"
        )
    if arrived and "awaits" in claimed:
        claimed |= claimed.pop("awaits")
        if jax.process_index() == 0:
            write_record(path, claimed)
    return claimed


def _source(claimed: dict) -> Path | None:
    """The folder that a run's first parameters come from."""
    origin = claimed | claimed.get("awaits", {})
    folder = origin.get("params_from", origin.get("branch_of"))
    return folder and Path(folder).resolve()


def begin(run: Run, workdir: Path, state: State, clock: Clock, origin: dict) -> None:
    """Makes workdir a run whose first checkpoint is this state, which comes from `origin` (see `claim`). Cut off at any
    moment, it has the checkpoint, or says what it waits for."""
    recorded = record(run)
    check_space(workdir, run.config.checkpoint.keep, state)
    claim(workdir, recorded | {"awaits": origin})
    with alone(workdir), closing(Checkpoints(workdir / "checkpoints", run.config.checkpoint.keep)) as saved:
        saved.save(state, clock, recorded | origin)
    claim(workdir, recorded | {"awaits": origin})


@contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Within it no other command writes checkpoints and rows of the run in workdir: InputError where one does."""
    if jax.process_index():
        yield  # the first process speaks for all
        return
    with ExitStack() as stack:
        try:
            ours = stack.enter_context(locked(workdir / "training.lock"))
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            ours = True  # a disk that has no locks
        if not ours:
            raise InputError(f"workdir={workdir}: another command is training this run")
        yield


def possible(run: Run, claimed: dict) -> Callable[[Clock], bool]:
    """Whether a run, of which config.json says what is claimed, is ever at a clock: of a batch that grows only by its
    tokens, as its sizes are rounded to the devices of the day."""
    b, began = run.config.batch, first_clock(claimed)
    grows = b.growth or b.context_growth or ("branch_of" in claimed and "began" not in claimed)

    def is_possible(clock):
        tokens, taken = clock.tokens - began.tokens, clock.steps - began.steps
        return 0 <= tokens <= run.config.tokens - began.tokens and (grows or tokens == taken * b.tokens)

    return is_possible


def first_clock(claimed: dict) -> Clock:
    """Where the first step of a run started, of which config.json says what is claimed: a branch's at the clock of its
    checkpoint, another's at 0."""
    return Clock(*claimed.get("began", Clock()))


def finished(workdir: Path, console: Console) -> dict | None:
    """What result.json says, None where there is none. A damaged one is set aside, for the run to be finished again;
    InputError if no checkpoint is left to do so from."""
    path = workdir / "result.json"
    if not path.exists():
        return None
    try:
        return read_record(path, tokens=int, steps=int, loss=float, bits_per_byte=float, seconds=(int, float))
    except InputError as error:
        if not complete(workdir):
            raise
        if jax.process_index() == 0:
            path.replace(path.with_name("result.json.damaged"))
        say(console, f"{error}: set aside as result.json.damaged; the run ends again from its last checkpoint")
        return None

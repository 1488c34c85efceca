"""Checkpoints: saved in the background, complete or not there, checked when they are written and when they are read."""

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab.config import InputError, RunFailed
from jaxlab.files import first_line, read_record, seal
from jaxlab.parallel import path_name
from jaxlab.train.state import Clock, State, fingerprint, finite


class NonFinite(RunFailed):
    """A number of the run is NaN or infinite: training has failed, and the message says where."""


class SaveFailed(RunFailed):
    """A checkpoint could not be written, for instance because the disk is full."""


class Checkpoints:
    """The checkpoints of one run, each a folder named by the tokens consumed: the state, and a JSON record."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder.absolute()
        self._manager = _manager(self.folder, max_to_keep=keep, cleanup_tmp_directories=True)

    def save(self, state: State, clock: Clock, record: dict) -> None:
        """Starts saving; returns once the state may be overwritten. A clock already saved is left as it is.

        Raises NonFinite for a state that is not finite (a step with a finite loss may leave one behind), SaveFailed
        if this save or the one before it fails.
        """
        bits, sound = _inspect(state)
        for (path, _), ok in zip(jax.tree_util.tree_leaves_with_path(state), sound, strict=True):
            if not ok:
                raise NonFinite(f"{path_name(path)} is not finite at step {clock.steps:,}, {clock.tokens:,} tokens")
        self.wait()  # as Orbax would; only then is the disk as full as it will be, and what is there complete
        if _is_whole(self.folder / str(clock.tokens)):
            return
        free, size = shutil.disk_usage(self.folder).free, state_bytes(state)
        if free < size:  # known beforehand, it is one line; met by Orbax's threads, pages of tracebacks
            raise SaveFailed(f"{self.folder}: {free / 1e6:,.1f} MB free, and a checkpoint needs {size / 1e6:,.1f} MB")
        if clock.tokens in listed(self.folder):
            self._set_aside(clock.tokens)
        record = record | {"clock": list(clock), "fingerprint": bits, "replicas": state.replicas}
        # Orbax holds views of the arrays until they are written. JAX does not let a step overwrite a buffer that has
        # been handed out: donation then falls back to a copy, also on CPU where host and device memory are the same.
        record = ocp.args.JsonSave(json.loads(seal(record)))
        args = ocp.args.Composite(state=ocp.args.StandardSave(_parts(state)), record=record)
        self._checked(self._manager.save, clock.tokens, args=args, force=True)

    def restore(
        self, abstract: State, report: Callable[[str], None], possible: Callable[[Clock], bool] = lambda clock: True
    ) -> tuple[State, Clock] | None:
        """The newest sound checkpoint as (state, clock), or None where none was ever saved.

        abstract: shapes, dtypes and shardings wanted; the mesh may differ from the one that saved, and a state comes
        with as many replicas as it was saved with. possible(clock): whether the run is ever there. Newer checkpoints
        that are damaged are reported and renamed `damaged-...`. Raises InputError, and leaves everything in place, if
        all are damaged.
        """
        damaged = {}
        for tokens in reversed(listed(self.folder)):
            try:
                restored = _read(self._manager, tokens, abstract, possible)
            except Exception as error:  # whatever a broken file makes the reader raise
                damaged[tokens] = first_line(error)
                continue
            for newer, why in damaged.items():
                aside = self._set_aside(newer)
                report(f"checkpoint {newer} is damaged ({why}): set aside as {aside}, using {tokens}")
            return restored
        if damaged:
            reasons = "; ".join(f"{tokens}: {reason}" for tokens, reason in damaged.items())
            raise InputError(
                f"{self.folder}: all checkpoints are damaged ({reasons}); "
                "bring one back, or start again in another workdir"
            )
        return None

    def _set_aside(self, tokens: int) -> str:
        """Renames a damaged checkpoint, so that it no longer counts as one; returns the new name."""
        taken = len(list(self.folder.glob(f"damaged-{tokens}*")))
        name = f"damaged-{tokens}" + (f"-{taken + 1}" if taken else "")
        multihost_utils.sync_global_devices(f"{tokens} is to be renamed")  # all have seen what there is
        if jax.process_index() == 0:
            shutil.move(self.folder / str(tokens), self.folder / name)
        multihost_utils.sync_global_devices(f"{tokens} is renamed")
        self._manager.reload()
        return name

    def interrupted(self, tokens: int) -> bool:
        """Whether all processes have agreed to stop here, after any of them was told to (multi-process runs)."""
        return self._manager.reached_preemption(tokens)

    def wait(self) -> None:
        """Waits for what is being saved. Raises SaveFailed."""
        self._checked(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for what is being saved, and frees the threads that do it. Raises SaveFailed."""
        self._checked(self._manager.close)

    def _checked(self, call: Callable, *args, **kwargs) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:  # of the file system, wrapped by whichever library met it
            raise SaveFailed(f"{self.folder}: a checkpoint could not be saved ({first_line(error)})") from error


def complete(workdir: Path) -> list[int]:
    """Tokens at which workdir has a complete checkpoint, in order. One that is being written, or whose writing was cut
    off, has another name; an empty folder, or a file, is none."""
    folder = workdir / "checkpoints"
    return [tokens for tokens in listed(folder) if _is_whole(folder / str(tokens))]


def listed(folder: Path) -> list[int]:
    """The tokens of whatever has the name of a checkpoint in a folder of them, sound or not, in order."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal() and p.name == str(int(p.name)))


def _is_whole(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())


def load(workdir: Path, abstract: State, tokens: int | None = None) -> tuple[State, Clock]:
    """(state, clock) of the checkpoint at `tokens` in workdir, the newest unless told; the folder is left as it is:
    training may be going on there.

    Raises InputError where there is none, or a damaged one.
    """
    there = listed(workdir / "checkpoints")
    if not there:
        raise InputError(f"workdir={workdir}: holds no checkpoint yet")
    tokens = there[-1] if tokens is None else tokens
    if tokens not in there:
        raise InputError(f"workdir={workdir}: has no checkpoint at {tokens} tokens, but {', '.join(map(str, there))}")
    with _manager((workdir / "checkpoints").absolute(), read_only=True) as manager:
        try:
            return _read(manager, tokens, abstract)
        except Exception as error:  # whatever a broken file makes the reader raise
            raise InputError(f"workdir={workdir}: checkpoint {tokens} is damaged ({first_line(error)})") from error


def _manager(folder: Path, **options) -> ocp.CheckpointManager:
    """Orbax's manager of a folder. It takes [, * and ? in a path for a pattern, and does not find what it has written
    there itself: for such a folder it gets a link."""
    path, link = folder, None
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; must be the folder of a run's checkpoints")
    if set(str(folder)) & set("[*?"):
        folder.mkdir(parents=True, exist_ok=True)
        link = tempfile.TemporaryDirectory()
        path = Path(link.name) / folder.name
        path.symlink_to(folder)
    manager = ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(**options))
    if link:
        weakref.finalize(manager, link.cleanup)
    return manager


def _read(
    manager: ocp.CheckpointManager,
    tokens: int,
    abstract: State,
    possible: Callable[[Clock], bool] = lambda clock: True,
) -> tuple[State, Clock]:
    """A checkpoint, every bit of it checked; what is wrong with it is raised, in all processes."""
    record, state, wrong = {}, None, None
    try:
        record = _read_record(Path(manager.directory) / str(tokens), tokens, possible)
        parts = _parts(_of_replicas(abstract, record.get("replicas", abstract.replicas)))
        state = State(**manager.restore(tokens, args=ocp.args.Composite(state=ocp.args.StandardRestore(parts))).state)
    except Exception as error:  # whatever a broken file makes the reader raise
        wrong = error
    if jax.process_count() > 1 and multihost_utils.process_allgather(np.bool_(wrong is not None)).any():
        wrong = wrong or ValueError("another process cannot read it")
    if wrong:
        raise wrong
    if _inspect(state)[0] != record["fingerprint"]:
        raise ValueError("its bits differ from those saved")
    return state, record["clock"]


def _read_record(folder: Path, tokens: int, possible: Callable[[Clock], bool]) -> dict:
    """The record of the checkpoint in `folder`, its clock as a Clock."""
    if not _is_whole(folder):
        raise ValueError("it is an empty folder" if folder.is_dir() else "it is a file")
    record = read_record(folder / "record" / "metadata", fingerprint=list, clock=list)
    clock = Clock(record["clock"][0], record["clock"][-1])  # older ones have the sequences between the two
    if not (type(clock.steps) is int and clock.tokens == tokens and possible(clock)):
        raise ValueError(f"it says {clock.tokens} tokens and {clock.steps} steps, which this run does not have there")
    return record | {"clock": clock}


def _parts(state: State) -> dict:
    """What of a state there is, by name: so a part that came later is no part of what was saved before."""
    return {name: part for name, part in state._asdict().items() if part is not None}


def _of_replicas(abstract: State, replicas: int) -> State:
    """The same of another number of replicas, which every device gets whole."""
    if replicas == abstract.replicas:
        return abstract

    def resized(x):
        sharding = NamedSharding(x.sharding.mesh, PartitionSpec(None, *x.sharding.spec[1:]))
        return jax.ShapeDtypeStruct((replicas, *x.shape[1:]), x.dtype, sharding=sharding)

    params, opt_state = jax.tree.map(resized, abstract[:2])
    return abstract._replace(params=params, opt_state=opt_state)


def check_space(workdir: Path, keep: int, abstract: State) -> None:
    """Raises InputError if the disk has no room for keep + 1 checkpoints (one is written before one is deleted)."""
    size = state_bytes(abstract)
    needed = size * max(1, keep + 1 - len(complete(workdir)))
    existing = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"workdir={workdir}: {free / 1e6:,.1f} MB free, and the checkpoints need {needed / 1e6:,.1f} MB more "
            f"(checkpoint.keep={keep} and one being written, {size / 1e6:,.1f} MB each)"
        )


def state_bytes(state: State) -> int:
    """Bytes of all leaves together, on whichever devices they are."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def state_key(state: State) -> str:
    """16 hex digits that name the parameters and optimiser state bit for bit, however they are sharded."""
    return hashlib.sha256(repr(_inspect(state)[0]).encode()).hexdigest()[:16]


@jax.jit
def _inspection(state):
    return fingerprint(state), finite(state)


def _inspect(state) -> tuple[list[int], list[bool]]:
    """The fingerprint of a state, and for each leaf whether it is finite throughout."""
    return tuple(x.tolist() for x in jax.device_get(_inspection(state)))

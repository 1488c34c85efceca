"""Checkpoints: saved in the background, complete or not there, checked when they are written and when they are read."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab.config import InputError
from jaxlab.parallel import path_name
from jaxlab.train.state import Clock, State, fingerprint, finite


class NonFinite(RuntimeError):
    """A number of the run is NaN or infinite: training has failed, and the message says where."""


class SaveFailed(RuntimeError):
    """A checkpoint could not be written, for instance because the disk is full."""


class Checkpoints:
    """The checkpoints of one run, each a folder named by the tokens consumed: the state, and a JSON record."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, state: State, clock: Clock, record: dict) -> None:
        """Starts saving; returns once the state may be overwritten. A clock already saved is left as it is.

        Raises NonFinite for a state that is not finite (a step with a finite loss may leave one behind), SaveFailed
        if this save or the one before it fails.
        """
        if clock.tokens in self._manager.all_steps():
            return
        bits, sound = _inspect(state)
        for (path, _), ok in zip(jax.tree_util.tree_leaves_with_path(state), sound, strict=True):
            if not ok:
                raise NonFinite(f"{path_name(path)} is not finite at step {clock.steps:,}, {clock.tokens:,} tokens")
        self.wait()  # as Orbax would; only then is the disk as full as it will be
        free, size = shutil.disk_usage(self.folder).free, state_bytes(state)
        if free < size:  # known beforehand, it is one line; met by Orbax's threads, pages of tracebacks
            raise SaveFailed(f"{self.folder}: {free / 1e6:,.1f} MB free, and a checkpoint needs {size / 1e6:,.1f} MB")
        record = record | {"clock": list(clock), "fingerprint": bits, "replicas": state.replicas}
        # Orbax holds views of the arrays until they are written. JAX does not let a step overwrite a buffer that has
        # been handed out: donation then falls back to a copy, also on CPU where host and device memory are the same.
        args = ocp.args.Composite(state=ocp.args.StandardSave(_parts(state)), record=ocp.args.JsonSave(record))
        self._checked(self._manager.save, clock.tokens, args=args, force=True)

    def restore(self, abstract: State, report: Callable[[str], None]) -> tuple[State, Clock] | None:
        """The newest sound checkpoint as (state, clock), or None where none was ever saved.

        abstract: shapes, dtypes and shardings wanted; the mesh may differ from the one that saved, and the state comes
        with as many replicas as it was saved with. Damaged checkpoints newer than that are reported and set aside as
        `damaged-...`. Raises InputError if all are damaged.
        """
        damaged = {}
        for tokens in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = _read(self._manager, tokens, abstract)
            except Exception as error:  # whatever a broken file makes the reader raise
                damaged[tokens] = _first_line(error)
                continue
            for newer, reason in damaged.items():
                aside = self._set_aside(newer)
                report(f"checkpoint {newer} is damaged ({reason}): set aside as {aside}, using {tokens}")
            self._manager.reload()
            return found
        if damaged:
            reasons = "; ".join(f"{tokens}: {reason}" for tokens, reason in damaged.items())
            raise InputError(
                f"{self.folder}: all checkpoints are damaged ({reasons}); "
                "bring one back, or start again in another workdir"
            )
        return None

    def steps(self) -> list[int]:
        """Tokens at which a checkpoint is there."""
        return list(self._manager.all_steps())

    def _set_aside(self, tokens: int) -> str:
        taken = len(list(self.folder.glob(f"damaged-{tokens}*")))
        name = f"damaged-{tokens}" + (f"-{taken + 1}" if taken else "")
        shutil.move(self.folder / str(tokens), self.folder / name)
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
            raise SaveFailed(f"{self.folder}: a checkpoint could not be saved ({_first_line(error)})") from error


def held(workdir: Path) -> list[int]:
    """Tokens at which workdir has a complete checkpoint, in order."""
    return sorted(int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdecimal())


def load(workdir: Path, abstract: State, tokens: int | None = None) -> tuple[State, Clock]:
    """(state, clock) of the checkpoint at `tokens` in workdir, the newest unless told; the folder is left as it is:
    training may be going on there.

    Raises InputError where there is none, or a damaged one.
    """
    there = held(workdir)
    if not there:
        raise InputError(f"workdir={workdir}: holds no checkpoint yet")
    tokens = there[-1] if tokens is None else tokens
    if tokens not in there:
        raise InputError(f"workdir={workdir}: has no checkpoint at {tokens} tokens, but {', '.join(map(str, there))}")
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options) as manager:
        try:
            return _read(manager, tokens, abstract)
        except Exception as error:  # whatever a broken file makes the reader raise
            raise InputError(f"workdir={workdir}: checkpoint {tokens} is damaged ({_first_line(error)})") from error


def _read(manager: ocp.CheckpointManager, tokens: int, abstract: State) -> tuple[State, Clock]:
    record = manager.restore(tokens, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
    parts = _parts(_of_replicas(abstract, record.get("replicas", abstract.replicas)))
    state = State(**manager.restore(tokens, args=ocp.args.Composite(state=ocp.args.StandardRestore(parts))).state)
    if _inspect(state)[0] != record["fingerprint"]:
        raise ValueError("its bits differ from those saved")
    clock = record["clock"]  # older ones have the sequences between the tokens and the steps
    return state, Clock(clock[0], clock[-1])


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
    needed = size * max(1, keep + 1 - len(held(workdir)))
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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

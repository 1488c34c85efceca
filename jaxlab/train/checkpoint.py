"""Checkpoints: saved in the background, complete or not there, verified when they are read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxlab.train.state import Clock, State, fingerprint

_fingerprint = jax.jit(fingerprint)


class Checkpoints:
    """The checkpoints of one run, each a folder named by the tokens consumed: the state, and a JSON record."""

    def __init__(self, folder: str | Path, keep: int):
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, state: State, clock: Clock, record: dict) -> None:
        """Starts saving; returns once the state may be overwritten. A clock already saved is left as it is."""
        if clock.tokens in self._manager.all_steps():
            return
        bits = np.asarray(jax.device_get(_fingerprint(state))).tolist()
        record = record | {"clock": list(clock), "fingerprint": bits}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        self._manager.save(clock.tokens, args=args)

    def restore(self, abstract: State, report: Callable[[str], None]) -> tuple[State, Clock, dict] | None:
        """The newest sound checkpoint as (state, clock, record), or None where there is none.

        abstract: shapes, dtypes and shardings wanted; the mesh may differ from the one that saved. A damaged
        checkpoint is reported, set aside as `damaged-...`, and the one before it is tried.
        """
        for tokens in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._restore(tokens, abstract)
            except Exception as error:  # whatever a broken file makes the reader raise
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                report(f"checkpoint {self.folder / str(tokens)} is damaged ({reason}); set aside, using the one before")
                shutil.move(self.folder / str(tokens), self.folder / f"damaged-{tokens}")
        self._manager.reload()
        return None

    def _restore(self, tokens: int, abstract: State) -> tuple[State, Clock, dict]:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore())
        found = self._manager.restore(tokens, args=args)
        bits = np.asarray(jax.device_get(_fingerprint(found.state)))
        if bits.tolist() != found.record["fingerprint"]:
            raise ValueError("its bits differ from those saved")
        self._manager.reload()
        return State(*found.state), Clock(*found.record["clock"]), found.record

    def interrupted(self, tokens: int) -> bool:
        """Whether all processes have agreed to stop here, after any of them was told to (multi-process runs)."""
        return self._manager.reached_preemption(tokens)

    def close(self) -> None:
        """Waits for what is being saved."""
        self._manager.wait_until_finished()
        self._manager.close()

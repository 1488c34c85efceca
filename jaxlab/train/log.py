"""What a run writes and shows as it goes: metrics.jsonl, TensorBoard events, a progress bar."""

import os
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxlab.files import mended_rows, read_rows, sealed_row, writing

ROW = {"kind": str, "tokens": int}  # keys that every row has, and their kinds
QUIET_SECONDS = 15  # between lines where there is no terminal to draw a bar on


class Log:
    """The log of one run. Rows of metrics.jsonl are {"kind": "train" | "eval" | ..., "steps", "tokens", ...}; the
    newest of each kind is in `last`."""

    def __init__(self, workdir: Path, console: Console, *, total_tokens: int, start_tokens: int, tensorboard: bool):
        workdir.mkdir(exist_ok=True)
        self.path, self.last = workdir / "metrics.jsonl", {}
        self._console, self.total = console, total_tokens
        self._drop_rows_after(start_tokens)
        self._file = self.path.open("a", buffering=1)
        self._events = Events(workdir / "tensorboard", start_tokens) if tensorboard else None
        columns = (TextColumn("{task.percentage:3.0f}%"), BarColumn(), TextColumn("{task.fields[status]}"))
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=total_tokens, completed=start_tokens, status="")
        self._last_line = time.monotonic()
        self._bar.start()

    def _drop_rows_after(self, tokens: int) -> None:
        """A run that resumes from an earlier checkpoint writes its later rows again."""
        if self.path.exists():
            rows = mended_rows(self.path, self.say, lambda row: row["tokens"] <= tokens, **ROW)
            self.last = {row["kind"]: row for row in rows}

    def row(self, kind: str, steps: int, tokens: int, values: dict) -> None:
        """Writes one row."""
        self.last[kind] = {"kind": kind, "steps": steps, "tokens": tokens} | values
        with writing(self.path):
            self._file.write(sealed_row(self.last[kind]))
        if self._events:
            self._events.scalars({f"{kind}/{name}": value for name, value in values.items()}, tokens)

    def arrays(self, kind: str, tokens: int, arrays: dict) -> None:
        """Keeps arrays that belong to a row, in KIND/TOKENS.npz."""
        path = self.path.parent / kind / f"{tokens}.npz"
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        with writing(path), part.open("wb") as file:
            np.savez(file, **arrays)
        part.replace(path)

    def progress(self, tokens: int, status: str) -> None:
        """Moves the bar; without a terminal, prints a line now and then."""
        self._bar.update(self._task, completed=tokens, status=status)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > QUIET_SECONDS:
            self._last_line = now
            self.say(f"{tokens / self.total:4.0%}  {status}")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        say(self._console, text)

    def flush(self) -> None:
        """Puts all rows on the disk: a checkpoint must not outlive the rows before it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._events:
            self._events.flush()

    def close(self) -> None:
        self._bar.stop()
        self._file.close()
        if self._events:
            self._events.close()


def say(console: Console, text: str) -> None:
    """Prints a line as it is, however wide the terminal."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class Events:
    """TensorBoard event files. A run that resumes marks what it will write again as superseded.

    Written by the calling thread: tensorboardX's own writer thread dies silently on a full disk, and the run then
    waits for it for ever.
    """

    def __init__(self, folder: Path, start_tokens: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        folder.mkdir(exist_ok=True)
        # Files of one second would have one name; TensorBoard reads them in the order of their names.
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{time.time_ns()}")
        restart = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=start_tokens + 1, session_log=restart))

    def scalars(self, values: dict[str, float], tokens: int) -> None:
        for name, value in values.items():
            event = self._event(wall_time=time.time(), step=tokens, summary=self._scalar(name, value))
            self._writer.write_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def read(path: Path) -> list[dict]:
    """The sound rows of a metrics.jsonl; lines that are damaged, or cut off by a kill, are left out. Raises InputError
    where there is no file."""
    return read_rows(path, **ROW)[0]

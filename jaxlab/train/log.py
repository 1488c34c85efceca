"""What a run writes and shows: metrics.jsonl, TensorBoard events, a progress bar, the final figure."""

import json
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 15  # between lines where there is no terminal to draw a bar on


class Log:
    """The log of one run. Rows of metrics.jsonl are {"kind": "train" | "eval", "steps", "tokens", ...}."""

    def __init__(self, workdir: Path, console: Console, *, total_tokens: int, start_tokens: int, tensorboard: bool):
        self.path = workdir / "metrics.jsonl"
        self._drop_rows_after(start_tokens)
        self._file = self.path.open("a", buffering=1)
        self._console, self._total = console, total_tokens
        self._events = _events(workdir, start_tokens) if tensorboard else None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=total_tokens, completed=start_tokens, status="")
        self._last_line = time.monotonic()
        self._bar.start()

    def _drop_rows_after(self, tokens: int) -> None:
        """A run that resumes from an earlier checkpoint writes its later rows again."""
        if self.path.exists():
            rows = [r for r in read(self.path) if r["tokens"] <= tokens]
            part = self.path.with_suffix(".part")
            part.write_text("".join(json.dumps(r) + "\n" for r in rows))
            part.replace(self.path)

    def row(self, kind: str, steps: int, tokens: int, values: dict) -> None:
        """Writes one row."""
        self._file.write(json.dumps({"kind": kind, "steps": steps, "tokens": tokens} | values) + "\n")
        for name, value in values.items() if self._events else ():
            self._events.add_scalar(f"{kind}/{name}", value, tokens)

    def progress(self, tokens: int, status: str) -> None:
        """Moves the bar; without a terminal, prints a line now and then."""
        self._bar.update(self._task, completed=tokens, status=status)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > QUIET_SECONDS:
            self._last_line = now
            self.say(f"{tokens / self._total:4.0%}  {status}")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()
        self._file.close()
        if self._events:
            self._events.close()


def _events(workdir: Path, start_tokens: int):
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(workdir / "tensorboard"), purge_step=start_tokens + 1 if start_tokens else None)


def read(path: Path) -> list[dict]:
    """Rows of a metrics.jsonl; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def figure(rows: list[dict], path: Path, title: str) -> None:
    """Loss of training batches and of the validation split, and the learning rate, against tokens, as PNG."""
    from matplotlib.figure import Figure

    train, held_out = ([r for r in rows if r["kind"] == kind] for kind in ("train", "eval"))
    fig = Figure(figsize=(7, 5), layout="constrained")
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    millions = [r["tokens"] / 1e6 for r in train]
    top.plot(millions, [r["loss"] for r in train], color="0.7", lw=0.8, label="training batch")
    top.plot(
        [r["tokens"] / 1e6 for r in held_out], [r["loss"] for r in held_out], "o-", ms=4, color="C0", label="validation"
    )
    top.set(ylabel="loss (nats/token)", title=title)
    top.legend(frameon=False)
    if held_out:
        last = held_out[-1]
        top.annotate(
            f"{last['bits_per_byte']:.2f} bits/byte", (last["tokens"] / 1e6, last["loss"]), (-10, 18),
            textcoords="offset points", ha="right",
        )  # fmt: skip
    bottom.plot(millions, [r["lr"] for r in train], color="C1")
    bottom.set(xlabel="training tokens (millions)", ylabel="learning rate")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=150)

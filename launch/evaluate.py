"""Scores a trained model: python -m launch.evaluate --config=configs/demo.py --workdir=runs/demo --tasks=hellaswag,piqa

Tasks: hellaswag, piqa, arc_easy, arc_challenge, mmlu:SHOTS, cmmlu:SHOTS, by log-likelihood; --stores=A,B gives loss
and perplexity on the validation splits of token stores. Writes WORKDIR/evaluation/TASK.jsonl, an item a line, and
results.json. Items that are there already for the same checkpoint are not scored again.
"""

import hashlib
import json
import logging
import math
import os
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from absl import flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxlab.config import InputError
from launch import entry

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
_TASKS = flags.DEFINE_string("tasks", "", "tasks, as in hellaswag,piqa,arc_easy,arc_challenge,mmlu:5,cmmlu:5")
_ITEMS = flags.DEFINE_string("items", "archive", "archive (fetched), tfds (prepared), or a file or folder of items")
_LIMIT = flags.DEFINE_integer("limit", 0, "of each task only the first items; 0: all", lower_bound=0)
_STORES = flags.DEFINE_list("stores", [], "token stores whose validation splits are scored, made with one tokenizer")
_PROCESSES = flags.DEFINE_string("processes", "", "as for launch.train")
flags.register_validator("workdir", bool, message="name the folder of the run, as in --workdir=runs/demo")

QUIET_SECONDS = 15  # between lines where there is no terminal to draw a bar on


def open_stores(run, paths: list[str]) -> dict:
    """{path: the run with that store's validation split}. Raises InputError for a store of another tokenizer."""
    from jaxlab.data.order import Validation
    from jaxlab.data.store import open_store

    runs = {}
    for path in paths:
        store = open_store(path)
        if store.meta["tokenizer_sha256"] != run.store.meta["tokenizer_sha256"]:
            raise InputError(
                f"stores={path}: was made with tokenizer {store.meta['tokenizer']}, "
                f"sha256 {store.meta['tokenizer_sha256'][:12]}; the checkpoint with {run.store.meta['tokenizer']}, "
                f"{run.store.meta['tokenizer_sha256'][:12]}"
            )
        runs[path] = replace(run, validation=Validation(store.split("validation"), run.config.batch.context))
    return runs


def score(choose, items: list, path: Path, checkpoint: int, show, writes: bool = True) -> list[dict]:
    """The records of all items, those that `path` lacks for this checkpoint scored by choose(items) and appended."""
    from jaxlab.train.log import read

    rows = read(path) if path.exists() else []
    held = {row["key"]: row for row in rows if row["checkpoint"] == checkpoint}
    missing = [item for item in items if key(item) not in held]
    if not missing:
        return [held[key(item)] for item in items]
    if writes:
        _write(path, "".join(json.dumps(row) + "\n" for row in rows))  # without a last line that a kill cut off
    scored = 0
    with (path if writes else Path(os.devnull)).open("a") as file:
        for records in choose(missing):
            for item, record in zip(missing[scored:], records, strict=False):
                row = {"checkpoint": checkpoint, "key": key(item)} | record
                held[row["key"]] = row
                file.write(json.dumps(row) + "\n")
            file.flush()
            scored += len(records)
            show(len(items) - len(missing) + scored)
    return [held[key(item)] for item in items]


def key(item) -> str:
    """A name for the item's whole text, shots included: the same item in another place is not scored again."""
    return hashlib.sha256(json.dumps(item[1:]).encode()).hexdigest()[:16]


@contextmanager
def progress(console, name: str, total: int):
    """Gives show(done), which moves a bar; without a terminal, prints a line now and then."""
    columns = (TextColumn(f"{name:14s}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    last = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total)

        def show(done: int) -> None:
            nonlocal last
            bar.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - last > QUIET_SECONDS:
                console.print(f"{name:14s} {done:,} of {total:,} items")
                last = time.monotonic()

        yield show


def task_table(results: dict) -> Table:
    """A row a task: the scores with their standard errors, in per cent, beside chance."""
    table = Table("task", "items", "chance, %", "accuracy", "per token", "per byte")
    for name, r in results.items():
        shares = [f"{100 * r[k]:.2f} ± {100 * r[f'{k}_se']:.2f}" for k in ("accuracy", "per_token", "per_byte")]
        table.add_row(name, f"{r['items']:,}", f"{100 * r['chance']:.2f}", *shares)
    return table


def remarks(results: dict) -> list[str]:
    """Of each task: the margin of the right choice, and what did not fit into the model's context."""
    lines = []
    for name, r in results.items():
        lines.append(f"{name}: right choice {r['margin']:+.4f} ± {r['margin_se']:.4f} nats/token above the others")
        if r["cut"]:
            lines.append(f"{name}: of {r['cut']:,} items too long for the model's context only the right end was read")
        if r["left_out"]:
            lines.append(f"{name}: {r['left_out']:,} items left out, with a continuation longer than the context")
    return lines


def store_table(results: dict) -> Table:
    """A row a store: loss and perplexity a token, bits a byte."""
    table = Table("store", "tokens", "nats/token", "perplexity", "bits/byte")
    for path, r in results.items():
        values = f"{r['loss']:.4f}", f"{r['perplexity']:.2f}", f"{r['bits_per_byte']:.4f}"
        table.add_row(path, f"{r['scored_tokens']:,}", *values)
    return table


def write_results(path: Path, checkpoint: int, found: dict) -> None:
    """Adds what was found to results.json: {checkpoint: {"tasks": {...}, "stores": {...}}}."""
    held = json.loads(path.read_text()) if path.exists() else {}
    here = held.setdefault(str(checkpoint), {})
    for kind, results in found.items():
        here[kind] = here.get(kind, {}) | results
    _write(path, json.dumps(held, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def main(config, console) -> int:
    from jaxlab import parallel  # seconds of imports, after the flags have been read
    from jaxlab.evaluate.choice import by_domain
    from jaxlab.evaluate.tasks import read_tasks
    from jaxlab.train.build import build
    from jaxlab.train.checkpoint import load
    from jaxlab.train.loop import check_run

    first = parallel.start(_PROCESSES.value)
    console.quiet = not first
    for name in ("absl", "asyncio"):  # Orbax: what matters of it is raised, and said in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not _TASKS.value and not _STORES.value:
        raise InputError("--tasks, --stores: name something to evaluate, as in --tasks=hellaswag,piqa")
    workdir, data = Path(_WORKDIR.value), config.data
    run = build(config)
    check_run(run, workdir)
    stores = open_stores(run, _STORES.value)
    where = {"archives": data.archives, "tfds_dir": data.tfds_dir}
    tasks = read_tasks(_TASKS.value, _ITEMS.value, limit=_LIMIT.value, **where)
    state, clock = load(workdir, run.program.abstract_state())
    console.print(f"{workdir}: the checkpoint at {clock.tokens:,} tokens")
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)

    found = {"tasks": {}, "stores": {}}
    for spec, items in tasks.items():
        path = folder / f"{spec.replace(':', '-')}.jsonl"
        with progress(console, spec, len(items)) as show:
            records = score(partial(run.choose, state), items, path, clock.tokens, show, first)
        found["tasks"][spec] = by_domain(records)
    for path, of_store in stores.items():
        result = of_store.evaluate(state)
        found["stores"][path] = result | {"perplexity": math.exp(result["loss"])}
    if first:
        write_results(folder / "results.json", clock.tokens, found)
    if tasks:
        console.print(task_table(found["tasks"]))
        for line in remarks(found["tasks"]):
            console.print(line, highlight=False, soft_wrap=True)
    if stores:
        console.print(store_table(found["stores"]))
    return 0


if __name__ == "__main__":
    entry.with_huge_pages()
    entry.run(main)

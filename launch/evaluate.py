"""Scores a trained model: python -m launch.evaluate --config=configs/demo.py --workdir=runs/demo --tasks=hellaswag,piqa

Tasks are hellaswag, piqa, arc_easy, arc_challenge, mmlu:SHOTS and cmmlu:SHOTS, scored by log-likelihood. --stores=A,B
gives loss and perplexity on the validation splits of token stores. Writes WORKDIR/evaluation/TASK.jsonl, one line for
each item, and results.json. Both identify the checkpoint by a hash of its state. Items that were scored before with the
same state and arithmetic are not scored again.
"""

import hashlib
import itertools
import json
import math
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from absl import flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxlab.config import InputError
from jaxlab.files import local, mended_rows, read_record, read_rows, sealed_row, write_record, writing
from launch import entry

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
_TASKS = flags.DEFINE_string("tasks", "", "tasks, as in hellaswag,piqa,arc_easy,arc_challenge,mmlu:5,cmmlu:5")
_ITEMS = flags.DEFINE_string("items", "archive", "archive (downloaded), tfds (prepared), or a file or folder of items")
_LIMIT = flags.DEFINE_integer("limit", 0, "score only this many items of each task; 0: all", lower_bound=0)
_STORES = flags.DEFINE_list("stores", [], "token stores, made with the run's tokenizer, to compute the loss on")
_PROCESSES = flags.DEFINE_string("processes", "", "as for launch.train")
flags.register_validator("workdir", bool, message="name the folder of the run, as in --workdir=runs/demo")

QUIET_SECONDS = 15  # between progress lines if there is no terminal for a bar


def open_stores(run, paths: list[str]) -> dict:
    """{path: the run with the validation split of that store}. Raises InputError for a store of another tokenizer."""
    from jaxlab.data.order import Validation
    from jaxlab.data.store import open_store

    runs = {}
    for path in paths:
        store = open_store(path if "://" in path else local(path, "stores"))
        if store.meta["tokenizer_sha256"] != run.store.meta["tokenizer_sha256"]:
            raise InputError(
                f"stores={path}: was made with tokenizer {store.meta['tokenizer']}, "
                f"sha256 {store.meta['tokenizer_sha256'][:12]}; the checkpoint with {run.store.meta['tokenizer']}, "
                f"{run.store.meta['tokenizer_sha256'][:12]}"
            )
        split = store.split("validation")
        if not split.num_tokens or not split.num_bytes:
            raise InputError(f"stores={path}: has no text in its validation split")
        runs[path] = replace(run, validation=Validation(split, run.config.batch.context))
    return runs


def arithmetic(run) -> list:
    """What a score depends on besides parameters and item: the model, its number formats, its tokenizer."""
    c, model = run.config, run.program.model
    dtype = np.dtype(model.dtype).name
    return [model.c.to_dict(), dtype, c.quant.to_dict(), c.tokens, run.store.meta["tokenizer_sha256"]]


def score(choose, items: list, path: Path, model: dict, show, say, writes: bool = True) -> list[dict]:
    """The records of all items. Those that the file `path` lacks are scored by choose(items) and appended to it.

    model: {"state": `state_key`, "checkpoint": tokens, "arithmetic"} of the scored model. say: prints a message about
    damaged lines.
    """
    keys = [key(model, item) for item in items]
    rows = []
    if path.exists():
        rows = mended_rows(path, say, bool, key=str) if writes else read_rows(path, key=str)[0]
    known = {row["key"]: row for row in rows}
    missing = {k: item for k, item in zip(keys, items, strict=True) if k not in known}
    names, done = iter(missing), len(items) - len(missing)
    with writing(path), (path if writes and missing else Path(os.devnull)).open("a") as file:
        for records in choose(list(missing.values())):
            for record in records:
                row = {"state": model["state"], "checkpoint": model["checkpoint"], "key": next(names)} | record
                known[row["key"]] = row
                file.write(sealed_row(row))
            file.flush()
            done += len(records)
            show(done)
    return [known[k] for k in keys]


def key(model: dict, item) -> str:
    """A hash of everything that an item's score depends on, which includes its text with its shots but not its id: an
    item that occurs in two places is scored once."""
    content = [model["state"], model["arithmetic"], item[1:]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@contextmanager
def progress(console, name: str, total: int):
    """A context that gives show(done), which moves a bar or, without a terminal, prints a line now and then."""
    columns = (TextColumn(f"{name:14s}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
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
    """A row for each task: the scores with their standard errors, and chance, all in per cent."""
    from jaxlab.evaluate.choice import SCORES

    table = Table("task", "items", "chance, %", *SCORES)
    for name, r in results.items():
        scores = [f"{100 * r[k]:.2f} ± {100 * r[f'{k}_se']:.2f}" if r["items"] else "" for k in SCORES]
        table.add_row(name, f"{r['items']:,}", f"{100 * r['chance']:.2f}" if r["items"] else "", *scores)
    return table


def remarks(results: dict) -> list[str]:
    """Lines about each task: the margin of the right choice, and the items that do not fit into the model's context."""
    lines = []
    for name, r in results.items():
        if r["items"]:
            lines.append(f"{name}: right choice {r['margin']:+.4f} ± {r['margin_se']:.4f} nats/token above the others")
        if r["cut"]:
            lines.append(f"{name}: {r['cut']:,} items are longer than the model's context and lost their beginning")
        if r["left_out"]:
            lines.append(f"{name}: {r['left_out']:,} items left out, with a continuation longer than the context")
    return lines


def store_table(results: dict) -> Table:
    """A row for each store: loss and perplexity per token, bits per byte."""
    table = Table("store", "tokens", "nats/token", "perplexity", "bits/byte")
    for path, r in results.items():
        values = f"{r['loss']:.4f}", f"{r['perplexity']:.2f}", f"{r['bits_per_byte']:.4f}"
        table.add_row(path, f"{r['scored_tokens']:,}", *values)
    return table


def write_results(path: Path, model: dict, results: dict, say) -> None:
    """Adds results {"tasks": {...}, "stores": {...}} to results.json: {state: {"tokens", "tasks", "stores"}}."""
    known = _known_results(path, say) if path.exists() else {}
    here = known.setdefault(model["state"], {"tokens": model["checkpoint"]})
    for kind, values in results.items():
        here[kind] = here.get(kind, {}) | values
    write_record(path, known)


def _known_results(path: Path, say) -> dict:
    """The content of results.json. A file that is damaged, or of a version that named checkpoints by their tokens, is
    renamed, and `say` prints so."""
    try:
        known = read_record(path)
        if not all(isinstance(entry, dict) and "tokens" in entry for entry in known.values()):
            raise InputError(f"{path}: is of a version that named checkpoints by their tokens")
        return known
    except InputError as error:
        names = (path.with_name(f"{path.stem}-before-{n}{path.suffix}") for n in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        say(f"{error}; it is now {aside.name}")
        return {}


def main(config, console) -> int:
    from jaxlab import parallel  # seconds of imports, after the flags have been read
    from jaxlab.evaluate.choice import by_domain
    from jaxlab.evaluate.tasks import read_tasks
    from jaxlab.train.build import build
    from jaxlab.train.checkpoint import load, state_key
    from jaxlab.train.claim import check_run
    from jaxlab.train.log import say as say_on

    first = parallel.start(_PROCESSES.value)
    console.quiet, say = not first, partial(say_on, console)
    if not _TASKS.value.strip(", ") and not _STORES.value:
        raise InputError("--tasks, --stores: name something to evaluate, as in --tasks=hellaswag,piqa")
    workdir, data = local(_WORKDIR.value, "workdir"), config.data
    run = build(config)
    check_run(run, workdir)
    stores = open_stores(run, _STORES.value)
    where = {"archives": data.archives, "tfds_dir": data.tfds_dir}
    tasks = read_tasks(_TASKS.value, _ITEMS.value, limit=_LIMIT.value, **where)
    state, clock = load(workdir, run.program.abstract_state())
    model = {"state": state_key(state), "checkpoint": clock.tokens, "arithmetic": arithmetic(run)}
    say(f"{workdir}: the checkpoint at {clock.tokens:,} tokens")
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)

    results = {"tasks": {}, "stores": {}}
    for spec, items in tasks.items():
        path = folder / f"{spec.replace(':', '-')}.jsonl"
        with progress(console, spec, len(items)) as show:
            records = score(partial(run.choose, state), items, path, model, show, say, first)
        results["tasks"][spec] = by_domain(records)
    for path, store_run in stores.items():
        result = store_run.evaluate(state)
        results["stores"][path] = result | {"perplexity": perplexity(path, result["loss"])}
    if first:
        write_results(folder / "results.json", model, results, say)
    if tasks:
        console.print(task_table(results["tasks"]))
        for line in remarks(results["tasks"]):
            say(line)
    if stores:
        console.print(store_table(results["stores"]))
    return 0


def perplexity(store: str, loss: float) -> float:
    """exp(loss). Raises InputError if that is beyond float64."""
    if not loss < math.log(sys.float_info.max):
        raise InputError(f"stores={store}: the loss is {loss} nats/token, whose perplexity is beyond float64")
    return math.exp(loss)


if __name__ == "__main__":
    entry.with_huge_pages()
    entry.run(main)

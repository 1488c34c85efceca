"""Runs that go on with more tokens than they were planned with."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from jaxlab.config import InputError, differences
from jaxlab.files import read_record, write_record
from jaxlab.train.build import Run, batches
from jaxlab.train.checkpoint import complete
from jaxlab.train.claim import alone, first_clock, record
from jaxlab.train.state import Clock


def lengthen(run: Run, workdir: Path, report: Callable[[str], None]) -> None:
    """Makes the run in workdir as long as `run`, where its config differs in `tokens` alone and has fewer; otherwise
    does nothing.

    Training goes on from the newest checkpoint before which both runs take the same steps, so that the longer run ends
    with the bits that it would have had if it had been planned so: with a constant learning rate that is the newest,
    with WSD one before the decay, and with DiLoCo one before the outer step that ends the shorter run. What is newer
    keeps its files, as result-TOKENS.json, metrics-TOKENS.jsonl and checkpoints/ended-TOKENS. Raises InputError where
    there is no such checkpoint.
    """
    if not (workdir / "config.json").exists():
        return
    claimed = read_record(workdir / "config.json", config=dict, data=dict)
    tokens, recorded = claimed["config"].get("tokens"), record(run)
    changed = differences(claimed["config"], json.loads(json.dumps(recorded["config"])))
    alike = all(claimed.get(key, []) == recorded[key] for key in ("data", "own"))  # older runs do not say the latter
    if not alike or [line.partition(":")[0] for line in changed] != ["tokens"] or not tokens < run.config.tokens:
        return
    config = run.config.copy_and_resolve_references()
    config.tokens = tokens
    shorter = replace(run, config=config, batches=batches(config, run.program.mesh))
    last, saved = common(shorter, run, first_clock(claimed)), complete(workdir)
    if saved and saved[0] > last.tokens:
        raise InputError(
            f"tokens={run.config.tokens}: the run in {workdir} has {tokens}, a longer one takes other steps from "
            f"{last.tokens:,} tokens on, and there is no checkpoint before that, only at {', '.join(map(str, saved))}"
        )
    multihost_utils.sync_global_devices("all have read what the run was planned with")  # before it is written anew
    with alone(workdir):
        _put_aside(workdir, tokens, [at for at in saved if at > last.tokens])
        if jax.process_index() == 0:
            write_record(workdir / "config.json", claimed | {"config": recorded["config"]})
        multihost_utils.sync_global_devices("the run is longer")
    report(f"longer    {tokens:,} tokens become {run.config.tokens:,}")


def common(one: Run, other: Run, start: Clock) -> Clock:
    """The last clock up to which two runs take the same steps: batches, learning rates, weight decay, outer steps."""
    last = start
    for a, b in zip(_plan(one, start), _plan(other, start), strict=False):
        if a != b:
            break
        last = a[0]
    return last


def _plan(run: Run, start: Clock) -> Iterator[tuple]:
    """(clock after it, batch, hyper-parameters, what follows it) of every step."""
    for block in run.blocks(start):
        for i in range(block.count):
            clock = Clock(block.start.tokens + (i + 1) * block.batch.tokens, block.start.steps + i + 1)
            values = {name: h[i] for name, h in block.hypers.items()}
            yield clock, block.batch, values, block.events if clock == block.end else ()


def _put_aside(workdir: Path, tokens: int, checkpoints: list[int]) -> None:
    """Gives what the shorter run alone has another name; the rows of its metrics are copied."""
    if jax.process_index() == 0:
        rows, result = workdir / "metrics.jsonl", workdir / "result.json"
        if rows.exists():
            shutil.copyfile(rows, _free(workdir / f"metrics-{tokens}.jsonl"))
        if result.exists():
            result.rename(_free(workdir / f"result-{tokens}.json"))
        for at in checkpoints:
            (workdir / "checkpoints" / str(at)).rename(_free(workdir / "checkpoints" / f"ended-{at}"))


def _free(path: Path) -> Path:
    """The path, with a number where it is taken."""
    names = [path, *(path.with_stem(f"{path.stem}-{i}") for i in range(2, 1_000))]
    return next(name for name in names if not name.exists())

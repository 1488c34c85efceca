"""Callbacks: what is measured between blocks, when, and what is said about it."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from jaxlab.evaluate.choice import score_tasks
from jaxlab.optim.schedules import crossed
from jaxlab.spectral.collapse import Watch
from jaxlab.train.build import Run
from jaxlab.train.checkpoint import NonFinite
from jaxlab.train.state import Clock, State


class Callback(NamedTuple):
    """One kind of rows in metrics.jsonl. It is also measured at the end of the run.

    due(before, after): whether it is due at some token in (before, after]. measure(state, clock): the values of a row,
    and arrays for a file. say(row, row before): lines for a person.
    """

    kind: str
    due: Callable[[int, int], bool]
    measure: Callable[[State, Clock], tuple[dict, dict]]
    say: Callable[[dict, dict], list[str]]


def callbacks(run: Run) -> list[Callback]:
    """The callbacks of a run, in the order in which they are called."""
    e = run.config.evaluate
    made = [Callback("eval", partial(crossed, every=e.every_tokens), partial(_loss, run), _say_loss)]
    if run.tasks:
        due = partial(crossed, every=e.tasks_every_tokens)
        made.append(Callback("tasks", due, partial(_scores, run), partial(_say_scores, run.tasks)))
    if run.config.spectra.at:
        made.append(Callback("spectra", run.spectra_times.due, run.spectra, Watch()))
    return made


def _loss(run: Run, state: State, clock: Clock) -> tuple[dict, dict]:
    result = run.evaluate(state, clock.tokens)
    if not math.isfinite(result["loss"]):
        raise NonFinite(f"validation loss is {result['loss']} at step {clock.steps:,}, {clock.tokens:,} tokens")
    return result | {"epochs": run.train.epochs(clock.tokens)}, {}


def _say_loss(row: dict, before: dict) -> list[str]:
    del before
    return [
        f"step {row['steps']:>7,}  epoch {row['epochs']:.2f}  "
        f"validation {row['loss']:.4f} nats/token, {row['bits_per_byte']:.4f} bits/byte"
    ]


def _scores(run: Run, state: State, clock: Clock) -> tuple[dict, dict]:
    return score_tasks(partial(run.choose, state, tokens=clock.tokens), run.tasks), {}


def _say_scores(tasks: dict, row: dict, before: dict) -> list[str]:
    del before
    lines = []
    for name in tasks:
        if not row[f"{name}/items"]:
            lines.append(f"{name}: no item has continuations that fit into the model's context")
            continue
        share, error, chance = (100 * row[f"{name}/{key}"] for key in ("acc_norm", "acc_norm_se", "chance"))
        lines.append(f"{name} acc_norm {share:.2f} ± {error:.2f} %, chance {chance:.2f} %")
    return lines

"""From runs of the spectral study to ranks by width: what a run's folder holds, exponents, paired differences.

A run has one number a metric: of every layer the median of its last five measurements, of these the median
(2605.21803).
Lines count a width once, with the geometric mean over its seeds, which share what the width has of its own, its
learning rate for one. Intervals are of 95 %, by Student. Raises InputError where the runs are too few.
"""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxlab.config import InputError
from jaxlab.data.store import open_store
from jaxlab.laws.lines import PowerLaw
from jaxlab.laws.spectral import rank_law
from jaxlab.model.families import width
from jaxlab.spectral.collapse import CONCENTRATION, HARD_RANK
from jaxlab.studies.spectral.grid import MODELS, Setting
from jaxlab.studies.tuning import grouped, select, tuned
from jaxlab.train.log import read

ORDERS = {"renyi_0.5": 0.5, "soft_rank": 1, "hard_rank": 2, "renyi_4": 4, "renyi_inf": math.inf}
DIRECTIONS = {"directions_50": 0.50, "directions_90": 0.90, "directions_99": 0.99}
LAST = (*ORDERS, *DIRECTIONS, "concentration", "edim")  # of every layer, at the end
OVER = {  # over tokens: (metric, what of its layers)
    "hard_rank": ("hard_rank", np.median), "soft_rank": ("soft_rank", np.median),
    "concentration": ("concentration", np.median),
    "least_hard_rank": ("hard_rank", np.min), "most_concentration": ("concentration", np.max),
}  # fmt: skip
CELL = tuple(name for name in Setting._fields if name not in ("part", "log2_lr", "seed"))
SMOOTHED = 20  # steps whose mean is the loss at a measurement


def measured(folder: Path) -> dict:
    """Columns of a run, numbers in text separated by spaces: for each metric of LAST one a layer; for those of OVER
    and the training loss one a measurement, at `over_tokens`; unigram, the entropy of the validation tokens, nats."""
    rows = read(folder / "metrics.jsonl")
    spectra = [row for row in rows if row["kind"] == "spectra"]
    trained = [(row["tokens"], row["loss"]) for row in rows if row["kind"] == "train"]
    store = json.loads((folder / "config.json").read_text())["config"]["data.store"]
    found = {"unigram": round(unigram(store), 4)}
    for name in LAST:
        found[name] = text(np.median(layers(spectra[-5:], name), 0)) if spectra else ""
    found["over_tokens"] = " ".join(str(row["tokens"]) for row in spectra)
    for name, (metric, of_layers) in OVER.items():
        found[f"over_{name}"] = text(of_layers(layers(spectra, metric), 1)) if spectra else ""
    before = ([loss for tokens, loss in trained if tokens <= row["tokens"]][-SMOOTHED:] for row in spectra)
    return found | {"over_loss": text([np.mean(losses) for losses in before])}


def layers(rows: list[dict], name: str) -> np.ndarray:
    """[measurements, layers] of a metric after the activation function."""
    prefix = f"post/{name}/"
    count = sum(key.startswith(prefix) for key in rows[0])
    return np.array([[row[f"{prefix}{i}"] for i in range(count)] for row in rows], float)


def text(values) -> str:
    return " ".join(f"{v:.5g}" for v in values)


@cache
def unigram(store: str) -> float:
    """Entropy of single tokens of the validation split, nats: the loss of a model that sees no context."""
    split = open_store(store).split("validation")
    (tokens,) = split.read(np.zeros(1), split.num_tokens)
    shares = np.bincount(tokens) / len(tokens)
    return float(stats.entropy(shares))


def ended(rows: list[dict]) -> list[dict]:
    """The rows with their numbers: D, the width in dimensions; last {metric: [layers]}; over {metric: [measurements]};
    value {metric: the run's one number}; collapsed, by the loss; warned, by the spectrum of a layer at the end. Without
    those that have no spectra."""
    return [row | numbers(row) for row in rows if row["over_tokens"]]


def numbers(row: dict) -> dict:
    def array(name):
        return np.array(str(row[name]).split(), float)

    last = {name: array(name) for name in LAST}
    over = {name: array(f"over_{name}") for name in ("tokens", "loss", *OVER)}
    return {
        "D": width(MODELS[row["model"]].d_model, row["width"]),
        "last": last,
        "value": {name: float(np.median(line)) for name, line in last.items()},
        "over": over,
        "collapsed": row["loss"] is None or row["loss"] > row["unigram"] - 0.1,
        "warned": not (over["least_hard_rank"][-1] > HARD_RANK and over["most_concentration"][-1] < CONCENTRATION),
    }


def best(rows: list[dict]) -> list[dict]:
    """The runs at the learning rate that was best for all seeds of their setting, each width its own."""
    return tuned(ended(rows), CELL)


def main(runs: list[dict]) -> list[dict]:
    """Those of part base, of the model with the most of them."""
    of_base = list(grouped(select(runs, part="base"), ("model",)).values())
    if not of_base:
        raise InputError("no run of part base has finished")
    return max(of_base, key=len)


def arm(runs: list[dict], **values) -> list[dict]:
    """The runs with these values. Raises InputError where there are none."""
    found = select(runs, **values)
    if not found:
        raise InputError(f"no run of {', '.join(f'{k} {v}' for k, v in values.items())} has finished")
    return found


def of(name: str, over: str = "") -> Callable[[dict], float]:
    """run -> its number of a metric, or the ratio of two."""
    return lambda run: run["value"][name] / (run["value"][over] if over else 1)


def at(name: str, share: float) -> Callable[[dict], float]:
    """run -> its number of a metric when this share of its tokens was trained on."""

    def value(run):
        near = np.argmin(np.abs(run["over"]["tokens"] - share * run["tokens"]))
        return float(run["over"][name][near])

    return value


def line(runs: list[dict], quantity: Callable) -> PowerLaw:
    """quantity(run) = A D^e over widths."""
    return rank_law(*over_widths([(run["D"], quantity(run)) for run in runs]))


def over_widths(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """(D, value) of runs -> widths and geometric means over seeds."""
    D = np.unique([d for d, _ in points])
    return D, np.exp([np.mean([math.log(value) for d, value in points if d == width]) for width in D])


def pairs(a: list[dict], b: list[dict], *keys: str) -> list[tuple[dict, dict]]:
    """Runs of two arms with the same seed and the same values of the keys."""
    names = ("seed", *keys)
    others = {tuple(run[k] for k in names): run for run in b}
    found = [(run, others.get(tuple(run[k] for k in names))) for run in a]
    found = [(x, y) for x, y in found if y]
    if not found:
        raise InputError(f"the two arms share no {', '.join(names)}")
    return found


def paired_line(found: list[tuple[dict, dict]], quantity: Callable) -> PowerLaw:
    """The first's over the second's = A D^e: e is the difference of their exponents."""
    return rank_law(*over_widths([(x["D"], quantity(x) / quantity(y)) for x, y in found]))


class Mean(NamedTuple):
    value: float
    low: float
    high: float


def mean(values) -> Mean:
    """With Student's interval; of values that are all alike it has no length."""
    values = np.array(list(values), float)
    if len(values) < 2:
        raise InputError(f"{len(values)} values: an interval needs two")
    half = student(len(values) - 1) * stats.sem(values)
    return Mean(*(float(values.mean() + sign * half) for sign in (0, -1, 1)))


def student(freedom: int) -> float:
    """Half the length of an interval, in standard errors."""
    return float(stats.t.ppf(0.975, freedom))

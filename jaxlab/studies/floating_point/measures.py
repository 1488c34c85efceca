"""From runs of the floating-point study to what formats cost, laws fitted to it, and their noise between seeds.

What a setting costs is its loss less its twin's: unquantised, of the same model, tokens, learning rate and seed. In
nats/token, as in the law. Raises InputError where the runs are too few.
"""

import math
import re
from functools import cache

import jax.numpy as jnp
import numpy as np

from jaxlab.config import InputError
from jaxlab.laws import floating_point as law
from jaxlab.laws.fit import Fit, fit
from jaxlab.laws.law import Law, Parameter
from jaxlab.laws.resample import Bootstrap, bootstrap, refit
from jaxlab.studies.floating_point.grid import MODELS, TARGETS, Setting
from jaxlab.studies.tuning import DRAWS, column, grouped

CELL = ("model", "tokens", "halvings")
SETTING = tuple(name for name in Setting._fields if name not in ("part", "seed"))


def penalty(p, x):
    """The penalty of the law with exponents of N and D of its own: D^phi / N^eta log2 B / (gamma ...)."""
    return x["D"] ** p["phi"] / x["N"] ** p["eta"] * jnp.log2(x["B"]) / law.bits(p, x)


_SIGNED = {name: Parameter(name, (0.0, 1.0, 3.0), "real") for name in ("phi", "eta", "delta", "nu")}
PENALTY = Law(
    "penalty, exponents of its own", (law.GAMMA, *_SIGNED.values()), ("N", "D", "E", "M", "B"), penalty
)  # fmt: skip


def noise(rows: list[dict]) -> dict[tuple[str, int], float]:
    """{(model, bits): standard deviation between seeds of a run's loss, nats}: without what a seed does to all runs of
    a cell, the median; coarser formats have more of it.

    What ran with one seed has the mean of the other models' at as many bits, or of all; nan where there are none.
    """
    squares = {}
    for cell in grouped(rows, CELL).values():
        seeds = {row["seed"] for row in cell}
        complete = [sorted(g, key=lambda row: row["seed"]) for g in grouped(cell, SETTING).values()]
        complete = [g for g in complete if len(g) == len(seeds)]
        if len(seeds) > 1 and len(complete) > 1:
            losses = np.array([column(g, "loss") for g in complete])
            apart = losses - losses.mean(1, keepdims=True)
            apart -= np.median(apart, 0)
            freedom = (len(seeds) - 1) * (1 - 1 / len(complete))
            for g, line in zip(complete, apart, strict=True):
                squares.setdefault(group(g[0]), []).append(float(np.sum(line**2)) / freedom)
    found = {key: math.sqrt(sum(values) / len(values)) for key, values in squares.items()}

    def of(key):
        alike = [v for (_, bits), v in found.items() if bits == key[1]]
        return found.get(key) or float(np.mean(alike or list(found.values()) or [math.nan]))

    return {key: of(key) for key in dict.fromkeys(group(row) for row in rows)}


def group(row: dict) -> tuple[str, int]:
    """(model, bits with sign, of the coarsest stage)."""
    formats = (row["stages"] or row["format"]).split(",")
    return row["model"], 1 + min(sum(layout(f)) for f in formats)


def finished(rows: list[dict]) -> list[dict]:
    """The runs that finished, with their setting (no part or seed), y, the loss, and own, the noise of it; shared, what
    a seed does to all runs, is 0: it is gone from differences."""
    spread = noise(rows)
    return [
        {"setting": Setting("", *(row[k] for k in SETTING)), "model": row["model"], "seed": row["seed"],
         "y": row["loss"], "own": spread[group(row)], "shared": 0.0}
        for row in rows if row["status"] == "finished"
    ]  # fmt: skip


def twin(s: Setting) -> Setting:
    """The same, unquantised."""
    return Setting("", s.model, s.tokens, halvings=s.halvings)


def losses(runs: list[dict]) -> dict[Setting, float]:
    """{setting: mean loss over its seeds}."""
    found = {}
    for run in runs:
        found.setdefault(run["setting"], []).append(run["y"])
    return {s: sum(values) / len(values) for s, values in found.items()}


def gaps(runs: list[dict]) -> dict[Setting, float]:
    """{setting: loss above its twin's, mean over the seeds that both ran with}, nats/token; quantised settings only."""
    plain = {(r["setting"], r["seed"]): r["y"] for r in runs if not r["setting"].format}
    found = {}
    for r in runs:
        key = twin(r["setting"]), r["seed"]
        if r["setting"].format and key in plain:
            found.setdefault(r["setting"], []).append(r["y"] - plain[key])
    return {s: sum(values) / len(values) for s, values in found.items()}


def percent(runs: list[dict]) -> dict[Setting, float]:
    """`gaps` as per cent of the twin's loss."""
    plain = losses(runs)
    return {s: 100 * gap / plain[twin(s)] for s, gap in gaps(runs).items()}


def layout(format: str) -> tuple[int, int]:
    """(E, M) of e2m1; of "", which is unquantised, BF16's."""
    match = re.fullmatch(r"e(\d+)m(\d+)", format or "e8m7")
    return int(match[1]), int(match[2])


def log2_block(s: Setting) -> float:
    """Of the elements that share a scale, on average; 0, one a scale, where nothing is cast."""
    return MODELS[s.model].log2_block(s.block, s.targets) if s.format else 0.0


def of_the_law(found: dict[Setting, float]) -> dict[Setting, float]:
    """What the paper's law is about: its operands, one format throughout, at least one bit of each kind."""
    return {
        s: v for s, v in found.items()
        if s.targets == TARGETS and not s.stages and not s.halvings and min(layout(s.format)) > 0
    }  # fmt: skip


def inputs(settings: list[Setting]) -> dict[str, np.ndarray]:
    """N, D, E, M, B of the laws."""
    E, M = np.array([layout(s.format) for s in settings], float).reshape(-1, 2).T
    N = np.array([MODELS[s.model].parameters for s in settings], float)
    D = np.array([s.tokens for s in settings], float)
    return {"N": N, "D": D, "E": E, "M": M, "B": 2.0 ** np.array([log2_block(s) for s in settings])}


def fitted(which: Law, runs: list[dict]) -> tuple[Fit, Bootstrap]:
    """A law fitted to what it is about, and refits to resampled settings: BASE to unquantised losses, PENALTY to gaps,
    by least squares, with N and D in units of their means; others to losses, Huber 1e-3 on their logarithm."""
    found = of_the_law(gaps(runs) if which is PENALTY else losses(runs))
    return _fitted(which, tuple((s, y) for s, y in found.items() if which is not law.BASE or not s.format))


@cache
def _fitted(which: Law, points: tuple) -> tuple[Fit, Bootstrap]:
    x, y = inputs([s for s, _ in points]), [y for _, y in points]
    if len(y) < len(which.names) + 1:
        raise InputError(
            f"{len(y)} settings: {which.name} has {len(which.names)} parameters to fit, and needs one more"
        )
    if which is PENALTY:
        x |= {k: x[k] / np.exp(np.log(x[k]).mean()) for k in "ND"}
        found = fit(which, x, y, space="linear", objective="least_squares")
    else:
        found = fit(which, x, y)
    return found, bootstrap(found, DRAWS)


def held_out(found: Fit, held: np.ndarray) -> np.ndarray:
    """Mean |log residual| of the rows held [n], by the law fitted to the others, and to resamples of them: [1 + DRAWS].

    Raises InputError where there are none, or too few others.
    """
    if not held.any() or (~held).sum() <= len(found.law.names):
        raise InputError(f"{held.sum()} of {found.n} settings are held out: too few are left, or none is held")
    times = np.random.default_rng(0).multinomial(found.n, np.full(found.n, 1 / found.n), size=DRAWS)
    thetas = refit(found, np.concatenate([np.ones((1, found.n)), times]) * ~held)
    rows = {k: v[held] for k, v in found.problem.inputs.items()}
    predicted = found.law(found.law.natural(thetas.T[..., None]), rows)  # [1 + DRAWS, rows]
    return np.abs(np.log(predicted) - np.log(found.problem.y[held])).mean(1)

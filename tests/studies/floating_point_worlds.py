"""Worlds with known laws, and the results that runs of the floating-point study would have in them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from jaxlab.laws import floating_point as law
from jaxlab.studies.floating_point import effects, measures
from jaxlab.studies.floating_point.grid import MODELS, SCALES, TARGETS, Setting, settings

# The published exponents; the rest such that small models have losses of 3 to 4 nats and E1M1 costs about 0.5 %.
CONSTANTS = law.CAPYBARA_CONSTANTS | {"n": 11.5, "d": 540.0, "gamma": 4500.0}


@dataclass(frozen=True)
class World:
    """cost(p, x): of the paper's operands; of_operands: per cent of one alone; of_order: nats by which
    precision that rises is worse than constant; noise: a run's own, and what a seed does to all runs of a model."""

    constants: dict
    cost: Callable
    of_operands: dict
    of_order: float
    noise: tuple = (1e-4, 2e-4)
    base: Callable = law.base


def capybara(p, x):
    return law.density(p, x) * np.log2(x["B"]) / law.bits(p, x)


def opposite(p, x):
    """Falls with tokens, and in a straight line with the block; rises with N, and more with exponent bits."""
    return 1e-2 * (x["N"] / 1e4) ** 0.3 * (x["D"] / 2**19) ** -0.5 * (x["E"] + 0.5) ** 2 * (x["M"] + 0.5) * (
        300 - x["B"]
    ) / 100  # fmt: skip


PAPER = World(CONSTANTS, capybara, {"P1": 1.0, "P2": 0.35, "P3": 1.2, "P4": 0.05, "P5": 2.0, "P6": 0.1}, -0.01)
OPPOSITE = replace(
    PAPER,
    cost=opposite,
    of_operands={"P1": 0.1, "P2": 3.0, "P3": 5.0, "P4": 1.2, "P5": 0.3, "P6": 6.0},
    of_order=0.01,
    base=lambda p, x: 2 * law.base(p, x | {"D": np.full_like(x["D"], 1e7)}) - law.base(p, x),  # rises with tokens
)


def loss(w: World, s: Setting) -> float:
    """Without noise."""
    x = measures.inputs([s])
    base = float(w.base(w.constants, x)[0])
    if not s.format:
        return base
    if s.targets != TARGETS:
        return base * (1 + max(w.of_operands[p] for p in s.targets.split("+")) / 100)
    return base + float(w.cost(w.constants, x)[0]) + w.of_order * effects.direction(s)


def made(w: World, seed: int = 0, scale: str = "laptop") -> list[dict]:
    """Results of the scale's runs in a world."""
    rng, rows, shared = np.random.default_rng(seed), [], {}
    for s in settings(SCALES[scale]):
        y = loss(w, s) + rng.normal(0, w.noise[0])
        y += shared.setdefault((s.model, s.seed), rng.normal(0, w.noise[1]))
        facts = {"parameters": MODELS[s.model].parameters, "flops": 1.0, "epochs": 0.1, "seconds": 1.0}
        rows.append(s._asdict() | facts | {"status": "finished", "loss": y})
    return rows

"""Worlds with known laws, and the results that runs of the DiLoCo study would have in them."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from jaxlab.studies import diloco
from jaxlab.studies.study import facts

REFERENCE = 53_248  # the size at which the worlds below are pinned
OCTAVE, ETAS = (-1.0, 0.0, 1.0), (0.05, 0.1, 0.2, 0.4, 0.8)
SCALE = diloco.Scale(  # of the worlds: four sizes, every part, the larger the sparser, as on a laptop
    models={
        "26k": diloco.small(2, 24, 1, -6, 512), "53k": diloco.small(3, 32, 2, -6, 512),
        "108k": diloco.small(3, 48, 3, -6, 512), "180k": diloco.small(3, 64, 4, -6.5, 512),
    },
    grids=(
        diloco.Grid("loss", ("26k",), octaves=OCTAVE, seeds=(0, 1, 2)),
        diloco.Grid("loss", ("53k",), octaves=OCTAVE, seeds=(0, 1)),
        diloco.Grid("loss", ("108k",), octaves=OCTAVE[:2]),
        diloco.Grid("loss", ("180k",)),
        diloco.Grid("batch", ("53k",), (0, 1, 2, 4), octaves=(0, -1), batches=(256, 1_024, 2_048, 4_096)),
        diloco.Grid("outer_lr", ("26k", "53k"), (1, 2, 4, 8), outer_lr=ETAS),
        diloco.Grid("sync_every", ("53k",), (1, 4), outer_lr=(0.1, 0.2, 0.4), sync_every=(1, 5, 30, 100)),
        diloco.Grid("over_training", ("26k",), (0, 1, 2), seeds=(0, 1), over_training=(4, 8)),
        diloco.Grid("stability", ("26k",), (0,), (-2, -1, 0, 1, 2, 3, 4), stabilisers=diloco.STABILISERS),
    ),
    data={}, vocab_size=512, context=64, outer_lr=dict.fromkeys((1, 2, 4, 8), 0.2),
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """A law of the log loss. Exponents: of N by M; gap: at the reference size by M; and what happens around the best
    settings, all as the paper has it."""

    alpha: dict
    gap: dict
    lr_of_n: float = -0.9  # octaves of the best rate a doubling of N
    batch_of_m: float = 0.34
    curvature_in_batch: tuple = (0.02, 0.004)  # data-parallel, DiLoCo
    eta: dict = None
    eta_of_h: float = 0.1
    worst_at_one: float = 0.1
    of_h: float = 0.004
    of_tokens: float = 0.0  # of DiLoCo's gap, a doubling
    width: dict = None  # curvature of the learning rate, by stabilisers
    noise: tuple = (0.0003, 0.002)  # own, shared


PAPER = World(
    alpha={0: -0.0953, 1: -0.0990, 2: -0.0969 - 0.003, 4: -0.1035, 8: -0.1080},
    gap={0: 0.0, 1: -0.01, 2: 0.055, 4: 0.08, 8: 0.1},
    eta={1: 0.16, 2: 0.2, 4: 0.26, 8: 0.34},
    width={"qk+z": 0.005, "qk": 0.01, "z": 0.02, "none": 0.04},
)
OPPOSITE = replace(
    PAPER,
    alpha={m: 2 * -0.0953 - a for m, a in PAPER.alpha.items()},
    gap={m: -g for m, g in PAPER.gap.items()} | {2: 0.055},
    batch_of_m=-0.34,
    curvature_in_batch=(0.004, 0.02),
    eta={1: 0.34, 2: 0.24, 4: 0.17, 8: 0.12},
    eta_of_h=-0.1,
    worst_at_one=-0.1,
    of_h=-0.004,
    of_tokens=0.02,
    width={"qk+z": 0.04, "qk": 0.02, "z": 0.01, "none": 0.005},
)


def log_loss(w: World, run: dict, base: diloco.Model) -> float:
    """Of a run at its settings."""
    n, m = run["parameters"], run["replicas"]
    y = math.log(3.4) + w.gap[m] + w.alpha[m] * math.log(n / REFERENCE)
    y -= 0.05 * math.log2(run["over_training"]) - (w.of_tokens * math.log2(run["over_training"]) if m else 0)
    best = base.log2_lr[0] + 0.3 * (w.lr_of_n + 0.9) + 0.5 * math.log2(run["batch"] / base.batch[0])
    y += w.width[run["stabilisers"]] * (run["log2_lr"] - best) ** 2
    octaves = math.log2(run["batch"] / base.batch[0]) - w.batch_of_m * math.log2(m or 0.5)
    y += w.curvature_in_batch[m > 0] * octaves**2
    if m:
        best_eta = math.log2(w.eta[m]) + w.eta_of_h * math.log2(run["sync_every"] / SCALE.sync_every)
        y += 0.01 * (math.log2(run["outer_lr"]) - best_eta) ** 2
        y += w.worst_at_one if run["sync_every"] == 1 else w.of_h * math.log2(run["sync_every"] / SCALE.sync_every)
    return y


def made(w: World, seed=0):
    """Results of the scale's runs in a world."""
    rng, rows, shared = np.random.default_rng(seed), [], {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(diloco.SCALES, "worlds", SCALE)
        planned = list(diloco.runs("worlds"))
    for config, tags in planned:
        run = tags | facts(config)
        y = log_loss(w, run, SCALE.models[tags["model"]]) + rng.normal(0, w.noise[0])
        y += shared.setdefault((tags["model"], tags["seed"]), rng.normal(0, w.noise[1]))
        rows.append(run | {"status": "finished", "loss": math.exp(y), "epochs": 0.1, "seconds": 1.0})
    return rows

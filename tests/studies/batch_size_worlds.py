"""Worlds with known loss curves, and the results that runs of the batch-size study would have in them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from jaxlab.laws import batch_size as law
from jaxlab.studies.batch_size.grid import EVALUATIONS, MODELS, SCALES, SWEPT, Setting, decay_tokens, settings

LIMIT, HALF_STEPS = 3.0, 40.0


@dataclass(frozen=True)
class World:
    """Loss of a constant batch: LIMIT + (40 steps / S)^s + floor (lr / 2^-6)^of_rate (N / N of the main
    model)^of_size / B, or, with critical above 0, LIMIT + (40 (B + critical) / D)^s, which is McCandlish's, or,
    with free parameters of the three pieces, LIMIT + (their E(B) / D)^s. Arms, in nats: of_arm (name, share of the
    tokens before the decay, whether after it) beside what the constant run has, of_rule and of_decay factors of the
    ramp's; jump: of longer sequences, and what is left of it at the end; octaves of B_simple in the run; of_curve: of
    arms that follow a fitted curve, beside a constant 1,024. noise: nats, of a run and of what a seed does to all."""

    s: float
    floor: float
    of_arm: Callable
    of_rule: dict
    of_decay: dict
    jump: tuple[float, float]
    more: float
    octaves: float
    of_curve: dict
    of_rate: float = 1.0
    of_size: float = 0.3
    critical: float = 0.0
    pieces: dict | None = None
    noise: tuple[float, float] = (5e-4, 2e-3)


def gains(name: str, share: float, decayed: bool) -> float:
    """The paper's: a lead from the first stage, which grows in the last ones and in the decay."""
    late = {"ramp": 1.0, "back": 0.9, "late": 1.2, "mean": 0.3, "constant": 0.2}[name]
    return -late * (0.01 + 0.03 * max(share - 0.5, 0) + 0.01 * decayed)


PAPER = World(
    s=0.5, floor=41.0, of_arm=gains, of_rule={"kept": 1.0, "sqrt": 0.7, "linear": 0.3, "timescale": 1.2},
    of_decay={0.0: 0.0, 0.01: 0.05, 0.1: 1.0, 0.3: 1.5}, jump=(0.05, 0.03), more=-0.02, octaves=2.0, of_rate=0.0,
    of_curve={"curve": -0.01, "own": -0.012},
)  # fmt: skip


def harms(name: str, share: float, decayed: bool) -> float:
    """The later the more, in the decay above all; not with the mean batch."""
    return {"ramp": 1.0, "back": 1.0, "late": 2.0, "mean": 0.0, "constant": -1.0}[name] * (
        0.01 + 0.02 * share + 0.005 * decayed
    )


# Smaller batches are better for every target, whatever the rate, and nothing grows.
OPPOSITE = replace(
    PAPER, of_arm=harms, of_rule={"kept": 1.0, "sqrt": -1.0, "linear": -2.0, "timescale": 1.5},
    of_decay={0.0: 0.0, 0.01: -2.0, 0.1: 1.0, 0.3: 1.5}, jump=(-0.05, -0.03), more=0.02, octaves=-2.0, critical=300.0,
    of_curve={"curve": 0.02, "own": 0.0},
)  # fmt: skip


def constant_loss(w: World, s: Setting, tokens: np.ndarray) -> np.ndarray:
    if w.pieces:
        return LIMIT + (float(law.tokens_of_batch(w.pieces, {"B": np.float64(s.batch)})) / tokens) ** w.s
    if w.critical:
        return LIMIT + (HALF_STEPS * (s.batch + w.critical) / tokens) ** w.s
    floor = (
        w.floor * (s.lr / 2**-6) ** w.of_rate * (MODELS[s.model].parameters / MODELS["2x24"].parameters) ** w.of_size
    )
    return LIMIT + (HALF_STEPS * s.batch / tokens) ** w.s + floor / s.batch


def loss(w: World, s: Setting, tokens: np.ndarray, unit: int) -> np.ndarray:
    """Without noise. Arms: against one curve, that of the constant run at twice the unit."""
    if s.arm in w.of_curve:
        return constant_loss(w, s._replace(batch=1_024), tokens) + w.of_curve[s.arm]
    if s.part in (*SWEPT, "curve"):
        return constant_loss(w, s, tokens)
    curve = 3.5 + (2e4 / tokens) ** 0.5
    stable = s.tokens - decay_tokens(s)
    if s.part == "length":
        after = np.clip((tokens - s.tokens / 2) / (s.tokens / 2), 0, 1)
        return (
            curve
            + (after > 0)
            * {"constant": 0.0, "more": w.more, "longer": w.more + w.jump[0] + (w.jump[1] - w.jump[0]) * after}[s.arm]
        )
    if s.arm == "constant" and s.batch == 2 * unit:
        return curve
    gain = np.array([w.of_arm(s.arm, min(t / stable, 1.0), t > stable or s.schedule == "cosine") for t in tokens])
    return curve + gain * w.of_rule[s.rule] * w.of_decay[s.weight_decay]


def made(w: World, seed: int = 0, scale: str = "laptop") -> list[dict]:
    """Results of the scale's runs in a world."""
    rng, rows, shared = np.random.default_rng(seed), [], {}
    planned = list(settings(SCALES[scale]))
    unit = min(s.batch for s in planned if s.arm == "ramp")
    for s in planned:
        tokens = np.arange(1, EVALUATIONS + 1) * (s.tokens // EVALUATIONS)
        wander = np.convolve(rng.normal(0, w.noise[0], len(tokens) + 3), np.ones(4) / 2, "valid")
        y = loss(w, s, tokens, unit) + wander + shared.setdefault(s.seed, rng.normal(0, w.noise[1]))
        scale_of = 2.0 ** (8 + w.octaves * np.linspace(0, 1, 8) + rng.normal(0, 0.1, 8))
        measured = {
            "at": " ".join(map(str, tokens)), "losses": " ".join(f"{v:.6g}" for v in y), "steps": s.tokens // s.batch,
            "grad_norm": " ".join(["0.5"] * 8), "clipped": " ".join(["0.1"] * 8),
            "signal": " ".join(["0.01"] * 8) if s.schedule == "cosine" else "",
            "noise": " ".join(f"{0.01 * v:.5g}" for v in scale_of) if s.schedule == "cosine" else "",
        }  # fmt: skip
        facts = {
            "tokens": s.tokens // s.batch * s.batch,
            "parameters": MODELS[s.model].parameters,
            "flops": 1.0,
            "epochs": 0.1,
            "seconds": 1.0,
        }
        rows.append(s._asdict() | facts | {"status": "finished", "loss": float(y[-1])} | measured)
    return rows

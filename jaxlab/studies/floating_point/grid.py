"""The runs of the floating-point study: models, settings, and the grids of every scale."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxlab.config import default
from jaxlab.model.families import ARCHITECTURES, SIZES
from jaxlab.studies.chinchilla import C4, NEWS
from jaxlab.studies.tuning import once

TARGETS = "P2+P4+P6"  # the operands that the paper quantises in every run of its law
ALONE = ("P1", "P2", "P3", "P4", "P5", "P6")
BITS = {  # every layout with an exponent bit, by bits with sign
    2: ("e1m0",), 3: ("e1m1", "e2m0"), 4: ("e1m2", "e2m1", "e3m0"), 5: ("e1m3", "e2m2", "e3m1", "e4m0"),
    6: ("e1m4", "e2m3", "e3m2", "e4m1"),
}  # fmt: skip


class Setting(NamedTuple):
    """All that tells one run from another, and the columns of the results.

    format: "" is unquantised, the twin that others are compared with; block: elements that share a scale, "channel" for
    the whole contracted axis or "tensor"; stages: formats that take turns, as in e1m0,e3m2, each for an equal part of
    the run; halvings: of the model's learning rate.
    """

    part: str
    model: str
    tokens: int
    format: str = ""
    block: int | str = "channel"
    targets: str = TARGETS
    stages: str = ""
    halvings: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Model:
    """A decoder and how it trains; batch in tokens."""

    family: str
    layers: int
    width: int
    heads: int
    d_ff: int
    peak_lr: float
    batch: int

    @cached_property
    def matrices(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linears of a block."""
        up = 2 if ARCHITECTURES[self.family]["ffn"] == "swiglu" else 1
        return [(self.width, self.width)] * 4 + [(self.width, self.d_ff)] * up + [(self.d_ff, self.width)]

    @property
    def parameters(self) -> int:
        """N of the law: weights of the blocks' linears."""
        return self.layers * sum(i * o for i, o in self.matrices)

    def log2_block(self, block: int | str, targets: str) -> float:
        """log2 of the elements that share a scale: the mean over the operands cast and the weights of the linears.

        A block ends with the axis that its product contracts: a layer's inputs (P1, P2), its outputs (P3, P4), or the
        tokens of a batch (P5, P6).
        """
        total = 0.0
        for target in targets.split("+"):
            for i, o in self.matrices:
                axis = {"P1": i, "P2": i, "P3": o, "P4": o}.get(target, self.batch)
                whole = axis * {"P1": self.batch, "P2": o, "P3": self.batch, "P4": i, "P5": o, "P6": i}[target]
                size = {"channel": axis, "tensor": whole}.get(block) or min(block, axis)
                total += i * o * math.log2(size)
        return total / len(targets.split("+")) / sum(i * o for i, o in self.matrices)


def small(layers: int, width: int, heads: int, log2_lr: float, batch: int = 256) -> Model:
    """QK-LayerNorm, GELU, tied head: trains at widths where the paper's initialisation is too small."""
    return Model("chinchilla", layers, width, heads, 4 * width, 2.0**log2_lr, batch)


def of_the_paper(name: str) -> Model:
    """A published size, at the rate and the batch of all of them."""
    m = SIZES["llama"][name]
    return Model("llama", m["num_layers"], m["d_model"], m["num_heads"], m["d_ff"], 3e-4, STEP)


STEP = 1024 * 2048  # tokens
PAPER = {name: of_the_paper(name) for name in ("41m", "85m", "154m", "679m", "1.2b", "7b", "70b")}
MODELS = PAPER | {
    "14k": small(2, 16, 1, -5, 512), "25k": small(2, 24, 1, -5, 512),
    "26k": small(2, 24, 1, -6), "53k": small(3, 32, 2, -6), "108k": small(3, 48, 3, -6.5),
    "5m": small(6, 128, 2, -8, 32_768), "13m": small(6, 256, 4, -8, 32_768), "27m": small(8, 384, 6, -9, 32_768),
}  # fmt: skip


class Grid(NamedTuple):
    """Settings of one part, in all combinations."""

    part: str
    models: tuple[str, ...]
    tokens: tuple[int, ...]
    formats: tuple[str, ...] = ("",)
    blocks: tuple[int | str, ...] = ("channel",)
    targets: tuple[str, ...] = (TARGETS,)
    stages: tuple[str, ...] = ("",)
    halvings: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Scale:
    """A setting of several grids runs once, in the first part that has it. warmup_steps 0: a tenth of the run."""

    grids: tuple[Grid, ...]
    data: dict
    vocab_size: int
    context: int
    warmup_steps: int = 0
    steps_per_call: int = 1
    evaluation_tokens: int = 0  # 0: the whole validation split


def powers(first: int, last: int) -> tuple[int, ...]:
    """2^first to 2^last."""
    return tuple(2**i for i in range(first, last + 1))


def schedules(model: str, tokens: int, seeds: tuple[int, ...]) -> Grid:
    """Two bits then six, six then two, in two stages and in three: as many bits as four throughout."""
    orders = ("", "e1m0,e3m2", "e3m2,e1m0", "e1m0,e2m1,e3m2", "e3m2,e2m1,e1m0")
    return Grid("schedule", (model,), (tokens,), ("e2m1",), stages=orders, seeds=seeds)


PAIRS = ("P2+P4", "P2+P6", "P4+P6", TARGETS)
EXPONENT = ("e1m1", "e2m1", "e3m1", "e4m1", "e2m0", "e3m0", "e4m0")
MANTISSA = ("e1m0", "e1m2", "e1m3", "e1m4", "e2m2", "e2m3", "e3m2")
STEPS = tuple(STEP * n for n in (5_000, 10_000, 25_000, 50_000))
FITTED, ODD = ("41m", "85m", "154m", "679m"), ("41m", "679m")
FORMATS = ("e0m7", "e1m1", "e1m2", "e1m3", "e1m4", "e1m5", "e1m6", "e2m1", "e2m3", "e3m1", "e3m2", "e4m1", "e4m3",
           "e4m5", "e5m1", "e5m2", "e6m1")  # fmt: skip
SCALES = {
    "smoke": Scale(
        grids=(
            Grid("base", ("14k", "25k"), (16_384,)),
            Grid("targets", ("14k",), (16_384,), ("e1m1",), targets=("P5",)),
            Grid("exponent", ("14k",), (16_384,), ("e2m1",)),
            Grid("mantissa", ("14k",), (16_384,), ("e1m2",)),
            Grid("block", ("14k",), (16_384,), ("e1m1",), blocks=(8,)),
            Grid("data", ("14k",), (32_768,), ("", "e1m1")),
            Grid("law", ("25k",), (16_384,), ("e1m1",)),
            Grid("schedule", ("14k",), (16_384,), ("e2m1",), stages=("e1m0,e3m2",)),
        ),
        data=NEWS, vocab_size=512, context=64, evaluation_tokens=8_192,
    ),
    "laptop": Scale(
        grids=(
            Grid("base", ("26k",), (2**20,), seeds=(0, 1, 2)),
            Grid("base", ("26k",), powers(17, 22), seeds=(0, 1)),
            Grid("base", ("53k", "108k"), powers(19, 21), seeds=(0, 1)),
            Grid("exponent", ("26k",), (2**20,), EXPONENT, seeds=(0, 1, 2)),
            Grid("mantissa", ("26k",), (2**20,), MANTISSA, seeds=(0, 1, 2)),
            Grid("targets", ("26k",), (2**20,), ("e1m1",), targets=(*ALONE, *PAIRS), seeds=(0, 1, 2)),
            Grid("block", ("26k",), (2**20,), ("e1m1", "e2m1"), blocks=powers(1, 7), seeds=(0, 1, 2)),
            Grid("data", ("26k",), powers(17, 22), ("e1m0", "e1m1"), seeds=(0, 1)),
            Grid("data", ("26k",), (2**21,), ("", "e1m0"), halvings=(1,), seeds=(0, 1)),
            Grid("law", ("53k", "108k"), powers(19, 21), ("e1m0", "e1m1", "e2m1"), seeds=(0, 1)),
            Grid("law", ("53k",), (2**20,), ("e1m2", "e2m2", "e3m1"), seeds=(0, 1)),
            Grid("law", ("53k",), (2**20,), ("e1m1",), blocks=(2, 4, 8, 16), seeds=(0, 1)),
            schedules("26k", 2**20, (0, 1, 2)),
        ),
        data=NEWS, vocab_size=512, context=32, steps_per_call=10,
    ),
    "gpu": Scale(
        grids=(
            Grid("base", ("5m", "13m"), powers(26, 29), seeds=(0, 1)),
            Grid("base", ("27m",), powers(27, 29)),
            Grid("exponent", ("5m",), (2**27,), EXPONENT, seeds=(0, 1)),
            Grid("mantissa", ("5m",), (2**27,), MANTISSA, seeds=(0, 1)),
            Grid("targets", ("5m",), (2**27,), ("e1m1",), targets=(*ALONE, *PAIRS), seeds=(0, 1)),
            Grid("block", ("5m",), (2**27,), ("e1m1", "e2m1"), blocks=powers(3, 9), seeds=(0, 1)),
            Grid("data", ("5m",), powers(26, 29), ("e1m0", "e1m1"), seeds=(0, 1)),
            Grid("data", ("5m",), (2**29,), ("", "e1m0"), halvings=(1,), seeds=(0, 1)),
            Grid("law", ("13m", "27m"), powers(27, 29), ("e1m0", "e1m1", "e1m2", "e2m1", "e2m2")),
            schedules("5m", 2**27, (0, 1)),
        ),
        data=C4, vocab_size=32_000, context=512, steps_per_call=8, evaluation_tokens=2_097_152,
    ),
    "paper": Scale(
        grids=(
            *(Grid("law", FITTED, (d,), FORMATS) for d in STEPS[:-1]),  # E5M1 is missing at the largest N and D
            Grid("law", FITTED[:-1], STEPS[-1:], FORMATS),
            Grid("law", FITTED[-1:], STEPS[-1:], tuple(f for f in FORMATS if f != "e5m1")),
            Grid("law", FITTED, STEPS, ("e1m1",), (32, 64, 128, 256, "tensor")),
            Grid("law", ODD, STEPS, ("e1m1",), (512,)),
            Grid("held_out", ("1.2b",), STEPS, ("e1m2", "e4m3"), (512,)),
            Grid("held_out", ("7b",), (STEPS[0], STEPS[-1]), ("e4m3",), (64,)),
            Grid("held_out", ("70b",), STEPS[:2], ("e4m3",), (64,)),
            # What the paper must have run and does not list: the twins, and the operands, at its smallest run.
            Grid("base", FITTED, STEPS),
            Grid("targets", FITTED[:1], STEPS[:1], ("e1m1",), targets=(*ALONE, *PAIRS)),
        ),
        data=C4, vocab_size=32_000, context=2_048, warmup_steps=500, evaluation_tokens=16_777_216,
    ),
}  # fmt: skip


def settings(s: Scale) -> Iterator[Setting]:
    """Every setting of the scale's grids, once."""
    return once(s.grids, Setting)


def operands(run: Setting) -> dict[str, str]:
    """{operand: how it is cast}, as keys of `config.quant`."""
    block = {"channel": "block=0", "tensor": "block=0,rows=0"}.get(run.block, f"block={run.block}")
    return dict.fromkeys(run.targets.split("+"), f"{run.format},{block}") if run.format else {}


def stages(run: Setting) -> str:
    """As `config.quant.stages` has them."""
    formats = run.stages.split(",") if run.stages else []
    return "/".join(f"{i * run.tokens // len(formats)}:{name}" for i, name in enumerate(formats))


def config(s: Scale, run: Setting) -> ConfigDict:
    """The paper's recipe: AdamW (0.9, 0.95), weight decay 0.1 times the rate, clipping at 1, cosine to 0."""
    m, c = MODELS[run.model], default()
    c.update(seed=run.seed, tokens=run.tokens)
    c.data.update(s.data)
    c.model.update(ARCHITECTURES[m.family] | {"family": m.family, "vocab_size": s.vocab_size, "context": s.context})
    c.model.update(num_layers=m.layers, d_model=m.width, d_ff=m.d_ff)
    c.model.update(num_heads=m.heads, num_kv_heads=m.heads, head_dim=m.width // m.heads)
    c.quant.update(operands(run) | {"stages": stages(run)})
    c.batch.update(tokens=m.batch, context=s.context)
    c.optim.update(b2=0.95, weight_decay=0.1, decay="coupled")
    c.schedule.update(peak_lr=m.peak_lr / 2**run.halvings, final_fraction=0.0)
    c.schedule.warmup_tokens = s.warmup_steps * m.batch or run.tokens // 10
    c.compute.steps_per_call = s.steps_per_call
    c.evaluate.update(every_tokens=0, tokens=s.evaluation_tokens)
    c.checkpoint.update(every_tokens=max(run.tokens // 4, 250_000), keep=1)
    c.log.tensorboard = False
    return c

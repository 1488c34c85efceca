"""The runs of the batch-size study: models, settings, and the grids of every scale."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxlab.config import default
from jaxlab.model.families import ARCHITECTURES, SIZES, parameters
from jaxlab.studies.chinchilla import C4, NEWS
from jaxlab.studies.tuning import once

# How the batch goes: (share of the tokens before the decay, multiple of the setting's batch) of every stage. The
# published ramp is of 2, 4, 5, 6M, a quarter of the tokens each; `mean` takes as many steps.
RAMP = ((0, 1), (1 / 4, 2), (1 / 2, 2.5), (3 / 4, 3))
MEAN = 4 / sum(1 / multiple for _, multiple in RAMP)
ARMS = {
    "constant": ((0, 1),),
    "mean": ((0, MEAN),),
    "ramp": RAMP,
    "back": (*RAMP, (1, 2)),  # decays at the batch of the constant run
    "late": ((0, 1), (3 / 4, 2.5)),  # the switch of 2602.14208
    "more": ((0, 1), (1 / 2, 1.5)),
    "longer": ((0, 1), (1 / 2, 1.5)),  # by the length of the sequences
}
STRETCH = 1.5
EVALUATIONS = 64
SWEPT = ("crossing", "rate", "size")  # parts of constant batches at a constant rate, from which fits are
RULES = ("kept", "sqrt", "linear")


class Setting(NamedTuple):
    """All that tells one run from another, and the columns of the results.

    batch: tokens; of an arm that grows, before it does. rule: what becomes of the learning rate when the batch grows;
    `timescale`: the rate is kept, weight decay grows with the batch. arm: one of ARMS, or of the scale's `growth`.
    """

    part: str
    model: str
    batch: int
    arm: str = "constant"
    rule: str = "kept"
    schedule: str = "constant"
    weight_decay: float = 0.1
    lr: float = 0.0
    tokens: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Model:
    """Family, then the name of a published size, or layers, width and heads."""

    family: str
    shape: str | tuple[int, int, int]

    @cached_property
    def parameters(self) -> int:
        """N of the fits: without embeddings."""
        return parameters(ConfigDict(default().model.to_dict() | self.keys))["non_embedding"]

    @property
    def keys(self) -> dict:
        """Changes to `config.model`."""
        known = ARCHITECTURES[self.family] | {"family": self.family}
        if isinstance(self.shape, str):
            return known | SIZES[self.family][self.shape]
        layers, width, heads = self.shape
        return known | {
            "num_layers": layers, "d_model": width, "num_heads": heads, "num_kv_heads": heads,
            "head_dim": width // heads, "d_ff": 4 * width, "init_std": 0.0,
        }  # fmt: skip


SMALL = {
    "2x16": (2, 16, 1), "2x24": (2, 24, 1), "3x32": (3, 32, 2),
    "4x128": (4, 128, 2), "6x256": (6, 256, 4), "8x384": (8, 384, 6),
}  # fmt: skip
FITTED = ("122m", "210m", "350m", "600m", "1b")
TRAINED = {"dense": ("qwen3", "2b"), "moe": ("qwen3_moe", "4b-a0.5b")}
MODELS = (
    {name: Model("internlm2", shape) for name, shape in SMALL.items()}
    | {name: Model("internlm2", name) for name in FITTED}
    | {name: Model(*size) for name, size in TRAINED.items()}
)


class Grid(NamedTuple):
    """Settings of one part, in all combinations."""

    part: str
    models: tuple[str, ...]
    batches: tuple[int, ...]
    arms: tuple[str, ...] = ("constant",)
    rules: tuple[str, ...] = ("kept",)
    schedules: tuple[str, ...] = ("constant",)
    weight_decays: tuple[float, ...] = (0.1,)
    rates: tuple[float, ...] = (6e-4,)
    tokens: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Scale:
    """A setting of several grids runs once, in the first part that has it. call_tokens: of one compiled call, about;
    growth: {arm: `config.batch.growth`} of part curve."""

    grids: tuple[Grid, ...]
    data: dict
    vocab_size: int
    context: int
    warmup_tokens: int
    call_tokens: int = 0
    evaluation_tokens: int = 0  # 0: the whole validation split
    growth: dict[str, str] = field(default_factory=dict)


class Sizes(NamedTuple):
    """Models, batches and budgets of a scale. unit: the batch before a ramp; rates: below the middle one, and above;
    best: batches of the large model that grow by a fitted curve come from the first and are compared with the others.
    """

    models: tuple[str, str, str]  # small, main, large
    batches: tuple[int, ...]
    few: tuple[int, ...]
    unit: int
    rates: tuple[float, float, float]
    tokens: int  # of a run of part crossing
    arm_tokens: int  # of all others
    curves: tuple[str, ...]  # arms of part curve
    best: tuple[int, ...]
    seeds: tuple[int, ...] = (0, 1, 2)


def grids(s: Sizes) -> tuple[Grid, ...]:
    """All parts."""
    small, main, large = s.models
    low, middle, high = s.rates
    arm = {"models": (main,), "rates": (middle,), "tokens": (s.arm_tokens,), "seeds": s.seeds}
    one, two = arm | {"batches": (s.unit,)}, arm | {"batches": (2 * s.unit,)}
    wsd = {"schedules": ("wsd",)}
    return (
        Grid("crossing", (main,), s.batches, rates=(middle,), tokens=(s.tokens,), seeds=s.seeds[:2]),
        Grid("rate", (main,), s.few, rates=(low, high), tokens=(s.arm_tokens,)),
        Grid("size", (small, large), s.few, rates=(middle,), tokens=(s.arm_tokens,)),
        Grid("ramp", arms=("constant", "mean", "ramp", "back", "late"), **one | wsd),
        Grid("ramp", **two | wsd),
        Grid("rule", arms=("ramp",), rules=("sqrt", "linear"), **one | wsd),
        Grid("rule", arms=("ramp",), rules=tuple(RULES), **one | wsd | {"rates": (low, high), "seeds": s.seeds[:2]}),
        Grid("length", arms=("constant", "more", "longer"), **two),
        Grid("weight_decay", arms=("ramp",), weight_decays=(0.0, 0.01, 0.3), **one | wsd),
        Grid("weight_decay", weight_decays=(0.0, 0.01, 0.3), **two | wsd),
        Grid("cosine", arms=("mean", "ramp"), schedules=("cosine",), **one),
        Grid("cosine", schedules=("cosine",), **two),
        Grid("weight_decay", arms=("ramp",), rules=("timescale",), **one | wsd),
        Grid("curve", arms=s.curves, **arm | {"models": (large,), "batches": s.best[:1]}),
        Grid("curve", **arm | {"models": (large,), "batches": s.best[1:]}),
    )


def powers(first: int, last: int) -> tuple[int, ...]:
    """2^first to 2^last."""
    return tuple(2**i for i in range(first, last + 1))


BATCHES = (64, 128, 192, 256, 384, 512, 768, 1_024, 1_536, 2_048, 4_096, 8_192)
SOME = (64, 128, 192, 256, 512, 1_024, 2_048, 4_096)
SWEEP = (*powers(16, 22), 15 * 2**19)  # 64K to 7.5M tokens; how many in between, and for how long, is not published


def of_the_paper() -> Iterator[Grid]:
    """The fits at five sizes; both models of the comparison; its ablations on the mixture of experts."""
    unit, stable, decayed = 2**21, (500 * 10**9,), (600 * 10**9,)
    yield Grid("crossing", FITTED[-1:], SWEEP, tokens=(100 * 10**9,))
    yield Grid("size", FITTED[:-1], SWEEP, tokens=(100 * 10**9,))
    yield Grid("ramp", tuple(TRAINED), (unit,), ("ramp", "mean"), schedules=("wsd",), tokens=decayed)
    yield Grid("ramp", tuple(TRAINED), (2 * unit,), schedules=("wsd",), tokens=decayed)
    wsd = {"models": ("moe",), "schedules": ("wsd",), "tokens": decayed}
    yield Grid("rule", batches=(unit,), arms=("ramp",), rules=("sqrt",), **wsd)
    yield Grid("length", ("moe",), (2 * unit,), ("constant", "more", "longer"), tokens=stable)
    for batch, arm in ((unit, "ramp"), (2 * unit, "constant")):
        yield Grid("weight_decay", batches=(batch,), arms=(arm,), weight_decays=(0.01,), **wsd)
        yield Grid("cosine", ("moe",), (batch,), (arm,), schedules=("cosine",), tokens=stable)


STEP_LAW = "curve:0.58,0,0.571"  # 0.58 D^0.571 (2503.04715), at scales whose small models have not been fitted
# laptop: fits to sizes 2x16 and 2x24, and to 3x32 alone, made before an error in the law's arithmetic was found; table
# f(N, D) of results/batch_size/laptop/report.md gives batches within 4 % of theirs.
GROWTH = {
    "smoke": {"curve": f"{STEP_LAW} every 4Ki"},
    "laptop": {"curve": "curve:0.0626,0.0196,0.724 every 128Ki", "own": "curve:0.155,0,0.665 every 128Ki"},
    "gpu": {"curve": f"{STEP_LAW} every 64Mi"},
}
SCALES = {
    "smoke": Scale(
        grids=(
            Grid("crossing", ("2x16",), (256, 512), rates=(2**-6,), tokens=(16_384,)),
            Grid("ramp", ("2x16",), (256,), ("ramp",), schedules=("wsd",), rates=(2**-6,), tokens=(16_384,)),
            Grid("length", ("2x16",), (512,), ("longer",), rates=(2**-6,), tokens=(16_384,)),
            Grid("cosine", ("2x16",), (256,), ("late",), schedules=("cosine",), rates=(2**-6,), tokens=(16_384,)),
            Grid("curve", ("2x16",), (64,), ("curve",), rates=(2**-6,), tokens=(16_384,)),
        ),
        data=NEWS, vocab_size=512, context=32, warmup_tokens=2_048, call_tokens=2_048, evaluation_tokens=512,
        growth=GROWTH["smoke"],
    ),
    "laptop": Scale(
        grids=grids(Sizes(
            ("2x16", "2x24", "3x32"), BATCHES, SOME, unit=512, rates=(2**-7, 2**-6, 2**-5),
            tokens=2**21, arm_tokens=2**20, curves=tuple(GROWTH["laptop"]), best=(256, 1_024, 1_536, 2_048),
        )),
        data=NEWS, vocab_size=512, context=32, warmup_tokens=2**16, call_tokens=4_096, evaluation_tokens=16_384,
        growth=GROWTH["laptop"],
    ),
    "gpu": Scale(
        grids=grids(Sizes(
            ("4x128", "6x256", "8x384"), tuple(64 * b for b in BATCHES), tuple(64 * b for b in SOME), unit=2**15,
            rates=(2**-10, 2**-9, 2**-8),
            tokens=2**30, arm_tokens=2**29, curves=tuple(GROWTH["gpu"]), best=(2**13, 2**15, 2**16, 2**17),
        )),
        data=C4, vocab_size=32_000, context=512, warmup_tokens=2**24, call_tokens=2**19, evaluation_tokens=2**20,
        growth=GROWTH["gpu"],
    ),
    "paper": Scale(
        grids=tuple(of_the_paper()),
        data=C4, vocab_size=0, context=4_096, warmup_tokens=1_000 * 2**21, evaluation_tokens=2**24,
    ),
}  # fmt: skip


def settings(s: Scale) -> Iterator[Setting]:
    """Every setting of the scale's grids, once."""
    return once(s.grids, Setting)


def decay_tokens(run: Setting) -> int:
    """Of WSD: a sixth of the run, published as 100B after 500B."""
    return run.tokens // 6 if run.schedule == "wsd" else 0


def stages(run: Setting) -> dict[int, int]:
    """{tokens: batch size wanted from then on}."""
    stable = run.tokens - decay_tokens(run)
    return {round(share * stable): round(multiple * run.batch) for share, multiple in ARMS[run.arm]}


def text(stages: dict[int, int]) -> str:
    """As `config.batch.growth` has them."""
    return " ".join(f"{start}:{size}" for start, size in stages.items())


def config(s: Scale, run: Setting) -> ConfigDict:
    """AdamW (0.9, 0.95), clipping at 1, linear decay or cosine to 10 % of the rate.

    Under cosine gradients are accumulated in quarters of a ramp's first batch, which is how noise is measured.
    """
    c = default()
    c.update(seed=run.seed, tokens=run.tokens)
    c.data.update(s.data)
    c.model.update(MODELS[run.model].keys | {"context": s.context})
    c.model.vocab_size = s.vocab_size or c.model.vocab_size
    lr_rule, decay = ("kept", "timescale") if run.rule == "timescale" else (run.rule, "coupled")
    c.batch.update(tokens=run.batch, context=s.context, lr_rule=lr_rule)
    if run.arm != "constant":
        c.batch.growth = s.growth.get(run.arm) or text(stages(run))
    if run.arm == "longer":
        c.model.context = round(STRETCH * s.context)
        c.batch.context_growth = text({0: s.context, list(stages(run))[1]: c.model.context})
    if run.schedule == "cosine":
        c.batch.micro_tokens = run.batch // (8 if run.arm == "constant" else 4)
    c.optim.update(b2=0.95, weight_decay=run.weight_decay, decay=decay)
    c.schedule.update(name=run.schedule, peak_lr=run.lr, warmup_tokens=s.warmup_tokens, final_fraction=0.1)
    c.schedule.decay_tokens = decay_tokens(run)
    c.compute.steps_per_call = max(1, s.call_tokens // run.batch)
    c.evaluate.update(every_tokens=run.tokens // EVALUATIONS, tokens=s.evaluation_tokens)
    c.checkpoint.update(every_tokens=max(run.tokens // 4, 250_000), keep=1)
    c.log.tensorboard = False
    return c

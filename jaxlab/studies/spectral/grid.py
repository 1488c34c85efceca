"""The runs of the spectral study: models, settings, and the grids of every scale."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxlab.config import default
from jaxlab.cost.flops import training_per_token
from jaxlab.model.families import ARCHITECTURES, SIZES, width
from jaxlab.studies.chinchilla import C4, NEWS
from jaxlab.studies.tuning import once

# Shares of a run at which spectra are taken. The last five are its end: the medians of the authors' companion are over
# them; a half and a quarter are there for runs twice as long.
MEASURED = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 0.8, 0.85, 0.9, 0.95, 1)
FFN_NORMS = ("weight", "hyperspherical")


class Setting(NamedTuple):
    """All that tells one run from another, and the columns of the results.

    norm: its placement; ffn: the normalisation of the feed-forward weights; width: of the feed-forward, a multiple of
    d_model; allocation: widths of the single layers instead; samples: tokens behind a covariance, at least.
    """

    part: str
    model: str
    norm: str
    ffn: str
    width: float
    allocation: str
    tokens: int
    samples: int
    log2_lr: float
    seed: int


@dataclass(frozen=True)
class Model:
    """A decoder of a family; batch in tokens."""

    family: str
    layers: int
    d_model: int
    heads: int
    batch: int


def small(family: str, layers: int, d_model: int, head_dim: int, batch: int) -> Model:
    return Model(family, layers, d_model, d_model // head_dim, batch)


def published(family: str, size: str) -> Model:
    """A published shape, at the batch of the Mix-LN recipe (2412.13795)."""
    m = SIZES[family][size]
    return Model(family, m["num_layers"], m["d_model"], m["num_heads"], STEP)


STEP = 512 * 256  # tokens
MODELS = {
    "llama-2x16": small("llama", 2, 16, 16, 512),
    **{f"llama-{n}x32": small("llama", n, 32, 16, 256) for n in (2, 4, 7)},
    "gpt2-4x32": small("gpt2", 4, 32, 16, 256), "ngpt-4x32": small("ngpt", 4, 32, 16, 256),
    **{f"llama-{n}x16": small("llama", n, 16, 16, 256) for n in (6, 12)},
    **{f"llama-{n}x256": small("llama", n, 256, 64, 32_768) for n in (3, 6, 10, 12, 24)},
    "gpt2-6x256": small("gpt2", 6, 256, 64, 32_768), "ngpt-6x256": small("ngpt", 6, 256, 64, 32_768),
    "llama-70m": published("llama", "71m"), "llama-130m": published("llama", "130m"),
    "llama-250m": published("llama", "250m"), "gpt2-124m": published("gpt2", "124m"),
    "ngpt-124m": Model("ngpt", 12, 768, 12, STEP),
}  # fmt: skip
# What a family's runs share, beside its model keys; warm-up as a share of the run. LLaMA: the Mix-LN recipe; GPT-2 and
# nGPT: those of nGPT's comparison (2410.01131).
RECIPES = {
    "llama": {"optim.b2": 0.999, "optim.clip": 0.0, "schedule.final_fraction": 0.1, "warmup": 0.1},
    "gpt2": {"optim.b2": 0.95, "optim.weight_decay": 0.1, "schedule.final_fraction": 0.0, "warmup": 0.05},
    "ngpt": {"optim.b2": 0.95, "schedule.final_fraction": 0.0, "warmup": 0.0},
}


class Grid(NamedTuple):
    """Settings of one part, in all combinations."""

    part: str
    models: tuple[str, ...]
    norms: tuple[str, ...] = ("pre",)
    ffns: tuple[str, ...] = ("none",)
    widths: tuple[float, ...] = (2.67,)
    allocations: tuple[str, ...] = ("",)
    tokens: tuple[int, ...] = (0,)
    samples: tuple[int, ...] = (0,)
    rates: tuple[float, ...] = (0,)
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Scale:
    """A setting of several grids runs once, in the first part that has it. fan_in: initialised by fan-in, which narrow
    models need, not with the family's deviation."""

    grids: tuple[Grid, ...]
    data: dict
    vocab_size: int
    context: int
    fan_in: bool = True
    steps_per_call: int = 1
    evaluation_tokens: int = 0  # 0: the whole validation split


class Sizes(NamedTuple):
    """Models and budgets of a scale; rates: log2 of peak learning rates, the middle one where nothing is tuned, an
    octave lower for Post-LN."""

    main: str
    shallow: str
    deeper: str
    gpt2: str
    ngpt: str
    tokens: int
    samples: int
    rates: tuple[float, float, float]


WIDTHS, FEW = (1, 2, 2.67, 4, 6, 8), (1, 2.67, 4, 8)


def grids(s: Sizes, costs: dict[float, float]) -> tuple[Grid, ...]:
    """All parts but collapse. costs: FLOPs of a token of the main model by width; part balance has more depth, and
    more tokens, at those of the next width, below and above the published sweet spot."""
    same = {"tokens": (s.tokens,), "samples": (s.samples,), "rates": s.rates, "seeds": (0, 1)}
    fixed, three = same | {"rates": s.rates[1:2]}, same | {"seeds": (0, 1, 2)}
    ratio = {narrow: costs[wide] / costs[narrow] for narrow, wide in ((1, 2.67), (4, 8))}
    batch = MODELS[s.main].batch
    more = {narrow: int(s.tokens * r) // batch * batch for narrow, r in ratio.items()}
    return (
        Grid("base", (s.main,), widths=WIDTHS, **three),
        Grid("norm", (s.main,), ("post",), widths=FEW, **same | {"rates": tuple(rate - 1 for rate in s.rates)}),
        Grid("norm", (s.main,), ("mix",), widths=FEW, **same),
        Grid("family", (s.gpt2, s.ngpt), widths=FEW, **same),
        Grid("depth", (s.shallow,), widths=FEW, **fixed),
        Grid("doubled", (s.main,), widths=FEW, **fixed | {"tokens": (2 * s.tokens,)}),
        Grid("samples", (s.main,), widths=WIDTHS, **fixed | {"samples": (2 * s.samples,), "seeds": (0,)}),
        Grid("balance", (s.deeper,), widths=tuple(more), **three),
        *(Grid("balance", (s.main,), widths=(m,), **three | {"tokens": (t,)}) for m, t in more.items()),
        Grid("layers", (s.main,), widths=(4,), allocations=uneven(MODELS[s.main], 4), **three),
    )


def uneven(m: Model, multiple: float) -> tuple[str, str]:
    """Half to one and a half times the width, rising over the layers and falling; as many weights as the even one."""
    rising = [width(m.d_model, multiple * (0.5 + i / (m.layers - 1))) for i in range(m.layers)]
    return tuple(",".join(map(str, line)) for line in (rising, rising[::-1]))


def collapse(
    models: tuple[str, ...], widths: tuple[float, ...], more_rates: tuple[float, ...], **same: tuple
) -> tuple[Grid, ...]:
    """Plain Post-LN over depths, widths and rates; and what keeps the deepest from collapsing, at 4 d_model and the
    rates of `same`."""
    arms = {"models": models[-1:], "widths": (4,), "seeds": (0, 1, 2)} | same
    plain = {"models": models, "norms": ("post",), "widths": widths, "seeds": (0, 1)}
    return (
        Grid("collapse", norms=("post",), ffns=("none", *FFN_NORMS), **arms),
        Grid("collapse", norms=("mix", "pre"), **arms),
        Grid("collapse", **plain | same | {"rates": tuple(sorted(more_rates + same["rates"]))}),
    )


def keys(m: Model, vocab_size: int, context: int, **changes) -> ConfigDict:
    """`config.model`, with changes."""
    c = default().model
    c.update(ARCHITECTURES[m.family] | {"family": m.family, "vocab_size": vocab_size, "context": context})
    c.update(num_layers=m.layers, d_model=m.d_model, num_heads=m.heads, num_kv_heads=m.heads)
    c.update(head_dim=m.d_model // m.heads, **changes)
    return c


def costs(model: str, vocab_size: int, context: int) -> dict[float, float]:
    """{width: FLOPs of a token of training}."""
    m = MODELS[model]
    shapes = {multiple: keys(m, vocab_size, context, d_ff=width(m.d_model, multiple)) for multiple in WIDTHS}
    return {multiple: training_per_token(shape, context) for multiple, shape in shapes.items()}


LAPTOP = Sizes(
    "llama-4x32", "llama-2x32", "llama-7x32", "gpt2-4x32", "ngpt-4x32", tokens=2**19, samples=8_192, rates=(-7, -6, -5)
)
GPU = Sizes(
    "llama-6x256", "llama-3x256", "llama-10x256", "gpt2-6x256", "ngpt-6x256", tokens=2**28, samples=65_536,
    rates=(-10, -9, -8),
)  # fmt: skip
PAPER_TOKENS = {"llama-70m": 10_000 * STEP, "llama-130m": 20_000 * STEP, "llama-250m": 40_000 * STEP,
                "gpt2-124m": 20_000 * STEP, "ngpt-124m": 20_000 * STEP}  # fmt: skip
PAPER_RATES = (-11, -10, -9)  # around 1e-3


def of_the_paper() -> Iterator[Grid]:
    """Three sizes of LLaMA by width and norm; the collapse at 250M; GPT-2 against nGPT."""
    for model, tokens in PAPER_TOKENS.items():
        same = {"tokens": (tokens,), "samples": (STEP,), "rates": PAPER_RATES}
        if model.startswith("llama"):
            yield Grid("base", (model,), widths=WIDTHS, **same)
            yield Grid("norm", (model,), ("post", "mix"), widths=WIDTHS, **same)
        else:
            yield Grid("family", (model,), widths=FEW, **same)
    largest = {"tokens": (PAPER_TOKENS["llama-250m"],), "samples": (STEP,), "rates": PAPER_RATES}
    yield Grid("collapse", ("llama-250m",), ("post",), FFN_NORMS, widths=(2.67, 4), **largest)


SCALES = {
    "smoke": Scale(
        grids=(Grid("base", ("llama-2x16",), widths=(1, 2, 4), tokens=(16_384,), samples=(1_024,), rates=(-6,)),),
        data=NEWS, vocab_size=512, context=32, evaluation_tokens=8_192,
    ),
    "laptop": Scale(
        grids=(
            *grids(LAPTOP, costs(LAPTOP.main, 512, 32)),
            *collapse(
                ("llama-6x16", "llama-12x16"), (1, 4, 8), (-9, -7), tokens=(2**18,), samples=(8_192,),
                rates=(-8, -6, -5),
            ),
        ),
        data=NEWS, vocab_size=512, context=32, steps_per_call=10,
    ),
    "gpu": Scale(
        grids=(
            *grids(GPU, costs(GPU.main, 32_000, 256)),
            *collapse(
                ("llama-12x256", "llama-24x256"), (1, 2.67, 4), (-11, -8), tokens=(2**27,), samples=(65_536,),
                rates=(-10, -7, -6),
            ),
        ),
        data=C4, vocab_size=32_000, context=256, steps_per_call=8, evaluation_tokens=2_097_152,
    ),
    "paper": Scale(
        grids=tuple(of_the_paper()),
        data=C4, vocab_size=32_000, context=256, fan_in=False, evaluation_tokens=10_485_760,
    ),
}  # fmt: skip


def settings(s: Scale) -> Iterator[Setting]:
    """Every setting of the scale's grids, once."""
    return once(s.grids, Setting)


def config(s: Scale, run: Setting) -> ConfigDict:
    """A family's recipe in the setting's shape, cosine decay, spectra at the shares MEASURED of the run."""
    m, c = MODELS[run.model], default()
    recipe = dict(RECIPES[m.family])
    warmup = recipe.pop("warmup")
    c.update(seed=run.seed, tokens=run.tokens)
    c.data.update(s.data)
    c.model = keys(
        m, s.vocab_size, s.context, d_ff=width(m.d_model, run.width), norm_placement=run.norm, ffn_weight_norm=run.ffn,
        layer_d_ff=run.allocation,
    )  # fmt: skip
    if s.fan_in and m.family != "ngpt":
        c.model.init_std = 0.0
    c.batch.update(tokens=m.batch, context=s.context)
    c.optim.decay = "coupled"
    c.update_from_flattened_dict(recipe)
    c.schedule.update(peak_lr=2.0**run.log2_lr, warmup_tokens=int(warmup * run.tokens))
    c.spectra.update(at=" ".join(str(tokens) for tokens in measured_at(run)), tokens=run.samples)
    c.compute.update(steps_per_call=s.steps_per_call, layers="scan" if m.layers > 8 else "auto")
    c.evaluate.update(every_tokens=0, tokens=s.evaluation_tokens)
    c.checkpoint.update(every_tokens=max(run.tokens // 4, 250_000), keep=1)
    c.log.tensorboard = False
    return c


def measured_at(run: Setting) -> list[int]:
    """Tokens at which spectra are taken, whole batches."""
    batch = MODELS[run.model].batch
    return sorted({max(int(share * run.tokens) // batch, 1) * batch for share in MEASURED})

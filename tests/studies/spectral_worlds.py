"""Worlds with known exponents, and the results that runs of the spectral study would have in them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from jaxlab.cost.flops import training_per_token
from jaxlab.model.families import width
from jaxlab.studies.spectral import measures
from jaxlab.studies.spectral.grid import MODELS, SCALES, Setting, keys, measured_at, settings

UNIGRAM = 5.5


@dataclass(frozen=True)
class World:
    """betas: (soft, hard) of (family, norm), llama's if missing; tail: what a Renyi exponent loses from order 1/2 to
    infinity; bend: of eDim at the sweet spot; drift: of the hard exponent in the second half of a run and in a run
    twice as long; growth: ln of ranks from the first measurement to a quarter; layers: by how much the last layer's
    eDim exponent is above the first's; by_layer: nats that width in the last layers is better; use: hard utilisation of
    an arm over the base's; by_use: nats of ln of it; gains: nats of (norm, ffn) above single tokens in deep models;
    collapses(layers, width, log2_lr); width_gain: nats of ln width below and above the sweet spot; noise: of ln of a
    metric and of the loss in nats; scatter: that of the hard rank over it; collapsed_rank; bias: what exponents gain
    with twice the tokens behind a covariance."""

    betas: dict
    tail: float
    bend: float
    drift: float
    growth: float
    layers: float
    by_layer: float
    use: dict
    by_use: float
    concentration: dict
    gains: dict
    collapses: Callable
    width_gain: tuple[float, float]
    scatter: float
    noise: float = 0.005
    collapsed_rank: float = 1.05
    bias: float = 0.0


PAPER = World(
    betas={("llama", "pre"): (1.0, 0.5), ("llama", "post"): (0.75, 0.55), ("llama", "mix"): (1.02, 0.61),
           ("ngpt", "pre"): (1.0, 0.8)},
    tail=0.7, bend=-0.5, drift=0.0, growth=1.5, layers=0.3, by_layer=-0.04,
    use={"post": 0.8, "mix": 1.2, "ngpt": 5.0, "weight": 1.5}, by_use=-0.03, concentration={"gpt2": 0.7, "ngpt": 0.4},
    gains={("post", "weight"): 1.6, ("post", "hyperspherical"): 1.5, ("pre", "none"): 1.4, ("mix", "none"): 1.55,
           ("post", "none"): 1.3},
    collapses=lambda layers, multiple, log2_lr: multiple >= 4, width_gain=(0.12, 0.01), scatter=2.0,
)  # fmt: skip
OPPOSITE = replace(
    PAPER,
    betas={("llama", "pre"): (0.6, 0.9), ("llama", "post"): (0.9, 0.9), ("llama", "mix"): (0.5, 0.3),
           ("gpt2", "pre"): (0.6, 0.6), ("ngpt", "pre"): (0.8, 0.5)},
    tail=-0.5, bend=0.0, drift=0.5, growth=-1.0, by_layer=0.04, by_use=0.3,
    use={"ngpt": 1.5, "hyperspherical": 2.0}, concentration={"gpt2": 0.2, "ngpt": 0.8},
    gains={("post", "weight"): 0.0, ("post", "hyperspherical"): 0.05, ("pre", "none"): 1.4, ("mix", "none"): 1.55,
           ("post", "none"): 1.3},
    collapses=lambda layers, multiple, log2_lr: layers > 6, width_gain=(-0.05, 0.3), scatter=0.1,
)  # fmt: skip


def collapsed(w: World, s: Setting) -> bool:
    plain = s.part == "collapse" and (s.norm, s.ffn) == ("post", "none")
    return plain and w.collapses(MODELS[s.model].layers, s.width, s.log2_lr)


def use(w: World, s: Setting) -> float:
    return math.prod(w.use.get(name, 1.0) for name in (s.norm, s.ffn, MODELS[s.model].family))


def loss(w: World, s: Setting) -> float:
    """Without noise."""
    if collapsed(w, s):
        return UNIGRAM
    if s.part == "collapse":
        return UNIGRAM - w.gains[s.norm, s.ffn] + 0.01 * (s.log2_lr + 6) ** 2
    below, above = w.width_gain
    y = 4.0 - below * math.log(min(s.width, 3.27)) - above * math.log(max(s.width / 3.27, 1))
    y += 0.01 * (s.log2_lr + 6) ** 2 + w.by_use * math.log(use(w, s)) - 0.05 * (s.part in ("balance", "doubled"))
    rising = [int(d) for d in s.allocation.split(",")] if s.allocation else [1, 1]
    return y + w.by_layer * np.sign(rising[-1] - rising[0])


def metrics(w: World, s: Setting) -> dict[str, float]:
    """One layer's, at the end; eDim without what layers differ by."""
    D = width(MODELS[s.model].d_model, s.width)
    soft, hard = w.betas.get((MODELS[s.model].family, s.norm), w.betas["llama", "pre"])
    soft, hard = (beta + w.bias * (s.part == "samples") for beta in (soft, hard + w.drift * (s.part == "doubled")))
    knee = 3.27 * MODELS[s.model].d_model
    found = {
        "soft_rank": 0.5 * D**soft, "hard_rank": 0.2 * use(w, s) * D**hard,
        **{name: 0.5 * D ** (soft - w.tail * i / 2) for i, name in enumerate(("renyi_0.5", "renyi_4", "renyi_inf"))},
        **{name: 0.5 * D ** (0.5 + w.tail * i / 2) for i, name in enumerate(measures.DIRECTIONS)},
        "concentration": w.concentration.get(MODELS[s.model].family, 0.5),
        "edim": 0.5 * use(w, s) * D**0.7 * max(1, D / knee) ** w.bend,
    }  # fmt: skip
    return found | ({"hard_rank": w.collapsed_rank, "soft_rank": 1.3, "concentration": 0.95} if collapsed(w, s) else {})


def row(w: World, s: Setting, rng) -> dict:
    D, layers = width(MODELS[s.model].d_model, s.width), MODELS[s.model].layers
    tokens, end = np.array(measured_at(s)), metrics(w, s)

    def noisy(shape, size):
        return np.exp(size * rng.standard_normal(shape))

    def scatter(name):
        return w.scatter if name == "hard_rank" else 1.0

    last = {name: value * noisy((), w.noise * scatter(name)) * noisy(layers, 1e-4) for name, value in end.items()}
    last["edim"] = last["edim"] * D ** (w.layers * np.arange(layers) / layers)
    early = np.exp(-w.growth * (1 - np.minimum(4 * tokens / s.tokens, 1)))
    late = D ** (w.drift * (np.maximum(tokens / s.tokens, 0.5) - 1)) * (s.part != "doubled") + (s.part == "doubled")
    over = {
        name: end[name] * early * noisy(len(tokens), w.noise) for name in ("hard_rank", "soft_rank", "concentration")
    }
    over["hard_rank"] = over["hard_rank"] * late
    over |= {"least_hard_rank": over["hard_rank"], "most_concentration": over["concentration"]}
    y = loss(w, s) + w.noise * rng.standard_normal()
    text = {name: measures.text(values) for name, values in last.items()}
    text |= {f"over_{name}": measures.text(v) for name, v in (over | {"loss": y + early, "tokens": tokens}).items()}
    facts = {"parameters": D, "flops": s.tokens * per_token(s.model, D), "epochs": 0.1, "seconds": 1.0}
    return s._asdict() | facts | {"status": "finished", "loss": y, "unigram": UNIGRAM} | text


@cache
def per_token(model: str, D: int) -> int:
    return training_per_token(keys(MODELS[model], 512, 32, d_ff=D), 32)


def made(w: World, seed: int = 0, scale: str = "laptop") -> list[dict]:
    """Results of the scale's runs in a world."""
    rng = np.random.default_rng(seed)
    return [row(w, s, rng) for s in settings(SCALES[scale])]

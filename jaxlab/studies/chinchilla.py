"""Loss against parameters and tokens, L(N, D): the plainest study, after Hoffmann et al. (arXiv 2203.15556).

Each model trains on each token budget, with its own cosine schedule and a few peak learning rates; the best rate
counts. The law E + A/N^alpha + B/D^beta is fitted with N counted without and with embeddings, the largest model is
held out and predicted, and the claims are judged with intervals from resampled cells of the grid.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxlab.config import default
from jaxlab.laws import chinchilla as law
from jaxlab.laws import diloco
from jaxlab.laws.fit import Fit, fit
from jaxlab.laws.resample import Bootstrap, bootstrap, leave_largest_out
from jaxlab.model.families import ARCHITECTURES, SIZES
from jaxlab.studies.claim import NEGATIVE, POSITIVE, Claim, Verdict, compare, judged
from jaxlab.studies.report import LOSS, panels, sequential, with_interval
from jaxlab.studies.study import Analysis
from jaxlab.studies.tuning import best_rates, column, grouped, mean_loss, seed_noise, tuned


class Model(NamedTuple):
    """layers, width and heads; peak learning rates 2^x for the x of `log2_lr`; tokens in a batch."""

    layers: int
    width: int
    heads: int
    log2_lr: tuple[float, ...]
    batch_tokens: int


@dataclass(frozen=True)
class Scale:
    """Each model trains on each token budget D: `tokens`, or `per_parameter` (non-embedding) of them. The middle
    learning rate runs again with every other seed."""

    models: dict[str, Model]
    data: dict
    vocab_size: int
    context: int
    tokens: tuple[int, ...] = ()
    per_parameter: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    steps_per_call: int = 1
    evaluation_tokens: int = 0  # 0: the whole validation split


NEWS = {"source": "news", "tokenizer": "bpe:512", "store": "data/news-bpe512"}
C4 = {"source": "tfds:c4/en", "tokenizer": "bpe:32000", "store": "data/c4-bpe32000"}


def published(name: str) -> Model:
    """A model of arXiv 2503.09799 with the learning rate and batch of its data-parallel laws, and an octave around."""
    m = SIZES["chinchilla"][name]
    n = 12 * m["num_layers"] * m["d_model"] ** 2 + 32_768 * m["d_model"]
    peak_lr, batch_tokens = (a * n**alpha for a, alpha in (diloco.INDEPENDENT[k][0] for k in ("lr", "batch")))
    centre, batch = round(2 * math.log2(peak_lr)) / 2, 2 ** round(math.log2(batch_tokens))
    return Model(m["num_layers"], m["d_model"], m["num_heads"], (centre - 1, centre, centre + 1), batch)


SCALES = {
    "smoke": Scale(
        models={"6k": Model(2, 16, 1, (-6, -5, -4), 512), "15k": Model(5, 16, 1, (-6, -5, -4), 512),
                "37k": Model(3, 32, 2, (-6, -5, -4), 512)},
        tokens=(8_192, 16_384, 32_768), seeds=(0, 1), data=NEWS, vocab_size=512, context=64, evaluation_tokens=8_192,
    ),
    "laptop": Scale(
        models={
            "37k": Model(3, 32, 2, (-7, -6, -5), 1_024), "83k": Model(3, 48, 3, (-7, -6, -5), 1_024),
            "147k": Model(3, 64, 4, (-7.5, -6.5, -5.5), 1_024), "307k": Model(4, 80, 5, (-7.5, -6.5, -5.5), 1_024),
            "553k": Model(5, 96, 6, (-8, -7, -6), 1_024),
        },
        tokens=(250_000, 500_000, 1_000_000, 2_000_000), seeds=(0, 1), data=NEWS, vocab_size=512, context=128,
    ),
    "gpu": Scale(
        models={
            "1.2m": Model(6, 128, 2, (-9, -8, -7), 32_768), "4.7m": Model(6, 256, 4, (-9, -8, -7), 32_768),
            "14m": Model(8, 384, 6, (-10, -9, -8), 32_768), "38m": Model(12, 512, 8, (-10, -9, -8), 32_768),
            "85m": Model(12, 768, 12, (-11, -10, -9), 32_768),
        },
        tokens=(50_000_000, 100_000_000, 200_000_000, 400_000_000), seeds=(0, 1), data=C4, vocab_size=32_000,
        context=512, steps_per_call=8, evaluation_tokens=2_097_152,
    ),
    "paper": Scale(
        models={name: published(name) for name in ("35m", "90m", "180m", "335m", "550m", "1.3b", "2.4b")},
        per_parameter=(5, 10, 20, 40), data=C4, vocab_size=32_768, context=2_048, evaluation_tokens=16_777_216,
    ),
}  # fmt: skip


def runs(scale: str) -> Iterator[tuple[ConfigDict, dict]]:
    """Every model on every budget at its learning rates; the middle rate with every seed."""
    s = SCALES[scale]
    for name, m in s.models.items():
        for tokens in s.tokens or [round(ratio * 12 * m.layers * m.width**2) for ratio in s.per_parameter]:
            for rate in m.log2_lr:
                for seed in s.seeds if rate == m.log2_lr[1] else s.seeds[:1]:
                    tags = {"part": "grid", "model": name, "tokens": tokens, "log2_lr": rate, "seed": seed}
                    yield config(s, m, tokens, 2.0**rate, seed), tags


def config(s: Scale, m: Model, tokens: int, peak_lr: float, seed: int) -> ConfigDict:
    """A run: warm-up over a twentieth of the tokens, cosine to 5 %, no weight decay."""
    c = default()
    c.update(seed=seed, tokens=tokens)
    c.data.update(s.data)
    c.model.update(ARCHITECTURES["chinchilla"] | {"family": "chinchilla", "vocab_size": s.vocab_size})
    c.model.update(num_layers=m.layers, d_model=m.width, d_ff=4 * m.width, context=s.context)
    c.model.update(num_heads=m.heads, num_kv_heads=m.heads, head_dim=m.width // m.heads)
    c.batch.update(tokens=m.batch_tokens, context=s.context)
    c.schedule.update(peak_lr=peak_lr, warmup_tokens=tokens // 20)
    c.compute.steps_per_call = s.steps_per_call
    c.evaluate.update(every_tokens=0, tokens=s.evaluation_tokens)
    c.checkpoint.update(every_tokens=max(tokens // 4, 250_000), keep=1)
    c.log.tensorboard = False
    return c


def fitted(results: list[dict], counted: str) -> tuple[Fit, Bootstrap]:
    """The parametric law of the tuned losses, N counted as `counted`, and its refits to resampled cells."""
    return _fitted(tuple((row["model"], row[counted], row["tokens"], row["loss"]) for row in tuned(results)))


@cache
def _fitted(points: tuple) -> tuple[Fit, Bootstrap]:
    models, n, d, loss = zip(*points, strict=True) if points else ((),) * 4
    found = fit(law.PARAMETRIC, {"N": n, "D": d}, loss)
    return found, bootstrap(found, groups=[f"{model} {tokens}" for model, tokens in zip(models, d, strict=True)])


def allocation_exponent(params: dict) -> float:
    """a of N_opt ~ C^a."""
    return law.exponents(params)[0]


def near(published: float, share: float = 0.25) -> tuple[float, float]:
    """The range within `share` of a published figure."""
    return published * (1 - share), published * (1 + share)


def of_the_fit(quantity, supports: tuple[float, float], what: str):
    """Judges a quantity of the fitted law (total parameters) by its interval over resampled cells."""

    def judge(results: list[dict]) -> Verdict:
        found, resampled = fitted(results, "parameters")
        effect = found.params[quantity] if isinstance(quantity, str) else quantity(found.params)
        low, high = supports
        return compare(effect, *resampled.interval(quantity), supports, f"{what}; agrees in [{low:.2f}, {high:.2f}]")

    return judge


def held_out(results: list[dict]) -> Verdict:
    """The tuned losses of the largest model, predicted by the law fitted to the smaller ones."""
    _, residuals = leave_largest_out(fitted(results, "parameters")[0])
    draws = np.random.default_rng(0).choice(np.abs(residuals), (2_000, len(residuals))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    noise = seed_noise(results) / mean_loss(tuned(results))
    what = f"mean |log residual| of the held-out losses (between seeds: {noise:.4f}); agrees below 0.02"
    return compare(float(np.abs(residuals).mean()), float(low), float(high), (0.0, 0.02), what)


def counting(results: list[dict]) -> Verdict:
    """a by non-embedding parameters less a by all parameters, on the same resampled cells."""
    pairs = [fitted(results, counted) for counted in ("non_embedding", "parameters")]
    effect = allocation_exponent(pairs[0][0].params) - allocation_exponent(pairs[1][0].params)
    drawn = [resampled.derived(allocation_exponent) for _, resampled in pairs]
    low, high = np.nanquantile(drawn[0] - drawn[1], [0.025, 0.975])
    return compare(effect, float(low), float(high), POSITIVE, "a (non-embedding) - a (all); agrees above 0")


def of_the_rates(name: str, supports: tuple[float, float], sign: str):
    """Judges an exponent of the best learning rate."""

    def judge(results: list[dict]) -> Verdict:
        found = best_rates(results, INPUTS)
        what = f"exponent of {name} in the best learning rate; agrees {sign} 0"
        return compare(found.exponents[name], *found.interval(name), supports, what)

    return judge


GRID = ("grid",)
INPUTS = {"N": "non_embedding", "D": "tokens"}  # of the best learning rate
CLAIMS = (
    Claim("C1", "Loss falls with parameters as E + A/N^alpha.", "alpha 0.3478 (2404.10102)", GRID,
          of_the_fit("alpha", near(law.BESIROGLU["alpha"]), "alpha")),
    Claim("C2", "Loss falls with tokens as B/D^beta.", "beta 0.3658 (2404.10102)", GRID,
          of_the_fit("beta", near(law.BESIROGLU["beta"]), "beta")),
    Claim("C3", "Parameters and tokens should grow alike with compute: N_opt ~ C^a with a near one half.",
          "a 0.513 (2404.10102), 0.49 to 0.50 (2203.15556)", GRID,
          of_the_fit(allocation_exponent, (0.4, 0.6), "a = beta / (alpha + beta)")),
    Claim("C4", "The law of small models predicts a larger one.", "log residual 0.012 (2503.09799, one size ahead)",
          GRID, held_out),
    Claim("C5", "Leaving the embeddings out of N raises the exponent of N_opt at small size.",
          "0.73 without (2001.08361), 0.50 with (2203.15556); explained so by 2406.12907", GRID, counting),
    Claim("C6", "The best peak learning rate falls with model size.", "N^-0.713 (2503.04715), N^-0.819 (2503.09799)",
          GRID, of_the_rates("N", NEGATIVE, "below")),
    Claim("C7", "At a fixed batch the best peak learning rate rises with the tokens trained on.",
          "D^0.307, batch tuned too (2503.04715)", GRID, of_the_rates("D", POSITIVE, "above")),
)  # fmt: skip


def analyse(results: list[dict]) -> Analysis:
    """Both fits of the parametric law, the law of the learning rate, three figures, the claims."""
    counts = {"all parameters": "parameters", "non-embedding parameters": "non_embedding"}
    laws = [law_row(title, *fitted(results, counted)) for title, counted in counts.items()]
    rates = best_rates(results, INPUTS)
    line = {"law": "A N^n D^d, non-embedding N", "A": f"{rates.A:.3g}"}
    line |= {name.lower(): with_interval(e, rates.interval(name)) for name, e in rates.exponents.items()}
    fits = {"Loss, E + A/N^alpha + B/D^beta (Huber 1e-3 on log loss)": laws, "Best peak learning rate": [line]}
    captions = {
        law_figure: "Tuned losses and the fitted law (N: all parameters). Right: losses against predictions; the "
        "largest model is predicted by the law fitted without it.",
        rates_figure: "Final loss against peak learning rate, a panel a model, a line a budget; diamonds: minima "
        "of parabolas of one curvature, fitted to all runs together.",
        frontier_figure: "Tuned losses against training compute (6ND, N: all parameters), and the law at the "
        "parameters and tokens that it calls optimal.",
    }
    figures = {draw.__name__.removesuffix("_figure"): (draw(results), text) for draw, text in captions.items()}
    return Analysis(fits, figures, [judged(claim, results) for claim in CLAIMS])


def law_row(title: str, found: Fit, resampled: Bootstrap) -> dict:
    """A line of the table of fits: parameters with 95 % intervals over resampled cells, and how good it is."""
    row = {"N counts": title} | {k: with_interval(v, resampled.interval(k)) for k, v in found.params.items()}
    row["a"] = with_interval(allocation_exponent(found.params), resampled.interval(allocation_exponent))
    _, residuals = leave_largest_out(found)
    row |= {"R^2 of log loss": f"{found.r2:.4f}", "AIC": f"{found.aic:.1f}"}
    row["largest model held out, log residual"] = f"{np.abs(residuals).mean():.4f}"
    return row | {"not determined by the data": ", ".join(found.undetermined) or "-"}


def law_figure(results: list[dict]):
    """Loss against N with the law, and predictions against measurements."""
    rows, (found, _) = tuned(results), fitted(results, "parameters")
    n, d, loss = (column(rows, name) for name in ("parameters", "tokens", "loss"))
    fig, (left, right) = panels(1, 2, width=10, height=4)
    sizes = np.geomspace(n.min() / 1.2, n.max() * 1.2, 100)
    budgets = np.unique(d)
    for i, tokens in enumerate(budgets):
        style = {"color": sequential(i, len(budgets)), "lw": 1}
        left.plot(n[d == tokens], loss[d == tokens], "o", label=f"{tokens / 1e6:.2g} M tokens", **style)
        left.plot(sizes, found.predict({"N": sizes, "D": np.full(100, tokens)}), **style)
    left.set(xscale="log", xlabel="parameters N (thousands)", ylabel=LOSS)
    left.set_xticks(np.unique(n), [f"{size / 1e3:,.0f}" for size in np.unique(n)])
    left.set_xticks([], minor=True)
    params, _ = leave_largest_out(found)
    predicted, largest = found.law(params, {"N": n, "D": d}), n == n.max()
    right.plot(loss[~largest], predicted[~largest], "o", color="C0", label="fitted")
    right.plot(loss[largest], predicted[largest], "D", color="C3", label="held out: the largest model")
    right.plot(*[[loss.min(), loss.max()]] * 2, color="0.5", lw=1)
    right.set(xlabel="measured loss (nats/token)", ylabel="predicted loss (nats/token)")
    for ax in (left, right):
        ax.legend(frameon=False, fontsize=8)
    return fig


def rates_figure(results: list[dict]):
    """Loss against peak learning rate for every model and budget."""
    models, minima = grouped(results, ("model",)), best_rates(results, INPUTS).minima
    fig, axes = panels(1, len(models), width=2.4 * len(models), height=3, sharey=True)
    for ax, ((model,), runs_of_it) in zip(axes, models.items(), strict=True):
        budgets = grouped([r for r in runs_of_it if r["seed"] == 0], ("tokens",))
        for i, ((tokens,), rows) in enumerate(budgets.items()):
            style = {"color": sequential(i, len(budgets)), "ms": 4, "lw": 1}
            ax.plot(column(rows, "log2_lr"), column(rows, "loss"), "o-", label=f"{tokens / 1e6:.2g} M", **style)
            ax.plot(*minima[model, tokens], "D", mfc="none", **style)
        ax.set(title=model, xlabel="log2 peak learning rate")
    axes[0].set_ylabel(LOSS)
    axes[-1].legend(frameon=False, title="tokens", loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def frontier_figure(results: list[dict]):
    """Loss against compute, with the law along its own optimum."""
    rows, (found, _) = tuned(results), fitted(results, "parameters")
    fig, ax = panels(1, 1, width=6, height=4)
    models = grouped(rows, ("model",))
    for i, ((model,), of_model) in enumerate(models.items()):
        cells = grouped(of_model, ("tokens", "parameters"))
        compute = [6 * tokens * n for tokens, n in cells]
        losses = [mean_loss(cell) for cell in cells.values()]
        ax.plot(compute, losses, "o-", color=sequential(i, len(models)), lw=1, ms=4, label=model)
    compute = 6 * column(rows, "parameters") * column(rows, "tokens")
    budget = np.geomspace(compute.min(), compute.max(), 100)
    n, d = law.allocation(found.params, budget)
    ax.plot(budget, found.predict({"N": n, "D": d}), "--", color="0.3", label="law, compute-optimal")
    ax.set(xscale="log", xlabel="training compute 6ND (FLOP)", ylabel=LOSS)
    ax.legend(frameon=False, fontsize=8)
    return fig

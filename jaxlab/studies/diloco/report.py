"""Tables and figures of the DiLoCo study. What the results do not hold yet is left out."""

import math

import numpy as np

from jaxlab.config import InputError
from jaxlab.cost import wallclock
from jaxlab.cost.wallclock import Algorithm
from jaxlab.laws import diloco as law
from jaxlab.laws.lines import power_law
from jaxlab.studies.diloco import effects as effect
from jaxlab.studies.diloco import measures as measure
from jaxlab.studies.report import LOSS, kept, panels, sequential, with_interval
from jaxlab.studies.tuning import redrawn, select

COLOURS = {0: "0.3"} | {m: sequential(i, 4) for i, m in enumerate((1, 2, 4, 8))}


def label(m: int) -> str:
    return f"M={m}" if m else "data-parallel"


def tables(results: list[dict]) -> dict[str, list[dict]]:
    """{title: runs}."""
    made = {
        "Tuned losses (part loss)": tuned_table,
        "Laws in N": laws_table,
        "Joint laws A N^alpha M^beta, M >= 1": joint_table,
        "Best settings where they were swept": settings_table,
        "Noise between seeds, per cent of the loss": lambda _: noise_table(results),
        "Gbit/s for a compute utilisation, 10B parameters, 0.8 s a step, M=2 (simulated)": utilisation_table,
        "Modelled hours of 2.4B parameters, 20 tokens each, tokens a chip constant": hours_table,
    }
    return kept(made, measure.settings(results))


def tuned_table(runs: list[dict]) -> list[dict]:
    gaps = measure.gaps(runs)
    return [
        {
            "model": model, "N": f"{s['parameters']:,}", "": label(m), "loss": f"{math.exp(s['y']):.4f}",
            "gap, %": f"{gaps[model, m]:+.2f}" if (model, m) in gaps else "-",
            "log2 lr": s["log2_lr"], "batch": f"{s['batch']:,}",
        }
        for (model, m), s in measure.tuned(runs).items()
    ]  # fmt: skip


def laws_table(runs: list[dict]) -> list[dict]:
    def flat(drawn):
        return np.array([x for line in effect.loss_lines(drawn).values() for x in line])

    lines, draws = effect.loss_lines(runs), redrawn(runs, flat)
    ends = np.nanquantile(draws, [0.025, 0.975], 0).reshape(2, -1, 2)
    slopes, left = effect.gap_slopes(runs), effect.residuals(runs)
    return [
        {
            "": label(m), "A": with_interval(math.exp(a), tuple(np.exp(ends[:, i, 0]))),
            "alpha": with_interval(alpha, tuple(ends[:, i, 1])), "published alpha": law.INDEPENDENT["loss"][m][1],
            "gap a doubling of N, points": f"{slopes[m]:+.2f}" if m in slopes else "-",
            "largest model held out, log residual": f"{left[m]:+.4f}",
        }
        for i, (m, (a, alpha)) in enumerate(lines.items())
    ]  # fmt: skip


def joint_table(runs: list[dict]) -> list[dict]:
    found = {cell: s for cell, s in measure.tuned(runs).items() if cell[1]}
    if not found:
        return []
    sizes = {model: s["parameters"] for (model, _), s in found.items()}
    quantities = {"loss": {cell: math.exp(s["y"]) for cell, s in found.items()}}
    quantities |= kept({"lr": lambda r: {c: 2**x for c, x in measure.rates(r).at.items() if c[1]}}, runs)
    made = []
    for name, values in quantities.items():
        inputs = {"N": [sizes[model] for model, _ in values], "M": [m for _, m in values]}
        fit = power_law(inputs, list(values.values()))
        made.append({"of": name, "A": f"{fit.A:.3g}"})
        for k, published in zip("NM", law.JOINT[name][1:], strict=True):
            exponent = {"N": "alpha", "M": "beta"}[k]
            made[-1] |= {exponent: with_interval(fit.exponents[k], fit.interval(k)), f"published {exponent}": published}
    return made


def settings_table(runs: list[dict]) -> list[dict]:
    columns = {
        "log2 lr": (lambda r: measure.rates(r).at, ".2f"),
        "batch, tokens": (measure.best_batches, ",.0f"),
        "outer lr": (effect.best_outer_rates, ".2f"),
    }
    found = {name: kept({name: measured}, runs).get(name, {}) for name, (measured, _) in columns.items()}
    cells = [cell for cell in measure.tuned(runs) if any(cell in values for values in found.values())]
    return [
        {"model": model, "": label(m)}
        | {name: format(v[model, m], columns[name][1]) if (model, m) in v else "-" for name, v in found.items()}
        for model, m in cells
    ]


def noise_table(rows: list[dict]) -> list[dict]:
    return [
        {"model": model, "a run's own": f"{100 * own:.2f}", "shared by a seed's runs": f"{100 * shared:.2f}"}
        for model, (own, shared) in measure.noise(rows).items()
    ]


def utilisation_table(_) -> list[dict]:
    algorithms = {"data-parallel": Algorithm()} | {f"H={h}": Algorithm(2, h) for h in (10, 30, 100, 300)}
    algorithms["H=100, 16 fragments, overlap 1"] = Algorithm(2, 100, fragments=16, overlap=1)
    needs = wallclock.required_bandwidth
    return [
        {"": name} | {f"{u:.0%}": f"{needs(a, 10e9, 0.8, u) / 1e9:.3g}" for u in (0.5, 0.8, 0.9, 0.95, 0.99)}
        for name, a in algorithms.items()
    ]


def hours_table(_) -> list[dict]:
    n, made = effect.SIZE, []
    for m in (0, 1, 2, 4, 8):
        batch = law.published_batch(n, m)
        seconds = {
            name: wallclock.training_seconds(Algorithm(m), n, 20 * n, batch, wallclock.chip_count(batch), network)
            for name, network in wallclock.NETWORKS.items()
        }
        hours = {f"{name} network": f"{s / 3600:.1f}" for name, s in seconds.items()}
        made.append({"": label(m), "published batch": f"{batch:,}"} | hours)
    return made


def figures(results: list[dict]) -> dict[str, tuple]:
    """{name: (figure, caption)}."""
    captions = {
        loss_figure: "Tuned losses (20 tokens a parameter) with power laws, and gaps to data-parallel of the same "
        "seeds; bars: 95 % of redrawn losses.",
        rates_figure: "Loss against peak learning rate, a panel a model; diamonds: minima of parabolas.",
        batch_figure: "Loss against global batch, the best learning rate of each, dotted: parabolas.",
        outer_figure: "Loss against outer learning rate, a panel a model; diamonds as above.",
        periods_figure: "Loss against H, the best of the outer learning rates that ran with every H.",
        longer_figure: "Loss against training tokens, in multiples of 20 a parameter, and M >= 1 above data-parallel.",
        stability_figure: "Data-parallel's loss against peak learning rate, with and without QK-LayerNorm and z-loss; "
        "rates that diverged have no point.",
        cost_figure: "Simulated compute utilisation against the bandwidth between two sites: 10B parameters, 0.8 s "
        "a step.",
    }
    drawn = kept({draw.__name__.removesuffix("_figure"): draw for draw in captions}, measure.settings(results))
    texts = {draw.__name__.removesuffix("_figure"): text for draw, text in captions.items()}
    return {name: (figure, texts[name]) for name, figure in drawn.items()}


def by_model(lines: dict[tuple, dict]) -> dict[str, dict[int, dict]]:
    """{model: {M: line}}."""
    if not lines:
        raise InputError("nothing of this was swept")
    models = {}
    for (model, m), line in lines.items():
        models.setdefault(model, {})[m] = line
    return models


def draw_lines(lines: dict[tuple, dict], xlabel: str, lowest: dict | None = None, log: bool = False):
    """A panel a model and a line an M; lowest {cell: x} are marked."""
    models = by_model(lines)
    fig, axes = panels(1, len(models), width=1.5 + 3.5 * len(models), height=3.2, squeeze=False)
    for ax, (model, of_model) in zip(axes[0], models.items(), strict=True):
        for m, line in of_model.items():
            x, y = list(line), np.exp(list(line.values()))
            ax.plot(x, y, "o-", ms=4, lw=1, color=COLOURS[m], label=label(m))
            if lowest and (model, m) in lowest:
                best = lowest[model, m]
                ax.plot(best, np.interp(best, x, y), "D", ms=8, mfc="none", color=COLOURS[m])
        ax.set(title=model, xlabel=xlabel)
        if log:
            swept = sorted({x for line in of_model.values() for x in line})
            ax.set_xscale("log")
            ax.set_xticks(swept, [f"{x:g}" for x in swept])
            ax.set_xticks([], minor=True)
    axes[0, 0].set_ylabel(LOSS)
    axes[0, -1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def loss_figure(runs: list[dict]):
    found, gaps = measure.tuned(runs), measure.gaps(runs)
    fig, (left, right) = panels(1, 2, width=10, height=4)
    ends = np.nanquantile(redrawn(runs, lambda r: np.array(list(measure.gaps(r).values()))), [0.025, 0.975], 0)
    bars = dict(zip(gaps, ends.T, strict=True))
    for m in sorted({m for _, m in found}):
        n = np.array([s["parameters"] for (_, k), s in found.items() if k == m])
        y = np.array([s["y"] for (_, k), s in found.items() if k == m])
        left.plot(n, np.exp(y), "o", ms=4, color=COLOURS[m], label=label(m))
        if len(n) > 1:
            left.plot(n, np.exp(np.polyval(np.polyfit(np.log(n), y, 1), np.log(n))), lw=1, color=COLOURS[m])
        cells = [cell for cell in gaps if cell[1] == m]
        if cells:
            sizes, values = [found[c]["parameters"] for c in cells], np.array([gaps[c] for c in cells])
            low, high = np.array([bars[c] for c in cells]).T
            errors = np.maximum([values - low, high - values], 0)
            right.errorbar(sizes, values, errors, fmt="o-", ms=4, lw=1, color=COLOURS[m], label=label(m))
    right.axhline(0, color="0.3", lw=1)
    left.set(xscale="log", ylabel=LOSS)
    right.set(xscale="log", ylabel="above data-parallel (%)")
    sizes = {s["parameters"]: model for (model, _), s in found.items()}
    for ax in (left, right):
        ax.set_xlabel("parameters N, embeddings counted")
        ax.set_xticks(list(sizes), list(sizes.values()))
        ax.set_xticks([], minor=True)
    left.legend(frameon=False, fontsize=8)
    return fig


def rates_figure(runs: list[dict]):
    lines = measure.series(select(runs, part="loss"), "log2_lr", at_least=2)
    return draw_lines(lines, "log2 peak learning rate", measure.rates(runs).at)


def batch_figure(runs: list[dict]):
    lines = measure.batches(runs)
    fig = draw_lines(lines, "global batch (tokens)", measure.best_batches(runs), log=True)
    for ax, of_model in zip(fig.axes, by_model(lines).values(), strict=True):
        for m, line in of_model.items():
            x, fine = np.log2(list(line)), np.linspace(np.log2(min(line)), np.log2(max(line)), 50)
            fitted = np.polyval(np.polyfit(x, list(line.values()), 2), fine)
            ax.plot(2**fine, np.exp(fitted), ":", lw=1, color=COLOURS[m])
    return fig


def outer_figure(runs: list[dict]):
    return draw_lines(measure.outer_rates(runs), "outer learning rate", effect.best_outer_rates(runs), log=True)


def periods_figure(runs: list[dict]):
    lines = measure.series(measure.periods(runs), "sync_every", at_least=2)
    return draw_lines(lines, "inner steps in a round, H", log=True)


def longer_figure(runs: list[dict]):
    return draw_lines(measure.longer(runs), "tokens / (20 N)", log=True)


def stability_figure(runs: list[dict]):
    lines = measure.stability(runs)
    if len(lines) < 2:
        raise InputError("not swept")
    fig, ax = panels(1, 1, width=6, height=3.5)
    for i, (name, line) in enumerate(lines.items()):
        ax.plot(list(line), np.exp(list(line.values())), "o-", ms=4, lw=1, color=sequential(i, len(lines)), label=name)
    ax.set(xlabel="log2 peak learning rate", ylabel=LOSS)
    ax.legend(frameon=False, fontsize=8)
    return fig


def cost_figure(_):
    fig, ax = panels(1, 1, width=6, height=3.5)
    algorithms = {"data-parallel": Algorithm()} | {f"H={h}": Algorithm(2, h) for h in (10, 30, 100, 300)}
    for i, (name, a) in enumerate(algorithms.items()):
        used = [wallclock.utilisation(a, 10e9, 0.8, w) for w in wallclock.GRID]
        colour = COLOURS[0] if i == 0 else sequential(i - 1, 4)
        ax.plot(wallclock.GRID / 1e9, used, lw=1.2, color=colour, label=name)
    ax.set(xscale="log", xlabel="bandwidth (Gbit/s)", ylabel="share of time spent computing")
    ax.legend(frameon=False, fontsize=8)
    return fig

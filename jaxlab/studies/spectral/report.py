"""Tables and figures of the spectral study. What the results do not hold yet is left out."""

import numpy as np

from jaxlab.config import InputError
from jaxlab.laws.spectral import rank_law, utilisation_law
from jaxlab.spectral.collapse import CONCENTRATION, HARD_RANK
from jaxlab.studies.report import LOSS, kept, panels, plain_numbers, sequential, with_interval
from jaxlab.studies.spectral import effects as effect
from jaxlab.studies.spectral import measures as measure
from jaxlab.studies.spectral.grid import MODELS
from jaxlab.studies.spectral.measures import at, main, of
from jaxlab.studies.tuning import grouped, select

RANKS = {"soft_rank": ("soft rank", "C0", "o"), "hard_rank": ("hard rank", "C3", "s")}
TOKENS = "training tokens (thousands)"


def tables(results: list[dict]) -> dict[str, list[dict]]:
    """{title: rows}."""
    made = {
        "Exponents in the width, each at its best learning rate": exponents_table,
        "Exponents of Renyi ranks and of directions for a share of the variance": orders_table,
        "Widths of the base": widths_table,
        "Arms where plain Post-LN collapses": arms_table,
        "Plain Post-LN by depth, width and learning rate": collapse_table,
        "Correlation of the loss with ln of a metric": correlations_table,
        "Shares of the feed-forward": lambda _: shares_table(),
    }
    return kept(made, measure.ended(results))


def tuned(runs: list[dict]) -> list[dict]:
    """Of runs with their numbers, those at the best learning rate."""
    return measure.tuned(runs, measure.CELL)


def exponents_table(runs: list[dict]) -> list[dict]:
    rows = []
    for (model, norm), of_it in effect.sweeps(tuned(runs)).items():
        row = {"model": model, "norm": norm, "widths": len({r["D"] for r in of_it}), "runs": len(of_it)}
        for name, (label, *_) in RANKS.items():
            D, values = measure.over_widths([(r["D"], r["value"][name]) for r in of_it])
            law, use = rank_law(D, values), utilisation_law(D, values)
            row[label] = with_interval(law.exponents["D"], law.interval("D"))
            row[f"{label}: R^2"] = f"{law.r2:.3f}"
            row[f"{label}: R^2 as utilisation"] = f"{use.r2:.3f}"
        rows.append(row)
    return rows


def orders_table(runs: list[dict]) -> list[dict]:
    found = {name: measure.line(main(tuned(runs)), of(name)) for name in (*measure.ORDERS, *measure.DIRECTIONS)}
    labels = {name: f"Renyi {order:g}" for name, order in measure.ORDERS.items()}
    labels |= {name: f"{100 * share:g} % of the variance" for name, share in measure.DIRECTIONS.items()}
    return [
        {"": labels[name], "exponent": with_interval(line.exponents["D"], line.interval("D")), "R^2": f"{line.r2:.3f}"}
        for name, line in found.items()
    ]


def widths_table(runs: list[dict]) -> list[dict]:
    base = main(tuned(runs))
    rows, before = [], None
    for (D,), of_it in sorted(grouped(base, ("D",)).items()):
        value = {name: np.mean([r["value"][name] for r in of_it]) for name in ("soft_rank", "hard_rank", "edim")}
        loss, slope = np.mean([r["loss"] for r in of_it]), "-"
        if before:
            slope = f"{(value['edim'] - before[1]) / (D - before[0]):.3f}"
        rows.append({
            "D": D, "D / d_model": f"{of_it[0]['width']:g}", "parameters": f"{of_it[0]['parameters']:,}",
            "log2 lr": of_it[0]["log2_lr"], "loss": f"{loss:.4f}", "soft rank": f"{value['soft_rank']:.1f}",
            "hard rank": f"{value['hard_rank']:.1f}", "eDim": f"{value['edim']:.1f}",
            "eDim / D": f"{value['edim'] / D:.3f}", "eDim a dimension more": slope,
        })  # fmt: skip
        before = D, value["edim"]
    return rows


def arms_table(runs: list[dict]) -> list[dict]:
    """At every rate that all arms ran at, of the model and width that collapse."""
    cell = effect.collapsing(runs)[0]
    cells = grouped(select(runs, model=cell["model"], width=cell["width"], tokens=cell["tokens"]), ("log2_lr",))
    rows = []
    for (lr,), there in sorted(cells.items()):
        each = {name: select(there, norm=norm, ffn=ffn) for name, (norm, ffn) in effect.ARMS.items()}
        for name, same in each.items() if all(each.values()) else ():
            rows.append({
                "log2 lr": lr, "arm": name, "collapsed": f"{sum(r['collapsed'] for r in same)} of {len(same)}",
                "with a layer warned of": f"{sum(r['warned'] for r in same)} of {len(same)}",
                "hard rank": f"{np.mean([r['value']['hard_rank'] for r in same]):.1f}",
                "of the worst layer": f"{np.mean([r['over']['least_hard_rank'][-1] for r in same]):.1f}",
                "concentration": f"{np.mean([r['value']['concentration'] for r in same]):.3f}",
                "entropy of tokens - loss": f"{np.mean([effect.context_gain(r) for r in same]):.3f}",
            })  # fmt: skip
    return rows


def collapse_table(runs: list[dict]) -> list[dict]:
    cells = {}
    for run in effect.plain(runs):
        cells.setdefault((run["layers"], run["d_model"], run["width"], run["log2_lr"]), []).append(run)
    return [
        {
            "layers": layers, "d_model": d, "D / d_model": f"{m:g}", "log2 lr": lr,
            "collapsed": f"{sum(r['collapsed'] for r in of_it)} of {len(of_it)}",
            "entropy of tokens - loss": f"{np.mean([effect.context_gain(r) for r in of_it]):.3f}",
            "hard rank": f"{np.mean([r['value']['hard_rank'] for r in of_it]):.2f}",
        }
        for (layers, d, m, lr), of_it in sorted(cells.items())
    ]  # fmt: skip


def correlations_table(runs: list[dict]) -> list[dict]:
    healthy = effect.healthy(tuned(runs))
    rows = []
    for name in ("edim", "hard_rank", "soft_rank", "concentration"):
        r, low, high = effect.correlation(healthy, name, effect.SHAPE)
        row = {"metric": name.replace("_", " "), "over all runs": f"{effect.correlation(healthy, name, ())[0]:+.2f}"}
        rows.append(row | {"at equal shape and tokens": with_interval(r, (low, high)), "runs": len(healthy)})
    return rows


def shares_table() -> list[dict]:
    found = effect.share_of_parameters().items()
    return [{"": name, "of the blocks": f"{a:.1%}", "of all parameters": f"{b:.1%}"} for name, (a, b) in found]


def figures(results: list[dict]) -> dict[str, tuple]:
    """{name: (figure, caption)}."""
    captions = {
        ranks_figure: "Ranks against the feed-forward width D with fitted powers and their 95 % bands (left), and the "
        "same as shares of D (right). Each point a run, at the best learning rate of its width.",
        exponents_figure: "Exponents of soft and hard rank by model and place of the norm, with 95 % intervals; "
        "dashed: the same utilisation at every width.",
        dynamics_figure: "Exponents as training goes on, of the base and of runs twice as long, at one learning rate.",
        collapse_figure: "Post-LN at the lowest learning rate at which it collapses so that training warns of it, and "
        "the other arms there; hard utilisation of the worst layer, concentration of the most concentrated one; lines: "
        "seeds; dotted: where training warns, and the entropy of single tokens.",
        edim_figure: "Effective dimension against D, and what one more dimension adds to it between neighbouring "
        "widths; band: the published sweet spot.",
        layers_figure: "Soft and hard rank of each layer at the end, by width, means over seeds.",
    }
    texts = {draw.__name__.removesuffix("_figure"): (draw, text) for draw, text in captions.items()}
    drawn = kept({name: draw for name, (draw, _) in texts.items()}, measure.ended(results))
    return {name: (figure, texts[name][1]) for name, figure in drawn.items()}


def ranks_figure(runs: list[dict]):
    base = main(tuned(runs))
    D = np.array([run["D"] for run in base])
    x = np.geomspace(D.min(), D.max(), 50)
    fig, axes = panels(1, 2, width=10, height=4)
    for name, (label, colour, marker) in RANKS.items():
        law = measure.line(base, of(name))
        design = np.stack([np.ones_like(x), np.log(x)])
        spread = np.sqrt(np.einsum("ix,ij,jx->x", design, law.covariance, design))
        half = measure.student(law.n - 2) * spread
        for ax, scale, of_D in ((axes[0], 1.0, 1.0), (axes[1], x, D)):
            ax.plot(D, np.array([run["value"][name] for run in base]) / of_D, marker, ms=4, color=colour)
            fitted = law.predict({"D": x}) / scale
            ax.plot(x, fitted, color=colour, label=f"{label}: D^{law.exponents['D'] - (ax is axes[1]):.2f}")
            ax.fill_between(x, fitted * np.exp(-half), fitted * np.exp(half), color=colour, alpha=0.15, lw=0)
    for ax, label in zip(axes, ("rank (dimensions)", "rank / D"), strict=True):
        ax.set(xscale="log", yscale="log", xlabel="feed-forward width D (dimensions)", ylabel=label)
        ax.set_xticks(np.unique(D), np.unique(D))
        ax.set_xticks([], minor=True)
        plain_numbers(ax.yaxis)
        ax.legend(frameon=False, fontsize=8)
    return fig


def exponents_figure(runs: list[dict]):
    found = effect.sweeps(tuned(runs))
    fig, ax = panels(1, 1, width=6.5, height=1 + 0.5 * len(found))
    for name, (label, colour, marker) in RANKS.items():
        lines = [measure.line(of_it, of(name)) for of_it in found.values()]
        e = np.array([line.exponents["D"] for line in lines])
        ends = np.abs(np.array([line.interval("D") for line in lines]).T - e)
        offset = 0.12 if name == "hard_rank" else -0.12
        ax.errorbar(e, np.arange(len(e)) + offset, xerr=ends, fmt=marker, ms=4, lw=1, color=colour, label=label)
    ax.axvline(1, ls="--", lw=0.8, color="0.5")
    ax.set_yticks(range(len(found)), [f"{model}, {norm}" for model, norm in found])
    ax.invert_yaxis()
    ax.set_xlabel("exponent in D")
    ax.legend(frameon=False, fontsize=8)
    return fig


def dynamics_figure(runs: list[dict]):
    longer, base = effect.at_the_middle_rate(runs, "doubled")
    fig, ax = panels(1, 1, width=6.5, height=4)
    for of_it, style in ((base, "-"), (longer, "--")):
        end, steps = of_it[0]["tokens"], of_it[0]["over"]["tokens"]
        for name, (label, colour, _) in RANKS.items():
            e = [measure.line(of_it, at(name, share)).exponents["D"] for share in steps / end]
            ax.plot(steps / 1e3, e, style, marker=".", color=colour, label=f"{label}, {end / 1e6:.2g} M tokens")
    ax.set(xscale="log", xlabel=TOKENS, ylabel="exponent in D")
    ax.legend(frameon=False, fontsize=8)
    return fig


def collapse_figure(runs: list[dict]):
    there = effect.collapsing(runs, "warned")
    fig, axes = panels(1, 3, width=13, height=4)
    for i, (name, (norm, ffn)) in enumerate(effect.ARMS.items()):
        for j, run in enumerate(select(there, norm=norm, ffn=ffn)):
            over, style = run["over"], {"color": sequential(i, len(effect.ARMS)), "lw": 1.2, "label": "" if j else name}
            for ax, y in zip(
                axes, (over["least_hard_rank"] / run["D"], over["most_concentration"], over["loss"]), strict=True
            ):
                ax.plot(over["tokens"] / 1e3, y, **style)
    for ax, limit in zip(axes, (HARD_RANK / there[0]["D"], CONCENTRATION, there[0]["unigram"]), strict=True):
        ax.axhline(limit, ls=":", color="0.5")
    for ax, label in zip(axes, ("hard utilisation", "concentration", f"training {LOSS.removeprefix('validation ')}"),
                         strict=True):  # fmt: skip
        ax.set(xlabel=TOKENS, ylabel=label)
    axes[0].set_yscale("log")
    plain_numbers(axes[0].yaxis)
    axes[0].legend(frameon=False, fontsize=8)
    return fig


def edim_figure(runs: list[dict]):
    base = main(tuned(runs))
    d_model = MODELS[base[0]["model"]].d_model
    means = {D: np.mean([r["value"]["edim"] for r in of_it]) for (D,), of_it in grouped(base, ("D",)).items()}
    D, mean = map(np.array, zip(*sorted(means.items()), strict=True))
    if len(D) < 3:
        raise InputError("widths were not swept")
    fig, (left, right) = panels(1, 2, width=10, height=4)
    left.plot([r["D"] for r in base], [r["value"]["edim"] for r in base], "o", ms=4, color="C2")
    left.plot(D, mean, color="C2", lw=1)
    right.plot((D[1:] + D[:-1]) / 2, np.diff(mean) / np.diff(D), "o-", ms=4, color="C2", lw=1)
    for ax, label in ((left, "eDim (dimensions)"), (right, "eDim of one dimension more")):
        ax.axvspan(2.67 * d_model, 4 * d_model, color="0.5", alpha=0.15, lw=0)
        ax.set(xlabel="feed-forward width D (dimensions)", ylabel=label)
    return fig


def layers_figure(runs: list[dict]):
    base = main(tuned(runs))
    by_width = sorted(grouped(base, ("D",)).items())
    fig, axes = panels(1, 2, width=10, height=4)
    for i, ((D,), of_it) in enumerate(by_width):
        for ax, name in zip(axes, RANKS, strict=True):
            line = np.mean([run["last"][name] for run in of_it], 0)
            ax.plot(range(len(line)), line, "o-", ms=4, lw=1, color=sequential(i, len(by_width)), label=f"D = {D}")
    for ax, (label, *_) in zip(axes, RANKS.values(), strict=True):
        ax.set(xlabel="layer", ylabel=f"{label} (dimensions)", yscale="log", xticks=range(len(line)))
        plain_numbers(ax.yaxis)
    axes[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig

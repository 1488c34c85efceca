"""Tables and figures of the floating-point study. What the results do not hold yet is left out."""

from collections.abc import Callable

import numpy as np

from jaxlab.config import InputError
from jaxlab.laws import floating_point as law
from jaxlab.studies.floating_point import effects as effect
from jaxlab.studies.floating_point import measures as measure
from jaxlab.studies.floating_point.claims import PAPER
from jaxlab.studies.floating_point.grid import ALONE, MODELS, TARGETS, Setting
from jaxlab.studies.report import LOSS, kept, panels, sequential, with_interval
from jaxlab.studies.tuning import redrawn

COST = "loss above unquantised (nats/token)"
UNQUANTISED, OURS = "0.3", "C3"
LINEAR = 0.02  # nats up to which an axis of costs is linear: noise has both signs


def named(format: str) -> str:
    return format.upper() or "unquantised"


def tables(results: list[dict]) -> dict[str, list[dict]]:
    """{title: rows}."""
    made = {
        "Constants of the Capybara law (N: weights of the blocks' linears)": constants_table,
        "Tokens from which on more raise the loss, 1B parameters, B = 128": critical_table,
        "What every setting costs": costs_table,
        "Noise of a run between seeds, nats": lambda _: noise_table(results),
    }
    return kept(made, measure.finished(results))


def constants_table(runs: list[dict]) -> list[dict]:
    rows = [{"": "published"} | {k: f"{v:g}" for k, v in PAPER.items()} | {"R^2 of log loss": "-"}]
    found, resampled = measure.fitted(law.CAPYBARA, runs)
    ours = {k: with_interval(v, resampled.interval(k)) for k, v in found.params.items()}
    return [*rows, {"": f"{found.n} settings"} | ours | {"R^2 of log loss": f"{found.r2:.4f}"}]


def critical_table(runs: list[dict]) -> list[dict]:
    constants = {"published constants": PAPER} | kept(
        {"ours": lambda r: measure.fitted(law.CAPYBARA, r)[0].params}, runs
    )
    return [
        {"": name} | {
            named(f): f"{law.critical_tokens(p, 1e9, *measure.layout(f), effect.PAPER_BLOCK):.3g}"
            for f in ("e1m1", "e2m1", "e3m2", "e4m3", "e8m7")
        }
        for name, p in constants.items()
    ]  # fmt: skip


def costs_table(runs: list[dict]) -> list[dict]:
    found, errors, plain = measure.gaps(runs), bars(runs), measure.losses(runs)
    return [
        {
            "model": s.model, "tokens": f"{s.tokens:,}", "format": s.stages or named(s.format), "block": s.block,
            "log2 B": f"{measure.log2_block(s):.2f}", "operands": s.targets, "learning rate": f"1/{2**s.halvings}",
            "loss": f"{plain[s]:.4f}", "above unquantised": with_interval(gap, tuple(gap + errors[s])),
        }
        for s, gap in found.items()
    ]  # fmt: skip


def noise_table(rows: list[dict]) -> list[dict]:
    found = measure.noise(rows)
    return [{"model": m, "bits": bits, "": f"{found[m, bits]:.4f}"} for m, bits in sorted(found)]


def bars(runs: list[dict]) -> dict[Setting, np.ndarray]:
    """{setting: [low, high]}: how far the 95 % interval of its cost reaches; nan where the noise is not known."""
    found = measure.gaps(runs)
    try:
        draws = redrawn(runs, lambda r: np.array(list(measure.gaps(r).values())))
    except InputError:
        return dict.fromkeys(found, np.array([np.nan, np.nan]))
    ends = np.nanquantile(draws, [0.025, 0.975], 0) - np.array(list(found.values()))
    return dict(zip(found, ends.T, strict=True))


def figures(results: list[dict]) -> dict[str, tuple]:
    """{name: (figure, caption)}."""
    captions = {
        targets_figure: "What casting single operands and sets of them costs; filled: those that the paper quantises. "
        "Bars: 95 % of redrawn losses, here and below.",
        formats_figure: "Cost against exponent bits, against mantissa bits, and against all bits with sign.",
        blocks_figure: "Cost against log2 of the elements that share a scale, a mean over operands and layers, with "
        "straight lines.",
        tokens_figure: "Loss against tokens, each point a run of its own schedule; dotted: where the law with our "
        "constants has its minimum, if within the axis.",
        schedule_figure: "Cost of precision that changes over a run, at as many bits times tokens.",
        law_figure: "Fitted laws against measured losses: Capybara (left) and Kumar et al.'s form (right).",
        precision_figure: "Compute-optimal bits against compute: published constants, with ours, and with one more "
        "bit of cost; band: resampled settings.",
    }
    texts = {draw.__name__.removesuffix("_figure"): (draw, text) for draw, text in captions.items()}
    drawn = kept({name: draw for name, (draw, _) in texts.items()}, measure.finished(results))
    return {name: (figure, texts[name][1]) for name, figure in drawn.items()}


def points(ax, line: dict[Setting, float], errors: dict, x: Callable, **style):
    """Costs {setting: nats} with their `bars` at x(setting)."""
    ends = np.abs(np.nan_to_num([errors[s] for s in line])).T
    ax.errorbar([x(s) for s in line], list(line.values()), ends, ms=4, lw=1, **style)


def targets_figure(runs: list[dict]):
    found = effect.operands(runs)
    ends = np.array([list(effect.operands(r).values()) for r in with_noise(runs)])
    errors = np.abs(np.quantile(ends, [0.025, 0.975], 0) - list(found.values()))
    order = sorted(range(len(found)), key=lambda i: ("+" in list(found)[i], list(found)[i]))
    names, values = [list(found)[i] for i in order], [list(found.values())[i] for i in order]
    fig, ax = panels(1, 1, width=7, height=3.5)
    filled = ["C0" if set(name.split("+")) <= set(TARGETS.split("+")) else "white" for name in names]
    ax.bar(names, values, yerr=errors[:, order], color=filled, edgecolor="C0", error_kw={"lw": 1})
    ax.set(xlabel="operands cast", ylabel="loss above unquantised (%)")
    ax.tick_params(axis="x", rotation=20 if len(names) > len(ALONE) else 0)
    return fig


def with_noise(runs: list[dict]) -> list[list[dict]]:
    """The runs with redrawn losses."""
    draws = redrawn(runs, lambda r: np.array([run["y"] for run in r]))
    return [[run | {"y": y} for run, y in zip(runs, draw, strict=True)] for draw in draws]


def formats_figure(runs: list[dict]):
    lines = effect.layouts(runs)
    if not lines:
        raise InputError("formats were not swept")
    s, line = max(lines.items(), key=lambda item: len(item[1]))
    swept, errors = {f: measure.layout(f) for f in line}, bars(runs)
    fig, (left, middle, right) = panels(1, 3, width=13, height=3.8, sharey=True)
    for ax, own, other, letters in ((left, 0, 1, "M"), (middle, 1, 0, "E")):
        groups = sorted({layout[other] for layout in swept.values()})
        for i, bits in enumerate(groups):
            of_it = {s._replace(format=f): line[f] for f in swept if swept[f][other] == bits}
            of_it = dict(sorted(of_it.items(), key=lambda item: measure.layout(item[0].format)))
            if len(of_it) > 1:
                style = {"fmt": "o-", "color": sequential(i, len(groups)), "label": f"{letters} = {bits}"}
                points(ax, of_it, errors, lambda t, own=own: measure.layout(t.format)[own], **style)
        ax.set_xlabel(f"{'EM'[own]}, bits of the {('exponent', 'mantissa')[own]}")
        ax.legend(frameon=False, fontsize=8)
    for f, (e, m) in swept.items():
        right.plot(1 + e + m, line[f], "o", ms=4, color="C0")
        right.annotate(f.upper(), (1 + e + m, line[f]), (4, 2), textcoords="offset points", fontsize=7)
    right.set(xlabel="bits with sign")
    left.set_yscale("symlog", linthresh=LINEAR)
    left.set(ylabel=COST, title=f"{s.model}, {s.tokens / 1e6:.2g} M tokens")
    return fig


def blocks_figure(runs: list[dict]):
    lines, found, errors = effect.blocks(runs), measure.gaps(runs), bars(runs)
    fig, ax = panels(1, 1, width=6.5, height=4)
    for i, (s, line) in enumerate(lines.items()):
        of_it = {t: g for t, g in found.items() if t._replace(block="") == s}
        colour = sequential(i, len(lines))
        points(ax, of_it, errors, measure.log2_block, fmt="o", color=colour, label=f"{named(s.format)}, {s.model}")
        a, b = effect.straight(line)
        x = np.array([0, max(line)])
        ax.plot(x, a * x + b, lw=1, color=colour)
    ax.axhline(0, color="0.3", lw=0.5)
    ax.set(xlabel="log2 B", ylabel=COST)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    return fig


def tokens_figure(runs: list[dict]):
    lines = {s: line for s, line in effect.lines_of(runs, measure.losses(runs)).items() if not s.halvings}
    models = sorted({s.model for s in lines if s.format}, key=lambda name: MODELS[name].parameters)
    lines = {s: line for s, line in lines.items() if s.model in models}
    if not lines:
        raise InputError("tokens were not swept")
    formats = sorted({s.format for s in lines}, key=lambda f: (f == "", sum(measure.layout(f))))
    ours = kept({"ours": lambda r: measure.fitted(law.CAPYBARA, r)[0].params}, runs)
    fig, axes = panels(1, len(models), width=1.5 + 3.5 * len(models), height=3.5, squeeze=False)
    for s, line in lines.items():
        ax = axes[0, models.index(s.model)]
        colour = sequential(formats.index(s.format), len(formats)) if s.format else UNQUANTISED
        ax.plot(list(line), list(line.values()), "o-", ms=4, lw=1, color=colour, label=named(s.format))
        for p in ours.values() if s.format else ():
            if min(line) < (turn := effect.critical(p, s)) < 10 * max(line):
                ax.axvline(turn, ls=":", lw=1, color=colour)
    for ax, model in zip(axes[0], models, strict=True):
        swept = sorted({tokens for s, line in lines.items() if s.model == model for tokens in line})
        ax.set(xscale="log", title=f"N = {MODELS[model].parameters:,}", xlabel="tokens (M)")
        ax.set_xticks(swept, [f"{tokens / 1e6:.2g}" for tokens in swept])
        ax.set_xticks([], minor=True)
        ax.legend(frameon=False, fontsize=8)
    axes[0, 0].set_ylabel(LOSS)
    return fig


def schedule_figure(runs: list[dict]):
    found = effect.schedules(runs)
    found = dict(sorted(found.items(), key=lambda item: -effect.direction(item[0])))
    names = {s: " then ".join(map(str, effect.stage_bits(s))) for s in found}
    fig, ax = panels(1, 1, width=6, height=3.5)
    points(ax, found, bars(runs), names.get, fmt="o", color="C0")
    ax.set(xlabel="bits of the stages", ylabel=COST)
    return fig


def law_figure(runs: list[dict]):
    fig, axes = panels(1, 2, width=10, height=4.3, sharex=True, sharey=True)
    for ax, which in zip(axes, (law.CAPYBARA, law.KUMAR), strict=True):
        found, _ = measure.fitted(which, runs)
        x, y = found.problem.inputs, found.problem.y
        predicted = found.predict(x)
        bits = np.where(x["E"] > 7, 0, 1 + x["E"] + x["M"])
        widths = [b for b in np.unique(bits) if b]
        for b in np.unique(bits):
            colour = sequential(widths.index(b), len(widths)) if b else UNQUANTISED
            label = f"{b:.0f} bits" if b else "unquantised"
            ax.plot(y[bits == b], predicted[bits == b], "o", ms=4, color=colour, label=label)
        ax.plot(*[[y.min(), y.max()]] * 2, color="0.5", lw=1)
        ax.set(title=which.name, xlabel=f"measured {LOSS}", ylabel=f"predicted {LOSS}")
    axes[0].legend(frameon=False, fontsize=8)
    return fig


def precision_figure(runs: list[dict]):
    compute = np.geomspace(*effect.COMPUTE, 21)

    def best(p):
        return np.array(law.allocation(p, compute, effect.PAPER_BLOCK)[0])

    fig, ax = panels(1, 1, width=6, height=3.5)
    ax.plot(compute, best(PAPER), color="C0", label="published constants")
    dearer = [effect.best_precision(PAPER, c, overhead=1.0) for c in compute[::5]]
    ax.plot(compute[::5], dearer, "--", color="C0", label="C = k (P + 1) N D")
    for found, resampled in kept({"": lambda r: measure.fitted(law.CAPYBARA, r)}, runs).values():
        ax.plot(
            compute, law.allocation(found.params, compute, effect.PAPER_BLOCK)[0], color=OURS, label="our constants"
        )
        drawn = resampled.derived(lambda p: np.array(law.allocation(p, compute, effect.PAPER_BLOCK)[0]))
        ax.fill_between(compute, *np.nanquantile(drawn, [0.025, 0.975], 0), color=OURS, alpha=0.15, lw=0)
        ax.set_ylim(0, min(24, 1.1 * ax.get_ylim()[1]))
    ax.set(xscale="log", xlabel="compute C = k P N D (FLOP)", ylabel="best bits P")
    ax.legend(frameon=False, fontsize=8)
    return fig

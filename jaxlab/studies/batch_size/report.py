"""Tables and figures of the batch-size study. What the results do not hold yet is left out."""

import math

import numpy as np

from jaxlab.config import InputError
from jaxlab.laws import batch_size as law
from jaxlab.studies.batch_size import arms
from jaxlab.studies.batch_size import effects as effect
from jaxlab.studies.batch_size import measures as measure
from jaxlab.studies.batch_size.grid import MODELS, RAMP, decay_tokens
from jaxlab.studies.report import LOSS, kept, panels, plain_numbers, sequential, with_interval
from jaxlab.studies.tuning import select

COLOURS = {"constant": "C7", "mean": "C2", "ramp": "C0", "back": "C4", "late": "C1", "sqrt": "C3", "linear": "C5"}


def tables(results: list[dict]) -> dict[str, list[dict]]:
    """{title: rows}."""
    made = {
        "Best and smallest batch by target loss, tokens (law of a noise floor)": best_table,
        "Tokens to a target loss, thousands": tokens_table,
        "f(N, D) = a N^b D^c": curve_table,
        "Arms": lambda _: arms_table(results),
    }
    return kept(made, measure.means(measure.lines(results)))


def best_table(curves: measure.Curves) -> list[dict]:
    rows = []
    for (model, lr), sweep in measure.sweeps(curves).items():
        for target, found in kept({"": measure.all_best}, sweep).get("", {}).items():
            row = {"model": model, "N": f"{MODELS[model].parameters:,}", "learning rate": f"{lr:.3g}"}
            row["target"] = f"{target:.3f}"
            for name in ("B_min", "B_opt", "E_min"):
                row[name] = with_interval(found.constants[name], measure.percentiles(found.draws[name]))
            row["s"] = f"{found.params['s']:.2f}"
            row["band of 5 %"] = " to ".join(f"{end:.0f}" for end in band(found.constants))
            rows.append(row)
    return rows


def band(constants: dict) -> tuple[float, float]:
    """Batches that waste 5 % of the tokens."""
    batches = np.geomspace(max(constants["B_min"], constants["B_opt"] / 100), 100 * constants["B_opt"], 2_000)
    good = batches[effect.waste(constants, batches) <= 0.05]
    return (good[0], good[-1]) if len(good) else (math.nan, math.nan)


def tokens_table(curves: measure.Curves) -> list[dict]:
    sweep = measure.base(curves)
    rows = []
    for target in measure.targets(sweep):
        found = measure.points(sweep, float(target))
        cells = (f"{E / 1e3:.0f}" if np.isfinite(E) else "never" for E in found["E"])
        rows.append({"target": f"{target:.3f}"} | dict(zip((f"{b:.0f}" for b in found["B"]), cells, strict=True)))
    return rows


def curve_table(curves: measure.Curves) -> list[dict]:
    """At the base's learning rate: of all sizes, and as part curve trains, of all but the largest and of it alone."""
    sizes, rows = effect.by_size(curves), []
    *smaller, largest = sizes
    for names in (tuple(sizes), *((smaller, (largest,)) if smaller else ())):
        found = effect.curve(effect.all_best({name: sizes[name] for name in names}))
        row = {"sizes": ", ".join(names), "points": found.n, "a": with_interval(found.A, found.interval("A"))}
        for letter, k in (("b", "N"), ("c", "D")):
            row[letter] = with_interval(found.exponents[k], found.interval(k)) if k in found.exponents else ""
        rows.append(row | {"R^2 of log B_opt": f"{found.r2:.3f}"})
    return rows


def arms_table(results: list[dict]) -> list[dict]:
    """Loss before the decay and at the end, means over seeds; norms of gradients and clipped steps at the ends of the
    run."""
    lines = measure.lines(results)
    curves, rows = measure.arms(measure.means(lines)), []
    for s, curve in curves.items():
        same = select(results, status="finished", **{k: v for k, v in s._asdict().items() if k != "seed"})
        norm, clipped = (np.mean([measure.numbers(r[name]) for r in same], 0) for name in ("grad_norm", "clipped"))
        stable = s.tokens - decay_tokens(s)
        rows.append({
            "part": s.part, "arm": s.arm, "batch": s.batch, "rule": s.rule, "schedule": s.schedule,
            "learning rate": f"{s.lr:.3g}", "weight decay": s.weight_decay, "seeds": len(same),
            "steps": same[0]["steps"],
            "before the decay": f"{measure.loss_at(curve, stable, 3):.4f}", "end": f"{curve.loss[-1]:.4f}",
            "gradient norm": f"{norm[1]:.2f} to {norm[-1]:.2f}", "clipped": f"{clipped[1]:.0%} to {clipped[-1]:.0%}",
        })  # fmt: skip
    return rows


def figures(results: list[dict]) -> dict[str, tuple]:
    """{name: (figure, caption)}."""
    captions = {
        crossing_figure: "Held-out loss against tokens at constant batches, mean over seeds; dots: from there on the "
        "batch is better than the next smaller one. Right: tokens to a target loss against the batch.",
        pieces_figure: "Tokens against steps to a target loss, and the three laws fitted to the same batches; left the "
        "easiest target, right the hardest that eight batches reach.",
        best_figure: "Best batch (filled) and smallest batch (hollow) against the target loss, by size and by learning "
        "rate. Bars: 95 % of resampled batches; where they leave the figure, the batches that reach the target do not "
        "say where the smallest is.",
        ramp_figure: "Loss less the constant run's over tokens, mean over seeds, and the range of the seeds for the "
        "ramp; dotted: where the batch grows; dashed: where the decay begins. Right: under cosine.",
        rule_figure: "The ramp's loss less the constant run's: by what becomes of the learning rate, against that "
        "rate, before the decay (hollow) and after it; and by weight decay.",
        length_figure: "Loss at the old length less the constant run's, where the batch grows by half (dotted).",
        curve_figure: "Loss of the largest model less that of its best constant batch, mean over seeds; curve: its "
        "batch follows f(N, D) of the smaller sizes, own: its own f(D).",
        noise_figure: "Noise scale tr(Sigma) / |G|^2 over the run under cosine, averaged numerator over averaged "
        "denominator, every run a line.",
    }  # fmt: skip
    texts = {draw.__name__.removesuffix("_figure"): (draw, text) for draw, text in captions.items()}
    drawn = kept({name: draw for name, (draw, _) in texts.items()}, results)
    return {name: (figure, texts[name][1]) for name, figure in drawn.items()}


def of_results(results: list[dict], *parts: str) -> measure.Curves:
    """Mean curves of parts; all of them unless named."""
    return measure.means(measure.lines([r for r in results if not parts or r["part"] in parts]))


def crossing_figure(results: list[dict]):
    sweep = measure.base(of_results(results))
    fig, (left, right) = panels(1, 2, width=11, height=4.3)
    for i, ((batch, tokens, loss), at) in enumerate(zip(sweep, [0.0, *effect.neighbours(sweep)], strict=True)):
        smooth = law.smoothed(tokens, loss, measure.window(sweep))
        left.plot(*smooth, lw=1, color=sequential(i, len(sweep)), label=f"{batch:,}")
        if 0 < at < math.inf:
            left.plot(at, np.interp(at, *smooth), "o", ms=4, color=sequential(i, len(sweep)))
    left.set(xscale="log", xlabel="tokens", ylabel=LOSS)
    left.legend(frameon=False, fontsize=7, title="batch, tokens", title_fontsize=7)
    goals = measure.targets(sweep)
    for i, target in enumerate(goals):
        found = measure.points(sweep, float(target))
        right.plot(found["B"], found["E"], "o-", ms=3, lw=1, color=sequential(i, len(goals)), label=f"{target:.2f}")
    right.set(xscale="log", yscale="log", xlabel="batch B (tokens)", ylabel="tokens E to the target loss")
    right.legend(frameon=False, fontsize=7, title="nats/token", title_fontsize=7)
    return fig


def pieces_figure(results: list[dict]):
    sweep = measure.base(of_results(results))
    shown = []
    for target in measure.targets(sweep):
        points = measure.reached(sweep, float(target))
        if len(points[0]) >= len(law.THREE_PIECE.names) + 2:
            shown.append((target, *points))
    if not shown:
        raise InputError("no target is reached by eight batches")
    fig, axes = panels(1, 2, width=10, height=4)
    for ax, (target, B, E) in zip(axes, (shown[0], shown[-1]), strict=True):
        ax.plot(np.divide(E, B), E, "o", ms=4, color="0.2", label="measured")
        line = np.geomspace(min(B), max(B), 200)
        for i, which in enumerate(effect.LAWS):
            predicted = measure.fitted(which, B, E).predict({"B": line})
            ax.plot(predicted / line, predicted, lw=1, color=f"C{i}", label=which.name)
        ax.set(xscale="log", yscale="log", title=f"loss {target:.3f}", xlabel="steps S", ylabel="tokens E")
        ax.set_ylim(0.8 * min(E), 1.3 * max(E))
        plain_numbers(ax.xaxis)
    axes[0].legend(frameon=False, fontsize=8)
    return fig


def best_figure(results: list[dict]):
    curves = of_results(results)
    model, rate = measure.base_key(curves)
    batches = [batch for batch, *_ in measure.base(curves)]
    fig, axes = panels(1, 2, width=10, height=4, sharey=True)
    drawn = 0
    for ax, alike, label in zip(axes, (lambda m, r: r == rate, lambda m, r: m == model), ("", "rate"), strict=True):
        cells = {key: sweep for key, sweep in measure.sweeps(curves).items() if alike(*key)}
        for i, ((name, lr), sweep) in enumerate(cells.items()):
            for found in kept({"": measure.all_best}, sweep).values():
                drawn += 1
                text = f"learning rate {lr:.3g}" if label else f"N = {MODELS[name].parameters:,}"
                for constant, fill in (("B_opt", "full"), ("B_min", "none")):
                    y = np.array([b.constants[constant] for b in found.values()])
                    ends = np.array([measure.percentiles(b.draws[constant]) for b in found.values()]).T
                    bars = np.nan_to_num(np.abs(ends - y), posinf=0)
                    style = {"fmt": "o-", "ms": 4, "lw": 1, "fillstyle": fill, "color": sequential(i, len(cells))}
                    ax.errorbar(list(found), y, bars, label=text if fill == "full" else None, **style)
        ax.set(yscale="log", xlabel="target loss (nats/token)")
        ax.set_ylim(min(batches) / 8, 2 * max(batches))
        ax.invert_xaxis()
        ax.legend(frameon=False, fontsize=8)
    if not drawn:
        raise InputError("no sweep reaches three targets")
    axes[0].set_ylabel("batch (tokens)")
    return fig


def ramp_figure(results: list[dict]):
    fig, axes = panels(1, 2, width=11, height=4, sharey=True)
    for ax, part, schedule in zip(axes, ("ramp", "cosine"), ("wsd", "cosine"), strict=True):
        found = measure.arms(of_results(results, part))
        _, against = measure.arm(found, "constant", times=2, schedule=schedule)
        unit = min(s.batch for s in found)
        for s, curve in found.items():
            if (s.arm, s.batch) != ("constant", 2 * unit):
                name = "half the batch" if s.arm == "constant" else s.arm
                colour = "0.3" if s.arm == "constant" else COLOURS[s.arm]
                ax.plot(curve.tokens / s.tokens, less(curve, against), lw=1, color=colour, label=name)
        seeds = spread(results, part, schedule)
        ax.fill_between(seeds[0], seeds[1].min(0), seeds[1].max(0), color=COLOURS["ramp"], alpha=0.15, lw=0)
        stable = 1 - decay_tokens(s) / s.tokens
        for share, _ in RAMP[1:]:
            ax.axvline(share * stable, ls=":", lw=0.8, color="0.5")
        if stable < 1:
            ax.axvline(stable, ls="--", lw=0.8, color="0.5")
        ax.axhline(0, lw=0.8, color="0.3")
        ax.set(xlabel="share of the run's tokens", title=schedule, xlim=(0.1, 1))
        ax.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("loss less that of the constant run (nats/token)")
    return fig


def less(curve: measure.Curve, against: measure.Curve) -> np.ndarray:
    return curve.loss - np.interp(curve.tokens, *against)


def spread(results: list[dict], part: str, schedule: str) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the run [t], and the ramp's loss less the constant run's for each seed [seeds, t]."""
    lines = measure.lines([r for r in results if r["part"] == part])
    curves = measure.means(lines)
    (s, ramp), (other, _) = (
        measure.arm(curves, name, times=times, schedule=schedule) for name, times in (("ramp", 1), ("constant", 2))
    )
    pairs = zip(lines[s].losses, lines[other].losses, strict=False)
    return ramp.tokens / s.tokens, np.array([a - np.interp(ramp.tokens, lines[other].tokens, b) for a, b in pairs])


def rule_figure(results: list[dict]):
    fig, (left, right) = panels(1, 2, width=10, height=4)
    curves = of_results(results, "ramp", "rule")
    for rule in ("sqrt", "linear"):
        for share, fill in ((1.0, "none"), (arms.END, "full")):
            found = {lr: -value for lr, value in arms.kept_or(rule, share)(curves).items()}
            style = {"ms": 5, "lw": 1, "fillstyle": fill, "color": COLOURS[rule]}
            left.plot(list(found), list(found.values()), "o-", label=rule if fill == "full" else None, **style)
    left.set(xscale="log", xlabel="learning rate", ylabel="loss less that with the rate kept (nats/token)")
    curves = of_results(results, "ramp", "weight_decay")
    decays = arms.decays(curves)
    for share, fill in ((1.0, "none"), (arms.END, "full")):
        gains = [-arms.advantage(w, share)(curves) for w in decays]
        right.plot(range(len(decays)), gains, "o-", ms=5, lw=1, fillstyle=fill, color=COLOURS["ramp"])
    right.set_xticks(range(len(decays)), [f"{w:g}" for w in decays])
    right.set(xlabel="weight decay", ylabel="loss less that of the constant run (nats/token)")
    for ax in (left, right):
        ax.axhline(0, lw=0.8, color="0.3")
    left.legend(frameon=False, fontsize=8)
    return fig


def length_figure(results: list[dict]):
    curves = of_results(results, "length")
    _, against = measure.arm(curves, "constant", schedule="constant")
    fig, ax = panels(1, 1, width=6.5, height=3.8)
    for i, name in enumerate(("more", "longer")):
        s, curve = measure.arm(curves, name, schedule="constant")
        ax.plot(curve.tokens / s.tokens, less(curve, against), lw=1, color=f"C{i}", label=f"{name} sequences")
    ax.axvline(0.5, ls=":", lw=0.8, color="0.5")
    ax.axhline(0, lw=0.8, color="0.3")
    ax.set(xlabel="share of the run's tokens", ylabel="loss less that of the constant run (nats/token)", xlim=(0.3, 1))
    ax.legend(frameon=False, fontsize=8)
    return fig


def curve_figure(results: list[dict]):
    curves = of_results(effect.of_curve(results))
    constants = [curve for s, curve in curves.items() if s.arm == "constant"]
    if not constants or len(constants) == len(curves):
        raise InputError("part curve has not run")
    best = min(constants, key=lambda curve: curve.loss[-3:].mean())
    fig, ax = panels(1, 1, width=6.5, height=3.8)
    for i, (s, curve) in enumerate(sorted(curves.items(), key=lambda item: (item[0].arm, item[0].batch))):
        style = {"label": s.arm, "lw": 1.5} if s.arm != "constant" else {"label": f"{s.batch:,}", "lw": 0.8, "ls": "--"}
        ax.plot(curve.tokens / 1e6, less(curve, best), color=f"C{i}", **style)
    ax.set(xlabel="tokens (millions)", ylabel="loss less the best constant's (nats/token)", ylim=(-0.2, 0.15))
    ax.legend(frameon=False, fontsize=8)
    return fig


def noise_figure(results: list[dict]):
    rows = [r for r in results if r["noise"]]
    if not rows:
        raise InputError("no run measured its gradient noise")
    fig, ax = panels(1, 1, width=6, height=3.8)
    for name, row in {(r["arm"], r["seed"]): r for r in rows}.items():
        signal, noise = measure.numbers(row["signal"]), measure.numbers(row["noise"])
        scale = np.where(signal > 0, noise / np.where(signal > 0, signal, 1), np.nan)
        middle = (np.arange(len(scale)) + 0.5) / len(scale)
        ax.plot(middle, scale, lw=1, color=COLOURS[name[0]], label=name[0] if name[1] == 0 else None)
    ax.set(yscale="log", xlabel="share of the run's tokens", ylabel="noise scale (tokens)")
    ax.legend(frameon=False, fontsize=8)
    return fig

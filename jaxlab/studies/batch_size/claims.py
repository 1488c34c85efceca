"""The claims of the paper (arXiv 2601.05034) as judgements of the study's results.

Intervals are of redrawn curves, those of fitted constants of resampled batches.
"""

import math
from collections.abc import Callable

import numpy as np

from jaxlab.config import InputError
from jaxlab.studies.batch_size import arms
from jaxlab.studies.batch_size import effects as effect
from jaxlab.studies.batch_size import measures as measure
from jaxlab.studies.batch_size.arms import END, constant, gap, ramp
from jaxlab.studies.claim import NEGATIVE, POSITIVE, Claim, Verdict, compare

FIGURE = "figure only (2601.05034)"
MOVED = (0.25, math.inf)  # octaves
FIT = (0.005, math.inf)  # half a per cent of the tokens, about what reading them off curves leaves


def of(quantity: Callable, supports: tuple[float, float], what: str, detail: Callable | None = None) -> Callable:
    """Judges a number of the mean curves by its interval over redrawn ones. detail: what else they say."""

    def judge(rows: list[dict]) -> Verdict:
        lines = measure.lines(rows)
        curves = measure.means(lines)
        found = float(quantity(curves))
        text = f"{what}; {detail(curves)}" if detail else what
        return compare(found, *measure.interval(lines, quantity), supports, text)

    return judge


def of_draws(values: Callable, supports: tuple[float, float], what: str, detail: Callable | None = None) -> Callable:
    """Judges values(curves), a number and its draws [1 + REFITS]."""

    def judge(rows: list[dict]) -> Verdict:
        curves = measure.means(measure.lines(rows))
        found = values(curves)
        text = f"{what}; {detail(curves)}" if detail else what
        return compare(float(found[0]), *measure.percentiles(found[1:]), supports, text)

    return judge


# B1 to B7


def crossed(curves: dict) -> str:
    found = effect.neighbours(measure.base(curves))
    return f"{sum(0 < tokens < math.inf for tokens in found)} of {len(found)} neighbours cross"


def forms(rows: list[dict]) -> Verdict:
    """Batches are resampled whole: the residuals of one at several targets are not independent."""
    sweep = measure.base(measure.means(measure.lines(rows)))
    batches, residuals = effect.left_out(sweep)
    names, each = np.unique(batches, return_inverse=True)
    spline, *others = (np.stack([np.bincount(each, residuals[which.name]), np.bincount(each)]) for which in effect.LAWS)
    times = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=1_000)
    times = np.concatenate([np.ones((1, len(names))), times])
    spline, *others = (sums @ times.T for sums in (spline, *others))
    mean = [total / count for total, count in (spline, *others)]
    more = np.minimum(*mean[1:]) - mean[0]
    shown = ", ".join(f"{which.name} {m[0]:.3f}" for which, m in zip(effect.LAWS, mean, strict=True))
    what = f"mean |log residual| of a batch left out, the better of the two other forms less the three pieces ({shown})"
    return compare(float(more[0]), *measure.percentiles(more[1:]), FIT, f"{what}; agrees above 0.005; {quality(sweep)}")


def quality(sweep: list) -> str:
    """R^2 of the logarithms and AIC at the easiest target, where all batches are."""
    points = measure.reached(sweep, float(measure.targets(sweep)[0]))
    fits = [measure.fitted(which, *points) for which in effect.LAWS]
    return "R^2 " + ", ".join(f"{f.r2:.3f}" for f in fits) + "; AIC " + ", ".join(f"{f.aic:.0f}" for f in fits)


def never(rows: list[dict]) -> Verdict:
    """Lowest and highest of the cases in place of an interval: they are few, and share curves."""
    found = effect.plateaus(measure.base(measure.means(measure.lines(rows))))
    gaps = [gap for *_, gap in found]
    what = (
        f"lowest loss less target, nats, of {len(found)} batches and targets below 0.8 of the B_min that larger ones "
        f"predict, {effect.LONG} times the best batch's steps; mean, least and most; agrees above 0"
    )
    return compare(float(np.mean(gaps)), min(gaps), max(gaps), POSITIVE, what)


def at_best(rows: list[dict]) -> Verdict:
    """Predicted from every other batch of one seed, tried with each other seed."""
    lines = {s: line for s, line in measure.lines(rows).items() if len(line.seeds) > 1}
    if not lines:
        raise InputError("no batch ran with two seeds")
    seeds = min(len(line.seeds) for line in lines.values())
    each = [
        measure.base({s: measure.Curve(line.tokens, line.losses[i]) for s, line in lines.items()})
        for i in range(seeds)
    ]  # fmt: skip
    found = [case for i in range(1, seeds) for case in effect.at_best(each[0], each[i])]
    wastes = np.array([waste for _, waste in found])
    drawn = np.random.default_rng(0).choice(wastes, (1_000, len(wastes))).mean(1)
    what = (
        f"log of the tokens that the batch nearest to B_opt takes with another seed over the fewest of any, mean of "
        f"{len(found)} targets; B_opt {min(found)[0]:.0f} to {max(found)[0]:.0f}; agrees below 0.05"
    )
    return compare(float(wastes.mean()), *measure.percentiles(drawn), (-math.inf, 0.05), what)


def least_octaves(name: str) -> Callable:
    """The size where a constant rises least."""

    def values(curves):
        return min(effect.octaves(curves, name).values(), key=lambda found: found[0])

    return values


def by_size(name: str) -> Callable:
    def detail(curves):
        return ", ".join(f"{model} {found[0]:.2f}" for model, found in effect.octaves(curves, name).items())

    return detail


def more_waste(curves: dict) -> np.ndarray:
    by_f, fixed = effect.transferred(curves).T
    return 100 * (by_f - fixed)


def wastes(curves: dict) -> str:
    by_f, fixed = 100 * effect.transferred(curves)[0]
    return f"{by_f:.1f} % against {fixed:.1f} %"


def trained(arm: str, supports: tuple[float, float], what: str) -> Callable:
    """Judges, in part curve, the end of the run by f of the smaller sizes against an arm's."""
    judge = of(effect.by_curve_less(arm), supports, what, ends)
    return lambda rows: judge(effect.of_curve(rows))


def ends(curves: dict) -> str:
    return ", ".join(f"{arm} {loss:.4f}" for arm, loss in effect.trained(curves).items())


# B8 to B14


def worst_rate(rule: str, share: float) -> Callable:
    return lambda curves: max(arms.kept_or(rule, share)(curves).values())


def by_rate(rule: str, share: float) -> Callable:
    def detail(curves):
        found = arms.kept_or(rule, share)(curves)
        return "by learning rate: " + ", ".join(f"{lr:.3g} {value:.4f}" for lr, value in found.items())

    return detail


def by_decay(curves: dict) -> str:
    found = {w: arms.advantage(w)(curves) for w in arms.decays(curves)}
    return "advantage by weight decay: " + ", ".join(f"{w:g} {value:.4f}" for w, value in found.items())


def rising_noise(rows: list[dict]) -> Verdict:
    found = arms.noise_growth(rows)
    what = f"octaves by which B_simple rises from the second quarter to the last, {len(found)} seeds; agrees above 0"
    return compare(*measure.student(found), POSITIVE, what)


def not_measured(rows: list[dict]) -> Verdict:
    what = "not measured at this scale: scores of small models are at chance; held-out losses are judged in B8 and B13"
    return Verdict("inconclusive", math.nan, math.nan, math.nan, what)


SWEEP, RATES, SIZES = ("crossing",), ("crossing", "rate"), ("crossing", "size")
CLAIMS = (
    Claim("B1", "Under a constant learning rate the batch that needs the fewest tokens grows as the target loss falls: "
          "curves cross.", FIGURE, SWEEP,
          of(effect.of_base(effect.rise), MOVED, "octaves from the easiest target to the hardest; agrees "
             "above 0.25", crossed)),
    Claim("B1b", "The same at other learning rates.", "not stated", RATES,
          of(effect.least_rise, MOVED, "octaves, the least of the rates; agrees above 0.25")),
    Claim("B2", "Tokens against steps follow a law of three pieces.", "R^2 0.992 (2601.05034)", SWEEP, forms),
    Claim("B3", "Below B_min the target is never reached.", FIGURE, SWEEP, never),
    Claim("B3b", "B_min belongs to the target, not to the learning rate.", "one rate, 6e-4 (2601.05034)", RATES,
          of_draws(effect.floor_and_rate, (-0.25, 0.25), "e of B_min ~ lr^e at the same targets; agrees within 0.25; 1 "
                   "is a noise floor")),
    Claim("B4", "B_opt = E_min / S_opt needs the fewest tokens.", FIGURE, SWEEP, at_best),
    Claim("B5", "B_opt grows as the target loss falls, at every size.", "targets 3.4 to 3.0 (2601.05034)", SIZES,
          of_draws(least_octaves("B_opt"), POSITIVE, "octaves from the easiest target to the hardest, the size with "
                   "the fewest; agrees above 0", by_size("B_opt"))),
    Claim("B5b", "So does B_min.", "targets 3.4 to 3.0 (2601.05034)", SIZES,
          of_draws(least_octaves("B_min"), POSITIVE, "octaves, as B5; agrees above 0", by_size("B_min"))),
    Claim("B6", "The best batch for a budget of tokens is the best for the loss that they reach.", "theorem "
          "(2601.05034)", SWEEP,
          of(effect.of_base(effect.budget_or_target), (-0.5, 0.5), "octaves between the two, mean over budgets; "
             "agrees within 0.5")),
    Claim("B7", "f(N, D) fitted to small models serves a larger one.", "from 122M-1B to 4B (2601.05034)", SIZES,
          of_draws(more_waste, NEGATIVE, "tokens that f of the smaller sizes wastes at the largest, less those of its "
                   "best constant batch, %; agrees below 0", wastes)),
    Claim("B7b", "Trained by it, the larger model ends below its best constant batch.", "from 122M-1B to 4B "
          "(2601.05034)", ("size", "curve"),
          trained("constant", NEGATIVE, "nats at the end of the run; agrees below 0")),
    Claim("B7c", "It ends no worse than by an f of its own.", "not stated", ("size", "curve"),
          trained("own", (-math.inf, 0.005), "nats at the end of the run; agrees below 0.005")),
    Claim("B8", "The growing batch has a lower loss than the constant one.", "0.04 at 500B (2601.05034)", ("ramp",),
          of(gap(ramp(), constant()), NEGATIVE, "nats before the decay; agrees below 0")),
    Claim("B8b", "It has it throughout.", FIGURE, ("ramp",),
          of(arms.worst_stage, NEGATIVE, "nats at the end of a stage, the worst; agrees below 0")),
    Claim("B8c", "The gap widens.", FIGURE, ("ramp",),
          of(lambda c: gap(ramp(), constant())(c) - gap(ramp(), constant(), 0.5)(c), NEGATIVE,
             "nats before the decay less those after half of it; agrees below 0")),
    Claim("B8d", "The gain is beyond that of as many steps at a constant batch.", "not stated", ("ramp",),
          of(gap(ramp(), constant(name="mean", times=1)), NEGATIVE, "nats against the mean batch, before the decay; "
             "agrees below 0")),
    Claim("B8e", "After the decay it is below every constant batch.", "not stated", ("ramp",),
          of(lambda c: arms.loss(c, ramp(), END) - arms.best_constant(c, END), NEGATIVE,
             "nats against the best of three; agrees below 0")),
    Claim("B8f", "Small until three quarters, then large at once, is better still.", "1024, then 2560 at 75 % "
          "(2602.14208)", ("ramp",),
          of(gap(ramp(name="late"), ramp(), END), NEGATIVE, "late switch less ramp after the decay, nats; agrees below "
             "0")),
    Claim("B9", "Benchmarks rise.", "MMLU 42 to 48, CMMLU 42 to 52 (2601.05034)", (), not_measured),
    Claim("B10", "Growth with the learning rate kept is no worse than with sqrt scaling, at any rate.", FIGURE,
          ("ramp", "rule"),
          of(worst_rate("sqrt", END), (-math.inf, 0.005), "kept less sqrt after the decay, nats, the worst rate; "
             "agrees below 0.005", by_rate("sqrt", END))),
    Claim("B10b", "The same before the decay.", FIGURE, ("ramp", "rule"),
          of(worst_rate("sqrt", 1.0), (-math.inf, 0.005), "nats, the worst rate; agrees below 0.005",
             by_rate("sqrt", 1.0))),
    Claim("B10c", "Nor is it worse than with linear scaling.", "not stated", ("ramp", "rule"),
          of(worst_rate("linear", END), (-math.inf, 0.005), "kept less linear after the decay, nats, the worst rate; "
             "agrees below 0.005", by_rate("linear", END))),
    Claim("B11", "Growth by longer sequences hurts at once.", FIGURE, ("length",),
          of(arms.jump, POSITIVE, "longer less more sequences right after, at the old length, nats; agrees above 0; "
             "positions apart are not evaluated")),
    Claim("B11b", "It recovers slowly.", FIGURE, ("length",),
          of(lambda c: arms.jump(c, after=-2), POSITIVE, "the same at the end, half the run later, nats; agrees above "
             "0")),
    Claim("B11c", "Growth by more sequences does not hurt.", FIGURE, ("length",),
          of(lambda c: arms.jump(c, other="constant", first="more"), NEGATIVE, "more sequences less the constant run "
             "right after, nats; agrees below 0")),
    Claim("B12", "The advantage needs weight decay: clear at 0.1, hardly any at 0.01.", FIGURE,
          ("ramp", "weight_decay"),
          of(lambda c: arms.advantage(0.1)(c) - arms.advantage(0.01)(c), POSITIVE, "advantage at 0.1 less that at "
             "0.01, nats before the decay; agrees above 0", by_decay)),
    Claim("B12b", "No weight decay gives the constant batch the same.", "not stated", ("ramp", "weight_decay"),
          of(arms.tuned_decay, NEGATIVE, "ramp at 0.1 less the best constant run of any weight decay, nats before the "
             "decay; agrees below 0")),
    Claim("B12c", "Weight decay that grows with the batch, so that its time scale stays, makes the ramp better.",
          "time scale B / (lr decay) (2505.13738)", ("ramp", "weight_decay"),
          of(gap(ramp(rule="timescale"), ramp(), END), NEGATIVE, "ramp with it less ramp without, after the decay, "
             "nats; agrees below 0")),
    Claim("B13", "The advantage persists through the decay.", "MMLU 44 to 50, CMMLU 46 to 52 (2601.05034)", ("ramp",),
          of(arms.advantage(0.1, END), POSITIVE, "nats after the decay; agrees above 0")),
    Claim("B13b", "It grows in the decay.", "MMLU + 6 and + 6, CMMLU + 10 and + 6 (2601.05034)", ("ramp",),
          of(lambda c: arms.advantage(0.1, END)(c) - arms.advantage(0.1)(c), POSITIVE, "advantage after the decay less "
             "that before, nats; agrees above 0")),
    Claim("B13c", "It persists where both decay at one batch.", "not stated", ("ramp",),
          of(gap(constant(), ramp(name="back"), END), POSITIVE, "nats after the decay; agrees above 0")),
    Claim("B14", "Under cosine the growing batch is better too.", "MMLU 42 to 49 (2601.05034)", ("cosine",),
          of(gap(constant(schedule="cosine"), ramp(schedule="cosine"), END), POSITIVE, "nats at the end; agrees above "
             "0")),
    Claim("B14b", "Beyond as many steps at a constant batch.", "not stated", ("cosine",),
          of(gap(constant(name="mean", times=1, schedule="cosine"), ramp(schedule="cosine"), END), POSITIVE,
             "nats at the end against the mean batch; agrees above 0")),
    Claim("B14c", "Gradient noise accumulates.", "not measured (2601.05034)", ("cosine",), rising_noise),
)  # fmt: skip

"""Judgements of the study's results, from which the claims are made (`claims`).

Exponents are of lines over widths, other differences means over runs, both with Student's interval; runs are at the
learning rate that is best for their own width, unless the claim says otherwise.
"""

import math
from collections.abc import Callable

import numpy as np

from jaxlab.config import InputError
from jaxlab.laws.lines import PowerLaw
from jaxlab.spectral.collapse import CONCENTRATION, HARD_RANK
from jaxlab.studies.claim import NEGATIVE, Verdict, compare
from jaxlab.studies.spectral import effects as effect
from jaxlab.studies.spectral import measures as measure
from jaxlab.studies.spectral.measures import arm, at, main, mean, of, paired_line, pairs
from jaxlab.studies.tuning import select

HARD, SOFT = of("hard_rank"), of("soft_rank")


def slope(make: Callable, supports: tuple, what: str, detail: Callable | None = None, name: str = "D") -> Callable:
    """Judges the exponent of make(runs), a PowerLaw of tuned runs. detail(runs): what else there is to say."""

    def judge(rows: list[dict]) -> Verdict:
        runs = measure.best(rows)
        found = make(runs)
        text = f"{what}; {detail(runs)}" if detail else what
        return compare(found.exponents[name], *found.interval(name), supports, text)

    return judge


def average(make: Callable, supports: tuple, what: str, detail: Callable | None = None) -> Callable:
    """Judges the mean of make(runs), numbers of tuned runs."""

    def judge(rows: list[dict]) -> Verdict:
        runs = measure.best(rows)
        text = f"{what}; {detail(runs)}" if detail else what
        return compare(*mean(make(runs)), supports, text)

    return judge


def rank(quantity: Callable) -> Callable[[list[dict]], PowerLaw]:
    """The base's line of a quantity."""
    return lambda runs: measure.line(main(runs), quantity)


def against(values: dict, quantity: Callable) -> Callable[[list[dict]], PowerLaw]:
    """An arm's line over the base's, from runs of equal width and seed."""
    return lambda runs: paired_line(pairs(arm(runs, **values), main(runs), "width"), quantity)


def near_one(rows: list[dict]) -> Verdict:
    """Supported if the interval holds 1 and little else, and R^2 is above 0.97; contradicted below 0.9."""
    runs = measure.best(rows)
    line = rank(SOFT)(runs)
    low, high = line.interval("D")
    holds = low <= 1 <= high and high - low < 0.4 and line.r2 > 0.97
    verdict = "supported" if holds else "contradicted" if high < 0.9 else "inconclusive"
    what = (
        f"beta_soft, R^2 {line.r2:.3f}; agrees if R^2 > 0.97 and the interval, shorter than 0.4, holds 1; contradicted"
    )
    what += " below 0.9"
    return Verdict(verdict, line.exponents["D"], low, high, f"{what}; {one_rate(rows)}")


def one_rate(rows: list[dict]) -> str:
    """Exponents without a learning rate for every width."""
    base = main(measure.ended(rows))
    by_rate = {lr: np.mean([r["loss"] for r in select(base, log2_lr=lr)]) for lr in {r["log2_lr"] for r in base}}
    lr = min(by_rate, key=by_rate.get)
    soft, hard = (measure.line(select(base, log2_lr=lr), q).exponents["D"] for q in (SOFT, HARD))
    return f"at one rate, 2^{lr:g}: soft {soft:.2f}, hard {hard:.2f}"


def residuals(runs: list[dict]) -> list[float]:
    """|residual| of the hard rank's line less the soft rank's, ln, of every width."""
    hard, soft = (np.abs(rank(q)(runs).residuals) for q in (HARD, SOFT))
    return list(hard - soft)


def scatter(runs: list[dict]) -> str:
    """Of the hard rank: standard deviation between seeds, and of the line's residuals."""
    base, line = main(runs), rank(HARD)(runs)
    by_width = {d: np.log([HARD(r) for r in select(base, D=d)]) for d in {r["D"] for r in base}}
    seeds = [np.var(values, ddof=1) for values in by_width.values() if len(values) > 1]
    between = f"{math.sqrt(np.mean(seeds)):.3f} between seeds, " if seeds else ""
    return f"ln hard rank: {between}{np.std(line.residuals, ddof=2):.3f} around the line, R^2 {line.r2:.3f}"


def repeated(quantity: Callable) -> Callable:
    """Judges by how much an exponent changes with twice the tokens behind every covariance."""

    def judge(rows: list[dict]) -> Verdict:
        more, base = effect.at_the_middle_rate(measure.ended(rows), "samples")
        found = paired_line(pairs(more, base, "width"), quantity)
        what = f"beta with {more[0]['samples']:,} tokens a covariance less that with half; agrees within 0.05"
        return compare(found.exponents["D"], *found.interval("D"), (-0.05, 0.05), what)

    return judge


def orders(runs: list[dict]) -> str:
    found = {name: rank(of(name))(runs).exponents["D"] for name in (*measure.ORDERS, *measure.DIRECTIONS)}
    return ", ".join(f"{name.replace('_', ' ')} {e:.2f}" for name, e in found.items())


def doubled(rows: list[dict]) -> Verdict:
    longer, base = effect.at_the_middle_rate(measure.ended(rows), "doubled")
    found = paired_line(pairs(longer, base, "width"), effect.GAP)
    steps = longer[0]["tokens"] // effect.MODELS[longer[0]["model"]].batch
    what = f"beta_soft - beta_hard after {steps:,} steps less after half as many; agrees within 0.1"
    return compare(found.exponents["D"], *found.interval("D"), (-0.1, 0.1), what)


def settled(runs: list[dict]) -> PowerLaw:
    """The gap's line at the end over that at half of the run."""

    def gap(run, share):
        return at("soft_rank", share)(run) / at("hard_rank", share)(run)

    return rank(lambda run: gap(run, 1.0) / gap(run, 0.5))(runs)


def first_growth(name: str) -> Callable[[list[dict]], list[float]]:
    """ln of a rank at a quarter of the run over that at its first measurement."""
    return lambda runs: [math.log(at(name, 0.25)(r) / at(name, 1 / 128)(r)) for r in main(runs)]


def gaps(runs: list[dict]) -> dict[str, PowerLaw]:
    """{model: line of beta_soft - beta_hard} of the families and depths."""
    return {m: measure.line(of_it, effect.GAP) for (m, norm), of_it in effect.sweeps(runs).items() if norm == "pre"}


def least_gap(runs: list[dict]) -> PowerLaw:
    """Chosen once."""
    return min(gaps(runs).values(), key=lambda line: line.exponents["D"])


def listed_gaps(runs: list[dict]) -> str:
    return ", ".join(f"{name} {line.exponents['D']:.2f}" for name, line in gaps(runs).items())


def threshold(rows: list[dict]) -> Verdict:
    runs = measure.ended(rows)
    found = {name: mean(effect.flips(runs, name)) for name in ("D", "layers", "log2_lr")}
    if not any(run["collapsed"] for run in effect.plain(runs)):
        raise InputError("no plain Post-LN run collapsed")
    others = f"with depth {found['layers'].value:+.2f}, with learning rate {found['log2_lr'].value:+.2f}"
    what = "share of runs that collapse at the widest but not at the narrowest, all else equal; agrees above 0.1"
    return compare(*found["D"], (0.1, math.inf), f"{what}; {others}")


def told(rows: list[dict]) -> Verdict:
    runs = effect.plain(measure.ended(rows))
    collapsed = [float(run["warned"]) for run in runs if run["collapsed"]]
    others = [run["warned"] for run in runs if not run["collapsed"]]
    if not collapsed:
        raise InputError("no plain Post-LN run collapsed")
    highest = max(run["log2_lr"] for run in runs if run["collapsed"])
    there = [run["warned"] for run in runs if run["collapsed"] and run["log2_lr"] == highest]
    what = f"share of collapsed runs with a layer of hard rank below {HARD_RANK} or concentration above {CONCENTRATION}"
    detail = f"{sum(there)} of {len(there)} at 2^{highest:g}; {sum(others)} of {len(others)} that did not collapse"
    return compare(*mean(collapsed), (0.5, math.inf), f"{what}; agrees above 0.5; {detail}")


def at_collapse(arms: tuple, quantity: Callable, supports: tuple, what: str) -> Callable:
    """Judges the mean of a quantity over runs of these arms, where plain Post-LN collapses."""

    def judge(rows: list[dict]) -> Verdict:
        found = effect.collapsing(measure.ended(rows))
        wanted = [effect.ARMS[name] for name in arms]
        values = [quantity(run) for run in found if (run["norm"], run["ffn"]) in wanted]
        where = "{model}, {width:g} d_model, rate 2^{log2_lr:g}".format(**found[0])
        return compare(*mean(values), supports, f"{what}; {where}")

    return judge


def between_arms(first: str, second: str, quantity: Callable, supports: tuple, what: str) -> Callable:
    """Judges quantity(run of the first) - quantity(run of the second), each arm at its own best rate, where plain
    Post-LN collapses at some rate."""

    def judge(rows: list[dict]) -> Verdict:
        runs = effect.where_it_collapses(measure.ended(rows))
        a, b = (arm(runs, norm=n, ffn=f) for n, f in (effect.ARMS[first], effect.ARMS[second]))
        return compare(*mean(quantity(x) - quantity(y) for x, y in pairs(a, b)), supports, what)

    return judge


def loss(run: dict) -> float:
    return run["loss"]


def log_use(run: dict) -> float:
    return math.log(effect.hard_utilisation(run))


def gpt2(*widths: float) -> Callable:
    return lambda runs: [r for r in effect.family(runs, "gpt2") if r["width"] in widths]


def widened(runs: list[dict]) -> list[float]:
    """Loss of GPT-2 at 1 d_model less that at 2.67, by seed."""
    return [a["loss"] - b["loss"] for a, b in pairs(gpt2(1)(runs), gpt2(2.67)(runs))]


def twins(runs: list[dict]) -> list[tuple[dict, dict]]:
    """nGPT and GPT-2 of equal width and seed."""
    return pairs(effect.family(runs, "ngpt"), effect.family(runs, "gpt2"), "width")


def utilisation_ratio(rows: list[dict]) -> Verdict:
    found = mean(log_use(a) - log_use(b) for a, b in twins(measure.best(rows)))
    what = "hard utilisation of nGPT over GPT-2's, geometric mean; agrees above 3"
    return compare(*map(math.exp, found), (3.0, math.inf), what)


def others_win(narrow: float, supports: tuple, where: str) -> Callable:
    """Judges whether width or its rivals buy more at equal FLOPs."""

    def judge(rows: list[dict]) -> Verdict:
        values, which = effect.width_against_others(measure.best(rows), narrow)
        what = f"loss of the wider less that of more depth or tokens, nats, {where}; {which}"
        return compare(*mean(values), supports, what)

    return judge


def allocated(first: str, second: str) -> Callable:
    """Judges the loss of one allocation less that of another, by seed."""

    def judge(rows: list[dict]) -> Verdict:
        found = effect.allocations(measure.best(rows))
        values = [a["loss"] - b["loss"] for a, b in pairs(found[first], found[second])]
        what = f"loss of {first} less that of {second}, nats, {found['guided'][0]['allocation']}; agrees below 0"
        return compare(*mean(values), NEGATIVE, what)

    return judge


def rich(rows: list[dict]) -> Verdict:
    runs = effect.healthy(measure.best(rows))
    found = effect.correlation(runs, "edim", effect.SHAPE)
    raw = effect.correlation(runs, "edim", ())[0]
    what = f"correlation of the loss with ln eDim at equal shape and tokens ({raw:+.2f} over all); agrees below 0"
    return compare(*found, NEGATIVE, what)


def counted(rows: list[dict]) -> Verdict:
    shares = effect.share_of_parameters()
    of_blocks = [shares[name][0] for name in ("GPT-2 at 4", "LLaMA at 2.67")]
    text = ", ".join(f"{name} {of_all:.0%}" for name, (_, of_all) in shares.items())
    what = f"of the blocks' matrices, at the usual widths; agrees in [0.66, 0.675]; of all parameters: {text}"
    return compare(of_blocks[0], min(of_blocks), max(of_blocks), (0.66, 0.675), f"{what}; computed, no run is needed")

"""The claims of the paper (arXiv 2501.02423) as judgements of the study's results.

Intervals are of redrawn losses, those of fitted laws of resampled settings; of what is computed, they span the cases.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from jaxlab.laws import floating_point as law
from jaxlab.laws.fit import Fit
from jaxlab.studies.claim import NEGATIVE, POSITIVE, Claim, Verdict, by_interval, compare
from jaxlab.studies.floating_point import effects as effect
from jaxlab.studies.floating_point import measures as measure
from jaxlab.studies.floating_point.grid import TARGETS
from jaxlab.studies.tuning import interval

PAPER = law.CAPYBARA_CONSTANTS
LAYOUTS = (  # the paper's table, 1 to 16 bits
    "e0m0", "e1m0", "e1m1", "e2m1", "e2m2", "e3m2", "e3m3", "e4m3", "e4m4", "e5m4", "e5m5", "e6m5", "e6m6", "e7m6",
    "e7m7", "e8m7",
)  # fmt: skip
CRITICAL = {(8, 7): (1730e12, 5e12), (4, 3): (27e12, 0.5e12), (2, 1): (0.4e12, 0.05e12)}  # tokens, half a last digit
of = partial(by_interval, measure.finished)


def of_pair(choose: Callable, what: str) -> Callable:
    """Judges what the first of two operands costs more than the second. They are chosen once, not for every draw: of
    several that differ by noise some draw has any order."""

    def judge(rows: list[dict]) -> Verdict:
        a, b = choose(measure.finished(rows))

        def more(runs):
            found = effect.operands(runs)
            return found[a] - found[b]

        return of(more, POSITIVE, f"{a}, {what}, {b}, points; agrees above 0", each)(rows)

    return judge


def of_law(which: law.Law, quantity: Callable, supports: tuple[float, float], what: str) -> Callable:
    """Judges a number of a fitted law's parameters."""

    def judge(rows: list[dict]) -> Verdict:
        found, resampled = measure.fitted(which, measure.finished(rows))
        return compare(quantity(found.params), *resampled.interval(quantity), supports, what)

    return judge


def computed(values: Callable, supports: tuple[float, float], what: str) -> Callable:
    """Judges what follows from the published constants alone; values() -> cases, the first of which is shown."""

    def judge(rows: list[dict]) -> Verdict:
        cases = values()
        return compare(cases[0], min(cases), max(cases), supports, f"{what}; computed, no run is needed")

    return judge


def agreeing() -> list[float]:
    return [float(sum(effect.predicted(bits) == layout for bits, layout in enumerate(LAYOUTS, 1)))]


def headline() -> list[float]:
    return [float(sum(effect.predicted(bits) == LAYOUTS[bits - 1] for bits in (4, 8, 16)))]


def of_least_error() -> list[float]:
    return [float(sum(effect.least_error(bits) == effect.predicted(bits) for bits in (3, 4, 5, 6)))]


def critical() -> list[float]:
    return [
        abs(law.critical_tokens(PAPER, 1e9, *layout, effect.PAPER_BLOCK) - tokens) / digit
        for layout, (tokens, digit) in CRITICAL.items()
    ]


def precisions() -> list[float]:
    middle = math.sqrt(math.prod(effect.COMPUTE))
    return [effect.best_precision(PAPER, c) for c in (middle, *effect.COMPUTE)]


def with_overhead() -> list[float]:
    middle = math.sqrt(math.prod(effect.COMPUTE))
    return [effect.best_precision(PAPER, c, overhead=1.0) for c in (middle, *effect.COMPUTE)]


def our_precision(rows: list[dict]) -> Verdict:
    """Closed form, over resampled settings and the range of C together."""
    found, resampled = measure.fitted(law.CAPYBARA, measure.finished(rows))
    middle = law.allocation(found.params, math.sqrt(math.prod(effect.COMPUTE)), effect.PAPER_BLOCK)[0]
    with np.errstate(invalid="ignore"):  # constants of a draw may have no optimum
        drawn = [resampled.derived(lambda p, c=c: law.allocation(p, c, effect.PAPER_BLOCK)[0]) for c in effect.COMPUTE]
    low, high = np.nanquantile(drawn, 0.025), np.nanquantile(drawn, 0.975)
    what = "bits at 1e26 FLOP, and from 1e21 to 1e31, by our constants: an extrapolation over 15 orders of magnitude"
    return compare(float(middle), float(low), float(high), (4.0, 8.0), f"{what}; agrees in [4, 8]")


def tied(exponent: str, to: str) -> Callable:
    """The exponent of the cost less that of the unquantised loss, each of its own fit."""

    def judge(rows: list[dict]) -> Verdict:
        runs = measure.finished(rows)
        (costs, drawn), (base, redrawn) = (measure.fitted(which, runs) for which in (measure.PENALTY, law.BASE))
        low, high = np.nanquantile(drawn.draws[exponent] - redrawn.draws[to], [0.025, 0.975])
        what = f"{exponent} {costs.params[exponent]:.2f} of the cost less {to} {base.params[to]:.2f}; agrees within 0.1"
        found = costs.params[exponent] - base.params[to]
        return compare(found, float(low), float(high), (-0.1, 0.1), what)

    return judge


def held(which: law.Law, rows: Callable, runs: list[dict]) -> tuple[Fit, np.ndarray]:
    """The fitted law, and `measures.held_out` of the rows(inputs) of it."""
    found, _ = measure.fitted(which, runs)
    return found, measure.held_out(found, rows(found.problem.inputs))


def earlier_form(rows: list[dict]) -> Verdict:
    runs = measure.finished(rows)
    (ours, new), (kumar, old) = (
        held(which, lambda x: (x["E"] == 1) & (x["M"] == 1), runs) for which in (law.CAPYBARA, law.KUMAR)
    )
    low, high = np.nanquantile((old - new)[1:], [0.025, 0.975])
    what = f"mean |log residual| of E1M1, held out: {old[0]:.4f} of Kumar's form less {new[0]:.4f}; AIC {kumar.aic:.0f}"
    return compare(old[0] - new[0], float(low), float(high), POSITIVE, f"{what} and {ours.aic:.0f}; agrees above 0")


def largest_model(rows: list[dict]) -> Verdict:
    found, residuals = held(law.CAPYBARA, lambda x: x["N"] == x["N"].max(), measure.finished(rows))
    low, high = np.nanquantile(residuals[1:], [0.025, 0.975])
    fitted = float(np.abs(found.residuals).mean())
    what = f"mean |log residual| of the largest N, held out ({fitted:.4f} where fitted); agrees below 0.02"
    return compare(float(residuals[0]), float(low), float(high), (0.0, 0.02), what)


def each(runs: list[dict]) -> str:
    return "%: " + ", ".join(f"{p} {v:.2f}" for p, v in effect.operands(runs).items())


def without_wide(runs: list[dict]) -> str:
    """The fit of F2 without four exponent bits and more, from where on the error of a cast does not change."""
    kept = [run for run in runs if not run["setting"].format or measure.layout(run["setting"].format)[0] < 4]
    return f"without E >= 4: {effect.apart(measure.fitted(measure.PENALTY, kept)[0].params):.2f}"


def bit_for_bit(rows: list[dict]) -> Verdict:
    what = f"delta - nu; {without_wide(measure.finished(rows))}; agrees above 0"
    return of_law(measure.PENALTY, effect.apart, POSITIVE, what)(rows)


def swept_layouts(runs: list[dict]) -> str:
    line = max(effect.layouts(runs).values(), key=len)
    return "nats: " + ", ".join(f"{f.upper()} {v:.3f}" for f, v in sorted(line.items(), key=lambda item: item[1]))


def turning(rows: list[dict]) -> Verdict:
    """A line that falls contradicts only where it goes well past the tokens at which the published law turns."""
    runs = measure.finished(rows)
    s, line = effect.coarsest(runs)
    turn = effect.critical(PAPER, s)
    what = (
        f"loss of {s.format.upper()} at {max(line):,} tokens less its lowest at fewer, nats; agrees above 0; published "
        f"constants have the turn at {turn:,.0f} tokens"
    )
    found = compare(effect.turn(runs), *interval(runs, effect.turn), POSITIVE, what)
    if found.verdict == "contradicted" and max(line) < 3 * turn:
        return found._replace(verdict="inconclusive", what=f"{what}, out of reach here")
    return found


OPERANDS = ("base", "exponent", "targets")
ALL, CELLS = ("base", "law", "exponent", "mantissa", "block", "data"), ("base", "exponent", "mantissa", "law")
TOKENS = ("base", "data", "exponent", "mantissa", "law")
CLAIMS = (
    Claim("F1", "Weights and the weight gradient's activations tolerate quantisation; activations in the forward pass "
          "and output gradients do not.", "figure only (2501.02423)", OPERANDS,
          of_pair(effect.ordered, "the least harmful of P1, P3, P5, less the most of P2, P4, P6")),
    Claim("F1b", "Output gradients in the weight gradient are the worst operand.", "figure only (2501.02423)",
          OPERANDS, of_pair(effect.worst_other, "less the most harmful other")),
    Claim("F1c", "One operand alone costs up to 2 % of loss.", "up to 2 % (2501.02423)", OPERANDS,
          of(effect.largest, (1.0, 4.0), "worst operand alone, %; agrees in [1, 4]")),
    Claim("F1d", f"{TARGETS} together cost what P2 alone does.", "figure only (2501.02423)", OPERANDS,
          of(effect.three_for_one, (-0.25, 0.25), "points; agrees within 0.25")),
    Claim("F2", "An exponent bit is worth slightly more than a mantissa bit.", "delta 3.19, nu 2.95 (2501.02423)",
          ALL, bit_for_bit),
    Claim("F3", "The best layout of 4 bits is E2M1.", "E2M1 (2501.02423)", CELLS,
          of(effect.excess(4), NEGATIVE, "E2M1 less the best other, nats; agrees below 0", swept_layouts)),
    Claim("F3b", "Of 4, 8 and 16 bits the best layouts are E2M1, E4M3, E8M7.", "the same (2501.02423)", (),
          computed(headline, (3.0, 3.0), "layouts that the published constants give; agrees at 3; losses of 8-bit "
                   "layouts differ by less than 1e-3 nats")),
    Claim("F4", "A formula gives the split of any bit budget.", "table of 16 layouts (2501.02423)", (),
          computed(agreeing, (16.0, 16.0), "of 16 layouts that the formula gives; agrees at 16")),
    Claim("F4b", "Its layouts have the lowest loss.", "E2M1, E2M2, E3M2 of 4 to 6 bits (2501.02423)", CELLS,
          of(effect.excess(4, 5, 6), (-math.inf, 0.005), "predicted layout less the best other, nats, mean of 4 to 6 "
             "bits; agrees below 0.005")),
    Claim("F4c", "Its layouts have the least error of Gaussian values.", "not stated", (),
          computed(of_least_error, (4.0, 4.0), "of the layouts of 3 to 6 bits that have; agrees at 4")),
    Claim("F5", "In low precision more data eventually raises the loss.", "E1M1, 41M: from 21B tokens, by the law "
          "(2501.02423)", TOKENS, turning),
    Claim("F5b", "What low precision costs grows with the tokens trained on.", "D^0.516 (2501.02423)", TOKENS,
          of(effect.with_tokens, POSITIVE, "nats a doubling of tokens, mean; agrees above 0")),
    Claim("F5c", "Unquantised, more data never raises the loss.", "figure only (2501.02423)", TOKENS,
          of(effect.unquantised, NEGATIVE, "loss at the most tokens less the lowest at fewer, nats, largest; agrees "
             "below 0")),
    Claim("F6", "The critical data size rises with N.", "N^0.229 (2501.02423)", ("base", "mantissa", "data", "law"),
          of(effect.with_size, NEGATIVE, "turns are out of reach; what decides: nats that the cost grows by with a "
             "doubling of N; agrees below 0")),
    Claim("F6b", "The critical data size rises with precision.", "0.4T, 27T, 1730T at 4, 8, 16 bits (2501.02423)",
          TOKENS, of(effect.with_bits, POSITIVE, "what decides: least step of the cost from E1M0 to E1M1 to E2M1, "
                     "nats; agrees above 0")),
    Claim("F6c", "The critical data size rises with smaller blocks.", "(log2 B)^-0.969 (2501.02423)",
          ("base", "block", "exponent", "law"),
          of(effect.with_block, POSITIVE, "what decides: nats that the cost grows by with a doubling of B; agrees "
             "above 0")),
    Claim("F7", "For 1B parameters it is 1730T, 27T and 0.4T tokens (BF16, E4M3, E2M1).", "the same (2501.02423)", (),
          computed(critical, (0.0, 1.0), "half last digits between formula (B = 128, which the paper does not state) "
                   "and print; agrees up to 1; no run can confirm the first two")),
    Claim("F8", "What quantisation costs is linear in log2 B.", "kappa log2 B + psi (2501.02423)",
          ("base", "block", "exponent", "law"),
          of(effect.better_than_linear, POSITIVE, "R^2 in log2 B less that in B, mean; agrees above 0",
             lambda runs: f"slope {effect.with_block(runs):.4f} nats a doubling")),
    Claim("F8b", "One element a scale costs nothing.", "by design (2501.02423)",
          ("base", "block", "exponent", "law"),
          of(effect.at_one, (-0.2, 0.2), "cost at B = 1 by the straight lines, share of the largest block's; agrees "
             "within 0.2")),
    Claim("F9", "The cost goes with tokens as the unquantised loss does.", "one beta, 0.516 (2501.02423)", ALL,
          tied("phi", "beta")),
    Claim("F9b", "The cost goes with parameters as the unquantised loss does.", "one alpha, 0.237 (2501.02423)", ALL,
          tied("eta", "alpha")),
    Claim("F10", "The law predicts better than Kumar et al.'s form, above all E1M1.", "figure only (2501.02423)", ALL,
          earlier_form),
    Claim("F11", "The law holds for larger models.", "1.2B, 7B, 70B, figure only (2501.02423)", (*ALL, "held_out"),
          largest_model),
    Claim("F12", "Precision should rise over the run.", "low at first, high later (2501.02423)",
          ("base", "exponent", "schedule"),
          of(effect.rising, NEGATIVE, "rising less the better of falling and constant, nats, equal bits x tokens; "
             "agrees below 0")),
    Claim("F13", "At fixed N the best precision is a power of compute.", "C^0.1438 (2501.02423)", (),
          computed(lambda: [effect.slope_at_size(PAPER)], (0.143, 0.1445), "exponent by direct minimisation, published "
                   "constants; agrees in [0.143, 0.1445]")),
    Claim("F13b", "Its exponent.", "0.1438 (2501.02423)", ALL,
          of_law(law.CAPYBARA, effect.exponent_of_compute, (0.108, 0.18), "of our constants; agrees within a quarter")),
    Claim("F14", "The best precision stays at 4 to 8 bits from 1e21 to 1e31 FLOP.", "4 to 8 bits (2501.02423)", (),
          computed(precisions, (4.0, 8.0), "bits at 1e26 FLOP, and at the ends, by direct minimisation, B = 128")),
    Claim("F14b", "The same where a cast costs a bit more.", "not stated", (),
          computed(with_overhead, (4.0, 8.0), "as F14, C = k (P + 1) N D")),
    Claim("F14c", "The same by constants of our own.", "4 to 8 bits (2501.02423)", ALL, our_precision),
)  # fmt: skip

"""The claims of the DiLoCo scaling-law paper (arXiv 2503.09799) as judgements of the study's results.

Intervals are of redrawn losses (`measures`), unless a claim is computed: then they span the cases that it names.
"""

import math
from collections.abc import Callable
from functools import cache, partial

from jaxlab.config import default
from jaxlab.cost import wallclock
from jaxlab.cost.wallclock import Algorithm
from jaxlab.studies.claim import NEGATIVE, POSITIVE, Claim, Verdict, by_interval, compare
from jaxlab.studies.diloco import effects as effect
from jaxlab.studies.diloco import measures as measure
from jaxlab.studies.tuning import interval

MODELS = {"10B": (10e9, 0.8), "405B": (405e9, 26.0), "671B": (671e9, 20.0)}  # (parameters, seconds a step)
of = partial(by_interval, measure.settings)


def by(values: dict, form: str) -> str:
    """'M=1 0.3, M=2 0.4' of {M: value}."""
    return ", ".join(f"{f'M={m}' if m else 'data-parallel'} {v:{form}}" for m, v in values.items())


def cross(rows: list[dict]) -> Verdict:
    """Contradicted where the laws part; else by where they meet."""
    runs = measure.settings(rows)
    low, high = interval(runs, effect.convergence)
    if low > 0:
        return Verdict(
            "contradicted", effect.convergence(runs), low, high, "exponent of M=2 less data-parallel's: they part"
        )
    what = (
        "log10 N at which M=2 meets data-parallel, an extrapolation; agrees up to 10.5, set after laptop results were "
        "seen (docs/LAB.md); published laws: 9.4"
    )
    return compare(effect.crossing(runs), *interval(runs, effect.crossing), (-math.inf, 10.5), what)


def bandwidth(rows: list[dict]) -> Verdict:
    """Simulated for the paper's three models; spans them, at 16 bits a parameter."""
    ratios = {u: [bandwidth_ratio(*m, target=u) for m in MODELS.values()] for u in (0.5, 0.9, 0.99)}
    others = ", ".join(f"{min(r):.3g} to {max(r):.3g} at {u:.0%}" for u, r in ratios.items() if u > 0.5)
    what = (
        f"times less than data-parallel's for half the time spent computing, H=100, simulated; {others}; traffic is 1/H"
    )
    half = ratios[0.5]
    return compare(half[0], min(half), max(half), (10.0, math.inf), f"{what}; agrees from 10")


def bandwidth_ratio(params: float, step_seconds: float, target: float) -> float:
    """Data-parallel's over DiLoCo's at M = 2, H = 100."""
    needs = (wallclock.required_bandwidth(a, params, step_seconds, target) for a in (Algorithm(), Algorithm(2, 100)))
    return next(needs) / next(needs)


def memory(rows: list[dict]) -> Verdict:
    """From eight replicas that share the outer state out to one that holds it alone."""
    alone, of_eight = state_ratio(1), state_ratio(8)
    what = (
        "state of a replica over data-parallel's, bytes, from M=8 that share the outer state to each with a whole one"
    )
    return compare(alone, of_eight, alone, (0.0, 1.0), f"{what}; agrees up to 1; traffic does fall: D9")


@cache
def state_ratio(replicas: int) -> float:
    """Bytes of the training state of a replica over data-parallel's, of the compiled program's own arrays."""
    import jax  # counts its cores when it is imported

    from jaxlab import parallel
    from jaxlab.train.program import program

    def size(m, sync_every):
        c = default()
        c.update(replicas=m)
        c.model.num_layers = 1
        c.diloco.sync_every = sync_every
        state = program(c, parallel.mesh(1, 1, 1), vocab_size=512).abstract_state()
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / m

    return size(replicas, 30) / size(1, 0)


def by_size(runs: list[dict]) -> str:
    """The gaps of M = 1."""
    return ", ".join(f"{model} {gap:+.2f}" for (model, m), gap in measure.gaps(runs).items() if m == 1)


def octaves(runs: list[dict]) -> str:
    finished = {name: len(line) for name, line in measure.stability(runs).items()}
    found = measure.widths(runs)
    return "octaves (rates that finished): " + ", ".join(f"{k} {w:.2f} ({finished[k]})" for k, w in found.items())


def best_batches(runs: list[dict]) -> str:
    found = measure.best_batches(runs)
    return "tokens: " + by({m: b for (_, m), b in found.items()}, ",.0f") + "; others are best at an end of the range"


def predicted(runs: list[dict]) -> str:
    found = effect.prediction(runs)
    return (
        f"|log residual| of the rate: {by({m: r for m, (r, _) in found.items()}, '.2f')}; loss lost, %: "
        f"{by({m: lost for m, (_, lost) in found.items()}, '.2f')}; batch: too few sizes were swept"
    )


def of_networks(quantity: Callable) -> Callable:
    return lambda runs: ", ".join(f"{name} {quantity(runs, 2, name):.3g}" for name in wallclock.NETWORKS)


NOT_MEASURED = "accuracies: not measured, at chance at this size"
BATCHES, OUTER = ("loss", "batch"), ("loss", "outer_lr")
PERIODS, STABILITY = ("loss", "outer_lr", "sync_every"), ("loss", "stability")
CLAIMS = (
    Claim("D1", "Hyper-parameters are predictable across sizes, better than data-parallel's.",
          "log residual 0.19 of rate and batch, joint law (2503.09799)", ("loss",),
          of(effect.penalty, (-math.inf, 0.1), "loss lost by DiLoCo's predicted rate less data-parallel's, %; agrees "
             "up to 0.1",
             predicted)),
    Claim("D2", "DiLoCo's loss falls faster with size than data-parallel's.",
          "M=8: +3.90 % at 35M, +1.07 % at 2.4B (2503.09799)", ("loss",),
          of(effect.mean_slope, NEGATIVE, "change of the gap a doubling of N, points, mean over M; agrees below 0",
             lambda runs: by(effect.gap_slopes(runs), ".2f"))),
    Claim("D3", "M=2 has the lower loss from a few billion parameters on.",
          "2.323 v 2.326 at 2.4B (2503.09799)", ("loss",), cross),
    Claim("D4", "M=1 has a lower loss than data-parallel at every size.",
          "-0.09 % at 35M, -0.39 % at 2.4B (2503.09799)", ("loss",),
          of(effect.of_one, NEGATIVE, f"gap of M=1, %, mean over sizes; agrees below 0; {NOT_MEASURED}", by_size)),
    Claim("D4b", "The gap of M=1 grows in its favour with size.",
          "-0.09 % at 35M, -0.39 % at 2.4B (2503.09799)", ("loss",),
          of(effect.slope_of_one, NEGATIVE, "change of the gap of M=1 a doubling of N, points; agrees below 0")),
    Claim("D5", "M=1 hardly reacts to a larger batch, data-parallel does.", "figures only (2503.09799)", BATCHES,
          of(effect.less_rise, POSITIVE, "rise of data-parallel's loss from its own best batch to 4 times that, less "
             "M=1's, points; agrees above 0", lambda runs: by(effect.rises(runs), ".2f"))),
    Claim("D6", "The best global batch grows with M.", "M^0.34 (2503.09799)", BATCHES,
          of(effect.batch_exponent, POSITIVE, "exponent of M in the best batch; agrees above 0", best_batches)),
    Claim("D7", "At large batches M=2 has a lower loss than data-parallel.", "figures only (2503.09799)", BATCHES,
          of(effect.large_batch_gap, NEGATIVE, "gap of M=2 at 4 and 8 times data-parallel's best batch, %; agrees "
             f"below 0; {NOT_MEASURED}")),
    Claim("D8", "The best outer learning rate rises with M.",
          "0.4, 0.6, 0.6, 0.8 for M = 1, 2, 4, 8 (2503.09799)", OUTER,
          of(effect.with_replicas, POSITIVE, "its change a doubling of M; agrees above 0",
             lambda runs: by(effect.mean_outer_rates(runs), ".2f"))),
    Claim("D8b", "The best outer learning rate does not depend on size.",
          "the same from 335M to 2.4B (2503.09799)", OUTER,
          of(effect.with_size, (-0.2, 0.2), "of the largest model less the smallest's, mean over M; agrees within 0.2, "
             "a step of the grid")),
    Claim("D9", "DiLoCo needs orders of magnitude less bandwidth.", "10B: 104.8 v 1.4 Gbit/s (2503.09799)", (),
          bandwidth),
    Claim("D10", "More replicas shorten the training to a given loss.", "modelled only (2503.09799)",
          (*BATCHES, "over_training"),
          of(effect.time_to_loss, (0.0, 1.0), "modelled time of M=2 to data-parallel's loss over data-parallel's, 2.4B "
             "parameters, measured gap and ratio of best batches; agrees below 1", of_networks(effect.time_to_loss))),
    Claim("D11", "The gap does not grow with over-training.", "parallel curves at 1, 4, 16 times (2503.09799)",
          ("loss", "over_training"),
          of(effect.gap_with_tokens, (-math.inf, 0.25), "change of the gap of M=2 a doubling of tokens, points; agrees "
             "up to 0.25")),
    Claim("D11b", "Four times the tokens fit in data-parallel's time.", "about 4 times (2503.09799)", BATCHES,
          of(effect.fitting_tokens, (4.0, math.inf), "times data-parallel's tokens that M=2 trains on in its time, "
             "2.4B parameters, measured ratio of best batches; agrees from 4", of_networks(effect.fitting_tokens))),
    Claim("D12", "Loss is a power law in N for every M and predicts larger models.",
          "log residual 0.012 (2503.09799)", ("loss",),
          of(effect.residual, (0.0, 0.02), "mean |log residual| of the largest model, held out; agrees below 0.02",
             lambda runs: "law above loss by " + by(effect.residuals(runs), "+.3f"))),
    Claim("D13", "QK-LayerNorm widens the range of good learning rates.", "stated (2503.09799)", STABILITY,
          of(effect.wider("qk"), POSITIVE, "octaves within 1 % of the lowest loss, with less without; agrees above 0",
             octaves)),
    Claim("D13b", "z-loss widens the range of good learning rates.", "stated (2503.09799)", STABILITY,
          of(effect.wider("z"), POSITIVE, "octaves within 1 % of the lowest loss, with less without; agrees above 0")),
    Claim("D14", "DiLoCo removes data-parallel's memory bottleneck.",
          "5/3 of data-parallel's state (2501.18512)", (), memory),
    Claim("D15", "H=1 is the worst H.", "figures only (2503.09799)", PERIODS,
          of(effect.of_every_step, POSITIVE, "loss at H=1 less the highest at any other H, %; agrees above 0")),
    Claim("D15b", "From H=5 on loss rises with H.", "figures only (2503.09799)", PERIODS,
          of(effect.mean_period_slope, POSITIVE, "% of loss a doubling of H, mean over M; agrees above 0",
             lambda runs: by(effect.period_slopes(runs), ".2f"))),
    Claim("D15c", "The best outer learning rate rises with H.", "figure only (2503.09799)", PERIODS,
          of(effect.rate_with_period, POSITIVE, "its doublings a doubling of H; agrees above 0")),
)  # fmt: skip

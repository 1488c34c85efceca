"""The claims of the paper (arXiv 2510.00537)."""

import math

from jaxlab.studies.claim import NEGATIVE, POSITIVE, Claim
from jaxlab.studies.spectral import effects as effect
from jaxlab.studies.spectral import judges as judge
from jaxlab.studies.spectral import measures as measure
from jaxlab.studies.spectral.judges import HARD, SOFT, at_collapse, average, between_arms, slope
from jaxlab.studies.spectral.measures import of

BASE, NORM, COLLAPSE = ("base",), ("base", "norm"), ("base", "norm", "collapse")
FAMILY = ("base", "family", "depth")
PAPER = "(2510.00537)"
GAIN = "entropy of single tokens less the loss, nats; agrees above 0.1"

CLAIMS = (
    Claim("S1", "Soft rank is a power of the width with an exponent of about 1.",
          f"about 1 {PAPER}; 0.661 with AdamW (2605.21803)", BASE, judge.near_one),
    Claim("S1b", "Its exponent stands with twice as many tokens.", "not stated", ("base", "samples"),
          judge.repeated(SOFT)),
    Claim("S2", "Hard rank grows with an exponent of 0.4 to 0.6.",
          f"0.4 to 0.6 {PAPER}; 0.289 with AdamW (2605.21803)", BASE,
          slope(judge.rank(HARD), (0.3, 0.7), "beta_hard; agrees in [0.3, 0.7]", judge.scatter)),
    Claim("S2b", "It grows more slowly than soft rank.", f"the asymmetric law {PAPER}", BASE,
          slope(judge.rank(effect.GAP), POSITIVE, "beta_soft - beta_hard; agrees above 0")),
    Claim("S2c", "It scatters more around its law than soft rank.", "R^2 0.338 and 0.971 (2605.21803)", BASE,
          average(judge.residuals, POSITIVE, "|residual| of ln hard rank less that of ln soft rank; agrees above 0")),
    Claim("S2d", "Its exponent stands with twice as many tokens.", "not stated", ("base", "samples"),
          judge.repeated(HARD)),
    Claim("S3", "Soft utilisation stays flat with width.", f"about 0 {PAPER}", BASE,
          slope(judge.rank(lambda r: SOFT(r) / r["D"]), (-0.1, 0.1), "beta_soft - 1: nothing that S1 does not say; "
                "agrees within 0.1")),
    Claim("S3b", "Hard utilisation falls with width.", f"-0.4 to -0.6 {PAPER}", BASE,
          slope(judge.rank(effect.hard_utilisation), (-math.inf, -0.3), "beta_hard - 1: nothing that S2 does not say; "
                "agrees below -0.3")),
    Claim("S4", "New width goes to directions of low energy first: the exponents of Renyi ranks fall with their order.",
          f"qualitative {PAPER}", BASE,
          slope(judge.rank(of("renyi_0.5", over="renyi_inf")), POSITIVE, "exponent of order 1/2 less that of order "
                "infinity; agrees above 0", judge.orders)),
    Claim("S4b", "Directions for 99 % of the variance grow faster than those for 50 %.", f"qualitative {PAPER}", BASE,
          slope(judge.rank(of("directions_99", over="directions_50")), POSITIVE, "difference of exponents; agrees "
                "above 0")),
    Claim("S5", "The asymmetry settles: it is the same after a run twice as long.", f"after some 5,000 steps {PAPER}",
          ("base", "doubled"), judge.doubled),
    Claim("S5b", "It is settled at half of a run.", f"after some 5,000 steps {PAPER}", BASE,
          slope(judge.settled, (-0.1, 0.1), "beta_soft - beta_hard at the end less at half; agrees within 0.1")),
    Claim("S5c", "Hard rank grows at first.", f"qualitative {PAPER}", BASE,
          average(judge.first_growth("hard_rank"), POSITIVE, "ln, from 1/128 to 1/4 of the run; agrees above 0")),
    Claim("S5d", "Soft rank grows at first.", f"qualitative {PAPER}", BASE,
          average(judge.first_growth("soft_rank"), POSITIVE, "ln, from 1/128 to 1/4 of the run; agrees above 0")),
    Claim("S6", "LLaMA, GPT-2 and nGPT of any depth have the asymmetry.", f"qualitative {PAPER}", FAMILY,
          slope(judge.least_gap, POSITIVE, "least beta_soft - beta_hard; agrees above 0", judge.listed_gaps)),
    Claim("S7", "Post-LN has a smaller soft exponent than Pre-LN.", f"0.7 to 0.8 against near 1 {PAPER}", NORM,
          slope(judge.against({"norm": "post", "part": "norm"}, SOFT), NEGATIVE, "difference; agrees below 0")),
    Claim("S7b", "Mix-LN has a soft exponent near 1.", f"0.97 to 1.10 {PAPER}", NORM,
          slope(lambda runs: measure.line(measure.arm(runs, norm="mix", part="norm"), SOFT), (0.9, 1.15),
                "beta_soft; agrees in [0.9, 1.15]")),
    Claim("S7c", "Mix-LN has a greater hard exponent than Pre-LN.", f"0.59 to 0.63 {PAPER}", NORM,
          slope(judge.against({"norm": "mix", "part": "norm"}, HARD), POSITIVE, "difference; agrees above 0")),
    Claim("S8", "Plain Post-LN collapses beyond a width.", f"at 250M, PPL 1427 {PAPER}", COLLAPSE, judge.threshold),
    Claim("S8b", "What collapses has the loss of single tokens.", "ln 1427 = 7.26 (2510.00537)", COLLAPSE,
          at_collapse(("Post-LN",), effect.context_gain, (-0.1, 0.1), "entropy of single tokens less the loss, nats; "
                      "agrees within 0.1")),
    Claim("S8c", "Its hard rank is near 1.", f"below 0.001 D {PAPER}", COLLAPSE,
          at_collapse(("Post-LN",), HARD, (0.0, 2.0), "hard rank; agrees up to 2")),
    Claim("S8d", "The spectrum of a layer tells that it has collapsed.", f"concentration near 1 {PAPER}", COLLAPSE,
          judge.told),
    Claim("S9", "Weight normalisation prevents the collapse.", f"PPL 25.1, 24.3 {PAPER}", COLLAPSE,
          at_collapse(("+ weight normalisation",), effect.context_gain, (0.1, math.inf), GAIN)),
    Claim("S9b", "With it Post-LN is better than Pre-LN.", f"PPL 25.1 against 27.1 {PAPER}; Pre-LN 21.92 (2412.13795)",
          COLLAPSE, between_arms("+ weight normalisation", "Pre-LN", judge.loss, NEGATIVE, "difference of losses, "
                                 "nats, each at its best rate; agrees below 0")),
    Claim("S10", "Hyperspherical normalisation prevents the collapse.", f"PPL 27.9, 26.5 {PAPER}", COLLAPSE,
          at_collapse(("+ hyperspherical",), effect.context_gain, (0.1, math.inf), GAIN)),
    Claim("S10b", "It uses fewer directions than weight normalisation.", f"about 70 % {PAPER}", COLLAPSE,
          between_arms("+ hyperspherical", "+ weight normalisation", judge.log_use, NEGATIVE, "ln of the ratio of hard "
                       "utilisations; agrees below 0")),
    Claim("S10c", "Its loss is higher.", f"PPL 27.9 against 25.1 {PAPER}", COLLAPSE,
          between_arms("+ hyperspherical", "+ weight normalisation", judge.loss, POSITIVE, "difference of losses, "
                       "nats; agrees above 0")),
    Claim("S11", "The hard rank of GPT-2 with GELU saturates early.", f"near 0.01 D {PAPER}", FAMILY,
          average(lambda runs: [math.log(effect.drift(r)) for r in judge.gpt2(2.67, 4)(runs)], (-0.1, 0.1),
                  "ln of hard rank at the end over that at half of the run, 2.67 and 4 d_model; agrees within 0.1")),
    Claim("S11b", "Its spectrum is top-heavy.", f"concentration about 0.7 {PAPER}", FAMILY,
          average(lambda runs: [of("concentration")(r) for r in judge.gpt2(2.67, 4)(runs)], (0.6, 1.0),
                  "concentration; agrees above 0.6")),
    Claim("S11c", "It gains little from 1 to 2.67 d_model.", f"ln PPL 15.63 / 14.07 = 0.105 {PAPER}", FAMILY,
          average(judge.widened, (0.0, 0.15), "loss at 1 d_model less at 2.67, nats; agrees in [0, 0.15]")),
    Claim("S12", "nGPT uses far more directions than GPT-2.", f"'two orders of magnitude' {PAPER}", FAMILY,
          judge.utilisation_ratio),
    Claim("S12b", "Its soft and hard exponents are closer.", f"qualitative {PAPER}", FAMILY,
          slope(lambda runs: measure.paired_line(judge.twins(runs), effect.GAP), NEGATIVE,
                "beta_soft - beta_hard less GPT-2's; agrees below 0")),
    Claim("S12c", "Its loss is lower at equal width.", f"ln PPL 13.60 / 14.07 = -0.034 {PAPER}", FAMILY,
          average(lambda runs: [a["loss"] - b["loss"] for a, b in judge.twins(runs)], NEGATIVE,
                  "difference, nats; agrees below 0")),
    Claim("S12d", "Its concentration is about 0.4.", f"0.4 {PAPER}", FAMILY,
          average(lambda runs: [of("concentration")(a) for a, _ in judge.twins(runs)], (0.3, 0.5),
                  "concentration; agrees in [0.3, 0.5]")),
    Claim("S13", "What more width adds to eDim falls sharply beyond 2.67 to 4 d_model.", f"2.67 to 4 {PAPER}", BASE,
          slope(effect.kink, (-math.inf, -0.3), "by how much the exponent of eDim changes at 3.27 d_model; agrees "
                "below -0.3, a smooth power law has 0", name="beyond")),
    Claim("S13b", "Beyond, depth or data buy more than width.", f"qualitative {PAPER}", ("base", "balance"),
          judge.others_win(4, POSITIVE, "from 4 d_model; agrees above 0")),
    Claim("S13c", "Before, width buys more.", f"qualitative {PAPER}", ("base", "balance"),
          judge.others_win(1, NEGATIVE, "from 1 d_model; agrees below 0")),
    Claim("S14", "Width is better given to layers whose eDim grows with it than to the others.",
          f"qualitative {PAPER}", ("base", "layers"), judge.allocated("guided", "reversed")),
    Claim("S14b", "It is better given to them than evenly.", f"qualitative {PAPER}", ("base", "layers"),
          judge.allocated("guided", "even")),
    Claim("S14c", "The eDim of layers grows with the width at different rates.", f"qualitative {PAPER}", BASE,
          slope(effect.differing, (0.1, math.inf), "largest exponent of a layer less the smallest, chosen once; agrees "
                "above 0.1")),
    Claim("S15", "Without weight normalisation there is no training where plain Post-LN collapses.",
          f"'necessary' {PAPER}; Pre-LN and Mix-LN train at 250M (2412.13795)", COLLAPSE,
          at_collapse(("Pre-LN", "Mix-LN"), effect.context_gain, (-math.inf, 0.1), "entropy of single tokens less the "
                      "loss of Pre-LN and Mix-LN, nats; agrees below 0.1")),
    Claim("S15b", "A rich spectrum goes with a low loss.", f"qualitative {PAPER}",
          ("base", "norm", "family", "depth", "balance", "collapse"), judge.rich),
    Claim("S16", "The feed-forward holds two thirds of the parameters.", f"67 % {PAPER}", (), judge.counted),
)  # fmt: skip

"""Spectral scaling laws: rank = A D^beta in the feed-forward width D (Jha and Reagen 2510.00537), and the width that
they recommend.

The fit is that of the authors (companion paper 2605.21803): least squares on natural logarithms, with t intervals of
n - 2 degrees of freedom. Fits of the rank and of the utilisation rank / D have exponents that differ by exactly 1 and
equal residuals, but different R^2, so a law may look good in one form and poor in the other.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize

from jaxlab.config import InputError
from jaxlab.laws.lines import PowerLaw, power_law


def rank_law(width, rank) -> PowerLaw:
    """Fits rank = A D^beta; width, rank [n], n >= 3; beta is `.exponents["D"]`, its interval `.interval("D")`."""
    return power_law({"D": width}, rank)


def utilisation_law(width, rank) -> PowerLaw:
    """Fits rank / D = A D^(beta - 1)."""
    return power_law({"D": width}, np.asarray(rank, float) / np.asarray(width, float))


class RankLaws(NamedTuple):
    """(A, beta) of the hard rank and of the soft rank."""

    hard: tuple[float, float]
    soft: tuple[float, float]

    def ranks(self, width):
        """(hard, soft) ranks at `width`, at most the width."""
        width = np.asarray(width, float)
        with np.errstate(over="ignore"):  # a steep law may overflow before the width bounds it
            return tuple(np.minimum(a * width**beta, width) for a, beta in self)


# GPT-2 160M, d_model 768, widths 768 to 6,144, post-activation (companion 2605.21803). The paper's laws for Muon are
# left out: one of their points belongs to another optimiser.
PUBLISHED = {
    "adamw": RankLaws((math.exp(3.560), 0.289), (math.exp(1.726), 0.661)),
    "dion-1/16": RankLaws((math.exp(2.223), 0.500), (math.exp(1.275), 0.744)),
    "dion-1/2": RankLaws((math.exp(0.061), 0.787), (math.exp(-0.001), 0.920)),
}


def fitted(width, hard, soft) -> RankLaws:
    """The laws fitted to measured hard and soft ranks; all [n]."""
    laws = (rank_law(width, rank) for rank in (hard, soft))
    return RankLaws(*((law.A, law.exponents["D"]) for law in laws))


def edim(width, hard, soft):
    """Effective dimension 1 + (D - 1) SUI of hard and soft ranks, SUI the harmonic mean of both ranks over D."""
    width, hard, soft = (np.asarray(x, float) for x in (width, hard, soft))
    return 1 + (width - 1) * 2 * hard * soft / (hard + soft) / width


def marginal_edim(laws: RankLaws, width):
    """d eDim / d D by the laws: effective dimensions gained for each dimension of width added."""
    width, step = np.asarray(width, float), 1e-4
    below, above = width * (1 - step), width * (1 + step)
    return (edim(above, *laws.ranks(above)) - edim(below, *laws.ranks(below))) / (above - below)


def recommended_width(laws: RankLaws, d_model: float, share: float = 0.5) -> float:
    """The width at which the marginal eDim has fallen to `share` of its value at D = d_model; inf if that is beyond
    64 d_model. Raises InputError unless 0 < share < 1.

    Under power laws the marginal eDim falls smoothly, so no width is special and `share` is a choice. A half gives 2.8
    times d_model for AdamW's published laws, and 3.1 and 4.4 times for hard exponents of 0.4 and 0.5 with a soft
    exponent of 1; published advice is 2.67 to 4 times (2510.00537).
    """
    if not 0 < share < 1:
        raise InputError(f"share={share}: must be between 0 and 1")

    def excess(log_multiple):
        return float(marginal_edim(laws, d_model * math.exp(log_multiple)) / marginal_edim(laws, d_model)) - share

    last = math.log(64)
    return math.inf if excess(last) > 0 else d_model * math.exp(optimize.brentq(excess, 0, last))

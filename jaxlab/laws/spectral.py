"""Spectral scaling laws: rank = a D^beta in the feed-forward width D (Jha and Reagen 2510.00537).

The fit is the authors' (companion 2605.21803): least squares on natural logarithms, t intervals with two degrees of
freedom fewer than widths. Ranks and utilisations rank / D have exponents that differ by exactly 1 and equal residuals,
but not the same R^2: a law may look good in one space and poor in the other.
"""

import numpy as np

from jaxlab.laws.lines import PowerLaw, power_law


def rank_law(width, rank) -> PowerLaw:
    """rank = A D^beta; width, rank [n], at least 3 widths; beta is `.exponents["D"]`, its interval `.interval("D")`."""
    return power_law({"D": width}, rank)


def utilisation_law(width, rank) -> PowerLaw:
    """rank / D = A D^(beta - 1)."""
    return power_law({"D": width}, np.asarray(rank, float) / np.asarray(width, float))

"""Spectral laws against the companion's printed fits, eDim against its exact values, the width that laws advise."""

import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.laws import spectral

WIDTHS = 768 * np.arange(1, 9)
# GPT-2 160M ranks by width and their fits: exponent, interval, R^2, ln a (companion 2605.21803, its data and table).
RANKS = {
    "AdamW soft": (430.8, 685.4, 1018.9, 1262.3, 1349.6, 1504.2, 1419.8, 1769.1),
    "AdamW hard": (211.2, 273.6, 340.6, 596.5, 482.7, 271.2, 323.4, 464.0),
    "Dion 1/2 soft": (415.9, 926.3, 1290.4, 1597.4, 2099.8, 2357.9, 2501.6, 2986.5),
    "Dion 1/2 hard": (167.6, 406.6, 490.3, 648.8, 717.7, 816.6, 849.9, 927.3),
    "Dion 1/16 soft": (490.8, 858.6, 1127.6, 1484.2, 1688.4, 1899.1, 2087.4, 2328.9),
    "Dion 1/16 hard": (244.5, 390.3, 414.2, 558.2, 585.7, 638.7, 660.6, 693.4),
}
FITS = {
    "AdamW soft": (0.661, 0.546, 0.775, 0.971, 1.726),
    "AdamW hard": (0.289, -0.115, 0.693, 0.338, 3.560),
    "Dion 1/2 soft": (0.920, 0.835, 1.004, 0.992, -0.001),
    "Dion 1/2 hard": (0.787, 0.632, 0.942, 0.962, 0.061),
    "Dion 1/16 soft": (0.744, 0.708, 0.781, 0.998, 1.275),
    "Dion 1/16 hard": (0.500, 0.419, 0.582, 0.974, 2.223),
}


@pytest.mark.parametrize("name", RANKS)
def test_published_spectral_laws(name):
    """Three printed decimals; ranks are printed to 0.1, which moves ln a, far outside the widths, by up to 0.0015."""
    line = spectral.rank_law(WIDTHS, RANKS[name])
    found = (line.exponents["D"], *line.interval("D"), line.r2, np.log(line.A))
    assert found == pytest.approx(FITS[name], abs=0.0015)


def test_utilisation_has_another_r2():
    """AdamW's soft rank: slope 0.661 and R^2 0.971 as rank, -0.339 and 0.898 as utilisation; hard 0.338 and 0.756."""
    soft, hard = (spectral.utilisation_law(WIDTHS, RANKS[f"AdamW {kind}"]) for kind in ("soft", "hard"))
    assert (soft.exponents["D"], soft.r2) == pytest.approx((-0.339, 0.898), abs=6e-4)
    assert (hard.exponents["D"], hard.r2) == pytest.approx((-0.711, 0.756), abs=6e-4)


@pytest.mark.parametrize("optimiser", spectral.PUBLISHED)
def test_published_laws_are_those_of_the_points(optimiser):
    """Within 1 % of the refitted ranks, at all widths behind them."""
    name = {"adamw": "AdamW", "dion-1/2": "Dion 1/2", "dion-1/16": "Dion 1/16"}[optimiser]
    refitted = spectral.fitted(WIDTHS, RANKS[f"{name} hard"], RANKS[f"{name} soft"])
    np.testing.assert_allclose(spectral.PUBLISHED[optimiser].ranks(WIDTHS), refitted.ranks(WIDTHS), rtol=0.01)


# (D, hard rank, soft rank, eDim) of known spectra: flat, one mode, two modes, i^-0.5, i^-1, i^-1.5, 0.99^i, and one
# mode over a flat floor; computed in high precision.
EXACT = (
    (1024, 1024, 1024, 1024), (1024, 1, 1, 1.99902), (1024, 2, 2, 2.998047), (1024, 521.1173, 805.0886, 633.0827),
    (1024, 34.3000, 182.3605, 58.6834), (1024, 5.4090, 18.5583, 9.3684), (1024, 198.9865, 270.3643, 230.0241),
    (2048, 20.5351, 647.8958, 40.7889),
)  # fmt: skip


def test_edim_of_known_spectra():
    width, hard, soft, expected = np.array(EXACT, float).T
    np.testing.assert_allclose(spectral.edim(width, hard, soft), expected, rtol=2e-5)  # six digits are given


def test_marginal_edim_of_equal_laws():
    """Hard rank = soft rank = 3 D^0.5: eDim = 1 + 3 (D - 1) D^-0.5, whose derivative is 1.5 (D^-0.5 + D^-1.5)."""
    laws = spectral.RankLaws((3.0, 0.5), (3.0, 0.5))
    width = np.array([100.0, 800.0])
    np.testing.assert_allclose(spectral.marginal_edim(laws, width), 1.5 * (width**-0.5 + width**-1.5), rtol=1e-6)


def test_marginal_edim_of_unequal_laws():
    """eDim = 1 + 2 (D - 1) / D x hard soft / (hard + soft) of hard = 3 D^0.4 and soft = 2 D^0.6, by a longer central
    difference; where a law reaches its width, the rank is the width."""
    laws = spectral.RankLaws((3.0, 0.4), (2.0, 0.6))

    def used(d):
        hard, soft = min(3 * d**0.4, d), min(2 * d**0.6, d)
        return 1 + 2 * (d - 1) / d * hard * soft / (hard + soft)

    for width in (4.0, 768.0, 6144.0):
        step = 0.01 * width
        slope = (8 * (used(width + step) - used(width - step)) - used(width + 2 * step) + used(width - 2 * step)) / 12
        assert spectral.marginal_edim(laws, width) == pytest.approx(slope / step, rel=1e-5)
    assert [float(rank) for rank in laws.ranks(4.0)] == [4.0, 4.0]
    assert [float(rank) for rank in spectral.RankLaws((1.0, 400.0), (2.0, 0.5)).ranks(1e4)] == [1e4, 200.0]


@pytest.mark.parametrize(("beta", "share"), [(0.5, 0.5), (0.4, 0.5), (0.6, 0.25)])
def test_recommended_width_of_equal_laws(beta, share):
    """The marginal eDim falls as D^(beta - 1), to within 1 / D: to its share at share^(1 / (beta - 1)) d_model."""
    laws = spectral.RankLaws((3.0, beta), (3.0, beta))
    assert spectral.recommended_width(laws, 1e6, share) == pytest.approx(1e6 * share ** (1 / (beta - 1)), rel=1e-4)


def test_recommended_widths_of_published_exponents():
    """Soft rank in proportion to D, hard rank as D^0.4 or D^0.5, and AdamW's laws: around the 2.67 to 4 times d_model
    that the paper advises; any width where all directions are used."""
    for laws in (*(spectral.RankLaws((8.0, beta), (0.8, 1.0)) for beta in (0.4, 0.5)), spectral.PUBLISHED["adamw"]):
        assert 2.67 < spectral.recommended_width(laws, 768) / 768 < 4.5
    assert spectral.recommended_width(spectral.RankLaws((1.0, 1.0), (1.0, 1.0)), 768) == np.inf
    with pytest.raises(InputError, match=r"share=1\.0: must be between 0 and 1"):
        spectral.recommended_width(spectral.PUBLISHED["adamw"], 768, 1.0)

"""Lines and parabolas against numpy and scipy, spectral laws against the companion's printed fits; refusals."""

import numpy as np
import pytest
from scipy import stats

from jaxlab.config import InputError
from jaxlab.laws import spectral
from jaxlab.laws.lines import parabola, power_law

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


def test_line_is_scipys():
    peer = stats.linregress(np.log(WIDTHS), np.log(RANKS["AdamW soft"]))
    line = power_law({"D": WIDTHS}, RANKS["AdamW soft"])
    ours = (line.exponents["D"], np.log(line.A), line.stderr["D"], line.stderr["log A"], line.r2)
    assert ours == pytest.approx((peer.slope, peer.intercept, peer.stderr, peer.intercept_stderr, peer.rvalue**2))
    width = stats.t.ppf(0.975, 6) * peer.intercept_stderr
    assert np.log(line.interval("A")) == pytest.approx(peer.intercept + width * np.array([-1, 1]))


def test_two_regressors_are_numpys():
    rng = np.random.default_rng(0)
    x = {"N": np.exp(rng.uniform(17, 21, 20)), "M": 2.0 ** rng.integers(0, 4, 20)}
    y = 19 * x["N"] ** -0.1 * x["M"] ** 0.01 * np.exp(0.01 * rng.standard_normal(20))
    line = power_law(x, y)
    design = np.stack([np.ones(20), np.log(x["N"]), np.log(x["M"])], -1)
    expected, (rss,), *_ = np.linalg.lstsq(design, np.log(y), rcond=None)
    assert [np.log(line.A), *line.exponents.values()] == pytest.approx(list(expected))
    np.testing.assert_allclose(line.covariance, rss / 17 * np.linalg.inv(design.T @ design))
    np.testing.assert_allclose(np.log(line.predict(x)), design @ expected)
    np.testing.assert_allclose(line.residuals, design @ expected - np.log(y), atol=1e-12)


def test_parabola_is_numpys():
    batch = 2.0 ** np.array([14, 15, 16, 17, 18, 19])
    loss = np.array([3.21, 3.12, 3.08, 3.05, 3.09, 3.2])
    (c, b, a), cov = np.polyfit(np.log2(batch), loss, 2, cov=True)
    found = parabola(batch, loss)
    assert np.log2(found.minimiser) == pytest.approx(-b / (2 * c))
    assert (found.lowest, found.curvature) == pytest.approx((a - b * b / (4 * c), c))
    slope = np.array([b / (2 * c * c), -1 / (2 * c), 0])
    assert found.stderr == pytest.approx(np.sqrt(slope @ cov @ slope), rel=1e-6)
    width = stats.t.ppf(0.975, 3) * found.stderr
    assert np.log2(found.interval()) == pytest.approx(np.log2(found.minimiser) + width * np.array([-1, 1]))
    assert np.isnan(parabola(batch[:3], [2.0, 1.0, 2.5]).interval()).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: power_law({"N": [1.0, 2.0]}, [1.0, 2.0]), "2 points: a line with 2 coefficients .* needs 3"),
        (lambda: power_law({"N": [1.0, 2.0, 3.0]}, [1.0, 0.0, 2.0]), "y, row 1: 0.0 must be finite and above 0"),
        (lambda: power_law({"N": [1.0, np.nan, 3.0]}, [1.0, 1.0, 2.0]), "input 'N', row 1: nan must be finite"),
        (lambda: power_law({"N": [1.0, 2.0]}, [1.0, 1.0, 2.0]), r"input 'N' has shape \(2,\): must be that of y"),
        (lambda: power_law({"N": [2.0, 2.0, 2.0]}, [1.0, 1.0, 2.0]), "input 'N' is 2 in every row"),
        (
            lambda: power_law({"N": [1.0, 2.0, 3.0, 4.0], "M": [1.0, 4.0, 9.0, 16.0]}, [1.0, 1.0, 2.0, 2.0]),
            "inputs N, M are collinear in their logarithms",
        ),
        (lambda: power_law({"N": [[1.0]]}, [1.0]), r"input 'N' has shape \(1, 1\): must be one column"),
        (lambda: parabola([1.0, 2.0, 2.0], [1.0, 2.0, 3.0]), "2 distinct x: a parabola needs 3"),
        (lambda: parabola([1.0, 2.0, 4.0], [1.0, 2.0, 1.0]), "opens downwards"),
        (lambda: parabola([1.0, -2.0, 4.0], [1.0, 2.0, 1.0]), "x, row 1: -2.0 must be finite and above 0"),
    ],
)
def test_refusals(call, says):
    with pytest.raises(InputError, match=says):
        call()

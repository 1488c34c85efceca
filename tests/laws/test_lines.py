"""Lines and parabolas against numpy and scipy; refusals."""

import numpy as np
import pytest
from scipy import stats

from jaxlab.config import InputError
from jaxlab.laws.lines import parabola, power_law

WIDTHS = 768 * np.arange(1, 9)
RANKS = (430.8, 685.4, 1018.9, 1262.3, 1349.6, 1504.2, 1419.8, 1769.1)  # of companion 2605.21803, AdamW, soft


def test_line_is_scipys():
    peer = stats.linregress(np.log(WIDTHS), np.log(RANKS))
    line = power_law({"D": WIDTHS}, RANKS)
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

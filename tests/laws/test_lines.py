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


def test_parabola_of_an_uneven_sweep_is_numpys():
    """Where slope and curvature have errors in common: the minimiser's error by the delta method of polyfit's."""
    x, loss = np.array([14, 14.5, 15, 16, 19.0]), np.array([3.21, 3.15, 3.08, 3.05, 3.2])
    (c, b, _), cov = np.polyfit(x, loss, 2, cov=True)
    curve, slope = parabola(2.0**x, loss), np.array([b / (2 * c * c), -1 / (2 * c), 0])
    assert np.log2(curve.minimiser) == pytest.approx(-b / (2 * c))
    assert curve.stderr == pytest.approx(np.sqrt(slope @ cov @ slope), rel=1e-6)


def test_weights_are_numpys():
    """np.polyfit's w are roots of weights; its covariance, scaled, has n - 2 degrees of freedom too."""
    weights = np.array([1, 2, 5, 1, 1, 3, 0.5, 4])
    line = power_law({"D": WIDTHS}, RANKS, weights)
    (slope, intercept), cov = np.polyfit(np.log(WIDTHS), np.log(RANKS), 1, w=np.sqrt(weights), cov=True)
    assert (line.exponents["D"], np.log(line.A)) == pytest.approx((slope, intercept))
    np.testing.assert_allclose(line.covariance, cov[::-1, ::-1], rtol=1e-8)
    y, w = np.log(RANKS), weights / weights.sum()
    assert line.r2 == pytest.approx(1 - np.sum(w * line.residuals**2) / np.sum(w * (y - np.sum(w * y)) ** 2))
    assert np.isnan(power_law({"D": WIDTHS}, np.full(8, 3.0)).r2)
    (low,), (high,) = line.prediction({"D": [1.0]}, new=True)  # at log D = 0: of log A and one error of the mean weight
    variance = cov[1, 1] + np.sum(8 * w * line.residuals**2) / 6
    assert np.log(high / low) / 2 == pytest.approx(stats.t.ppf(0.975, 6) * np.sqrt(variance))


def test_predictions_are_the_textbooks():
    """x0 = log D: s^2 (1/n + (x0 - mean)^2 / Sxx) of the mean, and s^2 more of a new observation; t with 6 degrees."""
    line = power_law({"D": WIDTHS}, RANKS)
    x, x0 = np.log(WIDTHS), np.log([1e3, 1e5])
    s2 = np.sum(line.residuals**2) / 6
    mean = s2 * (1 / 8 + (x0 - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
    for new, variance in ((False, mean), (True, mean + s2)):
        low, high = line.prediction({"D": [1e3, 1e5]}, 0.9, new)
        centre, width = np.log(line.predict({"D": [1e3, 1e5]})), stats.t.ppf(0.95, 6) * np.sqrt(variance)
        np.testing.assert_allclose(np.log(low), centre - width)
        np.testing.assert_allclose(np.log(high), centre + width)


def test_interval_levels():
    line = power_law({"D": WIDTHS}, RANKS)
    width = stats.t.ppf(0.75, 6) * line.stderr["D"]
    assert line.interval("D", 0.5) == pytest.approx((line.exponents["D"] - width, line.exponents["D"] + width))
    curve = parabola([1.0, 2.0, 4.0, 8.0], [2.0, 1.1, 1.0, 2.2])
    low, high = curve.interval(0.5)
    assert np.log2(high / low) == pytest.approx(2 * stats.t.ppf(0.75, 1) * curve.stderr)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: power_law({}, [1.0, 2.0, 3.0]), "inputs has no column"),
        (lambda: power_law({"N": [1.0, 2.0, 3.0]}, [1.0, "2", 2.0]), "y, row 1: '2' is not a number"),
        (lambda: power_law({"N": [1.0, 2.0, 3.0]}, [1.0, 1.0, 2.0], [1, 1, 0]), "weights, row 2: 0.0 must be"),
        (lambda: power_law({"N": [1e300, 1.1e300, 1.2e300]}, [1.0, 2.0, 3.0]), "log A is .* beyond float64"),
        (lambda: power_law({"N": [1.0, 2.0, 3.0]}, [1.0, 2.0, 3.1]).prediction({"N": [0.0]}), "input 'N', row 0: 0.0"),
        (lambda: power_law({"N": [1.0, 2.0, 3.0]}, [1.0, 2.0, 3.1]).interval("N", 1.0), r"level=1\.0: must be between"),
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
        (lambda: parabola([1.0, 2.0, 4.0, 8.0], [1.0] * 4), "opens downwards or is flat"),
        (lambda: parabola([1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 3.0, 4.0]), "opens downwards or is flat"),
        (lambda: parabola([1.0, 1.0 + 1e-15, 2.0], [1.0, 0.5, 1.0]), "2 distinct x: a parabola needs 3"),
        (lambda: parabola([1.0, 2.0, 4.0], [1.0, 2.0, 3.0 + 1e-10]), r"minimum is at 2\^-\S+, beyond float64"),
        (lambda: parabola([1.0, 2.0, 4.0], [1.0, np.nan, 1.0]), "y, row 1: nan must be finite"),
        (lambda: parabola([1.0, 2.0, 4.0], [1.0, 2.0]), r"x has shape \(3,\): must be that of y, \(2,\)"),
        (lambda: parabola([], []), "y is empty"),
        (lambda: parabola([1.0, 2.0, 4.0], [2.0, 1.0, 2.0]).interval(0), "level=0: must be between"),
        (lambda: parabola([1.0, -2.0, 4.0], [1.0, 2.0, 1.0]), "x, row 1: -2.0 must be finite and above 0"),
    ],
)
def test_refusals(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_what_is_missing_or_masked_is_named():
    line = power_law({"N": [1.0, 2.0, 4.0, 8.0]}, [2.0, 3.0, 4.0, 6.0])
    for call in (lambda: line.predict({"D": 3}), lambda: line.prediction({"D": [3.0]})):
        with pytest.raises(InputError, match="input 'N' is missing: there are D"):
            call()
    with pytest.raises(InputError, match="coefficient 'zz' is missing: there are A, N"):
        line.interval("zz")
    with pytest.raises(InputError, match="level=a: must be between 0 and 1"):
        line.interval("N", level="a")
    with pytest.raises(InputError, match="masked rows"):
        power_law({"N": np.ma.array([1.0, 2.0, 4.0, 8.0], mask=[0, 1, 0, 0])}, [2.0, 3.0, 4.0, 6.0])


def test_a_weight_that_leaves_one_row_is_no_line():
    with pytest.raises(InputError, match="collinear in their logarithms, weighted as they are"):
        power_law({"N": [1.0, 2.0, 4.0, 8.0]}, [2.0, 3.0, 4.0, 6.0], weights=[1e32, 1, 1, 1])

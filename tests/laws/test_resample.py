"""Resampling against closed forms: A N^alpha M^beta in log space is linear in theta."""

import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.laws import batch_size, diloco
from jaxlab.laws.fit import fit
from jaxlab.laws.lines import power_law
from jaxlab.laws.resample import bootstrap, leave_largest_out, leave_one_out, refit
from tests.laws import designs

LAW = diloco.FORMS[0]
INPUTS = designs.product(N=[diloco.size(*s) for s in diloco.SHAPES], M=[1, 2, 4, 8])
LOSS = np.array([diloco.LOSS[m] for m in (1, 2, 4, 8)]).T.ravel()
DESIGN = np.stack([np.ones(28), np.log(INPUTS["N"]), np.log(INPUTS["M"])], -1)


@pytest.fixture(scope="module")
def linear():
    return fit(LAW, INPUTS, LOSS, objective="least_squares")


def test_refit_is_weighted_least_squares(linear):
    weights = np.random.default_rng(0).multinomial(28, np.full(28, 1 / 28), size=70).astype(float)
    for theta, w in zip(refit(linear, weights), weights, strict=True):
        root = np.sqrt(w)
        expected, *_ = np.linalg.lstsq(DESIGN * root[:, None], np.log(LOSS) * root, rcond=None)
        np.testing.assert_allclose(theta, expected, atol=1e-8)


def test_leave_one_out_is_the_press_residual(linear):
    """r_i / (1 - h_i), the exact held-out residual of a linear fit."""
    leverage = np.diag(DESIGN @ np.linalg.inv(DESIGN.T @ DESIGN) @ DESIGN.T)
    np.testing.assert_allclose(leave_one_out(linear), linear.residuals / (1 - leverage), atol=1e-9)


def test_leave_largest_out_is_a_fit_without_it(linear):
    small = INPUTS["N"] < INPUTS["N"].max()
    line = power_law({k: v[small] for k, v in INPUTS.items()}, LOSS[small])
    params, residuals = leave_largest_out(linear)
    assert params["alpha"] == pytest.approx(line.exponents["N"], rel=1e-8)
    held = {k: v[~small] for k, v in INPUTS.items()}
    np.testing.assert_allclose(residuals, np.log(line.predict(held) / LOSS[~small]), atol=1e-9)


def test_bootstrap_agrees_with_the_covariance(linear):
    """Independent rows alike: spread of the draws and standard error agree to 15 % (448 rows)."""
    many = {k: np.tile(v, 16) for k, v in INPUTS.items()}
    noisy = LAW(linear.params, many) * np.exp(0.002 * np.random.default_rng(0).standard_normal(448))
    fitted = fit(LAW, many, noisy, objective="least_squares")
    drawn = bootstrap(fitted, draws=400)
    for name in LAW.names:
        assert np.std(drawn.draws[name]) == pytest.approx(fitted.stderr[name], rel=0.15)
    low, high = drawn.interval(lambda p: p["A"] * 1e9 ** p["alpha"])
    assert low < fitted.predict({"N": 1e9, "M": 1.0}) < high
    np.testing.assert_allclose(drawn.interval("alpha"), np.quantile(drawn.draws["alpha"], [0.025, 0.975]))


def test_groups_are_drawn_whole(linear):
    """Every row four times over tells no more than once: drawn as groups, the draws are those of the single rows."""
    four = {k: np.tile(v, 4) for k, v in INPUTS.items()}
    fitted = fit(LAW, four, np.tile(LOSS, 4), objective="least_squares")
    once = bootstrap(linear, draws=100).draws["alpha"]
    groups = bootstrap(fitted, draws=100, groups=[f"run {i % 28:02}" for i in range(112)]).draws["alpha"]
    np.testing.assert_allclose(groups, once, rtol=1e-8)
    assert bootstrap(fitted, draws=100).draws["alpha"].std() < 0.6 * once.std()


def test_a_row_that_the_law_cannot_reach_can_be_left_out():
    """Below B_min the law is infinite: the fit without such a row is not held to it, and its residual says so."""
    batches = {"B": np.geomspace(1.3, 30, 12) * 5e4}
    tokens = batch_size.NOISE_FLOOR({"S_min": 1e4, "B_min": 5e4, "s": 1.0}, batches)
    batches["B"] = np.append(4e4, batches["B"])
    fitted = fit(batch_size.NOISE_FLOOR, batches, np.append(3e9, tokens))
    (theta,) = refit(fitted, (np.arange(13) > 0)[None])
    assert np.exp(theta) == pytest.approx([1e4, 5e4, 1.0], rel=1e-3)


def test_refusals(linear):
    with pytest.raises(InputError, match=r"groups has shape \(3,\): must have a label for each of 28 rows"):
        bootstrap(linear, groups=[1, 2, 3])
    with pytest.raises(InputError, match="by='D': A N\\^alpha M\\^beta has the inputs N, M"):
        leave_largest_out(linear, by="D")

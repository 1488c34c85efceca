"""Resampling against closed forms: A N^alpha M^beta in log space is linear in theta."""

import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.laws import batch_size, chinchilla, diloco
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


def test_seeds_and_levels(linear):
    """Another seed draws other rows, the same seed the same; half of the draws lie between the quartiles."""
    first, same, other = (bootstrap(linear, draws=50, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.draws["alpha"], same.draws["alpha"])
    assert not np.array_equal(first.draws["alpha"], other.draws["alpha"])
    assert first.interval("alpha", 0.5) == pytest.approx(tuple(np.quantile(first.draws["alpha"], [0.25, 0.75])))
    assert first.lost == 0
    with pytest.raises(InputError, match=r"level=1\.5: must be between 0 and 1"):
        first.interval("alpha", 1.5)


def drawn_rows(n, labels, draws, seed):
    """Rows of each draw: labels drawn with replacement, each with all of its rows."""
    count = max(labels) + 1
    for times in np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws):
        yield np.repeat(np.arange(n), times[labels])


@pytest.mark.parametrize("runs", [28, 7])
def test_bootstrap_of_a_line(runs):
    """Every draw is numpy's least squares of its rows; runs of one model are drawn together."""
    line, labels = power_law(INPUTS, LOSS), np.arange(28) * runs // 28
    groups = None if runs == 28 else [f"model {label}" for label in labels]
    again = bootstrap(line, draws=40, groups=groups, seed=3)
    for i, rows in enumerate(drawn_rows(28, labels, 40, 3)):
        expected, *_ = np.linalg.lstsq(DESIGN[rows], np.log(LOSS)[rows], rcond=None)
        theta = [np.log(again.draws["A"][i]), again.draws["N"][i], again.draws["M"][i]]
        np.testing.assert_allclose(theta, expected, rtol=1e-8)
    assert again.interval(lambda p: p["A"] * 1e9 ** p["N"])[0] < float(line.predict({"N": 1e9, "M": 1.0}))


def test_weights_of_a_line_stay_in_its_draws():
    weights = np.linspace(1, 3, 28)
    again = bootstrap(power_law(INPUTS, LOSS, weights), draws=5, seed=3)
    for i, rows in enumerate(drawn_rows(28, np.arange(28), 5, 3)):
        root = np.sqrt(weights[rows])
        expected, *_ = np.linalg.lstsq(DESIGN[rows] * root[:, None], np.log(LOSS)[rows] * root, rcond=None)
        assert again.draws["M"][i] == pytest.approx(expected[2], rel=1e-8)


def test_draws_that_do_not_determine_a_line_are_lost():
    """Two sizes, each a group: half of the draws have only one of them."""
    line = power_law({"N": [1.0, 1.0, 2.0, 2.0]}, [1.0, 1.1, 2.0, 2.1])
    again = bootstrap(line, draws=200, groups=[0, 0, 1, 1])
    assert again.lost == np.isnan(again.draws["N"]).sum()
    assert 70 < again.lost < 130
    assert again.interval("N") == pytest.approx([np.log2(2 * 2.1 / 1.1) / 2] * 2)  # means of the logarithms


def test_bootstrap_of_isoflop_is_the_whole_chain():
    """Each draw: runs drawn within their budget, parabolas in windows of their own, the line of their minima. Groups
    are drawn whole, over all budgets."""
    rng, N = np.random.default_rng(0), np.tile(2.0 ** np.arange(-3, 4), 4)
    C = np.repeat([1e18, 1e19, 1e20, 1e21], 7)
    N = N * 0.1 * C**0.5
    loss = chinchilla.PARAMETRIC(chinchilla.BESIROGLU, {"N": N, "D": C / (6 * N)}) + 0.002 * rng.standard_normal(28)
    sweeps = chinchilla.isoflop(C, N, loss)
    again = bootstrap(sweeps, draws=30, seed=2)
    random = np.random.default_rng(2)
    times = np.concatenate([random.multinomial(7, np.full(7, 1 / 7), size=30) for _ in range(4)], axis=1)
    lost = 0
    for i, row in enumerate(times):
        rows, minima = np.repeat(np.arange(28), row), {}
        for budget in np.unique(C):
            x, y = np.log2(N[rows][C[rows] == budget]), loss[rows][C[rows] == budget]
            best = x[y.argmin()]
            near = abs(x - best) <= 2 + 1e-9
            if x.min() < best < x.max() and len(np.unique(x[near])) >= 3:
                c, b, _ = np.polyfit(x[near], y[near], 2)
                if c > 0 and x[near].min() < -b / (2 * c) < x[near].max():
                    minima[budget] = -b / (2 * c)
        if len(minima) < 3:
            lost += 1
            assert np.isnan(again.draws["C"][i])
        else:
            slope, _ = np.polyfit(np.log2(list(minima)), list(minima.values()), 1)
            assert again.draws["C"][i] == pytest.approx(slope, rel=1e-6)
    assert again.lost == lost
    assert np.all(times.reshape(30, 4, 7).sum(2) == 7)
    whole = bootstrap(sweeps, draws=30, groups=np.tile(np.arange(7), 4)).draws["C"]
    assert np.nanstd(whole) > 0
    assert not np.array_equal(whole, bootstrap(sweeps, draws=30, groups=np.tile(np.arange(7), 4), seed=1).draws["C"])


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
    with pytest.raises(InputError, match="groups has one label: draws of one group are all the same"):
        bootstrap(linear, groups=["a"] * 28)
    for draws in (0, 2.5, -1):
        with pytest.raises(InputError, match=f"draws={draws}: must be a whole number of at least 1"):
            bootstrap(linear, draws=draws)
    with pytest.raises(InputError, match="by='N': 0 rows are left without the largest"):
        leave_largest_out(fit(LAW, {"N": [1e9] * 4, "M": [1, 2, 4, 8]}, [3.0, 3.1, 3.2, 3.4], fixed={"alpha": -0.1}))
    with pytest.raises(InputError, match="by='D': A N\\^alpha M\\^beta has the inputs N, M"):
        leave_largest_out(linear, by="D")

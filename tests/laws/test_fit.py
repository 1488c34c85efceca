"""The fitter against published constants, scipy, brute force and closed forms; and every refusal."""

import ast
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from jaxlab.config import InputError
from jaxlab.laws import chinchilla, diloco
from jaxlab.laws.fit import Law, Parameter, at_end, covariance, fit, starting_points
from jaxlab.laws.resample import bootstrap, refit
from tests.laws import designs

BASE = chinchilla.PARAMETRIC


@pytest.fixture(scope="module")
def besiroglu():
    return fit(BASE, *designs.chinchilla_points(), starts=500)


def test_published_chinchilla_constants(besiroglu):
    """Besiroglu et al.'s method on Epoch AI's points: the constants that it gives, to 0.002 (A and B to 2 %)."""
    p = besiroglu.params
    assert [p[k] for k in ("E", "alpha", "beta")] == pytest.approx([1.8172, 0.3473, 0.3672], abs=0.002)
    assert [p["A"], p["B"]] == pytest.approx([478, 2143], rel=0.02)
    assert [p[k] for k in ("E", "alpha", "beta")] == pytest.approx([1.8172, 0.3478, 0.3658], abs=0.002)  # their table
    intervals = bootstrap(besiroglu, draws=200).intervals
    for name, value in {"E": 1.8172, "alpha": 0.3473, "beta": 0.3672, "A": 478, "B": 2143}.items():
        assert intervals[name][0] < value < intervals[name][1]
        assert besiroglu.interval(name)[0] < value < besiroglu.interval(name)[1]
    assert besiroglu.warning == ""


def test_outliers_matter():
    """With all 245 points E is 1.891 and beta 0.453: the five that Besiroglu et al. drop decide."""
    p = fit(BASE, *designs.chinchilla_points(dropped=0)).params
    assert [p["E"], p["beta"]] == pytest.approx([1.891, 0.453], abs=0.001)


def test_scipy_finds_nothing_lower(besiroglu):
    """scipy's least_squares has the same Huber loss; started beside the optimum it comes back to it."""
    inputs, loss = designs.chinchilla_points()

    def residuals(theta):
        e, a, alpha, b, beta = np.exp(theta)
        return np.log(e + a / inputs["N"] ** alpha + b / inputs["D"] ** beta) - np.log(loss)

    options = {"loss": "huber", "f_scale": 1e-3, "x_scale": "jac", "xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    for seed in range(3):
        start = besiroglu.theta + 0.05 * np.random.default_rng(seed).standard_normal(5)
        peer = optimize.least_squares(residuals, start, max_nfev=5000, **options)
        assert besiroglu.value <= peer.cost * (1 + 1e-12)
        assert peer.cost == pytest.approx(besiroglu.value, rel=1e-6)
    np.testing.assert_allclose(residuals(besiroglu.theta), besiroglu.residuals, atol=1e-12)


def synthetic(noise: float, seed: int = 0):
    inputs = designs.tokens_per_parameter()
    exact = BASE(chinchilla.BESIROGLU, inputs)
    return inputs, exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(exact)))


def test_least_squares_is_curve_fit():
    """Parameters, covariance and R^2 of least squares against scipy.optimize.curve_fit."""
    inputs, loss = synthetic(0.003)
    found = fit(BASE, inputs, loss, objective="least_squares")

    def log_loss(x, *theta):
        e, a, alpha, b, beta = np.exp(theta)
        return np.log(e + a / x["N"] ** alpha + b / x["D"] ** beta)

    theta, cov = optimize.curve_fit(log_loss, inputs, np.log(loss), p0=BASE.theta(chinchilla.BESIROGLU), xtol=1e-14)
    np.testing.assert_allclose(found.theta, theta, atol=1e-6)
    np.testing.assert_allclose(found.covariance, cov, rtol=1e-3)
    np.testing.assert_allclose([found.stderr[k] for k in BASE.names], np.exp(theta) * np.sqrt(np.diag(cov)), rtol=1e-3)
    assert found.r2 == pytest.approx(np.corrcoef(log_loss(inputs, *theta), np.log(loss))[0, 1] ** 2, abs=1e-4)


@pytest.mark.parametrize("objective", ["huber", "least_squares"])
def test_covariance_is_the_spread_of_refits(objective):
    """Standard errors at the truth against the spread of 600 refits to fresh normal noise, to 10 % (3 % sampling error;
    at five times delta the Huber fit is close to least absolute values, whose error needs the density at 0)."""
    inputs, _ = synthetic(0)
    exact = BASE(chinchilla.BESIROGLU, inputs)
    draws = exact * np.exp(0.005 * np.random.default_rng(2).standard_normal((600, len(exact))))
    fitted = fit(BASE, inputs, exact, objective=objective)
    spread = refit(fitted, np.ones_like(draws), draws).std(0)
    errors = [list(fit(BASE, inputs, y, objective=objective, starts=8).stderr.values()) for y in draws[:20]]
    relative = np.mean(errors, axis=0) / np.array(list(chinchilla.BESIROGLU.values()))
    np.testing.assert_allclose(relative[[0, 2, 4]], spread[[0, 2, 4]], rtol=0.1)


def test_criteria_of_normal_errors():
    """AIC and BIC of least squares are the normal likelihood's, the error's variance counted as a parameter."""
    inputs, loss = synthetic(0.003)
    found = fit(BASE, inputs, loss, objective="least_squares")
    density = stats.norm(scale=np.sqrt(np.mean(found.residuals**2))).logpdf(found.residuals).sum()
    assert found.aic == pytest.approx(-2 * density + 2 * 6, rel=1e-6)
    assert found.bic == pytest.approx(-2 * density + np.log(60) * 6, rel=1e-6)


def test_criteria_of_laplace_errors():
    """With a tiny delta the Huber density is Laplace's."""
    inputs, loss = synthetic(0.003)
    found = fit(BASE, inputs, loss, delta=1e-7)
    density = stats.laplace(scale=np.mean(np.abs(found.residuals))).logpdf(found.residuals).sum()
    assert found.aic == pytest.approx(-2 * density + 2 * 6, rel=1e-3)


def test_criteria_between_normal_and_laplace():
    """At a delta of the errors' size: minus twice the log likelihood of exp(-Huber / s) / Z(s), Z by quadrature, s by
    search; two parameters and s count."""
    x = np.linspace(0.1, 2, 12)
    y = 0.3 * x + 0.1 + 0.01 * np.random.default_rng(0).standard_normal(12)
    found = fit(SHARE, {"x": x}, y, delta=0.01, space="linear")

    def huber(r):
        return np.where(np.abs(r) <= 0.01, r**2 / 2, 0.01 * (np.abs(r) - 0.005))

    def deviance(log_s):
        s = np.exp(log_s)
        z = 2 * integrate.quad(lambda r: np.exp(-huber(r) / s), 0, 1, points=[0.01], limit=400)[0]
        return 2 * np.sum(huber(found.residuals)) / s + 2 * 12 * np.log(z)

    assert found.value == pytest.approx(np.sum(huber(found.residuals)), rel=1e-12)
    best = optimize.minimize_scalar(deviance, bounds=(-14, -6), method="bounded", options={"xatol": 1e-9}).fun
    assert found.aic == pytest.approx(best + 2 * 3, abs=1e-4)
    assert found.bic == pytest.approx(best + np.log(12) * 3, abs=1e-4)


def test_covariance_by_hand():
    """A mean of five residuals -3, -1, 0.1, 1, 2. Least squares: RSS / 4 / 5 = 0.75050. Huber with delta 1: mean psi^2
    0.802 x 5 / 4; the window of the four larger ones 1.4826 x 1.5 x 5^-0.2 = 1.611839, over which psi rises by 0,
    1.611839, 1.611839, 0.611839, so that its slope is 3.835517 / (4 x 2 x 1.611839) = 0.297448; in all 2.266167."""
    ones, residuals = np.ones((5, 1)), np.array([-3, -1, 0.1, 1, 2])
    assert covariance(ones, residuals, np.inf) == pytest.approx(np.array([[15.01 / 4 / 5]]))
    assert covariance(ones, residuals, 1.0) == pytest.approx(np.array([[2.266167]]), rel=1e-5)


def test_covariance_of_what_is_not_seen():
    """Two columns that are the same: infinite errors of both, none of the third."""
    columns = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 2.0]])
    found = np.diag(covariance(columns, np.array([0.1, -0.1, 0.2, -0.2]), np.inf))
    assert np.isinf(found[:2]).all()
    assert found[2] == pytest.approx(0.1 / 1 / 5)  # RSS / (4 - 3) / (1^2 + 2^2)


def test_r2_by_hand():
    """In linear space around the mean: 1 - RSS / 0.05 of y = 0.1, 0.3, 0.2, 0.4; nan where y never changes."""
    y = np.array([0.1, 0.3, 0.2, 0.4])
    found = fit(SHARE, {"x": [1, 2, 3, 4]}, y, space="linear", objective="least_squares")
    assert found.r2 == pytest.approx(1 - np.sum(found.residuals**2) / 0.05, rel=1e-9)
    assert found.r2 == pytest.approx(np.corrcoef([1, 2, 3, 4], y)[0, 1] ** 2, rel=1e-6)
    assert np.isnan(fit(SHARE, {"x": [1, 2, 3, 4]}, [0.5] * 4).r2)


def test_seed_of_the_starts():
    """Other seeds draw other points of the grid, the same seed the same."""
    inputs, loss = synthetic(0.003)
    first, same, other = (starting_points(BASE, inputs, loss, 16, {}, seed) for seed in (0, 0, 1))
    assert first.shape == (16, 5)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    ends = [fit(BASE, inputs, loss, starts=4, seed=seed).ends for seed in (0, 0, 1)]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])


def test_at_another_end():
    """Parameters and objective are those of the end that is named."""
    inputs, loss = synthetic(0.003)
    found = fit(BASE, inputs, loss, starts=80)
    last = at_end(found, 79)  # far off: no error is known there, nor pretended
    np.testing.assert_array_equal(last.theta, found.ends[79])
    np.testing.assert_array_equal(last.ends[1], found.ends[0])
    assert last.undetermined == BASE.names
    r = np.log(BASE(BASE.natural(found.ends[79]), inputs) / loss)
    np.testing.assert_allclose(last.residuals, r, atol=1e-12)
    assert last.value == pytest.approx(np.sum(np.where(np.abs(r) <= 1e-3, r**2 / 2, 1e-3 * (np.abs(r) - 5e-4))))
    assert last.value >= found.value


WEIGHTS = np.random.default_rng(5).uniform(0.2, 5, 60)


def test_weights_of_least_squares_are_curve_fits():
    """Parameters and covariance of scipy's sigma = weight^-1/2; the likelihood of errors with these variances; a
    multiple of all weights changes nothing."""
    inputs, loss = synthetic(0.003)
    found = fit(BASE, inputs, loss, objective="least_squares", weights=WEIGHTS)

    def log_loss(x, *theta):
        e, a, alpha, b, beta = np.exp(theta)
        return np.log(e + a / x["N"] ** alpha + b / x["D"] ** beta)

    start = BASE.theta(chinchilla.BESIROGLU)
    theta, cov = optimize.curve_fit(log_loss, inputs, np.log(loss), p0=start, sigma=WEIGHTS**-0.5, xtol=1e-14)
    np.testing.assert_allclose(found.theta, theta, atol=1e-5)
    np.testing.assert_allclose(found.covariance, cov, rtol=1e-3)
    np.testing.assert_allclose(found.residuals, log_loss(inputs, *theta) - np.log(loss), atol=1e-6)
    w = WEIGHTS / WEIGHTS.mean()
    scale = np.sqrt(np.mean(w * found.residuals**2) / w)
    assert found.aic == pytest.approx(-2 * stats.norm(scale=scale).logpdf(found.residuals).sum() + 2 * 6, rel=1e-6)
    centre = np.sum(w * np.log(loss)) / np.sum(w)
    assert found.r2 == pytest.approx(1 - np.sum(w * found.residuals**2) / np.sum(w * (np.log(loss) - centre) ** 2))
    again = fit(BASE, inputs, loss, objective="least_squares", weights=1e6 * WEIGHTS)
    np.testing.assert_allclose(again.theta, found.theta, atol=1e-9)


def test_weights_of_a_huber_fit_are_scipys():
    inputs, loss = synthetic(0.003)
    found = fit(BASE, inputs, loss, weights=WEIGHTS)
    root = np.sqrt(WEIGHTS / WEIGHTS.mean())

    def residuals(theta):
        e, a, alpha, b, beta = np.exp(theta)
        return root * np.log((e + a / inputs["N"] ** alpha + b / inputs["D"] ** beta) / loss)

    options = {"loss": "huber", "f_scale": 1e-3, "x_scale": "jac", "xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    peer = optimize.least_squares(residuals, found.theta + 0.01, max_nfev=5000, **options)
    assert found.value == pytest.approx(peer.cost, rel=1e-6)
    np.testing.assert_allclose(found.theta, peer.x, atol=1e-3)


def test_bounds():
    """E, 1.82 without bounds, at most 1.7: it stands there, said and without an error; the others are those of E held
    at 1.7. A range around the optimum changes nothing."""
    inputs, loss = synthetic(0.003)
    bounded = fit(BASE, inputs, loss, objective="least_squares", bounds={"E": (None, 1.7)})
    fixed = fit(BASE, inputs, loss, objective="least_squares", fixed={"E": 1.7})
    np.testing.assert_allclose(bounded.theta, fixed.theta, atol=1e-6)
    assert bounded.undetermined == ("E",)
    assert bounded.warning == "chinchilla: 60 points do not determine E (1.7, its bound)"
    assert bounded.interval("E") == (0.0, np.inf)
    np.testing.assert_allclose(bounded.covariance[1:, 1:] * (60 - 4), fixed.covariance[1:, 1:] * (60 - 4), rtol=1e-3)
    plain = fit(BASE, inputs, loss, objective="least_squares")
    wide = fit(BASE, inputs, loss, objective="least_squares", bounds={"E": (1.5, 2.0), "alpha": (0, 1)})
    np.testing.assert_allclose(wide.theta, plain.theta, atol=1e-7)
    assert wide.warning == ""
    low = fit(BASE, inputs, loss, objective="least_squares", bounds={"alpha": (0.4, 0.9), "beta": (0.4, 0.9)})
    assert all(low.params[k] >= 0.4 * (1 - 1e-12) for k in ("alpha", "beta"))

    def residuals(theta):
        return np.log(BASE(BASE.natural(theta), inputs) / loss)

    start, least = BASE.theta(chinchilla.BESIROGLU | {"alpha": 0.5, "beta": 0.5}), np.log([1e-9, 1e-9, 0.4, 1e-9, 0.4])
    peer = optimize.least_squares(residuals, start, bounds=(least, np.inf), x_scale="jac", xtol=1e-14, ftol=1e-14)
    assert low.value == pytest.approx(peer.cost, rel=1e-5)


def test_as_many_points_as_parameters():
    """The law goes through them; nothing says how well they determine it."""
    found = fit(SHARE, {"x": [1.0, 2.0]}, [0.4, 0.7])
    assert (found.params["share"], found.params["offset"]) == pytest.approx((0.3, 0.1), rel=1e-6)
    assert found.undetermined == ("share", "offset")
    assert found.warning == "share: 2 points do not determine share (0.3), offset (0.1)"
    assert (found.interval("share"), found.interval("offset")) == ((0.0, 1.0), (0.0, np.inf))
    assert found.interval(lambda p: p["share"] + p["offset"]) == (0.0, np.inf)
    assert [float(end[0]) for end in found.prediction({"x": [3.0]}, new=True)] == [0.0, np.inf]
    assert np.isnan(found.aic)
    assert np.isnan(found.bic)


def test_all_parameters_held():
    found = fit(SHARE, {"x": [1.0, 2.0, 3.0]}, [0.4, 0.7, 1.1], fixed={"share": 0.3, "offset": 0.1})
    assert found.residuals == pytest.approx(np.log([1, 1, 1 / 1.1]), abs=1e-9)
    assert (found.undetermined, found.interval("share")) == ((), (pytest.approx(0.3), pytest.approx(0.3)))


def test_interval_level():
    """Half of the time within t's quartiles."""
    found = fit(BASE, *synthetic(0.003))
    width = stats.t.ppf(0.75, 55) * np.sqrt(found.covariance[2, 2])
    assert np.log(found.interval("alpha", 0.5)) == pytest.approx(found.theta[2] + width * np.array([-1, 1]), rel=1e-9)
    with pytest.raises(InputError, match=r"level=95: must be between 0 and 1"):
        found.interval("alpha", 95)
    with pytest.raises(InputError, match="'gamma': chinchilla has the parameters E, A, alpha, B, beta"):
        found.interval("gamma")
    with pytest.raises(InputError, match=r"the quantity is -1\.8.* needs it above 0"):
        found.interval(lambda p: -p["E"])


def test_prediction_is_the_interval_of_the_law_there():
    """The delta method by central differences of the law; a new observation has the errors' variance, RSS / 55, too."""
    inputs, loss = synthetic(0.003)
    found, there = fit(BASE, inputs, loss, objective="least_squares"), {"N": [1e9, 1e11], "D": [2e10, 1e13]}
    low, high = found.prediction(there, 0.9)
    nlow, nhigh = found.prediction(there, 0.9, new=True)
    for i in range(2):
        at = {name: column[i] for name, column in there.items()}
        assert (low[i], high[i]) == pytest.approx(found.interval(lambda p, at=at: float(BASE(p, at)), 0.9), rel=1e-6)
        half = np.log(high[i] / low[i]) / 2
        extra = stats.t.ppf(0.95, 55) ** 2 * np.sum(found.residuals**2) / 55
        assert np.log(nhigh[i] / nlow[i]) / 2 == pytest.approx(np.sqrt(half**2 + extra), rel=1e-6)
        assert low[i] * high[i] == pytest.approx(float(found.predict(at)) ** 2)
    with pytest.raises(InputError, match=r"row 1 \(N=-1, D=1\): chinchilla is nan there"):
        found.prediction({"N": [1.0, -1.0], "D": [1.0, 1.0]})
    with pytest.raises(InputError, match="input 'D', row 0: 'x' is not a number"):
        found.prediction({"N": [1.0], "D": ["x"]})
    linear = fit(
        SHARE, {"x": np.arange(1.0, 9)}, np.arange(1.0, 9) + WEIGHTS[:8], space="linear", objective="least_squares"
    )
    slope, far = stats.linregress(np.arange(1.0, 9), np.arange(1.0, 9) + WEIGHTS[:8]), 20.0
    assert slope.slope < 1  # inside the unit interval
    s2 = np.sum(linear.residuals**2) / 6
    width = stats.t.ppf(0.975, 6) * np.sqrt(s2 * (1 / 8 + (far - 4.5) ** 2 / 42))
    ends = slope.intercept + far * slope.slope + width * np.array([-1, 1])
    assert [float(end[0]) for end in linear.prediction({"x": [far]})] == pytest.approx(ends, rel=1e-5)


def test_interval_of_a_function():
    """The delta method of a product of powers is exact: log (A^2 / B) is linear in theta."""
    found = fit(BASE, *synthetic(0.003))
    slope = np.array([0, 2, 0, -1, 0])
    width = stats.t.ppf(0.975, 55) * np.sqrt(slope @ found.covariance @ slope)
    ends = found.interval(lambda p: p["A"] ** 2 / p["B"])
    assert np.log(ends) == pytest.approx(slope @ found.theta + width * np.array([-1, 1]), rel=1e-6)


def test_linear_space():
    """In linear space the residuals are the loss's own, and the optimum is scipy's."""
    inputs, loss = synthetic(0.003)
    found = fit(BASE, inputs, loss, objective="least_squares", space="linear")
    np.testing.assert_allclose(found.residuals, found.predict(inputs) - loss, atol=1e-12)

    def residuals(theta):
        return BASE(BASE.natural(theta), inputs) - loss

    peer = optimize.least_squares(residuals, BASE.theta(chinchilla.BESIROGLU), x_scale="jac", xtol=1e-14, ftol=1e-14)
    np.testing.assert_allclose(found.theta, peer.x, atol=1e-5)


def test_held_parameters():
    """A held parameter keeps its value and has no error; the others are those of the smaller law."""
    inputs, loss = synthetic(0.003)
    found = fit(BASE, inputs, loss, objective="least_squares", fixed={"E": 1.8, "alpha": 0.35})
    assert (found.params["E"], found.params["alpha"]) == pytest.approx((1.8, 0.35), rel=1e-15)
    assert np.isnan(found.stderr["E"])

    def log_loss(x, a, b, beta):
        return np.log(1.8 + np.exp(a) / x["N"] ** 0.35 + np.exp(b) / x["D"] ** np.exp(beta))

    theta, cov = optimize.curve_fit(log_loss, inputs, np.log(loss), p0=[6.2, 7.6, -1], xtol=1e-14)
    np.testing.assert_allclose(found.theta[[1, 3, 4]], theta, atol=1e-6)
    np.testing.assert_allclose(found.covariance[np.ix_([1, 3, 4], [1, 3, 4])], cov, rtol=1e-3)


def test_undetermined_parameters_are_named():
    """Without repeated tokens nothing says how fast they decay."""
    inputs = designs.repeated()
    inputs["D"] = inputs["U"] = inputs["U"] * np.linspace(1, 1.3, len(inputs["U"]))
    found = fit(chinchilla.REPEATED, inputs, chinchilla.REPEATED(chinchilla.MUENNIGHOFF, inputs), starts=64)
    assert "R_D" in found.undetermined
    assert "R_D" in found.warning
    assert found.interval("R_D") == (0.0, np.inf)
    assert np.isfinite(found.interval("beta")).all()


def test_data_of_the_same_length_compile_once():
    """Another data set, another number of starts, a bootstrap: all run in the first fit's program."""
    from jaxlab.laws import solve

    first = fit(BASE, *synthetic(0.003))
    compiled = solve._descend._cache_size()
    fit(BASE, *synthetic(0.003, seed=1), starts=10, delta=1e-2)
    bootstrap(first, draws=100)
    assert solve._descend._cache_size() == compiled


def _refused(inputs=None, y=None, **options):
    good, loss = synthetic(0.003)
    return lambda: fit(BASE, good if inputs is None else good | inputs, loss if y is None else y, **options)


N = designs.tokens_per_parameter()["N"]
BAD_Y = np.full(60, 3.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (_refused(objective="l1"), "objective='l1': must be huber or least_squares"),
        (_refused(space="sqrt"), "space='sqrt': must be log or linear"),
        (_refused(delta=0.0), "delta=0.0: must be above 0"),
        (_refused(starts=0), "starts=0: must be at least 1, a whole number"),
        (_refused(fixed={"C": 1.0}), "fixed='C': chinchilla has the parameters E, A, alpha, B, beta"),
        (_refused(y=np.where(np.arange(60) == 7, np.nan, BAD_Y)), "y, row 7: nan must be finite and above 0"),
        (_refused(y=np.where(np.arange(60) == 9, -1.0, BAD_Y)), "y, row 9: -1.0 must be finite and above 0"),
        (_refused(y=np.ones((60, 1))), "y has shape (60, 1): must be one column"),
        (_refused({"N": np.where(np.arange(60) == 3, np.inf, N)}), "input 'N', row 3: inf must be finite"),
        (_refused({"N": N[:-1]}), "input 'N' has shape (59,): must be that of y, (60,)"),
        (_refused({"N": 1e9 * N**0}), "input 'N' is 1e+09 in every row: it has to vary to determine chinchilla"),
        (lambda: fit(BASE, {"N": N}, BAD_Y), "input 'D' is missing: chinchilla needs N, D"),
        (lambda: fit(BASE, {"N": N[:4], "D": N[:4]}, BAD_Y[:4]), "4 points: chinchilla has 5 parameters to fit"),
        (
            _refused({"N": np.where(np.arange(60) == 5, -1, N)}),
            "chinchilla: not finite at any of 256 starts, row 5 (N=-1, D=1.12e+10): are these the law's units?",
        ),
        (
            _refused({"D": np.where(np.arange(60) == 4, 0, N)}),
            "chinchilla: not finite at any of 256 starts, row 4 (N=7e+07, D=0): are these the law's units?",
        ),
        (_refused(y=[*BAD_Y[:58], "3.1", 3.0]), "y, row 58: '3.1' is not a number"),
        (_refused(y=[*BAD_Y[:58], None, 3.0]), "y, row 58: 'None' is not a number"),
        (_refused(y=[*BAD_Y[:58], [1, 2], 3.0]), "y, row 58: '[1, 2]' is not a number"),
        (_refused(y=[*BAD_Y[:58], 10**400, 3.0]), f"y, row 58: '1{'0' * 59}' is not a number"),
        (_refused(y=BAD_Y > 0), "y, row 0: 'True' is not a number"),
        (_refused({"N": [], "D": []}, y=[]), "y is empty: must have a value in each row"),
        (_refused(weights=WEIGHTS[1:]), "weights has shape (59,): must be that of y, (60,)"),
        (_refused(weights=WEIGHTS - WEIGHTS[2]), f"weights, row {np.argmax(WEIGHTS[2] >= WEIGHTS)}: {{}} must be"),
        (_refused(fixed={"E": -1.0}), "fixed='E': -1.0 must be between 0 and inf"),
        (_refused(fixed={"E": np.nan}), "fixed='E': nan must be between 0 and inf"),
        (_refused(fixed={"E": "1"}), "fixed='E': '1' must be between 0 and inf"),
        (_refused(bounds={"C": (0, 1)}), "bounds='C': chinchilla has the parameters E, A, alpha, B, beta to fit"),
        (
            _refused(bounds={"E": (0, 1)}, fixed={"E": 1.0}),
            "bounds='E': chinchilla has the parameters A, alpha, B, beta to fit",
        ),
        (_refused(bounds={"E": (2, 1)}), "bounds='E': (2, 1) must rise, within (0, inf)"),
        (_refused(bounds={"E": (-2, -1)}), "bounds='E': (-2, -1) must rise, within (0, inf)"),
        (_refused(bounds={"E": (np.nan, 1)}), "bounds='E': (nan, 1) must rise, within (0, inf)"),
        (_refused(bounds={"E": 1}), "bounds='E': 1 must be two numbers, (low, high), None for none"),
        (_refused(starts=2.5), "starts=2.5: must be at least 1, a whole number"),
        (_refused(delta=np.nan), "delta=nan: must be above 0"),
    ],
)
def test_refusals(call, says):
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert message == says or ("{}" in says and message.startswith(says.partition("{}")[0]))


def test_a_constant_input_that_costs_nothing_is_accepted():
    """One replica count leaves A N^alpha determined once beta is held."""
    inputs = designs.product(N=[diloco.size(*s) for s in diloco.SHAPES], M=[2])
    found = fit(diloco.FORMS[0], inputs, diloco.LOSS[2], objective="least_squares", fixed={"beta": 1e-9})
    line = stats.linregress(np.log(inputs["N"]), np.log(diloco.LOSS[2]))
    assert found.params["alpha"] == pytest.approx(line.slope, rel=1e-6)
    assert found.stderr["alpha"] == pytest.approx(line.stderr, rel=1e-4)


def test_a_new_law_is_one_function():
    """A law of one's own with a parameter in (0, 1), fitted exactly."""
    found = fit(SHARE, {"x": np.linspace(0.1, 2, 12)}, 0.3 * np.linspace(0.1, 2, 12) + 0.1)
    assert found.params["share"] == pytest.approx(0.3, abs=1e-9)


def _share(p, x):
    return p["share"] * x["x"] + p["offset"]


SHARE = Law("share", (Parameter("share", (0.1, 0.9), "unit"), Parameter("offset", (1.0,))), ("x",), _share)


def test_laws_stand_alone():
    """Nothing of the training side: jax, numpy, scipy, the standard library, and InputError."""
    allowed = ("jax", "numpy", "scipy", "collections", "dataclasses", "functools", "math", "typing")
    for path in (Path(__file__).parents[2] / "jaxlab" / "laws").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                ours = name.startswith("jaxlab.laws") or name == "jaxlab.config"
                assert ours or name.split(".")[0] in allowed, f"{path.name} imports {name}"

"""The fitter against published constants, scipy, brute force and closed forms; and every refusal."""

import ast
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, stats

from jaxlab.config import InputError
from jaxlab.laws import chinchilla, diloco
from jaxlab.laws.fit import Law, Parameter, fit
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
        (_refused(starts=0), "starts=0: must be at least 1"),
        (_refused(fixed={"C": 1.0}), "fixed='C': chinchilla has the parameters E, A, alpha, B, beta"),
        (_refused(y=np.where(np.arange(60) == 7, np.nan, BAD_Y)), "y, row 7: nan must be finite and above 0"),
        (_refused(y=np.where(np.arange(60) == 9, -1.0, BAD_Y)), "y, row 9: -1.0 must be finite and above 0"),
        (_refused(y=np.ones((60, 1))), "y has shape (60, 1): must be one column"),
        (_refused({"N": np.where(np.arange(60) == 3, np.inf, N)}), "input 'N', row 3: inf must be finite"),
        (_refused({"N": N[:-1]}), "input 'N' has shape (59,): must be that of y, (60,)"),
        (_refused({"N": 1e9 * N**0}), "input 'N' is 1e+09 in every row: it has to vary to determine chinchilla"),
        (lambda: fit(BASE, {"N": N}, BAD_Y), "input 'D' is missing: chinchilla needs N, D"),
        (lambda: fit(BASE, {"N": N[:4], "D": N[:4]}, BAD_Y[:4]), "4 points: chinchilla has 5 parameters to fit"),
        (_refused({"N": -N}), "chinchilla: not finite at any of 256 starts: are the inputs in the law's units?"),
    ],
)
def test_refusals(call, says):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value) == says


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

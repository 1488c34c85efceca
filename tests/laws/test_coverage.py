"""Every law, on data made from it with noise: do the intervals of `fit` contain the truth as often as they say?"""

import numpy as np
import pytest
from scipy import stats

from jaxlab.laws import solve
from jaxlab.laws.fit import _describe, covariance, fit
from jaxlab.laws.lines import parabola, power_law
from jaxlab.laws.resample import refit
from tests.laws import designs

CASES = designs.noisy_cases()


@pytest.mark.slow
@pytest.mark.parametrize(("law", "truth", "inputs", "noise"), CASES, ids=[case[0].name for case in CASES])
def test_intervals_contain_the_truth(law, truth, inputs, noise):
    """100 draws of normal noise in log y: the default fit's 95 % intervals cover in at least 90 % on average over the
    parameters, and in 85 % for each of them (a share of 100 draws has a standard error of 2.2 %; 90 parameters)."""
    exact, theta = law(truth, inputs), law.theta(truth)
    fitted = fit(law, inputs, exact)
    np.testing.assert_allclose(fitted.theta, theta, atol=1e-8)  # without noise the grid's starts find the truth
    noisy = exact * np.exp(noise * np.random.default_rng(0).standard_normal((100, len(exact))))
    found = refit(fitted, np.ones_like(noisy), noisy)
    ends = solve.descend(law, "log", fitted.problem._replace(y=noisy), found, 1)
    errors = np.sqrt(np.diagonal(covariance(ends.jacobian, ends.residuals, fitted.problem.delta), axis1=1, axis2=2))
    width = stats.t.ppf(0.975, len(exact) - len(theta)) * errors
    covered = np.mean(np.abs(found - theta) <= width, axis=0)
    assert covered.mean() >= 0.9, dict(zip(law.names, covered, strict=True))
    assert covered.min() >= 0.85, dict(zip(law.names, covered, strict=True))


def test_interval_is_the_covered_one():
    """`Fit.interval` is theta +- t sqrt(covariance), mapped back: what the test above counts."""
    law, truth, inputs, noise = CASES[3]
    exact = law(truth, inputs)
    fitted = fit(law, inputs, exact * np.exp(noise * np.random.default_rng(1).standard_normal(len(exact))))
    for i, name in enumerate(law.names):
        width = stats.t.ppf(0.975, len(exact) - 4) * np.sqrt(fitted.covariance[i, i])
        ends = fitted.theta[i] + width * np.array([-1, 1])
        expected = ends if law.parameters[i].transform == "real" else np.exp(ends)
        np.testing.assert_allclose(fitted.interval(name), expected, rtol=1e-12)


@pytest.mark.parametrize(("objective", "least"), [("least_squares", 0.88), ("huber", 0.86)])
def test_predictions_cover(objective, least):
    """The parametric law at the largest run and ten times beyond it, 100 draws of normal noise: the law itself, and
    one new observation, lie in their 95 % intervals (a share has a standard error of 2.2 %)."""
    law, truth, inputs, noise = CASES[0]
    rng, there = np.random.default_rng(0), {"N": [1e10, 1e11], "D": [1.6e12, 1.6e13]}
    exact, at = law(truth, inputs), law(truth, there)
    fitted = fit(law, inputs, exact, objective=objective)
    noisy = exact * np.exp(noise * rng.standard_normal((100, len(exact))))
    covered = np.zeros((2, 2))
    for y, theta in zip(noisy, refit(fitted, np.ones_like(noisy), noisy), strict=True):
        found = _describe(law, objective, "log", fitted.problem._replace(y=y), theta[None])
        for kind, value in enumerate((at, at * np.exp(noise * rng.standard_normal(2)))):
            low, high = found.prediction(there, new=bool(kind))
            covered[kind] += (low <= value) & (value <= high)
    assert np.all(covered >= 100 * least), covered


def test_lines_cover():
    """Exact t intervals: 1,000 draws of 8 widths, shares within 3 standard errors (0.7 %) of 95 %."""
    rng, widths = np.random.default_rng(0), 768.0 * np.arange(1, 9)
    slopes, minima, means, news = 0, 0, 0, 0
    for _ in range(1000):
        line = power_law({"D": widths}, 3 * widths**0.66 * np.exp(0.05 * rng.standard_normal(8)))
        low, high = line.interval("D")
        slopes += low <= 0.66 <= high
        (low,), (high,) = line.prediction({"D": [2e4]})
        means += low <= 3 * 2e4**0.66 <= high
        (low,), (high,) = line.prediction({"D": [2e4]}, new=True)
        news += low <= 3 * 2e4**0.66 * np.exp(0.05 * rng.standard_normal()) <= high
        batch = 2.0 ** np.arange(14, 22)
        low, high = parabola(batch, 3 + 0.01 * (np.log2(batch) - 17.3) ** 2 + 0.003 * rng.standard_normal(8)).interval()
        minima += low <= 2**17.3 <= high
    assert 929 <= slopes <= 971
    assert 929 <= means <= 971
    assert 929 <= news <= 971
    assert 929 <= minima <= 971

"""The parametric law's consequences against numerical minimisation; IsoFLOP, envelope, repeated data; public runs."""

import numpy as np
import pytest
from scipy import optimize

from jaxlab.config import InputError
from jaxlab.laws import chinchilla
from jaxlab.laws.fit import fit
from jaxlab.laws.lines import power_law
from jaxlab.laws.resample import leave_largest_out
from tests.laws import designs

TRUTH = chinchilla.BESIROGLU


@pytest.mark.parametrize("constants", [chinchilla.BESIROGLU, chinchilla.HOFFMANN])
def test_allocation_minimises_loss(constants):
    """(N, D) of lowest loss on 6 N D = C, by golden section on log N."""
    for compute in (1e19, 5.76e23):

        def loss(log_n, compute=compute):
            n = np.exp(log_n)
            return chinchilla.PARAMETRIC(constants, {"N": n, "D": compute / (6 * n)})

        best = np.exp(optimize.minimize_scalar(loss, bracket=(15, 30), tol=1e-12).x)
        n, d = chinchilla.allocation(constants, compute)
        assert n == pytest.approx(best, rel=1e-4)
        assert 6 * n * d == pytest.approx(compute, rel=1e-12)


def test_published_exponents():
    """Hoffmann et al. table 2, approach 3: a = 0.46 (0.454 to 0.455 printed), b = 0.54; Besiroglu et al.: a = 0.512."""
    assert chinchilla.exponents(chinchilla.HOFFMANN) == pytest.approx((0.452, 0.548), abs=6e-4)
    assert chinchilla.exponents(TRUTH)[0] == pytest.approx(0.512, abs=1e-3)


def test_isoflop_finds_the_allocation():
    """Approach 2 on the law's own loss: minimisers within 3 % (the loss is no parabola), slope a within 0.005."""
    budgets = np.geomspace(1e18, 1e22, 5)
    compute, size = [], []
    for c in budgets:
        best, _ = chinchilla.allocation(TRUTH, c)
        compute += [c] * 7
        size += list(best * np.geomspace(0.5, 2, 7))
    compute, size = np.array(compute), np.array(size)
    loss = chinchilla.PARAMETRIC(TRUTH, {"N": size, "D": compute / (6 * size)})
    found = chinchilla.isoflop(compute, size, loss)
    minimisers = np.array([q.minimiser for q in found.values()])
    np.testing.assert_allclose(minimisers, chinchilla.allocation(TRUTH, budgets)[0], rtol=0.03)
    line = power_law({"C": list(found)}, minimisers)
    assert line.exponents["C"] == pytest.approx(chinchilla.exponents(TRUTH)[0], abs=0.005)


def test_isoflop_names_the_budget():
    with pytest.raises(InputError, match=r"C=1e\+18: 2 distinct x: a parabola needs 3"):
        chinchilla.isoflop([1e18] * 2, [1e8, 2e8], [3.0, 3.1])


def test_envelope_finds_the_allocation():
    """Approach 1 on curves of 60 sizes: the lowest curve's size is the optimum to half a grid step, slope a to 0.01."""
    sizes = np.geomspace(1e7, 1e10, 60)
    run = np.repeat(np.arange(60), 200)
    compute = np.tile(np.geomspace(1e17, 1e22, 200), 60)
    loss = chinchilla.PARAMETRIC(TRUTH, {"N": sizes[run], "D": compute / (6 * sizes[run])})
    budgets, best, lowest = chinchilla.envelope(run, compute, loss)
    inside = (best > 0) & (best < 59)
    optimum = chinchilla.allocation(TRUTH, budgets[inside])[0]
    step = np.log(sizes[1] / sizes[0])
    assert np.abs(np.log(sizes[best[inside]] / optimum)).max() <= 0.55 * step
    line = power_law({"C": budgets[inside]}, sizes[best[inside]])
    assert line.exponents["C"] == pytest.approx(chinchilla.exponents(TRUTH)[0], abs=0.01)
    assert np.all(np.diff(lowest) < 0)


def test_envelope_extends_no_curve():
    """Two curves with a gap between them: budgets in the gap are left out."""
    budgets, run, _ = chinchilla.envelope(["a", "a", "b", "b"], [1e3, 1e4, 1e6, 1e7], [3.0, 2.0, 1.5, 1.0], points=9)
    assert list(run) == ["a"] * 3 + ["b"] * 3
    np.testing.assert_allclose(budgets, [1e3, 10**3.5, 1e4, 1e6, 10**6.5, 1e7])


def test_effective_data():
    """One epoch counts in full; four are worth almost as much as fresh ones; no number exceeds U (1 + R*)."""
    unique, decay = 1e9, chinchilla.MUENNIGHOFF["R_D"]
    assert chinchilla.effective_data(unique, 0.5e9, decay) == pytest.approx(0.5e9)
    assert chinchilla.effective_data(unique, 1e9, decay) == pytest.approx(1e9)
    assert 0.9 * 4e9 < chinchilla.effective_data(unique, 4e9, decay) < 4e9
    assert chinchilla.effective_data(unique, 1e13, decay) == pytest.approx(unique * (1 + decay), rel=1e-5)
    sum_of_epochs = unique * (1 + np.trapezoid(np.exp(-np.linspace(0, 9, 10_001) / decay), np.linspace(0, 9, 10_001)))
    assert chinchilla.effective_data(unique, 10e9, decay) == pytest.approx(sum_of_epochs, rel=1e-5)


def test_repeated_law_without_repeats_is_the_base_law():
    """U = D with no more parameters than D tokens are compute-optimally given."""
    p = chinchilla.MUENNIGHOFF
    size, tokens = chinchilla.allocation(p, 1e21)
    base = {k: p[k] for k in ("E", "A", "alpha", "B", "beta")}
    for n in (size, size / 3):
        repeated = chinchilla.REPEATED(p, {"N": n, "D": tokens, "U": tokens})
        assert repeated == pytest.approx(chinchilla.PARAMETRIC(base, {"N": n, "D": tokens}), abs=1e-6)
    excess = chinchilla.REPEATED(p, {"N": 1.5 * size, "D": tokens, "U": tokens})
    assert excess > chinchilla.PARAMETRIC(base, {"N": 1.5 * size, "D": tokens})


def test_repeated_runs():
    """Muennighoff et al.'s runs with more than 1e9 unique tokens, exponents held at theirs: their R*_D = 15.4 and
    R*_N = 5.3 lie inside the intervals, the largest model's losses are predicted to 2.5 % and without bias."""
    table = designs.published("datablations_repeat_runs.csv")
    columns = {"N": "params", "D": "tokens", "U": "unique_tokens"}
    inputs = {name: table[column].astype(float) for name, column in columns.items()}
    keep = inputs["U"] > 1e9
    inputs, loss = designs.rows(inputs, keep), table["val_loss"].astype(float)[keep]
    held = {k: chinchilla.MUENNIGHOFF[k] for k in ("alpha", "beta")}
    found = fit(chinchilla.REPEATED, inputs, loss, fixed=held)
    for name in ("R_D", "R_N"):
        low, high = found.interval(name)
        assert low < chinchilla.MUENNIGHOFF[name] < high
        assert high / low < 3
    assert 1.5 < found.params["E"] < 2.3
    assert found.warning == ""
    _, residuals = leave_largest_out(found)
    assert np.mean(np.abs(residuals)) < 0.025
    assert abs(np.median(residuals)) < 0.01


def test_gemstones():
    """Gemstones' cooled runs: signs and sizes as of other English data; the largest model's losses predicted to 3 %,
    the longest runs' to 2 %."""
    table = designs.published("gemstones_cool_end.jsonl")
    inputs = {"N": table["params_active_precise"], "D": table["tokens"]}
    found = fit(chinchilla.PARAMETRIC, inputs, table["final_loss"])
    assert 1.5 < found.params["E"] < 2.5
    assert 0.2 < found.params["alpha"] < 0.5
    assert 0.3 < found.params["beta"] < 0.8
    assert found.r2 > 0.95
    for by, bound in (("N", 0.03), ("D", 0.02)):
        _, residuals = leave_largest_out(found, by)
        assert np.mean(np.abs(residuals)) < bound

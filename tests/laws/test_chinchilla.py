"""The parametric law's consequences against numerical minimisation; IsoFLOP, envelope, repeated data; public runs."""

import numpy as np
import pytest
from scipy import optimize

from jaxlab.config import InputError
from jaxlab.laws import chinchilla
from jaxlab.laws.fit import fit
from jaxlab.laws.lines import power_law
from jaxlab.laws.resample import bootstrap, leave_largest_out
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


def sweeps(constants, budgets, multiples, wobble=0.0):
    """Runs (C, N, loss) at multiples of the best size, C up to `wobble` beside its budget, loss at its own C."""
    compute = np.repeat(budgets, len(multiples)) * np.exp(
        wobble * np.tile(np.linspace(-1, 1, len(multiples)), len(budgets))
    )
    size = np.ravel([chinchilla.allocation(constants, C)[0] * np.asarray(multiples) for C in budgets])
    return compute, size, chinchilla.PARAMETRIC(constants, {"N": size, "D": compute / (6 * size)})


BUDGETS = np.geomspace(1e18, 1e22, 5)


@pytest.mark.parametrize("reach", [2, 100])
@pytest.mark.parametrize("constants", [chinchilla.BESIROGLU, chinchilla.HOFFMANN])
def test_isoflop_finds_the_allocation(constants, reach):
    """Approach 2 on the law's own loss: minimisers within 3 % (the loss is no parabola), slope a within 0.005, however
    far from the minimum the sweep goes."""
    found = chinchilla.isoflop(*sweeps(constants, BUDGETS, np.geomspace(1 / reach, reach, 15)))
    assert found.aside == {}
    assert list(found) == list(BUDGETS)
    minimisers = [q.minimiser for q in found.values()]
    np.testing.assert_allclose(minimisers, chinchilla.allocation(constants, BUDGETS)[0], rtol=0.03)
    line = found.law()
    assert line.exponents["C"] == pytest.approx(chinchilla.exponents(constants)[0], abs=0.005)
    expected = np.polyfit(np.log(BUDGETS), np.log(minimisers), 1)
    assert (line.exponents["C"], np.log(line.A)) == pytest.approx(tuple(expected))


def test_isoflop_window():
    """The runs within a factor of four of the lowest loss, both ends in it: 5 of 15 where neighbours differ by two."""
    C, N, loss = sweeps(TRUTH, [1e20], 2.0 ** np.arange(-7, 8))
    assert chinchilla.isoflop(C, N, loss)[1e20].n == 5
    assert chinchilla.isoflop(C, N, loss, window=8 * (1 + 1e-9))[1e20].n == 7
    assert chinchilla.isoflop(C, N, loss, window=np.inf)[1e20].n == 15


def test_isoflop_tolerance():
    """Runs a few per cent beside their budget belong to it; their median names it. Without tolerance each is its own,
    and all are set aside."""
    found = chinchilla.isoflop(*sweeps(TRUTH, BUDGETS, np.geomspace(0.5, 2, 7), wobble=0.04))
    np.testing.assert_allclose(list(found), BUDGETS, rtol=1e-12)
    assert [q.n for q in found.values()] == [7] * 5
    assert found.law().exponents["C"] == pytest.approx(chinchilla.exponents(TRUTH)[0], abs=0.01)
    none = chinchilla.isoflop(*sweeps(TRUTH, BUDGETS, np.geomspace(0.5, 2, 7), wobble=0.04), tolerance=0)
    assert (len(none), len(none.aside)) == (0, 35)
    with pytest.raises(InputError, match=r"0 budgets with a minimum: a power law needs 3 \(C=9.608e\+17: 1 distinct x"):
        none.law()


def test_a_stray_run_does_not_split_a_budget():
    """0.93, and 0.98 to 1.06 times a budget, at 5 %: the larger group stays together, the stray one is its own."""
    C = 1e20 * np.array([0.93, 0.98, 1.0, 1.02, 1.04, 1.06])
    found = chinchilla.isoflop(C, [1e8, 2e8, 4e8, 8e8, 1.6e9, 3.2e9], [3.0, 2.9, 2.6, 2.5, 2.6, 2.9])
    assert list(found) == [pytest.approx(1.02e20)]
    assert list(found.aside.values()) == ["1 distinct x: a parabola needs 3"]
    assert list(found.aside) == [pytest.approx(9.3e19)]


def test_isoflop_sets_budgets_aside():
    """Of seven budgets four have no minimum between their runs; the others are as without them."""
    C, N, loss = sweeps(TRUTH, BUDGETS[:3], np.geomspace(0.5, 2, 7))
    bad = {
        1e23: ([1e9, 2e9], [2.1, 2.0]),  # two sizes
        2e23: ([1e9, 2e9, 4e9, 8e9], [2.3, 2.2, 2.1, 2.05]),  # still falling
        3e23: ([1e9, 2e9, 4e9, 8e9], [2.0, 2.1, 2.2, 2.4]),  # rising from the first
        4e23: ([1e9, 2e9, 4e9, 8e9, 1.6e10], [2.0, 2.5, 1.9, 2.5, 2.0]),  # a lowest run that is an outlier
    }
    for budget, (size, values) in bad.items():
        C, N, loss = np.append(C, [budget] * len(size)), np.append(N, size), np.append(loss, values)
    found = chinchilla.isoflop(C, N, loss)
    alone = chinchilla.isoflop(*sweeps(TRUTH, BUDGETS[:3], np.geomspace(0.5, 2, 7)))
    assert [q.minimiser for q in found.values()] == [q.minimiser for q in alone.values()]
    assert list(found.aside) == [1e23, 2e23, 3e23, 4e23]
    says = ("2 distinct x", "at x=8e+09, an end of the runs", "at x=1e+09, an end of the runs", "opens downwards")
    assert all(text in why for text, why in zip(says, found.aside.values(), strict=True))


def test_a_minimum_that_is_not_between_the_runs():
    """A loss that falls to the last run but one: the lowest run is inside, the parabola's minimum beyond the last."""
    loss = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 1.02]
    c, b, _ = np.polyfit(np.arange(7), loss, 2)
    assert -b / (2 * c) > 6
    found = chinchilla.isoflop([1e20] * 7, 1e8 * 2.0 ** np.arange(7), loss, window=np.inf)
    assert "is not between the runs, 1e+08 to 6.4e+09" in found.aside[1e20]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loss": [3.0, np.nan, 3.0]}, "loss, row 1: nan must be finite"),
        ({"compute": [1e18, 1e18, 0.0]}, "compute, row 2: 0.0 must be finite and above 0"),
        ({"x": [1e8, -2e8, 4e8]}, "x, row 1: -200000000.0 must be finite and above 0"),
        ({"x": [1e8, "many", 4e8]}, "x, row 1: 'many' is not a number"),
        ({"x": [1e8, 2e8]}, r"x has shape \(2,\): must be that of loss, \(3,\)"),
        ({"loss": [], "compute": [], "x": []}, "loss is empty"),
        ({"window": 1.0}, "window=1.0: must be above 1"),
        ({"tolerance": -0.1}, "tolerance=-0.1: must be 0 or above"),
    ],
)
def test_isoflop_refusals(change, says):
    with pytest.raises(InputError, match=says):
        chinchilla.isoflop(**{"compute": [1e18] * 3, "x": [1e8, 2e8, 4e8], "loss": [3.0, 2.9, 3.0]} | change)


def test_isoflop_of_published_runs():
    """Hoffmann et al.'s runs as reconstructed, budgets within 10 %: a = 0.49 (0.462 to 0.534) is what they print for
    approach 2; of 39 groups 19 have a minimum, and no single run makes one."""
    table = designs.published("chinchilla_fig4_epoch.csv")
    columns = (table[key].astype(float) for key in ("Training FLOP", "Model Size", "loss"))
    found = chinchilla.isoflop(*columns, tolerance=0.1)
    assert (len(found), len(found.aside)) == (19, 20)
    assert min(q.n for q in found.values()) >= 3
    low, high = found.law().interval("C")
    assert low < 0.49 < high
    assert found.law().exponents["C"] == pytest.approx(0.49, abs=0.02)
    again = bootstrap(found, draws=100)
    assert again.interval("C")[0] < 0.49 < again.interval("C")[1]


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


def test_envelope_by_hand():
    """Losses 4 - log10 C and 3.5 - log10 C / 2, equal at C = 10, at half powers of ten; logs in any order."""
    compute, loss = [100.0, 1.0, 1.0, 100.0], [2.0, 4.0, 3.5, 2.5]
    budgets, run, lowest = chinchilla.envelope(["a", "a", "b", "b"], compute, loss, points=5)
    np.testing.assert_allclose(budgets, [1, 10**0.5, 10, 10**1.5, 100])
    assert [str(name) for name in run[[0, 1, 3, 4]]] == ["b", "b", "a", "a"]
    np.testing.assert_allclose(lowest, [3.5, 3.25, 3, 2.5, 2])
    assert len(chinchilla.envelope(["a", "a"], [1.0, 10.0], [2.0, 1.0])[0]) == 1500
    for change, says in (
        ({"loss": [2.0, np.nan, 3.5, 2.5]}, "loss, row 1: nan"),
        ({"compute": [1.0, 0.0, 1.0, 2.0]}, "compute, row 1: 0.0 must be finite and above 0"),
        ({"run": ["a"]}, r"run has shape \(1,\): must be that of loss"),
        ({"points": 1}, "points=1: must be a whole number of at least 2"),
    ):
        with pytest.raises(InputError, match=says):
            chinchilla.envelope(**{"run": ["a", "a", "b", "b"], "compute": compute, "loss": loss} | change)


def test_repeats_by_hand():
    """Five epochs at R* = 2 are worth 1 + 2 (1 - e^(-4/2)) = 2.7293294 of one."""
    assert chinchilla.effective_data(1.0, 5.0, 2.0) == pytest.approx(2.7293294, abs=1e-6)


def test_repeated_law_by_hand():
    """5e9 parameters, ten epochs of 1e9 tokens, step by step: G = (A / B)^(1 / 0.7053192) = 0.225802, 1e9 tokens are
    given G^2 U = 5.09865e7 parameters, D' = 7.81412e9, N' = 3.21712e8, loss 2.8724072."""
    p = chinchilla.MUENNIGHOFF
    assert chinchilla.REPEATED(p, {"N": 5e9, "D": 1e10, "U": 1e9}) == pytest.approx(2.8724072, abs=1e-7)
    n, d = 3.21711820e8, 7.81412332e9
    base = chinchilla.PARAMETRIC(p, {"N": n, "D": d})
    assert base == pytest.approx(2.8724072, abs=1e-7)
    assert base == pytest.approx(1.8691437 + 520.82495 / n**0.3526596 + 1487.7161 / d**0.3526596, abs=1e-7)


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

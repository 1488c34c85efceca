"""The three-piece law: its check case, continuity, the analytic oracle; closed-form rules (Zhou et al. 2601.05034)."""

import numpy as np
import pytest
from scipy import optimize

from jaxlab.laws import batch_size as bs
from jaxlab.laws.fit import fit

CASE = {"S_min": 1e3, "S_1": 6e3, "S_opt": 1.2e4, "S_2": 2.5e4, "E_min": 5e9, "C": 2.0}
SIX = bs.free_parameters(**CASE)


def tokens(steps):
    return bs.THREE_PIECE_STEPS(SIX, {"S": np.asarray(steps, float)})


def test_check_case():
    """E(S_1) = 5.072e9 with slope -24000; E(S_2) = 5.338e9, A_1 = 52000, A_0 = 4.038e9, B_opt = 416,666.7."""
    c = bs.constants(SIX)
    assert {k: c[k] for k in CASE} == pytest.approx(CASE)
    assert (c["A_1"], c["A_0"], c["B_min"]) == pytest.approx((52_000, 4.038e9, 52_000))
    assert c["B_opt"] == pytest.approx(416_666.7, abs=0.05)
    assert tokens([6e3, 1.2e4, 2.5e4]) == pytest.approx([5.072e9, 5e9, 5.338e9])
    assert (tokens([6e3]) - tokens([6e3 - 0.01])) / 0.01 == pytest.approx(-24_000, rel=1e-3)


@pytest.mark.parametrize("joint", [CASE["S_1"], CASE["S_2"]])
def test_value_and_slope_are_continuous(joint):
    h = 1e-3
    left, at, right = tokens([joint - h, joint, joint + h])
    assert (at - left) / h == pytest.approx((right - at) / h, rel=1e-3)


def test_wall_and_asymptote():
    """Tokens without bound as S falls to S_min; slope B_min in the linear stage."""
    assert tokens([1e3 * (1 + 1e-9)])[0] > 1e14
    assert np.diff(tokens([3e4, 4e4]))[0] / 1e4 == pytest.approx(52_000)


def test_batch_and_steps_tell_the_same():
    """E(B) is where the ray E = B S meets E(S), found here by bisection; below B_min it never does."""
    for batch in (5.3e4, 1e5, 2.1e5, 4.2e5, 8.4e5, 3e6, 5e7):
        found = bs.THREE_PIECE(SIX, {"B": np.array([batch])})[0]
        steps = optimize.brentq(lambda s, b=batch: tokens(s) - b * s, 1e3 * (1 + 1e-9), 1e8, xtol=1e-9, rtol=1e-14)
        assert found == pytest.approx(batch * steps, rel=1e-9)
    assert np.isinf(bs.THREE_PIECE(SIX, {"B": np.array([5.2e4, 1e4])})).all()
    grid = np.geomspace(5.3e4, 1e7, 4001)
    best = grid[bs.THREE_PIECE(SIX, {"B": grid}).argmin()]
    assert best == pytest.approx(bs.constants(SIX)["B_opt"], rel=2e-3)


def test_any_parameters_keep_the_order():
    """S_min < S_1 < S_opt < S_2, A_0 > 0 and B_opt > B_min for parameters drawn at random."""
    rng = np.random.default_rng(0)
    for draw in rng.standard_normal((200, 6)):
        c = bs.constants(bs.THREE_PIECE.natural(draw * [3, 3, 2, 2, 2, 2]))
        assert 0 < c["S_min"] < c["S_1"] < c["S_opt"] < c["S_2"]
        assert c["A_0"] > 0
        assert c["B_opt"] > c["B_min"]


@pytest.mark.parametrize(("s", "batch", "least"), [(0.5, 3, 6.75), (1, 2, 4), (2, 1.5, 2.598076)])
def test_noise_floor(s, batch, least):
    """B_opt = B_min (1 + 1/s), and the least tokens in units of B_min S_min."""
    grid = {"B": np.geomspace(1.001, 100, 200_001)}
    found = bs.NOISE_FLOOR({"S_min": 1.0, "B_min": 1.0, "s": s}, grid)
    assert grid["B"][found.argmin()] == pytest.approx(batch, rel=1e-3)
    assert found.min() == pytest.approx(least, rel=1e-6)


def test_hyperbola():
    """(S / S_min - 1) (E / E_min - 1) = 1 with S_min = E_min / B_crit."""
    batch = np.geomspace(1e3, 1e7, 9)
    found = bs.HYPERBOLA({"E_min": 3e9, "B_crit": 5e5}, {"B": batch})
    assert (found / batch / (3e9 / 5e5) - 1) * (found / 3e9 - 1) == pytest.approx(np.ones(9))


def test_r2_is_a_weak_test():
    """Three pieces fitted to the noise floor's smooth curve: R^2 0.999, yet residuals of several per cent and B_opt off
    by up to a fifth; the law that made the data is found, and preferred by the criterion."""
    batches = {"B": np.geomspace(1.05, 30, 14) * 5e4}
    clean = bs.NOISE_FLOOR({"S_min": 1e4, "B_min": 5e4, "s": 1.0}, batches)
    pieces = fit(bs.THREE_PIECE, batches, clean)
    assert pieces.r2 > 0.999
    assert np.abs(pieces.residuals).max() > 0.03
    c = bs.constants(pieces.params)
    assert 0.78 < c["B_min"] / 5e4 < 1.18
    assert 0.8 < c["B_opt"] / 1e5 < 1.05
    noisy = clean * np.exp(0.005 * np.random.default_rng(0).standard_normal(14))
    pieces, floor, classic = (fit(law, batches, noisy) for law in (bs.THREE_PIECE, bs.NOISE_FLOOR, bs.HYPERBOLA))
    assert floor.aic < min(pieces.aic, classic.aic)
    assert floor.interval("B_min")[0] < 5e4 < floor.interval("B_min")[1]
    low, high = floor.interval(lambda p: p["B_min"] * (1 + 1 / p["s"]))
    assert low < 1e5 < high


def test_published_critical_batches():
    """Kaplan et al. and MiniCPM at losses 3.4, 3.0, 2.5, 2.0, in millions of tokens; Zhang et al. at 3.07e9 tokens."""
    losses = np.array([3.4, 3.0, 2.5, 2.0])
    assert bs.kaplan(losses) / 1e6 == pytest.approx([0.59, 1.07, 2.55, 7.37], abs=6e-3)
    assert bs.minicpm(losses) / 1e6 == pytest.approx([0.58, 1.28, 3.98, 16.0], rel=0.01)
    assert bs.kaplan(2.5 * 0.87) / bs.kaplan(2.5) == pytest.approx(2, abs=0.07)  # doubles per 13 % off the loss
    assert bs.zhang(3.07e9) / 1e6 == pytest.approx(0.66, abs=6e-3)


def test_rules_in_one_place():
    """The two rules of the data agree within the band of four that one of them states; OLMo's is 327,680 at 108M; the
    best weight-decay time scale is the whole run at D / N = 1.165."""
    tokens = np.geomspace(1e10, 1e13, 4)
    assert np.all(np.abs(np.log(bs.step_law(tokens) / bs.five_percent(tokens))) < np.log(4) / 2)
    assert bs.olmo(108e6) == 327_680
    assert bs.olmo(8 * 108e6) == pytest.approx(4 * 327_680)
    assert bs.weight_decay_timescale(1.084 ** (1 / 0.527)) == pytest.approx(1)
    assert bs.deepseek(1e20) == pytest.approx(0.292 * 10 ** (20 * 0.327))

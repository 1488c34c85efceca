"""The Capybara law's predictions and consequences: published tables, numerical minimisation (Sun et al. 2501.02423)."""

import numpy as np
import pytest
from scipy import optimize

from jaxlab.laws import floating_point as fp
from tests.laws import designs

P = fp.CAPYBARA_CONSTANTS
SIZES = {"41M": 40894464, "85M": 84934656, "154M": 154140672, "679M": 679477248}
TOKENS = np.array([5000, 10000, 25000, 50000]) * 2.0**21


def loss(n, d, e, m, b):
    return fp.CAPYBARA(P, {"N": n, "D": d, "E": e, "M": m, "B": b})


@pytest.mark.parametrize(
    ("size", "bf16", "e1m1"),
    [
        ("41M", (3.4607, 3.3213, 3.1992, 3.1384), (3.6859, 3.6434, 3.7160, 3.8776)),
        ("85M", (3.2873, 3.1479, 3.0258, 2.9650), (3.4767, 3.4188, 3.4604, 3.5867)),
        ("154M", (3.1665, 3.0271, 2.9050, 2.8442), (3.3310, 3.2623, 3.2824, 3.3841)),
        ("679M", (2.9305, 2.7911, 2.6689, 2.6082), (3.0462, 2.9566, 2.9346, 2.9881)),
    ],
)
def test_predictions(size, bf16, e1m1):
    """Four printed decimals. One element a block (B = 1) is the BF16 loss."""
    n = np.full(4, SIZES[size])
    assert fp.BASE(P, {"N": n, "D": TOKENS}) == pytest.approx(bf16, abs=6e-5)
    assert loss(n, TOKENS, 1, 1, np.ones(4)) == pytest.approx(bf16, abs=6e-5)
    assert loss(n, TOKENS, 1, 1, fp.CHANNEL) == pytest.approx(e1m1, abs=6e-5)


def test_predictions_of_large_models():
    assert loss(1233125376, TOKENS, 1, 2, 512) == pytest.approx([2.8718, 2.7390, 2.6300, 2.5843], abs=6e-5)
    assert loss(1233125376, TOKENS, 4, 3, 512) == pytest.approx([2.8568, 2.7175, 2.5955, 2.5349], abs=6e-5)
    assert loss(7083130880, TOKENS[[0, 3]], 4, 3, 64) == pytest.approx([2.6916, 2.3695], abs=6e-5)
    assert loss(71236059136, TOKENS[:2], 4, 3, 64) == pytest.approx([2.5560, 2.4166], abs=6e-5)


def test_the_fitted_grid():
    """359 rows; knowledge density from 1206 to 7698."""
    grid = designs.capybara_grid()
    assert len(grid["N"]) == 359
    density = fp.density(P, grid)
    assert (density.min(), density.max()) == pytest.approx((1206, 7698), abs=1)


def test_laws_agree_where_they_overlap():
    """The joint laws are the Capybara law with what does not vary folded into their constants."""
    x = {"N": 1e8, "D": 5e10, "E": 2.0, "M": 3.0, "B": 128.0}
    whole = fp.CAPYBARA(P, x)
    assert fp.BITS_JOINT(P | {"gamma": P["gamma"] / 7}, x) == pytest.approx(whole, rel=1e-12)
    folded = P["gamma"] / 7 * 3.5 ** P["nu"]
    assert fp.EXPONENT_JOINT(P | {"gamma": folded}, x) == pytest.approx(whole, rel=1e-12)
    folded = P["gamma"] / 7 * 2.5 ** P["delta"]
    assert fp.MANTISSA_JOINT(P | {"gamma": folded}, x) == pytest.approx(whole, rel=1e-12)
    kept = P["gamma"] * 2.5 ** P["delta"] * 3.5 ** P["nu"]
    assert fp.BLOCK_JOINT(P | {"kappa": kept}, x) == pytest.approx(whole, rel=1e-12)
    density = fp.density(P, x)
    base = float(fp.BASE(P, x))
    assert fp.BLOCK({"kappa": density / kept, "psi": base}, x) == pytest.approx(whole, rel=1e-12)
    local = {"gamma": kept / 2.5 ** P["delta"] / (7 * density), "iota": base, "delta": P["delta"]}
    assert fp.EXPONENT(local, x) == pytest.approx(whole, rel=1e-12)
    local = {"gamma": kept / 3.5 ** P["nu"] / (7 * density), "iota": base, "nu": P["nu"]}
    assert fp.MANTISSA(local, x) == pytest.approx(whole, rel=1e-12)


def test_limits_of_the_other_forms():
    """Many bits leave Kumar's form the base law; it loses parameters by the printed factor. Kaplan's form with endless
    data is a power of N alone, with an endless model a power of D."""
    x = {"N": 1e8, "D": 5e10, "E": 4.0, "M": 3.0}
    assert fp.KUMAR(P | {"gamma": 0.1}, x) == pytest.approx(fp.BASE(P, x), rel=1e-12)
    fewer = x | {"N": 1e8 * (1 - np.exp(-8 / 2.0))}
    assert fp.KUMAR(P | {"gamma": 2.0}, x) == pytest.approx(fp.BASE(P, fewer), rel=1e-12)
    p = {"n": 6e7, "alpha": 0.25, "d": 2e9, "beta": 0.3, "epsilon": 1.9}
    assert fp.OPENAI(p, {"N": 1e8, "D": 1e300}) == pytest.approx((6e7 / 1e8) ** 0.25 + 1.9, rel=1e-9)
    assert fp.OPENAI(p, {"N": 1e300, "D": 1e11}) == pytest.approx((2e9 / 1e11) ** 0.3 + 1.9, rel=1e-9)


@pytest.mark.parametrize(("size", "billions"), [("41M", 21.1), ("85M", 25.0), ("154M", 28.6), ("679M", 40.2)])
def test_critical_tokens_of_e1m1(size, billions):
    """Inside the grid; and the loss is lowest there."""
    tokens = fp.critical_tokens(P, SIZES[size], 1, 1, fp.CHANNEL)
    assert tokens / 1e9 == pytest.approx(billions, abs=0.06)
    found = optimize.minimize_scalar(lambda t: loss(SIZES[size], np.exp(t), 1, 1, fp.CHANNEL), bracket=(20, 28))
    assert np.exp(found.x) == pytest.approx(tokens, rel=1e-4)


@pytest.mark.parametrize(
    ("e", "m", "trillions"),
    [
        (8, 7, (2396, 2008, 1729.5, 1519.7, 1355.9)),
        (4, 3, (37.9, 31.7, 27.33, 24.0, 21.4)),
        (2, 1, (0.544, 0.456, 0.3929, 0.345, 0.308)),
    ],
)
def test_critical_tokens_of_a_1b_model(e, m, trillions):
    """Blocks of 32 to 512; 1730T, 27T and 0.4T are the paper's, reproduced by blocks of 128."""
    found = [fp.critical_tokens(P, 1e9, e, m, b) / 1e12 for b in (32, 64, 128, 256, 512)]
    assert found == pytest.approx(trillions, rel=2e-3)


def test_critical_tokens_are_a_root_of_the_slope():
    """Of the law written out: d beta / D^(beta + 1) = beta D^(beta - 1) log2 B / (N^alpha gamma (E + 1/2)^delta
    (M + 1/2)^nu), by root finding."""

    def slope(log_d):
        d = np.exp(log_d)
        kept = 11334.5197 * 3.5**3.1926 * 2.5**2.9543
        return 68973.0621 * 0.5162 * d**-1.5162 - 0.5162 * d**-0.4838 * 6 / (3e9**0.2368 * kept)

    root = np.exp(optimize.brentq(slope, 10, 60, xtol=1e-13, rtol=1e-14))
    assert fp.critical_tokens(P, 3e9, 3, 2, 64) == pytest.approx(root, rel=1e-9)


def test_critical_tokens_of_small_models():
    """Billions, by channel and in blocks of 32."""
    table = {1e6: (0.388, 0.991, 9.01, 23.0, 38.9, 99.2, 43.7, 112), 1e8: (1.12, 2.85, 25.9, 66.1, 112, 285, 126, 321)}
    for n, row in table.items():
        formats = [(1, 0), (1, 1), (1, 2), (2, 1)]
        found = [fp.critical_tokens(P, n, e, m, b) / 1e9 for e, m in formats for b in (fp.CHANNEL, 32)]
        assert found == pytest.approx(row, rel=6e-3)


def test_integer_layouts():
    """All sixteen of the paper's table."""
    table = "E0M0 E1M0 E1M1 E2M1 E2M2 E3M2 E3M3 E4M3 E4M4 E5M4 E5M5 E6M5 E6M6 E7M6 E7M7 E8M7"
    assert " ".join("E{}M{}".format(*fp.integer_layout(P, bits)) for bits in range(1, 17)) == table


def test_real_layout():
    """Shares 0.51938 and 0.48062, less a half; bits = gamma_rho P^(delta + nu) there, with gamma_rho = 160.697."""
    e, m = fp.layout(P, 8)
    assert ((e + 0.5) / 8, (m + 0.5) / 8) == pytest.approx((0.51938, 0.48062), abs=6e-6)
    assert e + m + 1 == pytest.approx(8)
    assert fp.gamma_rho(P) == pytest.approx(160.697, abs=6e-4)
    assert fp.bits(P, {"E": e, "M": m}) == pytest.approx(fp.gamma_rho(P) * 8 ** (P["delta"] + P["nu"]))
    found = optimize.minimize_scalar(lambda x: -fp.bits(P, {"E": x, "M": 7 - x}), bounds=(1, 6), method="bounded")
    assert found.x == pytest.approx(e, abs=1e-4)


def _best(n, d, bits, b=128):
    return loss(n, d, *fp.layout(P, bits), b)


def test_effective_parameters():
    """The base law at N_eff is the whole law at the best layout."""
    n_eff = fp.effective_parameters(P, 1e9, 1e11, 6, 128)
    assert fp.BASE(P, {"N": n_eff, "D": 1e11}) == pytest.approx(_best(1e9, 1e11, 6), rel=1e-12)


@pytest.mark.parametrize(("tokens", "bits"), [(1e11, 4.27), (1e12, 5.18), (1e13, 6.28), (1e14, 7.62)])
def test_precision_at_fixed_tokens(tokens, bits):
    """The table's; and no other P has a lower loss where N = C / (k P D), at any C."""
    assert fp.precision_at_tokens(P, tokens, 128) == pytest.approx(bits, abs=6e-3)
    for compute in (1e22, 1e26):

        def at(p, compute=compute):
            return _best(compute / (fp.FLOP_PER_BIT * p * tokens), tokens, p)

        found = optimize.minimize_scalar(at, bounds=(1.5, 16), method="bounded", options={"xatol": 1e-9})
        assert found.x == pytest.approx(fp.precision_at_tokens(P, tokens, 128), rel=1e-3)


def test_precision_at_fixed_size():
    """Against minimisation over P with D = C / (k P N); exponent of C 0.1438."""
    for compute in (1e22, 1e25):

        def at(p, compute=compute):
            return _best(1e10, compute / (fp.FLOP_PER_BIT * p * 1e10), p)

        found = optimize.minimize_scalar(at, bounds=(1.5, 30), method="bounded", options={"xatol": 1e-9})
        assert found.x == pytest.approx(fp.precision_at_size(P, 1e10, compute, 128), rel=1e-3)
    ratio = fp.precision_at_size(P, 1e10, 1e25, 128) / fp.precision_at_size(P, 1e10, 1e22, 128)
    assert np.log(ratio) / np.log(1e3) == pytest.approx(0.1438, abs=6e-5)


@pytest.mark.parametrize(
    ("compute", "bits", "tokens", "size"),
    [(1e21, 4.190, 8.02e10, 7.9e9), (1e25, 5.311, 1.35e12, 3.72e12), (1e31, 7.578, 9.3e13, 3.8e16)],
)
def test_joint_allocation(compute, bits, tokens, size):
    """The table's; against minimisation over P and D at 1e21."""
    p, n, d = fp.allocation(P, compute, 128)
    assert (p, d, n) == pytest.approx((bits, tokens, size), rel=6e-3)
    assert fp.FLOP_PER_BIT * p * n * d == pytest.approx(compute)
    if compute == 1e21:
        start = np.log([p * 1.2, d / 2])
        found = optimize.minimize(
            lambda t: _best(compute / (fp.FLOP_PER_BIT * np.exp(t.sum())), np.exp(t[1]), np.exp(t[0])),
            start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 2000},
        )  # fmt: skip
        assert np.exp(found.x) == pytest.approx((p, d), rel=1e-3)

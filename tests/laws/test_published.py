"""Every published constant against its printed value, and of every closed-form rule one number worked out by hand."""

import math

import numpy as np
import pytest

from jaxlab.cost import flops, wallclock
from jaxlab.laws import batch_size, chinchilla, diloco, spectral
from jaxlab.laws import floating_point as fp


def test_chinchilla_constants():
    """Besiroglu et al. 2404.10102; Hoffmann et al. appendix D.2; Muennighoff et al. print 1.87 + 521 / N^0.353 +
    1488 / D^0.353, R*_D = 15.39, R*_N = 5.31, and in their appendix the logarithms."""
    assert chinchilla.BESIROGLU == {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
    assert chinchilla.HOFFMANN == {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
    p = chinchilla.MUENNIGHOFF
    assert [p[k] for k in ("E", "A", "B")] == pytest.approx([1.87, 521, 1488], rel=6e-4)
    assert [math.log(p[k]) for k in ("E", "A", "B")] == pytest.approx([0.6254804, 6.255414, 7.3049974], rel=1e-9)
    assert (p["alpha"], p["beta"], p["R_D"], p["R_N"]) == (0.3526596, 0.3526596, 15.387756, 5.309743)


# 2503.09799, tables of independent and joint laws: A, exponent of N (and of M); columns loss, learning rate, batch
INDEPENDENT = """
0 18.129 -0.0953 16319.2 -0.819 462.68 0.281
1 18.363 -0.0961 74620.6 -0.945 27.873 0.435
2 18.768 -0.0969 3978.82 -0.780 15.749 0.479
4 19.762 -0.0992 4512.99 -0.789 10.957 0.510
8 21.051 -0.1018 618986  -1.102 38.072 0.455
"""
JOINT = "19.226 -0.0985 0.0116 22256 -0.8827 0.2929 14.521 0.4695 0.3399"
# best losses: 35M to 2.4B by data-parallel, M = 1, 2, 4, 8
LOSS = """
3.485 3.482 3.508 3.554 3.621
3.167 3.162 3.182 3.213 3.265
2.950 2.943 2.957 2.981 3.019
2.784 2.777 2.788 2.808 2.841
2.653 2.645 2.657 2.673 2.698
2.460 2.451 2.464 2.472 2.493
2.326 2.317 2.323 2.332 2.351
"""
SHAPES = "6 512, 9 768, 12 1024, 15 1280, 18 1536, 24 2048, 30 2560"


def numbers(text: str) -> np.ndarray:
    return np.array([line.replace(",", " ").split() for line in text.strip().splitlines()], float)


def test_diloco_tables():
    for M, *row in numbers(INDEPENDENT):
        assert [x for quantity in ("loss", "lr", "batch") for x in diloco.INDEPENDENT[quantity][int(M)]] == row
    assert [x for quantity in ("loss", "lr", "batch") for x in diloco.JOINT[quantity]] == list(numbers(JOINT)[0])
    np.testing.assert_array_equal(np.transpose([diloco.LOSS[M] for M in (0, 1, 2, 4, 8)]), numbers(LOSS))
    np.testing.assert_array_equal(np.ravel(diloco.SHAPES), numbers(SHAPES)[0])
    assert diloco.OUTER_LR == {1: 0.4, 2: 0.6, 4: 0.6, 8: 0.8}


def test_diloco_predictions_at_2_4b():
    """By hand: 27.873 x 2.4e9^0.435 = 335,410 tokens by M = 1's own law, 15.749 x 2.4e9^0.479 = 490,201 by M = 2's; the
    joint law gives M = 2 14.521 x 2.4e9^0.4695 x 2^0.3399 = 465,935, and data-parallel's own 462.68 x 2.4e9^0.281."""
    own = {M: A * 2.4e9**alpha for M, (A, alpha) in diloco.INDEPENDENT["batch"].items()}
    assert (own[1], own[2]) == pytest.approx((335_410, 490_201), abs=1)
    assert diloco.published("batch", 2.4e9, 2) == pytest.approx(465_935, abs=1)
    assert diloco.published("batch", 2.4e9, 0) == pytest.approx(462.68 * math.exp(0.281 * math.log(2.4e9)), rel=1e-12)
    assert diloco.published("loss", 2.4e9, 8) == pytest.approx(19.226 * 2.4e9**-0.0985 * 8**0.0116, rel=1e-12)


def test_diloco_sizes_and_grids():
    """12 x 6 x 512^2 + 32,101 x 512 = 35,310,080; powers of sqrt 2 around 1e-3: 2^-10 = 9.77e-4; 465,935 / 2 nearest
    2^18 in ratio, so 2^19 for two replicas; one sequence of 4,096 is the least."""
    assert diloco.size(6, 512) == 35_310_080
    assert diloco.nearest_lr(1e-3) == 2**-10
    assert diloco.nearest_lr(1.2e-3) == pytest.approx(2**-9.5, rel=1e-12)
    assert diloco.published_batch(2.4e9, 2) == 2**19
    assert diloco.published_batch(1.0, 4, sequence=4_096) == 4 * 4_096


def test_capybara_constants():
    """Sun et al. 2501.02423, section 4.3; scaling by channel stands for log2 B = 13.1567; 16 bits cost 6 N D."""
    assert fp.CAPYBARA_CONSTANTS == {
        "n": 69.2343, "alpha": 0.2368, "d": 68973.0621, "beta": 0.5162, "epsilon": 1.9061,
        "gamma": 11334.5197, "delta": 3.1926, "nu": 2.9543,
    }  # fmt: skip
    assert math.log2(fp.CHANNEL) == pytest.approx(13.1567, rel=1e-12)
    assert fp.FLOP_PER_BIT == 0.375


def test_spectral_constants():
    """(ln a, exponent) of hard and soft rank (companion 2605.21803, its table)."""
    printed = {
        "adamw": (3.560, 0.289, 1.726, 0.661),
        "dion-1/16": (2.223, 0.500, 1.275, 0.744),
        "dion-1/2": (0.061, 0.787, -0.001, 0.920),
    }
    for name, laws in spectral.PUBLISHED.items():
        (a, hard), (b, soft) = laws
        assert (math.log(a), hard, math.log(b), soft) == pytest.approx(printed.pop(name), rel=1e-12)
    assert not printed


@pytest.mark.parametrize(
    ("rule", "at", "tokens"),
    [
        (batch_size.kaplan, 3.0, 1_069_114),  # 2e8 x 3^-4.761905
        (batch_size.minicpm, 3.0, 1_275_113),  # 1.21e9 x 3^-6.24
        (batch_size.deepseek, 1e21, 2_149_725),  # 0.292 x 10^(21 x 0.327)
        (batch_size.step_law, 1e11, 1_107_715),  # 0.58 x 10^(11 x 0.571)
        (batch_size.five_percent, 1e11, 1_122_344),  # 0.667 x 10^(11 x 0.566)
        (batch_size.olmo, 1e9, 1_444_888),  # 2048 x 160 x 9.259259^(2/3)
        (batch_size.zhang, 20 * 151e6, 500_078),  # 512 x 93.1968 x 151^0.468278
    ],
)
def test_batch_rules(rule, at, tokens):
    assert rule(at) == pytest.approx(tokens, abs=1)


def test_zhang_in_other_units():
    """Printed in three units that say the same: 93.1968 N^0.468278 sequences of 512 tokens, N in millions; 22.9 D^0.47
    sequences, D in millions of tokens; 18.2 D^0.468 tokens. The latter two are rounded, to 2 % at these sizes."""
    size = np.array([85.0, 151.0, 302.0, 604.0, 1200.0])
    rule = batch_size.zhang(20e6 * size)
    np.testing.assert_allclose(rule, 512 * 93.1968 * size**0.468278, rtol=1e-12)
    np.testing.assert_allclose(rule, 512 * 22.9 * (20 * size) ** 0.47, rtol=0.02)
    np.testing.assert_allclose(rule, 18.2 * (20e6 * size) ** 0.468, rtol=0.01)


def test_weight_decay_rules():
    """1.084 x 20^-0.527 = 0.22356 of the run; 1e6 / (1e-3 x 0.1) = 1e10 tokens."""
    assert batch_size.weight_decay_timescale(20) == pytest.approx(0.2235561, abs=1e-7)
    assert batch_size.averaging_tokens(1e6, 1e-3, 0.1) == pytest.approx(1e10, rel=1e-12)


def test_networks_and_chips():
    """2503.09799: 400, 100 and 10 Gbit/s with 0.1, 1 and 10 ms; 300 TFLOP/s a chip; the grid of its bandwidths."""
    assert {name: tuple(n) for name, n in wallclock.NETWORKS.items()} == {
        "high": (400e9, 1e-4), "medium": (100e9, 1e-3), "low": (10e9, 1e-2),
    }  # fmt: skip
    assert wallclock.FLOPS == 300e12
    assert (len(wallclock.GRID), wallclock.GRID[0], wallclock.GRID[-1]) == (50, 1e8, 1e12)
    assert wallclock.GRID[1] / wallclock.GRID[0] == pytest.approx(1.2068, abs=5e-5)


# Data sheets, dense TFLOP/s in bf16 (half of what is printed "with sparsity"): Google Cloud's pages of TPU v4 (275),
# v5e (197), v5p (459) and v6e (918), v4i as of its paper (138); NVIDIA's of A100 (312), H100 SXM (1,979 / 2), PCIe
# (1,513 / 2) and NVL (1,671 / 2), H200 SXM (1,979 / 2) and NVL (1,671 / 2). Named as devices report themselves.
@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("TPU v4", 275), ("TPU v4 lite", 138), ("TPU v5 lite", 197), ("TPU v5", 459), ("TPU v5p", 459),
        ("TPU v6 lite", 918), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835), ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
    ],
)  # fmt: skip
def test_peaks(device, peak):
    assert flops.peak(device) == peak * 1e12


def test_no_peak_is_untested():
    assert len(flops.PEAK) == 11

"""Metrics of spectra known in closed form, of float64 spectra, and of activations; bounds, invariances, biases."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab.config import InputError
from jaxlab.spectral import metrics
from jaxlab.spectral.covariance import covariance, moments

I = np.arange(1, 1025.0)  # noqa: E741
# Hard rank, soft rank, concentration, SUI, eDim, worked out in float64 to the digits printed.
KNOWN = {
    "flat": (np.ones(1024), (1024, 1024, 0, 1, 1024)),
    "one mode": (np.eye(1024)[0], (1, 1, 1023 / 1024, 1 / 1024, 1 + 1023 / 1024)),
    "two modes": (I <= 2, (2, 2, 1 - 2 / 1024, 2 / 1024, 1 + 2 * 1023 / 1024)),
    "i^-0.5": (I**-0.5, (521.1173, 805.0886, 0.3184, 0.6179, 633.0827)),
    "i^-1": (I**-1.0, (34.3000, 182.3605, 0.7346, 0.0564, 58.6834)),
    "i^-1.5": (I**-1.5, (5.4090, 18.5583, 0.9531, 0.0082, 9.3684)),
    "i^-2": (I**-2.0, (2.4970, 5.0951, 0.9921, 0.0033, 4.3483)),
    "0.99^i": (0.99**I, (198.9865, 270.3643, 0.8057, 0.2239, 230.0241)),
    "mode of 0.22 on a floor": (np.r_[0.22, np.full(2047, 0.78 / 2047)], (20.5351, 647.8958, 0.2195, 0.0194, 40.7889)),
}

observe = jax.jit(moments)
companion = jax.jit(metrics.companion)


@partial(jax.jit, static_argnames="form")
def summary(spectrum, form="r/D"):
    ranks = metrics.hard_rank(spectrum), metrics.soft_rank(spectrum), metrics.concentration(spectrum)
    return *ranks, metrics.sui(spectrum, form), metrics.edim(spectrum, form)


@partial(jax.jit, static_argnums=1)
def renyi(spectrum, orders):
    return [metrics.renyi_rank(spectrum, order) for order in orders]


@jax.jit
def of_matrix(c, count=None):
    return metrics.eigenvalues(c, count), summary(metrics.eigenvalues(c, count)), metrics.covariance_hard_rank(c)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def power(width: int, s: float) -> np.ndarray:
    return np.arange(1, width + 1.0) ** -s


def rotated(spectrum, rng) -> np.ndarray:
    """A float64 matrix of these eigenvalues."""
    q = np.linalg.qr(rng.normal(size=(len(spectrum),) * 2))[0]
    return (q * spectrum) @ q.T


def oracle(spectrum) -> dict:
    """Float64, by the definitions."""
    p = np.sort(np.float64(spectrum) / np.sum(spectrum, dtype=np.float64))[::-1]
    width = len(p)
    hard, soft = 1 / np.sum(p**2), np.exp(stats.entropy(p))
    index = stats.hmean([hard / width, soft / width])
    return {
        "hard_rank": hard,
        "soft_rank": soft,
        "concentration": 2 / width * sum(p[:k].sum() - k / width for k in range(1, width + 1)),
        "sui": index,
        "edim": 1 + (width - 1) * index,
        "renyi_0.5": np.sum(p**0.5) ** 2,
        "renyi_4": np.sum(p**4) ** (-1 / 3),
        "renyi_inf": 1 / p[0],
    }


@pytest.mark.parametrize("name", KNOWN)
def test_known_spectra(name):
    """To half the last printed digit, and 4e-6 of float32 logarithms over a thousand terms."""
    spectrum, expected = KNOWN[name]
    np.testing.assert_allclose(summary(np.float32(spectrum)), expected, rtol=4e-6, atol=6e-5)


def test_equal_modes():
    """Every rank of k modes is k; with (r-1)/(D-1) so is eDim, and SUI of one mode is 0."""
    modes = np.array([1, 3, 64])
    spectra = np.float32(np.arange(64) < modes[:, None])
    for ranks in renyi(spectra, (0.5, 1, 2, 7, np.inf)):
        np.testing.assert_allclose(ranks, modes, rtol=1e-6)
    *_, sui, edim = summary(spectra, "(r-1)/(D-1)")
    np.testing.assert_allclose(sui, (modes - 1) / 63, rtol=1e-6)
    np.testing.assert_allclose(edim, modes, rtol=1e-6)


def test_bounds_and_order(rng):
    """Of 200 random spectra, from even to one direction: ranks within [1, D] and falling in the order, HU <= SUI <=
    min(SU, 2 HU) <= 1 and eDim within [1, D] in both forms of utilisation. The slack is float32's."""
    spectra = np.sort(rng.exponential(size=(200, 30)) ** rng.uniform(0, 30, (200, 1)))[:, ::-1].astype(np.float32)
    ranks = np.asarray(renyi(spectra, (0.25, 0.5, 1, 2, 4, 64, np.inf)))
    assert ((ranks >= 1) & (ranks <= 30)).all()
    assert all((lower <= higher * (1 + 3e-6)).all() for higher, lower in pairwise(ranks))
    for form in metrics.UTILISATIONS:
        hard, soft, concentration, sui, edim = map(np.asarray, summary(spectra, form))
        np.testing.assert_allclose([soft, hard], ranks[2:4], rtol=3e-6)
        assert np.ptp(hard) > 20  # they do range widely
        assert ((concentration >= 0) & (concentration < 1)).all()
        hu, su = (metrics.utilisation(rank, 30, form) for rank in (hard, soft))
        assert ((hu <= sui + 1e-6) & (sui <= np.minimum(su, 2 * hu) + 1e-6) & (su <= 1)).all()
        assert ((edim >= 1) & (edim <= 30)).all()


@pytest.mark.parametrize("s", [0, 1, 2, 4, 8])
def test_float32_eigenvalues_of_ill_conditioned_covariances(s, rng):
    """Condition numbers 1 to 7e15. Eigenvalues within 1e-5 of the largest. What is below 1e-7 of it is noise, of which
    each of 96 directions may add 1e-7 ln 1e7 to the entropy: 2e-4 of the soft rank."""
    matrix = np.float32(rotated(power(96, s), rng))
    found, (hard, soft, concentration, *_), by_trace = of_matrix(matrix)
    true = np.linalg.eigvalsh(np.float64(matrix))[::-1]
    np.testing.assert_allclose(found, np.maximum(true, 0), atol=1e-5 * true[0])
    expected = oracle(power(96, s))
    assert float(hard) == pytest.approx(expected["hard_rank"], rel=1e-5)
    assert float(by_trace) == pytest.approx(expected["hard_rank"], rel=2e-6)
    assert float(soft) == pytest.approx(expected["soft_rank"], rel=2e-4)
    assert float(concentration) == pytest.approx(expected["concentration"], abs=2e-5)


def test_negative_eigenvalues_are_rounding(rng):
    """Of rank one, D 96: some of what LAPACK finds beside the one is negative, and becomes 0; the positive rest adds
    2e-4 at most to the soft rank. From two tokens it is rounding too, and the rank is 1 exactly."""
    matrix = np.float32(rotated(np.eye(96)[0], rng))
    assert (np.linalg.eigvalsh(matrix) < 0).any()
    found, (_, soft, *_), _ = of_matrix(matrix)
    assert (found >= 0).all()
    assert float(soft) == pytest.approx(1, abs=2e-4)
    found, (_, soft, *_), _ = of_matrix(matrix, 2)
    assert (found[1:] == 0).all()
    assert float(soft) == 1


def test_fewer_tokens_than_dimensions(rng):
    """20 tokens in 96 dimensions: 19 eigenvalues, those of the centred tokens' singular values; the rest exactly 0."""
    x = np.float32(rng.normal(size=(20, 96)))
    m = observe(x)
    found = of_matrix(covariance(m), m.count)[0]
    expected = np.linalg.svd(np.float64(x) - np.float64(x).mean(0), compute_uv=False) ** 2 / 19
    np.testing.assert_allclose(found[:19], expected[:19], rtol=1e-5)
    assert (found[19:] == 0).all()
    measured = metrics.measure(m)
    assert bool(measured["deficient"])
    assert float(measured["tokens_per_dimension"]) == pytest.approx(20 / 96)


@pytest.mark.parametrize("scale", [1e-4, 1, 1e4])
def test_measure_of_activations_is_float64s(scale, rng):
    """Of two layers, rotated and with means, at any scale; mapped over or looped over."""
    x = rng.normal(size=(2, 400, 40)) * power(40, 1) @ np.linalg.qr(rng.normal(size=(40, 40)))[0] + 3
    x = np.float32(scale * x)
    m = jax.jit(jax.vmap(moments))(x)
    measured = metrics.measure(m)
    for layer in range(2):
        spectrum = np.linalg.eigvalsh(np.cov(np.float64(x[layer]), rowvar=False))[::-1]
        expected = oracle(spectrum)
        expected |= {"variance": spectrum.sum(), "tokens_per_dimension": 10, "deficient": 0}
        expected |= {f"{kind}_utilisation": expected[f"{kind}_rank"] / 40 for kind in ("hard", "soft")}
        expected["hard_rank_corrected"] = 1 / (1 / expected["hard_rank"] - 1 / 400)
        held = np.cumsum(spectrum) / spectrum.sum()
        expected |= {f"directions_{f}": np.searchsorted(held, f / 100) + 1 for f in (50, 90, 99)}
        assert set(expected) == set(measured)
        for name, value in expected.items():
            assert float(measured[name][layer]) == pytest.approx(value, rel=2e-5), name
    for name, values in jax.lax.map(metrics.measure, m).items():
        np.testing.assert_allclose(values, measured[name], rtol=1e-5)


def test_no_variance_is_not_a_number():
    """Of units that never fire, of one token, of none."""
    for value, weights in ((0, [1, 1, 1]), (1, [0, 1, 0]), (1, [0, 0, 0])):
        measured = metrics.measure(observe(np.full((3, 4), value, np.float32), np.float32(weights)))
        for name in ("hard_rank", "soft_rank", "concentration", "sui", "edim", "renyi_0.5", "renyi_4", "renyi_inf"):
            assert np.isnan(measured[name]), name


# Hard ranks that n independent tokens show of a true 1000 and 3000 (2509.26560, its row part).
FEW = {(1000, 2048): 672, (1000, 8192): 891, (1000, 65_536): 985, (1000, 524_288): 998}
FEW |= {(3000, 2048): 1217, (3000, 8192): 2196, (3000, 65_536): 2869, (3000, 524_288): 2983}


@pytest.mark.parametrize(("true", "n"), FEW)
def test_corrected_hard_rank(true, n):
    """Printed to a whole number, whose half the correction magnifies by (true / naive)^2."""
    naive = FEW[true, n]
    assert float(metrics.corrected_hard_rank(naive, n)) == pytest.approx(true, abs=0.6 * (true / naive) ** 2)


def test_correction_of_gaussian_tokens(rng):
    """i^-0.5 in 60 dimensions (true 43.9), 150 tokens, 40 draws: naively 25 % low, corrected within 4 %."""
    true = oracle(power(60, 0.5))["hard_rank"]
    m = jax.jit(jax.vmap(moments))(np.float32(rng.normal(size=(40, 150, 60)) * power(60, 0.25)))
    naive = metrics.covariance_hard_rank(covariance(m))
    assert naive.mean() < 0.82 * true
    assert metrics.corrected_hard_rank(naive, m.count).mean() == pytest.approx(true, rel=0.04)


def test_companion_has_its_epsilon():
    """A flat spectrum of 3072 reads 3071, 2975 and 722 at eigenvalues 1e-6, 1e-7 and 1e-8; far above it is ours."""
    for value, expected in ((1e-6, 3071), (1e-7, 2975), (1e-8, 722)):
        assert float(companion(np.full(3072, value, np.float32))["hard_rank"]) == pytest.approx(expected, abs=0.5)
        assert float(metrics.hard_rank(np.full(3072, value, np.float32))) == pytest.approx(3072, rel=1e-6)
    for name, value in companion(np.float32(1e3 * I**-1)).items():
        assert float(value) == pytest.approx(oracle(I**-1)[name], rel=1e-5)


def test_directions():
    """Of ten equal modes 5 hold half, 9 hold 0.9, and 10 hold 0.99; of one mode, one."""
    counts = [int(metrics.directions(np.ones(10), f)) for f in (0.5, 0.9, 0.99)]
    assert counts == [5, 9, 10]
    assert int(metrics.directions(np.eye(10)[0], 0.99)) == 1
    hundred = [int(metrics.directions(np.ones(100), f)) for f in (0.5, 0.9, 0.99, 0.901)]
    assert hundred == [50, 90, 99, 91]


def test_as_many_tokens_as_dimensions_are_too_few(rng):
    """n tokens span n - 1 directions: 6 of 6 leave one out, 7 do not."""
    x = np.float32(rng.normal(size=(7, 6)))
    few, enough = (metrics.measure(observe(x[:n])) for n in (6, 7))
    assert (bool(few["deficient"]), bool(enough["deficient"])) == (True, False)
    assert float(few["tokens_per_dimension"]) == 1
    found = metrics.eigenvalues(covariance(observe(x[:6])), 6)
    assert found[4] > 0 == found[5]


def test_the_form_of_utilisation_reaches_every_metric(rng):
    """(r - 1) / (D - 1) of hand-computed ranks 3 and 3 of D = 5: 1/2 in place of 3/5, and eDim 1 + 4 x either."""
    x = np.zeros((6, 5), np.float32)
    x[np.arange(6), np.arange(6) // 2] = [1, -1, 1, -1, 1, -1]  # three equal directions of no mean
    m = observe(x)
    for form, share in (("r/D", 3 / 5), ("(r-1)/(D-1)", 1 / 2)):
        measured = metrics.measure(m, form)
        for name in ("hard_utilisation", "soft_utilisation", "sui"):
            assert float(measured[name]) == pytest.approx(share, rel=1e-5), (form, name)
        assert float(measured["edim"]) == pytest.approx(1 + 4 * share, rel=1e-5)


def test_ranks_of_weights(rng):
    """Against numpy's norms and singular values."""
    w = np.float32(rng.normal(size=(3, 20, 12)) * power(12, 1))
    stable_ranks, effective_ranks = metrics.stable_rank(w), metrics.effective_rank(w)
    for i in range(3):
        s = np.linalg.svd(np.float64(w[i]), compute_uv=False)
        stable = np.linalg.norm(w[i]) ** 2 / np.linalg.norm(w[i], 2) ** 2
        assert float(stable_ranks[i]) == pytest.approx(stable, rel=1e-5)
        assert float(effective_ranks[i]) == pytest.approx(np.exp(stats.entropy(s)), rel=1e-5)


def test_bad_input():
    flat = jnp.ones(4)
    for call, message in (
        (lambda: metrics.eigenvalues(flat), r"covariance of shape \(4,\): must be \[..., D, D\]"),
        (lambda: metrics.eigenvalues(np.ones((2, 3))), r"covariance of shape \(2, 3\)"),
        (lambda: metrics.renyi_rank(flat, 0), "order=0: must be above 0"),
        (lambda: metrics.directions(flat, 90), "fraction=90: must be between 0 and 1"),
        (lambda: metrics.sui(flat, "r"), r"form='r': must be one of r/D, \(r-1\)/\(D-1\)"),
    ):
        with pytest.raises(InputError, match=message):
            call()

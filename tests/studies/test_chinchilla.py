"""The study's analysis on losses made from a known law."""

import math

import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.studies import chinchilla, tuning
from jaxlab.studies.study import facts

LAW = {"E": 1.5, "A": 20.0, "alpha": 0.35, "B": 150.0, "beta": 0.37}
NOISE = 0.003  # nats/token between seeds, about what the laptop runs show


def made(scale="laptop", slope=-0.3, law=LAW, seed=0):
    """Results of the study's own runs under a law of all parameters, whose best learning rate goes as N^slope."""
    rng, rows = np.random.default_rng(seed), []
    for config, tags in chinchilla.runs(scale):
        f = facts(config)
        loss = law["E"] + law["A"] / f["parameters"] ** law["alpha"] + law["B"] / f["tokens"] ** law["beta"]
        best = -6.5 + slope * math.log2(f["non_embedding"] / 150_000)
        loss += 0.02 * (tags["log2_lr"] - best) ** 2 + rng.normal(0, NOISE)
        rows.append(tags | f | {"status": "finished", "loss": loss, "epochs": 0.1, "seconds": 1.0})
    return rows


@pytest.fixture(scope="module")
def rows():
    return made()


@pytest.fixture(scope="module")
def analysis(rows):
    return chinchilla.analyse(rows)


def test_the_law_behind_the_losses_is_found(rows):
    """Within the intervals over resampled cells; the intervals are narrow enough to say something."""
    found, resampled = chinchilla.fitted(rows, "parameters")
    for name in ("alpha", "beta"):
        low, high = resampled.interval(name)
        assert low < LAW[name] < high
        assert high - low < 0.2
    assert found.r2 > 0.99


def test_the_best_learning_rate_is_found(rows):
    """The exponents within their intervals, which are narrow, and every minimum within a tenth of an octave."""
    found = tuning.best_rates(rows, chinchilla.INPUTS)
    for name, exponent in (("N", -0.3), ("D", 0.0)):
        low, high = found.interval(name)
        assert low < exponent < high
        assert high - low < 0.15
    for (model, _), (log2_rate, _) in found.minima.items():
        n = next(row["non_embedding"] for row in rows if row["model"] == model)
        assert log2_rate == pytest.approx(-6.5 - 0.3 * math.log2(n / 150_000), abs=0.1)


def test_losses_without_a_minimum_have_no_best_rate(rows):
    falling = [row | {"loss": 3.0 - 0.01 * row["log2_lr"] ** 2} for row in rows]
    with pytest.raises(InputError, match="no minimum"):
        tuning.best_rates(falling, chinchilla.INPUTS)


def test_seed_noise_is_what_was_put_in(rows):
    """20 pairs: the pooled standard deviation has a relative error of 1/sqrt(40)."""
    assert tuning.seed_noise(rows) == pytest.approx(NOISE, rel=0.5)


def test_a_diverged_run_is_not_the_best_one(rows):
    broken = [row | ({"status": "diverged", "loss": None} if row["log2_lr"] == -7 else {}) for row in rows]
    assert -7 not in {row["log2_lr"] for row in tuning.tuned(broken)}


def test_claims_follow_the_law(analysis):
    """The constants lie where the claims say, embeddings were counted, and rates fall with size."""
    verdicts = {j.claim.id: j.verdict for j in analysis.claims}
    for claim in ("C1", "C2", "C4", "C5", "C6"):
        assert verdicts[claim].verdict == "supported", verdicts[claim]
    assert [j.runs for j in analysis.claims] == [80] * 7


def test_claims_can_be_contradicted():
    """Losses that hardly depend on the parameters, and learning rates that rise with them."""
    rows = made(slope=0.15, law=LAW | {"alpha": 0.8, "A": 4_000.0})
    verdicts = {j.claim.id: j.verdict.verdict for j in chinchilla.analyse(rows).claims}
    assert verdicts["C1"] == "contradicted"
    assert verdicts["C3"] == "contradicted"
    assert verdicts["C6"] == "contradicted"


def test_too_few_results_leave_claims_inconclusive(rows):
    few = [row for row in rows if row["model"] == "37k" and row["tokens"] < 300_000]
    judged = [chinchilla.judged(claim, few) for claim in chinchilla.CLAIMS]
    assert {j.verdict.verdict for j in judged} == {"inconclusive"}
    assert all("cannot be measured" in j.verdict.what for j in judged)


def test_the_figures_are_drawn(analysis, tmp_path):
    for name, (figure, caption) in analysis.figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert caption
        for ax in figure.axes:
            assert ax.get_xlabel()

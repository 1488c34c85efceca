"""The spectral study's analysis on ranks made from known exponents, its grids, and a part that runs."""

import csv
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from jaxlab.cost.flops import training_per_token
from jaxlab.data.store import open_store
from jaxlab.model.families import parameters
from jaxlab.studies import spectral
from jaxlab.studies.claim import judged
from jaxlab.studies.report import write
from jaxlab.studies.spectral import effects, measures
from jaxlab.studies.spectral.claims import CLAIMS
from jaxlab.studies.spectral.grid import MODELS, SCALES, Setting, config, measured_at, settings, uneven
from jaxlab.studies.study import load, results
from tests import tiny
from tests.studies import spectral_worlds as worlds

UNMOVED = {
    "S1b",
    "S2d",
    "S8b",
    "S8c",
    "S8d",
    "S14c",
    "S15",
    "S16",
}  # true in both worlds, or judged by a world of their own


@pytest.fixture(scope="module")
def rows():
    return worlds.made(worlds.PAPER)


@pytest.fixture(scope="module")
def analysis(rows):
    return spectral.analyse(rows)


def verdicts(rows, wanted=None):
    found = (judged(claim, rows) for claim in CLAIMS if wanted is None or claim.id in wanted)
    return {j.claim.id: j.verdict for j in found}


def test_a_run_is_the_median_of_medians(data, rows, tmp_path):
    """Six measurements of three layers: per layer the median of the last five, then of the layers; over tokens the
    median of the layers, and the mean loss of the steps before; the entropy of the bytes counted here."""
    ranks = [[9, 1, 1], [1, 5, 8], [2, 4, 8], [3, 3, 1], [4, 2, 8], [5, 1, 8]]
    lines = []
    for i, of_layers in enumerate(ranks, 1):
        lines.append({"kind": "train", "tokens": 10 * i, "loss": 7.0 - i})
        metrics = {f"post/{name}/{j}": r for name in measures.LAST for j, r in enumerate(of_layers)}
        lines.append({"kind": "spectra", "tokens": 10 * i, "pre/hard_rank/0": 77} | metrics)
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "config.json").write_text(json.dumps({"config": {"data.store": data["data.store"]}}))
    found = spectral.measured(tmp_path)
    assert found["hard_rank"] == found["edim"] == "3 3 8"
    assert found["over_hard_rank"] == "1 5 4 3 4 5"
    assert found["over_least_hard_rank"] == "1 1 2 1 2 1"
    assert found["over_most_concentration"] == "9 8 8 3 8 8"
    assert found["over_tokens"] == "10 20 30 40 50 60"
    assert found["over_loss"] == "6 5.5 5 4.5 4 3.5"
    split = open_store(data["data.store"]).split("validation")
    counts = Counter(split.read(np.array([0]), split.num_tokens)[0].tolist())
    entropy = -sum(n / split.num_tokens * math.log(n / split.num_tokens) for n in counts.values())
    assert found["unigram"] == pytest.approx(entropy, abs=1e-4)
    row = rows[0] | found | {"loss": entropy - 0.05}
    (run,) = measures.ended([row])
    assert (run["value"]["hard_rank"], run["collapsed"], run["warned"]) == (3.0, True, True)
    assert measures.at("hard_rank", 0.5)(run | {"tokens": 60}) == 4.0


def test_the_papers_world_supports_its_claims(analysis):
    """But S15: Pre-LN and Mix-LN train without weight normalisation, as they do at 250M; and S2c, which needs more
    scatter than other claims bear."""
    for j in analysis.claims:
        wanted = {"S2c": "inconclusive", "S15": "contradicted"}.get(j.claim.id, "supported")
        assert j.verdict.verdict == wanted, (j.claim.id, j.verdict)


def test_the_opposite_world_contradicts_them():
    for claim, found in verdicts(worlds.made(worlds.OPPOSITE)).items():
        if claim not in UNMOVED:
            assert found.verdict == "contradicted", (claim, found)


def test_claims_that_other_worlds_decide():
    """Layers that grow alike; deep models that do not train; erratic hard ranks; collapse to five directions; bias of
    few tokens."""
    w = worlds.PAPER
    gains = dict.fromkeys(w.gains, 0.0)
    for claim, changed in (
        ("S14c", replace(w, layers=0.0)),
        ("S15", replace(w, gains=gains)),
        ("S2c", replace(w, scatter=60.0)),
        ("S8c", replace(w, collapsed_rank=5.0)),
        ("S8d", replace(w, collapsed_rank=5.0)),
        ("S1b", replace(w, bias=0.3)),
        ("S2d", replace(w, bias=0.3)),
    ):
        expected = "supported" if claim in ("S15", "S2c") else "contradicted"
        found = verdicts(worlds.made(changed), {claim})[claim]
        assert found.verdict == expected, (claim, found)


def test_what_is_smaller_than_the_noise_is_inconclusive():
    found = verdicts(worlds.made(replace(worlds.PAPER, noise=1.0)), {"S1", "S3", "S9b", "S12c", "S13", "S14"})
    assert {v.verdict for v in found.values()} == {"inconclusive"}, found


def test_exponents_of_the_world_are_found(rows):
    """Within 0.05: a hard rank has noise of 3 %, its widths an ln of 2 apart."""
    found = effects.sweeps(measures.best(rows))
    assert {key[1] for key in found} == {"pre", "post", "mix"}
    for (model, norm), runs in found.items():
        family = MODELS[model].family
        expected = worlds.PAPER.betas.get((family, norm), worlds.PAPER.betas["llama", "pre"])
        for name, beta in zip(("soft_rank", "hard_rank"), expected, strict=True):
            assert measures.line(runs, measures.of(name)).exponents["D"] == pytest.approx(beta, abs=0.05)


def test_ratios_are_differences_of_exponents(rows):
    """The slope through ratios of pairs is exactly the difference of both slopes; the interval is the pairs' own."""
    runs = measures.best(rows)
    post = measures.arm(runs, part="norm", norm="post")
    pairs = measures.pairs(post, measures.main(runs), "width")
    soft = measures.of("soft_rank")
    first, second = (measures.line([pair[i] for pair in pairs], soft).exponents["D"] for i in (0, 1))
    assert measures.paired_line(pairs, soft).exponents["D"] == pytest.approx(first - second)
    assert all(x["seed"] == y["seed"] and x["D"] == y["D"] for x, y in pairs)


def test_mean_is_scipys():
    values = [0.1, 0.4, 0.2, 0.35]
    peer = stats.ttest_1samp(values, 0).confidence_interval()
    assert tuple(measures.mean(values)) == pytest.approx((0.2625, *peer))


def test_partial_correlation_is_that_of_residuals(rows):
    """Against least squares with a column for every group."""
    runs = effects.healthy(measures.best(rows))
    groups = sorted({tuple(r[k] for k in effects.SHAPE) for r in runs})
    design = np.array([[tuple(r[k] for k in effects.SHAPE) == g for g in groups] for r in runs], float)
    both = np.stack([[np.log(r["value"]["edim"]) for r in runs], [r["loss"] for r in runs]], -1)
    left = both - design @ np.linalg.lstsq(design, both, rcond=None)[0]
    found = effects.correlation(runs, "edim", effects.SHAPE)
    assert found[0] == pytest.approx(np.corrcoef(left.T)[0, 1])
    half = 1.959964 / np.sqrt(len(runs) - len(groups) - 2)  # Fisher's z
    assert np.arctanh(found) == pytest.approx(np.arctanh(found[0]) + half * np.array([0, -1, 1]))


def test_diverged_runs_count_as_collapsed(rows):
    broken = [r | ({"status": "diverged", "loss": None} if r["part"] == "collapse" else {}) for r in rows]
    runs = [r for r in measures.ended(broken) if r["part"] == "collapse"]
    assert all(r["collapsed"] for r in runs)
    assert {effects.context_gain(r) for r in runs} == {0.0}
    unmeasured = [r | {"over_tokens": ""} for r in rows]
    assert {v.verdict for k, v in verdicts(unmeasured).items() if k != "S16"} == {"inconclusive"}


def test_one_part_alone_leaves_the_others_inconclusive(rows):
    found = verdicts([row for row in rows if row["part"] == "base"])
    assert found["S1"].verdict == "supported"
    for claim in ("S1b", "S5", "S7", "S8", "S9", "S12", "S13b", "S14"):
        assert "cannot be measured" in found[claim].what, (claim, found[claim])


def test_one_run_of_each_part_can_be_reported(rows):
    few = list({row["part"]: row for row in rows}.values())
    for some in (few, few[:1]):
        found = spectral.analyse(some)
        assert {j.claim.id for j in found.claims if j.verdict.verdict != "inconclusive"} <= {"S16"}


def test_the_figures_are_drawn(analysis, tmp_path):
    assert analysis.figures.keys() == {"ranks", "exponents", "dynamics", "collapse", "edim", "layers"}
    assert len(analysis.fits) == 7
    for name, (figure, caption) in analysis.figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert caption
        for ax in figure.axes:
            assert ax.get_xlabel()
    labels = {line.get_label() for line in analysis.figures["collapse"][0].axes[0].lines}
    assert set(effects.ARMS) <= labels


def test_results_are_enough(rows, tmp_path):
    """Every verdict comes out of the table as a file."""
    wanted = {"S2", "S5", "S8", "S14"}
    file = tmp_path / "results.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    with file.open(newline="") as read:
        again = [{k: number(v) for k, v in row.items()} for row in csv.DictReader(read)]
    before, after = verdicts(rows, wanted), verdicts(again, wanted)
    assert {k: v[:4] for k, v in after.items()} == {k: v[:4] for k, v in before.items()}


def number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_can_be_built(scale):
    study = load(f"spectral:{scale}", "runs")
    assert len({trial.name for trial in study.trials}) == len(study.trials)
    parts = {trial.tags["part"] for trial in study.trials}
    everything = {part for claim in CLAIMS for part in claim.parts}
    some = {"smoke": {"base"}, "paper": {"base", "norm", "family", "collapse"}}
    assert parts == some.get(scale, everything | {"layers"})


def test_every_width_has_tokens_enough():
    """At least 10 a dimension, the same number at every width of a part but `samples` (2509.26560)."""
    for scale in SCALES.values():
        for s in settings(scale):
            widest = max(map(int, s.allocation.split(","))) if s.allocation else s.width * MODELS[s.model].d_model
            assert s.samples >= 10 * widest
    counts = {(s.part, s.samples) for s in settings(SCALES["laptop"])}
    assert len(counts) == len({part for part, _ in counts})


def test_balanced_budgets_cost_as_much_as_the_wider():
    """Tokens to a batch, depth to a layer of 4 or 7: 10 %."""
    planned = list(settings(SCALES["laptop"]))
    base = {s.width: flops(s) for s in planned if s.part == "base"}
    arms = {(s.model, s.width) for s in planned if s.part == "balance"}
    assert arms == {(f"llama-{n}x32", multiple) for n in (4, 7) for multiple in (1, 4)}
    for s in planned:
        if s.part == "balance":
            assert flops(s) == pytest.approx(base[{1: 2.67, 4: 8}[s.width]], rel=0.1), s


def flops(s: Setting) -> float:
    return s.tokens * training_per_token(config(SCALES["laptop"], s).model, 32)


def test_allocations_hold_the_parameters():
    for allocation in uneven(MODELS["llama-4x32"], 4):
        s = Setting("layers", "llama-4x32", "pre", "none", 4, allocation, 2**19, 8_192, -6, 0)
        even = config(SCALES["laptop"], s._replace(allocation="")).model
        assert parameters(config(SCALES["laptop"], s).model)["total"] == parameters(even)["total"]


def test_recipes_and_times_of_measurement():
    s = next(s for s in settings(SCALES["paper"]) if s.model == "llama-250m")
    c = config(SCALES["paper"], s)
    assert (c.optim.b2, c.optim.weight_decay, c.optim.clip, c.schedule.final_fraction) == (0.999, 0.0, 0.0, 0.1)
    assert (c.tokens, c.batch.tokens, c.model.init_std) == (40_000 * 131_072, 131_072, 0.02)
    ngpt = next(s for s in settings(SCALES["laptop"]) if s.model == "ngpt-4x32")
    c = config(SCALES["laptop"], ngpt)
    assert (c.schedule.warmup_tokens, c.optim.weight_decay, c.schedule.final_fraction) == (0, 0.0, 0.0)
    times = measured_at(ngpt)
    assert times[-1] == ngpt.tokens
    assert all(t % 256 == 0 for t in times)


@pytest.mark.slow
def test_a_run_is_measured_and_reported(data, tmp_path):
    """From the command line, on random words: ranks reach the table and the report."""
    changes = {**data, "data.tokenizer": "bytes", "data.validation_fraction": 0.05, "tokens": 2_048,
               "schedule.warmup_tokens": 256, "model.num_layers": 1, "spectra.at": "512 2048",
               "spectra.tokens": 512}  # fmt: skip
    flags = ["--study=spectral:smoke", "--index=0", f"--runs={tmp_path}", "--workers=1"]
    done = tiny.launch("study", *flags, *(f"--set={key}={value}" for key, value in changes.items()), "run")
    assert done.returncode == 0, done.stderr
    study = load("spectral:smoke", tmp_path, changes=changes)
    (row,) = results(study)
    assert row["over_tokens"] == "512 2048"
    assert 1 <= float(row["hard_rank"]) <= 16
    write(study, tmp_path / "results", "")
    assert row["hard_rank"] in (tmp_path / "results" / "spectral" / "smoke" / "results.csv").read_text()

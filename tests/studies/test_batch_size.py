"""The batch-size study's analysis on curves made from known laws, its grids, and a part that runs."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from jaxlab.laws import batch_size as law
from jaxlab.optim.batch_growth import from_text, rounded, walk
from jaxlab.studies import batch_size
from jaxlab.studies.batch_size import arms, effects, measures
from jaxlab.studies.batch_size.claims import CLAIMS
from jaxlab.studies.batch_size.grid import ARMS, BATCHES, MODELS, SCALES, Setting, settings, stages
from jaxlab.studies.claim import judged
from jaxlab.studies.report import write
from jaxlab.studies.study import facts, load, results
from jaxlab.studies.worker import train_all
from tests import quick
from tests.studies import batch_size_worlds as worlds

FITS = {"B2", "B3", "B3b", "B4", "B5", "B5b", "B7"}  # decided by fits: judged in one world only
ALONE = {"B6"}  # not measurable where the smallest batch is best


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """A third of them: verdicts of these worlds are clear."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "DRAWS", 70)
        patch.setattr(measures, "REFITS", 30)
        yield


@pytest.fixture(scope="module")
def rows():
    return worlds.made(worlds.PAPER)


@pytest.fixture(scope="module")
def analysis(rows):
    return batch_size.analyse(rows)


def verdicts(rows, wanted):
    return {claim.id: judged(claim, rows).verdict for claim in CLAIMS if claim.id in wanted}


def test_the_papers_world_supports_its_claims(analysis):
    """But for the three pieces, where another law made the curves; and nobody can measure benchmarks."""
    other = {"B2": "contradicted", "B9": "inconclusive"}
    for j in analysis.claims:
        assert j.verdict.verdict == other.get(j.claim.id, "supported"), (j.claim.id, j.verdict)


def test_the_opposite_world_contradicts_them():
    wanted = {claim.id for claim in CLAIMS} - FITS - ALONE - {"B9"}
    for claim, found in verdicts(worlds.made(worlds.OPPOSITE), wanted).items():
        assert found.verdict == "contradicted", (claim, found)


def test_what_other_worlds_decide():
    """A floor that goes with the rate: e = 1, to 0.15; where batches reach the target, B_min is known to a fifth."""
    found = verdicts(worlds.made(replace(worlds.PAPER, of_rate=1.0)), {"B3b"})["B3b"]
    assert found.verdict == "contradicted"
    assert found.effect == pytest.approx(1, abs=0.15)


def test_the_three_pieces_win_where_they_made_the_curves():
    """Joints, minimum and curvature with a best batch of 500 and a smallest of 62."""
    pieces = law.free_parameters(S_min=100 / 6, S_1=100, S_opt=200, S_2=1_250 / 3, E_min=1e5, C=0.144)
    assert law.constants(pieces)["B_min"] == pytest.approx(62.4)
    rows = [row for row in worlds.made(replace(worlds.PAPER, pieces=pieces)) if row["part"] == "crossing"]
    found = verdicts(rows, {"B2"})["B2"]
    assert found.verdict == "supported", found


def test_what_is_smaller_than_the_noise_is_inconclusive():
    rows = worlds.made(replace(worlds.PAPER, noise=(0.1, 0.0)))
    found = verdicts(rows, {"B8", "B8d", "B10b", "B11c", "B12", "B13b", "B14b"})
    assert {v.verdict for v in found.values()} == {"inconclusive"}, found


def test_parts_alone_leave_the_others_inconclusive(rows):
    """And too few runs all of them."""
    found = verdicts([row for row in rows if row["part"] == "ramp"], {"B1", "B8", "B11", "B12", "B14"})
    assert found.pop("B8").verdict == "supported"
    for claim, verdict in found.items():
        assert "cannot be measured" in verdict.what, (claim, verdict)
    few = batch_size.analyse([row for row in rows if (row["part"], row["batch"]) == ("crossing", 512)])
    assert {j.verdict.verdict for j in few.claims} == {"inconclusive"}
    assert not few.figures


def test_intervals_cover_as_often_as_they_say():
    """Of twenty worlds the gap of ramp and constant, 0.0264 nats, lies within at least 17: P(less) = 1.6 %."""
    quantity, inside, w = arms.gap(arms.ramp(), arms.constant()), 0, replace(worlds.PAPER, noise=(0.01, 0.05))
    exact = measures.means(measures.lines(worlds.made(replace(w, noise=(0, 0)))))
    for seed in range(20):
        rows = [row for row in worlds.made(w, seed) if row["part"] == "ramp"]
        low, high = measures.interval(measures.lines(rows), quantity)
        inside += low <= quantity(exact) <= high
    assert inside >= 17


def test_the_floor_of_the_world_is_found(rows):
    """B_min = 41 / (L - 3), B_opt = 3 B_min, within 5 %: the noise of 5e-4 nats is 0.2 % of 0.25."""
    sweep = measures.base(measures.means(measures.lines(rows)))
    assert [batch for batch, *_ in sweep] == list(BATCHES)  # those too that do not divide the tokens
    for target, best in list(measures.all_best(sweep).items())[2:]:
        assert best.constants["B_opt"] == pytest.approx(3 * 41 / (target - 3), rel=0.05)
        low, high = measures.percentiles(best.draws["B_opt"])
        assert low <= best.constants["B_opt"] <= high


def test_crossings_are_those_of_the_world():
    """Batches a < b: (40 a / D)^1/2 + 41 / a = (40 b / D)^1/2 + 41 / b, to one evaluation in 64 and its smoothing."""
    quiet = replace(worlds.PAPER, noise=(0, 0))
    sweep = measures.base(measures.means(measures.lines(worlds.made(quiet))))
    found = effects.neighbours(sweep)
    step = 2**21 / 64
    for (a, *_), (b, *_), tokens in zip(sweep, sweep[1:], found, strict=False):
        D = 40 * ((b**0.5 - a**0.5) / (41 / a - 41 / b)) ** 2
        if 4 * step < D < 2**21 - 2 * step:
            assert tokens == pytest.approx(D, abs=1.5 * step)
        elif D > 2**21:
            assert math.isinf(tokens)


def test_waste_is_the_law_over_its_least():
    p = {"S_min": 70.0, "B_min": 80.0, "s": 0.7}
    B = np.array([95.0, 150, 194.3, 1_000])
    expected = law.NOISE_FLOOR(p, {"B": B}) / law.floor_constants(p)["E_min"]
    assert effects.waste(law.floor_constants(p), B) == pytest.approx(np.log(expected), abs=1e-9)
    assert effects.waste(law.floor_constants(p), np.array(60.0)) == effects.MOST


def test_the_ramp_takes_as_many_steps_as_the_mean_batch():
    """Published sizes: 133,117 steps against 119,209 at 4M; the mean batch has the ramp's to 1e-3."""
    ramp, mean = (Setting("", "moe", 2**21, arm, tokens=500 * 10**9) for arm in ("ramp", "mean"))
    steps = [sum(stage.steps for stage in walk(stages(s), s.tokens)) for s in (ramp, mean)]
    assert steps[0] == pytest.approx(133_117, abs=3)
    assert steps[1] == pytest.approx(steps[0], rel=1e-3)
    assert all({*ARMS, *scale.growth} >= {s.arm for s in settings(scale)} for scale in SCALES.values())


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_can_be_built(scale):
    """Names are unique; all runs of an arm's part take the same tokens in the same order; every claim has its parts."""
    study = load(f"batch_size:{scale}", "runs")
    assert len({trial.name for trial in study.trials}) == len(study.trials)
    for trial in study.trials:
        s, c = Setting(**trial.tags), trial.config
        assert c.batch.growth or c.batch.tokens == s.batch
        unit = c.batch.micro_tokens or c.batch.context
        options = {"until": c.tokens, "parameters": MODELS[s.model].parameters, "first": s.batch}
        planned = stages(s) if s.arm in ARMS else from_text(c.batch.growth, **options)
        for wanted, size in zip(planned.values(), rounded(planned, unit).values(), strict=True):
            assert size == pytest.approx(wanted, rel=0.03 if unit * 8 <= wanted else 0.3)
    parts = {trial.tags["part"] for trial in study.trials}
    assert parts <= {part for claim in CLAIMS for part in claim.parts}
    if scale in ("laptop", "gpu"):
        assert parts == {part for claim in CLAIMS for part in claim.parts}


def test_parameters_are_those_of_the_run():
    for name, scale in (("2x24", "laptop"), ("6x256", "gpu"), ("600m", "paper")):
        trial = next(t for t in load(f"batch_size:{scale}", "runs").trials if t.tags["model"] == name)
        assert facts(trial.config)["non_embedding"] == MODELS[name].parameters


def test_eighths():
    """Equal shares of the tokens, of steps of all sizes; a share that one step covers has that step's."""
    tokens, values = [1, 2, 3, 4, 6, 8], np.arange(6.0)
    assert measures.eighths(tokens, values) == [0, 1, 2, 3, 4, 4, 5, 5]
    assert measures.eighths(list(range(1, 17)), np.arange(16.0)) == [2 * i + 0.5 for i in range(8)]


def test_the_figures_are_drawn(analysis, tmp_path):
    assert analysis.figures.keys() == {"crossing", "pieces", "best", "ramp", "rule", "length", "curve", "noise"}
    for name, (figure, caption) in analysis.figures.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=30)
        assert caption
        for ax in figure.axes:
            assert ax.get_xlabel()


@pytest.mark.slow
def test_a_part_runs_and_is_reported(data, tmp_path):
    """The cosine part on random words: a batch that grows, its noise measured."""
    changes = {**data, "data.tokenizer": "bytes", "data.validation_fraction": 0.05}
    study = load("batch_size:smoke", tmp_path, part="cosine", changes=changes)
    with quick.compiling():  # longer than it runs
        train_all(study, study.trials)
    (row,) = results(study)
    rows = [json.loads(line) for line in (study.folder / row["name"] / "metrics.jsonl").read_text().splitlines()]
    seen = [r for r in rows if r["kind"] == "eval"]
    assert measures.numbers(row["at"]).tolist() == [r["tokens"] for r in seen]
    assert measures.numbers(row["losses"]) == pytest.approx([r["loss"] for r in seen], rel=1e-4)
    trained = [r for r in rows if r["kind"] == "train"]
    assert {r["batch_tokens"] for r in trained} == {256, 640}
    last = [r["noise"] for r in trained if r["tokens"] > 7 / 8 * trained[-1]["tokens"]]
    assert measures.numbers(row["noise"])[-1] == pytest.approx(np.mean(last), rel=1e-3)
    write(study, tmp_path / "results", "")
    folder = tmp_path / "results" / "batch_size" / "smoke"
    with (folder / "results.csv").open() as file:
        (kept,) = csv.DictReader(file)
    assert kept["losses"] == row["losses"]
    assert "B14c" in (folder / "report.md").read_text()

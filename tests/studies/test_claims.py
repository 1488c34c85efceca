"""What the analysis of every study must do: verdicts in worlds with known laws, figures, and a part from the command
line to its report."""

from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

import pytest

from jaxlab.studies import diloco, floating_point
from jaxlab.studies.claim import judged
from jaxlab.studies.report import write
from jaxlab.studies.study import load
from tests import tiny
from tests.studies import diloco_worlds, floating_point_worlds


class Case(NamedTuple):
    """worlds: PAPER, OPPOSITE and made(world) -> results. Claims: supported and contradicted in the paper's world,
    contradicted in the opposite one; noisy, inconclusive where a run's own noise is 0.03. Some parts alone, a claim
    that they support and others that they cannot decide; few, results too few for any claim, and the figures left. A
    part of the smoke scale, its runs and a claim of it."""

    study: ModuleType
    worlds: ModuleType
    supported: set
    contradicted: set
    opposite: set
    noisy: set
    figures: int
    alone: tuple[set, str, set]
    few: tuple[dict, set]
    smoke: tuple[str, int, str]


SIGNS = {
    "diloco": {"D2", "D4", "D4b", "D5", "D6", "D7", "D8", "D10", "D11", "D13", "D13b", "D15", "D15b", "D15c"},
    "floating_point": {"F1", "F1b", "F2", "F3", "F4b", "F5b", "F5c", "F6", "F6b", "F6c", "F8", "F8b", "F12"},
}
CASES = {
    "diloco": Case(
        diloco, diloco_worlds,
        supported=SIGNS["diloco"] | {"D8b", "D9", "D12"},
        contradicted={"D14"},
        opposite=SIGNS["diloco"] | {"D3"},
        noisy={"D4", "D4b", "D11"},  # M = 1 is 1 % better; the noise is three times that of the laptop's runs
        figures=8,
        alone=({"loss"}, "D2", {"D5", "D6", "D8", "D11", "D13", "D15"}),
        few=({"part": "loss", "model": "26k", "replicas": 0}, {"cost", "loss", "rates"}),
        smoke=("outer_lr", 2, "D15c"),
    ),
    "floating_point": Case(
        floating_point, floating_point_worlds,
        supported=SIGNS["floating_point"] | {"F1c", "F1d", "F5", "F9", "F9b", "F10", "F11", "F13b"}
        | {"F3b", "F4", "F7", "F13", "F14", "F14b"},  # computed from the published constants
        contradicted={"F4c"},  # of the world's losses nothing follows for the error of a cast
        opposite=SIGNS["floating_point"],
        noisy={"F1", "F3", "F6", "F12"},  # E1M1 costs 0.016 nats and schedules differ by 0.01
        figures=7,
        alone=({"base", "exponent", "targets"}, "F1", {"F3", "F8", "F12"}),
        few=({"part": "base", "model": "108k", "tokens": 2**19}, {"precision"}),
        smoke=("schedule", 1, "F12"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def rows(case):
    return case.worlds.made(case.worlds.PAPER)


@pytest.fixture(scope="module")
def analysis(case, rows):
    return case.study.analyse(rows)


def verdicts(case, rows, wanted):
    found = {claim.id: judged(claim, rows).verdict for claim in case.study.CLAIMS if claim.id in wanted}
    assert found.keys() == wanted
    return found


def test_the_papers_world_supports_its_claims(case, analysis):
    found = {j.claim.id: j.verdict for j in analysis.claims}
    for claim in case.supported:
        assert found[claim].verdict == "supported", (claim, found[claim])
    for claim in case.contradicted:
        assert found[claim].verdict == "contradicted", (claim, found[claim])


def test_the_opposite_world_contradicts_them(case):
    for claim, found in verdicts(case, case.worlds.made(case.worlds.OPPOSITE), case.opposite).items():
        assert found.verdict == "contradicted", (claim, found)


def test_what_is_smaller_than_the_noise_is_inconclusive(case):
    rows = case.worlds.made(replace(case.worlds.PAPER, noise=(0.03, 0.0)))
    for claim, found in verdicts(case, rows, case.noisy).items():
        assert found.verdict == "inconclusive", (claim, found)


def test_parts_alone_leave_the_others_inconclusive(case, rows):
    parts, supported, others = case.alone
    found = verdicts(case, [row for row in rows if row["part"] in parts], others | {supported})
    assert found[supported].verdict == "supported"
    for claim in others:
        assert "cannot be measured" in found[claim].what, (claim, found[claim])


def test_too_few_runs_leave_all_that_is_not_computed_inconclusive(case, rows):
    chosen, figures = case.few
    few = [row for row in rows if row.items() >= chosen.items()]
    assert few
    analysis = case.study.analyse(few)
    for j in analysis.claims:
        assert not j.claim.parts or j.verdict.verdict == "inconclusive", j
    assert analysis.figures.keys() == figures


def test_the_figures_are_drawn(case, analysis, tmp_path):
    assert len(analysis.figures) == case.figures
    for name, (figure, caption) in analysis.figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert caption
        for ax in figure.axes:
            assert ax.get_xlabel()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_part_runs_and_is_reported(name, data, tmp_path, request):
    """From the command line, on random words."""
    part, runs, claim = CASES[name].smoke
    changes = {**data, "data.tokenizer": "bytes", "data.validation_fraction": 0.05}
    flags = [f"--study={name}:smoke", f"--part={part}", f"--runs={tmp_path}", "--workers=1"]
    flags += [f"--set={key}={value}" for key, value in changes.items()]
    done = tiny.launch("study", *flags, "run", cache=request.config.cache.mkdir("jax"))
    assert done.returncode == 0, done.stderr
    write(load(f"{name}:smoke", tmp_path, part=part, changes=changes), tmp_path / "results", "")
    folder = tmp_path / "results" / name / "smoke"
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + runs
    assert claim in (folder / "report.md").read_text()

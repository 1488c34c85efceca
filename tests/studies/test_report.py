"""Verdicts, and the reports made of them."""

import math
from pathlib import Path

import pytest

from jaxlab.config import InputError
from jaxlab.studies.claim import NEGATIVE, POSITIVE, Claim, Judged, Verdict, by_interval, compare, judged
from jaxlab.studies.report import (
    _html,
    _markdown,
    claim_record,
    claim_row,
    kept,
    panels,
    plain_numbers,
    reproduce,
    sequential,
    with_interval,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 0.2), "supported"), ((0.0, 0.5), "supported"), ((-0.1, 0.2), "inconclusive"),
        ((0.4, 0.6), "inconclusive"), ((-0.1, 0.9), "inconclusive"), ((0.6, 0.7), "contradicted"),
        ((-2.0, -1.0), "contradicted"), ((math.nan, 0.2), "inconclusive"), ((0.1, math.inf), "inconclusive"),
        ((-1.0, 0.0), "inconclusive"), ((0.5, 0.7), "inconclusive"), ((-math.inf, -1.0), "inconclusive"),
    ],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval(interval, verdict):
    assert compare(sum(interval) / 2, *interval, supports=(0.0, 0.5), what="x").verdict == verdict


def test_a_verdict_carries_what_it_was_made_of():
    assert compare(0.2, 0.1, 0.3, (0.0, 0.5), "x") == ("supported", 0.2, 0.1, 0.3, "x")
    found = compare(math.nan, 0.1, 0.3, (0.0, 0.5), "x")
    assert (found.verdict, found.what) == ("inconclusive", "x: its interval is not finite")


@pytest.mark.parametrize(
    ("interval", "negative", "positive"),
    [
        ((-2.0, -1.0), "supported", "contradicted"),
        ((1.0, 2.0), "contradicted", "supported"),
        ((-1.0, 1.0), "inconclusive", "inconclusive"),
    ],
)
def test_signs(interval, negative, positive):
    assert compare(sum(interval) / 2, *interval, NEGATIVE, "x").verdict == negative
    assert compare(sum(interval) / 2, *interval, POSITIVE, "x").verdict == positive


def test_a_quantity_is_judged_by_redrawn_losses():
    """The mean of four y with noise of 0.2 each has a standard deviation of 0.1: 0.5 -+ 0.196."""
    runs = [{"model": "m", "y": y, "own": 0.2, "shared": 0.0} for y in (0.2, 0.4, 0.6, 0.8)]

    def mean(settings):
        return sum(run["y"] for run in settings) / len(settings)

    judge = by_interval(
        lambda rows: rows[1:], mean, (0.0, 1.0), "a mean", detail=lambda settings: f"{len(settings)} runs"
    )
    found = judge([None, *runs])
    assert found.effect == pytest.approx(0.5)
    assert (found.low, found.high) == (pytest.approx(0.304, abs=0.04), pytest.approx(0.696, abs=0.04))
    assert (found.verdict, found.what) == ("supported", "a mean; 4 runs")
    assert by_interval(lambda rows: rows, mean, (0.5, 1.0), "a mean")(runs)[::4] == ("inconclusive", "a mean")


def test_a_claim_as_a_line_of_a_table():
    verdict = Verdict("supported", 0.12345, 0.1, math.inf, "of x")
    claim = Claim("X1", "text", "0.1 (a paper)", ("a",), None)
    record = claim_record(Judged(claim, verdict, 3, 2_500_000, 1_234.4))
    assert (record["effect"], record["low"], record["high"]) == (0.12345, 0.1, None)
    assert claim_row(record) == {
        "": "X1", "claim": "text", "published": "0.1 (a paper)", "found": "0.123 [0.1, unbounded]", "of what": "of x",
        "verdict": "supported", "behind it": "3 runs, 2.5 M tokens, 1,234 s",
    }  # fmt: skip
    assert with_interval(1234.5, (0.00012345, 2.0)) == "1.23e+03 [0.000123, 2]"


def test_verdicts_have_their_colours():
    page = _html(("table", [{"v": "supported"}, {"v": "contradicted"}, {"v": "inconclusive"}, {"v": "other"}]), {})
    cells = ["<b style=color:#1a7f37>supported</b>", "<b style=color:#b3261e>contradicted</b>"]
    cells += ["<b style=color:#6b6b6b>inconclusive</b>", "other"]
    assert page == "<table><tr><th>v\n" + "\n".join(f"<tr><td>{cell}" for cell in cells) + "\n</table>"


def test_parts_of_a_report_without_their_runs_are_left_out():
    def too_few(runs):
        raise InputError("too few")

    parts = {"sum": sum, "few": too_few, "none": lambda runs: [], "most": max}
    assert kept(parts, [1, 2]) == {"sum": 3, "most": 2}


def test_panels_and_colours():
    """viridis from its darkest to 0.9 of its range; a grid and no frame, at the size asked for."""
    fig, axes = panels(2, 3, width=6, height=4)
    assert axes.shape == (2, 3)
    assert tuple(fig.get_size_inches()) == (6, 4)
    sides = {"top": False, "right": False, "left": True, "bottom": True}
    assert {side: axes[1, 2].spines[side].get_visible() for side in sides} == sides
    assert sequential(0, 3)[:3] == pytest.approx((0.267004, 0.004874, 0.329415))
    assert sequential(0, 1) == sequential(0, 3)
    assert sequential(1, 2) == sequential(4, 5) == pytest.approx((0.741388, 0.873449, 0.149561, 1), abs=0.01)
    fig, ax = panels(1, 1, width=3, height=2)
    ax.set(xscale="log", xlim=(1, 30))
    plain_numbers(ax.xaxis)
    fig.draw_without_rendering()
    labels = {text.get_text() for minor in (False, True) for text in ax.get_xticklabels(minor=minor)}
    assert {"1", "2", "5", "10", "20"} <= labels
    assert not any("$" in label for label in labels)


def test_what_lies_behind_a_claim_is_counted():
    """Of its own parts only; a fit that cannot be made leaves it inconclusive and says why."""

    def judge(results):
        raise InputError("3 points: too few")

    rows = [{"part": part, "tokens": 10, "seconds": 2.0} for part in ("a", "a", "b")]
    found = judged(Claim("X1", "text", "none", ("a",), judge), rows)
    assert (found.runs, found.tokens, found.seconds) == (2, 20, 4.0)
    assert found.verdict.verdict == "inconclusive"
    assert "3 points: too few" in found.verdict.what
    assert claim_record(found)["effect"] is None
    assert claim_row(claim_record(found))["found"] == "-"


def test_text_of_claims_is_escaped():
    assert _html(("table", [{"a": "x < y & z"}]), {}).count("x &lt; y &amp; z") == 1
    assert _markdown(("table", [{"a": "p|q"}])) == "| a |\n| --- |\n| p\\|q |"


def test_reproduce_is_written_from_the_committed_results():
    assert (ROOT / "docs" / "REPRODUCE.md").read_text() == reproduce(ROOT / "results")

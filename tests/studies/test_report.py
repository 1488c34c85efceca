"""Verdicts, and the reports made of them."""

import math
from pathlib import Path

import pytest

from jaxlab.config import InputError
from jaxlab.studies.claim import Claim, compare, judged
from jaxlab.studies.report import _html, _markdown, claim_record, claim_row, reproduce

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 0.2), "supported"), ((0.0, 0.5), "supported"), ((-0.1, 0.2), "inconclusive"),
        ((0.4, 0.6), "inconclusive"), ((-0.1, 0.9), "inconclusive"), ((0.6, 0.7), "contradicted"),
        ((-2.0, -1.0), "contradicted"), ((math.nan, 0.2), "inconclusive"), ((0.1, math.inf), "inconclusive"),
    ],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval(interval, verdict):
    assert compare(sum(interval) / 2, *interval, supports=(0.0, 0.5), what="x").verdict == verdict


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

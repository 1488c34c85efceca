"""The plan of a width: published laws at their widths, ranks from a file, what is refused."""

import pytest

from jaxlab.config import InputError
from launch import plan


def rows(table):
    """{D / d_model: the row's numbers by column}."""
    names = [str(c.header) for c in table.columns]
    cells = zip(*(c.cells for c in table.columns), strict=True)
    return {row[1]: dict(zip(names, (float(x.replace(",", "")) for x in row), strict=True)) for row in cells}


def test_published_ranks_of_adamw():
    """D = 3,072 and 6,144: e^3.560 D^0.289 and e^1.726 D^0.661 by hand; eDim of both ranks, its slope between."""
    found = rows(plan.width(768))
    four, eight = found["4"], found["8"]
    assert (four["D"], eight["D"], found["2.67"]["D"]) == (3072, 6144, 2048)
    assert (four["hard rank"], four["soft rank"]) == (pytest.approx(358.0, abs=1), pytest.approx(1134, abs=2))
    assert four["eDim"] == pytest.approx(1 + 3071 * 2 / 3072 / (1 / four["hard rank"] + 1 / four["soft rank"]), abs=1.5)
    between = (eight["eDim"] - four["eDim"]) / 3072
    assert eight["eDim of one dimension more"] < between < four["eDim of one dimension more"]
    assert four["weights of a gated FFN"] == 3 * 768 * 3072


def test_ranks_of_a_file_are_fitted(tmp_path):
    """Hard = soft = 3 D^0.5: half of the first dimension's eDim at 4 d_model."""
    file = tmp_path / "ranks.csv"
    lines = (f"{d},{3 * d**0.5},{3 * d**0.5}" for d in (64, 128, 512))
    file.write_text("width,hard_rank,soft_rank\n" + "\n".join(lines) + "\n")
    caption = plan.width(10_000, ranks=str(file)).caption
    assert "hard rank 3 D^0.5, soft rank 3 D^0.5" in caption
    assert "from D = 39,99" in caption  # to 1 / D


def test_bad_input(tmp_path):
    file = tmp_path / "ranks.csv"
    file.write_text("width,hard_rank\n64,3\n")
    for arguments, message in (
        ((None,), "--d_model=None: must be above 0"),
        ((768, "muon"), "--optimiser=muon: must be one of adamw, dion-1/16, dion-1/2"),
        ((768, "adamw", "none.csv"), "--ranks=none.csv: must be a CSV file of numbers in width, hard_rank, soft_rank"),
        ((768, "adamw", str(file)), "must be a CSV file of numbers .*soft_rank"),
    ):
        with pytest.raises(InputError, match=message):
            plan.width(*arguments)
    file.write_text("width,hard_rank,soft_rank\n")
    with pytest.raises(InputError, match="0 rows; must be 3 or more"):
        plan.width(768, ranks=str(file))

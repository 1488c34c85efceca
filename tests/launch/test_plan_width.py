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
    assert eight["d eDim / d D"] < between < four["d eDim / d D"]
    assert four["weights of a gated FFN"] == 3 * 768 * 3072


def test_ranks_of_a_file_are_fitted(tmp_path):
    """Hard = soft = 3 D^0.5: half of the first dimension's eDim at 4 d_model."""
    file = tmp_path / "own [red]ranks.csv"
    lines = (f"{d},{3 * d**0.5},{3 * d**0.5}" for d in (64, 128, 512))
    file.write_text("width,hard_rank,soft_rank\n" + "\n".join(lines) + "\n")
    caption = plan.width(10_000, ranks=str(file)).caption
    assert "hard rank 3 D^0.5, soft rank 3 D^0.5" in caption
    assert "from D = 39,99" in caption  # to 1 / D
    assert caption.count(f"of {file};") == 1
    excel = tmp_path / "ranks.csv"  # with a mark of its encoding
    excel.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert plan.width(10_000, ranks=str(excel)).caption.split(" of ")[0] == caption.split(" of ")[0]


def test_a_width_that_no_law_reaches(tmp_path):
    """Hard = soft = D: a dimension more is worth one everywhere."""
    file = tmp_path / "ranks.csv"
    file.write_text("width,hard_rank,soft_rank\n" + "".join(f"{d},{d},{d}\n" for d in (64, 128, 512)))
    assert "nowhere below 64 d_model" in plan.width(768, ranks=str(file)).caption


def test_bad_input(tmp_path):
    for arguments, message in (
        ((None,), "--d_model=None: must be 8 to"),
        ((7,), "--d_model=7: must be 8 to"),
        ((10**30,), "--d_model=1000000000000000000000000000000: must be 8 to"),
        ((768, "muon"), "--optimiser=muon: must be one of adamw, dion-1/16, dion-1/2"),
        ((768, None, "none.csv"), "--ranks=none.csv: there is no such file"),
        ((768, None, ""), "--ranks=: must name a file"),
        ((768, None, "gs://bucket/ranks.csv"), "--ranks=gs://bucket/ranks.csv: must be on a disk"),
        ((768, None, str(tmp_path)), "--ranks=.*: cannot be read"),
        ((768, "adamw", "none.csv"), "--optimiser=adamw: --ranks takes the place of published ranks"),
    ):
        with pytest.raises(InputError, match=message):
            plan.width(*arguments)


HEADER = b"width,hard_rank,soft_rank\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its columns are none; must be width, hard_rank, soft_rank"),
        (b"<html><body>no</body></html>", "its columns are <html><body>no</body></html>; must be"),
        (b"width,hard_rank\n64,3\n", "its columns are width, hard_rank; must be"),
        (b"width,width,hard_rank,soft_rank\n64,64,2,3\n", "its columns are width, width, .*; must be"),
        (HEADER, "0 rows; must be 3 or more"),
        (
            HEADER + b"64,2,3\n128,nan,3\n",
            "line 3: width=128, hard_rank=nan, soft_rank=3; ranks must be numbers from 1",
        ),
        (HEADER + b"64,0,3\n", "line 2: width=64, hard_rank=0, "),
        (HEADER + b"64,-2,3\n", "line 2: .*hard_rank=-2"),
        (HEADER + b"64,2,65\n", "line 2: .*soft_rank=65; ranks must be numbers from 1 to the width"),
        (HEADER + b"inf,2,3\n", "line 2: width=inf"),
        (HEADER + b"64,two,3\n", "line 2: .*hard_rank=two"),
        (HEADER + b"64,2\n", "line 2: .*soft_rank=None"),
        (HEADER + b"64,2,3,4\n", "line 2: width=64"),
        (HEADER + b"64,2,3\n" * 3, "input 'D' is 64 in every row"),
        (HEADER + b"64,\xff,3\n", "cannot be read .*utf-8"),
        (HEADER + b"1" * 140_000 + b",2,3\n", "cannot be read .*field larger than field limit"),
        (HEADER + b'64,"2,3\n', "cannot be read"),
    ],
    ids=lambda value: value[-24:] if isinstance(value, bytes) else "",
)
def test_bad_files_of_ranks(tmp_path, content, message):
    """One line that names the file, and where a row is bad the line and its values."""
    file = tmp_path / "ranks.csv"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        plan.width(768, ranks=str(file))
    assert str(error.value).startswith(f"--ranks={file}")
    assert "\n" not in str(error.value)

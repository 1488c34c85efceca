"""Plans: of a DiLoCo run the published laws at nine sizes and its times, of precision the critical data sizes."""

import io

import pytest
from rich.console import Console

from jaxlab.config import InputError
from launch import plan
from tests import tiny

# Laws of 2503.09799 in N (data-parallel) and in N and M, evaluated by hand, for data-parallel, M = 1, 2, 4, 8: peak
# learning rate, its nearest power of sqrt 2 as a power of 2, batch in thousands of tokens, its nearest power of 2.
STARTS = {
    35e6: "0.0108 -6.5 61 16, 0.00488 -7.5 51 16, 0.00598 -7.5 64 16, 0.00732 -7 81 16, 0.00897 -7 103 17",
    90e6: "0.00499 -7.5 80 16, 0.00212 -9 79 16, 0.0026 -8.5 100 17, 0.00318 -8.5 126 17, 0.0039 -8 160 17",
    180e6: "0.00283 -8.5 97 17, 0.00115 -10 109 17, 0.00141 -9.5 138 17, 0.00173 -9 175 17, 0.00211 -9 221 18",
    335e6: "0.0017 -9 115 17, 6.64e-4 -10.5 146 17, 8.14e-4 -10.5 185 17, 9.97e-4 -10 234 18, 0.00122 -9.5 296 18",
    550e6: "0.00113 -10 132 17, 4.29e-4 -11 184 17, 5.25e-4 -11 233 18, 6.44e-4 -10.5 295 18, 7.89e-4 -10.5 374 19",
    1.3e9: "5.60e-4 -11 168 17, 2.01e-4 -12.5 276 18, 2.46e-4 -12 349 18, 3.01e-4 -11.5 442 19, 3.69e-4 -11.5 560 19",
    2.4e9: "3.39e-4 -11.5 200 18, 1.17e-4 -13 368 18, 1.43e-4 -13 466 19, 1.75e-4 -12.5 590 19, 2.15e-4 -12 746 20",
    4e9: "2.23e-4 - 231 -, 7.44e-5 - 468 -, 9.12e-5 - 592 -, 1.12e-4 - 750 -, 1.37e-4 - 949 -",
    10e9: "1.05e-4 - 299 -, 3.31e-5 - 719 -, 4.06e-5 - 911 -, 4.97e-5 - 1152 -, 6.09e-5 - 1459 -",
}


def column(params, replicas, tokens_per_chip=4_096) -> dict[str, str]:
    """Of every quantity its number; "  on the grid" stands twice and is told apart by what is before it."""
    values = plan.diloco_column(params, replicas, 20 * params, tokens_per_chip)
    named, before = {}, ""
    for (quantity, _), value in zip(plan.LINES, values, strict=True):
        before = before if quantity.startswith("  ") else quantity
        named[before + quantity if quantity.startswith("  ") else quantity] = value
    return named


@pytest.mark.parametrize("params", STARTS)
def test_starting_points_to_the_printed_digit(params):
    for replicas, start in zip((0, 1, 2, 4, 8), STARTS[params].split(", "), strict=True):
        lr, lr_power, batch, batch_power = start.split()
        found = column(params, replicas)
        assert float(found["peak learning rate"]) == float(lr)
        assert round(int(found["batch B, tokens"].replace(",", "")) / 1e3) == int(batch)
        if lr_power != "-":
            assert found["peak learning rate  on the grid"] == f"2^{lr_power}"
            assert found["batch B, tokens  on the grid"] == f"{2 ** int(batch_power):,}"


def test_hours_of_the_worked_example():
    """2.4B at 2^18 tokens, 64 chips of 300 TFLOP/s, 16 bits: 19.6 and 48.5 hours, by hand from the paper's model."""
    found = column(2.4e9, 0)
    assert found["batch B, tokens  on the grid"] == f"{2**18:,}"
    assert (found["chips"], found["hours, high network"], found["hours, medium network"]) == ("64", "19.6", "48.5")
    assert found["tokens in data-parallel's hours"] == "1x, 1x, 1x"


def test_given_chips_are_this_run_s_and_data_parallel_s_in_proportion():
    """M = 4 at 1.3B: a batch of 2^19 against 2^17, so 64 chips against 16."""
    rows = list(zip(*(c.cells for c in plan.diloco(1.3e9, 4, chips=64).columns), strict=True))
    assert next(row[1:3] for row in rows if row[0] == "chips") == ("64", "16")


def test_precision_of_a_1b_model():
    """Published critical data sizes at 1B parameters: 0.4T tokens in FP4, 27T in FP8, 1730T in BF16 (2501.02423); at
    1T tokens 5.18 bits are compute-optimal, which its closed form gives by hand."""
    table = plan.precision(1e9, 1e12)
    rows = {row[0]: row for row in zip(*(c.cells for c in table.columns), strict=True)}
    critical = [float(rows[f][5]) / 1e12 for f in ("E2M1", "E4M3", "E8M7")]
    assert [round(critical[0], 1), round(critical[1]), round(critical[2], -1)] == [0.4, 27, 1730]
    assert "5.18 bits" in table.caption
    for (
        row
    ) in rows.values():  # the whole model at the base law's loss: 69.2343 / N^0.2368 + 68973.0621 / D^0.5162 + ...
        worth = 69.2343 / float(row[4]) ** 0.2368 + 68973.0621 / 1e12**0.5162 + 1.9061
        assert worth == pytest.approx(float(row[2]), abs=2e-3)  # N is printed to three digits
    smaller_blocks = next(iter(plan.precision(1e9, 1e12, 32.0).columns[5].cells))
    assert float(smaller_blocks) > float(rows["E1M1"][5])


def test_batch_of_the_published_schedule():
    """500B tokens of 2601.05034: 133,117 steps of 3.58 Mi in the mean; rules at 3.07e9 tokens and at 108M parameters by
    hand, the loss rules at the loss that is printed."""
    table = plan.batch(4e9, 500e9, "0:2Mi 125B:4Mi 250B:5Mi 375B:6Mi")
    rows = list(zip(*(c.cells for c in table.columns), strict=True))
    assert [row[1] for row in rows[7:11]] == ["2,097,152", "4,194,304", "5,242,880", "6,291,456"]
    steps = [int(row[2].replace(",", "")) for row in rows[7:]]
    assert steps == pytest.approx([59_605, 29_802, 23_842, 19_868, 133_117], abs=1)
    assert int(rows[-1][1].replace(",", "")) / 2**20 == pytest.approx(3.58, abs=5e-3)
    table = plan.batch(4e9, 500e9, "curve:0.58,0,0.571 every 250B")  # Step Law, asked at the half
    assert [list(c.cells)[7:9] for c in table.columns][1] == [f"{0.58 * 250e9**0.571:,.0f}"] * 2
    table = plan.batch(108e6, 3.07e9)
    rows = list(zip(*(c.cells for c in table.columns), strict=True))
    assert len(rows) == 7
    found = [int(row[1].replace(",", "")) for row in rows]
    # 18.2 D^0.468 as printed, D = 3.07e9: 18.2 e^(0.468 x 21.845) = 5.01e5, to the digits of the exponent
    assert found[1] / 1e6 == pytest.approx(0.50, abs=6e-3)
    assert found[3] == pytest.approx(0.292 * (6 * 108e6 * 3.07e9) ** 0.327, abs=1)
    assert found[6] == 327_680
    loss = float(table.caption.split()[1].strip(","))
    assert found[0] == pytest.approx(2e8 / loss ** (1 / 0.21), rel=5e-3)
    assert found[2] == pytest.approx(1.21e9 / loss**6.24, rel=5e-3)


def test_bad_input():
    for kind in ([], ["dilco"], ["diloco", "more"]):
        with pytest.raises(InputError, match="say one of diloco"):
            plan.main(kind, Console(file=io.StringIO()))
    for arguments, message in (
        ((0.0, 2), r"--params=0.0: must be 1 to 1e\+18"),
        ((float("nan"), 2), "--params=nan"),
        ((float("inf"), 2), "--params=inf"),
        ((None, 2), "--params=None: must be 1 to"),
        ((1e9, -1), r"--replicas=-1: must be 0, which is data-parallel, or 1 to 1e\+06"),
        ((1e9, 10**30), "--replicas=1000000000000000000000000000000: must"),
        ((1e9, 2, 0.0), "--tokens_per_param=0.0: must"),
        ((1e9, 8, 20.0, 4), "--chips=4: must be at least 8, one a replica"),
        ((1e9, 0, 20.0, 0), r"--chips=0: must be 1 to 1e\+09"),
        ((1e3, 1, 0.01), "--tokens_per_param=0.01: 10 tokens are less than one batch of 2,048 or, .* 4,096"),
    ):
        with pytest.raises(InputError, match=message):
            plan.diloco(*arguments)
    for arguments, message in (
        ((1e9, None), "--tokens=None: must be 1 to"),
        ((0.0, 1e12), "--params=0.0: must be 1 to"),
        ((1e9, 1e12, 1.0), "--block=1.0: must be above 1"),
        ((1e9, 1e12, float("inf")), "--block=inf: must be 1 to"),
    ):
        with pytest.raises(InputError, match=message):
            plan.precision(*arguments)
    for arguments, message in (
        ((1e9, None), "--tokens=None: must be 1 to"),
        ((1e9, 1e6, "2Mi"), "--schedule=2Mi: its first batch is larger than --tokens=1e.06"),
        ((1e9, 1e9, "1B:2Mi"), "--schedule=1B:2Mi: .*first stage must start at 0 tokens"),
        ((1e9, 1e9, ""), "--schedule=: .*first stage must start at 0 tokens"),
        ((1e9, 1e9, "seesaw:1.1"), "--schedule=seesaw:1.1: 'seesaw:1.1': needs the schedule of a learning rate"),
        ((1e9, 1e9, "curve:nan,0,0.5 every 1M"), "--schedule=curve.*: batch size nan"),
        ((1e9, 1e9, "curve:1,0,500 every 1M"), "--schedule=curve.*: beyond any batch"),
    ):
        with pytest.raises(InputError, match=message):
            plan.batch(*arguments)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("diloco", (1e5, 0, 20.0, 1), (1e18, 10**6, 1e9, 10**9)),
        ("precision", (1.0, 1e24, 1.001), (1e18, 1.0, 2.0**60)),
        ("width", (8,), (10**7,)),
        ("batch", (1.0, 1.0), (1e18, 1e24, "0:1Gi 125B:4Mi")),
    ],
)
def test_ends_of_the_ranges_give_numbers(kind, low, high):
    """Nothing is nan or inf, nothing overflows; what is beyond a simulation or a law is said in words."""
    for arguments in (low, high):
        cells = [cell for column in getattr(plan, kind)(*arguments).columns for cell in column.cells]
        assert not {"nan", "inf", "-inf", "nanx", "infx"} & {word.strip(",") for cell in cells for word in cell.split()}


def test_a_bandwidth_beyond_the_simulated_ones():
    """1,000 Gbit/s are the most that is simulated."""
    assert plan._bandwidth(float("inf")) == "above 1,000"
    assert plan._bandwidth(2e9) == "2"


def test_the_command():
    done = tiny.launch("plan", "diloco", "--params=1.3e9", "--replicas=4")
    assert done.returncode == 0, done.stderr
    assert "2^-11.5" in done.stdout
    assert "524,288" in done.stdout
    refused = tiny.launch("plan", "precision", "--params=1e9", "--tokens=1e12", "--chips=4")
    assert refused.stderr == "error: --chips: precision takes --params, --tokens, --block\n"
    refused = tiny.launch("plan", "diloco", "--params=-1")
    assert refused.returncode == 2
    assert refused.stderr == "error: --params=-1.0: must be 1 to 1e+18\n"

"""Sizes as exact functions of tokens, the published step counts, learning rates on growth."""

import math

import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.optim import batch_growth as growth

PAPER = "0:2Mi 125B:4Mi 250B:5Mi 375B:6Mi"
MI = 2**20


def test_text():
    assert growth.sizes(PAPER) == {0: 2 * MI, 125 * 10**9: 4 * MI, 250 * 10**9: 5 * MI, 375 * 10**9: 6 * MI}
    assert growth.sizes("0:500_000 1.5M:64Ki 2T:1Gi") == {0: 500_000, 1_500_000: 65_536, 2 * 10**12: 2**30}
    assert growth.sizes("4Mi") == growth.sizes(4 * MI) == {0: 4 * MI}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:2Q", "'2Q': must be a whole number"),
        ("1.2345K", "'1.2345K': must be a whole number"),
        ("0:2Mi 125B:", "'': must be a whole number"),
        ("0:-5", "'-5': must be a whole number"),
        ("1B:2Mi", "first stage must start at 0 tokens"),
        ("", "first stage must start at 0 tokens"),
        ("0:2Mi 250B:4Mi 125B:5Mi", "'125B:5Mi' in .* one after the other"),
        ("2Mi 4Mi", "'4Mi' in .* one after the other"),
        ("0:0", "batch size 0 from 0 tokens: must be 1"),
        ("0:2Gi", "batch size 2147483648"),
        (" ".join(f"{i}:8" for i in range(10_001)), "10,001 stages: must be at most 10,000"),
        ("0:" + "9" * 5_000, "must be a whole number"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(InputError, match=message):
        growth.sizes(text)


def test_published_steps():
    """Zhou et al.: 2, 4, 5, 6 Mi over 125B tokens each, 500B in all, are 59,605 + 29,802 + 23,842 + 19,868 = 133,117
    steps, against 119,209 of constant 4 Mi (11.7 % more) and 238,419 of 2 Mi; with decimal millions 139,583.
    The table rounds; steps are whole and reach beyond a stage's end, hence the tolerance of one a stage."""
    total = 500 * 10**9
    stages = growth.walk(growth.sizes(PAPER), total)
    assert [s.steps for s in stages] == pytest.approx([59_605, 29_802, 23_842, 19_868], abs=1)
    taken = sum(s.steps for s in stages)
    assert taken == pytest.approx(133_117, abs=1)
    (four,), (two,) = (growth.walk(growth.sizes(text), total) for text in ("4Mi", "2Mi"))
    assert (four.steps, two.steps) == pytest.approx((119_209, 238_419), abs=1)
    assert taken / four.steps == pytest.approx(1.117, abs=5e-4)
    assert 1 - taken / two.steps == pytest.approx(0.44, abs=5e-3)
    decimal = growth.walk(growth.sizes(PAPER.replace("Mi", "M")), total)
    assert [s.steps for s in decimal] == pytest.approx([62_500, 31_250, 25_000, 20_833], abs=1)
    assert [s.size // 4096 for s in stages] == [512, 1024, 1280, 1536]


def test_walk_is_step_by_step():
    """Every step takes the size at its start; random stages, some shorter than a step, some beyond the end."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        starts = [0, *sorted(rng.choice(np.arange(1, 300), 5, replace=False).tolist())]
        stages = dict(zip(starts, rng.integers(1, 90, 6).tolist(), strict=True))
        until, tokens, steps = int(rng.integers(1, 400)), 0, []
        while tokens + growth.size_at(stages, tokens) <= until:
            steps.append((tokens, growth.size_at(stages, tokens)))
            tokens += steps[-1][1]
        found = [(s.start + i * s.size, s.size) for s in growth.walk(stages, until) for i in range(s.steps)]
        assert found == steps


def test_a_step_takes_the_size_where_it_starts():
    stages = growth.sizes(PAPER)
    at = 125 * 10**9
    assert [growth.size_at(stages, t) // MI for t in (0, at - 1, at, 10**15)] == [2, 2, 4, 6]


def test_the_three_forms():
    """By hand: 3 N^0.5 D^0.5 of N = 4 at D = 400, 800, 1200; a rate that warms up to 200 tokens and then falls in a
    line to 0 at 1000 halves at 600, 800, 900, 950 and 975, where 30 tokens no longer fit."""
    read = lambda text, **options: growth.from_text(text, until=1_600, parameters=4, **options)  # noqa: E731
    assert read("curve:3,0.5,0.5 every 400") == {0: 120, 400: 120, 800: 170, 1200: 208}
    assert read("curve:3,0.5,5e-1 every 0.4K momentum 0.5", first=64) == {0: 64, 400: 92, 800: 131, 1200: 169}
    line = {"fraction": lambda t: min(t / 200, (1_000 - t) / 800), "start": 200, "parameters": 4}
    stages = growth.from_text("seesaw:2 most 30", until=1_000, first=10, **line)
    assert stages == {0: 10, 600: 20, 800: 30, 900: 30, 950: 30}
    assert growth.from_text("seesaw:2 most 25", until=1_000, first=10, **line)[975] == 25  # ends where the run does
    assert growth.from_text("seesaw:2 most 26", until=1_000, first=10, **line).keys() == {0, 600, 800, 900, 950}
    assert read("0:2Mi 1K:4Mi") == {0: 2 * MI, 1_000: 4 * MI}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("curve:3,0.5 every 400", "'curve': must be a whole number"),
        ("curve:3,x,0.5 every 400", "could not convert string to float: 'x'"),
        ("curve:3,0.5,0.5 every 4.5", "'4.5': must be a whole number"),
        ("curve:3,0.5,0.5 every 400 momentum 2", "momentum=2.0: must be above 0"),
        ("curve:3,0.5,900 every 400", "beyond any batch"),
        ("curve:nan,0.5,0.5 every 400", "batch size nan from 400 tokens"),
        ("seesaw:1.1 most", "'seesaw': must be a whole number"),
        ("seesaw:inf", "drop=inf: .* above 1"),
        ("0:5x", "'5x': must be a whole number"),
    ],
)
def test_bad_forms(text, message):
    """Whatever is wrong, all forms are named."""
    with pytest.raises(InputError, match=message + ".*stages, .*curve:A,b,c every .*seesaw:1.1"):
        growth.from_text(text, until=1_600, parameters=4, first=8, fraction=lambda t: 1 - t / 1_600)


def test_curve_with_momentum():
    """By hand: f(D) = D / 100, asked at 100, 200 and 300: 100, then 100 + (2 - 100) / 2, and so on."""
    stages = growth.from_curve(lambda tokens: tokens / 100, until=400, every=100, momentum=0.5, first=101)
    assert stages == {0: 101, 100: 51, 200: round(26.5), 300: round(14.625)}
    at_once = growth.from_curve(lambda tokens: tokens, until=400, every=100)
    assert at_once == {0: 100, 100: 100, 200: 200, 300: 300}
    for options, message in (({"momentum": 0.0}, "momentum=0.0"), ({"momentum": 1.1}, "momentum=1.1")):
        with pytest.raises(InputError, match=message):
            growth.from_curve(float, until=400, every=100, **options)
    with pytest.raises(InputError, match="every=0"):
        growth.from_curve(float, until=400, every=0)
    assert len(growth.from_curve(lambda tokens: 9, until=10**14, every=10**10)) == 10_000
    with pytest.raises(InputError, match="every=9999999999: must be at least 10000000000 for 10,000 stages in 1000000"):
        growth.from_curve(lambda tokens: 9, until=10**14, every=10**10 - 1)


def test_doubling():
    """OLMo-1B (2505.23971): 1024 sequences, 2048 from 168B tokens, 4096 from 503B, never beyond half the critical."""
    critical = {50e9: 1500, 168e9: 2100, 300e9: 3000, 503e9: 4100, 608e9: 4096 * 2}
    assert growth.doubled(critical, 1024) == {0: 1024, 168e9: 2048, 503e9: 4096}
    assert growth.doubled({10: 100.0}, 8) == {0: 8, 10: 64}
    with pytest.raises(InputError, match="critical batch inf at 10 tokens"):
        growth.doubled({10: math.inf}, 8)


def test_rounded():
    assert growth.rounded({0: 1, 10: 149, 20: 150, 30: 351}, 100) == {0: 100, 10: 100, 20: 200, 30: 400}


def test_rules():
    """2 to 4, 5, 6 Mi; Merrill's counts whole doublings, of those the critical batch allows."""
    stages = growth.sizes(PAPER)
    found = {name: list(growth.factors(stages, rule).values()) for name, rule in growth.RULES.items()}
    assert found["kept"] == [1, 1, 1, 1]
    assert found["linear"] == [1, 2, 2.5, 3]
    assert found["sqrt"] == pytest.approx(np.sqrt([1, 2, 2.5, 3]))
    assert found["merrill"] == pytest.approx(np.sqrt([1, 2, 2, 2]))
    assert [growth.merrill(8, 1, c) ** 2 for c in (0.5, 1, 3.9, 4, 100)] == pytest.approx([1, 1, 2, 4, 8])
    assert growth.merrill(1, 4) == 1  # a batch that shrinks keeps its rate
    assert (growth.sqrt(1, 4), growth.linear(1, 4)) == (0.5, 0.25)


def test_seesaw():
    """LR / sqrt(B) is the base schedule's within a factor a, from the size rounded to; against a quarter cosine fewer
    steps by nearly 1 - 2 / pi, never by more (2510.14717)."""
    total, first = 10**9, 1_000
    base = lambda t: math.cos(math.pi / 2 * t / total)  # noqa: E731
    for drop, short in ((1.1, 0.04), (1.01, 0.004)):
        stages, scales = growth.seesaw(base, first=first, until=total, drop=drop)
        saved = 1 - sum(s.steps for s in growth.walk(stages, total)) / (total / first)
        assert 1 - 2 / math.pi - short < saved < 1 - 2 / math.pi
    stages, scales = growth.seesaw(base, first=first, until=total, start=total // 10, drop=2, unit=300, most=7_000)
    assert list(stages.values())[:5] == [1_000, 2_100, 3_900, 6_900, 6_900]
    for tokens in list(stages)[1:]:
        level = scales[tokens] / math.sqrt(stages[tokens] / first)
        assert level == pytest.approx(base(tokens) / base(total // 10), rel=1e-4)
        assert math.log2(level) == pytest.approx(round(math.log2(level)))
    with pytest.raises(InputError, match=r"drop=1\.00000001: must be larger, for at most 10,000 stages"):
        growth.seesaw(base, first=first, until=total, drop=1.00000001)
    with pytest.raises(InputError, match=r"drop=0\.9: .* above 1"):
        growth.seesaw(base, first=first, until=total, drop=0.9)

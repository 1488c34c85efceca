"""Schedules against optax's, against closed forms, and independent of how a run is cut into steps."""

import math

import numpy as np
import optax
import pytest

from jaxlab.optim.schedules import schedule

TOTAL = 1_000_000
SHAPES = {
    "linear": lambda x: 1 - x,
    "1-sqrt": lambda x: 1 - x**0.5,
    "cosine": lambda x: 0.5 + 0.5 * math.cos(math.pi * x),
}
KINDS = {
    "constant": {"name": "constant"},
    "cosine": {"name": "cosine", "warmup_tokens": 100_000, "final_fraction": 0.05},
    **{
        f"wsd-{shape}": {
            "name": "wsd", "warmup_tokens": 50_000, "decay_tokens": 200_000, "decay_shape": shape,
            "final_fraction": 0.1,
        }
        for shape in SHAPES
    },
}  # fmt: skip


def at_tokens(kind):
    options = dict(KINDS[kind])
    return schedule(options.pop("name"), total_tokens=TOTAL, **options)


@pytest.mark.parametrize("warmup", [0, 1_000, 100_000])
def test_cosine_is_optax(warmup):
    """DiLoCo paper: linear warm-up, cosine to 5 % of the peak. optax counts steps: let one be a token."""
    ours = schedule("cosine", total_tokens=TOTAL, warmup_tokens=warmup, final_fraction=0.05)
    peer = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, TOTAL, end_value=0.05)
    start = 0 if warmup else 1  # optax has the peak at 0 either way
    for tokens in (start, 500, 1_000, 50_000, 100_000, 128_000, TOTAL // 2, 777_777, TOTAL - 1, TOTAL):
        assert abs(ours(tokens) - float(peer(tokens))) < 2e-7  # optax computes in float32


@pytest.mark.parametrize("shape", SHAPES)
def test_wsd(shape):
    ours = at_tokens(f"wsd-{shape}")
    assert [ours(t) for t in (0, 25_000, 50_000, 400_000, 800_000)] == [0, 0.5, 1, 1, 1]
    for x in (0, 0.01, 0.25, 0.5, 0.9, 1):
        assert abs(ours(800_000 + 200_000 * x) - (0.1 + 0.9 * SHAPES[shape](x))) < 1e-12


def test_linear_wsd_is_optax():
    peer = optax.join_schedules(
        [optax.linear_schedule(0, 1, 50_000), optax.constant_schedule(1.0), optax.linear_schedule(1, 0.1, 200_000)],
        [50_000, 800_000],
    )
    for tokens in (1, 25_000, 60_000, 799_999, 800_001, 900_000, TOTAL):
        assert abs(at_tokens("wsd-linear")(tokens) - float(peer(tokens))) < 2e-7


@pytest.mark.parametrize("kind", KINDS)
def test_ends_at_the_final_fraction_and_stays(kind):
    final = KINDS[kind].get("final_fraction", 1.0)
    assert abs(at_tokens(kind)(TOTAL) - final) < 1e-12
    assert abs(at_tokens(kind)(TOTAL + 1) - final) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_has_no_jump(kind):
    """No two values 10 tokens apart differ by more than the steepest slope: of the warm-up, or of the square root."""
    values = np.array([at_tokens(kind)(t) for t in range(0, TOTAL, 10)])
    steepest = 0.9 * (10 / 200_000) ** 0.5 if kind == "wsd-1-sqrt" else 10 / 50_000
    assert np.abs(np.diff(values)).max() <= steepest * (1 + 1e-9)
    assert values.min() >= 0
    assert values.max() <= 1


MEANS = {
    "constant": 1.0,
    "cosine": 0.1 * 0.5 + 0.9 * (1 + 0.05) / 2,
    "wsd-linear": 0.05 * 0.5 + 0.75 + 0.2 * (0.1 + 0.9 / 2),
    "wsd-1-sqrt": 0.05 * 0.5 + 0.75 + 0.2 * (0.1 + 0.9 / 3),
    "wsd-cosine": 0.05 * 0.5 + 0.75 + 0.2 * (0.1 + 0.9 / 2),
}


@pytest.mark.parametrize("batch", [500, 4_000, 25_000])
@pytest.mark.parametrize("kind", KINDS)
def test_mean_over_a_run_does_not_depend_on_the_batch(kind, batch):
    """The integral of the learning rate over tokens, in closed form. Midpoints leave an error of order (B/D)^2, of
    order (B/D)^1.5 for the square root; values at the start of steps would be off by B/2 D."""
    mean = np.mean([at_tokens(kind)(t + batch / 2) for t in range(0, TOTAL, batch)])
    assert abs(mean - MEANS[kind]) < 2 * (batch / TOTAL) ** 1.5 * 0.2 + 1e-12

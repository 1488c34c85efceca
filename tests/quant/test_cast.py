"""The cast, bit for bit, against ml_dtypes and against a search of the whole grid in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.quant import cast as module
from jaxlab.quant.cast import SCALES, cast, quantise, round_to
from jaxlab.quant.formats import DTYPES, parse
from tests.quant.oracle import blockwise, rounded, same_bits

OTHERS = [f"e{e}m{m}" for e in range(8) for m in (0, 1, 2, 3, 5, 7, 10) if e + m > 0]
OTHERS += ["e4m4", "e4m3fn", "e5m2fn", "e3m2ieee", "e8m3ieee", "e8m10ieee", "e8m0fn"]
WAYS = ("nearest_even", "nearest_away", "toward_zero")
traced = jax.jit(lambda x, grid, way: round_to(x, grid, way), static_argnums=2)
static = jax.jit(round_to, static_argnums=(1, 2))
jitted = jax.jit(cast, static_argnames=("format", "axis", "block", "scale", "rounding"))


def hard_points(format, count: int) -> np.ndarray:
    """Grid values, midpoints and their float32 neighbours, subnormals and zeros of float32, random values past both
    ends; both signs."""
    rng = np.random.default_rng(0)
    grid = format.values()
    middle = (grid[1:] + grid[:-1]) / 2
    points = np.concatenate([grid, middle, [0, 1e-45, 1e-40, 1.17e-38, 3.4e38, 4 * format.max]])
    points = np.float32(np.minimum(points, 3.4e38))
    near = np.concatenate([np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))])
    low, high = np.log2(format.smallest_subnormal) - 3, np.log2(format.max) + 1
    spread = np.exp2(rng.uniform(max(low, -149), min(high, 127), count)).astype(np.float32)
    points = np.concatenate([points, near[np.isfinite(near)], spread])
    return np.concatenate([points, -points])


@pytest.mark.parametrize("name", DTYPES)
def test_as_ml_dtypes(name):
    """Every value, midpoint and neighbour of these, and 1e6 random values; past the maximum it saturates."""
    f = parse(name)
    x = hard_points(f, 500_000)
    with np.errstate(over="ignore"):
        there = x.astype(f.dtype).astype(np.float32)
    same_bits(static(x, f), np.where(np.abs(x) > f.max, np.copysign(np.float32(f.max), x), there))


@pytest.mark.parametrize("way", WAYS)
def test_as_a_search_of_the_grid(way):
    """Formats of every size; one compiled function serves those of up to 7 exponent bits."""
    for name in OTHERS:
        f = parse(name)
        x = hard_points(f, 2**12)
        x = np.resize(x, 2**16) if x.size < 2**16 else np.random.default_rng(1).choice(x, 2**16, replace=False)
        got = static(x, f, way) if f.exponent == 8 else traced(x, f.grid, way)
        same_bits(got, rounded(x, f, way))
    assert traced._cache_size() <= len(WAYS)


def test_ties_of_e2m1():
    x = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -5])
    np.testing.assert_array_equal(static(x, parse("e2m1")), [0, 1, 1, 2, 2, 4, 4, 0, -4])
    np.testing.assert_array_equal(static(x, parse("e2m1"), "nearest_away"), [0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -6])
    np.testing.assert_array_equal(static(x, parse("e2m1"), "toward_zero"), [0, 0.5, 1, 1.5, 2, 3, 4, 0, -4])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["e4m3", "e8m7ieee"])
def test_saturation_signed_zero_and_nan(name, way):
    f = parse(name)
    x = np.float32([np.inf, -np.inf, 3.4e38, -3.4e38, 0.0, -0.0, np.nan])
    same_bits(static(x, f, way)[:6], np.float32([f.max, -f.max] * 2 + [0.0, -0.0]))
    assert np.isnan(static(x, f, way)[6])


def test_subnormals_of_float32():
    """They are zero to the formats of up to 7 exponent bits, and kept where the format has them."""
    x = np.float32([1e-40, -1e-40, 2.0**-133, 2.0**-134, 3 * 2.0**-134])
    same_bits(static(x, parse("e7m10")), np.float32([0.0, -0.0, 0, 0, 0]))
    same_bits(static(x, parse("e8m7ieee"))[2:], np.float32([2.0**-133, 0, 2.0**-132]))


CASES = [
    # shape, axes, block, format, scale, rounding
    ((4, 256), (1,), (128,), "e4m3", "float32", "nearest_even"),
    ((4, 256), (1,), (256,), "e1m1", "float32", "nearest_even"),
    ((4, 300), (1,), (128,), "e2m3", "float32", "nearest_away"),  # the last block is short
    ((2, 1280), (1,), (1280,), "e3m2", "float32", "nearest_even"),
    ((40, 6), (0,), (16,), "e5m2", "float32", "toward_zero"),
    ((3, 40, 50), (1, 2), (16, 32), "e2m1", "float32", "nearest_even"),
    ((3, 8, 24), (0, 1, 2), (3, 8, 24), "e3m1", "float32", "nearest_even"),
    ((8, 96), (1,), (32,), "e2m1", "power_of_two", "nearest_even"),
    ((8, 96), (1,), (32,), "e4m3fn", "power_of_two", "nearest_even"),
    ((8, 96), (1,), (16,), "e2m1", "e4m3", "nearest_even"),
    ((5, 44), (0, 1), (2, 8), "e2m1", "e4m3", "nearest_even"),
    ((32, 96), (0, 1), (16, 16), "e2m1", "e4m3", "nearest_away"),
    ((4, 96), (1,), (1,), "e2m1", "float32", "nearest_even"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c[1:])).replace(" ", ""))
def test_blocks(case):
    shape, axes, block, format, scale, way = case
    x = (np.random.default_rng(0).standard_t(3, shape) * 0.02).astype(np.float32)
    got = jitted(x, format, axis=axes, block=block, scale=scale, rounding=way)
    same_bits(got, blockwise(x, format, axes, block, scale, way))


def test_ways_to_name_a_block():
    x = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    whole = jitted(x, "e4m3", axis=None)
    same_bits(jitted(x, "e4m3", axis=(0, -1), block=(99, None)), whole)
    same_bits(jitted(x.reshape(1, -1), "e4m3").reshape(x.shape), whole)
    same_bits(jitted(x.T, "e4m3", axis=0, block=8).T, jitted(x, "e4m3", axis=-1, block=8))


@pytest.mark.parametrize("wrong", range(-2, 3))
def test_quotients_where_a_reciprocal_is_wrong_in_its_last_bits(wrong, monkeypatch):
    """As on GPUs. Numbers next to powers of two, where units of the last place change, and random ones; float64's
    quotient, rounded once more, is the nearest float32."""

    def inexact(x):
        return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(1 / x, jnp.int32) + wrong, jnp.float32)

    monkeypatch.setattr(module, "_reciprocal", inexact)
    steps = np.arange(4, dtype=np.int32)
    ends = np.concatenate([np.float32(1).view(np.int32) + steps, np.float32(2).view(np.int32) - 1 - steps])
    bits = np.concatenate([ends, np.random.default_rng(0).integers(1 << 29, 5 << 28, 2_000).astype(np.int32)])
    numbers = bits.view(np.float32)
    a, b = (x.ravel() for x in np.meshgrid(numbers[:400], numbers))
    quotient = np.float32(np.float64(a) / np.float64(b))
    normal = (quotient >= 2.0**-126) & (quotient < np.inf)
    assert normal.mean() > 0.5
    same_bits(jax.jit(module._quotient)(a.view(np.int32), b.view(np.int32)).view(jnp.float32)[normal], quotient[normal])


@pytest.mark.parametrize("scale", SCALES[:3])
def test_blocks_of_zeros_nan_and_inf(scale):
    x = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    x[1] = 0
    zeros = np.asarray(jitted(x, "e2m1", block=16, scale=scale))
    assert (zeros[1] == 0).all()
    assert np.isfinite(zeros).all()
    assert not np.asarray(jitted(np.zeros_like(x), "e2m1", block=16, scale=scale)).any()
    x[2, 3], x[3, 20], x[4, 0] = np.nan, np.inf, -np.inf
    got = np.asarray(jitted(x, "e2m1", block=16, scale=scale))
    bad = np.isnan(got).reshape(5, 2, 16)
    spoilt = np.zeros((5, 2), bool)
    spoilt[[2, 3, 4], [0, 1, 0]] = True
    spoilt |= scale == "e4m3"  # one scale for the whole array, so all of it
    np.testing.assert_array_equal(bad.all(-1), spoilt)
    np.testing.assert_array_equal(bad.any(-1), spoilt)


def test_nothing_in_nothing_out():
    for shape in ((0, 8), (4, 0), (0,)):
        for scale in SCALES:
            assert cast(np.zeros(shape, np.float32), "e2m1", block=4, scale=scale).shape == shape


@pytest.mark.parametrize("name", ["e1m1", "e2m1", "e3m4ieee", "e4m3fn", "e5m10ieee"])
def test_the_largest_and_smallest_numbers(name):
    """float32's largest stays finite and within 2^-22 where S is normal, else saturates; its smallest normal comes back
    exactly, the power of two of max's."""
    f, top = parse(name), np.finfo(np.float32)
    x = np.float32([[top.max, -top.max], [top.tiny * f.max, top.tiny], [2.0**126, 0]])
    got = np.asarray(jitted(x, f))
    largest = min(float(top.max), f.max * 2.0**126)
    np.testing.assert_allclose(got[0], [largest, -largest], rtol=2**-22)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[1, 0], top.tiny * f.max, rtol=2**-23)
    np.testing.assert_allclose(got[2], [2.0**126, 0], rtol=2**-22)


def test_a_tiny_tensor_under_e4m3():
    """A block of 2^-126 beside one of 2^-120: S is 2^126 at most, and gives it back exactly; the other's is rounded to
    e4m3, 2^-4."""
    x = np.repeat(np.float32([[2.0**-120], [2.0**-126]]), 16, axis=1)
    got = np.asarray(jitted(x, "e2m1", scale="e4m3"))
    np.testing.assert_allclose(got[0], 2.0**-120, rtol=2**-4)
    np.testing.assert_array_equal(got[1], np.float32(2.0**-126))


def test_powers_of_two_by_hand():
    """E2M1 has emax 2 (OCP MX). absmax 2^-122: S = 2^124, so 2^-122 is 4, and 3 x 2^-125 is 1.5. absmax 7: S = 1, and 7
    saturates at 6. Past the ends S is 2^126 and 2^-126."""
    x = np.float32([[2.0**-122, 3 * 2.0**-125, 2.0**-125], [7, 2.5, -0.75], [2.0**-125, 2.0**-126, 0]])
    pair = jax.jit(partial(quantise, scale="power_of_two"), static_argnames="format")
    q, inverse = pair(x, format="e2m1")
    np.testing.assert_array_equal(q, [[4, 1.5, 0.5], [6, 2, -1], [2, 1, 0]])
    np.testing.assert_array_equal(inverse[:, 0], [2.0**-124, 1, 2.0**-126])
    q, inverse = pair(np.float32([[3e38, 2.0**126]]), format="e0m1")
    np.testing.assert_array_equal(q, [[1, 1]])
    np.testing.assert_array_equal(inverse, [[2.0**126] * 2])


def test_scales_follow_the_data():
    """A power of two passes through the cast, down to where S leaves float32; what is smaller fades to zero."""
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    y = np.asarray(jitted(x, "e4m3", block=32))
    for power in (100, -100, -115):
        factor = np.float32(2.0**power)
        same_bits(jitted(x * factor, "e4m3", block=32), y * factor)
    assert not np.asarray(jitted(np.full((4, 64), 1e-40, np.float32), "e4m3", block=32)).any()


def test_error_on_a_uniform_grid():
    """E1M6 has one spacing u: mean squared errors u^2 / 12 to nearest, u^2 / 6 stochastic, u^2 / 3 toward zero."""
    f, x = parse("e1m6"), np.random.default_rng(0).uniform(-3.9, 3.9, 2**17).astype(np.float32)
    for way, share in ("nearest_even", 1 / 12), ("stochastic", 1 / 6), ("toward_zero", 1 / 3):
        y = static(x, f, way, jax.random.key(0) if way == "stochastic" else None)
        # The relative standard deviation of the mean of 2^17 such squares is below 0.3 %.
        np.testing.assert_allclose(np.mean((y - x) ** 2.0), share * f.smallest_subnormal**2, rtol=0.012)


@pytest.mark.parametrize("name", ["e2m1", "e4m3", "e8m3ieee"])
def test_stochastic_rounding(name):
    f, count = parse(name), 2**14
    x = np.repeat(np.float32([0.3, -1.3, 2.9, 5.01, 0.01, -5.9]), count)
    draw = jax.jit(lambda key, x: round_to(x, f, "stochastic", key))
    y = np.asarray(draw(jax.random.key(0), x))
    assert np.isin(y, f.values().astype(np.float32)).all()
    for mean, spread, value in zip(*(g(y.reshape(-1, count), 1) for g in (np.mean, np.std)), x[::count], strict=True):
        assert abs(mean - value) <= 4 * spread / count**0.5
    assert (np.asarray(draw(jax.random.key(1), x)) != y).any()
    grid = np.resize(f.values().astype(np.float32), x.shape)
    np.testing.assert_array_equal(draw(jax.random.key(2), grid), grid)


def test_transformations():
    x = np.random.default_rng(0).normal(size=(3, 4, 96)).astype(np.float32)
    y = np.asarray(jitted(x, "e2m1", block=32))
    same_bits(cast(x, "e2m1", block=32), y)  # operation by operation
    q, inverse = map(np.asarray, jax.jit(quantise, static_argnames=("format", "block"))(x, "e2m1", block=32))
    same_bits(q * inverse, y)
    assert np.isin(q, parse("e2m1").values()).all()
    columns = jax.jit(jax.vmap(partial(cast, format="e2m1", axis=1, block=32), in_axes=1, out_axes=1))
    same_bits(columns(x), y)


def test_a_traced_format_may_be_mapped():
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    names = ("e1m1", "e2m1", "e3m2", "e4m3", "e4m3fn")
    grids = jax.tree.map(lambda *leaves: np.stack(leaves), *(parse(name).grid for name in names))
    mapped = jax.jit(jax.vmap(partial(cast, block=32), in_axes=(None, 0)))(x, grids)
    for name, y in zip(names, mapped, strict=True):
        same_bits(y, jitted(x, name, block=32))
    with pytest.raises(ValueError, match=r"format=e8m7ieee.*at most 7"):
        parse("e8m7ieee").grid  # noqa: B018


@pytest.mark.parametrize("scale", ["e4m3", None])
def test_the_gradient_is_that_of_the_identity(scale):
    x = jnp.asarray([[-0.3, 0.0, 1.0, 7.0, 1e-9]])
    y, pull = jax.vjp(lambda x: jitted(x, "e2m1", scale=scale), x)
    np.testing.assert_array_equal(pull(2 * y)[0], 2 * y)
    np.testing.assert_array_equal(jax.jvp(lambda x: jitted(x, "e2m1", scale=scale), (x,), (x,))[1], x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_types_are_computed_in_float32(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64)), dtype)
    y = jitted(x, "e4m3", block=32)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, jitted(x.astype(jnp.float32), "e4m3", block=32).astype(dtype))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rounding": "nearest"}, "rounding='nearest'.*nearest_even"),
        ({"rounding": "stochastic"}, "takes a key"),
        ({"key": 0}, "takes a key"),
        ({"scale": "e8m0"}, "scale='e8m0'.*power_of_two"),
        ({"format": "e8m7ieee", "scale": "e4m3"}, "format=e8m7ieee.*at most 7"),
        ({"axis": 2}, r"axis=2.*shape \(4, 8\)"),
        ({"axis": (0, -2)}, "different axes"),
        ({"block": 0}, "block=0.*at least 1"),
        ({"axis": (0, 1), "block": (4,)}, "for each axis"),
        ({"x": np.ones((4, 8), np.int32)}, "int32"),
    ],
)
def test_refused(change, why):
    arguments = {"x": np.ones((4, 8), np.float32), "format": "e4m3"} | change
    with pytest.raises(ValueError, match=why):
        cast(**arguments)

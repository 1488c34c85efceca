"""Formats against the published limits and against every code of the ml_dtypes types."""

import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.quant.formats import DTYPES, Format, parse

# max, smallest normal, smallest subnormal: OCP MX v1.0, tables 1 to 5, where the grid is one of its; FPmax of
# Sun et al. 2501.02423, 2^(2^(E-1)) (2 - 2^-M), elsewhere.
LIMITS = {
    "e4m3": (480, 2**-6, 2**-9),
    "e4m3fn": (448, 2**-6, 2**-9),
    "e4m3ieee": (240, 2**-6, 2**-9),
    "e5m2": (114688, 2**-14, 2**-16),
    "e5m2ieee": (57344, 2**-14, 2**-16),
    "e2m1": (6, 1, 0.5),
    "e2m1fn": (6, 1, 0.5),
    "e2m3": (7.5, 1, 0.125),
    "e3m2": (28, 0.25, 0.0625),
    "e3m4": (31, 0.25, 2**-6),
    "e1m1": (3, 2, 1),
    "e1m6": (3.96875, 2, 2**-5),
    "e4m5": (504, 2**-6, 2**-11),
    "e6m1": (3 * 2**31, 2**-30, 2**-31),
    "e5m10ieee": (65504, 2**-14, 2**-24),
    "e8m7ieee": (2**127 * (2 - 2**-7), 2**-126, 2**-133),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name):
    f = parse(name)
    assert (f.max, f.smallest_normal, f.smallest_subnormal) == LIMITS[name]
    assert f.values().max() == f.max
    assert f.values()[f.values() > 0].min() == f.smallest_subnormal


@pytest.mark.parametrize("name", DTYPES)
def test_every_code_of_the_ml_dtypes_type(name):
    f = parse(name)
    codes = np.arange(2**f.bits, dtype=np.uint16 if f.dtype.itemsize == 2 else np.uint8)
    with np.errstate(invalid="ignore"):
        decoded = codes.view(f.dtype).astype(np.float64)
    np.testing.assert_array_equal(np.unique(decoded[np.isfinite(decoded)]), f.values())


def test_below_8_bits_fn_keeps_every_code():
    assert parse("e3m2fn").dtype == parse("e3m2").dtype
    for name in ("e3m2", "e3m3"):
        np.testing.assert_array_equal(parse(name + "fn").values(), parse(name).values())
    assert len(parse("e4m3fn").values()) == len(parse("e4m3").values()) - 2


def test_small_exponents():
    np.testing.assert_array_equal(parse("e1m1").values(), np.arange(-3, 4))
    np.testing.assert_array_equal(parse("e1m0").values(), [-2, 0, 2])
    np.testing.assert_array_equal(2 * parse("e0m7").values(), parse("e1m6").values())  # both are symmetric int8
    np.testing.assert_array_equal(parse("e0m7").values() * 64, np.arange(-127, 128))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("e8m7", "6.77906e.38"),  # past float32's maximum
        ("e8m1fn", "within float32's"),
        ("e0m0", "above 0"),
        ("e9m1", "e8m10"),
        ("e4m11", "e8m10"),
        ("e1m2ieee", "2 exponent bits"),
        ("fp8", "read like e4m3"),
        ("e4m3fnuz", "read like e4m3"),
    ],
)
def test_refused(bad, why):
    with pytest.raises(ValueError, match=f"format=.*{bad}.*{why}"):
        parse(bad)


@pytest.mark.parametrize(
    "bad",
    ["e4m3²", "e٤m3", "e-4m3", "e04m3", "e4m3\n", "", "E4M3", "e" + "4" * 5000 + "m3", "e4m" * 9999, None, 43, b"e4m3"],
)
def test_garbage_is_refused_in_a_short_line(bad):
    with pytest.raises(InputError, match=r"format=.*must read like e4m3") as error:
        parse(bad)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


def test_a_format_is_a_value():
    assert parse("e4m3") == Format(4, 3) == parse(Format(4, 3))
    assert len({parse("e4m3"), Format(4, 3), parse("e4m3fn")}) == 2
    assert str(parse("e5m2ieee")) == "e5m2ieee"

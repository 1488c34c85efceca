"""Floating-point formats ExMy: their limits and every value they can represent (Sun et al. 2501.02423, section 2).

A format is written `e4m3`, `e4m3fn` or `e4m3ieee`:

* `e4m3`: every code is a number, no inf, no NaN: the paper's formats. Maximum 480.
* `e4m3fn`: as OCP MX and ml_dtypes: of 8 bits and over the last code of each sign is NaN; no inf. Maximum 448.
* `e4m3ieee`: the last exponent is kept for inf and NaN, as in `float8_e4m3`, `float16`, `bfloat16`. Maximum 240.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxlab.config import InputError

VARIANTS = ("", "fn", "ieee")
DTYPES = {
    "e2m1": ml_dtypes.float4_e2m1fn, "e2m3": ml_dtypes.float6_e2m3fn, "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3fn": ml_dtypes.float8_e4m3fn, "e3m4ieee": ml_dtypes.float8_e3m4, "e4m3ieee": ml_dtypes.float8_e4m3,
    "e5m2ieee": ml_dtypes.float8_e5m2, "e5m10ieee": np.float16, "e8m7ieee": ml_dtypes.bfloat16,
}  # fmt: skip


class Grid(NamedTuple):
    """What the cast needs of a format, as numbers that may be traced: one compiled program serves every format."""

    mantissa: int
    min_exponent: int
    max: float


@dataclass(frozen=True)
class Format:
    """One sign bit, `exponent` bits (0 to 8), `mantissa` bits (0 to 10); variant "", "fn" or "ieee".

    exponent = 0 leaves no normal numbers: all values are the subnormals of bias 0, a uniform grid.
    Raises InputError for other sizes, and where the maximum is 0 or past float32's.
    """

    exponent: int
    mantissa: int
    variant: str = ""

    def __post_init__(self):
        if not (self.exponent in range(9) and self.mantissa in range(11) and self.variant in VARIANTS):
            raise InputError(f"format={self}: must be e0m1 to e8m10, e4m3 (no inf, no NaN), e4m3fn or e4m3ieee")
        if self.variant == "ieee" and self.exponent < 2:
            raise InputError(f"format={self}: ieee must have 2 exponent bits or more, one exponent being inf and NaN")
        if not 0 < self.max <= float(np.finfo(np.float32).max):
            raise InputError(f"format={self}: its maximum, {self.max:g}, must be above 0 and within float32's, 3.4e38")

    def __str__(self) -> str:
        return f"e{self.exponent}m{self.mantissa}{self.variant}"

    @property
    def bits(self) -> int:
        """P = E + M + 1."""
        return self.exponent + self.mantissa + 1

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number, 1 - bias; bias = 2^(E-1) - 1, and 0 for E = 0."""
        return 2 - max(1, 2**self.exponent // 2)

    @property
    def smallest_normal(self) -> float:
        """2^min_exponent (for E = 0 the first value past the grid)."""
        return 2.0**self.min_exponent

    @property
    def smallest_subnormal(self) -> float:
        """The smallest value above 0 and the spacing up to `smallest_normal` (equal to that for M = 0)."""
        return 2.0 ** (self.min_exponent - self.mantissa)

    @cached_property
    def max(self) -> float:
        """The largest finite value: 2^(2^(E-1)) (2 - 2^-M) where no code is inf or NaN."""
        return float(self._value(self._codes - 1))

    @property
    def grid(self) -> Grid:
        """The format as numbers to pass into a compiled function. Raises InputError for 8 exponent bits."""
        if self.exponent == 8:
            raise InputError(f"format={self}: a traced format must have at most 7 exponent bits")
        return Grid(np.int32(self.mantissa), np.int32(self.min_exponent), np.float32(self.max))

    @property
    def _codes(self) -> int:
        """How many codes of one sign are finite numbers."""
        if self.variant == "ieee":
            return (2**self.exponent - 1) * 2**self.mantissa
        return 2 ** (self.exponent + self.mantissa) - (self.variant == "fn" and self.bits >= 8)

    def _value(self, code):
        """What the exponent and mantissa bits mean; codes of one sign are in the order of their values."""
        field, fraction = np.divmod(code, 2**self.mantissa)
        return np.ldexp(fraction / 2**self.mantissa + (field > 0), self.min_exponent + np.maximum(field - 1, 0))

    def values(self) -> np.ndarray:
        """Every finite value in ascending order, float64; zero once."""
        positive = self._value(np.arange(1, self._codes))
        return np.concatenate([-positive[::-1], [0.0], positive])

    @property
    def dtype(self) -> np.dtype | None:
        """The numpy (ml_dtypes) type of the same grid, or None."""
        name = str(Format(self.exponent, self.mantissa)) if self.variant == "fn" and self.bits < 8 else str(self)
        return np.dtype(DTYPES[name]) if name in DTYPES else None


def parse(text: str | Format | Grid) -> Format | Grid:
    """`e4m3`, `e4m3fn`, `e4m3ieee` as a Format; a Format or a Grid as it is. Raises InputError."""
    if isinstance(text, Format | Grid):
        return text
    match = isinstance(text, str) and re.fullmatch("e(0|[1-9][0-9]?)m(0|[1-9][0-9]?)(fn|ieee)?", text)
    if not match:
        raise InputError(f"format={text!r:.80}: must read like e4m3 (no inf, no NaN), e4m3fn or e4m3ieee")
    return Format(int(match[1]), int(match[2]), match[3] or "")

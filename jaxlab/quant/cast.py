"""The cast of arrays to any ExMy format, block by block under an abs-max scale (Sun et al. 2501.02423, section 2)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlab.config import InputError
from jaxlab.quant.formats import Format, Grid, parse

ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero", "stochastic")
SCALES = ("float32", "power_of_two", "e4m3", None)
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
TINY = 2.0**-126  # float32's smallest normal number
HUGE = float(np.finfo(np.float32).max) * (1 - 2.0**-23)  # what is rounded may not become an inf
SMALLEST, INF, NAN = (int(np.float32(x).view(np.int32)) for x in (TINY, np.inf, np.nan))  # as bits
FRACTION = 0x7FFFFF
GOLDEN, MURMUR = np.uint32(0x9E3779B9), (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))
E4M3 = parse("e4m3fn")  # of NVFP4's block scales


def cast(x, format, *, axis=-1, block=None, scale="float32", rounding="nearest_even", key=None):
    """Values of x rounded to `format`, each block under its own scale: round(S x) / S, S = max / absmax of the block.

    x: float32, bfloat16 or float16 of any shape; computed in float32, returned in x's type. format: a Format, its name
    ("e4m3"), or its `.grid`, which may be traced. axis: the axis, or axes, along which a block extends; None is all.
    block: its length along each; None is the whole axis; where it does not divide the axis the last block is short.
    scale: how S is kept:

    * "float32": as it is (Sun et al. 2501.02423);
    * "power_of_two": 2^(emax - floor(log2 absmax)), so that values may saturate (OCP MX v1.0);
    * "e4m3": max / S in e4m3fn under one float32 scale of the whole array (NVFP4);
    * None: S = 1, no blocks.

    rounding: "nearest_even", "nearest_away", "toward_zero" or, with a PRNG key, "stochastic" (unbiased).
    Values past the maximum saturate. A block of zeros stays zeros; one with a NaN or an inf becomes all NaN; without a
    scale NaN stays NaN and inf saturates. The gradient is that of the identity. Raises InputError.
    """
    q, inverse = quantise(x, format, axis=axis, block=block, scale=scale, rounding=rounding, key=key)
    return _straight_through(x, (q * inverse).astype(x.dtype))


def quantise(x, format, *, axis=-1, block=None, scale="float32", rounding="nearest_even", key=None):
    """(q, 1 / S): round(S x), values of `format`, and what each is multiplied by to give `cast`.

    Both float32 and of x's shape. Arguments and errors as in `cast`. Has no gradient.
    """
    format = parse(format)
    _check(x, format, scale, rounding, key)
    x = lax.stop_gradient(x).astype(jnp.float32)
    if scale is None:
        return round_to(x, format, rounding, key), jnp.ones_like(x)
    sizes = _block_shape(x.shape, axis, block)
    full = jnp.pad(x, [(0, -n % b) for n, b in zip(x.shape, sizes, strict=True)])
    blocks = full.reshape([d for n, b in zip(full.shape, sizes, strict=True) for d in (n // b, b)])
    absmax = _absmax(blocks)
    s = _per_block(_scale(absmax, format, scale), absmax)
    q = round_to(blocks * s, format, rounding, key)
    inverse = jnp.where(jnp.isnan(s), s, _float(_quotient(_bits(jnp.float32(1)), _bits(s))))
    inverse = jnp.broadcast_to(_per_block(jnp.minimum(inverse, HUGE / format.max), absmax), q.shape)
    return tuple(y.reshape(full.shape)[tuple(map(slice, x.shape))] for y in (q, inverse))


def round_to(x, format: Format | Grid, rounding="nearest_even", key=None):
    """float32 x rounded to values of `format`, saturating; NaN stays NaN."""
    if isinstance(format, Format) and format.exponent == 8:
        return _round_bits(x, format, rounding, key)
    x = jnp.clip(x, -format.max, format.max)
    exponent = jnp.maximum(_bits(x) & 0x7F800000, (127 + format.min_exponent) << 23)
    unit = exponent - (format.mantissa << 23)  # the grid's spacing around x, 2^(exponent - M), as float32's bits
    return _round(x * _float((254 << 23) - unit), rounding, key) * _float(unit)


def _round(k, rounding: str, key):
    """k rounded to integers."""
    if rounding == "nearest_even":
        return lax.round(k, lax.RoundingMethod.TO_NEAREST_EVEN)
    if rounding == "nearest_away":
        return lax.round(k, lax.RoundingMethod.AWAY_FROM_ZERO)
    if rounding == "toward_zero":
        return jnp.trunc(k)
    return _round_up_below(k, draws(key, k.shape))


def _round_up_below(k, draw):
    """k rounded up where its fraction exceeds (draw + 1/2) / 2^16, else down: of all 2^16 draws, the nearest whole
    number to 2^16 times the fraction round up."""
    floor = jnp.floor(k)
    return jnp.copysign(floor + ((draw.astype(jnp.float32) + 0.5) * 2.0**-16 < k - floor), k)


def _round_bits(x, format: Format, rounding: str, key):
    """`round_to` for 8 exponent bits, float32's: in integers, since on CPU its subnormals are zero in arithmetic."""
    drop = 23 - format.mantissa
    size = _bits(x) & 0x7FFFFFFF
    finite = jnp.minimum(size, np.float32(format.max).view(np.int32))
    odd = (finite >> drop) & 1 if format.mantissa else (finite >> 23).clip(0, 1)  # without bits left, the implicit one
    add = {
        "nearest_even": lambda: odd + (1 << drop - 1) - 1,
        "nearest_away": lambda: 1 << drop - 1,
        "toward_zero": lambda: 0,
        "stochastic": lambda: _below(draws(key, x.shape), drop),
    }[rounding]()
    rounded = (finite + add) & -(1 << drop)
    return _float(jnp.where(size > 0x7F800000, size, rounded) | (_bits(x) & -0x80000000))


def _below(draw, bits: int):
    """Draws of 16 bits as whole numbers below 2^bits: their upper bits, or followed by a one and zeros, the middle of
    what a draw stands for."""
    return draw >> 16 - bits if bits <= 16 else (2 * draw + 1) << bits - 17


def draws(key, shape) -> jax.Array:
    """Random whole numbers below 2^16, int32, one for every element: a hash of its index and of the key.

    They depend on nothing else: they are the same on any number of devices, and under jit, scan and vmap.
    """
    index = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    # Spread over all 32 bits first: of small numbers in a row the hash is less even.
    return (mixed(GOLDEN * index ^ _word(key)) >> 16).astype(jnp.int32)


def _word(key) -> jax.Array:
    """32 bits, each of which depends on every bit of a key of any kind."""
    h = jnp.uint32(GOLDEN)
    for word in jnp.moveaxis(jax.random.key_data(key), -1, 0):
        h = mixed(h + word)
    return h


def mixed(h):
    """The finaliser of MurmurHash3, uint32 -> uint32, one to one; changing any bit changes each in half the cases."""
    h = (h ^ (h >> 16)) * MURMUR[0]
    h = (h ^ (h >> 13)) * MURMUR[1]
    return h ^ (h >> 16)


def _absmax(blocks):
    """The bits of the largest |x| over every second axis; of a NaN where there is one. They order as floats do, and
    vectorise."""
    size = _bits(blocks) & 0x7FFFFFFF
    size = jnp.max(size, tuple(range(1, blocks.ndim - 1, 2)), keepdims=True, initial=0)
    return lax.platform_dependent(size, cpu=_halve, default=lambda a: jnp.max(a, -1, keepdims=True))


def _halve(a):
    """The maximum over the last axis, first by halves, which may overlap: XLA's own there is not vectorised on CPU.

    The end is left to XLA's, whose result is kept; a plain maximum it computes again for every element of the block.
    """
    if a.shape[-1] > 1024:
        a = jnp.max(a.reshape(*a.shape[:-1], -1, math.gcd(a.shape[-1], 128)), -2)
    while (n := a.shape[-1]) > 16:
        a = jnp.maximum(a[..., : (n + 1) // 2], a[..., n // 2 :])
    return jnp.max(a, -1, keepdims=True)


def _scale(absmax, format: Format | Grid, scale: str):
    """S of every block, from the bits of its absmax: float32 in [2^-126, 2^126], NaN where the block is not finite."""
    most, finite = _bits(jnp.float32(format.max)), absmax < INF
    if scale == "float32":
        bits = _quotient(most, jnp.maximum(absmax, most - (126 << 23)))
    elif scale == "power_of_two":
        bits = (127 - jnp.clip((absmax >> 23) - (most >> 23), -126, 126)) << 23
    else:
        # As floats: two maxima of whole numbers XLA makes one, with a pass of its own over all of x.
        top, most_kept = jnp.max(_float(absmax), initial=0), jnp.float32(E4M3.max)
        least = _bits(format.max * most_kept) - (117 << 23)  # below it S would be past 2^126
        whole = _float(_quotient(_bits(most_kept), jnp.maximum(_bits(top), least)))
        kept = jnp.maximum(round_to(_float(absmax) * whole, E4M3), E4M3.smallest_subnormal)
        bits, finite = _quotient(_bits(format.max * whole), _bits(kept)), jnp.isfinite(top)
    return _float(jnp.where(finite, jnp.maximum(bits, SMALLEST), NAN))


def _per_block(x, absmax):
    """x, divided by 1 on CPU. XLA there computes what is broadcast again for every element of the block, unless it ends
    in a division; the 1 must not look like a constant."""

    def divided(x, absmax):
        return x / jnp.where(absmax < 0, 2.0, 1.0)  # sizes are never negative

    return lax.platform_dependent(x, absmax, cpu=divided, default=lambda x, _: x)


def _quotient(a, b):
    """Bits of a / b rounded to nearest, from the bits of two positive normal numbers.

    XLA makes a * (1 / b) of some divisions, and b / a of 1 / (a / b), in one program and not in the next: two roundings
    or one. On a GPU a division may be wrong in its last two bits. Here the only division is 1 / b, and the remainder, a
    small whole number and hence exact modulo 2^32, puts the quotient right.
    """
    m, n = (x & FRACTION | 127 << 23 for x in (a, b))  # in [1, 2)
    q = _bits(_float(m) * _reciprocal(_float(n)))
    for _ in range(2):  # the second time for those that were on the wrong side of a power of two
        f, g, h = (x & FRACTION | 1 << 23 for x in (a, b, q))  # the same as whole numbers
        rest = 2 * ((f << (150 - (q >> 23))) - h * g)
        q += sum((rest > k * g).astype(jnp.int32) - (rest < -k * g) for k in (1, 3, 5))
    return q + (a - m) - (b - n)


def _reciprocal(x):
    """1 / x within two units of the last place, as GPUs divide."""
    return 1 / x


def _block_shape(shape, axis, block) -> list[int]:
    """Length of a block along every axis of the array; 1 where it does not extend."""
    axes = tuple(range(len(shape))) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    lengths = block if isinstance(block, tuple) else (block,) * len(axes)
    if any(not -len(shape) <= i < len(shape) for i in axes) or len({i % len(shape) for i in axes}) < len(axes):
        raise InputError(f"axis={axis}: must be different axes of an array of shape {shape}")
    if len(lengths) != len(axes) or any(length is not None and length < 1 for length in lengths):
        raise InputError(f"block={block}: must be at least 1, or None, for each axis of {axis}")
    sizes = [1] * len(shape)
    for i, length in zip(axes, lengths, strict=True):
        sizes[i] = max(1, min(length or shape[i], shape[i]))
    return sizes


@jax.custom_jvp
def _straight_through(x, q):
    """q, with the gradient of x."""
    return q


@_straight_through.defjvp
def _(primals, tangents):
    return primals[1], tangents[0]


def _bits(x):
    return lax.bitcast_convert_type(x, jnp.int32)


def _float(bits):
    return lax.bitcast_convert_type(bits, jnp.float32)


def _check(x, format, scale, rounding, key):
    if scale not in SCALES:
        raise InputError(f"scale={scale!r}: must be one of {SCALES}")
    if rounding not in ROUNDINGS:
        raise InputError(f"rounding={rounding!r}: must be one of {ROUNDINGS}")
    if (rounding == "stochastic") != (key is not None):
        raise InputError(f"rounding={rounding!r}, key={key}: stochastic rounding, and it alone, takes a key")
    if scale == "e4m3" and isinstance(format, Format) and format.exponent == 8:
        raise InputError(f"format={format}: must have at most 7 exponent bits under scale='e4m3'")
    if x.dtype not in DTYPES:
        raise InputError(f"x of {x.dtype}: must be float32, bfloat16 or float16")

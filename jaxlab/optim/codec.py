"""What DiLoCo's replicas send: outer gradients in 32, 16, 8 or 4 bits, with the exact count of bytes.

Streaming DiLoCo (2501.18512): every replica's own outer gradient is encoded before anything is summed, sent, decoded,
and accumulated in float32, without error feedback. int8 and e3m0 keep one float32 scale for every row along the last
axis: the row's largest magnitude, to which the format's largest value is mapped. e3m0 is a sign and three exponent
bits: zero and +-2^-2 ... 2^4 before scaling. Rounding is to nearest, ties to the even code, in all formats.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

CODECS = ("float32", "bfloat16", "int8", "e3m0")
LARGEST = {"int8": 127, "e3m0": 64}  # in units of the format's smallest value
TINY = 2.0**-126  # float32's smallest normal number, whose inverse is one too
# Between the magnitudes 0, 1, 2, 4, ..., 64 of e3m0 in those units: what lies above midpoint k has a code above k.
MIDPOINTS = (0.5, 1.5, 3, 6, 12, 24, 48)


def encode(x: jax.Array, codec: str) -> dict[str, jax.Array]:
    """What goes over the wire for x [M, ..., n]: {"values"} and, for int8 and e3m0, {"scale": float32 [M, ..., 1]}.

    values: float32; the bits of bfloat16 as uint16; int8; or uint8 [M, ..., ceil(n / 2)] for e3m0, two neighbours a
    byte, the first in the low half. x [M] is taken as [M, 1]: replicas are never encoded together.
    Raises ValueError for an unknown codec.
    """
    _check(codec)
    if codec == "float32":
        return {"values": x.astype(jnp.float32)}
    if codec == "bfloat16":  # as bits: XLA may widen what is bfloat16 on the wire, and drop a conversion there and back
        short = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)
        return {"values": lax.bitcast_convert_type(short, jnp.uint16)}
    x = x[:, None] if x.ndim == 1 else x
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True).astype(jnp.float32)
    # Of divisions 1 / b alone gives the same bits in every program: XLA makes a * (1 / b) of some others.
    units = x * (LARGEST[codec] * (1 / jnp.maximum(scale, LARGEST[codec] * TINY)))
    return {"values": jnp.round(units).astype(jnp.int8) if codec == "int8" else _pack(_e3m0(units)), "scale": scale}


def decode(wire: dict[str, jax.Array], codec: str, shape: tuple[int, ...]) -> jax.Array:
    """float32 [M, ..., n] of `shape` from what `encode` made of it: NaN all along a row that held NaN or infinity."""
    units = wire["values"]
    if codec == "float32":
        return units
    if codec == "bfloat16":
        return lax.bitcast_convert_type(units, jnp.bfloat16).astype(jnp.float32)
    if codec == "e3m0":
        codes = _unpack(units, shape[-1] if len(shape) > 1 else 1)
        magnitude = (1 << (codes & 7)) >> 1
        units = jnp.where(codes & 8, -magnitude, magnitude)
    return (units.astype(jnp.float32) * (wire["scale"] * (1 / LARGEST[codec]))).reshape(shape)


def exchange(codec: str, share: Callable = lambda x: x) -> Callable[[Any], Any]:
    """Changes of all replicas, float32 [M, ...] leaves -> the same as they arrive; the identity for float32.

    share: called on every encoded array [M, ...], to have all replicas' rows on the devices of each (for instance
    lax.with_sharding_constraint with the leading axis unsharded), so that the wire carries the small types and the
    mean is taken where it is needed. With float32 nothing is gathered: the mean is an all-reduce.
    """
    _check(codec)

    def arrived(x):
        return decode(jax.tree.map(share, encode(x, codec)), codec, x.shape)

    return lambda deltas: deltas if codec == "float32" else jax.tree.map(arrived, deltas)


def sent_bytes(params: Any, codec: str) -> int:
    """Bytes that one replica sends for a tree of float32 changes shaped like `params` (arrays or their shapes, without
    replica axis), scales included. Raises ValueError for an unknown codec."""
    one = jax.tree.map(lambda p: jax.ShapeDtypeStruct((1, *p.shape), jnp.float32), params)
    wire = jax.eval_shape(lambda tree: jax.tree.map(lambda x: encode(x, codec), tree), one)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(wire))


def _check(codec: str) -> None:
    if codec not in CODECS:
        raise ValueError(f"codec={codec!r}: must be one of {', '.join(CODECS)}")


def _e3m0(units: jax.Array) -> jax.Array:
    """4-bit codes: the sign, then 0 for zero and 1 to 7 for 1, 2, 4, ..., 64."""
    size = jnp.abs(units)
    above = [size >= midpoint if k % 2 else size > midpoint for k, midpoint in enumerate(MIDPOINTS)]
    return jnp.where(units < 0, 8, 0) + sum(a.astype(jnp.int32) for a in above)


def _pack(codes: jax.Array) -> jax.Array:
    codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    return (codes[..., ::2] | codes[..., 1::2] << 4).astype(jnp.uint8)


def _unpack(packed: jax.Array, size: int) -> jax.Array:
    pairs = jnp.stack([packed & 15, packed >> 4], axis=-1).astype(jnp.int32)
    return pairs.reshape(*packed.shape[:-1], -1)[..., :size]

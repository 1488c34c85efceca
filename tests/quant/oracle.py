"""The cast again, independently: numpy in blocks one by one, rounded by ml_dtypes or by a search of the grid."""

import ml_dtypes
import numpy as np

from jaxlab.quant.formats import parse

DTYPES = {"e2m1": (ml_dtypes.float4_e2m1fn, 6), "e4m3fn": (ml_dtypes.float8_e4m3fn, 448)}


def cast_rows(x: np.ndarray, format: str, block: int) -> np.ndarray:
    """float32 [rows, n]: every `block` elements of a row (0: all) under one float32 scale; the last may be fewer."""
    dtype, top = DTYPES[format]
    out = np.empty_like(x)
    for i in range(0, x.shape[1], block or x.shape[1]):
        part = x[:, i : i + (block or x.shape[1])]
        scale = np.float32(top) / np.abs(part).max(axis=1, keepdims=True)
        out[:, i : i + part.shape[1]] = (part * scale).astype(dtype).astype(np.float32) / scale
    return out


def cast_along(x: np.ndarray, axes: tuple[int, ...], format: str, block: int) -> np.ndarray:
    """`cast_rows` along the given axes taken as one."""
    moved = np.moveaxis(x, axes, range(-len(axes), 0))
    rows = moved.reshape(-1, int(np.prod([x.shape[i] for i in axes])))
    return np.moveaxis(cast_rows(rows, format, block).reshape(moved.shape), range(-len(axes), 0), axes)


def rounded(x: np.ndarray, format, way: str = "nearest_even") -> np.ndarray:
    """float32 x on the grid: the two neighbours of |x| looked up, the nearer taken; ties as `way` says."""
    grid = format.values()
    grid = grid[grid >= 0]
    size = np.minimum(np.abs(x).astype(np.float64), format.max)
    above = np.searchsorted(grid, size)
    lower, upper = grid[np.maximum(above - 1, 0)], grid[above]
    gap = np.where(upper > lower, upper - lower, 1)
    tie_up = {"nearest_even": upper / gap % 2 == 0, "nearest_away": True, "toward_zero": False}[way]
    up = (upper - size < size - lower) | ((upper - size == size - lower) & tie_up)
    up = size == upper if way == "toward_zero" else up
    return np.copysign(np.where(up, upper, lower), x).astype(np.float32)


def blockwise(x, format, axes, block, scale, way="nearest_even"):
    """`cast` of float32 x block after block, every operation one of numpy's float32: S = max / absmax, and 1 / S."""
    f, out = parse(format), np.empty_like(x)
    sizes = [block[axes.index(i)] if i in axes else 1 for i in range(x.ndim)]
    whole = np.float32(448) / np.abs(x).max()
    for start in np.ndindex(*(-(-n // b) for n, b in zip(x.shape, sizes, strict=True))):
        piece = tuple(slice(i * b, (i + 1) * b) for i, b in zip(start, sizes, strict=True))
        top = np.abs(x[piece]).max()
        if scale == "float32":
            s = np.float32(f.max) / top
        elif scale == "power_of_two":
            s = np.float32(2.0 ** (np.floor(np.log2(f.max)) - np.floor(np.log2(top))))
        else:
            kept = max(np.float32(top * whole).astype(parse("e4m3fn").dtype).astype(np.float32), np.float32(2**-9))
            s = np.float32(f.max) * whole / kept
        out[piece] = rounded(x[piece] * s, f, way) * (np.float32(1) / s)
    return out


def same_bits(got, want):
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.int32), want.view(np.int32))

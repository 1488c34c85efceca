"""The cast again, independently: numpy in blocks one by one, rounded by ml_dtypes."""

import ml_dtypes
import numpy as np

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

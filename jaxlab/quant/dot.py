"""Products whose operands are cast first: `dot_general` and the `dot` of a linear layer, by recipe.

Every operand is cast from the tensor as it came, in blocks along the axis that its own product contracts, and
multiplied in that tensor's type; the gradient passes a cast unchanged. On hardware with FP8 products those with both
operands in FP8 can run there: the same numbers within the error of accumulation.
"""

import re
from collections.abc import Callable
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlab.config import InputError
from jaxlab.quant.cast import GOLDEN, cast, mixed, quantise
from jaxlab.quant.formats import parse
from jaxlab.quant.recipes import OPERANDS, PRODUCTS, Operand, Recipe

FP8 = ("auto", "native", "simulated")
SLOWER = "no FP8 product of this kind has been faster than bfloat16's where it was measured"
TENSOR_CORES = ("float8_e4m3fn", "float8_e5m2")  # the types that they multiply


def dot_general(recipe: Recipe, *, fp8: str = "auto", device: jax.Device | None = None) -> Callable:
    """`lax.dot_general` with its operands and those of its gradients cast: lhs is x of the recipe, rhs is w.

    Any dimension numbers, float32, bfloat16 or float16. Fits `dot_general=` of flax.linen.Dense and flax.nnx.Linear.
    A recipe that casts nothing gives `lax.dot_general` itself. fp8, device: as in `arithmetic`. Raises InputError.
    """
    native = _native(recipe, fp8, device)
    if not recipe.casts:
        return lax.dot_general

    def product(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None, *, out_sharding=None):
        if out_sharding is not None:
            raise InputError(f"out_sharding={out_sharding}: must be None for a product of cast operands")
        dims = tuple((tuple(of_lhs), tuple(of_rhs)) for of_lhs, of_rhs in dimension_numbers)
        return _product(lhs, rhs, recipe, native, dims, precision, preferred_element_type)

    return product


def dot(recipe: Recipe, *, fp8: str = "auto", device: jax.Device | None = None) -> Callable:
    """dot(x [..., i], w [i, o]) -> [..., o] for `model.linear.Linear(dot=...)`; arguments as in `dot_general`.

    What is not cast has the bits of `linear.dot` and of its gradients.
    """
    native = _native(recipe, fp8, device)
    return lambda x, w: _product(x, w, recipe, native, (((x.ndim - 1,), (0,)), ((), ())), None, None)


def _native(*how) -> tuple[str, ...]:
    return tuple(name for name, way in arithmetic(*how).items() if way == "native")


def arithmetic(recipe: Recipe, fp8: str = "auto", device: jax.Device | None = None) -> dict[str, str]:
    """{product: "native", or "simulated: why"}: how the three products of a linear layer run on a device (default: the
    first).

    Native products take E4M3fn or E5M2 with blocks of one length in both operands, on NVIDIA GPUs of compute capability
    8.9 or above. fp8: `native` runs those that can be, and raises InputError where none can; `simulated` multiplies in
    the type of the tensors; `auto` is native where that is known to be faster, which is nowhere so far.
    """
    if fp8 not in FP8:
        raise InputError(f"fp8={fp8!r}: must be one of {', '.join(FP8)}")
    missing = _missing(device or jax.devices()[0])
    if missing and fp8 == "native":
        raise InputError(f"fp8=native: {missing}")
    missing = {"simulated": "as asked", "auto": missing or SLOWER}.get(fp8, "")
    hows = {name: missing or _obstacle(recipe, *pair) for name, pair in PRODUCTS.items()}
    if fp8 == "native" and all(hows.values()):
        raise InputError(f"fp8=native: no product can be, {'; '.join(f'{k}: {v}' for k, v in hows.items())}")
    return {name: f"simulated: {why}" if why else "native" for name, why in hows.items()}


def _missing(device: jax.Device) -> str:
    """What the device lacks for FP8 products, or ""."""
    capability = re.match(r"\d+\.\d+", str(getattr(device, "compute_capability", "")))
    if device.platform == "gpu" and capability and float(capability[0]) >= 8.9:
        return ""
    found = f"{device.platform} ({device.device_kind})"
    return f"FP8 products must have an NVIDIA GPU of compute capability 8.9 or above, and this is {found}"


def _obstacle(recipe: Recipe, *pair: str) -> str:
    """Why a product of two operands cannot be native, or ""."""
    for name in pair:
        operand = getattr(recipe, name)
        if not operand.format:
            return f"{name} is not cast"
        if parse(operand.format).dtype not in map(np.dtype, TENSOR_CORES):
            return f"{name} is {operand.format}, and tensor cores take e4m3fn and e5m2ieee"
    a, b = (getattr(recipe, name).block for name in pair)
    return "" if a == b else f"blocks of {pair[0]} and {pair[1]} are {a} and {b} long"


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5, 6))
def _product(lhs, rhs, recipe, native, dims, precision, preferred):
    return _multiply("forward", lhs, rhs, recipe, native, dims, precision, preferred)


def _forward(lhs, rhs, *how):
    return _product(lhs, rhs, *how), (lhs, rhs)


def _backward(recipe, native, dims, precision, preferred, residuals, dy):
    """(dlhs, drhs). The latter is lhs . dy, not dy . lhs, for XLA on CPU would transpose lhs (see `model.linear`)."""
    lhs, rhs = residuals
    (lc, rc), (lb, rb) = dims
    l_kept, r_kept = _others(lhs, lc + lb), _others(rhs, rc + rb)
    batch, rows, columns = (tuple(a.tolist()) for a in np.split(range(dy.ndim), np.cumsum([len(lb), len(l_kept)])))

    def gradient(name, like, axes, a, b, dims):
        out = _multiply(name, a, b, recipe, native, dims, precision, preferred)
        return lax.transpose(out, np.argsort(axes)).astype(like.dtype)

    # Axes of a product: batch, what the first keeps, what the second keeps, the latter two in ascending order.
    l_axes = (*lb, *l_kept, *(i for _, i in sorted(zip(rc, lc, strict=True))))
    r_axes = (*rb, *(i for _, i in sorted(zip(lc, rc, strict=True))), *r_kept)
    return (
        gradient("input gradient", lhs, l_axes, dy, rhs, ((columns, r_kept), (batch, rb))),
        gradient("weight gradient", rhs, r_axes, lhs, dy, ((l_kept, rows), (lb, batch))),
    )


_product.defvjp(_forward, _backward)


def _multiply(name, lhs, rhs, recipe, native, dims, precision, preferred):
    """The product of that name, of cast operands."""
    contracted, batch = dims
    how = quantise if name in native else cast
    made = [
        _cast(how, x, getattr(recipe, p), c, b, len(OPERANDS) * recipe.seed + OPERANDS.index(p))
        for p, x, c, b in zip(PRODUCTS[name], (lhs, rhs), contracted, batch, strict=True)
    ]
    if name not in native:
        made = [a.astype(x.dtype) for a, x in zip(made, (lhs, rhs), strict=True)]
        return lax.dot_general(*made, dims, precision, preferred)
    a, b = (getattr(recipe, p) for p in PRODUCTS[name])
    pairs = [(q.astype(parse(p.format).dtype), s) for p, (q, s) in zip((a, b), made, strict=True)]
    return _fp8_product(*pairs, dims, a.block).astype(preferred or jnp.result_type(lhs, rhs))


def _fp8_product(lhs, rhs, dims, block: int):
    """Product of two pairs (values in FP8, what each stands multiplied by): of one block of the contracted axis after
    another, summed in float32."""
    contracted, batch = dims

    def blocks(x, contracted, batch):
        """[blocks, batch, kept, block]"""
        kept = _others(x, contracted + batch)
        sizes = [prod(x.shape[i] for i in axes) for axes in (batch, kept, contracted)]
        size = min(block or sizes[2], sizes[2])
        matrices = x.transpose(*batch, *kept, *contracted).reshape(sizes)
        matrices = jnp.pad(matrices, ((0, 0), (0, 0), (0, -sizes[2] % size)))
        return jnp.moveaxis(matrices.reshape(*sizes[:2], -1, size), 2, 0)

    (q, s), (r, t) = (
        (blocks(values, c, b), blocks(scales, c, b)[..., 0])
        for (values, scales), c, b in zip((lhs, rhs), contracted, batch, strict=True)
    )

    def add(total, block):
        q, s, r, t = block
        y = lax.dot_general(q, r, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32)
        return total + y * s[:, :, None] * t[:, None, :], None

    total = lax.scan(add, jnp.zeros((q.shape[1], q.shape[2], r.shape[2])), (q, s, r, t))[0]
    return total.reshape(jax.eval_shape(partial(lax.dot_general, dimension_numbers=dims), lhs[1], rhs[1]).shape)


def _cast(how: Callable, x, operand: Operand, contracted, batch, seed):
    """how(x, ...), `cast` or `quantise`, in blocks along the contracted axes taken as one; x rotated before it."""
    if not (operand.format or operand.hadamard):
        return x
    axis = min(*contracted, x.ndim - len(contracted)) if contracted else x.ndim
    places = range(axis, axis + len(contracted))
    moved = jnp.moveaxis(x, contracted, places)
    merged = moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + len(contracted) :])
    if operand.hadamard:
        merged = _rotated(merged, axis, operand.hadamard)
    if operand.format:
        key = _key(merged, seed) if operand.rounding == "stochastic" else None
        axes, block = axis, operand.block or None
        kept = [n for n, i in enumerate(i for i in range(x.ndim) if i not in contracted) if i not in batch]
        if operand.rows == 0:
            axes = None
        elif operand.rows > 1 and kept:
            axes, block = (axis, kept[-1] + (kept[-1] >= axis)), (block, operand.rows)
        merged = how(
            merged, operand.format, axis=axes, block=block, scale=operand.scale, rounding=operand.rounding, key=key
        )
    return jax.tree.map(lambda y: jnp.moveaxis(y.reshape(moved.shape), places, contracted), merged)


def _rotated(x, axis: int, size: int):
    """Pieces of `size` elements along an axis times a Hadamard matrix of random signs, always the same and orthogonal:
    two operands so rotated have the product that they had, and outliers are spread over their piece. Float32.

    Sums and differences of pairs, then of pairs of these: unlike a product's, their order is the same in every program.
    """
    length, half = x.shape[axis], 1
    if length % size:
        raise InputError(f"hadamard={size}: must divide the {length} elements that the product contracts")
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    ones = (1,) * len(after)
    signs = np.random.default_rng(0).choice([-1, 1], size)
    # In bits: a product that made x is otherwise fused with the sum, unrounded, in one program and not in the next.
    minus = np.where(np.tile(signs, length // size) < 0, 1 << 31, 0).astype(np.uint32).reshape(-1, *ones)
    y = lax.bitcast_convert_type(lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) ^ minus, jnp.float32)
    while half < size:
        pairs = y.reshape(*before, -1, 2, half, *after)  # a, b become b + a, a - b
        y = jnp.flip(pairs, axis + 1) + pairs * np.float32([1, -1]).reshape(2, 1, *ones)
        half *= 2
    return y.reshape(x.shape) * np.float32(size**-0.5)


def _key(x, seed):
    """PRNG key whose two words are a hash of the tensor's bits and where they stand, and the seed.

    A product has no key to be given and must keep no state. This one repeats with the data, on any number of devices
    (whole numbers add up to the same in any order), and two tensors that differ anywhere draw independently.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32 if x.dtype.itemsize == 4 else jnp.uint16).astype(jnp.uint32)
    h = mixed(bits + GOLDEN * lax.iota(jnp.uint32, x.size).reshape(x.shape))
    words = jnp.stack([h.sum(dtype=jnp.uint32), jnp.uint32(seed % 2**32)])
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def _others(x, axes) -> tuple[int, ...]:
    return tuple(i for i in range(x.ndim) if i not in axes)

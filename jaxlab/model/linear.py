"""The linear map of every block, and its gradient."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name


def product(a: jax.Array, b: jax.Array, dimension_numbers) -> jax.Array:
    """lax.dot_general of two arrays of one type, in that type.

    On CPU the result of 16-bit operands is asked for in float32 and rounded afterwards: on a processor that has
    instructions for them (AMX, AVX512-BF16), jax 0.10 multiplies four times faster than when it is asked for 16 bits.
    """
    plain = partial(lax.dot_general, dimension_numbers=dimension_numbers)
    if a.dtype.itemsize != 2:
        return plain(a, b)

    def rounded(a, b):
        return plain(a, b, preferred_element_type=jnp.float32).astype(a.dtype)

    return lax.platform_dependent(a, b, cpu=rounded, default=plain)


@jax.custom_vjp
def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [..., i] times w [i, o] -> [..., o], in x's dtype.

    The gradients are written out because automatic differentiation asks for the weight gradient transposed, and XLA
    on CPU then transposes the activations, recomputing whatever produced them in a strided loop: nearly half of the
    training step of a small decoder.
    """
    return product(x, w, (((x.ndim - 1,), (0,)), ((), ())))


def _forward(x, w):
    return dot(x, w), (x, w)


def _backward(residuals, dy):
    x, w = residuals
    rows = tuple(range(x.ndim - 1))
    dx = product(dy, w, (((dy.ndim - 1,), (1,)), ((), ())))
    dw = product(x, dy, ((rows, rows), ((), ())))
    return dx, dw


dot.defvjp(_forward, _backward)


class Linear(nn.Module):
    """y = x W (+ b): kernel [d_in, features] in float32, product in x's dtype, by `dot`.

    weight_norm: none, W is the kernel; hyperspherical, the kernel with every output's weights (a column) of L2 norm 1;
    weight (1602.07868, equation 2), the same times a learned gain of each output, at first the norm of its weights.
    """

    features: int
    use_bias: bool = False
    init_std: float = 0.0
    dot: Callable = dot
    weight_norm: str = "none"

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", initializer(self.init_std), (x.shape[-1], self.features))
        if self.weight_norm != "none":
            norm = jnp.linalg.norm(kernel, axis=0)
            kernel = kernel / norm
        if self.weight_norm == "weight":
            kernel = kernel * self.param("gain", lambda _: norm)
        y = checkpoint_name(self.dot(x, kernel.astype(x.dtype)), "linear")
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
        return y


def initializer(std: float):
    """Normal(0, std); std 0: truncated normal of variance 1 / fan-in (the last axis but one)."""
    if std:
        return nn.initializers.normal(std)
    return nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")

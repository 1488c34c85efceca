"""LayerNorm and RMSNorm, chosen by the config, computed in float32."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


class Norm(nn.Module):
    """x [..., d] -> [..., d] in x's dtype: (x - mean) / std * scale (+ bias) for "layer", x / rms * scale for "rms"."""

    c: object

    @nn.compact
    def __call__(self, x):
        c, d = self.c, x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (d,))
        y = normalise(x.astype(jnp.float32), scale, c.norm == "layer", c.norm_eps)
        if c.norm == "layer" and c.use_bias:
            y += self.param("bias", nn.initializers.zeros, (d,))
        return y.astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def normalise(x, scale, centre: bool, eps: float):
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) * scale over the last axis, without the mean unless `centre`."""
    return _forward(x, scale, centre, eps)[0]


def _forward(x, scale, centre, eps):
    centred = x - _mean(x) if centre else x
    inverse = lax.rsqrt(_mean(centred * centred) + eps)
    unit = centred * inverse
    return unit * scale, (unit, inverse, scale)


def _backward(centre, eps, residuals, dy):
    unit, inverse, scale = residuals
    d_unit = dy * scale
    dx = d_unit - unit * _mean(d_unit * unit)
    if centre:
        dx -= _mean(d_unit)
    return inverse * dx, _total(dy * unit)


normalise.defvjp(_forward, _backward)


def _mean(x):
    """Mean over the last axis, kept. On CPU as a product with a vector: XLA's reduction of a product is many times
    slower there."""

    def product(x):
        return lax.dot_general(x, jnp.full((x.shape[-1], 1), 1 / x.shape[-1]), (((x.ndim - 1,), (0,)), ((), ())))

    return lax.platform_dependent(x, cpu=product, default=partial(jnp.mean, axis=-1, keepdims=True))


def _total(x):
    """Sum over all axes but the last; on CPU as a product, as in `_mean`."""

    def product(rows):
        return (jnp.ones((1, rows.shape[0])) @ rows)[0]

    return lax.platform_dependent(x.reshape(-1, x.shape[-1]), cpu=product, default=partial(jnp.sum, axis=0))

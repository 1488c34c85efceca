"""The feed-forward layer: gated or not, four activations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlab.model.linear import Linear, dot

_SLOPE = 2 * (2 / jnp.pi) ** 0.5  # tanh-GELU is x sigmoid(_SLOPE (x + _CUBIC x^3))
_CUBIC = 0.044715


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form, elementwise, in x's dtype.

    0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)). Ending in a division, and with the derivative written in terms of the
    output, it makes XLA on CPU keep the result instead of computing tanh again inside the next product.
    """
    return x / (1 + jnp.exp(-_SLOPE * (x + _CUBIC * x**3)))


def _gelu_forward(x):
    y = gelu(x)
    return y, (x, y)


def _gelu_backward(residuals, dy):
    x, y = residuals
    gate = 1 / (1 + jnp.exp(-_SLOPE * (x + _CUBIC * x**3)))
    return (dy * (gate + y * (1 - gate) * _SLOPE * (1 + 3 * _CUBIC * x**2)),)


gelu.defvjp(_gelu_forward, _gelu_backward)

ACTIVATIONS = {"gelu": gelu, "relu": nn.relu, "relu2": lambda x: nn.relu(x) ** 2, "swiglu": nn.silu}


class FeedForward(nn.Module):
    """x [b, L, d] -> [b, L, d]: down(act(up x)), or down(silu(gate x) * up x) for swiglu."""

    c: object
    dot: Callable = dot

    @nn.compact
    def __call__(self, x):
        c = self.c

        def linear(name, features, x):
            return Linear(features, c.use_bias, c.init_std, self.dot, name=name)(x)

        up = linear("up", c.d_ff, x)
        act = ACTIVATIONS[c.ffn]
        hidden = act(linear("gate", c.d_ff, x)) * up if c.ffn == "swiglu" else act(up)
        return linear("down", c.d_model, hidden)

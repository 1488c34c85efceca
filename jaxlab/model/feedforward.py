"""The feed-forward layer: gated or not, four activations, its weights normalised or not."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlab.model import ngpt
from jaxlab.model.linear import Linear, dot
from jaxlab.spectral.covariance import moments

_SLOPE = 2 * (2 / jnp.pi) ** 0.5  # tanh-GELU is x sigmoid(_SLOPE (x + _CUBIC x^3))
_CUBIC = 0.044715


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form, elementwise, computed in float32, in x's dtype.

    0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)). Ending in a division, and with the derivative written in terms of the
    output, it makes XLA on CPU keep the result instead of computing tanh again inside the next product.
    """
    wide = x.astype(jnp.float32)
    return (wide / (1 + _decay(wide))).astype(x.dtype)


def _gelu_forward(x):
    y = gelu(x)
    return y, (x, y)


def _gelu_backward(residuals, dy):
    x, y, slope = *(a.astype(jnp.float32) for a in residuals), dy.astype(jnp.float32)
    gate = 1 / (1 + _decay(x))
    return ((slope * (gate + y * (1 - gate) * _SLOPE * (1 + 3 * _CUBIC * x**2))).astype(dy.dtype),)


def _decay(x):
    return jnp.exp(-_SLOPE * (x + _CUBIC * x**3))


gelu.defvjp(_gelu_forward, _gelu_backward)

ACTIVATIONS = {"gelu": gelu, "relu": nn.relu, "relu2": lambda x: nn.relu(x) ** 2, "swiglu": nn.silu}


class FeedForward(nn.Module):
    """x [b, L, d] -> [b, L, d]: down(act(up x)), or down(silu(gate x) * up x) for swiglu; in nGPT
    with s_u sqrt(d) up x for up x, and s_v sqrt(d) gate x for gate x.

    Into the collection "spectra" it sows moments of what enters the activation function ("pre") and the down projection
    ("post"), each token [b, L] counted as often as `weights` says.
    """

    c: object
    dot: Callable = dot

    @nn.compact
    def __call__(self, x, weights=None):
        c = self.c

        def linear(name, features, x):
            return Linear(features, c.use_bias, c.init_std, self.dot, c.ffn_weight_norm, name=name)(x)

        def scaled(name, x):
            if c.parametrisation != "ngpt":
                return x
            return (x * ngpt.scale(self, name, c.d_ff, stored=1.0) * c.d_model**0.5).astype(x.dtype)

        up = scaled("s_u", linear("up", c.d_ff, x))
        pre = scaled("s_v", linear("gate", c.d_ff, x)) if c.ffn == "swiglu" else up
        act = ACTIVATIONS[c.ffn](pre)
        hidden = act * up if c.ffn == "swiglu" else act
        if self.is_mutable_collection("spectra") and not self.is_initializing():  # never in a training step
            self.sow("spectra", "pre", moments(pre, weights))
            self.sow("spectra", "post", moments(hidden, weights))
        return linear("down", c.d_model, hidden)

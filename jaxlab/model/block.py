"""One decoder layer: attention, then feed-forward, each normalised before it is added to the residual stream."""

from collections.abc import Callable

from flax import linen as nn

from jaxlab.model.attention import Attention
from jaxlab.model.feedforward import FeedForward
from jaxlab.model.linear import dot
from jaxlab.model.norm import Norm


class Block(nn.Module):
    """x [b, L, d] -> [b, L, d] in x's dtype. `constrain` pins the sharding of the residual stream."""

    c: object
    kernel: Callable
    constrain: Callable = staticmethod(lambda x: x)
    dot: Callable = dot

    @nn.compact
    def __call__(self, x):
        c = self.c
        x = x + Attention(c, self.kernel, self.dot, name="attention")(Norm(c, name="attention_norm")(x))
        x = self.constrain(x)
        x = x + FeedForward(c, self.dot, name="ffn")(Norm(c, name="ffn_norm")(x))
        return self.constrain(x)

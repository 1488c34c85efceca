"""One decoder layer: attention, then feed-forward, and the rule by which each changes the residual stream."""

from collections.abc import Callable
from functools import partial

from flax import linen as nn

from jaxlab.model import ngpt
from jaxlab.model.attention import Attention
from jaxlab.model.feedforward import FeedForward
from jaxlab.model.linear import dot
from jaxlab.model.moe import Experts, mixture
from jaxlab.model.norm import Norm


class Block(nn.Module):
    """x [b, L, d] -> [b, L, d] in x's dtype. `constrain` pins the sharding of the residual stream. weights [b, L]: how
    often a token counts in what is sown.

    A sublayer F makes of x, by c.norm_placement: pre, x + F(Norm(x)); post, Norm(x + F(x)); nGPT: `ngpt.residual`.
    """

    c: object
    kernel: Callable
    constrain: Callable = staticmethod(lambda x: x)
    dot: Callable = dot
    mixture: Callable = mixture

    @nn.compact
    def __call__(self, x, weights=None):
        c = self.c
        x = self._residual("attention", Attention(c, self.kernel, self.dot, name="attention"), x)
        ffn = Experts(c, self.mixture, name="experts") if c.num_experts else FeedForward(c, self.dot, name="ffn")
        return self._residual("ffn", partial(ffn, weights=weights), x)

    def _residual(self, name, sublayer, x):
        c = self.c
        if c.parametrisation == "ngpt":
            alpha = ngpt.scale(self, f"{name}_alpha", c.d_model, stored=c.d_model**-0.5, init=ngpt.ALPHA)
            return self.constrain(ngpt.residual(x, sublayer(x), alpha))
        norm = Norm(c, name=f"{name}_norm")
        return self.constrain(norm(x + sublayer(x)) if c.norm_placement == "post" else x + sublayer(norm(x)))

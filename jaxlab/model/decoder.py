"""The decoder: embedding, blocks over stacked parameters, final norm, head."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxlab.model.attention import plain
from jaxlab.model.block import Block
from jaxlab.model.linear import dot, initializer
from jaxlab.model.norm import Norm

# By name: the stock policy "dots with no batch dimensions" saves nothing under the replicas' vmap.
REMAT = {
    "dots": jax.checkpoint_policies.save_only_these_names("linear"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nn.Module):
    """A causal language model. Its parameters are float32; layers are stored stacked, whichever way they are run.

    c: the keys of `config.model` (families.model), with attribute access.
    dtype: of activations. scan: one compiled layer looped over, or all layers unrolled: the same numbers.
    kernel: attention kernel. dot: the product of every linear in the blocks. remat: none, dots, full.
    constrain: pins the sharding of [b, L, d] activations.
    """

    c: object
    dtype: jnp.dtype = jnp.float32
    scan: bool = False
    remat: str = "none"
    kernel: Callable = plain
    dot: Callable = dot
    constrain: Callable = staticmethod(lambda x: x)

    def setup(self):
        c = self.c
        embedding = nn.initializers.normal(c.init_std or c.d_model**-0.5)
        self.embedding = self.param("embedding", embedding, (c.vocab_size, c.d_model))
        if c.positions == "learned":
            self.position_embedding = self.param("position_embedding", embedding, (c.context, c.d_model))
        self.blocks = self.param("blocks", _stacked(Block(c, plain, parent=None), c))
        self.final_norm = Norm(c)
        if not c.tied:
            self.head_kernel = self.param("head", initializer(c.init_std), (c.d_model, c.vocab_size))

    def __call__(self, tokens):
        """tokens [b, L] int32 -> logits [b, L, V] float32."""
        x, head = self.features(tokens)
        return jnp.einsum("bld,vd->blv", x, head, preferred_element_type=jnp.float32)

    def features(self, tokens):
        """tokens [b, L] int32 -> final hidden states [b, L, d] and the head's matrix [V, d], both in `dtype`."""
        x = self.embedding[tokens].astype(self.dtype)
        if self.c.positions == "learned":
            x += self.position_embedding[: tokens.shape[1]].astype(self.dtype)
        x = self.final_norm(self._layers(self.constrain(x)))
        head = self.embedding if self.c.tied else self.head_kernel.T
        return x, head.astype(self.dtype)

    def _block(self):
        return Block(self.c, self.kernel, self.constrain, self.dot, parent=None)

    def _layers(self, x):
        block = self._block()

        def layer(x, params):
            return block.apply({"params": params}, x)

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[self.remat])
        if self.scan:
            return lax.scan(lambda x, params: (layer(x, params), None), x, self.blocks)[0]
        for params in _unstacked(self.blocks, self.c.num_layers):
            x = layer(x, params)
        return x


def _stacked(block: Block, c):
    """Initialiser of every layer's parameters at once: each leaf gains a leading axis of num_layers."""

    def init(rng):
        x = jnp.zeros((1, 1, c.d_model))
        return jax.vmap(lambda key: block.init(key, x)["params"])(jax.random.split(rng, c.num_layers))

    return init


def _unstacked(params, num_layers):
    """Parameters layer by layer. Split, not indexed: the gradient is one concatenation, not num_layers paddings."""
    leaves, tree = jax.tree.flatten(params)
    split = [lax.split(leaf, (1,) * num_layers) for leaf in leaves]
    return [jax.tree.unflatten(tree, [parts[i][0] for parts in split]) for i in range(num_layers)]

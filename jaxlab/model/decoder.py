"""The decoder: embedding, blocks over stacked parameters, final norm, head."""

from collections.abc import Callable
from functools import partial
from itertools import groupby

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxlab.model import ngpt
from jaxlab.model.attention import plain
from jaxlab.model.block import Block
from jaxlab.model.families import layers
from jaxlab.model.linear import dot, initializer
from jaxlab.model.moe import mixture
from jaxlab.model.norm import Norm
from jaxlab.optim.sphere import unit_norm


def _products(primitive, *shapes, **params) -> bool:
    """Whether `dots` keeps a result: those of linears, and what attention kernels need of theirs in the backward pass.
    By name: the stock policy "dots with no batch dimensions" saves nothing under the replicas' vmap."""
    named = jax.checkpoint_policies.save_only_these_names("linear", "attention")
    return named(primitive, *shapes, **params) or "attention_fwd" in primitive.name  # cuDNN's, which has no names


REMAT = {
    "dots": _products,
    "full": jax.checkpoint_policies.nothing_saveable,
}
# Collections that blocks may sow into. The decoder sows them again as "blocks", stacked over layers. What is not
# mutable, as spectra in a training step, costs nothing.
SOWN = ("losses", "spectra")


class Decoder(nn.Module):
    """A causal language model. Its parameters are float32; layers are stored stacked, whichever way they are run.

    Consecutive layers of one shape are in one stack: `blocks` from layer 0, and where widths differ `blocks_3` from
    layer 3 and so on.

    c: the keys of `config.model` (families.model), with attribute access.
    dtype: of activations. scan: one compiled layer looped over, or all layers unrolled: the same numbers.
    kernel: attention kernel. dot: the product of every linear in the blocks. mixture: of experts (model.moe). remat:
    none, dots, full. constrain: pins the sharding of [b, L, d] activations.
    """

    c: object
    dtype: jnp.dtype = jnp.float32
    scan: bool = False
    remat: str = "none"
    kernel: Callable = plain
    dot: Callable = dot
    mixture: Callable = mixture
    constrain: Callable = staticmethod(lambda x: x)

    def setup(self):
        c = self.c
        embedding = nn.initializers.normal(c.init_std or c.d_model**-0.5)
        self.embedding = self.param("embedding", embedding, (c.vocab_size, c.d_model))
        if c.positions == "learned":
            self.position_embedding = self.param("position_embedding", embedding, (c.context, c.d_model))
        self.stacks = {name: self.param(name, _stacked(runs)) for name, runs in _stacks(c).items()}
        if not c.tied:
            self.head_kernel = self.param("head", initializer(c.init_std), (c.d_model, c.vocab_size))
        if c.parametrisation == "ngpt":
            self.s_z = ngpt.scale(self, "s_z", c.vocab_size, stored=c.d_model**-0.5)
        else:
            self.final_norm = Norm(c)

    @property
    def project(self) -> Callable | None:
        """parameters -> the nearest ones that the model allows, for nGPT matrices of unit norm; None: all are."""
        return partial(unit_norm, axis=ngpt.unit_axis) if self.c.parametrisation == "ngpt" else None

    def __call__(self, tokens):
        """tokens [b, L] int32 -> logits [b, L, V] float32."""
        x, head = self.features(tokens)
        return jnp.einsum("bld,vd->blv", x, head, preferred_element_type=jnp.float32)

    def features(self, tokens, weights=None):
        """tokens [b, L] int32 -> final hidden states [b, L, d] and the head's matrix [V, d], both in `dtype`.

        weights [b, L]: how often a token counts in what blocks sow."""
        x = self.embedding[tokens].astype(self.dtype)
        if self.c.positions == "learned":
            x += self.position_embedding[: tokens.shape[1]].astype(self.dtype)
        x = self._layers(self.constrain(x), weights)
        head = self.embedding if self.c.tied else self.head_kernel.T
        if self.c.parametrisation == "ngpt":
            head = head * self.s_z[:, None]
        else:
            x = self.final_norm(x)
        return x, head.astype(self.dtype)

    def _layers(self, x, weights):
        sown = [name for name in SOWN if self.is_mutable_collection(name)]
        for stack, runs in _stacks(self.c).items():
            found = []
            pieces = _split(self.stacks[stack], [count for _, count in runs])
            for params, (c, count) in zip(pieces, runs, strict=True):
                block = Block(c, self.kernel, self.constrain, self.dot, self.mixture, parent=None)
                x, of_run = self._run(block, params, count, x, weights, sown)
                found.append(of_run)
            found = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)
            for name, leaves in found.items():
                self.sow(name, stack, leaves)
        return x

    def _run(self, block, params, count, x, weights, sown):
        """x through `count` equal layers, and what they sow, stacked."""

        def layer(x, params):
            return block.apply({"params": params}, x, weights, mutable=sown)

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[self.remat])
        if self.scan:
            return lax.scan(layer, x, params)
        each = []
        for one in _split(params, (1,) * count):
            x, of_layer = layer(x, jax.tree.map(lambda p: p[0], one))
            each.append(of_layer)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def _stacks(c) -> dict[str, list[tuple]]:
    """{name of a stack: (config, number of layers) of each run of equal layers in it, one after another}. Layers of a
    stack have parameters of the same shapes, those of a run also do the same with them."""
    stacks, first = {}, 0
    for _, alike in groupby(layers(c), key=lambda layer: layer.d_ff):
        runs = [(config, len(list(equal))) for config, equal in groupby(alike)]
        stacks[f"blocks_{first}" if first else "blocks"] = runs
        first += sum(count for _, count in runs)
    return stacks


def _stacked(runs):
    """Initialiser of a stack's parameters: each leaf of a layer gains a leading axis of layers."""
    block, count = Block(runs[0][0], plain, parent=None), sum(count for _, count in runs)

    def init(rng):
        x = jnp.zeros((1, 1, block.c.d_model))
        return jax.vmap(lambda key: block.init(key, x)["params"])(jax.random.split(rng, count))

    return init


def _split(params, sizes):
    """Stacked parameters in pieces of so many layers. Split, not indexed: the gradient is one concatenation, not as
    many paddings as pieces."""
    leaves, tree = jax.tree.flatten(params)
    pieces = zip(*(lax.split(leaf, sizes) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(tree, piece) for piece in pieces]

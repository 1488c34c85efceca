"""Routed experts: a feed-forward layer of many parts, of which every token passes through a few."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import sequential_vmap
from jax.sharding import Mesh, PartitionSpec

from jaxlab.model.linear import Linear, initializer

BLOCK, GPU_BLOCK = 64, 512  # rows of one expert in one product, on CPU and on a GPU


def mixture(x, shares, chosen, gate, up, down, first=0):
    """Sum over a token's experts e of share_e down_e(silu(gate_e x) * up_e x), whatever the imbalance of experts.

    x [b, L, d], shares and chosen [b, L, k]; gate and up [E, d, f], down [E, f, d] -> [b, L, d]. The experts that are
    here are the E from `first` on: the others' part of the sum is left out.
    """
    d, k, here = x.shape[-1], chosen.shape[-1], len(gate)
    expert = (chosen - first).reshape(-1)
    expert = jnp.where((expert >= 0) & (expert < here), expert, here)  # those elsewhere come last
    order = jnp.argsort(expert)
    inverse = jnp.argsort(order)
    sizes = jnp.sum(expert[:, None] == jnp.arange(here), axis=0)
    mine = (jnp.arange(len(expert)) < sizes.sum())[:, None]

    def product(x, w):
        return checkpoint_name(grouped_dot(x, w, sizes), "linear")

    rows = jnp.where(mine, permuted(jnp.repeat(x.reshape(-1, d), k, axis=0), order, inverse), 0)
    hidden = nn.silu(product(rows, gate)) * product(rows, up)
    out = permuted(jnp.where(mine, product(hidden, down), 0), inverse, order)
    return jnp.sum(out.reshape(*chosen.shape, d) * shares[..., None], axis=-2)


class Experts(nn.Module):
    """x [b, L, d] -> [b, L, d]: the `mixture` of the k experts that a linear router finds most probable, as in Qwen3
    (2505.09388): their probabilities, in float32, are made to sum to 1.

    Into the collection "losses" it sows `balance`, each token [b, L] counted as often as `weights` says.
    """

    c: object
    mixture: Callable = mixture

    @nn.compact
    def __call__(self, x, weights=None):
        c = self.c

        def kernels(name, *shape):
            return Stack(c.num_experts, shape, c.init_std, name=name)().astype(x.dtype)

        logits = Linear(c.num_experts, init_std=c.init_std, name="router")(x.astype(jnp.float32))
        probabilities = jax.nn.softmax(logits)
        shares, chosen = lax.top_k(probabilities, c.experts_per_token)
        self.sow("losses", "balance", balance(probabilities, chosen, weights))
        shares = (shares / shares.sum(axis=-1, keepdims=True)).astype(x.dtype)
        gate, up = (kernels(name, c.d_model, c.d_ff) for name in ("gate", "up"))
        return self.mixture(x, shares, chosen, gate, up, kernels("down", c.d_ff, c.d_model))


class Stack(nn.Module):
    """`count` kernels [*shape], float32, each drawn as a Linear's is."""

    count: int
    shape: tuple[int, int]
    init_std: float

    @nn.compact
    def __call__(self):
        def init(key):
            return jax.vmap(lambda key: initializer(self.init_std)(key, self.shape))(jax.random.split(key, self.count))

        return self.param("kernel", init)


def balance(probabilities: jax.Array, chosen: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Load-balancing loss of one layer: E sum_e f_e P_e, 1 where the load is even (Switch Transformer, 2101.03961,
    equations 4 to 6).

    probabilities [..., E]; chosen [..., k], whole numbers. P_e: the mean probability of expert e. f_e: its share of all
    choices, of which there are k a token; only P has a gradient. weights [...]: how often each token counts.
    """
    count = probabilities.shape[-1]
    weights = jnp.ones(chosen.shape[:-1]) if weights is None else weights.astype(jnp.float32)
    share = jnp.mean(chosen[..., None] == jnp.arange(count), axis=-2, dtype=jnp.float32)
    f, p = (jnp.tensordot(weights, x, weights.ndim) / jnp.maximum(weights.sum(), 1) for x in (share, probabilities))
    return count * jnp.sum(f * p)


def sharded(mesh: Mesh, axes) -> Callable:
    """`mixture` on a mesh: every device takes its own sequences, those of the batch's `axes`, through its own experts,
    those of the `tensor` axis, and devices along that axis add up what they have."""

    def local(x, shares, chosen, gate, up, down):
        first = lax.axis_index("tensor") * len(gate)
        return lax.psum(mixture(x, shares, chosen, gate, up, down, first), "tensor")

    tokens, experts = PartitionSpec(axes, None, None), PartitionSpec("tensor", None, None)
    return jax.shard_map(local, mesh=mesh, in_specs=(tokens,) * 3 + (experts,) * 3, out_specs=tokens, check_vma=False)


@jax.custom_vjp
def permuted(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """x[order] of a permutation and its inverse; the gradient is a gather too, where it would be a scatter."""
    return x[order]


permuted.defvjp(lambda x, order, inverse: (x[order], inverse), lambda inverse, dy: (dy[inverse], None, None))


@jax.custom_vjp
def grouped_dot(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows of x [n, i], sorted by group, times the matrices of their groups w [E, i, o] -> [n, o].

    sizes [E]: rows of each group; what comes for rows past the last group is not to be used. `lax.ragged_dot` but on
    CPU and on GPUs, where it multiplies every row by every matrix.
    """
    return lax.platform_dependent(
        x, w, sizes, cpu=blocked_dot, cuda=partial(blocked_dot, block=GPU_BLOCK), default=ragged_dot
    )


def _forward(x, w, sizes):
    return grouped_dot(x, w, sizes), (x, w, sizes)


def _backward(residuals, dy):
    x, w, sizes = residuals
    dw = lax.platform_dependent(
        x, dy, sizes, cpu=blocked_outer, cuda=partial(blocked_outer, block=GPU_BLOCK), default=ragged_outer
    )
    return grouped_dot(dy, w.swapaxes(1, 2), sizes), dw, None


grouped_dot.defvjp(_forward, _backward)


@sequential_vmap  # TPUs have no batched one
def ragged_dot(x, w, sizes):
    """`lax.ragged_dot`, of replicas one after another."""
    return lax.ragged_dot(x, w, sizes)


@sequential_vmap
def ragged_outer(x, dy, sizes):
    """x^T dy [E, i, o] of the rows of each group: x [n, i], dy [n, o]."""
    rows = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[])
    return lax.ragged_dot_general(x, dy, sizes, rows)


def blocked_dot(x, w, sizes, block=BLOCK):
    """`lax.ragged_dot` as one batched product of blocks, each of `block` rows of one group, the last of them filled up;
    zeros for rows past the last group."""
    row, group, place = _blocks(len(x), sizes, block)
    y = jnp.einsum("bri,bio->bro", _taken(x, row), w[group])
    return _taken(y.reshape(-1, w.shape[2]), place)


def blocked_outer(x, dy, sizes, block=BLOCK):
    """`ragged_outer`, a block at a time."""
    row, group, _ = _blocks(len(x), sizes, block)
    blocks = jnp.einsum("bri,bro->bio", _taken(x, row), _taken(dy, row))
    return jnp.einsum("be,bio->eio", jax.nn.one_hot(group, len(sizes), dtype=x.dtype), blocks)


def _blocks(n, sizes, block):
    """The row at every place of the blocks [blocks, block], the group of every block, the place of every row [n]; what
    is nowhere has the index of one past the end."""
    blocks = -(-sizes // block)
    ends, block_ends = jnp.cumsum(sizes), jnp.cumsum(blocks)
    ahead = (block_ends - blocks) * block - (ends - sizes)  # a row's place less the row, by group
    count = n // block + len(sizes)  # enough for any sizes
    group = jnp.sum(jnp.arange(count)[:, None] >= block_ends, axis=1).clip(max=len(sizes) - 1)
    row = jnp.arange(count * block).reshape(count, block) - ahead[group, None]
    group_of_row = jnp.sum(jnp.arange(n)[:, None] >= ends, axis=1)
    place = jnp.arange(n) + jnp.append(ahead, count * block)[group_of_row]
    return jnp.where(row < ends[group, None], row, n), group, place


def _taken(x, index):
    """x[index] along the first axis; zeros past the end."""
    return x.at[index].get(mode="fill", fill_value=0)

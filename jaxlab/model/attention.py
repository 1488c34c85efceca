"""Causal self-attention: heads, grouped queries, rotary positions, QK-norm, and one kernel a platform."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxlab.model import ngpt
from jaxlab.model.linear import Linear, dot
from jaxlab.model.norm import Norm


class Attention(nn.Module):
    """x [b, L, d] -> [b, L, d]; `kernel` maps q [b, L, H, h], k and v [b, L, K, h] to [b, L, H, h].

    nGPT: queries and keys of unit norm, both times s_qk, and a softmax of sqrt(h) q k^T.
    """

    c: object
    kernel: Callable
    dot: Callable = dot

    @nn.compact
    def __call__(self, x):
        c = self.c

        def heads(name, count):
            y = Linear(count * c.head_dim, c.use_bias, c.init_std, self.dot, name=name)(x)
            return y.reshape(*x.shape[:-1], count, c.head_dim)

        q, k, v = heads("query", c.num_heads), heads("key", c.num_kv_heads), heads("value", c.num_kv_heads)
        if c.qk_norm:
            q, k = Norm(c, name="query_norm")(q), Norm(c, name="key_norm")(k)
        if c.positions == "rotary":
            q, k = rotary(q, c.rope_theta), rotary(k, c.rope_theta)
        if c.parametrisation == "ngpt":
            # All on q, which gives the same products q k^T: s_qk twice, so that keys can be shared by groups of heads,
            # and h, since every kernel divides by sqrt(h) where sqrt(h) is to be multiplied.
            s_qk = ngpt.scale(self, "s_qk", c.num_heads * c.head_dim, stored=c.d_model**-0.5)
            lengths = c.head_dim * s_qk.reshape(c.num_heads, c.head_dim) ** 2
            q, k = (ngpt.unit(q) * lengths).astype(x.dtype), ngpt.unit(k).astype(x.dtype)
        y = self.kernel(q, k, v).reshape(*x.shape[:-1], c.num_heads * c.head_dim)
        return Linear(c.d_model, c.use_bias, c.init_std, self.dot, name="out")(y)


def rotary(x: jax.Array, theta: float) -> jax.Array:
    """Rotates the pairs (i, i + h/2) of x [b, L, H, h] by position * theta^(-2i/h); angles in float32."""
    length, half = x.shape[-3], x.shape[-1] // 2
    angle = jnp.arange(length)[:, None] * theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    cos, sin = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1).astype(x.dtype)


def plain(q: jax.Array, k: jax.Array, v: jax.Array, start: int = 0) -> jax.Array:
    """softmax(q k^T / sqrt(h)) v with a causal mask, softmax in float32; query i stands at position start + i.

    q [b, Lq, H, h], k and v [b, Lk, K, h] with H a multiple of K -> [b, Lq, H, h]. The oracle of all other kernels.
    """
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(a, groups, axis=2) for a in (k, v)) if groups > 1 else (k, v)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    causal = start + jnp.arange(q.shape[1])[:, None] >= jnp.arange(k.shape[1])
    weights = jax.nn.softmax(jnp.where(causal, scores, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)


CHUNK = 128  # queries at a time


@jax.custom_vjp
def _chunked(q, k, v):
    return _chunked_forward(q, k, v)[0]


def chunked(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`plain`, CHUNK queries at a time, each chunk with only the keys that it can see; made for CPU.

    Of every product in the gradient the large [queries, keys] factor is used as it lies in memory, where automatic
    differentiation would transpose it.
    """
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(a, groups, axis=2) for a in (k, v)) if groups > 1 else (k, v)
    return _chunked(q * q.shape[-1] ** -0.5, k, v)


def _product(a, b, i, j):
    """Contracts axis i of a with axis j of b, both [b, H, ...]; float32."""
    return lax.dot_general(a, b, (((i,), (j,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


def _chunks(length):
    return [(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def _scores(q, k, start):
    causal = start + jnp.arange(q.shape[2])[:, None] >= jnp.arange(k.shape[2])
    return jnp.where(causal, _product(q, k, 3, 3), jnp.finfo(jnp.float32).min)


def _chunked_forward(q, k, v):
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    outs, weights_of, totals = [], [], []
    for start, end in _chunks(q.shape[2]):
        scores = _scores(q[:, :, start:end], k[:, :, :end], start)
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True)).astype(v.dtype)
        total = _product(weights, jnp.ones((*v.shape[:2], end, 1), v.dtype), 3, 2)
        outs.append((_product(weights, v[:, :, :end], 3, 2) / total).astype(v.dtype))
        weights_of.append(weights)
        totals.append(total)
    out = jnp.concatenate(outs, axis=2)
    return out.swapaxes(1, 2), (q, k, v, out, weights_of, jnp.concatenate(totals, axis=2))


def _chunked_backward(residuals, d_out):
    q, k, v, out, weights_of, total = residuals
    d_out = d_out.swapaxes(1, 2) / total  # the weights were kept before their division by `total`
    # A product with ones, since XLA on CPU is slow to sum products.
    delta = (d_out * out) @ jnp.ones((out.shape[3], 1))
    d_out = d_out.astype(v.dtype)
    # Transposed before they are cut into chunks: products that contract the first axis of both sides are slow.
    q_columns, d_columns = q.swapaxes(2, 3), d_out.swapaxes(2, 3)
    d_q, d_k, d_v = [], 0, 0
    for (start, end), weights in zip(_chunks(q.shape[2]), weights_of, strict=True):
        here, later = slice(start, end), ((0, 0), (0, 0), (0, 0), (0, q.shape[2] - end))
        d_weights = _product(d_out[:, :, here], v[:, :, :end], 3, 3)
        d_scores = (weights * (d_weights - delta[:, :, here])).astype(q.dtype)
        d_q.append(_product(d_scores, k[:, :, :end], 3, 2).astype(q.dtype))
        d_k += jnp.pad(_product(q_columns[..., here], d_scores, 3, 2), later)  # [b, H, h, keys]
        d_v += jnp.pad(_product(d_columns[..., here], weights, 3, 2), later)
    d_k, d_v = (x.transpose(0, 3, 1, 2).astype(v.dtype) for x in (d_k, d_v))
    return jnp.concatenate(d_q, axis=2).swapaxes(1, 2), d_k, d_v


_chunked.defvjp(_chunked_forward, _chunked_backward)


def fused(implementation: str) -> Callable:
    """`jax.nn.dot_product_attention` as a kernel: `xla` anywhere, `cudnn` on NVIDIA GPUs in 16 bits."""

    def kernel(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)

    kernel.__name__ = implementation
    return kernel


def splash(mesh, spec) -> Callable:
    """Splash attention, the TPU's kernel, as a kernel: every device works on its own sequences and heads.

    spec: PartitionSpec of q, k, v [b, L, H, h] on the mesh. Sequences must be multiples of 128 long.
    """

    def local(q, k, v):
        from jax.experimental.pallas.ops.tpu import splash_attention as library  # a second, and for TPUs only

        q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
        mask = library.MultiHeadMask([library.CausalMask((q.shape[2], k.shape[2]))] * q.shape[1])
        attend = library.make_splash_mha_single_device(mask, residual_checkpoint_name="attention")
        return jax.vmap(attend)(q, k, v).swapaxes(1, 2)

    def kernel(q, k, v):
        sharded = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
        return sharded(q * q.shape[-1] ** -0.5, k, v)

    kernel.__name__ = "splash"
    return kernel

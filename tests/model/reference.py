"""The decoder once more, in plain numpy float64 and with no code in common, and the small models that tests compare.

Written from the papers: arXiv 1607.06450 (LayerNorm), 1910.07467 (RMSNorm), 2104.09864 (rotary positions, pairs
(i, i + h/2)), 1606.08415 (GELU, tanh form), 2002.05202 (gated units), 2305.13245 (grouped queries), 2002.04745 (Pre-LN
and Post-LN), 2412.13795 (Mix-LN), 1602.07868 (weight normalisation), 2410.01131 (nGPT).
"""

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from jaxlab.config import default
from jaxlab.model.decoder import Decoder


def tiny(**changes) -> FrozenConfigDict:
    """A two-layer model. Its epsilon and rotary base are such that a wrong use of either shows."""
    small = {"vocab_size": 29, "context": 12, "num_layers": 2, "d_model": 16, "num_heads": 4, "num_kv_heads": 4}
    small |= {"head_dim": 4, "d_ff": 24, "norm_eps": 0.03, "rope_theta": 50.0, "z_loss": 0.01}
    return FrozenConfigDict(default().model.to_dict() | small | changes)


def random_params(c, seed: int = 0):
    """Parameters of the model's own tree, float32, none of them at a special value such as a bias of zero."""
    shapes = jax.eval_shape(Decoder(c, scan=True).init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return np.float32(centre + rng.normal(0, 0.3, leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def logits(c, params, tokens):
    """tokens [b, L] -> logits [b, L, V]."""
    p = jax.tree.map(np.float64, params)
    x = p["embedding"][tokens]
    if c.positions == "learned":
        x = x + p["position_embedding"][: tokens.shape[1]]
    for i in range(c.num_layers):
        layer, post = own_layer(p, i), i < post_layers(c)
        x = residual(c, post, layer, "attention", x, attention)
        x = residual(c, post, layer, "ffn", x, feedforward)
    if c.parametrisation == "ngpt":
        return x @ p["head"] * p["s_z"] * np.sqrt(c.d_model)
    return norm(c, p["final_norm"], x) @ (p["embedding"].T if c.tied else p["head"])


def post_layers(c):
    """Layers below this are Post-LN."""
    return {"pre": 0, "post": c.num_layers, "mix": c.mix_fraction * c.num_layers - 0.5}[c.norm_placement]


def own_layer(p, i):
    """Layer i's parameters, out of the stack that begins at or before it."""
    begins = {int(name[7:] or 0): name for name in p if name.startswith("blocks")}
    first = max(b for b in begins if b <= i)
    return jax.tree.map(lambda a: a[i - first], p[begins[first]])


def residual(c, post, layer, name, x, sublayer):
    if c.parametrisation == "ngpt":
        a, b = unit(x), unit(sublayer(c, layer[name], x))
        alpha = np.abs(layer[f"{name}_alpha"] * 0.05 * np.sqrt(c.d_model))
        return unit((1 - alpha) * a + alpha * b)
    if post:
        return norm(c, layer[f"{name}_norm"], x + sublayer(c, layer[name], x))
    return x + sublayer(c, layer[name], norm(c, layer[f"{name}_norm"], x))


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def objective(c, params, tokens):
    """tokens [b, L+1], negative ids are padding -> sum over targets of -log p + z_loss (log Z)^2."""
    targets = tokens[:, 1:]
    scores = logits(c, params, np.maximum(tokens[:, :-1], 0))
    log_z = np.log(np.exp(scores).sum(-1))
    of_target = np.take_along_axis(scores, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return ((log_z - of_target + c.z_loss * log_z**2) * (targets >= 0)).sum()


def norm(c, p, x):
    if c.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps)
    return x * p["scale"] + p.get("bias", 0)


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def attention(c, p, x):
    b, length, _ = x.shape
    q = linear(p["query"], x).reshape(b, length, c.num_heads, c.head_dim)
    k = linear(p["key"], x).reshape(b, length, c.num_kv_heads, c.head_dim)
    v = linear(p["value"], x).reshape(b, length, c.num_kv_heads, c.head_dim)
    if c.qk_norm:
        q, k = norm(c, p["query_norm"], q), norm(c, p["key_norm"], k)
    if c.positions == "rotary":
        q, k = rotate(c, q), rotate(c, k)
    s_qk, scale = np.ones((c.num_heads, c.head_dim)), 1 / np.sqrt(c.head_dim)
    if c.parametrisation == "ngpt":
        s_qk, scale = (p["s_qk"] * np.sqrt(c.d_model)).reshape(s_qk.shape), np.sqrt(c.head_dim)
        q, k = unit(q), unit(k)
    y = np.zeros_like(q)
    for head in range(c.num_heads):
        shared = head * c.num_kv_heads // c.num_heads
        scores = np.einsum("btd,bsd->bts", q[:, :, head] * s_qk[head], k[:, :, shared] * s_qk[head]) * scale
        weights = np.exp(scores) * (np.arange(length) <= np.arange(length)[:, None])
        y[:, :, head] = weights / weights.sum(-1, keepdims=True) @ v[:, :, shared]
    return linear(p["out"], y.reshape(b, length, -1))


def rotate(c, x):
    """Multiplies the complex numbers x_i + j x_(i + h/2) by exp(j position base^(-2i/h))."""
    half = c.head_dim // 2
    angle = np.outer(np.arange(x.shape[1]), c.rope_theta ** (-2 * np.arange(half) / c.head_dim))
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None, :]
    return np.concatenate((z.real, z.imag), -1)


def weight_normalised(c, p):
    """The matrices with one output after another at norm 1, or at the norm that its gain says."""
    if c.ffn_weight_norm == "none":
        return p
    rows = {name: [row / np.linalg.norm(row) for row in matrix["kernel"].T] for name, matrix in p.items()}
    if c.ffn_weight_norm == "weight":
        rows = {name: [g * row for g, row in zip(p[name]["gain"], rows[name], strict=True)] for name in p}
    return {name: matrix | {"kernel": np.stack(rows[name], axis=1)} for name, matrix in p.items()}


def feedforward(c, p, x):
    s_u, s_v = (p[name] * np.sqrt(c.d_model) if c.parametrisation == "ngpt" else 1 for name in ("s_u", "s_v"))
    p = weight_normalised(c, p)
    up = linear(p["up"], x) * s_u
    if c.ffn == "swiglu":
        gate = linear(p["gate"], x) * s_v
        return linear(p["down"], gate / (1 + np.exp(-gate)) * up)
    positive = np.maximum(up, 0)
    tanh_gelu = up / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    return linear(p["down"], {"relu": positive, "relu2": positive**2, "gelu": tanh_gelu}[c.ffn])

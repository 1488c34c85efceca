"""Model families: what distinguishes them, their published shapes, parameter counts under each paper's definition."""

from ml_collections import FrozenConfigDict

_TRANSFORMER = {
    "norm": "rms", "norm_eps": 1e-6, "positions": "rotary", "rope_theta": 10_000.0, "ffn": "swiglu", "qk_norm": False,
    "tied": False, "use_bias": False, "init_std": 0.02, "z_loss": 0.0, "norm_placement": "pre", "mix_fraction": 0.25,
    "ffn_weight_norm": "none", "parametrisation": "standard", "layer_d_ff": "",
    "num_experts": 0, "experts_per_token": 0, "balance_loss": 0.0,
}  # fmt: skip

# What a family changes; the first entry is the common ground, LLaMA's.
ARCHITECTURES = {
    "llama": _TRANSFORMER,
    # DiLoCo scaling laws, sections 3.1 and 3.2 of the paper: NanoDO's decoder with QK-LayerNorm and z-loss.
    "chinchilla": _TRANSFORMER | {
        "norm": "layer", "ffn": "gelu", "qk_norm": True, "tied": True, "init_std": 0.0, "z_loss": 1e-4,
    },
    "gpt2": _TRANSFORMER | {
        "norm": "layer", "norm_eps": 1e-5, "positions": "learned", "ffn": "gelu", "tied": True, "use_bias": True,
    },
    # arXiv 2410.01131; the keys of norms are not read.
    "ngpt": _TRANSFORMER | {"parametrisation": "ngpt"},
    "internlm2": _TRANSFORMER | {"norm_eps": 1e-5, "rope_theta": 1_000_000.0},
    "qwen3": _TRANSFORMER | {"rope_theta": 1_000_000.0, "qk_norm": True, "tied": True},
    # arXiv 2505.09388. Its published weight of the balance loss, 0.001, is of shares that add up to 8.
    "qwen3_moe": _TRANSFORMER | {
        "rope_theta": 1_000_000.0, "qk_norm": True, "num_experts": 128, "experts_per_token": 8, "balance_loss": 0.008,
    },
}  # fmt: skip


def _shape(layers, width, heads, ff, vocab, context, *, kv_heads=None, head_dim=None, **other):
    return {
        "num_layers": layers, "d_model": width, "num_heads": heads, "num_kv_heads": kv_heads or heads,
        "head_dim": head_dim or width // heads, "d_ff": ff, "vocab_size": vocab, "context": context,
    } | other  # fmt: skip


SIZES = {
    # arXiv 2503.09799, table of model shapes.
    "chinchilla": {
        name: _shape(layers, width, heads, 4 * width, 32_768, 2_048)
        for name, layers, width, heads in (
            ("35m", 6, 512, 8), ("90m", 9, 768, 12), ("180m", 12, 1_024, 16), ("335m", 15, 1_280, 20),
            ("550m", 18, 1_536, 24), ("1.3b", 24, 2_048, 32), ("2.4b", 30, 2_560, 40), ("4b", 36, 3_072, 48),
            ("10b", 48, 4_096, 64),
        )
    },
    "llama": {
        # arXiv 2501.02423, model table; 7B takes the hidden width 11,008 that its parameter count needs.
        name: _shape(layers, width, heads, ff, 32_000, 2_048)
        for name, layers, width, ff, heads in (
            ("41m", 12, 512, 1_536, 8), ("85m", 12, 768, 2_048, 12), ("154m", 12, 1_024, 2_816, 16),
            ("679m", 24, 1_536, 4_096, 24), ("1.2b", 24, 2_048, 5_632, 32), ("7b", 35, 4_096, 11_008, 32),
            ("70b", 88, 8_192, 22_016, 64),
        )
    } | {
        # The Mix-LN / GaLore recipe on C4 (arXiv 2412.13795).
        name: _shape(layers, width, heads, ff, 32_000, 256)
        for name, layers, width, ff, heads in (
            ("60m", 8, 512, 1_376, 8), ("71m", 12, 512, 1_368, 8), ("130m", 12, 768, 2_048, 12),
            ("250m", 24, 768, 2_560, 16), ("350m", 24, 1_024, 2_736, 16), ("1b", 24, 2_048, 5_461, 32),
        )
    },
    "gpt2": {
        name: _shape(layers, width, heads, 4 * width, 50_257, 1_024)
        for name, layers, width, heads in (
            ("124m", 12, 768, 12), ("355m", 24, 1_024, 16), ("774m", 36, 1_280, 20), ("1.5b", 48, 1_600, 25),
        )
    },
    # arXiv 2410.01131, table of models: hidden width 4 d, contexts of 1,024 to 8,192.
    "ngpt": {
        name: _shape(layers, width, heads, 4 * width, 32_000, 4_096)
        for name, layers, width, heads in (("0.5b", 24, 1_024, 16), ("1b", 36, 1_280, 20))
    },
    "internlm2": {
        "1.8b": _shape(24, 2_048, 16, 8_192, 92_544, 32_768, kv_heads=8),
        "7b": _shape(32, 4_096, 32, 14_336, 92_544, 32_768, kv_heads=8),
        "20b": _shape(48, 6_144, 48, 16_384, 92_544, 32_768, kv_heads=8),
    } | {
        # The five fits of arXiv 2601.05034, of which only the ends of the range, 122M and 1B, are published: shapes of
        # our choice in the proportions of the 1.8B, named by their parameters without embeddings.
        name: _shape(layers, width, width // 64, 4 * width, 92_544, 32_768, kv_heads=width // 128)
        for name, layers, width in (
            ("122m", 20, 640), ("210m", 24, 768), ("350m", 22, 1_024), ("600m", 24, 1_280), ("1b", 28, 1_536),
        )
    },
    "qwen3": {
        name: _shape(layers, width, heads, ff, 151_936, 40_960, kv_heads=8, head_dim=128, tied=tied)
        for name, layers, width, heads, ff, tied in (
            ("0.6b", 28, 1_024, 16, 3_072, True), ("1.7b", 28, 2_048, 16, 6_144, True),
            ("4b", 36, 2_560, 32, 9_728, True), ("8b", 36, 4_096, 32, 12_288, False),
            ("14b", 40, 5_120, 40, 17_408, False), ("32b", 64, 5_120, 64, 25_600, False),
            # "About 2B" in arXiv 2601.05034, which gives no shape: the 1.7B with a head of its own.
            ("2b", 28, 2_048, 16, 6_144, False),
        )
    },
    "qwen3_moe": {
        name: _shape(layers, width, heads, ff, 151_936, 40_960, kv_heads=kv_heads, head_dim=128, tied=tied)
        for name, layers, width, heads, kv_heads, ff, tied in (
            ("30b-a3b", 48, 2_048, 32, 4, 768, False), ("235b-a22b", 94, 4_096, 64, 4, 1_536, False),
            # 4B of which 538M active in arXiv 2601.05034, which gives no shape: ours has 3.93B and 536M. Attention of
            # the dense 0.6B, experts in the proportion of the 30B.
            ("4b-a0.5b", 24, 1_024, 16, 8, 384, True),
        )
    },
}  # fmt: skip


def model(family: str, size: str, **changes) -> dict:
    """All keys of `config.model` for a published size, with changes. KeyError names an unknown family or size."""
    for kind, value, known in (("family", family, ARCHITECTURES), ("size", size, SIZES.get(family, {}))):
        if value not in known:
            raise KeyError(f"{kind} {value!r}: must be one of {', '.join(known)}")
    return {"family": family} | ARCHITECTURES[family] | SIZES[family][size] | changes


def width(d_model: int, multiple: float) -> int:
    """d_ff as a multiple of d_model, rounded to the nearest multiple of 8: 2.67 x 512 is 1,368, 2.67 x 768 is 2,048."""
    return 8 * round(multiple * d_model / 8)


def widths(m) -> list[int]:
    """d_ff of every layer, from the keys of `config.model`."""
    return [int(w) for w in m.layer_d_ff.split(",")] if m.layer_d_ff else [m.d_ff] * m.num_layers


def layers(m) -> list[FrozenConfigDict]:
    """The keys of `config.model` for every layer: its own d_ff, and norm_placement pre or post. Mix-LN (2412.13795):
    the first mix_fraction of the layers, rounded to whole ones, are Post-LN."""
    post = {"pre": 0, "post": m.num_layers, "mix": round(m.mix_fraction * m.num_layers)}[m.norm_placement]
    return [
        FrozenConfigDict(dict(m) | {"d_ff": d_ff, "norm_placement": "post" if i < post else "pre", "layer_d_ff": ""})
        for i, d_ff in enumerate(widths(m))
    ]


def parameters(m) -> dict[str, int]:
    """Parameters by part, from the keys of `config.model` (any mapping with attribute access).

    Definitions of N in the papers:
      - diloco: `block_matrices + embedding`, that is 12 L d^2 + 32,768 d (2503.09799);
      - floating_point: `block_matrices`, that is L (4 h^2 + 3 h f) (2501.02423, exact to the digit);
      - spectral: `block_matrices + embedding + head`, all but the norms, with untied head (2412.13795; for nGPT all
        but its scales, 2410.01131).
    """
    attention = m.d_model * m.head_dim * 2 * (m.num_heads + m.num_kv_heads)
    standard, hidden, inputs = m.parametrisation == "standard", sum(widths(m)), 2 if m.ffn == "swiglu" else 1
    per_norm = m.d_model * (2 if m.norm == "layer" and m.use_bias else 1)
    qk_norm = m.qk_norm * 2 * m.head_dim * per_norm // m.d_model
    attention_bias = m.head_dim * (m.num_heads + 2 * m.num_kv_heads) + m.d_model
    ffn_outputs = hidden * inputs + m.num_layers * m.d_model
    gains = ffn_outputs * (m.ffn_weight_norm == "weight")
    steps = m.num_layers * (2 * m.d_model + m.num_heads * m.head_dim) + hidden * inputs + m.vocab_size
    parts = {
        "embedding": m.vocab_size * m.d_model,
        "positions": m.context * m.d_model * (m.positions == "learned"),
        "attention": m.num_layers * attention,
        "ffn": m.d_model * hidden * (inputs + 1) * max(m.num_experts, 1),
        "router": m.num_layers * m.d_model * m.num_experts,
        "norms": (m.num_layers * (2 * per_norm + qk_norm) + per_norm) * standard,
        "biases": (m.num_layers * attention_bias + ffn_outputs) * m.use_bias,
        "scales": gains if standard else steps,  # gains of normalised weights; nGPT's alphas and s
        "head": m.vocab_size * m.d_model * (not m.tied),
    }
    idle = parts["ffn"] * (m.num_experts - m.experts_per_token) // max(m.num_experts, 1)
    return parts | {
        "block_matrices": parts["attention"] + parts["ffn"] + parts["router"],
        "non_embedding": sum(parts.values()) - parts["embedding"] - parts["positions"] - parts["head"],
        "total": sum(parts.values()),
        "active": sum(parts.values()) - idle,
    }

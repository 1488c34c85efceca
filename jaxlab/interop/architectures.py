"""The names that transformers and this project have for the same config keys and tensors."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """A class of transformers, and the family of `config.model` that computes the same function.

    keys: key of config.json -> key of config.model. defaults: the values that transformers uses for missing keys.
    required: keys of config.json with the only value that our decoder implements; that value is also the default of a
    missing key unless `defaults` has one. tensors: name of a tensor, with {} for the layer and a second {} for the
    expert -> paths of our parameters, concatenated along the last axis. transposed: kernels are stored as [out, in], as
    by torch.nn.Linear, and not as [in, out].
    """

    name: str
    family: str
    keys: dict[str, str]
    defaults: dict
    required: dict
    tensors: dict[str, tuple[str, ...]]
    transposed: bool


def _tensors(prefix: str, table: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Expands a short table: tensors of layers begin with a dot, parameters to concatenate are separated by spaces."""
    named = {}
    for theirs, ours in table.items():
        layer = theirs.startswith(".")
        name = prefix + theirs[1:] if layer else theirs
        named[name] = tuple(f"blocks/{path}" if layer else path for path in ours.split())
    return named


_LLAMA_KEYS = {
    "vocab_size": "vocab_size", "max_position_embeddings": "context", "num_hidden_layers": "num_layers",
    "hidden_size": "d_model", "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim", "intermediate_size": "d_ff", "rms_norm_eps": "norm_eps", "rope_theta": "rope_theta",
    "tie_word_embeddings": "tied",
}  # fmt: skip
_LLAMA_DEFAULTS = {
    "max_position_embeddings": 2_048, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA_TENSORS = _tensors("model.layers.{}.", {
    "model.embed_tokens.weight": "embedding",
    ".input_layernorm.weight": "attention_norm/scale",
    ".self_attn.q_proj.weight": "attention/query/kernel",
    ".self_attn.k_proj.weight": "attention/key/kernel",
    ".self_attn.v_proj.weight": "attention/value/kernel",
    ".self_attn.o_proj.weight": "attention/out/kernel",
    ".post_attention_layernorm.weight": "ffn_norm/scale",
    ".mlp.gate_proj.weight": "ffn/gate/kernel",
    ".mlp.up_proj.weight": "ffn/up/kernel",
    ".mlp.down_proj.weight": "ffn/down/kernel",
    "model.norm.weight": "final_norm/scale",
    "lm_head.weight": "head",
})  # fmt: skip
_QK_NORM_TENSORS = _tensors("model.layers.{}.", {
    ".self_attn.q_norm.weight": "attention/query_norm/scale",
    ".self_attn.k_norm.weight": "attention/key_norm/scale",
})  # fmt: skip
_EXPERTS_KEYS = {
    "moe_intermediate_size": "d_ff",
    "num_experts": "num_experts",
    "num_experts_per_tok": "experts_per_token",
}
_EXPERTS_TENSORS = _tensors("model.layers.{}.", {
    ".mlp.gate.weight": "experts/router/kernel",
    ".mlp.experts.{}.gate_proj.weight": "experts/gate/kernel",
    ".mlp.experts.{}.up_proj.weight": "experts/up/kernel",
    ".mlp.experts.{}.down_proj.weight": "experts/down/kernel",
})  # fmt: skip
_GPT2_KEYS = {
    "vocab_size": "vocab_size", "n_positions": "context", "n_layer": "num_layers", "n_embd": "d_model",
    "n_head": "num_heads", "n_inner": "d_ff", "layer_norm_epsilon": "norm_eps", "tie_word_embeddings": "tied",
}  # fmt: skip
_GPT2_TENSORS = _tensors("transformer.h.{}.", {
    "transformer.wte.weight": "embedding",
    "transformer.wpe.weight": "position_embedding",
    ".ln_1.weight": "attention_norm/scale",
    ".ln_1.bias": "attention_norm/bias",
    ".attn.c_attn.weight": "attention/query/kernel attention/key/kernel attention/value/kernel",
    ".attn.c_attn.bias": "attention/query/bias attention/key/bias attention/value/bias",
    ".attn.c_proj.weight": "attention/out/kernel",
    ".attn.c_proj.bias": "attention/out/bias",
    ".ln_2.weight": "ffn_norm/scale",
    ".ln_2.bias": "ffn_norm/bias",
    ".mlp.c_fc.weight": "ffn/up/kernel",
    ".mlp.c_fc.bias": "ffn/up/bias",
    ".mlp.c_proj.weight": "ffn/down/kernel",
    ".mlp.c_proj.bias": "ffn/down/bias",
    "transformer.ln_f.weight": "final_norm/scale",
    "transformer.ln_f.bias": "final_norm/bias",
    "lm_head.weight": "head",
})  # fmt: skip

ARCHITECTURES = {  # by the model_type of config.json
    "llama": Architecture(
        name="LlamaForCausalLM",
        family="llama",
        keys=_LLAMA_KEYS,
        defaults=_LLAMA_DEFAULTS,
        required={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        tensors=_LLAMA_TENSORS,
        transposed=True,
    ),
    "qwen3": Architecture(
        name="Qwen3ForCausalLM",
        family="qwen3",
        keys=_LLAMA_KEYS,
        defaults=_LLAMA_DEFAULTS | {"max_position_embeddings": 32_768, "head_dim": 128},
        required={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
        tensors=_LLAMA_TENSORS | _QK_NORM_TENSORS,
        transposed=True,
    ),
    "qwen3_moe": Architecture(
        name="Qwen3MoeForCausalLM",
        family="qwen3_moe",
        keys={key: ours for key, ours in _LLAMA_KEYS.items() if ours != "d_ff"} | _EXPERTS_KEYS,
        defaults=_LLAMA_DEFAULTS | {"max_position_embeddings": 32_768, "num_key_value_heads": 4, "num_experts": 128,
                                    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False},
        required={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False, "norm_topk_prob": True,
                  "decoder_sparse_step": 1, "mlp_only_layers": []},
        tensors=_LLAMA_TENSORS | _QK_NORM_TENSORS | _EXPERTS_TENSORS,
        transposed=True,
    ),
    "gpt2": Architecture(
        name="GPT2LMHeadModel",
        family="gpt2",
        keys=_GPT2_KEYS,
        defaults={"n_positions": 1_024, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        # gelu_new is the tanh approximation, which is ours too.
        required={"activation_function": "gelu_new", "scale_attn_weights": True,
                  "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        tensors=_GPT2_TENSORS,
        transposed=False,
    ),
}  # fmt: skip

# {our family: model_type of the class that computes its decoder}; InternLM2's is LLaMA's with grouped queries.
MODEL_TYPES = {"llama": "llama", "internlm2": "llama", "qwen3": "qwen3", "qwen3_moe": "qwen3_moe", "gpt2": "gpt2"}

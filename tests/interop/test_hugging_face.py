"""Folders of transformers without transformers: names and shapes of tensors, values, and what is refused."""

import json
import re
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from benchmarks.parity import FAMILIES, random_model
from jaxlab.config import InputError
from jaxlab.data.tokenizer import load as load_tokenizer
from jaxlab.interop.hugging_face import export, load, model_config

safetensors = pytest.importorskip("safetensors.numpy", reason="needs the package safetensors")
BYTES = load_tokenizer("bytes", None)


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture(params=FAMILIES)
def exported(request, tmp_path):
    model, params = random_model(request.param)
    export(tmp_path / "first", params, model, BYTES)
    return model, params, tmp_path / "first"


def test_import_inverts_export(exported):
    model, params, folder = exported
    found, tree = load(folder)
    assert same(tree, params)
    ignored = {"family", "init_std", "z_loss", "balance_loss"}  # transformers has no such keys
    assert {k: v for k, v in found.items() if k not in ignored} == {k: model[k] for k in found if k not in ignored}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_inverts_import(exported, dtype, tmp_path):
    model, params, _ = exported
    export(tmp_path / "a", params, model, BYTES, dtype)
    found, tree = load(tmp_path / "a")
    export(tmp_path / "b", tree, found, BYTES, dtype)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_tied_and_untied_heads(tmp_path):
    for family, tied in (("qwen3", False), ("gpt2", False), ("llama", True)):
        model, params = random_model(family, tied=tied)
        export(tmp_path, params, model, BYTES)
        assert ("lm_head.weight" in safetensors.load_file(tmp_path / "model.safetensors")) != tied
        found, tree = load(tmp_path)
        assert found["tied"] == tied
        assert same(tree, params)


# Names and shapes as published: d 64, 4 heads of 16 (Qwen3: 32), 2 of keys and values, ff 128 (GPT-2: 256).
LLAMA = {
    "model.embed_tokens.weight": (300, 64), "model.norm.weight": (64,), "lm_head.weight": (300, 64),
    "input_layernorm.weight": (64,), "post_attention_layernorm.weight": (64,),
    "self_attn.q_proj.weight": (64, 64), "self_attn.k_proj.weight": (32, 64), "self_attn.v_proj.weight": (32, 64),
    "self_attn.o_proj.weight": (64, 64),
    "mlp.gate_proj.weight": (128, 64), "mlp.up_proj.weight": (128, 64), "mlp.down_proj.weight": (64, 128),
}  # fmt: skip
QWEN3 = {
    "model.embed_tokens.weight": (300, 64), "model.norm.weight": (64,),
    "input_layernorm.weight": (64,), "post_attention_layernorm.weight": (64,),
    "self_attn.q_proj.weight": (128, 64), "self_attn.k_proj.weight": (64, 64), "self_attn.v_proj.weight": (64, 64),
    "self_attn.o_proj.weight": (64, 128), "self_attn.q_norm.weight": (32,), "self_attn.k_norm.weight": (32,),
    "mlp.gate_proj.weight": (128, 64), "mlp.up_proj.weight": (128, 64), "mlp.down_proj.weight": (64, 128),
}  # fmt: skip
QWEN3_MOE = {name: shape for name, shape in QWEN3.items() if "mlp" not in name}
QWEN3_MOE |= {"lm_head.weight": (300, 64), "mlp.gate.weight": (5, 64)}
for expert in range(5):
    QWEN3_MOE |= {f"mlp.experts.{expert}.{name}_proj.weight": (48, 64) for name in ("gate", "up")}
    QWEN3_MOE |= {f"mlp.experts.{expert}.down_proj.weight": (64, 48)}
GPT2 = {
    "transformer.wte.weight": (300, 64), "transformer.wpe.weight": (64, 64),
    "transformer.ln_f.weight": (64,), "transformer.ln_f.bias": (64,),
    "ln_1.weight": (64,), "ln_1.bias": (64,), "ln_2.weight": (64,), "ln_2.bias": (64,),
    "attn.c_attn.weight": (64, 192), "attn.c_attn.bias": (192,),
    "attn.c_proj.weight": (64, 64), "attn.c_proj.bias": (64,),
    "mlp.c_fc.weight": (64, 256), "mlp.c_fc.bias": (256,), "mlp.c_proj.weight": (256, 64), "mlp.c_proj.bias": (64,),
}  # fmt: skip
SHAPES = {"llama": LLAMA, "internlm2": LLAMA, "qwen3": QWEN3, "qwen3_moe": QWEN3_MOE, "gpt2": GPT2}


def test_names_and_shapes_are_those_of_transformers(exported):
    model, _, folder = exported
    layer = "transformer.h" if model["family"] == "gpt2" else "model.layers"
    expected = {}
    for name, shape in SHAPES[model["family"]].items():
        outside = name.startswith(("model.", "transformer.", "lm_head"))
        expected |= {name: shape} if outside else {f"{layer}.{i}.{name}": shape for i in range(3)}
    tensors = safetensors.load_file(folder / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected


def test_kernels_lie_as_transformers_has_them(tmp_path):
    _, gpt2 = model = random_model("gpt2")
    export(tmp_path, gpt2, model[0], BYTES)
    tensors, block = safetensors.load_file(tmp_path / "model.safetensors"), gpt2["blocks"]["attention"]
    fused = np.concatenate([block[name]["kernel"][1] for name in ("query", "key", "value")], axis=1)
    np.testing.assert_array_equal(tensors["transformer.h.1.attn.c_attn.weight"], fused)
    model, llama = random_model("llama")
    export(tmp_path, llama, model, BYTES)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    up = llama["blocks"]["ffn"]["up"]["kernel"]
    np.testing.assert_array_equal(tensors["model.layers.2.mlp.up_proj.weight"], up[2].T)


def test_bfloat16_is_rounded_once_and_read_exactly(tmp_path):
    model, params = random_model("llama")
    export(tmp_path, params, model, BYTES, "bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    tree = load(tmp_path)[1]
    assert same(tree, rounded)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(tree))


def test_shards_bare_names_and_old_buffers(tmp_path):
    """As the first folders of GPT-2 were published: without the name of the head's class, and with the causal mask;
    here in two files."""
    model, params = random_model("gpt2")
    export(tmp_path, params, model, BYTES)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare |= {f"h.{i}.attn.bias": np.ones((1, 1, 64, 64), np.float32) for i in range(3)}
    files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(bare)}
    for file in set(files.values()):
        safetensors.save_file({name: x for name, x in bare.items() if files[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert same(load(tmp_path)[1], params)


REFUSED = (
    ("chinchilla", {}, "model.family=chinchilla: transformers has no class for it; allowed: llama, internlm2"),
    ("llama", {"qk_norm": True}, "model.qk_norm=True: LlamaForCausalLM has only False"),
    ("llama", {"ffn": "gelu"}, "model.ffn='gelu': LlamaForCausalLM has only 'swiglu'"),
    ("qwen3", {"num_experts": 4}, "model.num_experts=4: Qwen3ForCausalLM has only 0"),
    ("internlm2", {"use_bias": True}, "model.use_bias=True: LlamaForCausalLM has only False"),
    ("qwen3", {"norm": "layer"}, "model.norm='layer': Qwen3ForCausalLM has only 'rms'"),
    ("qwen3", {"qk_norm": False}, "model.qk_norm=False: Qwen3ForCausalLM has only True"),
    ("gpt2", {"positions": "rotary"}, "model.positions='rotary': GPT2LMHeadModel has only 'learned'"),
    ("gpt2", {"num_kv_heads": 2}, "model.num_kv_heads=2: GPT2LMHeadModel has only 4"),
    ("gpt2", {"head_dim": 32}, "model.head_dim=32: GPT2LMHeadModel has only 16"),
    ("llama", {"vocab_size": 256}, "tokenizer bytes: has 257 ids, and the model model.vocab_size=256"),
)


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_no_class_computes_is_not_exported(family, changes, message, tmp_path):
    _, params = random_model("gpt2" if family == "gpt2" else "llama")
    kind, _ = random_model("llama" if family == "chinchilla" else family)
    with pytest.raises(InputError, match=re.escape(message)):
        export(tmp_path / "folder", params, kind | {"family": family} | changes, BYTES)
    assert not (tmp_path / "folder").exists()


def test_an_unknown_dtype_is_refused(tmp_path):
    model, params = random_model("llama")
    with pytest.raises(InputError, match="dtype='float16': must be one of float32, bfloat16"):
        export(tmp_path, params, model, BYTES, "float16")


UNREADABLE = (
    ({"model_type": "internlm2"}, "model_type='internlm2': must be one of llama, qwen3, qwen3_moe, gpt2"),
    ({"attention_bias": True}, "attention_bias=True: only False can be read"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu': only 'silu' can be read"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type='llama3': only 'default' can be read"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear': only 'default' can be read"),
    ({"hidden_size": None}, "hidden_size is missing"),
)


@pytest.mark.parametrize(("changes", "message"), UNREADABLE)
def test_a_config_of_another_kind_is_not_read(changes, message, tmp_path):
    model, params = random_model("llama")
    export(tmp_path, params, model, BYTES)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path)


def test_rope_theta_is_read_where_either_version_of_transformers_writes_it():
    config = {
        "model_type": "llama",
        "vocab_size": 9,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config |= {"intermediate_size": 16}
    assert model_config(config)["rope_theta"] == 10_000.0
    assert model_config(config | {"rope_theta": 5e5, "rope_scaling": None})["rope_theta"] == 5e5
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    assert model_config(config | new)["rope_theta"] == 1e6
    found = model_config(config)
    assert (found["num_kv_heads"], found["head_dim"], found["context"], found["tied"]) == (2, 4, 2_048, False)


def test_experts_are_read_where_either_version_of_transformers_writes_them(tmp_path):
    model, params = random_model("qwen3_moe")
    export(tmp_path, params, model, BYTES)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_experts"], config["num_experts_per_tok"], config["moe_intermediate_size"]) == (5, 2, 48)
    config["num_local_experts"] = config.pop("num_experts")
    assert model_config(config) == model
    for key, value in (("norm_topk_prob", None), ("decoder_sparse_step", 2), ("mlp_only_layers", [0])):
        with pytest.raises(InputError, match=f"config.json: {key}=.*: only .* can be read"):
            model_config(config | {key: value})  # norm_topk_prob left out is False there


def _edit(name):
    """What is done to the tensors of a folder, and the line that it gives."""
    norm, up = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
    return {
        "missing": (lambda t: t.pop(up), f"tensor {up}: is missing"),
        "shape": (
            lambda t: t.update({up: t[up].T}),
            f"tensor {up}: has shape (64, 128), and config.json says",
        ),
        "type": (
            lambda t: t.update({norm: t[norm].astype(np.int8)}),
            f"tensor {norm}: has type I8; must be F32",
        ),
        "unknown": (
            lambda t: t.update({"model.layers.3.mlp.up_proj.weight": t[up]}),
            "tensor model.layers.3.mlp.up_proj.weight: LlamaForCausalLM has no such parameter",
        ),
    }[name]


@pytest.mark.parametrize("name", ["missing", "shape", "type", "unknown"])
def test_the_offending_tensor_is_named(name, tmp_path):
    model, params = random_model("llama")
    export(tmp_path, params, model, BYTES)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    change, message = _edit(name)
    change(tensors)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path)


def test_the_head_of_a_tied_model_is_its_embedding(tmp_path):
    model, params = random_model("qwen3")
    export(tmp_path, params, model, BYTES)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].copy()
    safetensors.save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    assert same(load(tmp_path)[1], params)
    safetensors.save_file(tensors | {"lm_head.weight": head + 1}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=re.escape("lm_head.weight: differs from the embedding")):
        load(tmp_path)


def test_broken_folders(tmp_path):
    with pytest.raises(InputError, match=re.escape("config.json: there is no such file")):
        load(tmp_path)
    model, params = random_model("llama")
    export(tmp_path, params, model, BYTES)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1_000])
    with pytest.raises(InputError, match=re.escape("model.safetensors: cannot be read")):
        load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=re.escape("model.safetensors: there is no such file")):
        load(tmp_path)


def test_without_safetensors_the_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    model, params = random_model("llama")
    with pytest.raises(InputError, match=re.escape("pip install 'jaxlab[interop]'")):
        export(tmp_path, params, model, BYTES)

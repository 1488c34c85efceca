"""Folders of transformers written whole or not at all, and what is refused when one is read: by the line it gives."""

import json
import os
import re
import resource
import struct
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from benchmarks.parity import random_model
from jaxlab.config import InputError
from jaxlab.data.tokenizer import load as load_tokenizer
from jaxlab.interop.folder import replace_folder
from jaxlab.interop.hugging_face import check_export, export, load, model_config
from jaxlab.interop.tokenizer import check_tokenizer

safetensors = pytest.importorskip("safetensors.numpy", reason="needs the package safetensors")
BYTES = load_tokenizer("bytes", None)
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    """The export of a model."""
    model, params = random_model("llama")
    export(tmp_path / "model", params, model, BYTES)
    return tmp_path / "model"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def files_of_at_most(size: int):
    """Within it, writing beyond `size` bytes of a file fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [100, 20_000])
def test_what_a_full_disk_does_not_take_leaves_the_old_export(folder, size):
    """At 100 bytes already config.json is too long, at 20,000 the weights; afterwards the same call goes through."""
    before = content(folder)
    model, params = random_model("llama", norm_eps=1e-3)
    with files_of_at_most(size), pytest.raises((OSError, InputError)) as error:
        export(folder, params, model, BYTES)
    assert "\n" not in str(error.value)
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    export(folder, params, model, BYTES)
    assert json.loads((folder / "config.json").read_text())["rms_norm_eps"] == 1e-3
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_modes_are_those_that_the_umask_leaves(tmp_path):
    model, params = random_model("llama")
    for mask, mode in ((0o022, 0o644), (0o027, 0o640)):
        before = os.umask(mask)
        try:
            export(tmp_path / str(mask), params, model, BYTES)
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / str(mask)).iterdir()} == {mode}


@pytest.mark.parametrize("names", [["config.json"], [*FILES, "README.md"], ["checkpoints"], FILES[1:]])
def test_a_folder_that_is_no_export_is_left_alone(names, tmp_path):
    for name in names:
        (tmp_path / name).write_text("mine")
    model, params = random_model("llama")
    message = re.escape(f"{tmp_path}: holds {sorted(names)[0]}")
    with pytest.raises(InputError, match=message):
        export(tmp_path, params, model, BYTES)
    with pytest.raises(InputError, match=message):
        check_export(tmp_path, model, BYTES, "float32")
    assert content(tmp_path) == dict.fromkeys(names, b"mine")


def test_an_empty_folder_and_a_link_to_an_export_are_written_to(folder, tmp_path):
    model, params = random_model("llama", norm_eps=1e-3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(folder)
    for target in ("empty", "link"):
        export(tmp_path / target, params, model, BYTES)
        assert json.loads((tmp_path / target / "config.json").read_text())["rms_norm_eps"] == 1e-3
    assert (tmp_path / "link").is_symlink()


def test_what_a_kill_leaves_is_mended(tmp_path):
    """Killed while it writes there is a folder beside; killed between the two renames the old one is beside too."""

    def write(text):
        return lambda part: (part / "a").write_text(text)

    (tmp_path / ".x.part").mkdir()
    (tmp_path / ".x.part" / "a").write_text("half")
    (tmp_path / ".x.old").mkdir()
    (tmp_path / ".x.old" / "a").write_text("old")

    def fail(part):
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        replace_folder(tmp_path / "x", fail, ["a"])
    assert (tmp_path / "x" / "a").read_text() == "old"
    replace_folder(tmp_path / "x", write("new"), ["a"])
    assert (tmp_path / "x" / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    for kind in ("part", "old"):
        (tmp_path / f".x.{kind}").mkdir()
        (tmp_path / f".x.{kind}" / "mine").write_text("mine")
        with pytest.raises(InputError, match=f".x.{kind}: holds mine"):
            replace_folder(tmp_path / "x", write("newer"), ["a"])
        (tmp_path / f".x.{kind}" / "mine").unlink()
        (tmp_path / f".x.{kind}").rmdir()
    assert (tmp_path / "x" / "a").read_text() == "new"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_an_export_says_besides_its_weights(family, tmp_path):
    """The end-of-text id of bytes is 256, and stands for the beginning of a text too; ids above it are padding."""
    model, params = random_model(family)
    export(tmp_path, params, model, BYTES, "bfloat16")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["dtype"]) == (256, 256, "bfloat16")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "model_max_length": 64,
        "clean_up_tokenization_spaces": False, "split_special_tokens": True,
    }  # fmt: skip
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert vocab == {f"<0x{byte:02X}>": byte for byte in range(256)} | {"</s>": 256}
    shape = {"llama": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300, "hidden_size": 64,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 128, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False,
        "max_position_embeddings": 64, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    }, "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 300, "n_embd": 64, "n_layer": 3,
        "n_head": 4, "n_positions": 64, "n_inner": 256, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
        "activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }}[family]  # fmt: skip
    assert config == shape | {"bos_token_id": 256, "eos_token_id": 256, "dtype": "bfloat16"}


def test_where_every_tensor_of_gpt2_goes(tmp_path):
    """Hand-made: one layer of width 4, two heads; every element of every tensor another number."""
    shapes = {
        "wte.weight": (6, 4), "wpe.weight": (8, 4), "ln_f.weight": (4,), "ln_f.bias": (4,),
        "h.0.ln_1.weight": (4,), "h.0.ln_1.bias": (4,), "h.0.ln_2.weight": (4,), "h.0.ln_2.bias": (4,),
        "h.0.attn.c_attn.weight": (4, 12), "h.0.attn.c_attn.bias": (12,), "h.0.attn.c_proj.weight": (4, 4),
        "h.0.attn.c_proj.bias": (4,), "h.0.mlp.c_fc.weight": (4, 16), "h.0.mlp.c_fc.bias": (16,),
        "h.0.mlp.c_proj.weight": (16, 4), "h.0.mlp.c_proj.bias": (4,),
    }  # fmt: skip
    tensors = {n: (1_000 * i + np.arange(np.prod(s))).reshape(s) for i, (n, s) in enumerate(shapes.items(), 1)}
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    safetensors.save_file({f"transformer.{name}": x for name, x in tensors.items()}, tmp_path / "model.safetensors")
    config = {"model_type": "gpt2", "vocab_size": 6, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, params = load(tmp_path)
    assert {key: model[key] for key in ("d_ff", "head_dim", "num_kv_heads", "tied", "norm_eps")} == {
        "d_ff": 16, "head_dim": 2, "num_kv_heads": 2, "tied": True, "norm_eps": 1e-5}  # fmt: skip
    block, fused = params["blocks"], tensors["h.0.attn.c_attn.weight"]
    expected = {
        "embedding": tensors["wte.weight"], "position_embedding": tensors["wpe.weight"],
        "final_norm": {"scale": tensors["ln_f.weight"], "bias": tensors["ln_f.bias"]},
    }  # fmt: skip
    np.testing.assert_equal({name: params[name] for name in expected}, expected)
    bias = tensors["h.0.attn.c_attn.bias"]
    attention = {
        name: {"kernel": fused[None, :, first : first + 4], "bias": bias[None, first : first + 4]}
        for name, first in (("query", 0), ("key", 4), ("value", 8))
    }
    attention["out"] = _linear(tensors, "attn.c_proj")
    np.testing.assert_equal(block["attention"], attention)
    np.testing.assert_equal(block["ffn"], {"up": _linear(tensors, "mlp.c_fc"), "down": _linear(tensors, "mlp.c_proj")})
    for ours, theirs in (("attention_norm", "ln_1"), ("ffn_norm", "ln_2")):
        norm = {"scale": tensors[f"h.0.{theirs}.weight"][None], "bias": tensors[f"h.0.{theirs}.bias"][None]}
        np.testing.assert_equal(block[ours], norm)


def _linear(tensors: dict, name: str) -> dict:
    return {"kernel": tensors[f"h.0.{name}.weight"][None], "bias": tensors[f"h.0.{name}.bias"][None]}


def test_where_every_tensor_of_llama_goes(tmp_path):
    """Hand-made: two layers of width 4, two heads on one of keys and values; kernels lie as [out, in]."""
    layer = {
        "input_layernorm.weight": (4,), "post_attention_layernorm.weight": (4,), "self_attn.q_proj.weight": (4, 4),
        "self_attn.k_proj.weight": (2, 4), "self_attn.v_proj.weight": (2, 4), "self_attn.o_proj.weight": (4, 4),
        "mlp.gate_proj.weight": (3, 4), "mlp.up_proj.weight": (3, 4), "mlp.down_proj.weight": (4, 3),
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (6, 4), "model.norm.weight": (4,), "lm_head.weight": (6, 4)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in (0, 1) for name, shape in layer.items()}
    tensors = {n: (100 * i + np.arange(np.prod(s))).reshape(s) for i, (n, s) in enumerate(shapes.items())}
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    config = {
        "model_type": "llama", "vocab_size": 6, "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 3,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    params = load(tmp_path)[1]

    def stacked(name):
        return np.stack([tensors[f"model.layers.{i}.{name}.weight"] for i in (0, 1)])

    def kernel(name):
        return {"kernel": np.stack([tensors[f"model.layers.{i}.{name}.weight"].T for i in (0, 1)])}

    np.testing.assert_equal(
        params,
        {
            "embedding": tensors["model.embed_tokens.weight"], "head": tensors["lm_head.weight"].T,
            "final_norm": {"scale": tensors["model.norm.weight"]},
            "blocks": {
                "attention_norm": {"scale": stacked("input_layernorm")},
                "ffn_norm": {"scale": stacked("post_attention_layernorm")},
                "attention": {ours: kernel(f"self_attn.{theirs}_proj") for ours, theirs in (
                    ("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))},
                "ffn": {name: kernel(f"mlp.{name}_proj") for name in ("gate", "up", "down")},
            },
        },
    )  # fmt: skip


CONFIGS = (
    ({"hidden_size": "64"}, "hidden_size='64': must be a whole number from 1 to"),
    ({"hidden_size": 64.0}, "hidden_size=64.0: must be a whole number from 1 to"),
    ({"hidden_size": True}, "hidden_size=True: must be a whole number from 1 to"),
    ({"hidden_size": [64]}, "hidden_size=[64]: must be a whole number from 1 to"),
    ({"num_hidden_layers": -3}, "num_hidden_layers=-3: must be a whole number from 1 to"),
    ({"num_attention_heads": 0}, "num_attention_heads=0: must be a whole number from 1 to"),
    ({"vocab_size": 10**30}, "vocab_size=1000000000000000000000000000000: must be a whole number from 1 to 2147483647"),
    ({"intermediate_size": {}}, "intermediate_size={}: must be a whole number from 1 to"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6': must be a number above 0"),
    ({"rms_norm_eps": False}, "rms_norm_eps=False: must be a number above 0"),
    ({"rope_theta": -1.0}, "rope_theta=-1.0: must be a number above 0"),
    ({"rope_theta": float("inf")}, "rope_theta=inf: must be a number above 0"),
    ({"rope_theta": float("nan")}, "rope_theta=nan: must be a number above 0"),
    ({"rope_theta": 10**400}, "rope_theta=1000"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false': must be true or false"),
    ({"tie_word_embeddings": 0}, "tie_word_embeddings=0: must be true or false"),
    ({"model_type": ["llama"]}, "model_type=['llama']: must be one of llama"),
    ({"model_type": None}, "model_type=None: must be one of llama"),
    ({"attention_bias": 0}, "attention_bias=0: only False can be read"),
    ({"hidden_act": ["silu"]}, "hidden_act=['silu']: only 'silu' can be read"),
    ({"rope_scaling": "linear"}, "rope_scaling: holds 'linear'; must be a JSON object"),
    ({"rope_scaling": [1]}, "rope_scaling: holds [1]; must be a JSON object"),
    ({"rope_parameters": {"rope_type": ["default"]}}, "rope_type=['default']: only 'default' can be read"),
    ({"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta='1e4': must be a number above 0"),
    ({"rope_parameters": {"full_attention": {}}}, "full_attention={} of the rotary positions cannot be read"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 of the rotary positions"),
)


@pytest.mark.parametrize(("changes", "message"), CONFIGS)
def test_values_of_a_config_that_are_of_the_wrong_kind(changes, message):
    config = {
        "model_type": "llama", "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 128,
    }  # fmt: skip
    assert model_config(config)["d_model"] == 64
    with pytest.raises(InputError, match=re.escape(f"config.json: {message}")) as error:
        model_config(config | changes)
    assert "\n" not in str(error.value)


JUNK = (b"", b"null", b"[]", b"<html>", b"\xff\xfe\x00", b"{", b'{"a": ' + b"9" * 5_000 + b"}", b"[" * 99_999,
        b'{"a": NaN}', b'{"model_type": "\\ud800"}')  # fmt: skip


@pytest.mark.parametrize("junk", JUNK)
def test_files_that_are_something_else(junk, folder):
    """config.json, the index, the weights and tokenizer.json: one line that names the file."""
    for name, read in (
        ("config.json", load), ("tokenizer.json", lambda folder: check_tokenizer(BYTES, folder)),
        ("model.safetensors", load), ("model.safetensors.index.json", load),
    ):  # fmt: skip
        path = folder / name
        whole = path.read_bytes() if path.exists() else None
        path.write_bytes(junk)
        if name.endswith("index.json"):  # which is asked only where the weights are not in one file
            (folder / "model.safetensors").unlink()
        with pytest.raises(InputError, match=re.escape(name)) as error:
            read(folder)
        assert "\n" not in str(error.value)
        if whole is not None:
            path.write_bytes(whole)


PLACES = ("/etc/passwd", "../model.safetensors", "..", ".", "", "a/b.safetensors", "model.bin", 7, None,
          ["x.safetensors"], "a\0.safetensors", "..\\x.safetensors")  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_an_index_names_files_beside_itself(place, folder):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {UP: place}}))
    with pytest.raises(InputError, match=f"index.json: {UP} is in .*; must be a .safetensors file of the same folder"):
        load(folder)


def test_shards_that_are_missing_linked_or_hold_a_tensor_twice(folder):
    """A link to elsewhere is what the cache of the hub is made of."""
    tensors = safetensors.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    first = {name: tensor for i, (name, tensor) in enumerate(tensors.items()) if i % 2}
    second = {name: tensor for name, tensor in tensors.items() if name not in first}
    places = {name: "a.safetensors" if name in first else "b.safetensors" for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    safetensors.save_file(first, folder / "a.safetensors")
    with pytest.raises(InputError, match=r"b\.safetensors: there is no such file"):
        load(folder)
    safetensors.save_file(second, folder.parent / "blob")
    (folder / "b.safetensors").symlink_to(folder.parent / "blob")
    _, params = load(folder)
    np.testing.assert_array_equal(params["blocks"]["ffn"]["up"]["kernel"][1], tensors[UP].T)
    (folder / "b.safetensors").unlink()
    safetensors.save_file(second | {min(first): first[min(first)]}, folder / "b.safetensors")
    with pytest.raises(InputError, match=rf"b\.safetensors: tensor {min(first)} is there for the second time"):
        load(folder)
    for broken in ({"weight_map": []}, {"weight_map": None}, {}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match=r"index\.json: weight_map is"):
            load(folder)


def test_a_whole_file_goes_before_an_index_as_in_transformers(folder):
    """An index of an older save beside it is not asked."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {UP: "old.safetensors"}}))
    load(folder)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(dtype, value, folder):
    tensors = safetensors.load_file(folder / "model.safetensors")
    tensors[UP][3, 5] = value
    tensors[UP] = tensors[UP].astype(dtype)
    safetensors.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=re.escape(f"tensor {UP}: has elements that are NaN or infinite")):
        load(folder)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "I64", "I8", "U8", "BOOL", "F64"])
def test_types_that_are_not_read(dtype, folder):
    """By a file made by hand: numpy has no name for some of them."""
    size = {"I64": 8, "F64": 8}.get(dtype, 1)
    header = json.dumps({UP: {"dtype": dtype, "shape": [4], "data_offsets": [0, 4 * size]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * size))
    with pytest.raises(InputError, match=re.escape(f"tensor {UP}: has type {dtype}; must be F32, F16, BF16")):
        load(folder)

"""Folders that transformers opens: config.json, safetensors and a tokenizer, written and read with numpy alone."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import FrozenConfigDict

from jaxlab.config import InputError, default
from jaxlab.data.tokenizer import Tokenizer
from jaxlab.interop.architectures import ARCHITECTURES, MODEL_TYPES, Architecture
from jaxlab.interop.tokenizer import tokenizer_files
from jaxlab.model import families
from jaxlab.model.decoder import Decoder

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
TRAINING = ("family", "init_std", "z_loss", "balance_loss")  # keys of config.model that a trained model does not have
BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$")  # constants that old folders keep as tensors


def export(folder: str | Path, params, model: Mapping, tokenizer: Tokenizer, dtype: str = "float32") -> None:
    """Writes a model as a folder of transformers: config.json, model.safetensors, the tokenizer's files.

    params: the decoder's, without a replica axis. model: the keys of `config.model`, with the vocab_size of params.
    dtype: float32, or bfloat16 (rounded to nearest). Raises InputError for a model that no class of transformers
    computes, naming the key and its value, and for a tokenizer with more ids than the model.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    if tokenizer.vocab_size > model["vocab_size"]:
        raise InputError(
            f"tokenizer {tokenizer.spec}: has {tokenizer.vocab_size} ids, and the model model.vocab_size="
            f"{model['vocab_size']}: it is not the tokenizer of this checkpoint"
        )
    architecture, config = config_json(model)
    config |= {"dtype": dtype, "bos_token_id": tokenizer.eos, "eos_token_id": tokenizer.eos}
    tensors = _to_tensors(architecture, params)
    tensors = {name: np.ascontiguousarray(x, DTYPES[dtype]) for name, x in tensors.items()}
    safetensors = _safetensors()
    files = tokenizer_files(tokenizer, model["context"]) | {"config.json": _json(config)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: str | Path) -> tuple[dict, dict]:
    """(keys of `config.model`, float32 parameters of the decoder) of a folder of transformers, in one file or shards.

    Tensors of 16 bits become float32, which is exact. Raises InputError for a folder or an architecture that cannot
    be read, and for a tensor that is missing, unknown, or of another shape or type than the config says.
    """
    folder = Path(folder)
    config = _read_json(folder / "config.json")
    model = model_config(config)
    architecture = ARCHITECTURES[config["model_type"]]
    decoder = Decoder(FrozenConfigDict(model), scan=True)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    shapes = {path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}
    return model, _to_params(architecture, _read_tensors(folder, architecture), shapes)


def config_json(model: Mapping) -> tuple[Architecture, dict]:
    """The architecture of a model, and its config.json. Raises InputError for what no class of transformers has."""
    if model["family"] not in MODEL_TYPES:
        raise InputError(
            f"model.family={model['family']}: transformers has no class for it; allowed: {', '.join(MODEL_TYPES)}"
        )
    model_type = MODEL_TYPES[model["family"]]
    architecture = ARCHITECTURES[model_type]
    # A key that this class cannot vary has the family's value, and one that no class knows its default.
    fixed = default().model.to_dict() | families.ARCHITECTURES[architecture.family] | _derived(model)
    for key in fixed.keys() - {*architecture.keys.values(), *TRAINING}:
        if model[key] != fixed[key]:
            raise InputError(f"model.{key}={model[key]!r}: {architecture.name} has only {fixed[key]!r}")
    translated = {theirs: model[ours] for theirs, ours in architecture.keys.items()}
    kind = {"architectures": [architecture.name], "model_type": model_type}
    return architecture, kind | translated | architecture.required


def model_config(config: dict) -> dict:
    """The keys of `config.model` that a config.json says. Raises InputError for what our decoder does not compute."""
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise InputError(f"config.json: model_type={model_type!r}: must be one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[model_type]
    config = architecture.defaults | {key: value for key, value in _renamed(config).items() if value is not None}
    for key, value in architecture.required.items():
        if config.get(key, value) != value:
            raise InputError(f"config.json: {key}={config[key]!r}: only {value!r} can be read")
    model = {ours: config[key] for key, ours in architecture.keys.items() if key in config}
    for key, ours in architecture.keys.items():
        if ours not in model | {"num_kv_heads": 0, "head_dim": 0, "d_ff": 0}:
            raise InputError(f"config.json: {key} is missing")
    return {"family": architecture.family} | families.ARCHITECTURES[architecture.family] | _derived(model) | model


def _derived(model: Mapping) -> dict:
    """What transformers takes for shapes that are not given, and GPT-2 always."""
    width, heads = model["d_model"], model["num_heads"]
    return {"num_kv_heads": heads, "head_dim": width // heads, "d_ff": 4 * width}


def _renamed(config: dict) -> dict:
    """config.json with the keys of transformers 4: rope_theta on top, num_experts. Raises InputError for scaled
    positions."""
    rope = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise InputError(f"config.json: rope_type={kind!r}: only 'default' can be read")
    experts = {"num_experts": config["num_local_experts"]} if "num_local_experts" in config else {}
    return config | {key: rope[key] for key in ("rope_theta",) if key in rope} | experts


def _to_tensors(architecture: Architecture, params) -> dict[str, np.ndarray]:
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    tensors = {}
    for name, paths in architecture.tensors.items():
        if paths[0] in flat:
            joined = np.concatenate([flat[path] for path in paths], axis=-1)
            joined = joined.swapaxes(-1, -2) if _flipped(architecture, paths[0]) else joined
            stacked = joined.shape[: name.count("{}")]
            tensors |= {name.format(*i): joined[i] for i in np.ndindex(stacked)}
    return tensors


def _to_params(architecture: Architecture, tensors: dict[str, np.ndarray], shapes: dict[str, tuple]) -> dict:
    """Parameters of the wanted shapes from all of the tensors. Raises InputError."""
    flat = {}
    for name, paths in architecture.tensors.items():
        if paths[0] in shapes:
            axes, flip = name.count("{}"), _flipped(architecture, paths[0])
            widths = [shapes[path][-1] for path in paths]
            stacked, wanted = shapes[paths[0]][:axes], (*shapes[paths[0]][axes:-1], sum(widths))
            wanted = wanted[::-1] if flip else wanted
            pieces = [_take(tensors, name.format(*i), wanted) for i in np.ndindex(stacked)]
            joined = np.stack(pieces).reshape(*stacked, *wanted)
            joined = joined.swapaxes(-1, -2) if flip else joined
            flat |= zip(paths, np.split(joined, np.cumsum(widths)[:-1], axis=-1), strict=True)
    head = tensors.pop("lm_head.weight", None)  # of a tied model: some folders have it, and it is the embedding
    if head is not None and not np.array_equal(head, flat["embedding"]):
        raise InputError("tensor lm_head.weight: differs from the embedding, and config.json says that they are tied")
    for name in tensors:
        raise InputError(f"tensor {name}: {architecture.name} has no such parameter")
    return unflatten_dict(flat, sep="/")


def _take(tensors: dict[str, np.ndarray], name: str, shape: tuple) -> np.ndarray:
    if name not in tensors:
        raise InputError(f"tensor {name}: is missing")
    tensor = tensors.pop(name)
    if tensor.shape != shape:
        raise InputError(f"tensor {name}: has shape {tensor.shape}, and config.json says {shape}")
    if tensor.dtype.name not in ("float32", "float16", "bfloat16"):
        raise InputError(f"tensor {name}: has type {tensor.dtype.name}; must be float32, float16 or bfloat16")
    return tensor.astype(np.float32)


def _flipped(architecture: Architecture, path: str) -> bool:
    """Whether a matrix lies the other way round: heads always do."""
    return path == "head" or (architecture.transposed and path.endswith("/kernel"))


def _read_tensors(folder: Path, architecture: Architecture) -> dict[str, np.ndarray]:
    """All tensors of a folder, by the names that the class with its head gives them; constants are left out."""
    safetensors = _safetensors()
    index = folder / "model.safetensors.index.json"
    files = set(_read_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
    prefix = next(iter(architecture.tensors)).partition(".")[0] + "."
    tensors = {}
    for file in sorted(files):
        try:
            found = safetensors.numpy.load_file(folder / file)
        except (safetensors.SafetensorError, FileNotFoundError) as error:
            raise InputError(f"{folder / file}: is not a safetensors file that can be read ({error})") from error
        for name, tensor in found.items():
            whole = name if name.startswith((prefix, "lm_head.")) else prefix + name
            if not BUFFERS.search(whole):
                tensors[whole] = tensor
    return tensors


def _safetensors():
    try:
        import safetensors.numpy  # an extra
    except ImportError as error:
        raise InputError("needs the package safetensors: pip install 'jaxlab[interop]'") from error
    return safetensors


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{path}: is not a JSON file that can be read ({error})") from error


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()

"""Folders in the format of transformers: config.json, safetensors and a tokenizer, written and read with numpy."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import FrozenConfigDict

from jaxlab.config import MOST, InputError, default
from jaxlab.data.tokenizer import Tokenizer
from jaxlab.files import first_line, need, parse_json, reading
from jaxlab.interop.architectures import ARCHITECTURES, MODEL_TYPES, Architecture
from jaxlab.interop.folder import check_replaceable, replace_folder
from jaxlab.interop.tokenizer import tokenizer_files
from jaxlab.model import families
from jaxlab.model.decoder import Decoder

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FILES = (CONFIG, WEIGHTS, "tokenizer.json", "tokenizer_config.json")  # of an export
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
TRAINING = ("family", "init_std", "z_loss", "balance_loss")  # keys of config.model that matter only in training
TYPES = ("F32", "F16", "BF16")  # of tensors that can be read, by the names of safetensors
SHARD = re.compile(r"[^/\\\0]+\.safetensors")
BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$")  # constants that old folders store as tensors


def check_export(folder: str | Path, model: Mapping, tokenizer: Tokenizer, dtype: str) -> None:
    """Raises InputError if `export` would refuse these arguments; needs no parameters."""
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    if tokenizer.vocab_size > model["vocab_size"]:
        raise InputError(
            f"tokenizer {tokenizer.spec}: has {tokenizer.vocab_size} ids, and the model model.vocab_size="
            f"{model['vocab_size']}: it is not the tokenizer of this checkpoint"
        )
    config_json(model)
    _safetensors()
    check_replaceable(Path(folder), FILES)


def export(folder: str | Path, params, model: Mapping, tokenizer: Tokenizer, dtype: str = "float32") -> None:
    """Writes a model as a folder of transformers: config.json, model.safetensors, the tokenizer's files.

    params: the decoder's, without a replica axis. model: the keys of `config.model`, with the vocab_size of params.
    dtype: float32, or bfloat16 (rounded to nearest). The folder is replaced as a whole if it is empty or an earlier
    export. Raises InputError for a folder that holds anything else; for a model that no class of transformers computes,
    naming the key and its value; for a tokenizer with more ids than the model; and for a full disk.
    """
    check_export(folder, model, tokenizer, dtype)
    architecture, config = config_json(model)
    config |= {"dtype": dtype, "bos_token_id": tokenizer.eos, "eos_token_id": tokenizer.eos}
    tensors = _to_tensors(architecture, params)
    tensors = {name: np.ascontiguousarray(x, DTYPES[dtype]) for name, x in tensors.items()}
    files = tokenizer_files(tokenizer, model["context"]) | {CONFIG: _json(config)}
    safetensors = _safetensors()

    def write(part: Path) -> None:
        for name, content in files.items():
            (part / name).write_bytes(content)
        try:
            safetensors.numpy.save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:  # also for a full disk
            raise InputError(f"{Path(folder) / WEIGHTS}: cannot be written ({first_line(error)})") from error
        shutil.copymode(part / CONFIG, part / WEIGHTS)  # safetensors lets only the owner read it

    replace_folder(Path(folder), write, FILES)


def load(folder: str | Path) -> tuple[dict, dict]:
    """(keys of `config.model`, float32 parameters of the decoder) from a folder in the format of transformers.

    The weights may be one file or shards. Tensors of 16 bits become float32, which is exact. Raises InputError for a
    folder or an architecture that cannot be read, and for a tensor that is missing, unknown, or of another shape or
    type than the config says.
    """
    folder = Path(folder)
    path = folder / CONFIG
    with reading(path):
        config = need(parse_json(path.read_bytes(), path), path)
    with _within(folder):
        model = model_config(config)
    architecture = ARCHITECTURES[config["model_type"]]
    decoder = Decoder(FrozenConfigDict(model), scan=True)
    with reading(path):  # inconsistent shapes
        shapes = jax.eval_shape(decoder.init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    shapes = {path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}
    tensors = _read_tensors(folder, architecture)
    with _within(folder):
        return model, _to_params(architecture, tensors, shapes)


@contextmanager
def _within(folder: Path) -> Iterator[None]:
    """A context in which an InputError names the folder."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def config_json(model: Mapping) -> tuple[Architecture, dict]:
    """The architecture of a model, and its config.json. Raises InputError if no class of transformers computes it."""
    if model["family"] not in MODEL_TYPES:
        raise InputError(
            f"model.family={model['family']}: transformers has no class for it; allowed: {', '.join(MODEL_TYPES)}"
        )
    model_type = MODEL_TYPES[model["family"]]
    architecture = ARCHITECTURES[model_type]
    # Keys that this class fixes must have the family's value, and keys that no class has their default.
    fixed = default().model.to_dict() | families.ARCHITECTURES[architecture.family] | _derived(model)
    for key in fixed.keys() - {*architecture.keys.values(), *TRAINING}:
        if model[key] != fixed[key]:
            raise InputError(f"model.{key}={model[key]!r}: {architecture.name} has only {fixed[key]!r}")
    translated = {theirs: model[ours] for theirs, ours in architecture.keys.items()}
    kind = {"architectures": [architecture.name], "model_type": model_type}
    return architecture, kind | translated | architecture.required


def model_config(config: dict) -> dict:
    """The keys of `config.model` for a config.json. Raises InputError if our decoder does not compute the model, and
    for values of the wrong type."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise InputError(f"{CONFIG}: model_type={model_type!r:.60}: must be one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[model_type]
    config = architecture.defaults | {key: value for key, value in _renamed(config).items() if value is not None}
    for key, value in architecture.required.items():
        if type(config.get(key, value)) is not type(value) or config.get(key, value) != value:
            raise InputError(f"{CONFIG}: {key}={config[key]!r:.60}: only {value!r} can be read")
    model = {ours: _checked(key, config[key], ours) for key, ours in architecture.keys.items() if key in config}
    for key, ours in architecture.keys.items():
        if ours not in model | {"num_kv_heads": 0, "head_dim": 0, "d_ff": 0}:
            raise InputError(f"{CONFIG}: {key} is missing")
    return {"family": architecture.family} | families.ARCHITECTURES[architecture.family] | _derived(model) | model


def _checked(key: str, value, ours: str):
    """The value of a key of config.json, checked to have the type of our key."""
    kind = type(default().model[ours])
    if kind is bool:
        right, allowed = type(value) is bool, "true or false"
    elif kind is int:
        most = MOST.get(f"model.{ours}", 2**31 - 1)
        right, allowed = type(value) is int and 0 < value <= most, f"a whole number from 1 to {most}"
    else:
        right, allowed = type(value) in (int, float) and 0 < value < 1e30, "a number above 0 and below 1e30"
    if not right:
        raise InputError(f"{CONFIG}: {key}={value!r:.60}: must be {allowed}")
    return value


def _derived(model: Mapping) -> dict:
    """What transformers takes for shapes that are not given, and GPT-2 always."""
    width, heads = model["d_model"], model["num_heads"]
    return {"num_kv_heads": heads, "head_dim": width // heads, "d_ff": 4 * width}


def _renamed(config: dict) -> dict:
    """config.json with the keys of transformers 4: rope_theta on top, num_experts. Raises InputError for scaled
    positions."""
    rope = {}
    for key in ("rope_scaling", "rope_parameters"):
        rope |= need(config.get(key) or {}, f"{CONFIG}: {key}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise InputError(f"{CONFIG}: rope_type={kind!r:.60}: only 'default' can be read")
    for key in rope.keys() - {"rope_type", "type", "rope_theta"}:
        raise InputError(f"{CONFIG}: {key}={rope[key]!r:.60} of the rotary positions cannot be read")
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
    """Parameters of the given shapes, for which every tensor must be used. Raises InputError."""
    flat = {}
    for name, paths in architecture.tensors.items():
        if paths[0] in shapes:
            axes, flip = name.count("{}"), _flipped(architecture, paths[0])
            widths = [shapes[path][-1] for path in paths]
            stacked, shape = shapes[paths[0]][:axes], (*shapes[paths[0]][axes:-1], sum(widths))
            shape = shape[::-1] if flip else shape
            pieces = [_take(tensors, name.format(*i), shape) for i in np.ndindex(stacked)]
            joined = np.stack(pieces).reshape(*stacked, *shape)
            joined = joined.swapaxes(-1, -2) if flip else joined
            flat |= zip(paths, np.split(joined, np.cumsum(widths)[:-1], axis=-1), strict=True)
    head = tensors.pop("lm_head.weight", None)  # left if the model is tied: some folders store the embedding again
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
        raise InputError(f"tensor {name}: has shape {tensor.shape}, and {CONFIG} says {shape}")
    tensor = tensor.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise InputError(f"tensor {name}: has elements that are NaN or infinite")
    return tensor


def _flipped(architecture: Architecture, path: str) -> bool:
    """Whether a matrix is stored transposed; heads always are."""
    return path == "head" or (architecture.transposed and path.endswith("/kernel"))


def _read_tensors(folder: Path, architecture: Architecture) -> dict[str, np.ndarray]:
    """All tensors of a folder, under the names of the class with a language-model head; constants are left out."""
    prefix = next(iter(architecture.tensors)).partition(".")[0] + "."
    tensors = {}
    for path in _weight_files(folder):
        for name, tensor in _tensors_of(path):
            full_name = name if name.startswith((prefix, "lm_head.")) else prefix + name
            if full_name in tensors:
                raise InputError(f"{path}: tensor {name} is there for the second time")
            tensors[full_name] = tensor
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors if there is one, as in transformers, else the files beside the index that it names. Raises
    InputError for an index that names files elsewhere, even if it is not needed."""
    index = folder / INDEX
    if not index.exists():
        return [folder / WEIGHTS]
    with reading(index):
        places = need(parse_json(index.read_bytes(), index), index, weight_map=dict)["weight_map"]
    for tensor, name in places.items():
        if not isinstance(name, str) or not SHARD.fullmatch(name):
            raise InputError(f"{index}: {tensor} is in {name!r:.60}; must be a .safetensors file of the same folder")
    whole = (folder / WEIGHTS).exists() or not places
    return [folder / name for name in ({WEIGHTS} if whole else sorted({*places.values()}))]


def _tensors_of(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) of a safetensors file, without constants. Raises InputError for a type not in TYPES."""
    with reading(path), _safetensors().safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118, not a dict
            if not BUFFERS.search(name):
                kind = file.get_slice(name).get_dtype()
                if kind not in TYPES:
                    raise InputError(f"{path}: tensor {name}: has type {kind}; must be {', '.join(TYPES)}")
                yield name, file.get_tensor(name)


def _safetensors():
    try:
        import safetensors.numpy  # an extra
    except ImportError as error:
        raise InputError("needs the package safetensors: pip install 'jaxlab[interop]'") from error
    return safetensors


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()

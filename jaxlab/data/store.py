"""The token store: a corpus as flat token arrays with random access, in a folder or a bucket."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorstore as ts

from jaxlab.config import InputError
from jaxlab.data.tokenizer import Tokenizer, load

FORMAT = 1
META, STATE = "meta.json", "prepare.json"  # a store is complete when it has the first, begun with the second
SPLITS = ("train", "validation")
SHARD = 1 << 22  # tokens a file; also how much text a killed preparation does again
CHUNK = 4096  # tokens read and checked together: 8 KiB, so that a window is one or two small reads
CAPACITY = 1 << 40  # tokens; an array is cut to its length when its preparation ends
CACHE_BYTES = 256 << 20  # keeps the shards' indices, which would be read again for every window


@dataclass(frozen=True)
class Split:
    """One split of a store: `num_tokens` ids for `num_bytes` of UTF-8 text, an `eos` after each document."""

    name: str
    num_tokens: int
    num_bytes: int
    eos: int
    array: ts.TensorStore

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The windows tokens[s : s + length] for s in starts: int64 [n] -> int32 [n, length].

        Positions past the end are -1. Raises InputError for damaged data, ValueError for a negative start.
        """
        starts = np.asarray(starts, np.int64)
        if starts.size and starts.min() < 0:
            raise ValueError(f"Split.read: start {starts.min()} is negative")
        begins = np.minimum(starts, self.num_tokens).tolist()
        ends = np.minimum(starts + length, self.num_tokens).tolist()
        windows = np.full((len(starts), length), -1, np.int32)
        with ts.Batch() as batch:
            reads = [self.array[begin:end].read(batch=batch) for begin, end in zip(begins, ends, strict=True)]
        try:
            for window, read in zip(windows, reads, strict=True):
                tokens = read.result()
                window[: len(tokens)] = tokens
        except ValueError as error:
            raise InputError(f"data.store: split {self.name} is damaged ({_first_line(error)})") from error
        return windows


@dataclass(frozen=True)
class TokenStore:
    """An open store: `meta` is what `prepare` recorded, `split(name)` gives access to the tokens."""

    path: str
    meta: dict
    splits: dict[str, Split]

    def split(self, name: str) -> Split:
        """The split "train" or "validation"; InputError for another name."""
        if name not in self.splits:
            raise InputError(f"data.store={self.path}: has no split {name!r}; allowed: {', '.join(SPLITS)}")
        return self.splits[name]


def open_store(path: str | Path) -> TokenStore:
    """Opens a complete store (a folder, or gs://bucket/folder).

    Raises InputError when there is none, when its preparation has not finished, or when it is damaged.
    """
    folder = open_folder(path)
    meta = read_json(folder, META)
    if meta is None:
        state = "is not finished" if read_json(folder, STATE) else "does not exist"
        raise InputError(
            f"data.store={path}: the token store {state}; "
            f"run python -m launch.prepare --config=configs/demo.py --config.data.store={path}"
        )
    if meta.get("format") != FORMAT:
        raise InputError(f"data.store={path}: has format {meta.get('format')}, not {FORMAT}; {_AGAIN}")
    return TokenStore(str(path), meta, {name: _open_split(folder, name, meta, path) for name in SPLITS})


_AGAIN = "remove the folder and prepare it again"


def _open_split(folder: ts.KvStore, name: str, meta: dict, path: str | Path) -> Split:
    counts = meta["splits"][name]
    if len(folder.list(keys_below(f"{name}/c/")).result()) != -(-counts["tokens"] // SHARD):
        raise InputError(f"data.store={path}: files of the split {name} are missing; {_AGAIN}")
    # Nothing changes once meta.json exists: what is cached need not be compared with the files.
    spec = {"driver": "zarr3", "recheck_cached_data": False, "recheck_cached_metadata": False}
    context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    try:
        array = ts.open(spec, kvstore=folder / f"{name}/", read=True, context=context).result()
        if array.shape != (counts["tokens"],):
            raise ValueError(f"{array.shape[0]} tokens where {META} says {counts['tokens']}")
        # A file that was cut short has lost the index at its end; the last file is the likeliest.
        array[counts["tokens"] - 1].read().result()
    except ValueError as error:
        message = f"data.store={path}: the split {name} is damaged ({_first_line(error)}); {_AGAIN}"
        raise InputError(message) from error
    return Split(name, counts["tokens"], counts["bytes"], meta["eos"], array)


def create_array(folder: ts.KvStore, name: str, vocab_size: int) -> ts.TensorStore:
    """The array of a split in preparation, longer than any corpus; opened if it exists already."""
    # A shard of zeros is written like any other, so that a missing file always means damage.
    spec = {"driver": "zarr3", "store_data_equal_to_fill_value": True}
    kvstore = folder / f"{name}/"
    if kvstore.read("zarr.json").result().state == "value":
        return ts.open(spec, kvstore=kvstore).result()
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    checked = [little_endian, {"name": "crc32c"}]  # every read of a chunk or an index notices damage
    sharding = {"chunk_shape": [CHUNK], "codecs": checked, "index_codecs": checked}
    metadata = {
        "shape": [CAPACITY],
        "data_type": "uint16" if vocab_size <= 1 << 16 else "uint32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    return ts.open(spec | {"metadata": metadata}, kvstore=kvstore, create=True).result()


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of the store at `path`, from the store's own copy. Raises InputError as `open_store`."""
    meta = open_store(path).meta
    content = tokenizer_file(open_folder(path))
    if meta["tokenizer"] != "bytes" and content is None:
        raise InputError(f"data.store={path}: its tokenizer file is missing; {_AGAIN}")
    return load(meta["tokenizer"], content)


def tokenizer_file(folder: ts.KvStore) -> bytes | None:
    """The content of the tokenizer file in a store's folder, None if there is none."""
    found = [folder.read(name).result() for name in ("tokenizer.model", "tokenizer.json")]
    return next((result.value for result in found if result.state == "value"), None)


def open_folder(path: str | Path) -> ts.KvStore:
    """The folder (or bucket prefix) as a key-value store with atomic writes; creates nothing."""
    text = str(path)
    if "://" in text:
        return ts.KvStore.open(text.rstrip("/") + "/").result()
    folder = Path(text).expanduser().absolute()
    if folder.is_file():
        raise InputError(f"data.store={text}: is a file, not a folder")
    return ts.KvStore.open({"driver": "file", "path": f"{folder}/"}).result()


def keys_below(prefix: str) -> ts.KvStore.KeyRange:
    """The range of all keys that start with `prefix`."""
    return ts.KvStore.KeyRange(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))


def read_json(folder: ts.KvStore, name: str) -> dict | None:
    """The JSON file `name` of the folder, None if there is none. Raises InputError if it cannot be read."""
    try:
        result = folder.read(name).result()
        return json.loads(result.value) if result.state == "value" else None
    except (ValueError, OSError) as error:
        raise InputError(f"data.store: cannot read {folder.url}{name} ({_first_line(error)})") from error


def write_json(folder: ts.KvStore, name: str, content: dict) -> None:
    """Writes the JSON file `name` of the folder. Raises InputError if it cannot be written."""
    try:
        folder.write(name, json.dumps(content, indent=2).encode()).result()
    except (ValueError, OSError) as error:
        raise InputError(f"data.store: cannot write {folder.url}{name} ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(" [")[0]

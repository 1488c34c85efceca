"""The token store: a corpus as flat token arrays with random access, in a folder or a bucket."""

import hashlib
import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorstore as ts

from jaxlab.config import InputError
from jaxlab.data.bucket import list_files, open_folder, read_file, read_json
from jaxlab.data.tokenizer import Tokenizer, load
from jaxlab.files import first_line, local, need, read_record, reading, write_record

FORMAT = 1
META, STATE = "meta.json", "prepare.json"  # a store is complete when it has the first, begun with the second
CHECKED = "checked.json"  # size, modification time and sha256 of files that were found to agree with META
SPLITS = ("train", "validation")
COUNTS = ("documents", "bytes", "tokens")
SHARD = 1 << 22  # tokens in a file; also the most tokens that a killed preparation computes again
CHUNK = 4096  # tokens read and checked together: 8 KiB, so that a sequence takes one or two small reads
CAPACITY = 1 << 40  # tokens; an array is cut to its true length at the end of its preparation
CACHE_BYTES = 256 << 20  # for the shards' indices, which would otherwise be read again for every sequence
KINDS = {
    "source": str, "tokenizer": str, "validation_fraction": (int, float), "corpus_sha256": str, "licence": str,
    "note": str, "vocab_size": int, "eos": int, "tokenizer_sha256": str, "splits": dict,
}  # fmt: skip
_AGAIN = "remove the folder and prepare it again"


@dataclass(frozen=True)
class Split:
    """One split of a store: `num_tokens` ids for `num_bytes` of UTF-8 text, an `eos` after each document."""

    name: str
    num_tokens: int
    num_bytes: int
    eos: int
    vocab_size: int
    array: ts.TensorStore

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The windows tokens[s : s + length] for s in starts: int64 [n] -> int32 [n, length].

        Entries past the end of the split are -1. Raises InputError for damaged data, such as an id outside the
        vocabulary, and ValueError for a negative start.
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
            raise InputError(f"data.store: split {self.name} is damaged ({first_line(error)})") from error
        if windows.size and windows.max() >= self.vocab_size:
            raise InputError(f"data.store: split {self.name} holds id {windows.max()}, of {self.vocab_size} ids in all")
        return windows


@dataclass(frozen=True)
class TokenStore:
    """An open store: `meta` is the record that `prepare` wrote, `split(name)` gives access to the tokens."""

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

    Raises InputError when there is none, when its preparation has not finished, or when one of its files is missing or
    damaged. Files are compared with the hashes that `prepare` recorded: small files always, files of tokens only if
    their size or modification time has changed since the last comparison (recorded in CHECKED, if the folder can be
    written). In a bucket, files of tokens are not hashed. In every store each chunk has a checksum that is verified
    when it is read.
    """
    folder = open_folder(path)
    meta = read_meta(folder, path)
    if meta is None:
        if read_file(folder, STATE) is not None:
            state = "the token store is not finished"
        elif any(list_files(folder, f"{name}/") for name in SPLITS):
            state = f"the folder holds something else than a token store, or has lost its {META}"
        else:
            state = "the token store does not exist"
        raise InputError(
            f"data.store={path}: {state}; run python -m launch.prepare --config=configs/demo.py "
            f"--config.data.store={path}"
        )
    check_files(folder, meta, path)
    return TokenStore(str(path), meta, {name: _open_split(folder, name, meta, path) for name in SPLITS})


def read_meta(folder: ts.KvStore, path: str | Path) -> dict | None:
    """The record that `prepare` wrote when the store was complete, None if there is none.

    Raises InputError if it cannot be read, is damaged, or has another format.
    """
    meta = read_json(folder, META, format=int)
    if meta is None:
        return None
    where = f"data.store={path}: {META}"
    if meta["format"] != FORMAT:
        raise InputError(f"{where} has format {meta['format']}, not {FORMAT}; {_AGAIN}")
    splits = need_counts(need(meta, where, **KINDS)["splits"], where)
    if min(splits[name][key] for name in SPLITS for key in COUNTS) < 1:
        raise InputError(f"{where} has a split without text; {_AGAIN}")
    return meta


def need_counts(splits: dict, where: str) -> dict[str, dict[str, int]]:
    """`splits`, checked to hold the COUNTS of all SPLITS. Raises InputError, naming `where`, if it does not."""
    for counts in need(splits, where, **dict.fromkeys(SPLITS, dict)).values():
        need(counts, where, **dict.fromkeys(COUNTS, int))
    return splits


def check_written(folder: ts.KvStore, name: str, tokens: int, vocab_size: int, path: str | Path) -> None:
    """Raises InputError, naming the file, unless the first `tokens` of an unfinished split can be read as written.

    Whatever follows them is read too: a kill may leave tokens that are not counted yet and will be overwritten.
    """
    with reading(f"data.store={path}: {name}/zarr.json"):
        array = create_array(folder, name, vocab_size)
    for shard in itertools.count():
        file = f"{name}/c/{shard}"
        begin = shard * SHARD
        if read_file(folder, file) is None:  # raises an error of its own for a failing disk
            if begin < tokens:
                raise InputError(f"data.store={path}: {file} is missing; {_AGAIN}")
            return
        try:
            largest = array[begin : min(begin + SHARD, array.shape[0])].read().result().max()
            if largest >= vocab_size:
                raise ValueError(f"it holds id {largest}, of {vocab_size} ids in all")
        except ValueError as error:
            raise InputError(f"data.store={path}: {file} is damaged ({first_line(error)}); {_AGAIN}") from error


def check_files(folder: ts.KvStore, meta: dict, path: str | Path) -> None:
    """Raises InputError, naming the file, if a file of a complete store differs from what `prepare` recorded."""
    recorded = meta.get("files")
    if recorded is None:  # stores of an old version have no hashes
        _tokenizer(folder, meta, path)
        return
    root = None if "://" in str(path) else local(path, "data.store")
    known, stamps = (_remembered(root), stamp(root, recorded)) if root else ({}, {})
    shards = {name for name in recorded if "/c/" in name}
    due = {name for name in shards if root and known.get(name) != [*stamps[name], recorded[name]]}
    for name, sha256 in hash_files(folder, recorded.keys() - shards | due).items():
        if sha256 != recorded[name]:
            state = "is damaged: its content has changed" if sha256 else "is missing"
            raise InputError(f"data.store={path}: {name} {state}; {_AGAIN}")
    if due:
        remember(root, recorded, stamps)


def hash_files(folder: ts.KvStore, names: Iterable[str]) -> dict[str, str | None]:
    """{name: sha256 of the file, None if there is none}, in order of the names."""

    def hash_file(name):
        content = read_file(folder, name)
        return name, None if content is None else hashlib.sha256(content).hexdigest()

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(hash_file, sorted(names)))


def stamp(root: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """{name: [bytes, time of the last change in ns]} of files; an empty list for a missing file."""

    def stamp_file(name):
        with suppress(OSError):
            status = (root / name).stat()
            return [status.st_size, status.st_mtime_ns]
        return []

    return {name: stamp_file(name) for name in names}


def remember(root: Path, files: dict[str, str], stamps: dict[str, list[int]]) -> None:
    """Records that files with these sizes and times had these hashes; does nothing if the folder cannot be written."""
    with suppress(OSError):
        write_record(root / CHECKED, {"files": {name: [*stamps[name], sha256] for name, sha256 in files.items()}})


def _remembered(root: Path) -> dict:
    with suppress(InputError):  # missing or damaged: all files are hashed again
        return read_record(root / CHECKED, files=dict)["files"]
    return {}


def _open_split(folder: ts.KvStore, name: str, meta: dict, path: str | Path) -> Split:
    counts = meta["splits"][name]
    # Nothing changes after meta.json exists, so tensorstore need not check whether its cache is current.
    spec = {"driver": "zarr3", "recheck_cached_data": False, "recheck_cached_metadata": False}
    context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    with reading(f"data.store={path}: the split {name}"):
        if len(list_files(folder, f"{name}/c/")) != -(-counts["tokens"] // SHARD):
            raise InputError(f"data.store={path}: files of the split {name} are missing; {_AGAIN}")
        array = ts.open(spec, kvstore=folder / f"{name}/", read=True, context=context).result()
        if array.shape != (counts["tokens"],):
            raise ValueError(f"{array.shape} tokens where {META} says {counts['tokens']}")
        # A truncated file lacks the index at its end; the last file is the likeliest to be truncated.
        array[counts["tokens"] - 1].read().result()
    return Split(name, counts["tokens"], counts["bytes"], meta["eos"], meta["vocab_size"], array)


def create_array(folder: ts.KvStore, name: str, vocab_size: int) -> ts.TensorStore:
    """The array of an unfinished split, longer than any corpus; opened if it exists already."""
    # Shards of zeros are written too, so that a missing file always means damage.
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
    return _tokenizer(open_folder(path), open_store(path).meta, path)


def _tokenizer(folder: ts.KvStore, meta: dict, path: str | Path) -> Tokenizer:
    tokenizer = read_tokenizer(folder, meta["tokenizer"], meta["tokenizer_sha256"], path)
    for key in ("vocab_size", "eos"):
        if getattr(tokenizer, key) != meta[key]:
            raise InputError(
                f"data.store={path}: {META} says {key} {meta[key]}, the tokenizer {getattr(tokenizer, key)}; {_AGAIN}"
            )
    return tokenizer


def read_tokenizer(
    folder: ts.KvStore, spec: str, sha256: str | None, path: str | Path, *, needed: bool = True
) -> Tokenizer | None:
    """The tokenizer of a store from its file. Raises InputError if that is damaged, or missing and `needed`."""
    if spec == "bytes":
        return load(spec, None)
    where = f"data.store={path}: {tokenizer_name(spec)}"
    content = read_file(folder, tokenizer_name(spec))
    if content is None:
        if needed:
            raise InputError(f"{where} is missing; {_AGAIN}")
        return None
    if sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise InputError(f"{where} is damaged: its content has changed; {_AGAIN}")
    tokenizer = load(spec, content)
    if tokenizer.file[1] != content:
        raise InputError(f"{where} truncates, pads or randomises texts, so the store is incomplete; {_AGAIN}")
    return tokenizer


def tokenizer_name(spec: str) -> str:
    """Name of the file in a store that holds the tokenizer of `spec`."""
    return "tokenizer.json" if spec.startswith("hf:") else "tokenizer.model"

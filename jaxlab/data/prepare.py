"""Fills a token store: corpus -> tokenizer -> token arrays. Killed at any moment, it continues where it stopped."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorstore as ts

from jaxlab.config import InputError
from jaxlab.data.bucket import (
    NotWritten,
    keys_below,
    list_files,
    open_folder,
    read_json,
    write_file,
    write_json,
    writing,
)
from jaxlab.data.corpus import Corpus, Document, open_corpus
from jaxlab.data.store import (
    COUNTS,
    FORMAT,
    META,
    SHARD,
    SPLITS,
    STATE,
    check_files,
    check_written,
    create_array,
    hash_files,
    need_counts,
    read_meta,
    read_tokenizer,
    remember,
    stamp,
)
from jaxlab.data.tokenizer import Tokenizer, check_spec, make_tokenizer
from jaxlab.files import local

TOKENIZERS = ("tokenizer.model", "tokenizer.json")
BATCH_CHARACTERS = 1 << 20  # characters of text that are tokenised in one call


def prepare(
    source: str,
    tokenizer: str,
    path: str | Path,
    *,
    validation_fraction: float = 0.02,
    archives: str | Path,
    tfds_dir: str | Path | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> dict:
    """Tokenises a corpus into a store at `path` and returns its metadata (the content of meta.json).

    source, archives, tfds_dir: see `open_corpus`. tokenizer: a spec, see `make_tokenizer`.
    validation_fraction: fraction of the documents that is held out, chosen by a hash of their ids; at least one
    document is held out. A data set with a validation split of its own keeps that one.
    progress: called with the documents, text bytes and tokens done so far; never if the store is complete.

    After a kill at any moment, or a full disk, the same call continues where it stopped and leaves the same bytes.
    Raises InputError for bad input, for a corpus of fewer than two documents, for a store at `path` that was made from
    other inputs or is damaged, and for a folder that holds something else.
    """
    check_spec(tokenizer)
    if not 0 < validation_fraction < 1:
        raise InputError(f"data.validation_fraction={validation_fraction}: must lie between 0 and 1")
    folder = open_folder(path)
    before = read_meta(folder, path)
    if before is not None:
        check_files(folder, before, path)
    corpus = open_corpus(source, archives=archives, tfds_dir=tfds_dir)
    inputs = {
        "format": FORMAT,
        "source": source,
        "tokenizer": tokenizer,
        "validation_fraction": validation_fraction,
        "version": corpus.version,
        "corpus_sha256": corpus.sha256,
    }
    if not tokenizer.startswith("bpe:"):  # known before any text is read
        inputs["tokenizer_sha256"] = make_tokenizer(tokenizer, ()).sha256
    if before is not None:
        _check_same(before, inputs, path)
        if list_files(folder, STATE):
            write_file(folder, STATE, None)  # left behind by a kill at the very end
        return before
    state, model = _start(folder, corpus, inputs, path)
    try:
        _write_documents(folder, corpus, model, state, path, progress)
    except NotWritten:
        raise
    except InputError as error:
        if getattr(error.__cause__, "errno", None) is None:  # bad text; errno: a failing disk or network
            _remove(folder, path)
        raise
    meta = inputs | {
        "licence": corpus.licence,
        "note": corpus.note,
        "vocab_size": model.vocab_size,
        "eos": model.eos,
        "tokenizer_sha256": model.sha256,
        "altered": state.get("altered", 0),
        "splits": state["splits"],
    }
    names = [name for split in SPLITS for name in list_files(folder, f"{split}/")]
    names += [model.file[0]] if model.file else []
    meta["files"] = hash_files(folder, names)
    write_json(folder, META, meta)
    if "://" not in str(path):
        root = local(path, "data.store")
        remember(root, meta["files"], stamp(root, names))
    write_file(folder, STATE, None)
    return meta


def _check_same(recorded: dict, inputs: dict, path: str | Path) -> None:
    for key, value in inputs.items():
        if recorded.get(key, value) != value:  # older versions did not record every key
            raise InputError(
                f"data.store={path}: was prepared with {key}={recorded[key]!r}, not {value!r}; "
                "choose another data.store, or remove this one"
            )


def _start(folder: ts.KvStore, corpus: Corpus, inputs: dict, path: str | Path) -> tuple[dict, Tokenizer]:
    """The state to continue from, and the tokenizer. Writes nothing before corpus and tokenizer are valid."""
    state = read_json(folder, STATE, inputs=dict, threshold=float, splits=dict)
    tokenizer = inputs["tokenizer"]
    if state is not None:
        _check_same(state["inputs"], inputs, path)
        splits = need_counts(state["splits"], f"data.store={path}: {STATE}")
        written = {name: splits[name]["tokens"] for name in SPLITS}
        model = read_tokenizer(folder, tokenizer, state.get("tokenizer_sha256"), path, needed=any(written.values()))
        if model:
            for name, tokens in written.items():
                check_written(folder, name, tokens, model.vocab_size, path)
            return state, model
    else:
        others = [*TOKENIZERS, *(f"{name}/" for name in SPLITS)]
        if any(list_files(folder, name) for name in others):
            raise InputError(f"data.store={path}: the folder holds something else; choose another one")
        splits = {name: dict.fromkeys(COUNTS, 0) for name in SPLITS}
        threshold = _threshold(corpus, inputs["validation_fraction"])
        state = {"inputs": inputs, "threshold": threshold, "splits": splits}
    training = (d.text for d in corpus.documents() if _split_of(d, state["threshold"]) == "train")
    model = make_tokenizer(tokenizer, training)
    state["tokenizer_sha256"] = model.sha256
    write_json(folder, STATE, state)
    if model.file:
        write_file(folder, *model.file)
    return state, model


def _threshold(corpus: Corpus, fraction: float) -> float:
    """The hash below which a document belongs to validation: `fraction`, or the nearest value that leaves a document in
    both splits.

    Reads the corpus only until it has seen a document of each split.
    """
    hashes, held_out = [], set()
    for document in corpus.documents():
        if document.split is not None:
            return fraction
        hashes.append(_hash01(document.id))
        held_out.add(hashes[-1] < fraction)
        if len(held_out) == 2:
            return fraction
    if len(hashes) < 2:
        content = "one document" if hashes else "no text"
        raise InputError(f"data.source={corpus.name}: has {content}; must have two documents, one for validation")
    hashes.sort()
    return hashes[-1] if True in held_out else hashes[1]


def _hash01(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _split_of(document: Document, threshold: float) -> str:
    return document.split or ("validation" if _hash01(document.id) < threshold else "train")


def _write_documents(folder: ts.KvStore, corpus: Corpus, model: Tokenizer, state: dict, path, progress) -> None:
    """Appends the tokens of the documents that `state` does not count yet; updates and saves `state`."""
    splits = state["splits"]
    with writing(str(path)):
        arrays = {name: create_array(folder, name, model.vocab_size) for name in SPLITS}
    pending: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    done = sum(counts["documents"] for counts in splits.values())
    for batch in _batches(itertools.islice(corpus.documents(), done, None)):
        for document, ids in zip(batch, model.encode([document.text for document in batch]), strict=True):
            name = _split_of(document, state["threshold"])
            pending[name] += [ids, np.array([model.eos])]
            for key, amount in zip(COUNTS, (1, len(document.text.encode()), len(ids) + 1), strict=True):
                splits[name][key] += amount
            if not model.exact and model.decode(ids) != document.text:
                state["altered"] = state.get("altered", 0) + 1
        if sum(len(ids) for ids in itertools.chain(*pending.values())) >= SHARD:
            _save(folder, arrays, pending, state, path)
        if progress:
            progress(*(sum(counts[key] for counts in splits.values()) for key in COUNTS))
    if empty := [name for name in SPLITS if not splits[name]["documents"]]:
        raise InputError(f"data.source={corpus.name}: its split {empty[0]} has no text")
    _save(folder, arrays, pending, state, path)
    with writing(str(path)):
        for name, array in arrays.items():
            array.resize(exclusive_max=[splits[name]["tokens"]], resize_metadata_only=True).result()


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _save(folder: ts.KvStore, arrays: dict, pending: dict, state: dict, path) -> None:
    """Writes the pending tokens and then the state: after a kill in between, the same tokens are written again."""
    for name, parts in pending.items():
        if parts:
            tokens = np.concatenate(parts).astype(arrays[name].dtype.numpy_dtype)
            end = state["splits"][name]["tokens"]
            with writing(f"{path}/{name}"):
                arrays[name][end - len(tokens) : end].write(tokens).result()
            parts.clear()
    write_json(folder, STATE, state)


def _remove(folder: ts.KvStore, path: str | Path) -> None:
    """Removes an unfinished store, and the folder if nothing else is in it."""
    for name in SPLITS:
        folder.delete_range(keys_below(f"{name}/")).result()
    for name in (*TOKENIZERS, STATE):
        folder.write(name, None).result()
    for name in (*(f"{split}{below}" for split in SPLITS for below in ("/c", "")), "."):
        with contextlib.suppress(OSError):  # missing (a bucket has no folders), or not empty
            (Path(path).expanduser() / name).rmdir()

"""Fills a token store: corpus -> tokenizer -> token arrays; killed at any moment, it goes on where it was."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorstore as ts

from jaxlab.config import InputError
from jaxlab.data.corpus import Corpus, Document, open_corpus
from jaxlab.data.store import (
    FORMAT,
    META,
    SHARD,
    SPLITS,
    STATE,
    create_array,
    keys_below,
    open_folder,
    read_json,
    tokenizer_file,
    write_json,
)
from jaxlab.data.tokenizer import Tokenizer, check_spec, load, make_tokenizer

COUNTS = ("documents", "bytes", "tokens")
BATCH_CHARACTERS = 1 << 20  # text tokenized at once


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
    """Tokenizes a corpus into a store at `path` and returns its meta data (the content of meta.json).

    source, archives, tfds_dir: see `open_corpus`. tokenizer: a spec, see `make_tokenizer`.
    validation_fraction: share of the documents, chosen by a hash of their ids, that is held out (unless the
    data set has a validation split of its own); at least one document is.
    progress: called with the documents, text bytes and tokens done so far; never if the store is complete.

    Killed at any moment, the same call goes on where it was and leaves the same bytes. Raises InputError for
    bad input, for a corpus of fewer than two documents, and for a store at `path` made from other inputs.
    """
    check_spec(tokenizer)
    if not 0 < validation_fraction < 1:
        raise InputError(f"data.validation_fraction={validation_fraction}: must lie between 0 and 1")
    folder = open_folder(path)
    before = read_json(folder, META)
    corpus = open_corpus(source, archives=archives, tfds_dir=tfds_dir)
    inputs = {
        "format": FORMAT,
        "source": source,
        "tokenizer": tokenizer,
        "validation_fraction": validation_fraction,
        "corpus_sha256": corpus.sha256,
    }
    if not tokenizer.startswith("bpe:"):  # known before any text is read
        inputs["tokenizer_sha256"] = make_tokenizer(tokenizer, ()).sha256
    if before is not None:
        _check_same(before, inputs, path)
        folder.write(STATE, None).result()  # left behind by a kill at the very end
        return before
    state, model = _start(folder, corpus, inputs, path)
    try:
        _write_documents(folder, corpus, model, state, progress)
    except InputError:
        _remove(folder, path)
        raise
    meta = inputs | {
        "licence": corpus.licence,
        "note": corpus.note,
        "vocab_size": model.vocab_size,
        "eos": model.eos,
        "tokenizer_sha256": model.sha256,
        "splits": state["splits"],
    }
    write_json(folder, META, meta)
    folder.write(STATE, None).result()
    return meta


def _check_same(found: dict, inputs: dict, path: str | Path) -> None:
    for key, wanted in inputs.items():
        if found.get(key) != wanted:
            raise InputError(
                f"data.store={path}: was prepared with {key}={found.get(key)!r}, not {wanted!r}; "
                "choose another data.store, or remove this one"
            )


def _start(folder: ts.KvStore, corpus: Corpus, inputs: dict, path: str | Path) -> tuple[dict, Tokenizer]:
    """The state to go on from, and the tokenizer; writes nothing before corpus and tokenizer are good."""
    state = read_json(folder, STATE)
    if state is not None:
        _check_same(state["inputs"], inputs, path)
        if (content := tokenizer_file(folder)) is not None:
            return state, load(inputs["tokenizer"], content)
    else:
        if any(folder.list(keys_below(f"{name}/")).result() for name in SPLITS):
            raise InputError(f"data.store={path}: the folder holds something else; choose another one")
        splits = {name: dict.fromkeys(COUNTS, 0) for name in SPLITS}
        threshold = _threshold(corpus, inputs["validation_fraction"])
        state = {"inputs": inputs, "threshold": threshold, "splits": splits}
    training = (d.text for d in corpus.documents() if _split_of(d, state["threshold"]) == "train")
    model = make_tokenizer(inputs["tokenizer"], training)
    write_json(folder, STATE, state)
    if model.file:
        folder.write(*model.file).result()
    return state, model


def _threshold(corpus: Corpus, fraction: float) -> float:
    """The hash below which a document is validation: `fraction`, or what leaves a document in both splits.

    Reads only as far as the first document of each.
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
        found = "one document" if hashes else "no text"
        raise InputError(f"data.source={corpus.name}: has {found}; two are needed, one to validate on")
    hashes.sort()
    return hashes[-1] if True in held_out else hashes[1]


def _hash01(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _split_of(document: Document, threshold: float) -> str:
    return document.split or ("validation" if _hash01(document.id) < threshold else "train")


def _write_documents(folder: ts.KvStore, corpus: Corpus, model: Tokenizer, state: dict, progress) -> None:
    """Appends the tokens of the documents that `state` has not counted yet; updates and saves `state`."""
    splits = state["splits"]
    arrays = {name: create_array(folder, name, model.vocab_size) for name in SPLITS}
    pending: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    done = sum(counts["documents"] for counts in splits.values())
    for batch in _batches(itertools.islice(corpus.documents(), done, None)):
        for document, ids in zip(batch, model.encode([document.text for document in batch]), strict=True):
            name = _split_of(document, state["threshold"])
            pending[name] += [ids, np.array([model.eos])]
            for key, amount in zip(COUNTS, (1, len(document.text.encode()), len(ids) + 1), strict=True):
                splits[name][key] += amount
        if sum(len(ids) for ids in itertools.chain(*pending.values())) >= SHARD:
            _save(folder, arrays, pending, state)
        if progress:
            progress(*(sum(counts[key] for counts in splits.values()) for key in COUNTS))
    if empty := [name for name in SPLITS if not splits[name]["documents"]]:
        raise InputError(f"data.source={corpus.name}: its split {empty[0]} has no text")
    _save(folder, arrays, pending, state)
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


def _save(folder: ts.KvStore, arrays: dict, pending: dict, state: dict) -> None:
    """Writes the pending tokens, then the state: a kill in between repeats the same writes, skips none."""
    for name, parts in pending.items():
        if parts:
            tokens = np.concatenate(parts).astype(arrays[name].dtype.numpy_dtype)
            end = state["splits"][name]["tokens"]
            arrays[name][end - len(tokens) : end].write(tokens).result()
            parts.clear()
    write_json(folder, STATE, state)


def _remove(folder: ts.KvStore, path: str | Path) -> None:
    """Removes an unfinished store, and the folder if nothing else is in it."""
    for name in SPLITS:
        folder.delete_range(keys_below(f"{name}/")).result()
    for name in ("tokenizer.model", "tokenizer.json", STATE):
        folder.write(name, None).result()
    for name in (*(f"{split}{below}" for split in SPLITS for below in ("/c", "")), "."):
        with contextlib.suppress(OSError):  # not there (a bucket has no folders), or not empty
            (Path(path).expanduser() / name).rmdir()

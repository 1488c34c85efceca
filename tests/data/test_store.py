"""The token store: its tokens against a plain numpy account of the text, kills at every write, damage."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.config import InputError
from jaxlab.data import prepare as preparing
from jaxlab.data import store as storing
from jaxlab.data.prepare import prepare
from jaxlab.data.store import load_tokenizer, open_store

WORDS = "naïve words, 東京 and 12 more; "
TEXTS = {f"{i:03}.txt": f"Chapter {i}. " + WORDS * (1 + i * 7 % 40) for i in range(150)}


SMALL = {"SHARD": 4096, "CHUNK": 512, "BATCH_CHARACTERS": 1000}


@pytest.fixture
def small_shards(monkeypatch):
    for name, value in SMALL.items():
        for module in (storing, preparing):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


def build(corpus, path, tokenizer="bytes", fraction=0.1, **kwargs):
    source = f"files:{corpus}/*.txt"
    return prepare(source, tokenizer, path, validation_fraction=fraction, archives=corpus / "none", **kwargs)


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "bytes"
    build(corpus, path)
    return path


def held_out(name, fraction):
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) < fraction * 16**12


def expected_bytes(split, fraction=0.1):
    texts = [t for name, t in TEXTS.items() if held_out(name, fraction) == (split == "validation")]
    return np.array([i for text in texts for i in [*text.encode(), 256]], np.int32), texts


@pytest.mark.parametrize("split", ["train", "validation"])
def test_tokens_and_counts_are_those_of_the_documents(built, split):
    tokens, texts = expected_bytes(split)
    store = open_store(built)
    counts = {"documents": len(texts), "tokens": len(tokens), "bytes": sum(len(t.encode()) for t in texts)}
    assert store.meta["splits"][split] == counts
    read = store.split(split)
    assert (read.num_tokens, read.num_bytes, read.eos) == (counts["tokens"], counts["bytes"], 256)
    np.testing.assert_array_equal(read.read(np.array([0]), len(tokens))[0], tokens)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_windows_equal_slices_with_minus_one_past_the_end(built, data):
    tokens, _ = expected_bytes("validation")
    starts = data.draw(st.lists(st.integers(0, len(tokens) + 50), max_size=20))
    length = data.draw(st.integers(1, 300))
    padded = np.concatenate([tokens, np.full(400, -1)])
    windows = open_store(built).split("validation").read(np.array(starts, np.int64), length)
    assert windows.dtype == np.int32
    assert windows.shape == (len(starts), length)
    for window, start in zip(windows, starts, strict=True):
        np.testing.assert_array_equal(window, padded[start : start + length])


def test_starts_beyond_int32_and_below_zero(built):
    split = open_store(built).split("train")
    assert (split.read(np.array([2**40]), 5) == -1).all()
    with pytest.raises(ValueError, match="start -1 is negative"):
        split.read(np.array([-1]), 5)


def test_bpe_store_is_self_contained(corpus, tmp_path):
    meta = build(corpus, tmp_path / "store", "bpe:320")
    tokenizer = load_tokenizer(tmp_path / "store")
    assert (tokenizer.vocab_size, tokenizer.eos, tokenizer.sha256) == (320, 1, meta["tokenizer_sha256"])
    split = open_store(tmp_path / "store").split("train")
    ids = split.read(np.array([0]), split.num_tokens)[0]
    documents = [tokenizer.decode(part) for part in np.split(ids, np.flatnonzero(ids == tokenizer.eos) + 1)]
    assert documents == [*expected_bytes("train")[1], ""]


def test_large_vocabulary_is_stored_in_32_bits(tmp_path):
    folder = storing.open_folder(tmp_path)
    assert storing.create_array(folder, "small", 1 << 16).dtype.numpy_dtype == np.uint16
    assert storing.create_array(folder, "large", (1 << 16) + 1).dtype.numpy_dtype == np.uint32


@pytest.mark.usefixtures("small_shards")
def test_shards_of_zeros_are_stored_too(tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.txt").write_text("\0" * 20000)
    build(tmp_path, tmp_path / "store", fraction=0.5)
    split = open_store(tmp_path / "store").split("train")
    assert np.count_nonzero(split.read(np.array([0]), split.num_tokens)) == split.num_tokens // 20001


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_both_splits_always_have_a_document(corpus, tmp_path, fraction):
    splits = build(corpus, tmp_path / "store", fraction=fraction)["splits"]
    documents = sorted(counts["documents"] for counts in splits.values())
    assert documents == [1, len(TEXTS) - 1]


def test_a_document_keeps_its_split_when_others_come(corpus, tmp_path):
    (tmp_path / "some").mkdir()
    names = list(TEXTS)[40:90]
    for name in names:
        (tmp_path / "some" / name).write_text(TEXTS[name])
    build(tmp_path / "some", tmp_path / "store")
    split = open_store(tmp_path / "store").split("validation")
    expected = [i for name in names if held_out(name, 0.1) for i in [*TEXTS[name].encode(), 256]]
    np.testing.assert_array_equal(split.read(np.array([0]), split.num_tokens)[0], expected)


def files_of(path):
    return {p.relative_to(path): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}


def test_a_complete_store_is_left_alone(corpus, built):
    before = {p: os.stat(built / p).st_mtime_ns for p in files_of(built)}
    meta = build(corpus, built, progress=lambda *_: pytest.fail("work was done"))
    assert meta == json.loads((built / "meta.json").read_text())
    assert {p: os.stat(built / p).st_mtime_ns for p in files_of(built)} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "bpe:320"}, "was prepared with tokenizer='bytes', not 'bpe:320'"),
        ({"fraction": 0.2}, "was prepared with validation_fraction=0.1, not 0.2"),
    ],
)
def test_other_inputs_are_named(corpus, built, change, message):
    before = files_of(built)
    with pytest.raises(InputError, match=message):
        build(corpus, built, **change)
    assert files_of(built) == before


def test_a_changed_corpus_is_noticed(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    build(tmp_path, tmp_path / "store")
    (tmp_path / "b.txt").write_text("c")
    with pytest.raises(InputError, match="was prepared with corpus_sha256="):
        build(tmp_path, tmp_path / "store")


# Kills itself with SIGKILL before or after its n-th write of a JSON file.
VICTIM = """
import os, signal, sys
from jaxlab.data import prepare, store
store.SHARD = prepare.SHARD = {SHARD}
store.CHUNK = {CHUNK}
prepare.BATCH_CHARACTERS = {BATCH_CHARACTERS}
source, tokenizer, path, when, n = sys.argv[1:]
write, calls = prepare.write_json, 0
def counted(*args):
    global calls
    calls += 1
    if when == "after":
        write(*args)
    if calls == int(n):
        os.kill(os.getpid(), signal.SIGKILL)
    if when == "before":
        write(*args)
prepare.write_json = counted
prepare.prepare(source, tokenizer, path, validation_fraction=0.1, archives="/nowhere")
"""


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:320"])
@pytest.mark.usefixtures("small_shards")
def test_killed_at_any_write_and_resumed_gives_the_same_bytes(corpus, tmp_path, tokenizer, monkeypatch):
    writes = []
    monkeypatch.setattr(preparing, "write_json", lambda *a: (writes.append(a[1]), storing.write_json(*a)))
    build(corpus, tmp_path / "whole", tokenizer)
    expected = files_of(tmp_path / "whole")
    assert len(writes) > 5
    assert len([p for p in expected if "train/c" in str(p)]) > 3
    last = len(writes)
    for when, n in itertools.product(("before", "after"), (1, 3, last)):
        path = tmp_path / f"{when}{n}"
        arguments = [f"files:{corpus}/*.txt", tokenizer, path, when, str(n)]
        victim = subprocess.run([sys.executable, "-c", VICTIM.format(**SMALL), *arguments], check=False)
        assert victim.returncode == -signal.SIGKILL
        if n > 1:
            assert files_of(path)  # something was there to go on from
        calls = []
        build(corpus, path, tokenizer, progress=lambda *counts, calls=calls: calls.append(counts))
        assert files_of(path) == expected
        if (when, n) == ("after", 3):
            assert calls[0][0] > len(TEXTS) / 20  # it did not begin again


def test_unfinished_store_says_so_and_refuses_other_inputs(corpus, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(corpus, tmp_path / "store")
    with pytest.raises(InputError, match=r"is not finished; run python -m launch.prepare --config="):
        open_store(tmp_path / "store")
    with pytest.raises(InputError, match="was prepared with tokenizer='bytes', not 'bpe:320'"):
        build(corpus, tmp_path / "store", "bpe:320")


@pytest.mark.usefixtures("small_shards")
def test_bad_text_far_in_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 100)
    rows = [json.dumps({"text": f"row {i}"}) for i in range(500)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, '{"no": 1}']))
    with pytest.raises(InputError, match=r"a\.jsonl:501"):
        prepare(f"files:{tmp_path}/*.jsonl", "bytes", tmp_path / "store", archives=tmp_path / "none")
    assert os.listdir(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize(("texts", "found"), [([" "], "no text"), (["one"], "one document")])
def test_too_few_documents(tmp_path, texts, found):
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    with pytest.raises(InputError, match=f"has {found}; two are needed"):
        build(tmp_path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2])
def test_validation_fraction_is_checked(corpus, tmp_path, fraction):
    with pytest.raises(InputError, match=f"data.validation_fraction={fraction}: must lie between 0 and 1"):
        build(corpus, tmp_path / "store", fraction=fraction)


def test_a_folder_of_something_else_is_not_touched(corpus, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine").write_text("precious")
    with pytest.raises(InputError, match="the folder holds something else"):
        build(corpus, tmp_path)
    assert files_of(tmp_path) == {Path("train/mine"): b"precious"}
    with pytest.raises(InputError, match="is a file, not a folder"):
        build(corpus, tmp_path / "train" / "mine")


def test_missing_store_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r"does not exist; run python -m launch.prepare") as error:
        open_store(tmp_path / "none")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "none").exists()


def test_unknown_split_lists_the_allowed(built):
    with pytest.raises(InputError, match="has no split 'test'; allowed: train, validation"):
        open_store(built).split("test")


def test_url_and_path_open_the_same_store(built):
    by_url = open_store(f"file://{built}").split("train").read(np.array([7]), 20)
    np.testing.assert_array_equal(by_url, open_store(str(built)).split("train").read(np.array([7]), 20))
    assert storing.open_folder("gs://bucket/a/b").url == "gs://bucket/a/b/"


def damaged_copy(built, tmp_path, damage):
    for name, content in files_of(built).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    damage(tmp_path)
    return tmp_path


DAMAGES = {
    "shard gone": lambda path: (path / "train/c/0").unlink(),
    "shard cut": lambda path: os.truncate(path / "train/c/0", 1000),
    "shard empty": lambda path: os.truncate(path / "train/c/0", 0),
    "array gone": lambda path: (path / "train/zarr.json").unlink(),
    "shorter than recorded": lambda path: (path / "train/zarr.json").write_text(
        (path / "train/zarr.json").read_text().replace('"shape":[', '"shape":[1')
    ),
    "meta unreadable": lambda path: (path / "meta.json").write_text("{"),
    "meta of another format": lambda path: (path / "meta.json").write_text('{"format": 0}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_on_opening(built, tmp_path, damage):
    with pytest.raises(InputError, match=r"missing|damaged|cannot read|has format 0, not 1"):
        open_store(damaged_copy(built, tmp_path, DAMAGES[damage]))


def test_a_flipped_bit_is_noticed_on_reading(built, tmp_path):
    def flip(path):
        content = bytearray((path / "train/c/0").read_bytes())
        content[100] ^= 1
        (path / "train/c/0").write_bytes(content)

    split = open_store(damaged_copy(built, tmp_path, flip)).split("train")
    with pytest.raises(InputError, match="split train is damaged"):
        split.read(np.array([10]), 300)


def test_missing_tokenizer_file(corpus, tmp_path):
    build(corpus, tmp_path / "store", "bpe:320")
    (tmp_path / "store" / "tokenizer.model").unlink()
    with pytest.raises(InputError, match="its tokenizer file is missing"):
        load_tokenizer(tmp_path / "store")


def test_progress_counts_up_to_the_totals(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 5000)
    calls = []
    meta = build(corpus, tmp_path / "store", progress=lambda *counts: calls.append(counts))
    assert len(calls) > 5
    assert all(a < b for a, b in itertools.pairwise(calls))
    splits = meta["splits"].values()
    assert calls[-1] == tuple(sum(s[key] for s in splits) for key in ("documents", "bytes", "tokens"))

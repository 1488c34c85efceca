"""The token store: its tokens against a plain numpy account of the text, kills at every write, damage."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.config import InputError
from jaxlab.data import bucket
from jaxlab.data import prepare as preparing
from jaxlab.data import store as storing
from jaxlab.data.corpus import Document
from jaxlab.data.prepare import prepare
from jaxlab.data.store import CHECKED, load_tokenizer, open_store
from jaxlab.data.tokenizer import make_tokenizer
from jaxlab.files import read_record

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


def test_a_tokenizer_is_trained_on_the_training_split_alone(corpus, tmp_path):
    meta = build(corpus, tmp_path / "store", "bpe:320", fraction=0.5)
    texts = expected_bytes("train", 0.5)[1]
    assert meta["tokenizer_sha256"] == make_tokenizer("bpe:320", texts).sha256
    assert meta["tokenizer_sha256"] != make_tokenizer("bpe:320", TEXTS.values()).sha256


def test_meta_data_say_where_the_tokens_came_from(corpus, built):
    meta = open_store(built).meta
    expected = {
        "format": 1, "source": f"files:{corpus}/*.txt", "tokenizer": "bytes", "validation_fraction": 0.1, "version": "",
        "licence": "not stated", "note": "", "vocab_size": 257, "eos": 256, "altered": 0,
        "tokenizer_sha256": hashlib.sha256(b"bytes").hexdigest(),
    }  # fmt: skip
    assert {key: meta[key] for key in expected} == expected
    files = files_of(built)
    assert meta["files"] == {
        path.as_posix(): hashlib.sha256(content).hexdigest()
        for path, content in files.items()
        if path.name != "meta.json"
    }


def test_a_store_whose_tokenizer_cut_its_texts_is_not_used(corpus, tmp_path):
    """As a version left it that obeyed what a tokenizer.json says of truncation."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator(TEXTS.values(), vocab_size=300, special_tokens=["</s>"], show_progress=False)
    (tmp_path / "t.json").write_text(model.to_str())
    store = tmp_path / "store"
    build(corpus, store, f"hf:{tmp_path}/t.json")
    as_older(store)
    open_store(store)
    model.enable_truncation(64)
    (store / "tokenizer.json").write_text(model.to_str())
    sha256 = hashlib.sha256((store / "tokenizer.json").read_bytes()).hexdigest()
    rewrite_meta(store, lambda meta: meta.update(tokenizer_sha256=sha256))
    with pytest.raises(InputError, match=r"tokenizer\.json truncates, pads or randomises texts"):
        open_store(store)


def test_large_vocabulary_is_stored_in_32_bits(tmp_path):
    folder = bucket.open_folder(tmp_path)
    assert storing.create_array(folder, "small", 1 << 16).dtype.numpy_dtype == np.uint16
    assert storing.create_array(folder, "large", (1 << 16) + 1).dtype.numpy_dtype == np.uint32


@pytest.mark.usefixtures("small_shards")
def test_shards_of_zeros_are_stored_too(tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.txt").write_text("\0" * 20000)
    build(tmp_path, tmp_path / "store", fraction=0.5)
    split = open_store(tmp_path / "store").split("train")
    assert np.count_nonzero(split.read(np.array([0]), split.num_tokens)) == split.num_tokens // 20001


def test_hash_by_hand():
    """sha256("abc") begins with ba7816bf8f01 (FIPS 180-2, appendix B.1)."""
    assert preparing._hash01("abc") == 0xBA7816BF8F01 / 2**48


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_both_splits_always_have_a_document(tmp_path, fraction):
    """At least one, and then the one of the smallest hash is validation, or the one of the largest is training."""
    names = ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt"]
    for name in names:
        (tmp_path / name).write_text(f"{name} text")
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert by_hash != names
    build(tmp_path, tmp_path / "store", fraction=fraction)
    alone, split = (by_hash[0], "validation") if fraction < 0.5 else (by_hash[-1], "train")
    others = [name for name in names if name != alone]
    for name, texts in ((split, [alone]), ({"train": "validation", "validation": "train"}[split], others)):
        opened = open_store(tmp_path / "store").split(name)
        tokens = opened.read(np.array([0]), opened.num_tokens)[0].tolist()
        assert tokens == [i for text in texts for i in [*f"{text} text".encode(), 256]]


def test_texts_are_tokenized_by_so_many_characters_at_once(monkeypatch):
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 10)
    sizes = [4, 6, 9, 1, 12, 3]
    batches = preparing._batches(Document(str(i), "é" * size) for i, size in enumerate(sizes))
    assert [[len(document.text) for document in batch] for batch in batches] == [[4, 6], [9, 1], [12], [3]]


def test_a_save_comes_with_every_shard_full_of_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "SHARD", 30)
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 1)
    for i in range(7):
        (tmp_path / f"{i}.txt").write_text("x" * 9)  # 10 tokens
    saves = []
    save = preparing._save
    monkeypatch.setattr(
        preparing, "_save", lambda *a: (saves.append(sum(len(i) for p in a[2].values() for i in p)), save(*a))[1]
    )
    build(tmp_path, tmp_path / "store", fraction=0.3)
    assert saves == [30, 30, 10]


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
    """All but the record of when they were last looked at."""
    return {p.relative_to(path): p.read_bytes() for p in Path(path).rglob("*") if p.is_file() and p.name != CHECKED}


def test_a_complete_store_is_left_alone(corpus, built):
    before = {p: os.stat(built / p).st_mtime_ns for p in files_of(built)}
    meta = build(corpus, built, progress=lambda *_: pytest.fail("work was done"))
    assert meta == read_record(built / "meta.json")
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
    monkeypatch.setattr(preparing, "write_json", lambda *a: (writes.append(a[1]), bucket.write_json(*a)))
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
    with pytest.raises(InputError, match=f"has {found}; must have two documents"):
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


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{folder}/001.txt", "{folder}/001.txt is a file, not a folder"),
        ("{folder}/001.txt/store", "{folder}/001.txt is a file, not a folder"),
        ("~nobody-of-this-name/store", "data.store=~nobody-of-this-name/store: "),
        ("nowhere://store", "data.store=nowhere://store: cannot be read"),
        ("", "data.store=: must name a file or a folder"),
        ("a\0b", "a path must be UTF-8 text without null characters"),
    ],
)
def test_a_path_that_can_be_no_store(corpus, path, message):
    path, message = path.format(folder=corpus), message.format(folder=corpus)
    for use in (open_store, load_tokenizer, lambda path: build(corpus, path)):
        with pytest.raises(InputError, match=message) as error:
            use(path)
        assert "\n" not in str(error.value)


def test_a_store_below_a_home_folder(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    build(corpus, "~/store")
    assert open_store("~/store").meta == open_store(tmp_path / "store").meta
    assert load_tokenizer("~/store").vocab_size == 257


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
    assert bucket.open_folder("gs://bucket/a/b").url == "gs://bucket/a/b/"


def test_a_bucket_that_does_not_answer_is_one_line(monkeypatch):
    """A port that takes connections and stays silent, as behind some firewalls."""
    monkeypatch.setattr(bucket, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/store"
        with pytest.raises(InputError, match=rf"^data\.store: {address}/meta\.json: cannot be read .Timeout") as error:
            open_store(address)
    assert "\n" not in str(error.value)


def test_retries_of_a_bucket_end_within_a_minute():
    """The first comes after a second, each later one after twice the time."""
    retries = bucket.open_folder("gs://bucket/a").spec(retain_context=True).to_json()["gcs_request_retries"]
    longest = int(retries["max_delay"].removesuffix("s"))
    assert sum(min(2**n, longest) for n in range(retries["max_retries"])) < 60
    assert bucket.PATIENCE < 60


def damaged_copy(built, tmp_path, damage, files=None):
    for name, content in (files or files_of(built)).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    damage(tmp_path)
    return tmp_path


DAMAGES = {
    "shard gone": (lambda path: (path / "train/c/0").unlink(), "train/c/0 is missing"),
    "shard cut": (lambda path: os.truncate(path / "train/c/0", 1000), "train/c/0 is damaged"),
    "shard empty": (lambda path: os.truncate(path / "train/c/0", 0), "train/c/0 is damaged"),
    "shard of the other split": (
        lambda path: (path / "train/c/0").write_bytes((path / "validation/c/0").read_bytes()),
        "train/c/0 is damaged",
    ),
    "array gone": (lambda path: (path / "train/zarr.json").unlink(), "train/zarr.json is missing"),
    "array of another length": (
        lambda path: (path / "train/zarr.json").write_text(
            (path / "train/zarr.json").read_text().replace('"shape":[', '"shape":[1')
        ),
        "train/zarr.json is damaged",
    ),
    "meta empty": (lambda path: (path / "meta.json").write_text(""), "meta.json: cannot be read"),
    "meta unreadable": (lambda path: (path / "meta.json").write_text("{"), "meta.json: cannot be read"),
    "meta binary": (lambda path: (path / "meta.json").write_bytes(b"\xff\xfe\0"), "meta.json: cannot be read"),
    "meta a list": (
        lambda path: (path / "meta.json").write_text("[]"),
        r"meta.json: holds \[\]; must be a JSON object",
    ),
    "meta a null": (lambda path: (path / "meta.json").write_text("null"), "meta.json: holds None"),
    "meta of another format": (lambda path: (path / "meta.json").write_text('{"format": 0}'), "has format 0, not 1"),
    "meta without splits": (
        lambda path: rewrite_meta(path, lambda meta: meta.pop("splits")),
        "meta.json: splits is missing",
    ),
    "meta with a split of nothing": (
        lambda path: rewrite_meta(path, lambda meta: meta["splits"]["train"].update(tokens=0)),
        "meta.json has a split without text",
    ),
    "meta gone": (lambda path: (path / "meta.json").unlink(), "has lost its meta.json"),
}


def rewrite_meta(path, change):
    """Changes meta.json and leaves it without a checksum, as older versions did."""
    meta = read_record(path / "meta.json")
    change(meta)
    (path / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_on_opening(built, tmp_path, damage):
    change, message = DAMAGES[damage]
    with pytest.raises(InputError, match=message) as error:
        open_store(damaged_copy(built, tmp_path, change))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_a_flipped_bit_is_noticed_on_reading(built, tmp_path):
    """In a bucket, whose files are not read through on opening; an address takes this folder for one."""
    damaged_copy(built, tmp_path, lambda path: flip(path / "train/c/0", 100))
    split = open_store(f"file://{tmp_path}").split("train")
    with pytest.raises(InputError, match=r"data\.store: split train is damaged .*train/c/0"):
        split.read(np.array([10]), 300)


def test_a_flipped_byte_in_any_file_is_named_or_harmless(corpus, tmp_path, monkeypatch):
    for name, value in SMALL.items():
        for module in (storing, preparing):
            monkeypatch.setattr(module, name, value, raising=False)
    path = tmp_path / "store"
    build(corpus, path, "bpe:320")

    def content(store):
        return [store.split(name).read(np.array([0]), 10**5).tolist() for name in storing.SPLITS]

    expected, meta = content(open_store(path)), open_store(path).meta
    draw, noticed = random.Random(0), set()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        before = file.read_bytes()
        for _ in range(12):
            flip(file, draw.randrange(len(before)), draw.randrange(8))
            try:
                store = open_store(path)
                assert (content(store), store.meta) == (expected, meta)
                assert load_tokenizer(path).sha256 == meta["tokenizer_sha256"]
            except InputError as error:
                assert file.relative_to(path).as_posix() in str(error)  # noqa: PT017
                noticed.add(file.name)
            file.write_bytes(before)
    assert noticed >= {"meta.json", "zarr.json", "tokenizer.model", "0", "1"}
    assert CHECKED not in noticed


def test_files_are_compared_once_and_again_when_they_change(built, tmp_path, monkeypatch):
    hash_files, compared = storing.hash_files, []
    monkeypatch.setattr(
        storing, "hash_files", lambda folder, names: (compared.append(set(names)), hash_files(folder, names))[1]
    )
    small, shards = {"train/zarr.json", "validation/zarr.json"}, {"train/c/0", "validation/c/0"}
    damaged_copy(built, tmp_path, lambda path: None)
    open_store(tmp_path)  # a copy has other times
    open_store(tmp_path)
    os.utime(tmp_path / "train/c/0")
    open_store(tmp_path)
    (tmp_path / CHECKED).write_text("{")
    open_store(tmp_path)
    assert compared == [small | shards, small, small | {"train/c/0"}, small | shards]


def test_what_was_just_prepared_is_not_compared_again(corpus, tmp_path, monkeypatch):
    build(corpus, tmp_path / "store")
    hash_files, compared = storing.hash_files, []
    monkeypatch.setattr(
        storing, "hash_files", lambda folder, names: (compared.extend(names), hash_files(folder, names))[1]
    )
    open_store(tmp_path / "store")
    assert sorted(compared) == ["train/zarr.json", "validation/zarr.json"]


def test_a_folder_that_cannot_be_written_is_compared_every_time(built, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(30, "Read-only file system")

    damaged_copy(built, tmp_path, lambda path: None)
    monkeypatch.setattr(storing, "write_record", refused)
    for _ in range(2):
        open_store(tmp_path)
    assert not (tmp_path / CHECKED).exists()
    flip(tmp_path / "validation/c/0", 7)
    with pytest.raises(InputError, match="validation/c/0 is damaged"):
        open_store(tmp_path)


def as_older(path):
    """Rewrites a store as a version left it that recorded no hashes and no checksum."""
    (path / CHECKED).unlink()
    rewrite_meta(path, lambda meta: [meta.pop(key) for key in ("files", "version", "altered")])


def test_a_store_of_an_older_version_opens_and_is_not_prepared_again(corpus, tmp_path):
    build(corpus, tmp_path / "store")
    expected = open_store(tmp_path / "store").split("train").read(np.array([0, 77]), 50)
    as_older(tmp_path / "store")
    before = files_of(tmp_path / "store")
    np.testing.assert_array_equal(open_store(tmp_path / "store").split("train").read(np.array([0, 77]), 50), expected)
    build(corpus, tmp_path / "store", progress=lambda *_: pytest.fail("work was done"))
    assert files_of(tmp_path / "store") == before
    (tmp_path / "store" / "train/c/0").unlink()
    with pytest.raises(InputError, match="files of the split train are missing"):
        open_store(tmp_path / "store")


@pytest.mark.parametrize(
    ("tokenizer", "change", "message"),
    [
        ("bytes", {"vocab_size": 256}, "meta.json says vocab_size 256, the tokenizer 257"),
        ("bpe:320", {"vocab_size": 321}, "meta.json says vocab_size 321, the tokenizer 320"),
        ("bpe:320", {"eos": 2}, "meta.json says eos 2, the tokenizer 1"),
        ("bpe:320", {"tokenizer_sha256": "0" * 64}, "tokenizer.model is damaged"),
    ],
)
def test_meta_data_of_an_older_version_is_compared_with_the_tokenizer(corpus, tmp_path, tokenizer, change, message):
    build(corpus, tmp_path / "store", tokenizer)
    as_older(tmp_path / "store")
    rewrite_meta(tmp_path / "store", lambda meta: meta.update(change))
    for opened in (open_store, load_tokenizer):
        with pytest.raises(InputError, match=message):
            opened(tmp_path / "store")


def test_an_id_that_the_tokenizer_does_not_have_is_damage(built):
    split = dataclasses.replace(open_store(built).split("train"), vocab_size=200)  # the text has bytes above
    with pytest.raises(InputError, match=r"split train holds id 2\d\d, of 200 ids in all"):
        split.read(np.array([0]), 5000)
    assert split.read(np.array([0]), 11).max() < 200


def test_preparing_a_damaged_store_names_the_file(corpus, tmp_path):
    build(corpus, tmp_path / "store")
    flip(tmp_path / "store" / "train/c/0", 1000)
    with pytest.raises(InputError, match="train/c/0 is damaged"):
        build(corpus, tmp_path / "store")


def interrupted_store(corpus, path, monkeypatch, saves, tokenizer="bpe:320"):
    """A store as a kill leaves it after so many saves."""
    save, calls = preparing._save, []

    def counted(*args):
        if len(calls) == saves:
            raise KeyboardInterrupt
        calls.append(save(*args))

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_save", counted)
        with pytest.raises(KeyboardInterrupt):
            build(corpus, path, tokenizer)


@pytest.mark.usefixtures("small_shards")
def test_a_flipped_byte_in_an_unfinished_store_is_named_or_harmless(corpus, tmp_path, monkeypatch):
    build(corpus, tmp_path / "whole", "bpe:320")
    interrupted_store(corpus, tmp_path / "store", monkeypatch, 3)
    expected, before = files_of(tmp_path / "whole"), files_of(tmp_path / "store")
    draw, harmless = random.Random(1), 0
    for name in ("prepare.json", "tokenizer.model", "train/zarr.json"):
        for _ in range(8):
            flip(tmp_path / "store" / name, draw.randrange(len(before[Path(name)])), draw.randrange(8))
            try:
                build(corpus, tmp_path / "store", "bpe:320")
                assert files_of(tmp_path / "store") == expected
                harmless += 1
            except InputError as error:
                assert name in str(error)  # noqa: PT017
            shutil.rmtree(tmp_path / "store")
            damaged_copy(tmp_path / "none", tmp_path / "store", lambda path: None, before)
    assert harmless < 12


def rewrite_state(path, change):
    state = read_record(path / "prepare.json")
    change(state)
    (path / "prepare.json").write_text(json.dumps(state))


def all_ones(path):
    """Tokens 65535 in the first chunk of the first shard, with sound checksums."""
    array = storing.create_array(bucket.open_folder(path), "train", 320)
    array[:512].write(np.full(512, 65535, np.uint16)).result()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "train/c/0").unlink(), "train/c/0 is missing"),
        (lambda path: (path / "train/c/1").unlink(), "train/c/1 is missing"),
        (lambda path: (path / "validation/c/0").unlink(), "validation/c/0 is missing"),
        (lambda path: shutil.rmtree(path / "train"), "train/c/0 is missing"),
        (lambda path: flip(path / "train/c/0", 1234), "train/c/0 is damaged"),
        (lambda path: flip(path / "validation/c/0", 99), "validation/c/0 is damaged"),
        (lambda path: os.truncate(path / "train/c/1", 700), "train/c/1 is damaged"),
        (lambda path: os.truncate(path / "train/c/0", 0), "train/c/0 is damaged"),
        (all_ones, r"train/c/0 is damaged \(it holds id 65535, of 320 ids in all"),
        (lambda path: (path / "tokenizer.model").unlink(), "tokenizer.model is missing"),
        (
            lambda path: rewrite_state(path, lambda state: state["splits"]["train"].pop("tokens")),
            "prepare.json: tokens is missing",
        ),
    ],
)
@pytest.mark.usefixtures("small_shards")
def test_damage_of_what_was_written_is_noticed_on_going_on(corpus, tmp_path, monkeypatch, damage, message):
    path = tmp_path / "store"
    interrupted_store(corpus, path, monkeypatch, 3)
    assert {"0", "1", "2"} <= set(os.listdir(path / "train/c"))
    damage(path)
    before = files_of(path)
    with pytest.raises(InputError, match=rf"{path}.*{message}") as error:
        build(corpus, path, "bpe:320")
    assert "\n" not in str(error.value)
    after = files_of(path)
    assert {name: after[name] for name in before} == before


@pytest.mark.usefixtures("small_shards")
def test_a_flipped_byte_in_any_shard_of_an_unfinished_store_is_named(corpus, tmp_path, monkeypatch):
    """Those of a save whose record was not written, too; and then the sound store goes on to the same bytes."""
    build(corpus, tmp_path / "whole", "bpe:320")
    path = tmp_path / "store"
    interrupted_store(corpus, path, monkeypatch, 2)
    record = (path / "prepare.json").read_bytes()
    shutil.rmtree(path)
    interrupted_store(corpus, path, monkeypatch, 4)
    (path / "prepare.json").write_bytes(record)
    before, draw = files_of(path), random.Random(2)
    for name in [name for name in before if "c" in name.parts]:
        flip(path / name, draw.randrange(len(before[name])), draw.randrange(8))
        with pytest.raises(InputError, match=f"{name} is damaged"):
            build(corpus, path, "bpe:320")
        (path / name).write_bytes(before[name])
    build(corpus, path, "bpe:320")
    assert files_of(path) == files_of(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_a_full_disk_is_one_line_and_the_same_call_goes_on(corpus, tmp_path):
    """A limit on the size of files, which the system enforces as it does that of a disk."""
    build(corpus, tmp_path / "whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"store/train: cannot be written .* the same command goes on") as error:
            build(corpus, tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert (tmp_path / "store" / "prepare.json").exists()
    build(corpus, tmp_path / "store")
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_trouble_of_a_disk_while_reading_leaves_what_was_done(corpus, tmp_path, monkeypatch):
    build(corpus, tmp_path / "whole")
    opened = Path.open

    def failing(path, *args):
        if path.name == "149.txt" and args == ("rb",) and (tmp_path / "store" / "train").exists():
            raise OSError(5, "Input/output error")
        return opened(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        with pytest.raises(InputError, match=r"149\.txt: cannot be read .*Input/output"):
            build(corpus, tmp_path / "store")
    calls = []
    build(corpus, tmp_path / "store", progress=lambda *counts: calls.append(counts))
    assert calls[0][0] > 50  # documents: it did not begin again
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_tokenizer_of_somebody_else_is_not_overwritten(corpus, tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match="the folder holds something else"):
        build(corpus, tmp_path, "bpe:320")
    assert files_of(tmp_path) == {Path(name): b"precious"}


def test_texts_that_a_tokenizer_does_not_give_back_are_counted(corpus, tmp_path):
    """A model without bytes to fall back on that has never seen letters from far away."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Chapter words and more 0123456789"] * 50), model_writer=model, vocab_size=40,
        model_type="char", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "m.model").write_bytes(model.getvalue())
    for name, text in {"a": "Chapter more", "b": "words 東京", "c": "and words", "d": "two  spaces"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    meta = build(tmp_path, tmp_path / "store", f"spm:{tmp_path}/m.model", fraction=0.5)
    assert meta["altered"] == 2  # 東京 is unknown; two spaces become one
    assert build(corpus, tmp_path / "exact", "bpe:320")["altered"] == 0


def test_missing_tokenizer_file(corpus, tmp_path):
    build(corpus, tmp_path / "store", "bpe:320")
    (tmp_path / "store" / "tokenizer.model").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.model is missing"):
        load_tokenizer(tmp_path / "store")


def test_progress_counts_up_to_the_totals(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 5000)
    calls = []
    meta = build(corpus, tmp_path / "store", progress=lambda *counts: calls.append(counts))
    assert len(calls) > 5
    assert all(a < b for a, b in itertools.pairwise(calls))
    splits = meta["splits"].values()
    assert calls[-1] == tuple(sum(s[key] for s in splits) for key in ("documents", "bytes", "tokens"))


def test_a_folder_with_one_split_alone_has_lost_its_meta_data(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "zarr.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds something else than a token store, or has lost its meta\.json"):
        open_store(tmp_path)

"""Tokenizers: exact round trips of any Unicode text, fixed vocabularies, and errors that name the spec."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.config import InputError
from jaxlab.data.tokenizer import load, make_tokenizer

TEXTS = [f"The number {i} of {i * 7919 % 1000} things: naïve café, 東京, {i * 31 % 97}." for i in range(400)]
BPE = make_tokenizer("bpe:320", TEXTS)
BYTES = make_tokenizer("bytes", ())

# Any text, and often what sentencepiece treats specially: its space mark, its pieces, white space, controls.
special = st.sampled_from(["\u2581", "</s>", "<unk>", "<0x41>", "  ", "\t\r\n", "\x00", "\ufeff"])
anything = st.lists(special | st.text(), max_size=8).map("".join)


@given(anything)
def test_bpe_round_trip_is_exact(text):
    (ids,) = BPE.encode([text])
    assert BPE.decode(ids) == text
    assert BPE.eos not in ids
    assert all(0 <= i < BPE.vocab_size for i in ids)


@given(anything)
def test_bytes_are_utf8(text):
    (ids,) = BYTES.encode([text])
    assert bytes(ids.tolist()) == text.encode()
    assert BYTES.decode(ids) == text


def test_sizes_and_special_ids():
    assert (BYTES.vocab_size, BYTES.eos) == (257, 256)
    assert (BPE.vocab_size, BPE.eos) == (320, 1)
    assert BPE.encode(["a", ""])[1].shape == (0,)
    assert BPE.encode(["a"])[0].dtype == np.int32


def test_decode_drops_padding_and_eos():
    for tokenizer in (BPE, BYTES):
        (ids,) = tokenizer.encode(["two words"])
        assert tokenizer.decode([tokenizer.eos, *ids, tokenizer.eos, -1, -1]) == "two words"


def test_training_is_deterministic_and_sees_the_text():
    assert make_tokenizer("bpe:320", iter(TEXTS)).sha256 == BPE.sha256
    assert make_tokenizer("bpe:320", [text.upper() for text in TEXTS]).sha256 != BPE.sha256
    assert len(BPE.encode([" things: naïve café"])[0]) <= 4  # repeated in every text
    assert len(BYTES.encode([" things: naïve café"])[0]) == 21


def test_a_long_document_counts_in_training():
    """Sentencepiece by default leaves out every sentence of more than 4,192 bytes."""
    long = make_tokenizer("bpe:280", ["short words only " * 5, "zyxwv " * 2000])
    assert len(long.encode(["zyxwv"])[0]) == 1


def test_digits_are_separate_pieces():
    years = make_tokenizer("bpe:270", ["in 2024 or 2025 "] * 100)
    assert len(years.encode(["2024"])[0]) == 4
    assert len(years.encode([" or "])[0]) <= 2


def test_a_copy_of_the_file_is_the_same_tokenizer(tmp_path):
    name, content = BPE.file
    assert name == "tokenizer.model"
    (tmp_path / "my.model").write_bytes(content)
    given_model = make_tokenizer(f"spm:{tmp_path}/my.model", ())
    assert (given_model.vocab_size, given_model.eos, given_model.sha256) == (320, 1, BPE.sha256)
    assert given_model.encode(TEXTS[:1])[0].tolist() == load("bpe:320", content).encode(TEXTS[:1])[0].tolist()


def hugging_face_file(path, special_tokens):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator(TEXTS, vocab_size=400, special_tokens=special_tokens, show_progress=False)
    model.save(str(path))
    return model


def test_hugging_face_file(tmp_path):
    oracle = hugging_face_file(tmp_path / "t.json", ["<|endoftext|>"])
    tokenizer = make_tokenizer(f"hf:{tmp_path}/t.json", ())
    assert (tokenizer.vocab_size, tokenizer.eos) == (400, oracle.token_to_id("<|endoftext|>"))
    (ids,) = tokenizer.encode(TEXTS[:1])
    assert ids.tolist() == oracle.encode(TEXTS[0]).ids
    assert tokenizer.decode([*ids, tokenizer.eos, -1]) == TEXTS[0]


def test_hugging_face_file_that_adds_special_ids(tmp_path):
    model = hugging_face_file(tmp_path / "t.json", ["</s>"])
    content = json.loads(model.to_str())
    special = {"id": "</s>", "ids": [0], "tokens": ["</s>"]}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": special},
    }
    (tmp_path / "t.json").write_text(json.dumps(content))
    (ids,) = make_tokenizer(f"hf:{tmp_path}/t.json", ()).encode(["text"])
    assert ids.tolist() == model.encode("text").ids


def test_hugging_face_file_without_a_separator(tmp_path):
    hugging_face_file(tmp_path / "t.json", [])
    with pytest.raises(InputError, match=r"has none of <\|endoftext"):
        make_tokenizer(f"hf:{tmp_path}/t.json", ())


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "t.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"needs the package tokenizers: pip install 'jaxlab\[interop\]'"):
        make_tokenizer(f"hf:{tmp_path}/t.json", ())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bpe", "unknown|vocabulary size"),
        ("bpe:4k", "'bpe:4k': N must be a vocabulary size, as in bpe:4096"),
        ("bpe:100", "'bpe:100': the characters of the training text need a vocabulary of at least"),
        ("bpe:90000", "'bpe:90000': the training text has pieces for a vocabulary of at most"),
        ("words", "'words' is unknown; allowed: bytes, bpe:N, spm:PATH, hf:PATH"),
        ("bytes:3", "'bytes:3' is unknown"),
        ("spm:", "'spm:' is unknown"),
        ("spm:/no/such.model", "there is no file /no/such.model"),
        (f"spm:{__file__}", "not a sentencepiece model"),
        (f"hf:{__file__}", "not a tokenizer.json"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(InputError, match=message):
        make_tokenizer(spec, TEXTS)

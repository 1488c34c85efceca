"""Tokenizers: exact round trips of any Unicode text, fixed vocabularies, and errors that name the spec."""

import hashlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.config import InputError
from jaxlab.data import tokenizer as tokenizing
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


def test_the_separator_is_that_of_gpt2_where_there_are_several(tmp_path):
    oracle = hugging_face_file(tmp_path / "t.json", ["[EOS]", "</s>", "<|endoftext|>"])
    assert make_tokenizer(f"hf:{tmp_path}/t.json", ()).eos == oracle.token_to_id("<|endoftext|>") == 2


def test_bytes_that_are_no_text_are_shown_as_such():
    assert BYTES.decode([97, 255, 256, -1, 98]) == "a\ufffdb"


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


SETTINGS = {
    "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 100}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    },
    "dropout": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("names", [("truncation",), ("padding",), ("dropout",), tuple(SETTINGS)])
def test_settings_that_are_no_vocabulary_are_taken_out(tmp_path, names):
    oracle = hugging_face_file(tmp_path / "t.json", ["<|endoftext|>"])
    content = json.loads((tmp_path / "t.json").read_text())
    for name in names:
        (content["model"] if name == "dropout" else content)[name] = SETTINGS[name]
    (tmp_path / "t.json").write_text(json.dumps(content))
    tokenizer = make_tokenizer(f"hf:{tmp_path}/t.json", ())
    texts = TEXTS[:20]
    expected = [e.ids for e in oracle.encode_batch(texts)]
    for _ in range(2):
        assert [ids.tolist() for ids in tokenizer.encode(texts)] == expected
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(texts)] == texts
    name, kept = tokenizer.file
    assert tokenizer.sha256 == hashlib.sha256(kept).hexdigest()
    kept = json.loads(kept)
    assert (kept["truncation"], kept["padding"], kept["model"]["dropout"]) == (None, None, None)
    assert kept["model"]["vocab"] == content["model"]["vocab"]
    assert kept["added_tokens"] == content["added_tokens"]
    assert load(f"hf:{tmp_path}/t.json", tokenizer.file[1]).sha256 == tokenizer.sha256


def test_a_file_without_such_settings_stays_as_it_is(tmp_path):
    hugging_face_file(tmp_path / "t.json", ["<|endoftext|>"])
    content = (tmp_path / "t.json").read_bytes()
    tokenizer = make_tokenizer(f"hf:{tmp_path}/t.json", ())
    assert tokenizer.file == ("tokenizer.json", content)
    assert tokenizer.sha256 == hashlib.sha256(content).hexdigest()


def test_the_name_of_a_special_token_in_a_text_is_text(tmp_path):
    hugging_face_file(tmp_path / "t.json", ["<|endoftext|>"])
    tokenizer = make_tokenizer(f"hf:{tmp_path}/t.json", ())
    text = "The <|endoftext|> of things"
    (ids,) = tokenizer.encode([text])
    assert tokenizer.eos not in ids
    assert tokenizer.decode(ids) == text


def test_a_text_that_would_hold_the_separator_is_refused(tmp_path):
    hugging_face_file(tmp_path / "t.json", ["<|endoftext|>"])
    content = json.loads((tmp_path / "t.json").read_text())
    content["added_tokens"][0]["special"] = False
    tokenizer = load("hf:t.json", json.dumps(content).encode())
    with pytest.raises(InputError, match=r"'hf:t\.json': finds the end of a document \(id 0\) in 'a <\|endof"):
        tokenizer.encode(["sound", "a <|endoftext|> b"])


def sentencepiece_file(texts, **options):
    model = io.BytesIO()
    options = {"model_type": "bpe", "vocab_size": 320, "byte_fallback": True, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **options)
    return model.getvalue()


def test_only_what_gives_back_every_text_is_called_exact(tmp_path):
    hugging_face_file(tmp_path / "t.json", ["</s>"])
    assert BPE.exact
    assert BYTES.exact
    assert not make_tokenizer(f"hf:{tmp_path}/t.json", ()).exact
    assert not load("spm:x", sentencepiece_file(TEXTS)).exact


def test_a_sentencepiece_model_without_a_separator():
    with pytest.raises(InputError, match="'spm:x': the model has no end-of-sentence id"):
        load("spm:x", sentencepiece_file(TEXTS, eos_id=-1))


def test_training_counts_bytes():
    """Of texts of 3 bytes a character the first that pass the limit are the last: 2 x 30 bytes for a limit of 40."""
    assert list(tokenizing._first_bytes(["東" * 10, "京" * 10, "都" * 10], 40)) == ["東" * 10, "京" * 10]
    assert list(tokenizing._first_bytes(["a" * 10, "b" * 30, "c"], 40)) == ["a" * 10, "b" * 30]
    assert list(tokenizing._first_bytes(["a" * 10, "b" * 29, "c", "d"], 40)) == ["a" * 10, "b" * 29, "c"]


def test_training_stops_at_the_limit(monkeypatch):
    monkeypatch.setattr(tokenizing, "TRAINING_BYTES", 40)
    first = make_tokenizer("bpe:261", ["ab" * 20, "cd" * 20])
    assert first.sha256 == make_tokenizer("bpe:261", ["ab" * 20]).sha256


LONG_WORD = """
import random
from jaxlab.data.tokenizer import load, train_bpe
word = "".join(random.Random(0).choices("abcdefghij", k=70_000))
tokenizer = load("bpe:300", train_bpe([" short words" * 50, word], 300))
assert tokenizer.decode(tokenizer.encode([word])[0]) == word
"""


def test_a_word_of_70_000_characters():
    """In a process of its own: versions of sentencepiece before 0.2.3 end it."""
    subprocess.run([sys.executable, "-c", LONG_WORD], check=True)


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
        ("bpe:4k", "'bpe:4k': N must be a vocabulary size above 257 .*, as in bpe:4096"),
        ("bpe:260", "'bpe:260': the characters of the training text need a vocabulary of at least"),
        ("bpe:90000", "'bpe:90000': the training text has pieces for a vocabulary of at most"),
        ("bpe:" + "9" * 5000, "N must be a vocabulary size"),
        ("bpe:0", "'bpe:0': N must be a vocabulary size above 257"),
        ("bpe:1", "'bpe:1': N must be a vocabulary size above 257"),
        ("bpe:257", "'bpe:257': N must be a vocabulary size above 257"),
        ("spm:~nobody-of-this-name/x", "data.tokenizer=~nobody-of-this-name/x"),
        ("hf:gs://bucket/t.json", "data.tokenizer=gs://bucket/t.json: must be on a disk"),
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


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"<html></html>", b"[]", b"null", b"{}", b'{"model": 3}', b'{"model": {}}',
        b"[" * 5000 + b"]" * 5000, b'{"model": {"type": "BPE", "vocab": {"\\ud800": 0}, "merges": []}}',
        b'{"model": {"type": "BPE", "vocab": {"a": ' + b"9" * 5000 + b'}, "merges": []}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["hf", "spm"])
def test_what_is_no_model_is_one_line(kind, content):
    with pytest.raises(InputError, match=f"data.tokenizer='{kind}:x'") as error:
        load(f"{kind}:x", content)
    assert "\n" not in str(error.value)


def test_a_damaged_sentencepiece_model_is_one_line():
    """Its name of a piece is then no UTF-8, nor is what the library says of it."""
    content = BPE.file[1].replace(b"<0x41>", b"<0\xff41>")
    with pytest.raises(InputError, match=r"data\.tokenizer='spm:x': not a sentencepiece model"):
        load("spm:x", content)


def words(model):
    """A tokenizer.json that splits a text at its spaces."""
    return json.dumps({"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": model}).encode()


VOCABULARY = {"a": 0, "</s>": 1}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "[UNK]"}, "Missing .UNK. token"),
        (
            {
                "type": "WordPiece", "vocab": VOCABULARY, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 9,
            },
            "Missing .UNK. token",
        ),
        ({"type": "BPE", "vocab": VOCABULARY, "merges": [], "unk_token": "[UNK]"}, "Unk token `.UNK.` not found"),
        ({"type": "Unigram", "vocab": [["a", -1.0], ["</s>", -1.0]], "unk_id": None}, "`unk_id` is missing"),
    ],
)  # fmt: skip
def test_a_text_that_a_model_cannot_encode_is_one_line(model, reason):
    pytest.importorskip("tokenizers")
    tokenizer = load("hf:x", words(model))
    assert [ids.tolist() for ids in tokenizer.encode(["a a"])] == [[0, 0]]
    with pytest.raises(InputError, match=rf"data\.tokenizer='hf:x': .*{reason}") as error:
        tokenizer.encode(["a b"])
    assert "\n" not in str(error.value)


def test_ids_that_32_bits_do_not_hold_are_refused():
    pytest.importorskip("tokenizers")
    model = {"type": "WordLevel", "vocab": {"a": 2**31 - 1, "</s>": 1}, "unk_token": "a"}
    assert load("hf:x", words(model)).encode(["a"])[0].tolist() == [2147483647]
    model["vocab"]["a"] += 1
    with pytest.raises(InputError, match=r"data\.tokenizer='hf:x': has the id 2147483648; .* below 2147483648"):
        load("hf:x", words(model))

"""Exported tokenizers give the ids that ours give; the library `tokenizers` reads them."""

import io
import json
import random
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.data.tokenizer import load, train_bpe
from jaxlab.interop.tokenizer import check_tokenizer, tokenizer_files

library = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
SYLLABLES = (
    "the",
    "ra",
    "in",
    "18",
    "fell",
    "ly",
    "on",
    "pla",
    "é",
    "sang",
    ",",
    "7",
    "日本",
    "“",
    "”",
    "ing",
    "o",
    "st",
)
HARD = (
    "", " ", "  two  spaces", "tab\tnewline\n\n carriage\r\n", "1234567890 12,000.50", "e\u0301 é ﬁ ½ ①",
    "🙂 日本語 Ω", "\u2581", "a\u2581b \u2581 c", "</s> <unk> <0x41> <s>", "a" * 70, " " * 33, "-" * 41, "ababab" * 9,
    "\u200b\ufeff", "\x00\x01",
)  # fmt: skip


def sentences(seed: int) -> list[str]:
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randrange(1, 4))) for _ in range(100)]
    return [" ".join(draw.choices(words, k=30)) for _ in range(300)]


@pytest.fixture(scope="module")
def model():
    return train_bpe(sentences(0), 420)


def texts() -> list[str]:
    """Random strings over characters that matter, and what is hard."""
    draw = random.Random(1)
    letters = "aabbe  \n\t01 é日🙂\u2581</s>-" + "".join(SYLLABLES)
    return [*HARD, *("".join(draw.choices(letters, k=draw.randrange(1, 60))) for _ in range(2_000))]


def exported(tokenizer):
    content = tokenizer_files(tokenizer, 64)["tokenizer.json"]
    found = library.Tokenizer.from_buffer(content)
    found.encode_special_tokens = True  # tokenizer_config.json says so to transformers: split_special_tokens
    return found


def assert_same_ids(tokenizer, lines):
    found = exported(tokenizer)
    ours = tokenizer.encode(lines)
    theirs = found.encode_batch(lines)
    for line, a, b in zip(lines, ours, theirs, strict=True):
        assert a.tolist() == b.ids, line
        assert found.decode(b.ids) == tokenizer.decode(a), line


@pytest.mark.parametrize("spec", ["bytes", "bpe:420"])
def test_same_ids(spec, model):
    assert_same_ids(load(spec, None if spec == "bytes" else model), texts())


def lines_of_books() -> list[str]:
    archive = SHARED / "classic_books.tar.xz"
    if not archive.exists():
        pytest.skip("no classic_books.tar.xz beside the repository")
    with tarfile.open(archive) as books:
        first = [books.extractfile(member).read().decode() for member in books if member.name.endswith(".md")][:3]
    return [line for book in first for line in book.splitlines() if line]


@pytest.mark.slow
def test_same_ids_on_books():
    lines = lines_of_books()
    picked = np.random.default_rng(0).choice(len(lines), 1_000, replace=False)
    tokenizer = load("bpe:1024", train_bpe(lines[:4_000], 1_024))
    assert_same_ids(tokenizer, [lines[i] for i in picked])


def foreign(**options) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    rules = {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "normalization_rule_name": "identity"}
    rules |= {"remove_extra_whitespaces": False, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences(0)), model_writer=model, **rules)
    return model.getvalue()


def test_a_model_that_puts_a_space_in_front():
    """As LLaMA's; then a text of the space mark is a text of a space, also there."""
    assert_same_ids(load("spm:model", foreign(add_dummy_prefix=True)), texts())


FOREIGN = (
    ({"model_type": "unigram", "hard_vocab_limit": False}, "is no BPE"),
    ({"byte_fallback": False, "vocab_size": 120}, "has no bytes to fall back on"),
    ({"normalization_rule_name": "nmt_nfkc"}, "normalises its text (nmt_nfkc)"),
    ({"remove_extra_whitespaces": True}, "removes spaces"),
    ({"user_defined_symbols": ["rain"]}, "has symbols of its user"),
)


@pytest.mark.parametrize(("options", "message"), FOREIGN)
def test_rules_that_cannot_be_followed_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(f"data.tokenizer='spm:model': {message}")):
        tokenizer_files(load("spm:model", foreign(**options)), 64)


def test_a_tokenizer_of_hugging_face_adds_nothing_around_a_text():
    vocab = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
    given = library.Tokenizer(library.models.BPE(vocab=vocab, merges=[("a", "b")]))
    given.add_special_tokens(["<|endoftext|>"])
    given.post_processor = library.processors.TemplateProcessing("<|endoftext|> $0", None, [("<|endoftext|>", 0)])
    tokenizer = load("hf:tokenizer.json", given.to_str().encode())
    files = tokenizer_files(tokenizer, 64)
    assert (
        library.Tokenizer.from_buffer(files["tokenizer.json"]).encode("abba").ids
        == tokenizer.encode(["abba"])[0].tolist()
    )
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<|endoftext|>"


def test_the_wrong_tokenizer_is_noticed(model, tmp_path):
    for name, content in tokenizer_files(load("bpe:420", model), 64).items():
        (tmp_path / name).write_bytes(content)
    check_tokenizer(load("bpe:420", model), tmp_path)
    with pytest.raises(InputError, match=r"tokenizer bytes: its id 0 is '<0x00>', which in .* is '<unk>': it is not"):
        check_tokenizer(load("bytes", None), tmp_path)
    other = train_bpe(sentences(1), 420)
    with pytest.raises(InputError, match="it is not the tokenizer of this checkpoint"):
        check_tokenizer(load("bpe:420", other), tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    check_tokenizer(load("bytes", None), tmp_path)  # nothing to compare with

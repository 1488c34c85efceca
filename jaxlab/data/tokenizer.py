"""Tokenizers named by a string: bytes, a sentencepiece BPE trained on the corpus, or a given model file."""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlab.config import InputError
from jaxlab.files import local, need, parse_json, reading

SPECS = "bytes, bpe:N, spm:PATH, hf:PATH"
TRAINING_BYTES = 200_000_000  # a larger corpus trains the BPE on its first 200 MB: more changes little
SPACE_MARK = "\u2581"  # sentencepiece's symbol for a space; as a character of a text it would decode to a space
EOS_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|eos|>", "[EOS]")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as two functions and the numbers that identify it.

    encode: texts -> one int32 array of ids for each, without special tokens; a text always gets the same ids. The name
    of a special token inside a text is ordinary text. Raises InputError for a text whose ids would contain `eos`.
    decode: ids (any integer sequence) -> text; padding (negative ids) and `eos` are dropped.
    exact: whether decode(encode(text)) == text for every text. eos: the id between documents, also the first input.
    file: (name, content) of the model file to save beside the tokens, if there is one; `sha256` is its hash.
    """

    spec: str
    vocab_size: int
    eos: int
    sha256: str
    encode: Callable[[list[str]], list[np.ndarray]]
    decode: Callable[[Sequence[int]], str]
    exact: bool = False
    file: tuple[str, bytes] | None = None


def check_spec(spec: str) -> None:
    """Raises InputError unless `spec` is a tokenizer spec whose file, if it names one, exists."""
    kind, _, rest = spec.partition(":")
    if kind == "bpe":
        if not (rest.isdecimal() and len(rest) < 10 and int(rest) > 257):
            raise InputError(
                f"data.tokenizer={spec!r}: N must be a vocabulary size above 257 (the bytes, <unk> and </s>), "
                "as in bpe:4096"
            )
    elif kind in ("spm", "hf") and rest:
        if not local(rest, "data.tokenizer").is_file():
            raise InputError(f"data.tokenizer={spec!r}: there is no file {rest}")
    elif spec != "bytes":
        raise InputError(f"data.tokenizer={spec!r} is unknown; allowed: {SPECS}")


def make_tokenizer(spec: str, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that `spec` names; `texts` only trains `bpe:N`. InputError for a bad spec."""
    check_spec(spec)
    kind, _, rest = spec.partition(":")
    if kind == "bytes":
        return load(spec, None)
    if kind == "bpe":
        return load(spec, train_bpe(texts, int(rest)))
    path = local(rest, "data.tokenizer")
    with reading(path):
        content = path.read_bytes()
    return load(spec, content)


def load(spec: str, content: bytes | None) -> Tokenizer:
    """The tokenizer of `spec` from the content of its model file (None for bytes). Raises InputError for a bad one.

    Settings of a tokenizer.json that truncate texts, pad them or make their ids random are removed (see `_clean`);
    `file` and `sha256` are those of the result.
    """
    kind = spec.partition(":")[0]
    if kind == "bytes":
        return _bytes_tokenizer()
    return _hugging_face(spec, content) if kind == "hf" else _sentencepiece(spec, content)


def _bytes_tokenizer() -> Tokenizer:
    def encode(texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def decode(ids):
        return bytes(i for i in np.asarray(ids).tolist() if 0 <= i < 256).decode(errors="replace")

    return Tokenizer("bytes", 257, 256, hashlib.sha256(b"bytes").hexdigest(), encode, decode, exact=True)


def train_bpe(texts: Iterable[str], vocab_size: int) -> bytes:
    """A sentencepiece BPE model with `vocab_size` ids, 256 bytes, <unk> and </s> included; deterministic.

    It has byte fallback and no normalisation, so decode(encode(text)) == text for every text. Raises InputError when
    the text has too few pieces for that many ids, or too many characters.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_first_bytes(texts, TRAINING_BYTES),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            max_sentence_length=1 << 30,  # a document is one sentence; longer ones would be skipped silently
            num_threads=2,  # is stored in the model file, so a fixed number keeps the file's hash the same
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(f"data.tokenizer='bpe:{vocab_size}': {_training_advice(str(error))}") from error
    return model.getvalue()


def _first_bytes(texts: Iterable[str], limit: int):
    for text in texts:
        yield text
        limit -= len(text.encode())
        if limit <= 0:
            return


def _training_advice(error: str) -> str:
    if most := re.search(r"set it to a value <= (\d+)", error):
        return f"the training text has pieces for a vocabulary of at most {most[1]}"
    if least := re.search(r"(\d+) vs (\d+)", error):
        return f"the characters of the training text need a vocabulary of at least {least[2]}"
    return error.splitlines()[0]


def _sentencepiece(spec: str, content: bytes) -> Tokenizer:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    with reading(f"data.tokenizer={spec!r}: not a sentencepiece model"):
        model.LoadFromSerializedProto(content)
    if model.eos_id() < 0:
        raise InputError(f"data.tokenizer={spec!r}: the model has no end-of-sentence id")
    # Models that we trained encode the space mark as bytes; other models keep their own rules.
    ours = spec.startswith("bpe")

    def encode(texts):
        encoded = model.encode(texts)
        for i, text in enumerate(texts):
            if ours and SPACE_MARK in text:
                encoded[i] = _spell_mark(model, text)
        return [np.asarray(ids, np.int32) for ids in encoded]

    def decode(ids):
        return model.decode([i for i in np.asarray(ids).tolist() if i >= 0])

    file = ("tokenizer.model", content)
    digest = hashlib.sha256(content).hexdigest()
    return Tokenizer(spec, model.vocab_size(), model.eos_id(), digest, encode, decode, ours, file)


def _spell_mark(model, text: str) -> list[int]:
    mark = [model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
    first, *rest = (model.encode(part) for part in text.split(SPACE_MARK))
    return first + [i for part in rest for i in mark + part]


def _hugging_face(spec: str, content: bytes) -> Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            f"data.tokenizer={spec!r} needs the package tokenizers: pip install 'jaxlab[interop]'"
        ) from error
    content = _clean(spec, content)
    with reading(f"data.tokenizer={spec!r}: not a tokenizer.json"):
        model = tokenizers.Tokenizer.from_buffer(content)
    eos = next((i for i in map(model.token_to_id, EOS_NAMES) if i is not None), None)
    if eos is None:
        raise InputError(f"data.tokenizer={spec!r}: has none of {', '.join(EOS_NAMES)} to separate documents")
    model.encode_special_tokens = True  # as text: a document that contains the separator's name stays whole

    def encode(texts):
        with reading(f"data.tokenizer={spec!r}: a text"):  # for example one with a character that the model lacks
            encoded = [np.asarray(e.ids, np.int32) for e in model.encode_batch_fast(texts, add_special_tokens=False)]
        for text, ids in zip(texts, encoded, strict=True):
            if eos in ids:  # the text has the token's name, and the file does not mark the token as special
                raise InputError(f"data.tokenizer={spec!r}: finds the end of a document (id {eos}) in {text[:60]!r}")
        return encoded

    def decode(ids):
        ids = [i for i in np.asarray(ids).tolist() if i >= 0 and i != eos]
        return model.decode(ids, skip_special_tokens=False)

    vocab_size = max(model.get_vocab(with_added_tokens=True).values()) + 1
    if vocab_size > 1 << 31:
        raise InputError(f"data.tokenizer={spec!r}: has the id {vocab_size - 1}; ids must be below {1 << 31}")
    file = ("tokenizer.json", content)
    return Tokenizer(spec, vocab_size, eos, hashlib.sha256(content).hexdigest(), encode, decode, file=file)


def _clean(spec: str, content: bytes) -> bytes:
    """A tokenizer.json without truncation, padding and BPE dropout; unchanged if it has none of them.

    These settings are left over from training some model. They would lose text, store padding as text, or give a text
    different ids each time.
    """
    where = f"data.tokenizer={spec!r}: not a tokenizer.json"
    parsed = need(parse_json(content, where), where, model=dict)
    settings = [(parsed, "truncation"), (parsed, "padding"), (parsed["model"], "dropout")]
    settings = [(part, key) for part, key in settings if part.get(key)]
    for part, key in settings:
        part[key] = None
    return json.dumps(parsed, ensure_ascii=False).encode() if settings else content

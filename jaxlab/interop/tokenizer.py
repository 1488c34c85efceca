"""Our tokenizers as files in the format of transformers, which give every text the same ids."""

import json
from pathlib import Path

from jaxlab.config import InputError
from jaxlab.data.tokenizer import SPACE_MARK, Tokenizer
from jaxlab.files import parse_json, reading

EOS = "</s>"
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def tokenizer_files(tokenizer: Tokenizer, context: int) -> dict[str, bytes]:
    """{file name: content} of tokenizer.json and tokenizer_config.json, for a model that takes `context` tokens.

    Raises InputError for a sentencepiece model whose rules a tokenizer.json cannot express.
    """
    kind = tokenizer.spec.partition(":")[0]
    if kind == "hf":
        content = json.loads(tokenizer.file[1])
        # The model was not trained with the tokens that it adds at the beginning or end of a text.
        content["post_processor"] = None
        eos = next(token for token, i in vocabulary(content).items() if i == tokenizer.eos)
    elif kind == "bytes":
        content, eos = _bpe(BYTES | {EOS: tokenizer.eos}, []), EOS
    else:
        content, eos = _sentencepiece(tokenizer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # the name of a special token in a text is ordinary text
    }
    files = {"tokenizer.json": content, "tokenizer_config.json": config}
    return {name: json.dumps(content, indent=2, ensure_ascii=False).encode() for name, content in files.items()}


def check_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Raises InputError if the tokenizer.json of `folder`, where there is one, has other tokens for the same ids."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return
    with reading(path):
        theirs = {i: token for token, i in vocabulary(parse_json(path.read_bytes(), path)).items()}
    ours = vocabulary(json.loads(tokenizer_files(tokenizer, 0)["tokenizer.json"]))
    for token, i in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(i) != token:
            raise InputError(
                f"tokenizer {tokenizer.spec}: its id {i} is {token!r}, which in {path} is {theirs.get(i)!r}: "
                "it is not the tokenizer of this checkpoint"
            )


def vocabulary(content: dict) -> dict[str, int]:
    """{token: id} of a tokenizer.json, with sentencepiece's space marks, if it has them, replaced by spaces."""
    pieces = content["model"]["vocab"]
    if isinstance(pieces, list):  # with scores, in the order of their ids
        pieces = {piece: i for i, (piece, _) in enumerate(pieces)}
    added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    return {token.replace(SPACE_MARK, " "): i for token, i in (pieces | added).items()}


def _bpe(vocab: dict[str, int], merges: list[list[str]], normalizers: list = (), decoders: list = ()) -> dict:
    """A tokenizer.json that merges the characters of a whole text and falls back on bytes for unknown characters."""
    model = {"type": "BPE", "byte_fallback": True, "vocab": vocab, "merges": merges}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": list(normalizers)},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, *decoders]},
        "model": model,
    }


def _sentencepiece(tokenizer: Tokenizer) -> tuple[dict, str]:
    """The tokenizer.json of a sentencepiece BPE, and its end-of-sentence piece.

    sentencepiece repeatedly joins the two neighbours whose union is the piece with the highest score. This equals BPE
    merges with one merge for every way to cut a piece in two, in the order of scores. Pieces have spaces in place of
    the space mark, so a space mark in a text is not a token and becomes bytes, as in our encoder.
    """
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto.FromString(tokenizer.file[1])
    _check_sentencepiece(tokenizer.spec, model, proto)
    normal = proto.ModelProto.SentencePiece.NORMAL
    texts = [piece.piece.replace(SPACE_MARK, " ") if piece.type == normal else piece.piece for piece in model.pieces]
    score = {text: piece.score for text, piece in zip(texts, model.pieces, strict=True) if piece.type == normal}
    merges = [
        [text[:cut], text[cut:]]
        for text in sorted(score, key=score.get, reverse=True)
        for cut in range(1, len(text))
        if text[:cut] in score and text[cut:] in score
    ]
    normalizers, decoders = [], []
    if not tokenizer.spec.startswith("bpe"):  # other models treat a space mark in a text as a space
        normalizers.append({"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "})
    if model.normalizer_spec.add_dummy_prefix:
        normalizers.insert(0, {"type": "Prepend", "prepend": " "})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    vocab = {text: i for i, text in enumerate(texts)}
    return _bpe(vocab, merges, normalizers, decoders), texts[tokenizer.eos]


def _check_sentencepiece(spec: str, model, proto) -> None:
    rules, trainer, piece = model.normalizer_spec, model.trainer_spec, proto.ModelProto.SentencePiece
    for what, wrong in (
        ("is no BPE", trainer.model_type != proto.TrainerSpec.BPE),
        ("has no bytes to fall back on", not trainer.byte_fallback),
        (f"normalises its text ({rules.name})", rules.name != "identity"),
        ("removes spaces", rules.remove_extra_whitespaces),
        ("has symbols of its user", any(p.type == piece.USER_DEFINED for p in model.pieces)),
    ):
        if wrong:
            raise InputError(f"data.tokenizer={spec!r}: {what}, which cannot be exported")

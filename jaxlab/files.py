"""Paths given by users, errors of unreadable files as one line, and JSON records with checksums.

A record is a JSON file, or a line of a JSON-lines file, that holds a checksum of its own content: any changed byte is
noticed. Records of older versions, without checksums, can still be read.
"""

import fcntl
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxlab.config import InputError

CHECKSUM = "crc32"  # the key under which a record holds the checksum of all other keys


def local(text: str | Path, key: str) -> Path:
    """The path on a disk that a user gave for `key`, with `~` and `~user` expanded.

    Raises InputError, naming the key, for an empty path, an address such as gs://..., an unknown user, a null
    character, and text that is not UTF-8.
    """
    text = str(text)
    if not text:
        raise InputError(f"{key}=: must name a file or a folder")
    if "://" in text:
        raise InputError(f"{key}={text}: must be on a disk that is mounted here; only data.store takes an address")
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):  # surrogates stand for bytes that are not UTF-8
        raise InputError(f"{key}={text!a}: a path must be UTF-8 text without null characters")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # pathlib's, for an unknown ~user
        raise InputError(f"{key}={text}: {first_line(error)}") from error


@contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """A context in which any error of reading a foreign or damaged file becomes an InputError of one line that names
    `where`.

    Readers of foreign formats raise dozens of types of errors (of zlib, zip, csv, Arrow, safetensors, recursion,
    numbers with too many digits). An InputError is passed on unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{where}: there is no such file") from error
    except Exception as error:
        raise InputError(f"{where}: cannot be read ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters; the name of its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def parse_json(content: bytes | str, where: str | Path):
    """The value of foreign JSON text.

    Raises InputError, naming `where`, for anything that is not JSON in UTF-8: also for NaN and Infinity, unpaired
    surrogates, and numbers or nesting that Python cannot read.
    """
    with reading(where):
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, parse_constant=_refuse)
        if "\\u" in text:  # an unpaired surrogate could not be written as UTF-8 again
            json.dumps(value, ensure_ascii=False).encode()
        return value


def _refuse(constant: str):
    raise ValueError(f"{constant} is not JSON")


def need(content, where: str | Path, **kinds: type | tuple[type, ...]) -> dict:
    """`content`, checked to be a dict with the keys of `kinds`, each of the given type. Raises InputError, naming
    `where` and the key, if it is not."""
    if not isinstance(content, dict):
        raise InputError(f"{where}: holds {_shown(content)}; must be a JSON object")
    for key, kind in kinds.items():
        if key not in content:
            raise InputError(f"{where}: {key} is missing")
        if not isinstance(content[key], kind):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise InputError(f"{where}: {key} is {_shown(content[key])}; must be {names}")
    return content


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context in which an OSError that names no file, such as that of a full disk, gets the name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = path
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a temporary file beside `path` and renames it, so that a reader finds the complete old or new file."""
    part = path.with_name(f"{path.name}.part")
    try:
        with writing(path), part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:  # for example a full disk, on which half a file should not stay
        part.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[bool]:
    """A context whose value says whether this process has the lock on the file `path`. The file is created if need be,
    and the holder writes its process id into it.

    The lock belongs to the file system and is released when the process ends, however it ends. patience: seconds for
    which to try. Raises OSError if the file cannot be written or locked.
    """
    until = time.monotonic() + patience
    with path.open("a") as file:
        while not (ours := lock(file, fcntl.LOCK_EX)) and time.monotonic() < until:
            time.sleep(0.01)
        if ours:
            file.truncate(0)
            print(os.getpid(), file=file, flush=True)
        yield ours


def lock(file, kind: int) -> bool:
    """Tries to lock an open file with `kind`, LOCK_EX or LOCK_SH of fcntl; False if another process has a lock."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def seal(content: dict) -> bytes:
    """A JSON object as indented text in bytes, with its checksum as the last key."""
    content = json.loads(json.dumps(content))  # as it will be read back: keys as strings, tuples as lists
    return (json.dumps(content | {CHECKSUM: _checksum(content)}, indent=1) + "\n").encode()


def unseal(content: bytes, where: str | Path, **kinds) -> dict:
    """The object that `seal` wrote, without its checksum. A record without one, of an older version, is accepted.

    Raises InputError, naming `where`, if the checksum does not match the content, and as `need` does.
    """
    with reading(where):
        record = json.loads(content.decode("utf-8"))
    record = dict(need(record, where))
    checksum = record.pop(CHECKSUM, None)
    if checksum is None and record:
        last = next(reversed(record))  # where the checksum would be, if its key is damaged
        if record[last] == _checksum({key: value for key, value in record.items() if key != last}):
            raise InputError(f"{where}: is damaged: its checksum has the name {last!r}")
    if checksum is not None and checksum != _checksum(record):
        raise InputError(f"{where}: is damaged: its content does not match its checksum")
    return need(record, where, **kinds)


def write_record(path: Path, content: dict) -> None:
    """Writes a record as a whole (see `write_atomic`)."""
    write_atomic(path, seal(content))


def read_record(path: Path, **kinds) -> dict:
    """The record at `path`. Raises InputError as `unseal` does, and if there is none."""
    with reading(path):
        content = path.read_bytes()
    return unseal(content, path, **kinds)


def sealed_row(row: dict) -> str:
    """A line of a JSON-lines file, with its checksum as the last key and the end of the line."""
    row = json.loads(json.dumps(row))
    return json.dumps(row | {CHECKSUM: _checksum(row)}) + "\n"


def read_rows(path: Path, **kinds) -> tuple[list[dict], list[bytes]]:
    """(valid rows without their checksums, other lines unchanged) of a JSON-lines file, in order.

    A row is valid if it is an object with keys of these types (see `need`) and its checksum is right. Rows without a
    checksum, from older versions, are valid only before the first row with one. Raises InputError if the file cannot be
    read.
    """
    with reading(path):
        lines = path.read_bytes().split(b"\n")
    rows, others, sealed = [], [], False
    for line in filter(bytes.strip, lines):
        try:
            row = unseal(line, path, **kinds)
            has_checksum = CHECKSUM in json.loads(line)
            if sealed and not has_checksum:
                raise InputError(f"{path}: a row has lost its checksum")
        except InputError:
            others.append(line)
            continue
        sealed = has_checksum
        rows.append(row)
    return rows, others


def mended_rows(path: Path, say: Callable[[str], None], keep: Callable[[dict], bool], **kinds) -> list[dict]:
    """The valid rows of a JSON-lines file for which keep(row) is true; the file is rewritten with only these.

    Invalid lines are appended to PATH.damaged, and `say` prints so. Only the process that owns the file may call it.
    """
    rows, others = read_rows(path, **kinds)
    if others:
        aside = path.with_name(f"{path.name}.damaged")
        with writing(aside), aside.open("ab") as file:
            file.writelines(line + b"\n" for line in others)
        lines = "a line is" if len(others) == 1 else f"{len(others)} lines are"
        say(f"{path}: {lines} damaged or cut off, and set aside in {aside.name}; the other {len(rows):,} are kept")
    rows = [row for row in rows if keep(row)]
    write_atomic(path, "".join(map(sealed_row, rows)))
    return rows


def _checksum(content: dict) -> int:
    """CRC-32 of the content as compact JSON, so that white space does not matter."""
    return zlib.crc32(json.dumps(content, separators=(",", ":")).encode())

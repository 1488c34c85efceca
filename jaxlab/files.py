"""Files that people name and files that the project wrote: paths, one guard for reading, records under a checksum.

A record is a JSON file, or a line of a JSON-lines file, that carries a checksum of its own content. A changed byte is
therefore noticed wherever it is, and nobody computes with it. Records of versions without checksums still open.
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

CHECKSUM = "crc32"  # the key of a record that holds the checksum of all others


def local(text: str | Path, key: str) -> Path:
    """The path on a disk that a person gave for `key`, with `~` and `~user` expanded.

    Raises InputError, naming the key, for an empty path, an address such as gs://..., an unknown user, a null
    character and what is not UTF-8.
    """
    text = str(text)
    if not text:
        raise InputError(f"{key}=: must name a file or a folder")
    if "://" in text:
        raise InputError(f"{key}={text}: must be on a disk that is mounted here; only data.store takes an address")
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):  # surrogates stand for bytes that are no text
        raise InputError(f"{key}={text!a}: a path must be UTF-8 text without null characters")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # of pathlib, for ~user
        raise InputError(f"{key}={text}: {first_line(error)}") from error


@contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Within it, whatever a foreign or damaged file makes its reader raise becomes one InputError that names `where`.

    Readers of other people's formats raise dozens of kinds (of zlib, zip, csv, Arrow, safetensors, recursion, numbers
    of too many digits); a person needs one line of any of them. An InputError passes as it is.
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
    """What an error says, in at most 200 characters of one line; the name of its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def parse_json(content: bytes | str, where: str | Path):
    """The value of JSON text that somebody else wrote.

    Raises InputError, naming `where`, for what is not JSON in UTF-8, and so for NaN and Infinity, unpaired surrogates,
    numbers and nesting beyond what Python reads.
    """
    with reading(where):
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, parse_constant=_refused)
        if "\\u" in text:  # an escaped surrogate without its partner is no text, and could not be written again
            json.dumps(value, ensure_ascii=False).encode()
        return value


def _refused(constant: str):
    raise ValueError(f"{constant} is not JSON")


def need(content, where: str | Path, **kinds: type | tuple[type, ...]) -> dict:
    """`content`, if it is a dict with these keys, each of its kind; else InputError, naming `where` and the key."""
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
    """Within it, an OSError that names no file, as that of a full disk, names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = path
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a file beside its place and renames it: whoever looks finds the old file or the new one, whole."""
    part = path.with_name(f"{path.name}.part")
    try:
        with writing(path), part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:  # a full disk above all, which half a file makes fuller
        part.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[bool]:
    """Whether this process now has the lock on a file, which is made if need be and then holds the process's number.

    The lock is the file system's, and goes with the process, however that ends. patience: seconds for which to try.
    Raises OSError where the file cannot be written, or can have no lock.
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
    """Whether an open file now has a lock of this kind of fcntl's: not while another process has one."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def seal(content: dict) -> bytes:
    """A JSON object as the bytes of a file, indented, with its checksum as the last key."""
    content = json.loads(json.dumps(content))  # as it will be read: keys are strings, tuples are lists
    return (json.dumps(content | {CHECKSUM: _checksum(content)}, indent=1) + "\n").encode()


def unseal(content: bytes, where: str | Path, **kinds) -> dict:
    """The object that `seal` wrote, without its checksum. Raises InputError, naming `where`, where the checksum is not
    that of the content, and as `need`. A record of a version without checksums is taken as it is."""
    with reading(where):
        record = json.loads(content.decode("utf-8"))
    record = dict(need(record, where))
    checksum = record.pop(CHECKSUM, None)
    if checksum is None and record:
        last = next(reversed(record))  # where a checksum would be, were its name whole
        if record[last] == _checksum({key: value for key, value in record.items() if key != last}):
            raise InputError(f"{where}: is damaged: its checksum has the name {last!r}")
    if checksum is not None and checksum != _checksum(record):
        raise InputError(f"{where}: is damaged: its content does not have the checksum that it says")
    return need(record, where, **kinds)


def write_record(path: Path, content: dict) -> None:
    """Writes a record in one piece."""
    write_atomic(path, seal(content))


def read_record(path: Path, **kinds) -> dict:
    """The record at `path`; InputError as `unseal`, and where there is none."""
    with reading(path):
        content = path.read_bytes()
    return unseal(content, path, **kinds)


def sealed_row(row: dict) -> str:
    """A line of a JSON-lines file, with its checksum as the last key and the end of the line."""
    row = json.loads(json.dumps(row))
    return json.dumps(row | {CHECKSUM: _checksum(row)}) + "\n"


def read_rows(path: Path, **kinds) -> tuple[list[dict], list[bytes]]:
    """(sound rows without their checksums, other lines as they are) of a JSON-lines file, in order.

    A row is sound if it is an object with keys of these kinds (see `need`) and its checksum is right. Rows without a
    checksum are of older versions, and sound only before the first row that has one. Raises InputError where there is
    no file to read.
    """
    with reading(path):
        lines = path.read_bytes().split(b"\n")
    rows, others, sealed = [], [], False
    for line in filter(bytes.strip, lines):
        try:
            row = unseal(line, path, **kinds)
            now = CHECKSUM in json.loads(line)
            if sealed and not now:
                raise InputError(f"{path}: a row has lost its checksum")
        except InputError:
            others.append(line)
            continue
        sealed = now
        rows.append(row)
    return rows, others


def mended_rows(path: Path, say: Callable[[str], None], keep: Callable[[dict], bool], **kinds) -> list[dict]:
    """The sound rows of a JSON-lines file for which keep(row); the file is written again with these alone.

    Lines that are not sound are added to PATH.damaged, and `say` is told. Only for whoever owns the file.
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
    """CRC-32 of the content as compact JSON: of what it says, not of how it is spaced."""
    return zlib.crc32(json.dumps(content, separators=(",", ":")).encode())

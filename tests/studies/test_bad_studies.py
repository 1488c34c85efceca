"""What may be named on the command line of a study, and files that are no study: one line each."""

import re

import pytest

from jaxlab.config import InputError, get
from jaxlab.studies.study import load

HEAD = """
from jaxlab.config import default

SCALES = {"smoke": 0}

def analyse(results):
    pass

def config():
    return default()

"""
RUNS = HEAD + "def runs(scale):\n    "


def one(tags):
    return RUNS + f"yield config(), {tags}\n"


FILES = {
    "raises": (b"1 / 0", "cannot be imported: ZeroDivisionError: division by zero (bad.py, line 1)"),
    "exits": (b"raise SystemExit(0)", "cannot be imported: SystemExit: 0 (bad.py, line 1)"),
    "binary": (b"\0\1\2", "cannot be imported: "),
    "latin": (b"x = '\xe9'", "cannot be imported: SyntaxError"),
    "empty": (b"", "needs SCALES, a dict"),
    "scales": (b"SCALES = ['smoke']", "needs SCALES, a dict"),
    "no runs": (b"SCALES = {'smoke': 1}", "needs a function runs"),
    "no analysis": (b"SCALES = {'smoke': 1}\ndef runs(scale): pass", "needs a function analyse"),
    "nothing": (RUNS + "return", "runs('smoke') plans no run"),
    "none": (RUNS + "yield from ()", "runs('smoke') plans no run"),
    "fails": (
        RUNS + "yield config(), {'part': 'a'}\n    [][1]",
        "runs(...) failed: IndexError: list index out of range",
    ),
    "not pairs": (RUNS + "yield config()", "runs(...) failed: "),
    "no config": (RUNS + "yield {}, {'part': 'a'}", "the config of a run is {}; must be a ConfigDict"),
    "other keys": (
        RUNS + "c = config()\n    c.extra = 1\n    yield c, {'part': 'a'}",
        "unknown key extra; the nearest is",
    ),
    "no part": (one({"seed": 1}), "tags {'seed': 1}: must be a dict with the name of a part"),
    "part is a number": (one({"part": 1}), "must be a dict with the name of a part"),
    "twice": (one({"part": "a"}) + "    yield config(), {'part': 'a'}", "two runs have the tags a"),
    "other tags": (
        one({"part": "a", "x": 1}) + "    yield config(), {'part': 'b', 'y': 1}",
        "must have the names part, x",
    ),
    "slash": (one({"part": "a/b"}), "'a/b': must be the name of a folder"),
    "above": (one({"part": "a", "of": "/../b"}), "must be the name of a folder"),
    "hidden": (one({"part": ".."}), "must be the name of a folder"),
    "lines": (one({"part": "a\nb"}), "must be the name of a folder"),
    "surrogate": (one({"part": "\udcff"}), "must be the name of a folder"),
    "long": (one({"part": "a" * 201}), "must be the name of a folder"),
    "cannot work": (
        RUNS + "c = config()\n    c.tokens = 7\n    yield c, {'part': 'a'}",
        "tokens=7: less than one batch",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_study(name, tmp_path):
    content, says = FILES[name]
    (tmp_path / "bad.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(says)):
        load(f"{tmp_path}/bad.py:smoke", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_scales_are_folders_too(tmp_path):
    (tmp_path / "bad.py").write_text(one({"part": "a"}).replace('"smoke"', '"../up"'))
    with pytest.raises(InputError, match=r"'../up': must be the name of a folder"):
        load(f"{tmp_path}/bad.py:../up", tmp_path / "runs")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"study": ""}, "--study=: must be NAME:SCALE"),
        ({"study": ":"}, "--study=:: must be NAME:SCALE"),
        ({"study": "study:smoke"}, "--study=study:smoke: must be NAME:SCALE"),  # the machinery is no study
        ({"study": "chinchilla:"}, "chinchilla has no scale ''; it has smoke"),
        ({"study": "../chinchilla:smoke"}, "must be NAME:SCALE"),
        ({"study": "gs://a/b.py:smoke"}, "--study=gs://a/b.py: must be on a disk"),
        ({"study": "~nobody-at-all/b.py:smoke"}, "--study=~nobody-at-all/b.py: "),
        ({"study": "{}/folder.py:smoke"}, "there is no file"),
        ({"part": "GRID"}, "--part=GRID: chinchilla:smoke has no such part; it has grid"),
        ({"runs": ""}, "--runs=: must name a file or a folder"),
        ({"runs": "gs://bucket/runs"}, "--runs=gs://bucket/runs: must be on a disk"),
        ({"runs": "{}/file"}, "file is a file; must be a folder"),
        (
            {"changes": {"model.d_modle": "3"}},
            "--set config: unknown key model.d_modle; the nearest is model.d_model",
        ),
        ({"changes": {"model": "3"}}, "--set config: unknown key model; the nearest is"),
        ({"changes": {"": "3"}}, "--set config: unknown key ; the nearest is"),
        ({"changes": {"tokens": "1e6"}}, "--set tokens=1e6: must be a whole number"),
        ({"changes": {"tokens": "9" * 5_000}}, "must be a whole number"),
        ({"changes": {"tokens": "9" * 400}}, "must be a whole number"),
        ({"changes": {"tokens": ""}}, "--set tokens=: must be a whole number"),
        ({"changes": {"schedule.peak_lr": "inf"}}, "schedule.peak_lr=inf: must be a finite number"),
        ({"changes": {"model.rope_theta": "nan"}}, "model.rope_theta=nan: must be a finite number"),
        ({"changes": {"mesh.fsdp": "banana"}}, "--set mesh.fsdp=banana: must be true or false"),
        ({"changes": {"mesh.fsdp": ""}}, "--set mesh.fsdp=: must be true or false"),
    ],
)
def test_what_may_not_be_asked(asked, says, tmp_path):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "file").write_text("precious")
    asked = {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in asked.items()}
    with pytest.raises(InputError, match=re.escape(says)):
        load(**{"study": "chinchilla:smoke", "runs": tmp_path} | asked)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("log.tensorboard", "true", True), ("log.tensorboard", "False", False), ("mesh.fsdp", "TRUE", True),
        ("mesh.fsdp", "0", False), ("mesh.fsdp", "1", True), ("tokens", "1_000_000", 1_000_000),
        ("seed", "7", 7), ("schedule.peak_lr", "1e-3", 0.001), ("schedule.peak_lr", "1", 1.0),
        ("data.store", "a=b", "a=b"), ("quant.cast", "", ""),
    ],
)  # fmt: skip
def test_values_are_read_by_their_kind(key, text, value, tmp_path):
    (tmp_path / "good.py").write_text(one({"part": "a"}))
    (trial,) = load(f"{tmp_path}/good.py:smoke", tmp_path, changes={key: text}).trials
    found = get(trial.config, key)
    assert found == value
    assert type(found) is type(value)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "good.py").write_text(one({"part": "a"}))
    study = load("~/good.py:smoke", "~/runs")
    assert study.folder == tmp_path / "runs" / "good" / "smoke"
    assert study.name == "good"

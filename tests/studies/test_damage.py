"""A study some of whose files are damaged: the others are listed and reported, and `run` makes those again."""

import base64
import csv
import errno
import html
import io
import os
import re
import zlib
from types import SimpleNamespace

import jax
import pytest
from absl import flags
from jax._src import compilation_cache as cache

from jaxlab import files
from jaxlab.config import InputError, flatten
from jaxlab.studies import report, worker
from jaxlab.studies.study import load, results, status, survey
from launch import entry
from launch import study as launcher
from tests import quick
from tests.studies import planned, small

FILE = planned.__file__
DEEP, LONG = b"[" * 100_000, b'{"reason": ' + b"9" * 5_000 + b"}"
DAMAGES = {  # of run number: (file, content, what is said)
    0: ("result.json", b"", "cannot be read"),
    1: ("result.json", b"[]", "must be a JSON object"),
    2: ("result.json", b'{"tokens": 1, "loss": "low"}', "loss is 'low'; must be int or float"),
    3: ("result.json", b'{"tokens": 1, "loss": NaN, "bits_per_byte": 1, "epochs": 1, "seconds": 1}', "must be finite"),
    4: ("config.json", b"null", "must be a JSON object"),
    5: ("config.json", None, "there is no such file"),
    6: ("diverged.json", b"\xff\xfe\0", "cannot be read"),
    7: ("failed.json", LONG, "cannot be read"),
    8: ("metrics.jsonl", b'{"kind": "train", "tok\n', "1 of 1 lines are damaged"),
    9: ("result.json", DEEP, "cannot be read"),
}
STEPS = 2


@pytest.fixture
def study(tmp_path):
    return load(f"{FILE}:smoke", tmp_path / "runs")


def leave(study, trial, loss=3.0, seconds=10.0):
    """What a run leaves that has finished."""
    folder = study.folder / trial.name
    folder.mkdir(parents=True)
    begun = {"config": flatten(trial.config), "data": {}, "versions": {"jax": "0.0"}, "machine": "a machine"}
    files.write_record(folder / "config.json", begun)
    rows = [{"kind": "train", "tokens": 512 * (i + 1)} for i in range(STEPS)]
    rows.append({"kind": "note", "tokens": 1_024, "text": "xx"})
    (folder / "metrics.jsonl").write_text("".join(map(files.sealed_row, rows)))
    ended = {"tokens": 1_024, "steps": STEPS, "loss": loss, "bits_per_byte": 4.0, "epochs": 0.5, "seconds": seconds}
    files.write_record(folder / "result.json", ended)
    return folder


def damaged(study):
    """The folders of a study whose last two runs alone are sound."""
    folders = [leave(study, trial) for trial in study.trials]
    for number, (name, content, _) in DAMAGES.items():
        if name in ("diverged.json", "failed.json"):
            (folders[number] / "result.json").unlink()
        if content is None:
            (folders[number] / name).unlink()
        else:
            (folders[number] / name).write_bytes(content)
    return folders


def printed(call, *args):
    console = entry.console(file=io.StringIO(), width=10_000)
    return call(*args, {}, console), console.file.getvalue()


def test_damaged_runs_are_listed_with_their_file_and_the_others_as_ever(study):
    damaged(study)
    code, text = printed(launcher.show, study)
    lines = [line for line in text.splitlines() if line.startswith("│")]
    assert code == 0
    assert len(lines) == len(study.trials)
    for number, line in enumerate(lines):
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        assert cells[:3] == [str(number), "[bold]<b>|a", str(number)]  # printed as it is
        if number in DAMAGES:
            name, _, says = DAMAGES[number]
            assert cells[3].startswith("damaged: ")
            assert name in cells[3]
            assert says in cells[3]
        else:
            assert cells[3:] == ["finished", "3.0000", "4.0000", "10"]


def test_a_report_leaves_damaged_runs_out_and_says_which(study, tmp_path):
    damaged(study)
    paths, left = report.write(study, tmp_path / "results", "COMMAND run")
    sound = [trial.name for trial in study.trials[len(DAMAGES) :]]
    assert left.keys() == {trial.name for trial in study.trials} - set(sound)
    folder = tmp_path / "results" / "planned" / "smoke"
    assert {p.name for p in folder.iterdir()} == {p.name for p in paths}
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == sound
    assert [row["note"] for row in rows] == ["yy", "yy"]
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert (
        "2 of 12 runs have ended (0 diverged); 10 are damaged or of another config, and the report leaves them out: "
        in text
    )
    for name in left:
        assert html.escape(name) in page
        assert name.replace("<", "\\<") in text


def test_a_report_says_what_lies_behind_it(study, tmp_path):
    """Two runs of 11,264 and 12,288 tokens at 147,456 FLOPs each, 10 and 20 seconds; one that diverged, of 10,240."""
    leave(study, study.trials[-2], loss=3.0, seconds=10.0)
    leave(study, study.trials[-1], loss=2.0, seconds=20.0)
    lost = leave(study, study.trials[-3])
    (lost / "result.json").unlink()
    files.write_record(lost / "diverged.json", {"reason": "loss is nan", "seconds": 1.5})
    judge = planned.judge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.module, "judge", lambda rows: judge([row for row in rows if row["loss"]]))
        report.write(study, tmp_path, "COMMAND run")
    folder = tmp_path / "planned" / "smoke"
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    flop = (11_264 + 12_288 + 10_240) * 147_456
    assert "3 of 12 runs have ended (1 diverged); 9 have not ended, and the report leaves them out." in text
    assert f"33,792 training tokens of news (bytes), 0.50 to 0.50 epochs a run, {flop:.3g} FLOP, 32 seconds" in text
    assert "a machine; jax 0.0; one worker a core on CPU." in text
    assert "```\nCOMMAND run\nCOMMAND report\n```" in text
    assert "| 2.5 [2, 3] | loss | supported | 3 runs, 0.0 M tokens, 32 s |" in text
    picture = (folder / "loss.png").read_bytes()
    assert f'<img alt="loss" width=192 src=data:image/png;base64,{base64.b64encode(picture).decode()}>' in page
    assert picture[16:24] == (300).to_bytes(4, "big") + (150).to_bytes(4, "big")  # 2 x 1 inches at 150 an inch
    names = [trial.name for trial in study.trials[-3:]]
    seconds = [["name", "seconds"], [names[0], "1.5"], [names[1], "10.0"], [names[2], "20.0"]]
    assert list(csv.reader((folder / "seconds.csv").read_text().splitlines())) == seconds
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [row["loss"] for row in rows] == ["", "3.0", "2.0"]
    assert "seconds" not in rows[0]
    claim = files.read_record(folder / "claims.json")["claims"][0]
    assert (claim["effect"], claim["low"], claim["high"], claim["verdict"]) == (2.5, 2.0, 3.0, "supported")


def test_where_all_are_damaged_a_report_says_so(study, tmp_path):
    folder = leave(study, study.trials[0])
    (folder / "result.json").write_bytes(b"")
    with pytest.raises(InputError, match=r"no run has ended; 1 left out, damaged: .*result.json: cannot be read"):
        report.write(study, tmp_path, "COMMAND run")


def test_names_are_escaped_in_reports(study, tmp_path):
    """Of runs, claims and sources: neither HTML nor a link in Markdown."""
    leave(study, study.trials[0])
    report.write(study, tmp_path, "COMMAND run")
    folder = tmp_path / "planned" / "smoke"
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert "| A loss \\<script>. | [x]\\(y) |" in text
    assert "<script>" not in text.replace("\\<script>", "")
    assert "<td>A loss &lt;script&gt;.<td>[x](y)" in page
    assert "<script>" not in page


def test_a_run_is_mended_so_that_it_is_made_again(study):
    """A record alone is set aside, and all that there is where the config or the metrics are damaged."""
    folders = damaged(study)
    for number, (trial, folder) in enumerate(zip(study.trials, folders, strict=True)):
        (folder / "lock").touch()
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        said = worker.mend(study, trial)
        after = {p.name for p in folder.iterdir()}
        if number not in DAMAGES:
            assert (said, after) == ("", before.keys())
            continue
        name, _, says = DAMAGES[number]
        everything = name in ("config.json", "metrics.jsonl")
        aside = {p.name: p.read_bytes() for p in (folder / "damaged-1").iterdir()}
        assert aside == {n: c for n, c in before.items() if n == name or (everything and n != "lock")}
        assert after == (before.keys() - aside.keys()) | {"damaged-1"}
        assert name in said
        assert says in said
        assert status(folder) == ("stopped", "")
        assert worker.mend(study, trial) == ""


def test_no_line_of_the_metrics_may_be_missing(study):
    """Each has its own checksum, so that only their number tells."""
    folder = leave(study, study.trials[0])
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[1:]))
    assert results(study) == []
    assert "metrics.jsonl: has 1 of the run's 2 steps" in worker.mend(study, study.trials[0])


def test_what_the_study_cannot_measure_is_left_alone(study):
    """It may be the study's own fault, or that of a token store."""
    folder = leave(study, study.trials[0])
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:STEPS]))  # without the row that `measured` reads
    rows, left = survey(study)
    assert rows == []
    assert "not enough values to unpack" in left[study.trials[0].name]
    assert worker.mend(study, study.trials[0]) == ""


def test_a_run_of_another_config_is_no_result(study, tmp_path):
    leave(study, study.trials[0])
    other = load(f"{FILE}:smoke", tmp_path / "runs", changes={"model.d_ff": "128", "log.tensorboard": "false"})
    rows, left = survey(other)
    assert rows == []
    assert left[study.trials[0].name].startswith("of another config: ")
    assert "holds a run that differs in model.d_ff: 64 -> 128" in left[study.trials[0].name]
    assert len(results(study)) == 1


def test_a_full_disk_leaves_the_old_report_whole(study, tmp_path, monkeypatch):
    leave(study, study.trials[0], loss=3.0)
    report.write(study, tmp_path, "COMMAND run")
    folder = tmp_path / "planned" / "smoke"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    leave(study, study.trials[1], loss=2.0)
    write, written = files.write_atomic, []

    def full(path, content):
        if len(written) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        write(path, content)

    monkeypatch.setattr(files, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        report.write(study, tmp_path, "COMMAND run")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_lock_that_cannot_be_had_is_one_runs_affair(study):
    """A folder in place of the lock; a file in place of the run's folder."""
    folder = study.folder / study.trials[0].name
    (folder / "lock").mkdir(parents=True)
    assert status(folder) == ("damaged", f"{folder}/lock: Is a directory")
    other = study.folder / study.trials[1].name
    other.write_text("")
    state, reason = status(other)
    assert (state, reason) == ("damaged", f"{other}/lock: Not a directory")
    for trial in study.trials[:2]:
        with pytest.raises(OSError, match=r"exists|directory"):
            worker.mend(study, trial)
    worker.train_all(study, study.trials[:2])  # passes over both


def test_status_writes_nothing(study):
    """Results on a disk that cannot be written are listed too."""
    folder = study.folder / study.trials[0].name
    folder.mkdir(parents=True)
    assert status(folder) == ("stopped", "")
    assert list(folder.iterdir()) == []


def test_reasons_are_printed_as_one_line(study):
    folder = study.folder / study.trials[0].name
    folder.mkdir(parents=True)
    files.write_record(folder / "failed.json", {"reason": "bad\n[/x] \x1b[31m \udcff"})
    assert status(folder) == ("failed", "bad [/x] \\x1b[31m \\udcff")
    _, text = printed(launcher.show, study)
    assert "failed bad [/x] \\x1b[31m \\udcff" in text


def test_claims_of_other_reports_are_read_with_care(study, tmp_path):
    leave(study, study.trials[0])
    report.write(study, tmp_path / "results", "COMMAND run")
    assert "| T1 | A loss \\<script>. |" in report.reproduce(tmp_path / "results")
    path = tmp_path / "results" / "planned" / "smoke" / "claims.json"
    text = path.read_text()
    assert '"effect": 3.0' in text
    for content in (text.replace('"effect": 3.0', '"effect": 2.0'), "{}", '{"claims": [3]}', ""):
        path.write_text(content)
        with pytest.raises(InputError, match=re.escape(str(path))):
            report.reproduce(tmp_path / "results")


@pytest.fixture
def command(data, tmp_path, capsys, monkeypatch):
    """The launcher, in this process, on part b of a small study: (exit status, what it prints)."""

    def call(*words):
        changes = {**data, "data.tokenizer": "bytes", "data.validation_fraction": 0.05}
        values = {"study": f"{small.__file__}:smoke", "part": "b", "workers": 1}
        values |= {"runs": f"{tmp_path}/runs", "results": f"{tmp_path}/results"}
        values["set"] = [f"{key}={value}" for key, value in changes.items()]
        for name, value in values.items():
            monkeypatch.setattr(launcher, f"_{name.upper()}", SimpleNamespace(value=value))
        flags.FLAGS.mark_as_parsed()
        with quick.compiling():
            return launcher.main(list(words), entry.console()), capsys.readouterr().out

    return call


def changed(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_run_makes_damaged_runs_again(command, tmp_path):
    """From the last checkpoint where a record of the end alone is damaged: to the same table."""
    code, text = command("run")
    assert code == 0, text
    assert command("report")[0] == 0
    table = tmp_path / "results" / "small" / "smoke" / "results.csv"
    before = table.read_text()
    folders = [tmp_path / "runs" / "small" / "smoke" / f"b-seed={seed}" for seed in (0, 1)]
    (folders[0] / "result.json").write_text("{}")
    changed(folders[1] / "config.json", 2)
    code, text = command("run")
    assert code == 0, text
    assert f"b-seed=0: {folders[0]}/result.json: tokens is missing: set aside in damaged-1" in text
    assert f"b-seed=1: {folders[1]}/config.json: " in text
    assert "2 of 2 runs have ended" in text
    assert (folders[0] / "log.txt").read_text().count("resuming  at 8,192 tokens") == 1
    assert "resuming" not in (folders[1] / "log.txt").read_text()
    assert command("report")[0] == 0
    assert table.read_text() == before


def test_a_damaged_compiled_program_is_noticed(monkeypatch, tmp_path):
    """JAX then warns and compiles; what zstd lets through would be run."""
    for name in ("zstd", "zstandard"):
        monkeypatch.setattr(cache, name, None, raising=False)  # restored afterwards
        setattr(cache, name, object())
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        worker._keep_compiled_programs(tmp_path / "compiled")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    program = bytes(range(256)) * 4
    whole = cache.compress_executable(program)
    assert cache.decompress_executable(whole) == program
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        with pytest.raises(zlib.error):
            cache.decompress_executable(bytes(damaged))

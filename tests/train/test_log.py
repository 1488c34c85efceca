"""Logs: the files agree with each other, also after a restart, and a person sees what happens."""

import io
import struct

import jax
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from jaxlab.config import InputError
from jaxlab.train import log as log_module
from jaxlab.train import report
from jaxlab.train.log import Log, read
from jaxlab.train.session import over_replicas


def open_log(workdir, start=0, console=None):
    return Log(workdir, console or Console(quiet=True), total_tokens=1_000, start_tokens=start, tensorboard=True)


def events(workdir) -> dict:
    """{(name, tokens): value} as TensorBoard shows them: a restart discards what later steps an earlier file had."""
    found = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):  # records: length, its checksum, content, its checksum
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            if event.HasField("session_log"):
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in found
                found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_and_rows_agree_after_restarts(tmp_path):
    for start, end in ((0, 500), (300, 700), (0, 200), (200, 1_000)):
        log = open_log(tmp_path, start)
        for tokens in range(start + 100, end + 100, 100):
            log.row("train", tokens // 100, tokens, {"loss": start + tokens / 7, "lr": 0.5})
            if tokens % 200 == 0:
                log.row("eval", tokens // 100, tokens, {"loss": tokens / 3})
        log.flush()
        log.close()
    rows = read(tmp_path / "metrics.jsonl")
    assert [r["tokens"] for r in rows if r["kind"] == "train"] == list(range(100, 1_001, 100))
    expected = {
        (f"{r['kind']}/{name}", r["tokens"]): r[name] for r in rows for name in r.keys() - {"kind", "steps", "tokens"}
    }
    shown = events(tmp_path)
    assert shown.keys() == expected.keys()
    for key, value in expected.items():
        assert shown[key] == pytest.approx(value, rel=1e-6)


def test_flushed_rows_survive_without_closing(tmp_path):
    log = open_log(tmp_path)
    log.row("train", 1, 100, {"loss": 2.0})
    log.flush()
    assert events(tmp_path) == {("train/loss", 100): 2.0}
    assert read(log.path) == [{"kind": "train", "steps": 1, "tokens": 100, "loss": 2.0}]
    log.close()


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    log = open_log(tmp_path)
    log.row("train", 1, 100, {"loss": 2.0})
    log.close()
    with log.path.open("a") as file:
        file.write('{"kind": "train", "ste')
    log = open_log(tmp_path, 100)
    log.row("train", 2, 200, {"loss": 1.0})
    log.close()
    assert [r["steps"] for r in read(log.path)] == [1, 2]
    assert len(log.path.read_text().splitlines()) == 2


def written(workdir, count=5):
    """metrics.jsonl of as many steps, and its lines."""
    log = open_log(workdir)
    for step in range(1, count + 1):
        log.row("train", step, 100 * step, {"loss": 10.0 / step})
    log.close()
    return log.path, log.path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("bad", [b'{"kind": "train", "steps": 3\n', b"\xff\xfe\n", b"[]\n", b"null\n", b"{}\n", None])
def test_one_bad_line_costs_no_sound_row(tmp_path, bad):
    """None: one digit of a loss."""
    path, lines = written(tmp_path)
    lines[2] = lines[2].replace(b"3.33", b"3.34") if bad is None else bad
    path.write_bytes(b"".join(lines))
    assert [row["steps"] for row in read(path)] == [1, 2, 4, 5]
    out = io.StringIO()
    log = open_log(tmp_path, 400, Console(file=out, width=300))
    log.row("train", 5, 500, {"loss": 2.5})
    log.close()
    assert [row["steps"] for row in read(path)] == [1, 2, 4, 5]
    assert read(path)[-1]["loss"] == 2.5
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == lines[2]
    said = [line for line in out.getvalue().splitlines() if "metrics.jsonl" in line]
    assert len(said) == 1
    assert "a line is damaged" in said[0]


def test_rows_of_versions_without_checksums_stay(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "steps": 1, "tokens": 100, "loss": 2.0}\n')
    log = open_log(tmp_path, 100)
    log.row("train", 2, 200, {"loss": 1.0})
    log.close()
    assert [row["loss"] for row in read(log.path)] == [2.0, 1.0]


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl: there is no such file"):
        read(tmp_path / "metrics.jsonl")


def test_without_a_terminal_a_line_now_and_then(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    log = open_log(tmp_path, console=Console(file=out, width=40))
    for tokens in range(1, 1_001):
        now[0] += 0.1
        log.progress(tokens, "loss 1.234  a status that is longer than the line is wide")
    log.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 6  # 100 s at one line in 15 s
    assert lines[0] == " 15%  loss 1.234  a status that is longer than the line is wide"


def test_the_figure_shows_the_end_not_the_first_steps():
    losses = np.concatenate((np.linspace(8, 5, 20), np.full(980, 5.0) - np.linspace(0, 2, 980)))
    low, high = report.limits(losses, np.array([3.5, 3.1]))
    assert low < 3.0
    assert 4.5 < high < 5.5


def test_the_smoothed_curve_does_not_lag():
    line = np.linspace(5, 2, 500)
    assert report.smoothed(line) == pytest.approx(line)
    noisy = line + np.random.default_rng(0).normal(0, 0.3, 500)
    inner = slice(20, -20)
    assert np.abs(report.smoothed(noisy) - line)[inner].mean() < 0.3 * np.abs(noisy - line)[inner].mean()
    assert report.smoothed(np.array([3.0])) == [3.0]


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 7, 8, 16, 32])
def test_the_mean_over_replicas_has_the_bits_of_the_devices(replicas):
    """Rows do not depend on where metrics are averaged."""
    values = np.random.default_rng(replicas).normal(5, 2, (30, replicas)).astype(np.float32)
    np.testing.assert_array_equal(over_replicas(values), jax.jit(lambda x: x.mean(axis=1))(values))


def test_figure_is_a_png(tmp_path):
    rows = [{"kind": "train", "tokens": 10 * i, "loss": 5.0 - i / 10, "lr": 0.1} for i in range(1, 9)]
    rows.append({"kind": "eval", "tokens": 80, "loss": 4.3, "bits_per_byte": 2.1})
    report.figure(rows, tmp_path / "curves.png", "title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")

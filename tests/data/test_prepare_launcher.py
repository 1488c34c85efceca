"""The launcher: one table or one line, never a traceback."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from jaxlab.config import default
from launch import entry
from launch import prepare as preparing

ROOT = Path(__file__).parents[2]
CONFIG = """
from jaxlab.config import default

def get_config():
    c = default()
    c.data.source, c.data.tokenizer = "files:{folder}/*.txt", "bytes"
    c.data.store, c.data.archives, c.data.validation_fraction = "{folder}/store", "", 0.5
    return c
"""


@pytest.fixture
def launch(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG.format(folder=tmp_path))
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(name * 10)

    def run(*flags):
        command = [sys.executable, "-m", "launch.prepare", f"--config={tmp_path}/config.py", *flags]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    return run


def test_prepares_once_and_reports(launch):
    first = launch()
    assert first.returncode == 0, first.stderr
    for text in ("documents", "bytes/token", "0.909", "licence", "corpus_sha256"):  # 10 bytes, 11 tokens
        assert text in first.stdout
    assert "already complete" not in first.stdout
    assert "already complete" in launch().stdout


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.data.source=wiki", "data.source='wiki' is unknown; allowed: news"),
        ("--config.data.tokenizer=words", "data.tokenizer='words' is unknown; allowed: bytes"),
        ("--config.data.validation_fraction=1.5", "data.validation_fraction=1.5"),
        ("--config.data.store=/proc/nowhere/store", "/proc/nowhere/store/prepare.json: cannot be written"),
        ("--config.data.source=files:{folder}/[ab]*.text", "files:{folder}/[ab]*.text: matches no file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(launch, tmp_path, flag, message):
    result, message = launch(flag.format(folder=tmp_path)), message.format(folder=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_names_are_printed_as_they_are_and_losses_said(capsys):
    """Square brackets are also how the library that prints marks bold text."""
    config = default()
    config.data.source, config.data.store, config.data.tokenizer = "files:[bold]x[/bold]/*.txt", "[red]s", "spm:[/]"
    counts = {"documents": 1, "bytes": 2, "tokens": 3}
    meta = {
        "source": config.data.source, "licence": "[1]", "note": "[b]odd[/b]", "corpus_sha256": "0",
        "tokenizer": "spm:[/]", "vocab_size": 3, "tokenizer_sha256": "1", "altered": 1234,
        "splits": {"train": counts, "validation": counts},
    }  # fmt: skip
    console = entry.console(width=200)
    with mock.patch.object(preparing, "prepare", return_value=meta):
        assert preparing.main(config, console) == 0
    printed = capsys.readouterr().out
    for text in ("files:[bold]x[/bold]/*.txt", "token store [red]s", "already complete: [red]s", "[1]", "[b]odd[/b]"):
        assert text in printed
    assert "spm:[/] does not give back 1,234 documents as they were" in printed

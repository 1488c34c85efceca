"""The programs: a run exported, and what was exported refused by another config."""

import json

import pytest

from tests import tiny
from tests.interop.conftest import LLAMA, SHORT

pytest.importorskip("safetensors", reason="needs the package safetensors")


@pytest.mark.slow
def test_export_then_an_import_that_cannot_be(data, workdir, tmp_path):
    config, folder = tiny.config_file(tmp_path / "c.py", data, **LLAMA | SHORT), tmp_path / "exported"
    done = tiny.launch("export", f"--config={config}", f"--workdir={workdir}", f"--to={folder}")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    wrong = tiny.launch(
        "import_hf", f"--config={config}", "--config.model.d_ff=32", f"--workdir={tmp_path / 'run'}", f"--from={folder}"
    )
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "--config.model.d_ff=64" in wrong.stderr
    assert not (tmp_path / "run").exists()

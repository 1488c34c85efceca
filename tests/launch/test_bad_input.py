"""Bad input: one line that names it, exit code 2, within seconds, and nothing touched."""

import time

import pytest

from jaxlab.config import InputError
from jaxlab.data.prepare import prepare
from jaxlab.train.build import build
from tests import tiny

START = "from jaxlab.config import default\ndef get_config():\n    c = default()\n"
CONFIGS = {
    "syntax": "def get_config(:",
    "raising": "def get_config():\n    raise RuntimeError('no such thing')",
    "type": START + "    c.tokens = 'many'\n    return c",
    "added": START + "    c.modle = 3\n    return c",
    "empty": "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()",
    "nothing": "x = 1",
}


@pytest.fixture
def refused(tmp_path, data):
    """Launches the trainer, or another launcher, with a config file and flags; returns its line on stderr."""
    file = tiny.config_file(tmp_path / "config.py", data)

    def run(*flags, config=file, workdir=tmp_path / "run", name="train"):
        flags = (*([f"--config={config}"] if config else []), *flags)
        flags += (f"--workdir={workdir}",) if workdir is not None and name == "train" else ()
        before, began = sorted(tmp_path.rglob("*")), time.monotonic()
        result = tiny.launch(name, *flags)
        assert result.returncode == 2, result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert "Traceback" not in result.stderr
        assert time.monotonic() - began < 3 * 3  # seconds; thrice that where the machine is busy
        assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(p)] == before
        return result.stderr

    return run


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("optim.weightdecay=3", "unknown key optim.weightdecay; the nearest is optim.weight_decay"),
        ("tokens=many", "--config.tokens=many: invalid literal for int"),
        ("model.tied=perhaps", "--config.model.tied=perhaps"),
        ("model.d_model=33", "model.d_model=33: must be divisible by model.num_heads=2"),
        ("mesh.data=7", "mesh 1 x 7 x 1: needs 7 devices, 1 available"),
        ("data.store=/nowhere/store", "data.store=/nowhere/store: the token store does not exist"),
        ("data.tokenizer=bpe:300", "data.tokenizer=bpe:300: the store"),
    ],
)
def test_bad_values(refused, flag, message):
    assert message in refused(f"--config.{flag}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("syntax", "SyntaxError"),
        ("raising", "RuntimeError: no such thing"),
        ("type", "Could not override field 'tokens'"),
        ("added", "unknown key modle"),
        ("empty", "missing key"),
        ("nothing", "has no attribute 'get_config'"),
    ],
)
def test_bad_config_files(refused, tmp_path, name, message):
    (tmp_path / "bad.py").write_text(CONFIGS[name])
    assert message in refused(config=tmp_path / "bad.py")


def test_missing_flags_and_files(refused, tmp_path):
    assert "--config" in refused(config=None)
    assert "name the folder of the run" in refused(workdir=None)
    assert "name the folder of the run" in refused(workdir="")
    assert f"--config={tmp_path}/absent.py: there is no such file" in refused(config=tmp_path / "absent.py")


def test_bad_workdirs(refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    assert "file: File exists" in refused(workdir=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
    refused(workdir="/proc/nowhere/run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch__context": 128, "batch__tokens": 512}, "batch.context=128: longer than the model's positions"),
        ({"schedule__name": "polynomial"}, "schedule.name='polynomial': must be one of constant, cosine, wsd"),
        ({"tokens": -5}, "tokens=-5: must be above 0"),
        ({"optim__weight_decay": -0.1}, "optim.weight_decay=-0.1: must not be negative"),
        ({"batch__tokens": 500}, "batch.tokens=500: must be a multiple of batch.context=64"),
        ({"replicas": 3}, "batch.tokens=512: must be a multiple of replicas x batch.context = 192"),
        ({"mesh__replica": 0}, "mesh.replica=0: must be above 0"),
        ({"optim__b2": 1.0}, r"optim.b2=1.0: must be in \[0, 1\)"),
        ({"schedule__peak_lr": float("nan")}, "schedule.peak_lr=nan: must be above 0"),
        ({"model__vocab_size": 100}, "model.vocab_size=100: the tokens of .* need at least 257"),
    ],
)
def test_the_same_within_the_process(data, changes, message):
    """What `entry` turns into its one line."""
    with pytest.raises(InputError, match=message):
        build(tiny.config(data, **changes))


@pytest.mark.parametrize(
    ("content", "source", "message"),
    [
        (None, "files:{}/*.txt", "matches no file"),
        ("", "files:{}/*.txt", "data"),
        (None, "wiki", "data.source='wiki' is unknown"),
    ],
)
def test_bad_corpora(tmp_path, content, source, message):
    if content is not None:
        (tmp_path / "a.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        prepare(source.format(tmp_path), "bytes", tmp_path / "store", archives=tmp_path / "archives")

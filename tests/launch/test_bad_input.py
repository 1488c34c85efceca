"""Bad input: one line that names it, exit code 2, before anything compiles, and nothing touched."""

import errno
import os
import subprocess
import sys
from subprocess import PIPE

import pytest
from absl import flags

from jaxlab.config import InputError, flatten
from jaxlab.data.prepare import prepare
from jaxlab.model.families import parameters
from jaxlab.train.build import build
from jaxlab.train.program import Program
from launch import entry
from tests import tiny

START = "from jaxlab.config import default\ndef get_config():\n    c = default()\n"
EMPTY = "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict("
CONFIGS = {
    "def get_config(:": "SyntaxError",
    "def get_config():\n    raise RuntimeError('no such thing')": "RuntimeError: no such thing",
    "def get_config():\n    exit(7)": "SystemExit: 7",
    "raise BaseException('of a kind')": "BaseException: of a kind",
    "def get_config():\n    return get_config()": "RecursionError: maximum recursion depth",
    "def get_config(a, b):\n    pass": "TypeError: get_config() missing 2 required positional arguments",
    "def get_config():\n    pass": "get_config returned NoneType; must return",
    "from jaxlab.config import InputError\nraise InputError('1b: must be 2b')": "bad.py: 1b: must be 2b",
    START + "    c.tokens = 'many'\n    return c": "Could not override field 'tokens'",
    START + "    c.tokens = 1.5\n    return c": "Could not override field 'tokens'",
    START + "    c.tokens = None\n    return c": "tokens=None: must be a whole number",
    START + "    c.schedule.peak_lr = float('inf')\n    return c": "schedule.peak_lr=inf: must be a finite number",
    START + "    c.modle = 3\n    return c": "unknown key modle; the nearest is model",
    START + "    c.data = 'news'\n    return c": "Could not override field 'data'",
    EMPTY + "{3: 4})": "unknown key 3; the nearest",
    EMPTY + ")": "missing key batch.context; start from",
    "x = 1": "has no function get_config",
    "": "has no function get_config",
    "x = '\xff'": "SyntaxError: (unicode error)",
    "x = '\0'": "source code string cannot contain null bytes",
}


@pytest.fixture
def file(tmp_path, data):
    return tiny.config_file(tmp_path / "config.py", data)


@pytest.mark.parametrize("content", CONFIGS)
def test_bad_config_files(tmp_path, content):
    (tmp_path / "bad.py").write_text(content, encoding="latin-1")
    with pytest.raises(InputError) as error:
        entry.read(str(tmp_path / "bad.py"), {})
    assert CONFIGS[content] in str(error.value)


def test_config_files_that_are_none(tmp_path):
    for name, said in ((tmp_path, "is a folder"), (tmp_path / "absent.py", "there is no such file")):
        with pytest.raises(InputError, match=f"^--config={name}: {said}$"):
            entry.read(str(name), {})
    with pytest.raises(InputError, match=r"^--config=: must name a file"):
        entry.read("", {})


def test_a_config_file_of_a_home_folder(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert flatten(entry.read("~/config.py", {})) == flatten(entry.read(str(file), {}))


def test_the_command_line_changes_keys(file):
    """--config.KEY=TEXT and --config.KEY TEXT, wherever they stand; a blank takes no word away from others."""
    words = ["--workdir=a", "--config.mesh.fsdp", "False", "-config.tokens=4096", "--config.data.source=--a=b c", "run"]
    rest, changes = entry.split([*words, "--", "--config.seed=3"])
    assert rest == ["--workdir=a", "run", "--", "--config.seed=3"]
    assert changes == {"mesh.fsdp": "False", "tokens": "4096", "data.source": "--a=b c"}
    config = entry.read(str(file), changes)
    assert (config.mesh.fsdp, config.tokens, config.data.source) == (False, 4_096, "--a=b c")
    assert entry.read(str(file), {}).mesh.fsdp is True
    with pytest.raises(AttributeError):
        config.anything = 3  # locked


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config.mesh.fsdp"], "--config.mesh.fsdp: must have a value, as in --config.mesh.fsdp=VALUE"),
        (["--config.mesh.fsdp", "--workdir=a"], "--config.mesh.fsdp: must have a value"),
        (["--config.seed=1", "--config.seed=2"], "--config.seed=2: is there twice, before as 1"),
    ],
)
def test_bad_words(words, said):
    with pytest.raises(InputError, match=f"^{said}"):
        entry.split(words)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optim.weightdecay": "3"}, "unknown key optim.weightdecay; the nearest is optim.weight_decay"),
        ({"tokens": "many"}, "tokens=many: must be a whole number"),
        ({"mesh.fsdp": "banana"}, "mesh.fsdp=banana: must be true or false"),
        ({"log.tensorboard": "maybe"}, "log.tensorboard=maybe: must be true or false"),
        ({"model.rope_theta": "nan"}, "model.rope_theta=nan: must be a finite number"),
        ({"model.d_model": "33"}, "model.d_model=33: must be divisible by model.num_heads=2"),
    ],
)
def test_bad_values(file, changes, said):
    with pytest.raises(InputError) as error:
        entry.read(str(file), changes)
    assert said in str(error.value)


# --- what is left is answered with one line ---


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/a\udcff")


def renamed():
    raise PermissionError(errno.EACCES, "Permission denied", "a.part", None, "a")


def unnamed():
    raise OSError("no medium")


def undecoded():
    b"\xff".decode()


def exhausted():
    raise MemoryError("8 EiB for an array")


def of_xla():
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\n and so on")


@pytest.mark.parametrize(
    ("fails", "status", "said"),
    [
        (full, 2, "error: /runs/a\\udcff: No space left on device"),
        (renamed, 2, "error: a.part -> a: Permission denied"),
        (unnamed, 2, "error: reading or writing: no medium"),
        (undecoded, 2, "error: text that cannot be read or written: 'utf-8' codec"),
        (exhausted, 1, "error: out of memory: 8 EiB for an array"),
        (of_xla, 1, "error: out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."),
    ],
)
def test_what_fails_fails_in_one_line(fails, status, said, capsys):
    with pytest.raises(SystemExit) as end:
        entry.exit_with(list, lambda *_: fails())
    assert end.value.code == status
    told = capsys.readouterr().err
    assert told.startswith(said)
    assert told.count("\n") == 1


def test_a_fault_of_the_program_is_not_taken_for_bad_input():
    for fault in (RuntimeError("no such state"), ValueError("shapes differ"), TypeError("not a leaf")):

        def fails(fault=fault):
            raise fault

        with pytest.raises(type(fault)):
            entry.exit_with(list, lambda *_: fails())


def test_names_are_printed_as_they_are(capsys):
    name = "files:[bold]a[/bold]/[a-z]*:smile:.txt"
    entry.console(width=200).print(name)
    assert capsys.readouterr().out == f"{name}\n"


def test_a_flag_that_is_there_twice(monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_multi_string("set", [], "", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    assert entry._words(["--set=a", "--set=b", "--workdir=a", "run"]) == ["run"]
    with pytest.raises(InputError, match="workdir=b: already defined as a"):
        entry._words(["--workdir=b"])


# --- whole processes ---


def refused(*flags, name="train", **environment):
    """Launches; its line on stderr."""
    env = tiny.environment() | environment
    result = subprocess.run(tiny.command(name, *flags), cwd=tiny.ROOT, env=env, capture_output=True)
    said = result.stderr.decode()
    assert result.returncode == 2, said
    assert said.count("\n") == 1, said
    assert said.startswith("error: ")
    return said


def test_launchers_answer_with_one_line(file, data, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    workdir = f"--workdir={tmp_path}/run"
    assert "--config" in refused(workdir)
    assert "name the folder of the run" in refused(f"--config={file}", "--workdir=")
    assert "False: only flags are understood" in refused(f"--config={file}", "False", name="prepare")
    assert "/nowhere/store: the token store does not" in refused(
        f"--config={file}", workdir, "--config.data.store=/nowhere/store"
    )
    assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(p)] == before


def test_names_that_are_no_text_where_output_is_ascii(file, tmp_path):
    """Of a file system without an encoding, on a terminal without accents."""
    source = os.fsencode("files:ä") + b"\xff[/b]"
    said = refused(
        f"--config={file}", f"--workdir={tmp_path}/run", b"--config.data.source=" + source, PYTHONIOENCODING="ascii"
    )
    assert "data.source=files:\\xe4\\udcff[/b]: the store" in said


def test_a_reader_that_has_read_enough():
    """As in `python -m launch.study ... list | head -1`."""
    script = "from launch import entry; entry.exit_with(list, lambda *_: print('x' * 10**6))"
    with subprocess.Popen([sys.executable, "-c", script], cwd=tiny.ROOT, stdout=PIPE, stderr=PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_bad_workdirs(file, tmp_path):
    (tmp_path / "file").write_text("precious")
    assert "/file" in refused(f"--config={file}", f"--workdir={tmp_path}/file")
    assert (tmp_path / "file").read_text() == "precious"
    refused(f"--config={file}", "--workdir=/proc/nowhere/run")


# --- what the config says against itself, devices and data ---


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
        ({"mesh__data": 7}, "mesh 1 x 7 x 1: needs 7 devices, 1 available"),
        ({"mesh__tensor": 2**40}, f"mesh.replica=1 x mesh.tensor={2**40}: must divide the 1 devices"),
        ({"optim__b2": 1.0}, r"optim.b2=1.0: must be in \[0, 1\)"),
        ({"schedule__peak_lr": float("nan")}, "schedule.peak_lr=nan: must be a finite number"),
        ({"model__vocab_size": 100}, "model.vocab_size=100: the tokens of .* need at least 257"),
        ({"data__tokenizer": "bpe:300"}, "data.tokenizer=bpe:300: the store .* was made with bytes"),
        ({"data__source": "news"}, "data.source=news: the store .* was made with files:"),
        ({"data__validation_fraction": 0.02}, "data.validation_fraction=0.02: the store .* was made with 0.05"),
        ({"compute__steps_per_call": 2**22}, "compute.steps_per_call=4194304: must be at most 4194303 with"),
        ({"model__d_model": 10**9}, r"model: \d\S* parameters x replicas=1 take [\d,]+ GB alone"),
        ({"model__vocab_size": 2**31 - 1}, "model: .* parameters"),
    ],
)
def test_the_same_within_the_process(data, changes, message, monkeypatch):
    """What `entry` turns into its one line, and nothing has been compiled or traced."""
    monkeypatch.setattr(Program, "_compile", None)
    monkeypatch.setattr("jaxlab.train.build.program", None)
    with pytest.raises(InputError, match=message):
        build(tiny.config(data, **changes))


def test_the_state_of_the_optimiser_must_fit_too(data, monkeypatch):
    """AdamW's takes twice the bytes of the parameters, which fit into twice their own."""
    count = parameters(build(tiny.config(data)).program.model.c)["total"]
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4, "SC_PHYS_PAGES": 2 * count}.get)
    with pytest.raises(InputError, match=rf"model: {count:,} parameters x replicas=1 take 0 GB with the state of the"):
        build(tiny.config(data))


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

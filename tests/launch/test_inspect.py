"""What launch.inspect draws of a workdir, and what it says where there is nothing to draw."""

import json
import subprocess
import sys

import numpy as np

from tests import tiny

# k equal modes of D: hard and soft rank k, SUI k / D, eDim 1 + (D - 1) k / D, concentration (D - k) / D.
LAYERS = [(8, 8), (2, 16)]  # (k, D)


def write(workdir, tokens):
    """Measurements of layers with k equal modes, as a run leaves them."""
    values, spectra = {"post/tokens_per_dimension/0": 10.0}, {}
    for i, (k, width) in enumerate(LAYERS):
        share = k / width
        names = ("hard_rank", "soft_rank", "sui", "edim", "concentration", "hard_utilisation", "soft_utilisation")
        found = (k, k, share, 1 + (width - 1) * share, 1 - share, share, share)
        values |= {f"post/{name}/{i}": value for name, value in zip(names, found, strict=True)}
        spectra[f"post/{i}"] = np.float32([1.0] * k + [0.0] * (width - k))
    (workdir / "spectra").mkdir()
    with (workdir / "metrics.jsonl").open("w") as file:
        for at in tokens:
            np.savez(workdir / "spectra" / f"{at}.npz", **spectra)
            file.write(json.dumps({"kind": "spectra", "steps": at // 512, "tokens": at} | values) + "\n")
        file.write('{"kind": "spectra", "steps"')  # the row of a measurement that is being written


def test_a_run_is_drawn_and_tabulated(tmp_path):
    write(tmp_path, (512, 4_096))
    done = tiny.launch("inspect", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert lines == [
        ["0", "8", "8.0", "8.0", "1.000", "8.0", "0.000"],
        ["1 collapsed", "16", "2.0", "2.0", "0.125", "2.9", "0.875"],
    ]
    assert "2 measurements, the last at 4,096 tokens" in done.stdout
    assert (tmp_path / "spectra-post.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not (tmp_path / "spectra-pre.png").exists()


def test_where_there_are_no_spectra_it_says_so(tmp_path):
    def refused():
        done = tiny.launch("inspect", f"--workdir={tmp_path}")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        return done.stderr

    assert f"workdir={tmp_path}: holds no run" in refused()
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "tokens": 512}\n')
    assert "has no spectra; train with --config.spectra.at=log:50" in refused()


EACH = """
import sys
from pathlib import Path
from jaxlab.config import InputError
from launch.inspect import measurements
for folder in sys.argv[1:]:
    try:
        print(len(measurements(Path(folder))[0]))
    except InputError as error:
        print(error)
"""


def test_what_cannot_be_drawn_is_one_line(tmp_path):
    """In one process: damage to the rows, and to the eigenvalues of the last of them."""
    said = {}

    def case(says, change):
        folder = tmp_path / str(len(said))
        folder.mkdir()
        write(folder, (512, 4_096))
        change(folder)
        said[folder] = says

    def row(**values):
        row = json.loads((tmp_path / "0" / "metrics.jsonl").read_text().splitlines()[1]) | values
        text = json.dumps({k: v for k, v in row.items() if v is not None}) + "\n"
        return lambda folder: (folder / "metrics.jsonl").write_text(text)

    def arrays(**values):
        values = {name.replace("_", "/"): value for name, value in values.items()}
        return lambda folder: np.savez(folder / "spectra" / "4096.npz", **values)

    def npz(content):
        return lambda folder: (folder / "spectra" / "4096.npz").write_bytes(content)

    good, other = np.ones(8, np.float32), np.ones(16, np.float32)
    case("2", lambda folder: None)
    case("4096.npz: there is no such file", lambda folder: (folder / "spectra" / "4096.npz").unlink())
    case("4096.npz: cannot be read", npz(b""))
    case("4096.npz: cannot be read", npz(b"no archive"))
    case("4096.npz: cannot be read", npz((tmp_path / "0" / "spectra" / "4096.npz").read_bytes()[:-40]))
    case("4096.npz: cannot be read", arrays(post_0=np.array([{}], object)))
    case("holds nothing; must hold post/0", arrays())
    case("holds x; must hold post/0", arrays(x=good))
    case("holds post/0, post/2; must hold post/0", arrays(post_0=good, post_2=good))
    case("post/0 is float32 [8, 1]; must be eigenvalues", arrays(post_0=good[:, None], post_1=other))
    case("post/0 is int64 [2]; must be eigenvalues", arrays(post_0=np.array([1, 2]), post_1=other))
    case("post/0 is float32 []; must be eigenvalues", arrays(post_0=np.float32(1), post_1=other))
    case("holds post/0, post/1, pre/1; must hold", arrays(post_0=good, post_1=other, pre_1=good))
    case("pre/hard_rank/0 is missing", arrays(post_0=good, post_1=other, pre_0=good))
    case("the spectra at 4096 tokens: post/sui/1 is missing", row(**{"post/sui/1": None}))
    case("post/sui/1 is 'high'; must be int or float", row(**{"post/sui/1": "high"}))
    case("post/sui/1 is [1]; must be", row(**{"post/sui/1": [1]}))
    case("int too large to convert to float", row(**{"post/sui/1": 10**400}))
    case("has no spectra; train with", row(tokens="many"))
    case("has no spectra; train with", row(kind=["spectra"]))
    case("has no spectra; train with", lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\0[]\nnull\n"))
    case("metrics.jsonl: cannot be read", lambda f: [(f / "metrics.jsonl").unlink(), (f / "metrics.jsonl").mkdir()])
    words = [sys.executable, "-c", EACH, *map(str, said)]
    done = subprocess.run(words, cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(said)
    for line, (folder, says) in zip(lines, said.items(), strict=True):
        assert says in line
        assert line == "2" or str(folder) in line


def test_a_layer_without_any_variance_is_drawn(tmp_path):
    write(tmp_path, (512,))
    np.savez(tmp_path / "spectra" / "512.npz", **{"post/0": np.zeros(8), "post/1": np.full(16, np.nan)})
    done = tiny.launch("inspect", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "spectra-post.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

"""What launch.inspect draws of a workdir, and what it says where there is nothing to draw."""

import json

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

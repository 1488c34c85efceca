"""Trains what a section of docs/own_model.md trains, on eight forced CPU devices and once more with a stop:
python -m tests.train.own_model SECTION OUT.json"""

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from jaxlab.train import report
from jaxlab.train.build import build
from jaxlab.train.loop import train
from tests import tiny

PAGE = tiny.ROOT / "docs" / "own_model.md"


def snippets(section: str) -> list[str]:
    """The Python of the page's beginning and of a section of it."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    wanted = [parts[0], dict(zip(parts[1::2], parts[2::2], strict=True))[section]]
    return [code for text in wanted for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def cut(workdir: Path, folder: Path, tokens: int) -> Path:
    """A copy of a finished run as it was after its checkpoint at `tokens`."""
    shutil.copytree(workdir, folder)
    (folder / "result.json").unlink()
    for newer in [t for t in tiny.saved(folder) if t > tokens]:
        shutil.rmtree(folder / "checkpoints" / str(newer))
    return folder


def measure(section: str) -> dict:
    names = {}
    for code in snippets(section):
        exec(code, names)
    run, workdir = names["run"], next(Path("runs").glob("*"))
    resumed = cut(workdir, Path("resumed"), tiny.saved(workdir)[0])
    train(run, resumed, Console(quiet=True))
    config = names["config"].copy_and_resolve_references()
    config.update(tokens=16 * 1_024, replicas=2)
    config.mesh.replica = 2
    config.diloco.update(sync_every=4, outer_lr=1.0, outer_momentum=0.0)
    given = {name: value for name, value in run.program.own._asdict().items() if value}
    replicas = train(build(config, **given), "replicas", Console(quiet=True))
    losses = [row["loss"] for row in tiny.rows(workdir) if row["kind"] == "train"]
    return {
        "losses": losses,
        "validation": names["result"]["loss"],
        "fingerprints": [tiny.fingerprint(folder) for folder in (workdir, resumed)],
        "saved": [tiny.saved(folder) for folder in (workdir, resumed)],
        "unsharded": run.program.unsharded,
        "header": report.header(run, None, "unknown"),
        "replicas": replicas["loss"],
        "lines": max(len(re.findall(r"^.*\S.*$", code, re.MULTILINE)) for code in snippets(section)[1:]),
    }


if __name__ == "__main__":
    out = Path(sys.argv[2]).absolute()
    report.figure = lambda *_: None  # it would be drawn three times
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("books").mkdir()
        tiny.make_store(Path("books"))
        out.write_text(json.dumps(measure(sys.argv[1])))
        os.chdir(out.parent)

"""What cases start from: small sound folders, made once by the launchers themselves and copied for every case.

All paths in them are relative, and every case runs in a folder of its own: a copy is as good as the first.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from jaxlab.model.families import ARCHITECTURES
from tests import tiny
from tests.faults.runner import Job, run

DATA = {"data.source": "files:texts/*.txt", "data.store": "store", "data.archives": "archives", "data.tfds_dir": "tfds",
        "data.validation_fraction": 0.05}  # fmt: skip
RUN = {
    "tokens": 8_192, "evaluate.every_tokens": 2_048, "checkpoint.every_tokens": 2_048, "checkpoint.keep": 3,
    "spectra.at": "log:3", "log.tensorboard": False, "evaluate.tokens": 256,
}  # fmt: skip
LLAMA = {f"model.{k}": v for k, v in ARCHITECTURES["llama"].items()} | {
    "model.family": "llama", "model.context": 256, "model.num_kv_heads": 1, "tokens": 2_048,
    "schedule.warmup_tokens": 512, "evaluate.every_tokens": 0, "checkpoint.every_tokens": 0, "spectra.at": "",
}  # fmt: skip
STUDY = '''
"""Three short runs of one shape."""
import json
from jaxlab.config import default
from jaxlab.studies.claim import Claim, compare, judged
from jaxlab.studies.report import panels
from jaxlab.studies.study import Analysis

SCALES = {{"smoke": (1e-3, 1e-2)}}


def runs(scale):
    for part, lr in zip("ab", SCALES[scale]):
        for seed in (0, 1):
            c = default()
            c.update_from_flattened_dict(json.loads({changes!r}))
            c.update(seed=seed)
            c.schedule.peak_lr = lr
            yield c, {{"part": part, "seed": seed}}


def judge(results):
    losses = [row["loss"] for row in results]
    return compare(sum(losses) / len(losses), min(losses), max(losses), (0.0, 100.0), "loss")


def analyse(results):
    fig, ax = panels(1, 1, width=3, height=2)
    ax.plot([row["loss"] or 0 for row in results])
    claims = [Claim("T1", "There is a loss.", "none", ("a",), judge)]
    return Analysis({{"Losses": [{{"loss": row["loss"]}} for row in results]}}, {{"loss": (fig, "Losses.")}},
                    [judged(claim, results) for claim in claims])
'''
PIQA = [{"goal": f"Open box {i}", "sol1": "pull the lid", "sol2": "paint it red", "label": i % 2} for i in range(4)]
HALF = (4_096, 6_144)  # checkpoints of the run that is half done


def config(**changes) -> str:
    """The text of a config file; changes with __ for the dots."""
    flat = tiny.SMALL | RUN | DATA | {k.replace("__", "."): v for k, v in changes.items()}
    return tiny.CONFIG.format(changes=json.dumps(flat))


class Template:
    """Folders by name, each made when it is first wanted. Raises RuntimeError if a launcher fails on sound input."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self._made = set()

    def copy(self, names: str, into: Path) -> None:
        """Copies the parts into a new folder."""
        into.mkdir()
        for name in names.split():
            self.want(name)
            for source in (self.folder / name, *self.folder.glob(f"{name}.py")):
                if source.is_dir():
                    shutil.copytree(source, into / name)
                elif source.exists():
                    shutil.copy(source, into)

    def want(self, name: str) -> Path:
        if name not in self._made:
            self._made.add(name)
            getattr(self, f"_{name}")()
        return self.folder / name

    def _launch(self, launcher: str, *flags: str, target: Callable | None = None) -> None:
        ended = run(Job(self.folder, launcher, flags, target), patience=300)
        if ended.status != 0:
            raise RuntimeError(f"{launcher} {' '.join(flags)}: exit {ended.status}\n{ended.out}\n{ended.err}")

    def _config(self):
        (self.folder / "config.py").write_text(config())

    def _texts(self):
        self.want("config")
        words, draw = [f"w{i}" for i in range(50)], random.Random(0)
        (self.folder / "texts").mkdir()
        for i in range(60):
            (self.folder / "texts" / f"{i:02d}.txt").write_text(" ".join(draw.choices(words, k=400)))

    def _store(self):
        self.want("texts")
        self._launch("prepare", "--config=config.py")

    def _bpe(self):
        """A store with a sentencepiece tokenizer of its own."""
        self.want("texts")
        self._launch("prepare", "--config=config.py", "--config.data.tokenizer=bpe:271", "--config.data.store=bpe")

    def _hfstore(self):
        """A store with a tokenizer.json: that of the exported model."""
        self.want("hf")
        flags = ("--config.data.tokenizer=hf:hf/tokenizer.json", "--config.data.store=hfstore")
        self._launch("prepare", "--config=config.py", *flags)

    def _run(self):
        self.want("store")
        self._launch("train", "--config=config.py", "--workdir=run")

    def _other(self):
        """A run of another seed, as long as the first."""
        self.want("store")
        self._launch("train", "--config=config.py", "--workdir=other", "--config.seed=1")

    def _half(self):
        """The run as a kill would leave it after three quarters."""
        self.want("run")
        shutil.copytree(self.folder / "run", self.folder / "half")
        shutil.rmtree(self.folder / "half" / "checkpoints" / "8192")
        for name in ("result.json", "curves.png"):
            (self.folder / "half" / name).unlink()

    def _items(self):
        (self.folder / "items").mkdir()
        write_rows(self.folder / "items" / "piqa_val.jsonl", PIQA)

    def _evaluated(self):
        """The run with scores."""
        self.want("run"), self.want("items")
        shutil.copytree(self.folder / "run", self.folder / "evaluated")
        self._launch("evaluate", "--config=config.py", "--workdir=evaluated", "--tasks=piqa", "--items=items")

    def _study(self):
        changes = json.dumps(
            tiny.SMALL | RUN | DATA | {"tokens": 2_048, "spectra.at": "", "checkpoint.every_tokens": 512}
        )
        (self.folder / "study.py").write_text(STUDY.format(changes=changes))

    def _runs(self):
        """The study's runs, all ended."""
        self.want("store"), self.want("study")
        self._launch("study", "--study=study.py:smoke", "--workers=1", "run")

    def _llama(self):
        self.want("store")
        (self.folder / "llama.py").write_text(config(**LLAMA))
        self._launch("train", "--config=llama.py", "--workdir=llama")

    def _hf(self):
        self.want("llama")
        self._launch("export", "--config=llama.py", "--workdir=llama", "--to=hf")

    def _tfds(self):
        self.want("config")

        def build():
            from tests.data.test_tfds import build_array_record

            build_array_record(Path("tfds"), ["train", "validation"])

        self._launch("tfds", target=build)


def write_rows(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

"""The cases, by launcher. A table's row is a case; functions make the files that flags cannot say."""
# ruff: noqa: E501, E731 (rows of tables are as long as they are; a change of a file is a word)

import gzip
import io
import json
import lzma
import shutil
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests import tiny
from tests.faults.case import Case, disk
from tests.faults.template import PIQA, Template, config

HTML = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>"
CONTENTS = {  # what a file of JSON may hold instead
    "empty": b"",
    "list": b"[]",
    "null": b"null",
    "number": b"3",
    "object": b"{}",
    "binary": bytes(range(256)),
    "nested": b"[" * 100_000,
    "digits": b'{"format": 1' + b"0" * 6_000 + b"}",
    "surrogate": b'{"model_type": "\\ud800"}',
    "html": HTML,
    "nan": b'{"format": NaN, "tokens": Infinity}',
}
KINDS = (*CONTENTS, "cut", "folder")
SOME = ("empty", "list", "null", "binary", "cut", "folder")
TRAIN = ("--config=config.py", "--workdir=half")
NEW = ("--config=config.py", "--workdir=new")


# What is made


def damaged(path: str, kind: str) -> Callable[[Path], None]:
    """Makes a file hold something else, or half of what it holds, or be a folder, or be gone."""

    def make(folder: Path) -> None:
        file = folder / path
        if kind in CONTENTS:
            file.write_bytes(CONTENTS[kind])
        elif kind == "cut":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        else:
            file.unlink()
            if kind == "folder":
                file.mkdir()

    return make


def changed(path: str, old: str | bytes, new: str | bytes, times: int = 1) -> Callable[[Path], None]:
    """Replaces bytes of a file, as many times."""
    old, new = (x.encode() if isinstance(x, str) else x for x in (old, new))

    def make(folder: Path) -> None:
        content = (folder / path).read_bytes()
        assert old in content, (path, old)
        (folder / path).write_bytes(content.replace(old, new, times))

    return make


def edited(path: str, edit: Callable[[dict], object]) -> Callable[[Path], None]:
    """Changes what a JSON file says; edit returns what to write instead, or None where it has changed its argument.

    The checksum stays as it was: nobody edits it by mistake.
    """

    def make(folder: Path) -> None:
        content = json.loads((folder / path).read_text())
        result = edit(content)
        (folder / path).write_text(json.dumps(content if result is None else result))

    return make


def without(path: str, *keys: str) -> Callable[[Path], None]:
    return edited(path, lambda content: {k: v for k, v in content.items() if k not in keys})


def saved(files: dict[str, bytes | str]) -> Callable[[Path], None]:
    """Writes files, by their paths."""

    def make(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def both(*makes: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for one in makes:
            one(folder)

    return make


def last_checkpoint(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Changes the folder of the newest checkpoint of the run `half`."""
    return lambda folder: change(folder / "half" / "checkpoints" / "6144")


def replaced_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a checkpoint")


def emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def largest(path: Path) -> Path:
    return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flipped(path: Path) -> None:
    """Changes a bit in the middle of the largest file of a folder."""
    file = largest(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def halved(path: Path) -> None:
    file = largest(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def clock(edit: Callable[[list], list]) -> Callable[[Path], None]:
    """Changes what the newest checkpoint's record says of tokens and steps."""

    def make(path: Path) -> None:
        file = path / "record" / "metadata"
        content = json.loads(file.read_text())
        content["clock"] = edit(content["clock"])
        file.write_text(json.dumps(content))

    return last_checkpoint(make)


# What is checked


def undisturbed(folder: Path, template: Template) -> str:
    """The run `half` has ended as `run` did, up to rows that were damaged."""
    workdir, whole = folder / "half", template.want("run")
    if tiny.saved(workdir)[-1:] != tiny.saved(whole)[-1:]:
        return f"checkpoints {tiny.saved(workdir)}, not {tiny.saved(whole)}"
    if tiny.fingerprint(workdir) != tiny.fingerprint(whole):
        return "other parameters than the undisturbed run's"
    mine, theirs = tiny.rows(workdir), tiny.rows(whole)
    if extra := [row for row in mine if row not in theirs]:
        return f"a row that the undisturbed run does not have: {str(extra[0])[:80]}"
    if len(mine) < len(theirs) - 3:
        return f"{len(mine)} rows of {len(theirs)}"
    return ""


def not_run(folder: Path, template: Template) -> str:
    return "code of the data set was imported" if (folder / "imported").exists() else ""


def holds(path: str, *words: str) -> Callable[[Path, Template], str]:
    """A file that must be there and hold words."""

    def check(folder: Path, template: Template) -> str:
        if not (folder / path).exists():
            return f"{path} is not there"
        text = (folder / path).read_text(errors="replace")
        return "; ".join(f"{path} does not hold {word!r}" for word in words if word not in text)

    return check


# Keys of the config: key=value, or several separated by two spaces; words after a bar, the key where there are none.

KEYS = """
tokens=0
tokens=many
tokens=
tokens=None
tokens=inf
tokens=100 | batch
replicas=-2
replicas=3 | batch.tokens|replicas
seed=-1
seed=4294967296
batch.tokens=-512
batch.tokens=500
batch.context=0
batch.context=48 | batch.
batch.micro_tokens=63
batch.lr_rule=cubic
batch.growth=garbage
batch.growth=10:512
batch.growth=0:nan
batch.growth=0:512 1K:99999999999999
batch.growth=curve:nan,1,1 every 1K
batch.growth=curve:1e308,5,5 every 1K
batch.growth=curve:1,0,0 every 0
batch.lr_rule=sqrt  batch.growth=seesaw:0
batch.lr_rule=sqrt  batch.growth=seesaw:nan
batch.growth=seesaw:1.1
batch.context_growth=garbage
schedule.name=polynomial
schedule.name=wsd | decay_tokens
schedule.peak_lr=nan
schedule.peak_lr=inf
schedule.peak_lr=1e400
schedule.warmup_tokens=999999999
schedule.final_fraction=nan
optim.b1=nan
optim.b2=-0.1
optim.eps=inf
optim.weight_decay=inf
optim.weight_decay=nan
optim.clip=nan
model.rope_theta=nan
model.rope_theta=inf
model.rope_theta=-10000
model.norm_eps=nan
model.norm_eps=-1
model.z_loss=inf
model.z_loss=nan
model.init_std=nan
model.balance_loss=nan
model.mix_fraction=nan
model.num_layers=1000000000 | layers|memory|free|workdir
model.d_model=1000000000 | d_model|parameters
model.num_heads=3
model.layer_d_ff=64,x
model.layer_d_ff=64,0
model.ffn=tanh
model.vocab_size=100
model.experts_per_token=5
model.qk_norm=2
diloco.outer_lr=nan
diloco.outer_lr=inf
diloco.outer_momentum=nan
diloco.mix=nan
diloco.eager=maybe
quant.cast=garbage
quant.stages=0:garbage
quant.P1=banana
quant.cast=e2m1 | quant.cast
quant.recipe=all  quant.cast=e9m9
quant.recipe=all  quant.cast=e2m1,block=nan
quant.recipe=all  quant.stages=5:e2m1
quant.recipe=all  quant.P7=none
quant.fp8=native  quant.recipe=all | fp8
quant.fp8=banana
mesh.data=-2 | mesh
mesh.data=7 | mesh
mesh.tensor=3 | mesh
mesh.fsdp=banana
compute.attention=flash
compute.attention=cudnn | attention
compute.loss_chunk=48
evaluate.every_tokens=-1
evaluate.tasks=nothing | nothing
evaluate.tasks=mmlu:9  evaluate.items_from=items | mmlu:9
evaluate.tasks=piqa  evaluate.items_from=/absent | /absent
evaluate.tasks=piqa  evaluate.items_from= | items
spectra.at=garbage
spectra.at=log:0
spectra.at=log:1000000000
spectra.at=1e5
spectra.at=log:1e400
spectra.tokens=-1
checkpoint.keep=0
log.tensorboard=banana
log.tensorboard=
data.store=absent
data.store=config.py | config.py
data.store=~nobody-here/store | nobody-here
data.store=texts | texts
data.source=files:other/*.txt
data.tokenizer=bpe:300
data.validation_fraction=nan
data.validation_fraction=0.5
model.depth=3
=3 | config
model=3
"""
# Legal, though it looks odd; words of the output.
LEGAL_KEYS = """
log.tensorboard=true
mesh.fsdp=0
mesh.fsdp=False
seed=4294967295
model.family=[bold]my/family[/bold] | [bold]my/family[/bold]
evaluate.every_tokens=1
quant.recipe=none  quant.fp8=auto
data.store=./store
"""


def key_cases() -> Iterator[Case]:
    for text in filter(None, KEYS.splitlines()):
        settings, _, words = text.partition(" | ")
        flags = tuple(f"--config.{one}" for one in settings.split("  "))
        words = words or settings.split("  ")[-1].partition("=")[0]
        yield Case(f"train/key/{settings}", "train", NEW + flags, "refused", (words,), "config store items")
    for text in filter(None, LEGAL_KEYS.splitlines()):
        settings, _, words = text.partition(" | ")
        flags = tuple(f"--config.{one}" for one in settings.split("  "))
        short = (*flags, "--config.tokens=1024", "--config.schedule.warmup_tokens=512", "--config.spectra.at=")
        yield Case(f"train/legal/{settings}", "train", NEW + short, "fine", (words or "bits/byte",))


# Config files

START = config().replace("    return c\n", "")  # of the small config, without its last line
FILES = {  # content, words
    "syntax": ("def get_config(:", "SyntaxError"),
    "raising": ("def get_config():\n    raise RuntimeError('no such thing')", "no such thing"),
    "raising-lines": ("def get_config():\n    raise RuntimeError('first\\nsecond\\nthird')", "first"),
    "exits": ("import sys\ndef get_config():\n    sys.exit(0)", "config"),
    "recursing": ("def get_config():\n    return get_config()", "config"),
    "type": (START + "    c.tokens = 'many'\n    return c", "tokens"),
    "none-key": (START + "    c.tokens = None\n    return c", "tokens"),
    "none-text": (START + "    c.data.store = None\n    return c", "data.store"),
    "bool-for-int": (START + "    c.tokens = True\n    return c", "tokens"),
    "float-for-int": (START + "    c.batch.tokens = 512.5\n    return c", "tokens"),
    "list": (START + "    c.schedule.peak_lr = [1, 2]\n    return c", "peak_lr"),
    "section": (START + "    c.model = 3\n    return c", "model"),
    "section-none": (START + "    c.model = None\n    return c", "model"),
    "section-empty": (
        START + "    from ml_collections import ConfigDict\n    c.model = ConfigDict()\n    return c",
        "model",
    ),
    "deleted": (START + "    del c.model.d_ff\n    return c", "d_ff"),
    "added": (START + "    c.modle = 3\n    return c", "modle"),
    "huge": (START + "    c.tokens = 10 ** 5000\n    return c", "tokens"),
    "inf": (START + "    c.schedule.peak_lr = float('inf')\n    return c", "peak_lr"),
    "null": (START + "    c.data.store = 'a\\0b'\n    return c", "data.store"),
    "surrogate": (START + "    c.data.store = 'a\\ud800b'\n    return c", "data.store"),
    "returns-none": ("def get_config():\n    pass", "config"),
    "returns-list": ("def get_config():\n    return [1]", "config"),
    "returns-dict": ("def get_config():\n    return {'tokens': 3}", "config"),
    "returns-function": ("from jaxlab.config import default\ndef get_config():\n    return default", "config"),
    "wants-more": ("def get_config(a, b):\n    pass", "config"),
    "nothing": ("x = 1", "get_config"),
    "empty": ("", "get_config"),
    "binary": (bytes(range(256)), "config"),
    "latin": ("# caf\u00e9\nx = 1".encode("latin-1"), "config"),
    "absent-import": ("import no_such_module\ndef get_config():\n    pass", "no_such_module"),
}


def file_cases() -> Iterator[Case]:
    for name, (content, words) in FILES.items():
        flags = ("--config=bad.py", "--workdir=new")
        yield Case(f"train/file/{name}", "train", flags, "refused", (words,), make=saved({"bad.py": content}))
    odd = config(tokens=1_024, schedule__warmup_tokens=512, spectra__at="").replace("\n", "\r\n")
    flags = ("--config=\u00fc ber[bold].py", "--workdir=new")
    make = saved({"\u00fc ber[bold].py": b"\xef\xbb\xbf" + odd.encode()})
    yield Case("train/file/bom-crlf-name", "train", flags, "fine", ("bits/byte",), make=make)
    make = saved({"folder.py/x": ""})
    yield Case(
        "train/file/folder", "train", ("--config=folder.py", "--workdir=new"), "refused", ("folder.py",), make=make
    )


# Flags of all launchers: launcher, flags, words; the flags that it needs besides come from NEEDED.

CONFIGURED = "--config=config.py"
NEEDED = {
    "train": {"--config": "config.py", "--workdir": "new"},
    "prepare": {"--config": "config.py"},
    "evaluate": {"--config": "config.py", "--workdir": "run", "--tasks": "piqa", "--items": "items"},
    "export": {"--config": "llama.py", "--workdir": "llama", "--to": "to"},
    "import_hf": {"--config": "llama.py", "--from": "hf", "--workdir": "new"},
    "branch": {"--workdir": "run", "--times": "1", "--window": "512"},
    "inspect": {"--workdir": "run"},
    "study": {"--study": "study.py:smoke", "": "list"},
    "plan": {},
}
PARTS = {
    "train": "config store run items",
    "prepare": "config texts",
    "evaluate": "config store run items",
    "export": "store llama",
    "import_hf": "store llama hf",
    "branch": "store run",
    "inspect": "run",
    "study": "config store study runs texts",
    "plan": "config",
}
BAD_PATHS = {  # value, words
    "empty": ("", ""),
    "file": ("config.py", "config.py"),
    "under-file": ("config.py/new", "config.py"),
    "proc": ("/proc/nowhere/new", "/proc/nowhere"),
    "gs": ("gs://bucket/new", "gs://bucket"),
    "nobody": ("~nobody-here/new", "nobody-here"),
    "long": ("x" * 300, "xxx"),
}
ABSENT = {"absent": ("absent", "absent"), "empty-folder": ("bare", "bare")} | {
    k: BAD_PATHS[k] for k in ("empty", "file", "gs", "nobody", "long")
}
PATHS = {  # launcher, flag: values
    ("train", "--workdir"): BAD_PATHS,
    ("train", "--start_from"): {k: v for k, v in ABSENT.items() if k != "empty"},
    ("train", "--continue_from"): {k: v for k, v in ABSENT.items() if k != "empty"},
    ("prepare", "--config.data.store"): {k: v for k, v in BAD_PATHS.items() if k != "gs"} | {"s3": ("s9://x/y", "s9")},
    ("prepare", "--config.data.source"): {
        "absent": ("files:absent/*.txt", "absent"), "nothing": ("files:", "files"), "unknown": ("wiki", "wiki"),
        "folder": ("files:texts", "texts"), "suffix": ("files:*.py", "config.py"), "nobody": ("files:~nobody-here/*", "nobody-here"),
        "tfds-absent": ("tfds:absent/en", "absent"), "tfds-nothing": ("tfds:", "tfds"), "gs": ("files:gs://b/*.txt", "gs://b"),
        "upper": ("FILES:texts/*.txt", "FILES"), "long": (f"files:{'x' * 300}", "xxx"),
    },
    ("prepare", "--config.data.tokenizer"): {
        "zero": ("bpe:0", "bpe:0"), "few": ("bpe:10", "bpe:10"), "many": ("bpe:99999999", "bpe:99999999"), "word": ("bpe:x", "bpe:x"),
        "huge": (f"bpe:{'9' * 5000}", "bpe"), "negative": ("bpe:-5", "bpe:-5"), "bytes-more": ("bytes:3", "bytes:3"),
        "square": ("bpe:\u00b2", "bpe"), "arabic": ("bpe:\u0663\u0660\u0660", "bpe"), "spm-absent": ("spm:absent.model", "absent.model"),
        "spm-text": ("spm:config.py", "config.py"), "hf-text": ("hf:config.py", "config.py"), "hf-folder": ("hf:texts", "texts"),
        "hf-nobody": ("hf:~nobody-here/x", "nobody-here"), "nothing": ("", "tokenizer"),
    },
    ("prepare", "--config.data.validation_fraction"): {
        v: (v, "validation_fraction") for v in ("0", "1", "nan", "inf", "-0.5", "half")
    },
    ("evaluate", "--workdir"): ABSENT,
    ("evaluate", "--items"): {k: v for k, v in ABSENT.items() if k not in ("file", "empty")} | {"nothing": ("", "items")},
    ("evaluate", "--tasks"): {"unknown": ("nothing", "nothing"), "shots": ("piqa:3", "piqa:3"), "many": ("mmlu:9", "mmlu:9"),
                              "minus": ("mmlu:-1", "mmlu:-1"), "square": ("mmlu:\u00b2", "mmlu"), "commas": (",,", "tasks"), "none": ("", "tasks")},
    ("evaluate", "--limit"): {v: (v, "limit") for v in ("-1", "x", "1.5", "nan", "")},
    ("evaluate", "--stores"): {"absent": ("absent", "absent"), "file": ("config.py", "config.py"), "nobody": ("~nobody-here", "nobody-here"),
                               "twice-absent": ("store,absent", "absent"), "blank": (" ", "stores")},
    ("export", "--workdir"): ABSENT,
    ("export", "--to"): BAD_PATHS,
    ("export", "--dtype"): {v: (v, "dtype") for v in ("float16", "", "FLOAT32", "int8")},
    ("import_hf", "--from"): ABSENT,
    ("import_hf", "--workdir"): BAD_PATHS | {"has-a-run": ("llama", "llama")},
    ("branch", "--workdir"): ABSENT,
    ("branch", "--at"): {v: (v, "at") for v in ("7", "x", "-1", "0", "1e3", "4096,x", "nan")},
    ("branch", "--times"): {v: (v, "times") for v in ("0", "x", "-1", "1.5", "", "1,,2")} | {"huge": ("9" * 5_000, "times")},
    ("branch", "--window"): {v: (v, "window") for v in ("-1", "x", "100", "1.5", "")},
    ("branch", "--tolerance"): {v: (v, "tolerance") for v in ("nan", "inf", "-1", "x", "")},
    ("inspect", "--workdir"): ABSENT,
    ("study", "--study"): {
        "unknown": ("nothing:smoke", "nothing"), "scale": ("chinchilla:huge", "huge"), "bare": ("chinchilla", "chinchilla"),
        "empty": ("", "study"), "absent": ("absent.py:smoke", "absent.py"), "folder": ("texts:smoke", "texts"),
        "machinery": ("worker:smoke", "worker"), "nobody": ("~nobody-here/x.py:smoke", "nobody-here"), "colon": (":", ":"),
        "gs": ("gs://bucket/study.py:smoke", "gs://bucket"),
    },
    ("study", "--runs"): {k: v for k, v in BAD_PATHS.items() if k in ("gs", "nobody", "file", "long", "empty")},
    ("study", "--part"): {"unknown": ("z", "--part=z"), "markup": ("[bold]", "[bold]")},
    ("study", "--set"): {
        "unknown": ("model.depth=3", "model.depth"), "kind": ("tokens=many", "tokens"), "small": ("tokens=7", "tokens"),
        "no-value": ("tokens", "tokens"), "no-key": ("=3", "set"), "nothing": ("", "set"), "bool": ("mesh.fsdp=banana", "mesh.fsdp"),
        "bool-two": ("log.tensorboard=2", "log.tensorboard"), "nan": ("schedule.peak_lr=nan", "peak_lr"), "inf": ("optim.eps=inf", "eps"),
        "float-for-int": ("tokens=1.5", "tokens"), "huge": (f"tokens={'9' * 5000}", "tokens"), "section": ("model=3", "model"),
    },
}  # fmt: skip
RUN_PATHS = {  # of the actions that do something: launcher, action, flag: values
    ("study", "run", "--index"): {v: (v, "index") for v in ("-1", "99", "x", "1.5", "")},
    ("study", "run", "--workers"): {v: (v, "workers") for v in ("-1", "999", "x")},
    ("study", "report", "--results"): {k: v for k, v in BAD_PATHS.items() if k in ("gs", "nobody", "file", "long")},
}
FLAGS = """
train | --workdr=x | workdr
train | stray | stray
train | --config.tokens | tokens
train | --config.model.depth=3 | depth
train | --print_sharding=banana | print_sharding
train | --processes=garbage | processes
train | --processes=HOST | processes
train | --processes=a:b,c,d | processes
train | --processes=localhost:1,5,2 | processes
train | --processes=localhost:1,0,0 | processes
train | --processes=localhost:99999,0,2 | processes
train | --processes=,, | processes
train | --processes=auto | processes
train | --processes=localhost:1234,-1,1 | processes
train | --config= | config
train | --config=absent.py | absent.py
train | --config=config.py:argument | config
train | --config=~nobody-here/c.py | nobody-here
train | --start_from=new | new
train | --continue_from=run@x | run@x
train | --continue_from=run@0 | run@0
train | --continue_from=run@3 | has no checkpoint at 3 tokens
train | --continue_from=@3 | continue_from
train | --continue_from=run --start_from=run | start_from
prepare | stray | stray
prepare | --unknown=3 | unknown
prepare | --config= | config
prepare | --workdir=x | workdir
evaluate | stray words | stray
evaluate | --unknown | unknown
evaluate | --processes=garbage | processes
evaluate | --config.model.d_ff=32 | d_ff
export | stray | stray
export | --unknown=1 | unknown
export | --config=config.py | config|differs|family
import_hf | stray | stray
import_hf | --unknown | unknown
import_hf | --config=config.py | model
import_hf | --config.model.d_ff=32 | d_ff
branch | stray | stray
branch | --unknown=1 | unknown
branch | --config=config.py | config
branch | --processes=garbage | processes
inspect | stray | stray
inspect | --unknown=1 | unknown
inspect | --workdir | workdir
study | list run | list run
study | dance | dance
study | --unknown=1 | unknown
study | --dry_run=banana | dry_run
harness | run --model jaxlab | lm-eval|lm_eval
plan | | no plan
plan | dance | dance
plan | diloco precision | diloco
plan | diloco | params
plan | diloco --params=0 | params
plan | diloco --params=-1e9 | params
plan | diloco --params=nan | params
plan | diloco --params=inf | params
plan | diloco --params=x | params
plan | diloco --params= | params
plan | diloco --params=1e9 --replicas=-1 | replicas
plan | diloco --params=1e9 --replicas=1.5 | replicas
plan | diloco --params=1e9 --replicas=4 --chips=2 | chips
plan | diloco --params=1e9 --chips=0 | chips
plan | diloco --params=1e9 --tokens_per_param=nan | tokens_per_param
plan | diloco --params=1e9 --tokens_per_param=-20 | tokens_per_param
plan | diloco --params=1e9 --tokens=1e9 | tokens
plan | precision --params=1e9 | tokens
plan | precision --params=1e9 --tokens=nan | tokens
plan | precision --params=1e9 --tokens=0 | tokens
plan | precision --params=1e9 --tokens=1e12 --block=1 | block
plan | precision --params=1e9 --tokens=1e12 --block=nan | block
plan | precision --params=1e9 --tokens=1e12 --block=inf | block
plan | precision --params=1e9 --tokens=1e12 --block=-128 | block
plan | precision --params=1e9 --tokens=1e12 stray | stray
plan | width | d_model
plan | width --d_model=0 | d_model
plan | width --d_model=-768 | d_model
plan | width --d_model=7.5 | d_model
plan | width --d_model=768 --optimiser=sgd | sgd
plan | width --d_model=768 --optimiser= | optimiser
plan | width --d_model=768 --ranks=absent.csv | absent.csv
plan | width --d_model=768 --ranks=. | ranks
plan | width --d_model=768 --ranks=~nobody-here/r.csv | nobody-here
plan | width --d_model=768 --ranks=gs://b/r.csv | gs://b
plan | width --d_model=768 --ranks=config.py | config.py
plan | width --d_model=768 --params=3 | params
plan | batch --params=4e9 | tokens
plan | batch --params=nan --tokens=1e9 | params
plan | batch --params=4e9 --tokens=inf | tokens
plan | batch --params=4e9 --tokens=500e9 --schedule=garbage | schedule
plan | batch --params=4e9 --tokens=500e9 --schedule=0:nan | schedule
plan | batch --params=4e9 --tokens=500e9 --schedule=0:-1 | schedule
plan | batch --params=4e9 --tokens=500e9 --schedule=10:512 | schedule
plan | batch --params=4e9 --tokens=1000 --schedule=0:2Mi | schedule
plan | batch --params=4e9 --tokens=500e9 --schedule=seesaw:1.1 | schedule
plan | batch --params=4e9 --tokens=500e9 --schedule=curve:1,0,nan_every_1B | schedule
plan | batch --params=4e9 --tokens=500e9 --schedule=curve:1,0,0.5_every_1 | schedule
plan | batch --params=4e9 --tokens=500e9 --schedule=0:1_1:2_10B:9999999Gi | schedule
plan | batch --params=4e9 --tokens=1e9 --schedule=0:512 --block=3 | block
"""  # in a schedule _ stands for a blank
LEGAL = """
train | --config.tokens 1024 --config.schedule.warmup_tokens=512 --config.spectra.at= | bits/byte
train | --print_sharding | embedding
train | --workdir=run | already finished
train | --workdir=./run/ | already finished
evaluate | --limit=2 | piqa
evaluate | --limit=99999999999 | piqa
evaluate | --stores=store --tasks= | store
evaluate | --tasks=piqa,piqa | piqa
evaluate | --config.evaluate.tasks=piqa --config.evaluate.items_from=items | piqa
export | --dtype=bfloat16 | model.safetensors
branch | --at=4096 --times=1 --window=1024 | 4,096
inspect | --workdir=run/ | eDim
study | --runs=elsewhere | planned
study | --part=a | finished
study | --set=log.tensorboard=true | finished
study | --set=log.tensorboard=false | finished
study | --set=data.archives=a=b | finished
plan | diloco --params=1.3e9 --replicas=4 | 1.3e+09
plan | diloco --params=1.3e9 --replicas=0 | data-parallel
plan | precision --params=1e9 --tokens=1e12 | E4M3
plan | width --d_model=768 | 768
plan | batch --params=4e9 --tokens=500e9 --schedule=0:2Mi_125B:4Mi | mean
plan | batch --params=4e9 --tokens=1e16 --schedule=0:2Mi_125B:4Mi | mean
"""


# Absurd, and answered by a formula or refused.
ABSURD = """
plan | diloco --params=1e9 --replicas=99999999999999999999 | replicas
plan | diloco --params=1e300 | params
plan | diloco --params=1e-300 | params
plan | precision --params=1e300 --tokens=1e300 | params|tokens
plan | width --d_model=99999999999999999999999 | d_model
plan | batch --params=4e9 --tokens=1e300 | tokens
plan | batch --params=4e9 --tokens=0.5 | tokens
"""


def flag_case(launcher: str, given: list[str], expect: str, words: tuple[str, ...], name: str, **more) -> Case:
    """A case of the flags given and those that the launcher needs besides; of a word alone where it takes an action."""
    there = {flag.partition("=")[0] for flag in given if flag.startswith("--")}
    needed = [f"{k}={v}".removeprefix("=") for k, v in NEEDED.get(launcher, {}).items() if k not in there]
    if launcher == "study" and given and not given[0].startswith("--"):
        needed.remove("list")
    make = more.pop("make", lambda folder: (folder / "bare").mkdir())
    parts = PARTS.get(launcher, "config") + (" config" if "config.py" in " ".join(given) else "")
    parts = " ".join(dict.fromkeys(parts.split()))
    return Case(f"{launcher}/{name}", launcher, (*needed, *given), expect, words, parts, make, **more)


def flag_cases() -> Iterator[Case]:
    for (launcher, flag), values in PATHS.items():
        for kind, (value, words) in values.items():
            yield flag_case(
                launcher,
                [f"{flag}={value}"],
                "refused",
                (words or flag.rpartition("config.")[2].strip("-"),),
                f"{flag}/{kind}",
            )
    for (launcher, action, flag), values in RUN_PATHS.items():
        for kind, (value, words) in values.items():
            yield flag_case(launcher, [action, f"{flag}={value}"], "refused", (words,), f"{action}/{flag}/{kind}")
    for table, expect in ((FLAGS, "refused"), (LEGAL, "fine"), (ABSURD, "either")):
        for launcher, given, words in (row.split("|", 2) for row in filter(None, table.splitlines())):
            launcher, given, words = launcher.strip(), given.split(), words.strip()
            given = [w.replace("_", " ") if w.startswith("--schedule") else w for w in given]
            name = f"{'legal' if expect == 'fine' else 'flags'}/{' '.join(given)}"
            yield flag_case(launcher, given, expect, (words,), name)
    for launcher, needed in NEEDED.items():
        for flag in needed:
            if flag and flag not in ("--items", "--times", "--window"):  # which may be left out
                given = tuple(f"{k}={v}".removeprefix("=") for k, v in needed.items() if k != flag)
                name, parts = f"{launcher}/missing/{flag}", PARTS[launcher]
                yield Case(name, launcher, given, "refused", (flag.strip("-") + "|--tasks",), parts)
    for name, text in {"undecodable": "new\udcff", "null": "new\0x"}.items():
        yield flag_case("train", [f"--workdir={text}", *SHORT_RUN], "refused", ("workdir",), f"--workdir/{name}")
        yield flag_case("export", [f"--to={text}"], "refused", ("to",), f"--to/{name}")
        yield flag_case(
            "prepare", [f"--config.data.store={text}"], "refused", ("store",), f"--config.data.store/{name}"
        )
    for name in ("[bold]new[/bold]", "a b", "\u00fc\u4e2d", "~/new", "new[/]", "deep/er/new"):
        yield flag_case(
            "train", [f"--workdir={name}", *SHORT_RUN], "fine", ("bits/byte", name.lstrip("~")), f"name/{name}"
        )
    for name in ("[x]", "q?x", "st*r", "a%20b", "h#x"):  # what is saved there is read again at once
        given = [f"--workdir={name}", "--start_from=run", *SHORT_RUN]
        yield flag_case("train", given, "fine", ("bits/byte",), f"name/saved and read {name}")
    odd = "[bold]odd \u00fc"
    rename = lambda old: lambda folder: (folder / old).rename(folder / odd)
    yield flag_case("evaluate", [f"--items={odd}"], "fine", ("piqa",), "name/items", make=rename("items"))
    yield flag_case("evaluate", [f"--workdir={odd}"], "fine", ("piqa", odd), "name/workdir", make=rename("run"))
    yield flag_case("evaluate", [f"--stores={odd}", "--tasks="], "refused", (odd,), "name/stores-absent")
    yield flag_case("inspect", [f"--workdir={odd}"], "fine", ("eDim", odd), "name/workdir", make=rename("run"))
    yield flag_case("export", [f"--to={odd}"], "fine", (odd,), "name/to")
    yield flag_case("export", [f"--workdir={odd}"], "fine", ("safetensors",), "name/workdir", make=rename("llama"))
    yield flag_case("import_hf", [f"--from={odd}"], "fine", (odd,), "name/from", make=rename("hf"))
    yield flag_case("prepare", [f"--config.data.store={odd}"], "fine", (odd,), "name/store")
    yield flag_case("prepare", ["--config.data.source=files:[b]*/*.txt"], "fine", ("files:[b]*/*.txt",), "name/glob",
                    make=saved({f"b{i}/x.txt": f"some text {i} " * 50 for i in range(4)}))  # fmt: skip
    yield flag_case(
        "branch", [f"--workdir={odd}", "--times=1", "--window=512"], "fine", (odd,), "name/workdir", make=rename("run")
    )
    yield flag_case("study", [f"--runs={odd}"], "fine", ("planned",), "name/runs")
    yield flag_case("train", ["--start_from=~/run"], "fine", ("bits/byte",), "name/start_from-home")
    yield flag_case("study", ["--study=~/study.py:smoke"], "fine", ("finished",), "name/study-home")
    yield flag_case("inspect", ["--workdir=~/run"], "fine", ("eDim",), "name/workdir-home")


SHORT_RUN = ("--config.tokens=1024", "--config.schedule.warmup_tokens=512", "--config.spectra.at=")


# Long plans


def plan_cases() -> Iterator[Case]:
    endless = ("--config.tokens=100000000000000",)
    yield Case("train/plan/10^14 tokens", "train", NEW + endless, "fine", ("stopped at",), stop="compiled")
    yield Case("train/plan/10^14 tokens, spectra", "train", (*NEW, *endless, "--config.spectra.at=log:50"), "fine",
               ("stopped at",), stop="compiled")  # fmt: skip
    growth = "--config.batch.growth=curve:600,0,0 every 1"
    yield Case(
        "train/plan/10^14 tokens, curve every 1", "train", (*NEW, *endless, growth), "refused", ("batch.growth",)
    )
    growth = "--config.batch.growth=seesaw:1.0000000001"
    flags = (*NEW, *endless, growth, "--config.batch.lr_rule=sqrt")
    yield Case("train/plan/seesaw in 10^10 steps", "train", flags, "refused", ("batch.growth",))
    yield Case("train/plan/evaluate every token", "train", (*NEW, *SHORT_RUN, "--config.evaluate.every_tokens=1"), "fine",
               ("bits/byte",))  # fmt: skip
    flags = ("--study=study.py:smoke", "--dry_run", "run", "--set=tokens=100000000000000")
    yield Case("study/plan/dry run of 10^14 tokens", "study", flags, "fine", ("chip-hours",), "config store study")


# Damaged workdirs

OURS = ("empty", "list", "null", "number", "object", "binary", "nested", "html", "cut", "folder")


def workdir_cases() -> Iterator[Case]:
    parts = "config store half"
    for kind in OURS:
        make = damaged("half/config.json", kind)
        yield Case(f"train/config.json/{kind}", "train", TRAIN, "refused", ("config.json",), parts, make)
    for key in ("config", "data"):
        make = without("half/config.json", key)
        yield Case(f"train/config.json/no {key}", "train", TRAIN, "refused", ("config.json",), parts, make)
    for kind, edit in {
        "config list": {"config": []}, "data null": {"data": None}, "config number": {"config": 3}, "data list": {"data": [1]},
    }.items():  # fmt: skip
        make = edited("half/config.json", lambda c, e=edit: c | e)
        yield Case(f"train/config.json/{kind}", "train", TRAIN, "refused", ("config.json",), parts, make)
    make = changed("half/config.json", '"seed": 0', '"seed": 1')
    yield Case("train/config.json/digit", "train", TRAIN, "refused", ("config.json|seed",), parts, make)
    # The last checkpoint is there: the damaged result is set aside and reached again.
    finished, parts_run = ("--config=config.py", "--workdir=run"), "config store run"
    makes = {kind: damaged("run/result.json", kind) for kind in OURS if kind != "missing"}
    makes["no key"] = without("run/result.json", "bits_per_byte")
    makes["text"] = edited("run/result.json", lambda c: c | {"loss": "low"})
    makes["digit"] = changed("run/result.json", '"loss": ', '"loss": 1')
    for kind, make in makes.items():
        words = ("result.json", "bits/byte")
        yield Case(f"train/result.json/{kind}", "train", finished, "either", words, parts_run, make, same_result)
    metrics = {
        "empty": damaged("half/metrics.jsonl", "empty"), "missing": damaged("half/metrics.jsonl", "missing"),
        "cut": damaged("half/metrics.jsonl", "cut"),
        "bad line": changed("half/metrics.jsonl", '"steps": 3,', '"steps": 3 3,'),
        "binary line": changed("half/metrics.jsonl", '"steps": 3,', b'"steps": \xff\x00,'),
        "line of a list": changed("half/metrics.jsonl", '{"kind": "train", "steps": 2,', '[1]\n{"kind": "train", "steps": 2,'),
        "row without tokens": changed("half/metrics.jsonl", '"tokens": 1024,', '"tokns": 1024,'),
        "tokens of text": changed("half/metrics.jsonl", '"tokens": 1024,', '"tokens": "x",'),
        "null line": changed("half/metrics.jsonl", '{"kind": "train", "steps": 2,', 'null\n{"kind": "train", "steps": 2,'),
        "nested line": changed("half/metrics.jsonl", '{"kind": "train", "steps": 2,', "[" * 100_000 + '\n{"kind": "train", "steps": 2,'),
        "digits line": changed("half/metrics.jsonl", '"steps": 3,', f'"steps": {"9" * 6000},'),
        "blank lines": changed("half/metrics.jsonl", "}\n", "}\n\n   \n", 3),
        "no end of line": lambda f: (f / "half/metrics.jsonl").write_bytes((f / "half/metrics.jsonl").read_bytes()[:-1]),
        "crlf": changed("half/metrics.jsonl", "}\n", "}\r\n", 99),
    }  # fmt: skip
    for kind, make in metrics.items():
        words = () if kind in ("blank lines", "no end of line", "crlf") else ("metrics.jsonl",)
        check = fingerprint_only if kind in ("empty", "missing", "cut") else undisturbed
        yield Case(f"train/metrics.jsonl/{kind}", "train", TRAIN, "fine", ("bits/byte", *words), parts, make, check)
    make = damaged("half/metrics.jsonl", "folder")
    yield Case(
        "train/metrics.jsonl/folder", "train", TRAIN, "refused", ("metrics.jsonl",), parts, make, writes=("half/*",)
    )
    yield from checkpoint_cases(parts)


def same_result(folder: Path, template: Template) -> str:
    losses = [json.loads((place / "run/result.json").read_text())["loss"] for place in (folder, template.folder)]
    return "" if losses[0] == losses[1] else f"loss {losses[0]}, not {losses[1]}"


def fingerprint_only(folder: Path, template: Template) -> str:
    whole = template.want("run")
    return "" if tiny.fingerprint(folder / "half") == tiny.fingerprint(whole) else "other parameters"


def checkpoint_cases(parts: str) -> Iterator[Case]:
    record = "half/checkpoints/6144/record/metadata"
    newest = {
        "a file instead": last_checkpoint(replaced_by_file), "emptied": last_checkpoint(emptied), "bit": last_checkpoint(flipped),
        "cut": last_checkpoint(halved), "no record": last_checkpoint(lambda p: shutil.rmtree(p / "record")),
        "no state": last_checkpoint(lambda p: shutil.rmtree(p / "state")),
        "clock tokens + 1": clock(lambda c: [c[0] + 1, c[-1]]), "clock steps + 2": clock(lambda c: [c[0], c[-1] + 2]),
        "clock 10^30": clock(lambda c: [10**30, c[-1]]), "clock of the end": clock(lambda c: [8_192, 16]),
        "clock negative": clock(lambda c: [-512, -1]), "clock null": clock(lambda c: None), "clock empty": clock(lambda c: []),
        "clock text": clock(lambda c: ["6144", "12"]), "clock zero": clock(lambda c: [0, 0]),
        "clock half": clock(lambda c: [c[0] / 2, c[-1] / 2]),
        "record list": damaged(record, "list"), "record null": damaged(record, "null"), "record binary": damaged(record, "binary"),
        "record nested": damaged(record, "nested"), "no fingerprint": without(record, "fingerprint"), "no clock": without(record, "clock"),
        "replicas 2": edited(record, lambda c: c | {"replicas": 2}), "replicas text": edited(record, lambda c: c | {"replicas": "x"}),
        "replicas 0": edited(record, lambda c: c | {"replicas": 0}), "replicas 10^9": edited(record, lambda c: c | {"replicas": 10**9}),
    }  # fmt: skip
    for kind, make in newest.items():
        words = ("bits/byte", "damaged|6144")
        yield Case(f"train/checkpoint/{kind}", "train", TRAIN, "fine", words, parts, make, undisturbed)
    beside = {
        "stray file": saved({"half/checkpoints/notes.txt": "mine"}),
        "stray folder": saved({"half/checkpoints/notes/x": "mine"}),
        "temporary folder": saved({"half/checkpoints/7168.orbax-checkpoint-tmp-1/state/x": "part"}),
        "set aside before": saved({"half/checkpoints/damaged-6144/x": "mine"}),
    }
    for kind, make in beside.items():
        check = undisturbed
        yield Case(f"train/checkpoint/{kind}", "train", TRAIN, "fine", ("bits/byte",), parts, make, check)
    for kind, name in {"empty folder": "99999999", "empty folder between": "5120", "zeros": "06144"}.items():
        make = lambda folder, name=name: (folder / "half/checkpoints" / name).mkdir()
        yield Case(f"train/checkpoint/{kind}", "train", TRAIN, "fine", ("bits/byte",), parts, make, undisturbed)

    def all_of_them(change):
        def make(folder):
            for path in (folder / "half" / "checkpoints").iterdir():
                change(path)

        return make

    for kind, change in {"bit": flipped, "emptied": emptied, "a file instead": replaced_by_file}.items():
        make = all_of_them(change)
        yield Case(f"train/checkpoint/all: {kind}", "train", TRAIN, "refused", ("checkpoint",), parts, make)

    def a_file(folder):
        shutil.rmtree(folder / "half/checkpoints")
        (folder / "half/checkpoints").write_text("x")

    yield Case("train/checkpoint/the folder is a file", "train", TRAIN, "refused", ("checkpoints",), parts, a_file)
    stale = saved({"new/checkpoints/0.orbax-checkpoint-tmp-7/state/x": "part"})
    flags = (
        *NEW,
        "--start_from=run",
        "--config.tokens=2048",
        "--config.spectra.at=",
        "--config.evaluate.every_tokens=0",
    )
    yield Case("train/start_from/stale temporary folder", "train", flags, "fine", ("bits/byte",), "config store run", stale,
               started_from_run)  # fmt: skip
    yield Case(
        "train/start_from/sound", "train", flags, "fine", ("bits/byte",), "config store run", None, started_from_run
    )
    make = saved({"new/checkpoints/notes.txt": "mine"})
    yield Case(
        "train/start_from/stray file",
        "train",
        flags,
        "fine",
        ("bits/byte",),
        "config store run",
        make,
        started_from_run,
    )

    def source(change):
        return lambda folder: change(folder / "run" / "checkpoints" / "8192")

    for kind, change in {"bit": flipped, "emptied": emptied, "a file instead": replaced_by_file}.items():
        yield Case(
            f"train/start_from/source {kind}", "train", flags, "refused", ("run",), "config store run", source(change)
        )
    for kind in ("null", "list", "cut"):
        make = damaged("run/config.json", kind)
        yield Case(
            f"train/start_from/config.json {kind}",
            "train",
            flags,
            "refused",
            ("config.json",),
            "config store run",
            make,
        )
    other = (*NEW, "--start_from=run", "--config.model.d_ff=32")
    yield Case("train/start_from/other model", "train", other, "refused", ("d_ff",), "config store run")


def started_from_run(folder: Path, template: Template) -> str:
    """The first loss is that of trained parameters: near the end of the run, far from ln 257 = 5.5."""
    first = next(row for row in tiny.rows(folder / "new") if row["kind"] == "train")
    last = [row for row in tiny.rows(template.want("run")) if row["kind"] == "train"][-1]
    return (
        "" if first["loss"] < last["loss"] + 0.3 else f"first loss {first['loss']:.2f}, the source's {last['loss']:.2f}"
    )


# Damaged stores


def store_cases() -> Iterator[Case]:
    for kind in OURS:
        make = damaged("store/meta.json", kind)
        words = ("meta.json|store",)
        yield Case(f"train/meta.json/{kind}", "train", NEW, "refused", words, make=make)
    for kind in ("empty", "list", "null", "binary", "cut"):
        yield flag_case("prepare", [], "refused", ("meta.json|store",), f"meta.json/{kind}",
                        make=both(lambda f: shutil.copytree(TEMPLATE_STORE(f), f / "store"), damaged("store/meta.json", kind)))  # fmt: skip
    for key in ("splits", "eos", "format", "vocab_size", "tokenizer", "tokenizer_sha256", "source", "corpus_sha256"):
        make = without("store/meta.json", key)
        yield Case(f"train/meta.json/no {key}", "train", NEW, "refused", ("meta.json|store",), make=make)
    edits = {
        "vocab_size 300": {"vocab_size": 300}, "vocab_size 3": {"vocab_size": 3}, "vocab_size text": {"vocab_size": "many"}, "eos 3": {"eos": 3},
        "splits list": {"splits": []}, "splits text": {"splits": {"train": 3, "validation": 4}}, "format 99": {"format": 99},
        "tokenizer hash": {"tokenizer_sha256": "0" * 64}, "tokenizer other": {"tokenizer": "bpe:300"}, "tokenizer null": {"tokenizer": None},
    }  # fmt: skip
    for kind, edit in edits.items():
        make = edited("store/meta.json", lambda c, e=edit: c | e)
        yield Case(f"train/meta.json/{kind}", "train", NEW, "refused", ("store",), make=make)
    make = changed("store/meta.json", '"tokens": ', '"tokens": 1')
    yield Case("train/meta.json/digit of tokens", "train", NEW, "refused", ("store",), make=make)
    make = changed("store/meta.json", '"bytes": ', '"bytes": 1')
    yield Case("train/meta.json/digit of bytes", "train", NEW, "refused", ("store",), make=make)

    def shard(change, split="train"):
        return lambda folder: change(folder / "store" / split / "c" / "0")

    def removed(path):
        path.unlink()

    def folder_instead(path):
        path.unlink()
        path.mkdir()

    def bit(path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def cut(path):
        path.write_bytes(path.read_bytes()[:-100])

    for kind, change in {"bit": bit, "cut": cut, "removed": removed, "folder": folder_instead}.items():
        for split in ("train", "validation"):
            yield Case(
                f"train/shard/{split} {kind}",
                "train",
                NEW,
                "refused",
                ("store",),
                make=shard(change, split),
                writes=("new/*",),
            )
    swap = lambda f: (f / "store/train/c/0").write_bytes((f / "store/validation/c/0").read_bytes())
    yield Case("train/shard/validation's for train's", "train", NEW, "refused", ("store",), make=swap)
    for kind in ("empty", "list", "binary", "cut", "folder", "object"):
        make = damaged("store/train/zarr.json", kind)
        yield Case(f"train/zarr.json/{kind}", "train", NEW, "refused", ("store",), make=make)
    flags = (*NEW, "--config.data.tokenizer=bpe:271", "--config.data.store=bpe")
    for kind in ("empty", "binary", "cut", "missing", "html"):
        make = damaged("bpe/tokenizer.model", kind)
        yield Case(f"train/tokenizer.model/{kind}", "train", flags, "refused", ("tokenizer|bpe",), "config bpe", make)
    make = lambda folder: bit(folder / "bpe/tokenizer.model")
    yield Case("train/tokenizer.model/bit", "train", flags, "refused", ("tokenizer|bpe",), "config bpe", make)
    for kind in ("empty", "list", "null", "object", "binary", "cut", "folder", "nested"):
        make = saved({"store/prepare.json": b'{"inputs": {"format": 1}, "threshold": 0.05, "splits": {}}'})
        make = both(make, damaged("store/prepare.json", kind))
        yield flag_case("prepare", [], "refused", ("prepare.json",), f"prepare.json/{kind}", make=make)
    for kind in ("0.5", "0.01"):
        flag = f"--config.data.validation_fraction={kind}"
        yield Case(
            f"train/store/validation_fraction {kind}", "train", (*NEW, flag), "refused", ("validation_fraction",)
        )
        parts = "config texts store"
        yield Case(
            f"prepare/store/validation_fraction {kind}",
            "prepare",
            (CONFIGURED, flag),
            "refused",
            ("validation_fraction",),
            parts,
        )
    make = saved({"texts/new.txt": "a text that came later " * 50})
    yield Case(
        "prepare/store/corpus changed",
        "prepare",
        (CONFIGURED,),
        "refused",
        ("corpus|store",),
        "config texts store",
        make,
    )
    yield Case("prepare/store/sound", "prepare", (CONFIGURED,), "fine", ("already complete",), "config texts store")
    make = saved({"precious/train/c/x": "mine", "precious/notes.txt": "mine"})
    yield flag_case(
        "prepare", ["--config.data.store=precious"], "refused", ("precious",), "store/something else", make=make
    )


def TEMPLATE_STORE(folder: Path) -> Path:
    """The template's store, for cases of `prepare` alone."""
    return folder.parent / "template" / "store"


# Corpora

TEXT = "some text of an ordinary kind, long enough to train on. " * 20


def rows_text(*rows: bytes) -> bytes:
    good = json.dumps({"text": TEXT}).encode()
    return b"\n".join((good, good.replace(b"some", b"more"), *rows, good.replace(b"some", b"less"))) + b"\n"


ROWS = {
    "not JSON": b"{text: 3}", "cut": b'{"text": "abc', "list": b'["text"]', "null": b"null", "no text": b'{"txt": "a"}',
    "text null": b'{"text": null}', "text number": b'{"text": 3}', "text list": b'{"text": ["a"]}', "surrogate": b'{"text": "a\\ud800b"}',
    "low surrogate": b'{"text": "a\\udc00"}', "not UTF-8": b'{"text": "\xff\xfe"}', "digits": b'{"text": "a", "n": ' + b"9" * 6000 + b"}",
    "nested": b'{"text": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "html": HTML, "NUL": b'\0\0\0\0',
    "utf-16": '{"text": "a"}'.encode("utf-16"),
}  # fmt: skip
GOOD_ROWS = {
    "blank lines": b"\n   \n", "crlf": b'{"text": "a b c"}\r', "other keys": b'{"text": "a", "text2": {"x": [1, null]}}',
    "pair of surrogates": b'{"text": "\\ud83d\\ude00"}', "long line": b'{"text": "' + b"a " * 200_000 + b'"}', "empty text": b'{"text": ""}',
    "NUL in text": b'{"text": "a\\u0000b"}', "U+2028": '{"text": "a\u2028b"}'.encode(),
}  # fmt: skip


def tar_of(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("_DOT_", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zst(content: bytes) -> bytes:
    import pyarrow

    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return out.getvalue().to_pybytes()


def corpus_cases() -> Iterator[Case]:
    def case(name, files, expect="refused", words=("in/",), tokenizer="bytes", more=(), parts="config"):
        source = more or ("--config.data.source=files:in/*",)
        flags = (CONFIGURED, *source, f"--config.data.tokenizer={tokenizer}")
        make = saved({f"in/{k}" if not k.startswith("/") else k[1:]: v for k, v in files.items()})
        return Case(f"prepare/corpus/{name}", "prepare", flags, expect, words, parts, make)

    for kind, row in ROWS.items():
        yield case(f"jsonl {kind}", {"a.jsonl": rows_text(row)}, words=("a.jsonl:3",))
    for kind, row in GOOD_ROWS.items():
        yield case(f"jsonl legal {kind}", {"a.jsonl": rows_text(row)}, "fine", ("documents",))
    good = TEXT.encode() * 50
    packed = {
        "gz": gzip.compress(good),
        "xz": lzma.compress(good),
        "zst": zst(good),
        "tar": tar_of(a_DOT_txt=good, b_DOT_txt=good),
    }
    packed["tar.gz"] = gzip.compress(packed["tar"])
    for suffix, content in packed.items():
        name = f"a.{suffix}" if "tar" in suffix else f"a.txt.{suffix}"
        fine = {"b.txt": TEXT}
        yield case(f"{suffix} cut", {name: content[: len(content) // 2]} | fine, words=(name,))
        yield case(f"{suffix} html", {name: HTML} | fine, words=(name,))
        yield case(f"{suffix} empty", {name: b""} | fine, "either")
        middle = bytearray(content)
        if suffix != "tar":  # which has no checksum of its content
            middle[len(content) // 2] ^= 255
            yield case(f"{suffix} byte", {name: bytes(middle)} | fine, words=(name,))
        yield case(f"{suffix} legal", {name: content} | fine, "fine", ("documents",))
    yield case("tar bad member", {"a.tar": tar_of(a_DOT_jsonl=b"{x", b_DOT_txt=good)}, words=("a.jsonl",))
    yield case("tar member not UTF-8", {"a.tar": tar_of(a_DOT_txt=b"\xff\xfe", b_DOT_txt=good)}, words=("a.txt",))
    yield case(
        "tar member cut gz", {"a.tar": tar_of(a_DOT_txt_DOT_gz=packed["gz"][:50], b_DOT_txt=good)}, words=("a.tar",)
    )
    yield case("txt not UTF-8", {"a.txt": b"caf\xe9 " * 99, "b.txt": TEXT}, words=("a.txt",))
    yield case("txt utf-16", {"a.txt": TEXT.encode("utf-16"), "b.txt": TEXT}, words=("a.txt",))
    yield case("one document", {"a.txt": TEXT})
    yield case("two empty documents", {"a.txt": "", "b.txt": "   "})
    yield case("unknown suffix", {"a.pdf": b"%PDF", "b.txt": TEXT}, words=("a.pdf",))
    yield case("zip", {"a.zip": b"PK", "b.txt": TEXT}, words=("a.zip",))
    yield case("legal bom crlf", {"a.txt": b"\xef\xbb\xbfa\r\nb\r\n" * 99, "b.txt": TEXT}, "fine", ("documents",))
    yield case("legal names", {"[bold]a.txt": TEXT, "\u00fc b.txt": TEXT}, "fine", ("documents",))
    yield case("legal long word", {"a.txt": "x" * 70_000, "b.txt": TEXT * 9}, "fine", ("documents",), "bpe:300")
    undecodable = lambda f: (
        (f / "in").mkdir() or Path(str(f / "in/a\udcff.txt")).write_text(TEXT) or (f / "in/b.txt").write_text(TEXT)
    )
    flags = (CONFIGURED, "--config.data.source=files:in/*", "--config.data.tokenizer=bytes")
    yield Case("prepare/corpus/name not UTF-8", "prepare", flags, "either", ("in/",), "config", undecodable)
    dangling = lambda f: (
        (f / "in").mkdir() or (f / "in/a.txt").symlink_to("nowhere") or (f / "in/b.txt").write_text(TEXT)
    )
    yield Case("prepare/corpus/dangling link", "prepare", flags, "refused", ("in/",), "config", dangling)
    folder = lambda f: (f / "in/a.txt").mkdir(parents=True) or (f / "in/b.txt").write_text(TEXT)
    yield Case("prepare/corpus/folder named as a file", "prepare", flags, "refused", ("in/",), "config", folder)
    from jaxlab.data.archives import MANIFEST

    for name, archive in MANIFEST.items():
        for kind, content in {"html": HTML, "zip": b"PK\x05\x06" + bytes(18)}.items():
            more = (f"--config.data.source={name}",)
            yield case(
                f"archive {name} {kind}",
                {f"/archives/{archive.filename}": content},
                words=(archive.filename,),
                more=more,
            )
    yield case("archives a file", {"/archives": b"x"}, words=("archives",), more=("--config.data.source=news",))
    yield from tokenizer_cases()


def bpe_json(**more) -> dict:
    vocab = {chr(i): i for i in range(32, 127)} | {"</s>": 127, "so": 128}
    model = {"type": "BPE", "vocab": vocab, "merges": [["s", "o"]], "unk_token": None, "byte_fallback": False}
    base = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
            "decoder": None, "truncation": None, "padding": None}  # fmt: skip
    return base | {"model": model | more.pop("model", {})} | more


def tokenizer_cases() -> Iterator[Case]:
    flags = (CONFIGURED, "--config.data.source=files:in/*", "--config.data.tokenizer=hf:tokenizer.json")
    texts = {"in/a.txt": TEXT, "in/b.txt": TEXT, "in/c.txt": TEXT * 3}
    padding = {
        "strategy": {"Fixed": 5000},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": " ",
    }
    cut = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    eos_id = bpe_json()
    eos_id["model"]["vocab"]["</s>"] = 10**9
    for kind, content in {
        "html": HTML, "empty": b"", "null": b"null", "object": b"{}", "nested": b"[" * 100_000, "not UTF-8": b"\xff\xfe{}",
        "no eos": json.dumps(bpe_json()).replace("</s>", "zzz"), "model list": json.dumps(bpe_json() | {"model": []}),
        "vocab list": json.dumps(bpe_json(model={"vocab": [1]})), 
        "negative id": json.dumps(bpe_json(model={"vocab": {"a": -1, "</s>": 2}, "merges": []})),
        "unknown merge": json.dumps(bpe_json(model={"merges": [["q", "zz"]]})),
        "cut": json.dumps(bpe_json())[:300],
    }.items():  # fmt: skip
        make = saved(texts | {"tokenizer.json": content})
        yield Case(f"prepare/tokenizer/{kind}", "prepare", flags, "refused", ("tokenizer.json",), "config", make)
    plain = saved(texts | {"tokenizer.json": json.dumps(bpe_json())})
    yield Case("prepare/tokenizer/sound", "prepare", flags, "fine", ("documents",), "config", plain, whole_text)
    for kind, content in {"id 10^9": eos_id, "truncation": bpe_json(truncation=cut), "padding": bpe_json(padding=padding), "dropout": bpe_json(model={"dropout": 0.5}),
                          "dropout 1": bpe_json(model={"dropout": 1.0})}.items():  # fmt: skip
        make = saved(texts | {"tokenizer.json": json.dumps(content)})
        yield Case(
            f"prepare/tokenizer/{kind}", "prepare", flags, "either", ("tokenizer.json",), "config", make, whole_text
        )
    for kind, content in {
        "empty": b"",
        "html": HTML,
        "binary": bytes(range(256)),
        "field": b"\x0a\xff\xff\xff\x7f",
    }.items():
        make = saved(texts | {"spm.model": content})
        more = (*flags[:2], "--config.data.tokenizer=spm:spm.model")
        yield Case(f"prepare/tokenizer/spm {kind}", "prepare", more, "refused", ("spm.model",), "config", make)


def whole_text(folder: Path, template: Template) -> str:
    """Each of the texts, 5 times 20 sentences in all, has as many tokens as this tokenizer gives it."""
    meta = json.loads((folder / "store/meta.json").read_text())
    tokens = sum(split["tokens"] for split in meta["splits"].values())
    expected = 5 * (len(TEXT) - TEXT.count("so")) + 3
    return "" if tokens == expected else f"{tokens} tokens, not {expected}"


# TFDS


def tfds_cases() -> Iterator[Case]:
    flags = (CONFIGURED, "--config.data.source=tfds:tiny_text/en", "--config.data.tokenizer=bytes")
    place = "tfds/tiny_text/en/1.0.0"
    spy = {"spy_module.py": "open('imported', 'w').close()\nclass Spy:\n    pass\n"}
    yield Case("prepare/tfds/sound", "prepare", flags, "fine", ("documents",), "config tfds")

    def evil(name, nested=False):
        def edit(content):
            if nested:
                next(iter(content["featuresDict"]["features"].values()))["pythonClassName"] = name
            else:
                content["pythonClassName"] = name

        return both(saved(spy), edited(f"{place}/features.json", edit))

    for kind, name in {"spy": "spy_module.Spy", "os.system": "os.system", "this": "this.Zen", "no module": "absent.Module",
                       "inside": "tensorflow_datasets.core.utils.py_utils.memoize", "prefix": "tensorflow_datasets_evil.Feature",
                       "builtins": "builtins.exec", "empty": "", "dots": "..spy_module.Spy"}.items():  # fmt: skip
        yield Case(
            f"prepare/tfds/class {kind}",
            "prepare",
            flags,
            "refused",
            ("features.json|tiny_text",),
            "config tfds",
            evil(name),
            not_run,
        )
    make = evil("spy_module.Spy", nested=True)
    yield Case(
        "prepare/tfds/class nested",
        "prepare",
        flags,
        "refused",
        ("features.json|tiny_text",),
        "config tfds",
        make,
        not_run,
    )
    for file in ("features.json", "dataset_info.json"):
        for kind in SOME:
            make = damaged(f"{place}/{file}", kind)
            yield Case(f"prepare/tfds/{file} {kind}", "prepare", flags, "refused", ("tiny_text",), "config tfds", make)
    make = damaged(f"{place}/features.json", "missing")
    yield Case("prepare/tfds/no features.json", "prepare", flags, "refused", ("tiny_text",), "config tfds", make)

    def shard(change):
        return lambda folder: change(next((folder / place).glob("*train*array_record*")))

    for kind, change in {"cut": lambda p: p.write_bytes(p.read_bytes()[:40]), "html": lambda p: p.write_bytes(HTML),
                         "removed": lambda p: p.unlink()}.items():  # fmt: skip
        yield Case(
            f"prepare/tfds/shard {kind}", "prepare", flags, "refused", ("tiny_text|tfds",), "config tfds", shard(change)
        )
    make = edited(f"{place}/dataset_info.json", lambda c: c | {"fileFormat": "riegeli"})
    yield Case("prepare/tfds/format riegeli", "prepare", flags, "refused", ("tiny_text|tfds",), "config tfds", make)

    def versions(folder):
        for version in ("1.9.0", "1.10.0"):
            shutil.copytree(folder / place, folder / "tfds/tiny_text/en" / version)
        (folder / "tfds/tiny_text/en/1.9.0/features.json").write_text("[]")  # read it, and it shows

    yield Case("prepare/tfds/versions in order", "prepare", flags, "fine", ("documents",), "config tfds", versions)
    flags = ("--config=config.py", "--workdir=run", "--tasks=hellaswag", "--items=tfds")
    yield Case("evaluate/tfds/absent", "evaluate", flags, "refused", ("hellaswag",), "config store run tfds")
    make = lambda f: (shutil.copytree(f / place, f / "tfds/hellaswag/1.0.0"), saved(spy)(f),
                      edited("tfds/hellaswag/1.0.0/features.json", lambda c: c | {"pythonClassName": "spy_module.Spy"})(f))  # fmt: skip
    yield Case(
        "evaluate/tfds/class spy", "evaluate", flags, "refused", ("hellaswag",), "config store run tfds", make, not_run
    )


# Evaluation items

ITEM = {"goal": "Open a box", "sol1": "pull", "sol2": "paint", "label": 0}
ITEMS = {
    "null": None, "list": [], "number": 3, "text": "x", "object": {}, "label 0.9": ITEM | {"label": 0.9}, "label 2": ITEM | {"label": 2},
    "label -1": ITEM | {"label": -1}, "label null": ITEM | {"label": None}, "label list": ITEM | {"label": [0]}, "label text": ITEM | {"label": "x"},
    "goal null": ITEM | {"goal": None}, "goal list": ITEM | {"goal": ["x"]}, "sol1 null": ITEM | {"sol1": None},
    "sol1 list": ITEM | {"sol1": []}, "sol1 empty": ITEM | {"sol1": ""}, "no sol2": {k: v for k, v in ITEM.items() if k != "sol2"},
    "label nan": ITEM | {"label": float("nan")}, "label true": ITEM | {"label": True}, "label 10^30": ITEM | {"label": 10**30},
}  # fmt: skip
ITEM_LINES = {
    "surrogate": b'{"goal": "a\\ud800", "sol1": "a", "sol2": "b", "label": 0}', "not UTF-8": b'{"goal": "\xff", "sol1": "a", "sol2": "b", "label": 0}',
    "digits": b'{"goal": "a", "sol1": "a", "sol2": "b", "label": ' + b"9" * 6000 + b"}", "nested": b"[" * 100_000, "html": HTML, "cut": b'{"goal": "a',
    "NUL": b"\0\0",
}  # fmt: skip
OTHER_ITEMS = {  # task, file, content
    "hellaswag endings text": ("hellaswag", "hellaswag_val.jsonl", {"ctx_a": "a", "ctx_b": "b", "activity_label": "c", "endings": "text", "label": 0}),
    "hellaswag endings null": ("hellaswag", "hellaswag_val.jsonl", {"ctx_a": "a", "ctx_b": "b", "activity_label": "c", "endings": [None, "x"], "label": 0}),
    "hellaswag ctx null": ("hellaswag", "hellaswag_val.jsonl", {"ctx_a": None, "ctx_b": "b", "activity_label": "c", "endings": ["a", "b"], "label": 0}),
    "arc choices null": ("arc_easy", "arc_easy_val.jsonl", {"id": "1", "question": "q", "choices": None, "answerKey": "A"}),
    "arc question null": ("arc_easy", "arc_easy_val.jsonl", {"id": "1", "question": None, "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}),
    "arc key": ("arc_easy", "arc_easy_val.jsonl", {"id": "1", "question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "Z"}),
    "arc id null": ("arc_easy", "arc_easy_val.jsonl", {"id": None, "question": "q", "choices": {"text": ["a", 3], "label": ["A", "B"]}, "answerKey": "A"}),
    "mmlu answer 7": ("mmlu", "mmlu.jsonl", {"question": "q", "choices": list("abcd"), "answer": 7, "subject": "anatomy"}),
    "mmlu subject null": ("mmlu", "mmlu.jsonl", {"question": "q", "choices": list("abcd"), "answer": 1, "subject": None}),
    "mmlu three choices": ("mmlu", "mmlu.jsonl", {"question": "q", "choices": list("abc"), "answer": 1, "subject": "anatomy"}),
    "mmlu choices text": ("mmlu", "mmlu.jsonl", {"question": "q", "choices": "abcd", "answer": 1, "subject": "anatomy"}),
    "mmlu answer true": ("mmlu", "mmlu.jsonl", {"question": "q", "choices": list("abcd"), "answer": True, "subject": "anatomy"}),
}  # fmt: skip
CSV = {
    "csv wide field": b'"' + b"x" * 200_000 + b'",a,b,c,d,A\n', "csv columns": b"q,a,A\n", "csv answer": b"q,a,b,c,d,Z\n", "csv empty": b"",
    "csv html": HTML, "csv not UTF-8": b"caf\xe9,a,b,c,d,A\n", "csv NUL": b"q,a\0,b,c,d,A\n", "csv open quote": b'"q,a,b,c,d,A\n', "csv answer missing": b"q,a,b,c,d,\n",
}  # fmt: skip


def item_cases() -> Iterator[Case]:
    parts = "config store run"
    flags = ("--config=config.py", "--workdir=run", "--items=in")
    good = [json.dumps(item) for item in PIQA]

    def case(name, task, files, expect="refused", words=("in",)):
        make = saved({f"in/{k}": v for k, v in files.items()})
        return Case(f"evaluate/items/{name}", "evaluate", (*flags, f"--tasks={task}"), expect, words, parts, make)

    for kind, item in ITEMS.items():
        yield case(kind, "piqa", {"valid.jsonl": "\n".join([*good, json.dumps(item)])})
    for kind, line in ITEM_LINES.items():
        yield case(kind, "piqa", {"valid.jsonl": "\n".join(good).encode() + b"\n" + line})
    for kind, (task, file, item) in OTHER_ITEMS.items():
        yield case(kind, task, {file: json.dumps(item)})
    for kind, content in CSV.items():
        expect = {"csv wide field": "either", "csv NUL": "either"}.get(kind, "refused")
        yield case(kind, "mmlu", {"test/anatomy_test.csv": content}, expect, ("in|mmlu",))
    yield case("gz cut", "piqa", {"piqa_val.jsonl.gz": gzip.compress("\n".join(good).encode())[:50]})
    yield case("gz html", "piqa", {"piqa_val.jsonl.gz": HTML})
    yield case("empty file", "piqa", {"valid.jsonl": b""})
    yield case("no such task there", "arc_easy", {"valid.jsonl": "\n".join(good)})
    yield case("labels fewer", "piqa", {"valid.jsonl": "\n".join(good), "valid-labels.lst": "0\n"})
    yield case("labels words", "piqa", {"valid.jsonl": "\n".join(good), "valid-labels.lst": "a\nb\nc\nd\n"})
    yield case("labels not UTF-8", "piqa", {"valid.jsonl": "\n".join(good), "valid-labels.lst": b"\xff\n0\n1\n0\n"})
    yield case("legal label text", "piqa", {"valid.jsonl": json.dumps(ITEM | {"label": "1"})}, "fine", ("piqa",))
    yield case(
        "legal long goal", "piqa", {"valid.jsonl": json.dumps(ITEM | {"goal": "word " * 500})}, "fine", ("piqa",)
    )
    yield case("legal blank lines", "piqa", {"valid.jsonl": "\n\n".join(good) + "\n\n"}, "either", ("in",))
    yield case("legal bom", "piqa", {"valid.jsonl": b"\xef\xbb\xbf" + "\n".join(good).encode()}, "either", ("in",))
    yield case(
        "legal none fits",
        "piqa",
        {"valid.jsonl": json.dumps(ITEM | {"sol1": "w " * 500, "sol2": "v " * 500})},
        "fine",
        ("piqa",),
    )


def evaluated_cases() -> Iterator[Case]:
    parts = "config store evaluated items"
    flags = ("--config=config.py", "--workdir=evaluated", "--tasks=piqa", "--items=items")
    yield Case("evaluate/again", "evaluate", flags, "fine", ("piqa",), parts)
    set_aside = "either", ("results",)  # its scores are read again from TASK.jsonl
    for kind in OURS:
        make = damaged("evaluated/evaluation/results.json", kind)
        yield Case(f"evaluate/results.json/{kind}", "evaluate", flags, *set_aside, parts, make, same_scores)
    make = edited("evaluated/evaluation/results.json", lambda c: dict.fromkeys(c, 3))
    yield Case("evaluate/results.json/numbers", "evaluate", flags, *set_aside, parts, make, same_scores)
    lines = {
        "bad first line": changed("evaluated/evaluation/piqa.jsonl", "{", "x{"), "null line": changed("evaluated/evaluation/piqa.jsonl", "{", "null\n{"),
        "list line": changed("evaluated/evaluation/piqa.jsonl", "{", "[]\n{"), "no key": changed("evaluated/evaluation/piqa.jsonl", '"key"', '"kay"'),
        "binary": damaged("evaluated/evaluation/piqa.jsonl", "binary"), "cut": damaged("evaluated/evaluation/piqa.jsonl", "cut"),
        "empty": damaged("evaluated/evaluation/piqa.jsonl", "empty"), "nested": damaged("evaluated/evaluation/piqa.jsonl", "nested"),
        "object lines": damaged("evaluated/evaluation/piqa.jsonl", "object"),
    }  # fmt: skip
    for kind, make in lines.items():
        yield Case(f"evaluate/TASK.jsonl/{kind}", "evaluate", flags, "fine", ("piqa",), parts, make, same_scores)
    make = damaged("evaluated/evaluation/piqa.jsonl", "folder")
    yield Case("evaluate/TASK.jsonl/folder", "evaluate", flags, "refused", ("piqa.jsonl",), parts, make)
    for kind in ("null", "list", "cut"):
        make = damaged("evaluated/config.json", kind)
        yield Case(f"evaluate/config.json/{kind}", "evaluate", flags, "refused", ("config.json",), parts, make)
    for kind, change in {"bit": flipped, "emptied": emptied, "a file instead": replaced_by_file}.items():
        make = lambda f, c=change: c(f / "evaluated/checkpoints/8192")
        yield Case(f"evaluate/checkpoint/{kind}", "evaluate", flags, "refused", ("evaluated",), parts, make)

    def another_model(folder):
        for name in ("checkpoints", "config.json", "metrics.jsonl", "result.json"):
            path = folder / "evaluated" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            (folder / "other" / name).rename(path)

    more = (*flags, "--config.seed=1")
    yield Case(
        "evaluate/another model", "evaluate", more, "fine", ("piqa",), f"{parts} other", another_model, other_scores
    )


def other_scores(folder: Path, template: Template) -> str:
    return "" if same_scores(folder, template) else "the scores of the model that was there before"


def same_scores(folder: Path, template: Template) -> str:
    found, wanted = (
        json.loads((place / "evaluation/results.json").read_text())
        for place in (folder / "evaluated", template.want("evaluated"))
    )

    def tasks(content):
        return [v["tasks"] for v in content.values() if isinstance(v, dict)]

    return "" if tasks(found) == tasks(wanted) else "other scores than before"


# Export and import


def safetensors(header: bytes | dict, data: bytes = b"") -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def export_cases() -> Iterator[Case]:
    flags = ("--config=llama.py", "--workdir=llama", "--to=hf")
    yield Case("export/into an older one", "export", flags, "fine", ("safetensors",), "store llama hf")
    make = saved({"hf/notes.txt": "mine"})
    check = holds("hf/notes.txt", "mine")
    yield Case("export/beside files of others", "export", flags, "either", ("hf",), "store llama hf", make, check)
    yield Case("export/mode of the weights", "export", flags, "fine", ("safetensors",), "store llama", None, readable)
    for kind in ("null", "list", "cut", "folder"):
        make = damaged("llama/config.json", kind)
        yield Case(f"export/config.json/{kind}", "export", flags, "refused", ("config.json",), "store llama", make)
    for kind, change in {"bit": flipped, "emptied": emptied, "a file instead": replaced_by_file}.items():
        make = lambda f, c=change: c(f / "llama/checkpoints/2048")
        yield Case(f"export/checkpoint/{kind}", "export", flags, "refused", ("llama",), "store llama", make)
    make = lambda f: shutil.rmtree(f / "llama/checkpoints")
    yield Case("export/checkpoint/none", "export", flags, "refused", ("llama",), "store llama", make)
    make = without("store/meta.json", "tokenizer")
    yield Case("export/meta.json/no tokenizer", "export", flags, "refused", ("store",), "store llama", make)


def readable(folder: Path, template: Template) -> str:
    mode = (folder / "hf/model.safetensors").stat().st_mode & 0o777
    return "" if mode & 0o044 == 0o044 else f"mode {mode:o}"


def import_cases() -> Iterator[Case]:
    parts, flags = "store llama hf", ("--config=llama.py", "--from=hf", "--workdir=new")

    def case(name, make, words=("hf",), expect="refused", check=None, writes=()):
        return Case(f"import_hf/{name}", "import_hf", flags, expect, words, parts, make, check, writes=writes)

    yield case("sound", None, ("new",), "fine")
    for kind in KINDS:
        yield case(f"config.json/{kind}", damaged("hf/config.json", kind), ("config.json",))
    yield case("config.json/missing", damaged("hf/config.json", "missing"), ("config.json",))
    for key, value in {
        "hidden_size": "64", "hidden_size ": None, "hidden_size  ": -32, "num_hidden_layers": 0, "num_hidden_layers ": 10**9, "num_hidden_layers  ": 2.5,
        "num_attention_heads": 0, "num_attention_heads ": 3, "vocab_size": [], "vocab_size ": 10**12, "rms_norm_eps": "small", "rms_norm_eps ": 0,
        "rope_theta": "x", "rope_parameters": [], "rope_parameters ": {"rope_type": ["default"]}, "rope_parameters  ": {"rope_type": "default", "rope_theta": None},
        "model_type": ["llama"], "model_type ": "gpt_bigcode", "model_type  ": None, "model_type   ": {}, "tie_word_embeddings": "yes", "max_position_embeddings": "x",
        "hidden_act": "tanh", "intermediate_size": True, "head_dim": 7,
    }.items():  # fmt: skip
        name = f"config.json/{key.strip()}={json.dumps(value)}"[:44]
        make = edited("hf/config.json", lambda c, k=key, v=value: c | {k.strip(): v})
        unread = key in ("rope_parameters", "rope_parameters  ", "max_position_embeddings")  # or not there
        expect = "either" if unread else "refused"
        yield case(name, make, ("config.json|model",), expect)
    yield case(
        "config.json/rope_theta=NaN",
        changed("hf/config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": NaN'),
        ("config.json|norm_eps",),
    )
    weights = "hf/model.safetensors"
    for kind in ("empty", "binary", "html", "cut", "folder", "missing", "nested"):
        yield case(f"safetensors/{kind}", damaged(weights, kind), ("model.safetensors",))
    for kind, content in {
        "header 2^63": struct.pack("<Q", 2**63) + b"{}", "header list": safetensors(b"[]"), "header nested": safetensors(b"[" * 100_000),
        "header not UTF-8": safetensors(b'{"\xff": 3}'), "dtype null": safetensors({"a": {"dtype": None, "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "shape negative": safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        "shape huge": safetensors({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, bytes(4)),
        "offsets beyond": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4000]}}, bytes(4)),
        "fp8": safetensors({"model.norm.weight": {"dtype": "F8_E4M3", "shape": [32], "data_offsets": [0, 32]}}, bytes(32)),
        "fp4": safetensors({"model.norm.weight": {"dtype": "F4", "shape": [32], "data_offsets": [0, 16]}}, bytes(16)),
        "no tensors": safetensors({}),
    }.items():  # fmt: skip
        yield case(f"safetensors/{kind}", saved({weights: content}), ("model.safetensors|tensor",))

    def tensors(edit):
        def make(folder):
            from safetensors.numpy import load_file, save_file

            found = load_file(folder / weights)
            edit(found)
            save_file(found, folder / weights)

        return make

    def poison(value):
        return lambda t: t["model.norm.weight"].__setitem__(3, value)

    for kind, edit in {
        "nan weight": poison(np.nan), "inf weight": poison(np.inf), "missing": lambda t: t.pop("model.norm.weight"),
        "extra": lambda t: t.update({"model.extra.weight": np.zeros(3, np.float32)}), "shape": lambda t: t.update({"model.norm.weight": np.ones(31, np.float32)}),
        "int8": lambda t: t.update({"model.norm.weight": np.ones(32, np.int8)}), "float64": lambda t: t.update({"model.norm.weight": np.ones(32, np.float64)}),
        "scalar": lambda t: t.update({"model.norm.weight": np.array(1, np.float32)}),
    }.items():  # fmt: skip
        yield case(f"tensors/{kind}", tensors(edit), ("tensor|model.safetensors",))
    index = "hf/model.safetensors.index.json"
    outside = lambda f: (f / weights).rename(f / "outside.safetensors")  # a whole file would go before the index
    for kind, content in {
        "empty": b"", "list": b"[]", "null": b"null", "object": b"{}", "nested": b"[" * 100_000, "html": HTML, "map null": b'{"weight_map": null}',
        "map list": b'{"weight_map": ["model.safetensors"]}', "map numbers": b'{"weight_map": {"a": 3}}', "map null value": b'{"weight_map": {"a": null}}',
        "absent shard": b'{"weight_map": {"a": "absent.safetensors"}}', "parent": b'{"weight_map": {"a": "../outside.safetensors"}}',
        "round about": b'{"weight_map": {"a": "x/../../outside.safetensors"}}', "empty name": b'{"weight_map": {"a": ""}}', "NUL": b'{"weight_map": {"a": "a\\u0000b"}}',
        "surrogate": b'{"weight_map": {"a": "a\\ud800b"}}', "map empty": b'{"weight_map": {}}',
    }.items():  # fmt: skip
        yield case(
            f"index/{kind}", both(saved({index: content}), outside), ("index.json|absent.safetensors|hf/|tensor",)
        )

    def absolute(folder):
        outside(folder)
        (folder / index).write_text(json.dumps({"weight_map": {"a": str(folder / "outside.safetensors")}}))

    yield case("index/absolute", absolute, ("index.json",))
    for kind in ("empty", "list", "null", "object", "binary", "nested", "html", "cut", "folder"):
        yield case(f"tokenizer.json/{kind}", damaged("hf/tokenizer.json", kind), ("tokenizer.json",))
    for kind, edit in {
        "model null": lambda c: c | {"model": None}, "vocab number": lambda c: c | {"model": {"vocab": 3}}, "vocab list": lambda c: c | {"model": {"vocab": [3]}},
        "added text": lambda c: c | {"added_tokens": "x"}, "added null": lambda c: c | {"added_tokens": [None]},
    }.items():  # fmt: skip
        yield case(f"tokenizer.json/{kind}", edited("hf/tokenizer.json", edit), ("tokenizer.json",))
    yield case(
        "stale temporary folder",
        saved({"new/checkpoints/0.orbax-checkpoint-tmp-7/x": "part"}),
        ("new",),
        "either",
        writes=("new/checkpoints/*",),
    )


# Studies

OWN = {  # a study file of one's own: content, words
    "syntax": ("def runs(:", "own.py"), "raising": ("raise RuntimeError('no such thing')", "own.py"), "empty": ("", "own.py"), "exits": ("import sys\nsys.exit(0)", "own.py"),
    "no scales": ("def runs(scale):\n    yield 1", "own.py"), "scales number": ("SCALES = 3\ndef runs(scale):\n    yield 1", "own.py"), "no runs": ("SCALES = {'smoke': 1}", "own.py"),
    "runs of none": ("SCALES = {'smoke': 1}\ndef runs(scale):\n    return None", "own.py"), "runs empty": ("SCALES = {'smoke': 1}\ndef runs(scale):\n    return []", "own.py"),
    "runs raise": ("SCALES = {'smoke': 1}\ndef runs(scale):\n    raise KeyError('x')", "own.py"), "runs numbers": ("SCALES = {'smoke': 1}\ndef runs(scale):\n    return [1, 2]", "own.py"),
    "no part": ("from jaxlab.config import default\nSCALES = {'smoke': 1}\ndef runs(scale):\n    yield default(), {'seed': 1}\ndef analyse(results):\n    pass", "part"),
    "same name": ("from jaxlab.config import default\nSCALES = {'smoke': 1}\ndef runs(scale):\n    for i in range(2):\n        yield default(), {'part': 'a'}\ndef analyse(results):\n    pass", "own.py|a"),
    "slash in tag": ("from jaxlab.config import default\nSCALES = {'smoke': 1}\ndef runs(scale):\n    yield default(), {'part': '../../a'}\ndef analyse(results):\n    pass", "own.py|part"),
    "slash in value": ("from jaxlab.config import default\nSCALES = {'smoke': 1}\ndef runs(scale):\n    yield default(), {'part': 'a', 'x': 'b/c'}\ndef analyse(results):\n    pass", "own.py|b/c"),
    "config none": ("SCALES = {'smoke': 1}\ndef runs(scale):\n    yield None, {'part': 'a'}\ndef analyse(results):\n    pass", "own.py"),
    "config bad": ("from jaxlab.config import default\nSCALES = {'smoke': 1}\ndef runs(scale):\n    c = default()\n    c.batch.tokens = 100\n    yield c, {'part': 'a'}\ndef analyse(results):\n    pass", "batch.tokens"),
    "config key added": ("from jaxlab.config import default\nSCALES = {'smoke': 1}\ndef runs(scale):\n    c = default()\n    c.modle = 3\n    yield c, {'part': 'a'}\ndef analyse(results):\n    pass", "modle"),
    "binary": (bytes(range(256)), "own.py"), "not UTF-8": ("# caf\u00e9".encode("latin-1"), "own.py"), "part number": ("from jaxlab.config import default\nSCALES = {'smoke': 1}\ndef runs(scale):\n    yield default(), {'part': 3}", "own.py|part"),
}  # fmt: skip


def study_cases() -> Iterator[Case]:
    for kind, (content, words) in OWN.items():
        make = saved({"own.py": content})
        yield Case(f"study/own/{kind}", "study", ("--study=own.py:smoke", "list"), "refused", (words,), "config", make)
    parts, place = "config store study runs texts", "runs/study/smoke/a-seed=0"
    for action in ("list", "report"):
        flags = ("--study=study.py:smoke", action)
        yield Case(
            f"study/{action}/sound", "study", flags, "fine", ("finished" if action == "list" else "report.md",), parts
        )
        for file in ("result.json", "config.json", "metrics.jsonl"):
            for kind in ("empty", "list", "null", "object", "binary", "folder", "cut"):
                words = (file,) if file == "result.json" else ()
                words = words or (("finished",) if action == "list" else ("report.md",))
                make = damaged(f"{place}/{file}", kind)
                yield Case(f"study/{action}/{file} {kind}", "study", flags, "fine", words, parts, make)
        for file in ("failed.json", "diverged.json"):
            for kind in ("empty", "list", "null", "object", "binary"):
                make = both(
                    lambda f: (f / place / "result.json").unlink(),
                    saved({f"{place}/{file}": b""}),
                    damaged(f"{place}/{file}", kind),
                )
                yield Case(
                    f"study/{action}/{file} {kind}",
                    "study",
                    flags,
                    "fine",
                    (file,) if action == "list" else ("report.md",),
                    parts,
                    make,
                )
        make = edited(f"{place}/result.json", lambda c: c | {"loss": "low"})
        yield Case(f"study/{action}/result.json text", "study", flags, "fine", ("result.json",), parts, make)
        make = changed(f"{place}/result.json", '"loss": ', '"loss": 1')
        yield Case(f"study/{action}/result.json digit", "study", flags, "fine", ("result.json",), parts, make)
    flags = ("--study=study.py:smoke", "--workers=1", "run")
    yield Case("study/run/sound", "study", flags, "fine", ("4 of 4 runs have ended",), parts)
    for kind in ("empty", "null", "binary", "cut"):
        make = damaged(f"{place}/result.json", kind)
        yield Case(f"study/run/result.json {kind}", "study", flags, "either", ("result.json",), parts, make)
    a_file = lambda f: (shutil.rmtree(f / place), (f / place).write_text("mine"))
    for action in ("list", "report"):
        yield Case(
            f"study/{action}/a run is a file",
            "study",
            ("--study=study.py:smoke", action),
            "either",
            ("a-seed=0",),
            parts,
            a_file,
        )
    make = saved({"results/study": "mine"})
    yield Case(
        "study/report/results taken",
        "study",
        ("--study=study.py:smoke", "report"),
        "refused",
        ("results",),
        parts,
        make,
    )


# Branches, spectra, plans of files


def inspect_cases() -> Iterator[Case]:
    flags, npz = ("--workdir=run",), "run/spectra/8192.npz"
    for kind in ("empty", "binary", "html", "cut", "folder", "missing", "list"):
        yield Case(f"inspect/npz/{kind}", "inspect", flags, "refused", ("8192.npz",), "run", damaged(npz, kind))

    def arrays(edit):
        def make(folder):
            with np.load(folder / npz) as file:
                found = edit(dict(file))
            np.savez(folder / npz, **found)

        return make

    for kind, edit in {"no arrays": lambda a: {}, "one layer": lambda a: {k: v for k, v in a.items() if k != "post/1"}, "other names": lambda a: {"x": np.zeros(3)},
                       "nan": lambda a: a | {"post/0": a["post/0"] * np.nan}, "two axes": lambda a: a | {"post/0": np.ones((3, 3))},
                       "no eigenvalues": lambda a: a | {"post/0": np.zeros(0)}, "text": lambda a: a | {"post/0": np.array(["a", "b"])}}.items():  # fmt: skip
        yield Case(f"inspect/npz/{kind}", "inspect", flags, "either", ("8192.npz",), "run", arrays(edit))

    class Evil:
        def __reduce__(self):
            return (open, ("imported", "w"))

    make = arrays(lambda a: a | {"post/0": np.array([Evil()], dtype=object)})
    yield Case("inspect/npz/pickle", "inspect", flags, "refused", ("8192.npz",), "run", make, not_run)
    for kind in ("empty", "binary", "folder", "list", "null", "html"):
        make = damaged("run/metrics.jsonl", kind)
        yield Case(f"inspect/metrics.jsonl/{kind}", "inspect", flags, "refused", ("run",), "run", make)
    make = changed("run/metrics.jsonl", '"kind": "spectra"', '"knd": "spectra"', 9)
    yield Case("inspect/metrics.jsonl/no kind", "inspect", flags, "refused", ("run",), "run", make)
    make = changed("run/metrics.jsonl", "post/hard_rank/1", "post/hrd_rank/1", 9)
    yield Case("inspect/metrics.jsonl/no hard rank", "inspect", flags, "refused", ("run",), "run", make)
    make = changed("run/metrics.jsonl", '"steps": 3,', '"steps": x,')
    yield Case("inspect/metrics.jsonl/bad line", "inspect", flags, "fine", ("eDim",), "run", make)
    flags = ("--workdir=run", "--times=1", "--window=512")
    for kind in SOME:
        make = damaged("run/config.json", kind)
        yield Case(f"branch/config.json/{kind}", "branch", flags, "refused", ("config.json",), "store run", make)
    make = changed("run/config.json", '"model.d_ff": 64', '"model.d_ff": 6x')
    yield Case("branch/config.json/not JSON", "branch", flags, "refused", ("config.json",), "store run", make)
    for kind, edit in {"key gone": lambda c: c["config"].pop("model.d_ff") and None, "kind": lambda c: c["config"].update(tokens="x"),
                       "tokens null": lambda c: c["config"].update(tokens=None)}.items():  # fmt: skip
        yield Case(
            f"branch/config.json/{kind}",
            "branch",
            flags,
            "refused",
            ("config.json|d_ff|8192",),
            "store run",
            edited("run/config.json", edit),
        )
    for kind, change in {"bit": flipped, "emptied": emptied, "a file instead": replaced_by_file}.items():
        make = lambda f, c=change: c(f / "run/checkpoints/8192")
        yield Case(f"branch/checkpoint/{kind}", "branch", flags, "refused", ("8192|run",), "store run", make)
    make = lambda f: shutil.rmtree(f / "store")
    yield Case("branch/store gone", "branch", flags, "refused", ("store",), "store run", make)
    stale = saved({"run/branches/8192-x1/checkpoints/8192.orbax-checkpoint-tmp-7/x": "part"})
    yield Case("branch/stale temporary folder", "branch", flags, "fine", ("8,192",), "store run", stale, branched)
    yield Case("branch/sound", "branch", flags, "fine", ("8,192",), "store run", None, branched)


def branched(folder: Path, template: Template) -> str:
    first = next(row for row in tiny.rows(folder / "run/branches/8192-x1") if row["kind"] == "train")
    last = [row for row in tiny.rows(template.want("run")) if row["kind"] == "train"][-1]
    return (
        ""
        if first["loss"] < last["loss"] + 0.3
        else f"first loss {first['loss']:.2f}, the run's last {last['loss']:.2f}"
    )


RANKS = {
    "empty": b"", "header alone": b"width,hard_rank,soft_rank\n", "two rows": b"width,hard_rank,soft_rank\n1,1,1\n2,2,2\n", "text": b"width,hard_rank,soft_rank\na,b,c\n" * 4,
    "nan": b"width,hard_rank,soft_rank\n1,1,1\n2,nan,2\n4,3,3\n", "inf": b"width,hard_rank,soft_rank\n1,1,1\n2,inf,2\n4,3,3\n", "zero": b"width,hard_rank,soft_rank\n1,1,1\n2,0,2\n4,3,3\n",
    "negative": b"width,hard_rank,soft_rank\n1,1,1\n-2,2,2\n4,3,3\n", "one width": b"width,hard_rank,soft_rank\n" + b"8,1,1\n" * 4, "columns": b"w,h,s\n1,1,1\n",
    "short row": b"width,hard_rank,soft_rank\n1,1\n2,2,2\n3,3,3\n", "wide field": b"width,hard_rank,soft_rank\n" + b"1" * 200_000 + b",1,1\n2,2,2\n3,3,3\n", "not UTF-8": b"\xff\xfewidth\n",
    "html": HTML, "NUL": b"width,hard_rank,soft_rank\n1,1,\0\n", "digits": b"width,hard_rank,soft_rank\n1e999,1,1\n2,2,2\n3,3,3\n",
}  # fmt: skip


def ranks_cases() -> Iterator[Case]:
    flags = ("width", "--d_model=768", "--ranks=ranks.csv")
    for kind, content in RANKS.items():
        yield Case(
            f"plan/ranks/{kind}", "plan", flags, "refused", ("ranks.csv",), "config", saved({"ranks.csv": content})
        )
    good = "width,hard_rank,soft_rank\r\n" + "".join(f"{w},{w**0.5},{w**0.8}\r\n" for w in (256, 512, 1024, 2048))
    make = saved({"[bold]r\u00fc.csv": b"\xef\xbb\xbf" + good.encode()})
    yield Case(
        "plan/ranks/legal bom crlf",
        "plan",
        (*flags[:2], "--ranks=[bold]r\u00fc.csv"),
        "fine",
        ("[bold]r\u00fc.csv",),
        "config",
        make,
    )


# Full disks


def disk_cases() -> Iterator[Case]:
    def on_disk(size, *copied):
        def make(folder):
            disk(folder, size)
            for name in copied:
                shutil.copytree(folder / name, folder / "disk" / name)

        return make

    flags = ("--config=config.py", "--workdir=disk/new")
    yield Case("train/disk/no room for a checkpoint", "train", flags, "refused", ("MB free",), make=on_disk("300k"))
    yield Case("train/disk/no room for a page", "train", flags, "refused", ("disk",), make=on_disk("4k"))
    for size in ("1200k", "1220k"):
        yield Case(f"train/disk/full at {size}", "train", flags, "failed", ("disk",), make=on_disk(size))
    flags = ("--config=config.py", "--config.data.store=disk/new")
    for size in ("4k", "40k", "100k"):
        yield Case(
            f"prepare/disk/full at {size}", "prepare", flags, "refused", ("disk|store",), "config texts", on_disk(size)
        )
    flags = ("--config=llama.py", "--workdir=llama", "--to=disk/hf")
    for size in ("4k", "24k", "100k"):
        yield Case(f"export/disk/full at {size}", "export", flags, "refused", ("disk",), "store llama", on_disk(size))

    def older(folder):
        disk(folder, "260k")
        shutil.copytree(folder / "hf", folder / "disk" / "hf")

    yield Case("export/disk/over an older one", "export", flags, "refused", ("disk",), "store llama hf", older)
    yield Case("import_hf/disk/full", "import_hf", ("--config=llama.py", "--from=hf", "--workdir=disk/new"), "refused", ("disk",), "store llama hf",
               on_disk("40k"))  # fmt: skip

    def evaluation(folder):
        disk(folder, "4k")
        (folder / "run/evaluation").symlink_to(folder / "disk")

    flags = ("--config=config.py", "--workdir=run", "--tasks=piqa", "--items=items")
    yield Case(
        "evaluate/disk/full", "evaluate", flags, "refused", ("evaluation|disk",), "config store run items", evaluation
    )


# The harness


def harness_cases() -> Iterator[Case]:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        return
    base = ("run", "--model", "jaxlab", "--tasks", "piqa", "--model_args")
    for value, words in {
        "workdir=absent": "absent",
        "workdir=run,batch_size=0": "batch_size",
        "workdir=": "workdir",
        "workdir=~nobody-here": "nobody-here",
    }.items():
        yield Case(f"harness/{value}", "harness", (*base, value), "refused", (words,), "store run")


def every() -> Iterator[Case]:
    for cases in (
        key_cases, file_cases, flag_cases, plan_cases, workdir_cases, store_cases, corpus_cases, tfds_cases, item_cases, evaluated_cases,
        export_cases, import_cases, study_cases, inspect_cases, ranks_cases, disk_cases, harness_cases,
    ):  # fmt: skip
        yield from cases()


CASES = list(every())
SHORT = {  # of the test suite: cases that need no more than a store and a short run
    "train/key/quant.cast=garbage", "train/key/schedule.peak_lr=inf", "train/key/mesh.fsdp=banana", "train/file/exits",
    "train/flags/--config.tokens", "train/--workdir/gs", "train/--workdir/null", "train/start_from/config.json null",
    "train/meta.json/no eos", "train/result.json/list", "prepare/corpus/jsonl surrogate", "prepare/corpus/gz cut",
    "prepare/prepare.json/list", "evaluate/items/label 0.9", "evaluate/items/null", "study/own/exits", "study/--set/bool-two",
    "study/plan/dry run of 10^14 tokens", "inspect/npz/html", "branch/--tolerance/nan", "plan/ranks/wide field",
    "plan/flags/width --d_model=768 --ranks=gs://b/r.csv",
}  # fmt: skip
assert {case.name for case in CASES} >= SHORT

"""A run small enough for tests of whole processes: a store of synthetic text, and a config file to launch."""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxlab.config import default
from jaxlab.data.prepare import prepare
from tests import quick

ROOT = Path(__file__).parents[1]
CONFIG = """
import json
from jaxlab.config import default

def get_config():
    c = default()
    c.update_from_flattened_dict(json.loads({changes!r}))
    return c
"""
SMALL = {
    "tokens": 16_384,
    "data.tokenizer": "bytes", "data.validation_fraction": 0.05,
    "model.context": 64, "model.num_layers": 2, "model.d_model": 32, "model.num_heads": 2, "model.num_kv_heads": 2,
    "model.head_dim": 16, "model.d_ff": 64,
    "batch.tokens": 512, "batch.context": 64, "schedule.warmup_tokens": 2_048,
    "evaluate.every_tokens": 4_096, "checkpoint.every_tokens": 4_096,
}  # fmt: skip


def make_store(folder: Path) -> dict:
    """Prepares 60 documents of random words in `folder`; returns the config keys that point there."""
    words, draw = [f"w{i}" for i in range(50)], random.Random(0)
    for i in range(60):
        (folder / f"{i:02d}.txt").write_text(" ".join(draw.choices(words, k=400)))
    data = {"data.source": f"files:{folder}/*.txt", "data.store": str(folder / "store"), "data.archives": ""}
    prepare(data["data.source"], "bytes", data["data.store"], validation_fraction=0.05, archives="")
    return data


def config(data: dict, **changes):
    """The small config on a store; changes with __ for the dots."""
    c = default()
    c.update_from_flattened_dict(SMALL | data | {k.replace("__", "."): v for k, v in changes.items()})
    return c


def config_file(path: Path, data: dict, **changes) -> Path:
    """The same as a file for a launcher."""
    flat = SMALL | data | {k.replace("__", "."): v for k, v in changes.items()}
    path.write_text(CONFIG.format(changes=json.dumps(flat)))
    return path


def command(name: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"launch.{name}", *flags]


def environment(cache: Path | None = None, devices: int = 1, optimised: bool = False) -> dict:
    """Environment of a launched process: forced CPU devices, and a cache of compiled programs."""
    flags = f"--xla_force_host_platform_device_count={devices} {'' if optimised else quick.FLAGS}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    if cache:
        env |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    return env


def launch(name: str, *flags: str, cache: Path | None = None, devices: int = 1, **options):
    """Runs a launcher to its end; text output captured."""
    env = environment(cache, devices)
    return subprocess.run(command(name, *flags), cwd=ROOT, env=env, capture_output=True, text=True, **options)


def side_by_side(file: Path, workdir: Path, count: int, cache: Path) -> list[subprocess.Popen]:
    """Starts `count` processes that train one run together, on four devices in all; text output piped."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f"--config={file}", f"--workdir={workdir}"]
    return [
        subprocess.Popen(
            command("train", *flags, *([f"--processes=localhost:{port},{i},{count}"] if count > 1 else [])),
            cwd=ROOT, env=environment(cache, devices=4 // count), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for i in range(count)
    ]  # fmt: skip


def on_devices(
    script: str, *arguments: str, cache: Path | None = None, devices: int = 8, optimised: bool = False, **env: str
):
    """What `python -m SCRIPT *ARGUMENTS OUT.json` writes, on forced CPU devices: a process of its own, since their
    number is fixed when JAX starts."""
    with tempfile.TemporaryDirectory() as folder:
        out, env = Path(folder) / "out.json", environment(cache, devices, optimised) | env
        words = [sys.executable, "-m", script, *arguments, str(out)]
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text())


def rows(workdir: Path) -> list[dict]:
    """Rows of metrics.jsonl without what is measured by the clock, and the checksums over that."""
    timing = {"seconds", "data_seconds", "tokens_per_second", "utilisation", "crc32"}
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]


def result(workdir: Path) -> dict:
    """What result.json says, without its checksum."""
    return {k: v for k, v in json.loads((workdir / "result.json").read_text()).items() if k != "crc32"}


def saved(workdir: Path) -> list[int]:
    """Tokens of the complete checkpoints, in order."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal())


def fingerprint(workdir: Path, tokens: int | None = None) -> list[int]:
    """Fingerprint recorded in a checkpoint, the newest unless told."""
    step = tokens if tokens is not None else saved(workdir)[-1]
    return json.loads((workdir / "checkpoints" / str(step) / "record" / "metadata").read_text())["fingerprint"]

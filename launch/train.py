"""Trains a model: python -m launch.train --config=configs/demo.py --workdir=runs/demo [--config.tokens=4000000 ...]"""

import re

from absl import flags

from jaxlab.config import InputError
from launch import entry

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run: checkpoints, metrics, figure")
_FROM = flags.DEFINE_string(
    "start_from", "", "workdir of another run whose parameters this one starts with (of DiLoCo, the global ones)"
)
_ON = flags.DEFINE_string(
    "continue_from",
    "",
    "WORKDIR or WORKDIR@TOKENS: a checkpoint of another run, from which this one goes on with the optimiser state, as "
    "for a decay",
)
_RULES = flags.DEFINE_bool("print_sharding", False, "print where every parameter lives, and exit")
_PROCESSES = flags.DEFINE_string(
    "processes", "", "for a run over several hosts: auto (Cloud TPU, Slurm), or HOST:PORT,INDEX,COUNT"
)
flags.register_validator("workdir", bool, message="name the folder of the run, as in --workdir=runs/demo")


def main(config, console) -> int:
    from jaxlab import parallel  # a second of imports, after the flags have been read
    from jaxlab.files import local
    from jaxlab.interop.workdir import continue_from, go_on_from
    from jaxlab.train.build import build
    from jaxlab.train.log import say
    from jaxlab.train.loop import train

    workdir = local(_WORKDIR.value, "--workdir")
    source = _FROM.value and local(_FROM.value, "--start_from")
    earlier, at = checkpoint(_ON.value)
    if source and earlier:
        raise InputError(f"--continue_from={_ON.value}: must be left out with --start_from={_FROM.value}")
    console.quiet = not parallel.start(_PROCESSES.value)
    run = build(config)
    if _RULES.value:
        unsharded = set(run.program.unsharded)
        for path, spec in parallel.table(run.program.shardings):
            say(console, f"{path:50s} {spec}{' (no rule)' if path in unsharded else ''}")
        return 0
    if source:
        go_on_from(run, workdir, source)
    if earlier:
        continue_from(run, workdir, earlier, at)
    result = train(run, workdir, console)
    if result:
        say(console, f"{workdir}/curves.png, metrics.jsonl, result.json; {result['seconds']:,.0f} s of training")
        say(console, f"validation {result['loss']:.4f} nats/token")
        say(console, f"{result['bits_per_byte']:.2f} bits/byte")
    return 0


def checkpoint(text: str):
    """The workdir and the tokens, None for the newest, of WORKDIR[@TOKENS]. Raises InputError."""
    from jaxlab.files import local

    workdir, at, tokens = text.rpartition("@") if re.search(r"@[^/]*$", text) else (text, "", "")
    if at and not re.fullmatch(r"[1-9]\d{,17}", tokens):
        raise InputError(f"--continue_from={text}: must be WORKDIR or WORKDIR@TOKENS, as in runs/a@400000")
    return text and local(workdir, "--continue_from"), int(tokens) if at else None


if __name__ == "__main__":
    entry.with_huge_pages()
    entry.run(main)

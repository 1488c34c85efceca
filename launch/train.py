"""Trains a model: python -m launch.train --config=configs/demo.py --workdir=runs/demo [--config.tokens=4000000 ...]"""

import logging
import sys

from absl import flags

from launch import entry

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run: checkpoints, metrics, figure")
_FROM = flags.DEFINE_string(
    "start_from", "", "workdir of another run whose parameters this one starts with (of DiLoCo, the global ones)"
)
_RULES = flags.DEFINE_bool("print_sharding", False, "print where every parameter lives, and exit")
_PROCESSES = flags.DEFINE_string(
    "processes", "", "for a run over several hosts: auto (Cloud TPU, Slurm), or HOST:PORT,INDEX,COUNT"
)
flags.register_validator("workdir", bool, message="name the folder of the run, as in --workdir=runs/demo")


def main(config, console) -> int:
    from jaxlab import parallel  # a second of imports, after the flags have been read
    from jaxlab.interop.workdir import go_on_from
    from jaxlab.train.build import build
    from jaxlab.train.checkpoint import NonFinite, SaveFailed
    from jaxlab.train.loop import train

    console.quiet = not parallel.start(_PROCESSES.value)
    for name in ("absl", "asyncio"):  # Orbax: what matters of it is raised, and said in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    run = build(config)
    if _RULES.value:
        for path, spec in parallel.table(run.program.shardings):
            console.print(f"{path:50s} {spec}", highlight=False, soft_wrap=True)
        return 0
    if _FROM.value:
        go_on_from(run, _WORKDIR.value, _FROM.value)
    try:
        result = train(run, _WORKDIR.value, console)
    except (NonFinite, SaveFailed) as error:
        print(f"error: {error}; what was saved before is kept in {_WORKDIR.value}/checkpoints", file=sys.stderr)
        return 1
    if result:
        console.print(
            f"{_WORKDIR.value}/curves.png, metrics.jsonl, result.json; {result['seconds']:,.0f} s of training"
        )
        console.print(f"validation {result['loss']:.4f} nats/token")
        console.print(f"{result['bits_per_byte']:.2f} bits/byte")
    return 0


if __name__ == "__main__":
    entry.with_huge_pages()
    entry.run(main)

"""Trains a model: python -m launch.train --config=configs/demo.py --workdir=runs/demo [--config.tokens=4000000 ...]"""

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
    from jaxlab.files import local
    from jaxlab.interop.workdir import go_on_from
    from jaxlab.train.build import build
    from jaxlab.train.log import say
    from jaxlab.train.loop import train

    workdir = local(_WORKDIR.value, "--workdir")
    source = _FROM.value and local(_FROM.value, "--start_from")
    console.quiet = not parallel.start(_PROCESSES.value)
    run = build(config)
    if _RULES.value:
        unsharded = set(run.program.unsharded)
        for path, spec in parallel.table(run.program.shardings):
            say(console, f"{path:50s} {spec}{' (no rule)' if path in unsharded else ''}")
        return 0
    if source:
        go_on_from(run, workdir, source)
    result = train(run, workdir, console)
    if result:
        say(console, f"{workdir}/curves.png, metrics.jsonl, result.json; {result['seconds']:,.0f} s of training")
        say(console, f"validation {result['loss']:.4f} nats/token")
        say(console, f"{result['bits_per_byte']:.2f} bits/byte")
    return 0


if __name__ == "__main__":
    entry.with_huge_pages()
    entry.run(main)

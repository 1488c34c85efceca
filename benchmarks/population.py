"""Many small runs on one machine: one after another, beside each other in a process a core, or together in one vmap.

python -m benchmarks.population [--out=benchmarks/results/NAME.json]

The shapes are those of the study `chinchilla:laptop` (on a GPU: `--scale=gpu`). All arms train the same step; tokens/s
are summed over the runs that an arm trains at a time. Each arm runs in fresh processes, in turns, ROUNDS times.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS, WARM_UP, STEPS = 3, 4, 30


def measure(scale: str, name: str, members: int) -> dict:
    """Tokens a second of `members` runs of a model, vmapped if more than one, on the devices of this process."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxlab import parallel
    from jaxlab.studies import chinchilla
    from jaxlab.train.plan import Batch
    from jaxlab.train.program import program

    s = chinchilla.SCALES[scale]
    config = chinchilla.config(s, s.models[name], s.tokens[0], 1e-3, 0)
    config.compute.steps_per_call = 1
    made = program(config, parallel.mesh(1, 1, 1), s.vocab_size)
    shape = made.shape(Batch(config.batch.tokens, s.context))
    draw = np.random.default_rng(0)
    batches = draw.integers(0, s.vocab_size, (members, *shape)).astype(np.int32)
    hypers = {"lr": np.full((members, 1), 1e-3, np.float32), "decay": np.zeros((members, 1), np.float32)}
    states = [made.init(np.uint32(seed)) for seed in range(members)]
    if members == 1:
        state, step = states[0], made.inner_steps
        arguments = jax.tree.map(lambda x: jnp.asarray(x[0]), (batches, hypers))
    else:
        state = jax.tree.map(lambda *x: jnp.stack(x), *states)
        step = jax.jit(jax.vmap(made.inner_steps, in_axes=(0, 0, 0, None)), donate_argnums=0)
        arguments = jax.tree.map(jnp.asarray, (batches, hypers))
    for i in range(WARM_UP + STEPS):
        if i == WARM_UP:
            jax.block_until_ready(state)
            print("WARM", flush=True)
            sys.stdin.readline()  # all processes of an arm start together
            began = time.perf_counter()
        state, _ = step(state, *arguments, np.int32([1, 1]))
    jax.block_until_ready(state)
    tokens = members * config.batch.tokens * STEPS
    return {"tokens_per_second": tokens / (time.perf_counter() - began), "device": jax.devices()[0].device_kind}


def arm(scale: str, name: str, members: int, cores: list[list[int]]) -> dict:
    """Runs one process for each list of cores, all at once, and adds up what they do."""
    from launch.entry import HUGE_PAGES

    command = [sys.executable, "-m", "benchmarks.population", f"--scale={scale}", f"--measure={name},{members}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    processes = [
        subprocess.Popen([*command, f"--cores={json.dumps(c)}"], env=os.environ | HUGE_PAGES, **pipes) for c in cores
    ]
    for process in processes:
        while process.stdout.readline().strip() != "WARM":
            if process.poll() is not None:
                raise SystemExit(f"{name}, {members} members: a process stopped with status {process.returncode}")
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0]) for process in processes]
    return {"tokens_per_second": sum(f["tokens_per_second"] for f in found), "device": found[0]["device"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="laptop", choices=("laptop", "gpu"))
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--out", default="")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    parser.add_argument("--cores", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        os.sched_setaffinity(0, json.loads(args.cores))
        name, members = args.measure.split(",")
        print(json.dumps(measure(args.scale, name, int(members))))
        return
    from jaxlab.studies import chinchilla

    cores = sorted(os.sched_getaffinity(0))
    arms = {"alone": (1, [cores]), f"together, {args.members} in a vmap": (args.members, [cores])}
    if args.scale == "laptop":
        arms[f"beside, {len(cores)} processes"] = (1, [[core] for core in cores])
    rows = []
    for name in chinchilla.SCALES[args.scale].models:
        found = {title: [] for title in arms}
        for _ in range(ROUNDS):
            for title, arguments in arms.items():
                found[title].append(arm(args.scale, name, *arguments))
        medians = {title: statistics.median(f["tokens_per_second"] for f in each) for title, each in found.items()}
        rows.append({"model": name, "device": found["alone"][0]["device"], "tokens_per_second": medians})
        ratios = (f"{title} {rate:,.0f} ({rate / medians['alone']:.2f})" for title, rate in medians.items())
        print(f"{name:6s} tokens/s: {'; '.join(ratios)}", flush=True)
        if args.out:
            record = {
                "machine": platform.machine(),
                "cores": len(cores),
                "rounds": ROUNDS,
                "steps": STEPS,
                "rows": rows,
            }
            Path(args.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

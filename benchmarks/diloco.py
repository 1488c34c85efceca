"""Cost of DiLoCo on one device: tokens/s of rounds of M replicas compared with data-parallel training on the same
batches.

    python -m benchmarks.diloco [--shape=gpu] [--sequences=16] [--out=benchmarks/results/NAME.json]

Every replica has an AdamW update of its own, whose relative cost depends on the tokens per step divided by the
parameters. By default the demo's model with 1.3M parameters takes 4,096 tokens per step: about the ratio of 131,072
tokens for 35M parameters, which is the best batch of eight replicas at the smallest published size (python -m
launch.plan diloco --params=35e6 --replicas=8) and twice that of data-parallel training.

An arm is one round: H inner steps with the same number of tokens per step, divided among M replicas, and the outer
step. Arms take turns for ROUNDS rounds each, after one round that is not counted; each round is waited for.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

from benchmarks.step import SHAPES, batches, config_of

H, ROUNDS = 30, 3
ARMS = {
    "data-parallel": {"replicas": 1},
    "M=1": {"replicas": 1, "diloco.sync_every": H},
    "M=2": {"replicas": 2, "diloco.sync_every": H},
    "M=4": {"replicas": 4, "diloco.sync_every": H},
    "M=8": {"replicas": 8, "diloco.sync_every": H},
    "M=8, e3m0": {"replicas": 8, "diloco.sync_every": H, "diloco.codec": "e3m0"},
}


def rounds(shape: dict, dtype: str, changes: dict):
    """round() of an arm, which returns when it is over."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxlab import parallel
    from jaxlab.optim.fragments import Event
    from jaxlab.train.plan import Batch
    from jaxlab.train.program import program

    config = config_of(shape, dtype, [])
    config.update_from_flattened_dict(changes)
    made = program(config, parallel.mesh(1, 1, 1), shape["vocab"])
    everywhere = NamedSharding(made.mesh, PartitionSpec())
    whole = made.shape(Batch(config.batch.tokens, shape["context"]))
    shaped = [t.reshape(whole) for t in batches(shape, extra=1)]
    put = [jax.device_put(t, made.batch_sharding) for t in shaped]
    hypers, one, lr = jax.device_put(
        ({"lr": np.float32([1e-3]), "weight_decay": np.float32([1e-4])}, np.int32([1, 1]), np.float32(0.6)), everywhere
    )
    state = made.init(np.uint32(0))

    def round_():
        nonlocal state
        for i in range(H):
            state, _ = made.inner_steps(state, put[i % len(put)], hypers, one)
        if made.outer_loop:
            state, _ = made.outer_step(state, Event("sync", 0), lr)
        jax.block_until_ready(state)

    return round_


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="demo", choices=SHAPES)
    parser.add_argument("--sequences", type=int, default=0, help="a step; left out: 32 of the demo, else the shape's")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    import jax

    shape = SHAPES[args.shape] | ({"sequences": 32} if args.shape == "demo" else {})
    shape |= {"sequences": args.sequences} if args.sequences else {}
    arms = {name: rounds(shape, args.dtype, changes) for name, changes in ARMS.items()}
    seconds = {name: [] for name in arms}
    for i in range(ROUNDS + 1):
        for name, round_ in arms.items():
            began = time.perf_counter()
            round_()
            if i:
                seconds[name].append(time.perf_counter() - began)
    tokens = H * shape["sequences"] * shape["context"]
    rates = {name: tokens / statistics.median(s) for name, s in seconds.items()}
    ratios = {name: rate / rates["data-parallel"] for name, rate in rates.items()}
    for name, rate in rates.items():
        print(f"{name:14s} {rate:10,.0f} tokens/s  {ratios[name]:.2f} of data-parallel")
    if args.out:
        machine = {"device": jax.devices()[0].device_kind, "machine": platform.machine(), "cores": os.cpu_count()}
        record = machine | {"shape": shape, "dtype": args.dtype, "sync_every": H, "rounds": ROUNDS}
        Path(args.out).write_text(json.dumps(record | {"tokens_per_second": rates, "ratio": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    from launch import entry

    entry.with_huge_pages()
    main()

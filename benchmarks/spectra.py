"""Cost of spectra during training: tokens/s of a run that measures them every 1 % of its steps compared with one that
never does, and seconds for the eigenvalues of 12 layers.

    python -m benchmarks.spectra [--shape=gpu] [--steps=20000] [--out=benchmarks/results/NAME.json]

A measurement costs the same in a short run and a long one, so the ratio depends on the number of steps between two
measurements, which is 1 % of --steps, the length of the run in question. Two arms take turns: that many steps, and that
many steps with a measurement of one training batch. Each step is waited for.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

from benchmarks.step import SHAPES, batches, config_of

ROUNDS = 3
EIGENVALUES = (12, 3072)  # layers of the largest published width, [layers, D, D]


def run_of(shape: dict, dtype: str, taps: str):
    """(step(), measure()) of the shape, each of which returns when it is over."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxlab import parallel
    from jaxlab.train.plan import Batch
    from jaxlab.train.program import program

    config = config_of(shape, dtype, [])
    made = program(config, parallel.mesh(1, 1, 1), shape["vocab"])
    everywhere = NamedSharding(made.mesh, PartitionSpec())
    whole = made.shape(Batch(config.batch.tokens, shape["context"]))
    put = [jax.device_put(b.reshape(whole), made.batch_sharding) for b in batches(shape, extra=1)]
    measured = jax.device_put(batches(shape, extra=1)[0][None], everywhere)
    hypers, one = jax.device_put(
        ({"lr": np.float32([1e-3]), "weight_decay": np.float32([1e-4])}, np.int32([1, 1])), everywhere
    )
    state, count = made.init(np.uint32(0)), 0

    def step():
        nonlocal state, count
        state, metrics = made.inner_steps(state, put[count % len(put)], hypers, one)
        count += 1
        jax.block_until_ready((state, metrics))

    def measure():
        jax.device_get(made.probe(made.params(state), measured, taps))

    return step, measure


def timed(*calls) -> float:
    began = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - began


def eigenvalue_seconds() -> list[float]:
    """Of eigvalsh of 12 covariances at D 3072, one after another: three times, after one that compiles."""
    import jax
    import jax.numpy as jnp

    from jaxlab.spectral.metrics import eigenvalues

    layers, width = EIGENVALUES
    x = jax.random.normal(jax.random.key(0), (layers, width, width)) / jnp.arange(1, width + 1)
    covariances = jax.block_until_ready(jnp.einsum("lnd,lne->lde", x, x))
    each = jax.jit(lambda c: jax.lax.map(eigenvalues, c))
    return [timed(lambda: jax.block_until_ready(each(covariances))) for _ in range(4)][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--taps", default="post", choices=("post", "pre+post"))
    parser.add_argument("--steps", type=int, default=2_000, help="of the run; a measurement every 1 % of them")
    parser.add_argument("--skip_eigenvalues", action="store_true", help="leave out the 12 layers at D 3072")
    parser.add_argument("--out", default="", help="also write the figures as JSON")
    args = parser.parse_args()
    import jax

    step, measure = run_of(SHAPES[args.shape], args.dtype, args.taps)
    compiling = timed(measure)
    timed(step, step, step)
    between = max(1, args.steps // 100)
    arms = {"without": [], "with": []}
    for _ in range(ROUNDS):
        arms["without"].append(timed(*[step] * between))
        arms["with"].append(timed(*[step] * between, measure))
    without, with_ = (statistics.median(arms[name]) for name in arms)
    rate = SHAPES[args.shape]["sequences"] * SHAPES[args.shape]["context"] * between
    print(f"{args.shape} shape, {args.dtype}, taps {args.taps}, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"run of {args.steps:,} steps, a measurement every {between:,} (the first compiles for {compiling:.1f} s)")
    print(f"tokens/s {rate / with_:,.0f} with, {rate / without:,.0f} without: ratio {without / with_:.4f}")
    print(f"a measurement takes {with_ - without:.2f} s, {(with_ - without) / without * between:.1f} steps")
    found = {"steps": args.steps, "between": between, "ratio": without / with_, "compiling": compiling, "seconds": arms}
    if not args.skip_eigenvalues:
        found["eigenvalues"] = eigenvalue_seconds()
        layers, width = EIGENVALUES
        print(f"eigvalsh of {layers} layers at D {width:,}: {statistics.median(found['eigenvalues']):.2f} s")
    if args.out:
        about = {"shape": args.shape, "dtype": args.dtype, "taps": args.taps, "jax": jax.__version__}
        about |= {"device": jax.devices()[0].device_kind, "machine": platform.machine(), "cpus": os.cpu_count()}
        Path(args.out).write_text(json.dumps(about | found, indent=1) + "\n")


if __name__ == "__main__":
    main()

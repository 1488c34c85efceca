"""Speed, memory and compile time of one training step, alone or against NanoDO's own step, interleaved in one run.

    python -m benchmarks.step                                          # ours
    python -m benchmarks.step --nanodo=PATH --nanodo_python=PYTHON     # against the peer (see README.md)
    python -m benchmarks.step --shape=gpu                              # a larger shape for one GPU; demo: a smaller one

Each side runs in its own process on the same fixed batches: 4 warm-up steps, then blocks of steps taken in turns,
every step waited for. Prints one row a side: median and best milliseconds, tokens/s, CPU-seconds a step, peak RSS,
compile time, bytes of state over bytes of parameters.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

SHAPES = {
    "demo": {"d_model": 128, "layers": 4, "heads": 4, "ff": 512, "context": 128, "sequences": 16, "vocab": 4096},
    "cpu": {"d_model": 256, "layers": 6, "heads": 8, "ff": 1024, "context": 256, "sequences": 8, "vocab": 1024},
    "gpu": {"d_model": 1024, "layers": 12, "heads": 16, "ff": 4096, "context": 2048, "sequences": 16, "vocab": 32768},
}
WARM_UP, BLOCK, ROUNDS = 4, 5, 6


def config_of(shape: dict, dtype: str, options: list[str]):
    """Our config of a shape."""
    from jaxlab.config import default
    from jaxlab.model.families import ARCHITECTURES

    config = default()
    config.model.update(ARCHITECTURES["chinchilla"] | {"positions": "learned", "qk_norm": False, "z_loss": 0.0})
    config.model.update(
        num_layers=shape["layers"], d_model=shape["d_model"], num_heads=shape["heads"], num_kv_heads=shape["heads"],
        head_dim=shape["d_model"] // shape["heads"], d_ff=shape["ff"], vocab_size=shape["vocab"],
        context=shape["context"],
    )  # fmt: skip
    config.compute.dtype = dtype
    for option in options:
        key, value = option.split("=")
        config.compute[key] = type(config.compute[key])(value)
    config.optim.update(b2=0.98, eps=1e-9, clip=0.0)
    config.batch.update(tokens=shape["sequences"] * shape["context"], context=shape["context"])
    return config


def ours(shape: dict, dtype: str, options: list[str], changes: dict | None = None):
    """(step() -> array to wait for, compile seconds, state bytes / parameter bytes); changes: {key: value}."""
    import jax

    config = config_of(shape, dtype, options)
    config.update_from_flattened_dict(changes or {})
    step, seconds, ratio, _ = steps_of(config)
    return lambda: jax.block_until_ready(step()), seconds, ratio


def steps_of(config):
    """(step() -> its metrics, not waited for; compile seconds; state bytes / parameter bytes; the compiled program) of
    a config on one device."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxlab import parallel
    from jaxlab.train.plan import Batch
    from jaxlab.train.program import program

    made = program(config, parallel.mesh(1, 1, 1), config.model.vocab_size)
    state = made.init(0)
    whole = made.shape(Batch(config.batch.tokens, config.batch.context))
    sequences = config.batch.tokens // config.batch.context
    of = {"sequences": sequences, "context": config.batch.context, "vocab": config.model.vocab_size}
    put = [jax.device_put(b.reshape(whole), made.batch_sharding) for b in batches(of, extra=1)]
    everywhere = NamedSharding(made.mesh, PartitionSpec())
    hypers, counts = jax.device_put(
        ({"lr": np.float32([1e-3]), "weight_decay": np.float32([1e-4])}, np.int32([1, whole[2]])), everywhere
    )
    began = time.perf_counter()
    compiled = made.compiling(whole).result()
    seconds = time.perf_counter() - began
    ratio = _bytes(state) / _bytes(state.params)
    count = 0

    def step():
        nonlocal state, count
        state, metrics = compiled(state, put[count % len(put)], hypers, counts)
        count += 1
        return metrics

    return step, seconds, ratio, compiled


def nanodo(shape: dict, dtype: str, path: str):
    """The peer's unmodified `Trainer.step_fn` at the same shape."""
    sys.path.insert(0, path)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ml_collections import config_dict
    from nanodo import model_factory, train
    from nanodo.configs import default

    c = default.get_config()
    c.model = config_dict.create(
        D=shape["d_model"], H=shape["heads"], L=shape["context"], N=shape["layers"], F=shape["ff"], dtype=dtype,
        fsdp_enabled=True, remat=False,
    )  # fmt: skip
    c.batch_size = shape["sequences"]
    c.log_internal_metrics = False
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    model, loss = model_factory.get_model_and_loss(c, shape["vocab"])
    shardings, state = train._init_train_state(c, model, jax.random.PRNGKey(0), mesh)
    trainer = train.Trainer(c, state, mesh, shardings, loss)
    tokens = batches(shape, extra=0)
    began = time.perf_counter()
    trainer.step_fn.lower(trainer.state, jnp.array(tokens[0])).compile()
    seconds = time.perf_counter() - began
    ratio = _bytes(state) / _bytes(state.params)
    count = 0

    def step():
        nonlocal count
        trainer.state, metrics = trainer.step_fn(trainer.state, jnp.array(tokens[count % len(tokens)]))
        count += 1
        jax.block_until_ready((trainer.state, metrics))

    return step, seconds, ratio


def batches(shape: dict, extra: int):
    """Eight fixed batches of random ids; NanoDO shifts inputs itself (extra 0), we take one token more."""
    import numpy as np

    rng = np.random.default_rng(0)
    size = (shape["sequences"], shape["context"] + extra)
    return [rng.integers(1, shape["vocab"], size).astype(np.int32) for _ in range(8)]


def _bytes(tree) -> int:
    import jax

    return sum(x.nbytes for x in jax.tree.leaves(tree) if hasattr(x, "nbytes"))


def worker(args) -> None:
    """Takes a number of steps for every line on stdin, and answers each with their times."""
    if args.side == "nanodo":
        step, seconds, ratio = nanodo(SHAPES[args.shape], args.dtype, args.nanodo)
    else:
        step, seconds, ratio = ours(SHAPES[args.shape], args.dtype, args.compute)
    import jax

    about = {"compile_s": seconds, "state_ratio": ratio, "jax": jax.__version__, "device": jax.devices()[0].device_kind}
    print("READY " + json.dumps(about), flush=True)
    for line in sys.stdin:
        wall, cpu = [], time.process_time()
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            wall.append(time.perf_counter() - began)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer = {"wall": wall, "cpu": (time.process_time() - cpu) / len(wall), "rss": memory}
        print("TIMES " + json.dumps(answer), flush=True)


class Side:
    """One worker process."""

    def __init__(self, name: str, python: str, args):
        from launch.entry import HUGE_PAGES

        self.name = name
        command = [python, __file__, f"--side={name}", f"--shape={args.shape}", f"--dtype={args.dtype}"]
        command += [f"--nanodo={args.nanodo}"] if args.nanodo else []
        command += [f"--compute={c}" for c in args.compute]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        environment |= HUGE_PAGES if args.huge_pages in (name, "both") else {}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.about = self._answer("READY ")
        self.wall, self.cpu, self.rss = [], [], 0

    def _answer(self, mark: str) -> dict:
        for line in self.process.stdout:
            if line.startswith(mark):
                return json.loads(line[len(mark) :])
        raise SystemExit(f"{self.name} stopped with status {self.process.wait()}")

    def run(self, steps: int, keep: bool) -> None:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._answer("TIMES ")
        if keep:
            self.wall += answer["wall"]
            self.cpu.append(answer["cpu"])
            self.rss = answer["rss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--nanodo", default="", help="a checkout of google-deepmind/nanodo")
    parser.add_argument("--nanodo_python", default=sys.executable, help="a Python with its packages")
    parser.add_argument("--compute", action="append", default=[], help="key=value of config.compute, for our side")
    parser.add_argument(
        "--huge_pages", default="ours", choices=("ours", "both", "none"), help="as the launcher starts it"
    )
    parser.add_argument("--out", default="", help="also write the rows as JSON")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return worker(args)
    sides = [Side("ours", sys.executable, args)]
    if args.nanodo:
        sides.append(Side("nanodo", args.nanodo_python, args))
    for side in sides:
        side.run(WARM_UP, keep=False)
    for _ in range(ROUNDS):
        for side in sides:
            side.run(BLOCK, keep=True)
    report(sides, args)


def report(sides: list[Side], args) -> None:
    shape = SHAPES[args.shape]
    tokens = shape["sequences"] * shape["context"]
    rows = []
    for side in sides:
        median, best = statistics.median(side.wall), min(side.wall)
        rows.append({
            "side": side.name, "median_ms": 1e3 * median, "best_ms": 1e3 * best, "tokens_per_s_median": tokens / median,
            "tokens_per_s_best": tokens / best, "cpu_s_per_step": statistics.median(side.cpu),
            "peak_rss_gib": side.rss / 2**30, **side.about,
        })  # fmt: skip
    print(f"{args.shape} shape {shape}, {args.dtype}, {platform.machine()}, {BLOCK * ROUNDS} timed steps a side")
    for r in rows:
        print("  ".join(f"{k} {v:,.3g}" if isinstance(v, float) and v < 100 else f"{k} {v:,.0f}" if isinstance(v, float)
                        else f"{k} {v}" for k, v in r.items()))  # fmt: skip
    if len(rows) == 2:
        for how in ("median", "best"):
            print(f"ours / nanodo, {how}: {rows[0][f'tokens_per_s_{how}'] / rows[1][f'tokens_per_s_{how}']:.2f}")
    if args.out:
        Path(args.out).write_text(json.dumps({"shape": shape, "dtype": args.dtype, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

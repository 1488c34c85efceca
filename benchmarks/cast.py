"""Speed of the block-scaled cast against a copy of the same array, and against qwix's and microxcaling's casts.

    python -m benchmarks.cast                                                        # writes results/cast-cpu2.json
    python -m benchmarks.cast --peer_python=PYTHON --microxcaling=PATH               # with the peers, in one run

float32 [4096, 4096] in and out, blocks of 128 along the last axis unless a row says otherwise. The copy is
`jax.jit(jnp.copy)`. qwix: `dequantize(quantize(...))` in one jitted function, float8_e4m3fn; microxcaling:
`quantize_mx_op`, its plain torch path on CPU, fp8_e4m3 with power-of-two scales. PYTHON has jax, qwix and torch; PATH
is a checkout of microsoft/microxcaling. Each side runs in its own process; a round takes each function of each side
once, waited for, after two unmeasured rounds.
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

SHAPE, BLOCK, WARM_UP, ROUNDS = (4096, 4096), 128, 2, 10


def ours() -> dict:
    import jax
    import jax.numpy as jnp

    from jaxlab.quant.cast import cast
    from jaxlab.quant.formats import parse

    x, key, fast_key = normal(), jax.random.key(0), jax.random.key(0, impl="rbg")
    traced = jax.jit(lambda x, grid: cast(x, grid, block=BLOCK))
    grid = jax.device_put(parse("e4m3").grid)

    def row(format="e4m3", block=BLOCK, **more):
        call = jax.jit(lambda x: cast(x, format, block=block, **more))
        return lambda: call(x).block_until_ready()

    def through_float8(x):
        blocks = x.reshape(-1, BLOCK)
        s = 448 / jnp.max(jnp.abs(blocks), 1, keepdims=True)
        return ((blocks * s).astype(jnp.float8_e4m3fn).astype(jnp.float32) / s).reshape(x.shape)

    copy, plain = jax.jit(jnp.copy), jax.jit(through_float8)
    return {
        "copy": lambda: copy(x).block_until_ready(),
        "e4m3": row(),
        "e4m3, format traced": lambda: traced(x, grid).block_until_ready(),
        "e4m3fn": row("e4m3fn"),
        "e4m3fn through float8_e4m3fn": lambda: plain(x).block_until_ready(),
        "e1m1": row("e1m1"),
        "e4m3, no scale": row(scale=None),
        "e4m3, channel": row(block=None),
        "e4m3, 128 x 128": row(axis=(0, 1), block=(BLOCK, BLOCK)),
        "e4m3, tensor": row(axis=None, block=None),
        "e4m3fn, power of two": row("e4m3fn", scale="power_of_two"),
        "e2m1, power of two, 32": row("e2m1", 32, scale="power_of_two"),
        "e2m1, e4m3 scale, 16": row("e2m1", 16, scale="e4m3"),
        "e4m3, stochastic, threefry": row(rounding="stochastic", key=key),
        "e4m3, stochastic, rbg": row(rounding="stochastic", key=fast_key),
    }


def qwix() -> dict:
    import jax
    import jax.numpy as jnp
    from qwix._src.core import qarray

    x = normal()
    how = qarray.HowToQuantize(qtype=jnp.float8_e4m3fn, channelwise_axes=(0,), tiled_axes={1: BLOCK})
    call = jax.jit(lambda x: qarray.dequantize(qarray.quantize(x, how)))
    return {"e4m3fn": lambda: call(x).block_until_ready()}


def microxcaling() -> dict:
    import numpy as np
    import torch
    from mx.mx_ops import quantize_mx_op
    from mx.specs import finalize_mx_specs

    x = torch.from_numpy(np.array(normal()))
    specs = finalize_mx_specs({"w_elem_format": "fp8_e4m3", "scale_bits": 8, "block_size": BLOCK, "custom_cuda": False})
    return {
        "e4m3fn, power of two": lambda: quantize_mx_op(
            x, specs, elem_format="fp8_e4m3", block_size=BLOCK, axes=[-1], round="even"
        )
    }


def normal():
    import jax

    return jax.random.normal(jax.random.key(0), SHAPE)


SIDES = {"ours": ours, "qwix": qwix, "microxcaling": microxcaling}


def worker(side: str) -> None:
    """Times each function once for every line on stdin."""
    calls = SIDES[side]()
    import jax

    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)
    for _ in sys.stdin:
        seconds = {}
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name] = time.perf_counter() - began
        print(json.dumps(seconds), flush=True)


def start(side: str, args) -> subprocess.Popen:
    python = sys.executable if side == "ours" else args.peer_python
    path = os.pathsep.join([str(Path(__file__).parents[1]), args.microxcaling])
    command = [python, __file__, f"--side={side}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=os.environ | {"PYTHONPATH": path}, **pipes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", default="", help="a Python with jax, qwix and torch")
    parser.add_argument("--microxcaling", default="", help="a checkout of microsoft/microxcaling")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cast-cpu2.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return worker(args.side)
    peers = (["qwix"] if args.peer_python else []) + (["microxcaling"] if args.microxcaling else [])
    sides = {side: start(side, args) for side in ["ours", *peers]}
    about = {side: json.loads(process.stdout.readline()) for side, process in sides.items()}
    times = {}
    for turn in range(WARM_UP + ROUNDS):
        for side, process in sides.items():
            process.stdin.write("\n")
            process.stdin.flush()
            for name, seconds in json.loads(process.stdout.readline()).items():
                times.setdefault((side, name), []).extend([seconds] * (turn >= WARM_UP))
    report(times, about["ours"], args.out)


def report(times: dict, about: dict, out: Path) -> None:
    count, rows = SHAPE[0] * SHAPE[1], []
    copy = times["ours", "copy"]
    for (side, name), seconds in times.items():
        median = statistics.median(seconds)
        rows.append({
            "side": side, "cast": name, "median_ms": 1e3 * median, "best_ms": 1e3 * min(seconds),
            "elements_per_s": count / median, "of_the_copy": statistics.median(copy) / median,
            "of_the_copy_best": min(copy) / min(seconds),
        })  # fmt: skip
        print("{side:13} {cast:30} {median_ms:8.1f} ms, best {best_ms:6.1f}".format(**rows[-1]), end="")
        print("  {elements_per_s:.2e}/s  {of_the_copy:.2f} of the copy, best {of_the_copy_best:.2f}".format(**rows[-1]))
    machine = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version()}
    about = {"command": "python -m benchmarks.cast", "shape": SHAPE, "block": BLOCK, "rounds": ROUNDS} | about | machine
    out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

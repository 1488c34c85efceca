"""Everything of interest on one GPU in one command, the most telling first; JSON after every measurement.

    python -m benchmarks.gpu --minutes=8 --out=benchmarks/results/h100.json
    python -m benchmarks.gpu --only=1.3b,fp8                    # those whose names have one of these words
    python -m benchmarks.gpu --tiny                             # the same code at a size for two cores

Each measurement runs in a worker process, which a crash or SECONDS without an answer ends: the rest goes on in another.
Flags of XLA in a name are those that it is measured with.
Needs jax, flax, optax, orbax-checkpoint and ml-collections alone. Model FLOPs and the peak are those of `cost.flops`:
attention counts the full square of positions.
"""

import argparse
import gc
import json
import os
import platform
import queue
import re
import statistics
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

SECONDS = 60  # for one measurement, compilation included
TOKENS = 16_384  # of a step
NAMED = "--xla_gpu_enable_command_buffer="  # without which a profile has no names of operations
BY_TENSOR = "e4m3fn,block=0,rows=0"
TILES = {"block_m": 128, "block_n": 128, "block_k": 64, "max_concurrent_steps": 4, "grid_block_n": 4}
PRODUCTS = {  # name: recipe, changes, fp8
    "bfloat16": ("none", "", "auto"),
    "by tensor, native": ("all", BY_TENSOR, "native"),
    "by tensor, simulated": ("all", BY_TENSOR, "simulated"),
    "by row, native": ("all", "e4m3fn,block=0", "native"),
    "deepseek_v3, simulated": ("deepseek_v3", "", "simulated"),
    "mxfp8, simulated": ("mxfp8", "", "simulated"),
    "nvfp4, simulated": ("nvfp4", "", "simulated"),
}
TINY = {"num_layers": 2, "d_model": 64, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "d_ff": 128, "context": 64}


def seconds_of(call, repeats: int = 5, least: float = 0.3) -> float:
    """Median seconds of a call, of `repeats` blocks that each last `least` seconds or more; compiled before."""
    import jax

    jax.block_until_ready(call())
    began = time.perf_counter()
    jax.block_until_ready(call())
    calls = max(1, round(least / max(1e-6, time.perf_counter() - began)))
    blocks = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            last = call()
        jax.block_until_ready(last)
        blocks.append((time.perf_counter() - began) / calls)
    return statistics.median(blocks)


def both(function, *arrays):
    """function(*arrays but the last), and its gradients for the last as that of the result."""
    import jax

    y, back = jax.vjp(function, *arrays[:-1])
    return y, *back(arrays[-1])


class Measurements:
    """The measurements by name; `tiny` shrinks them to what two cores do in seconds."""

    def __init__(self, tiny: bool):
        self.tiny = tiny
        train, whole = self.train, {"loss_chunk": 2_048}
        self.by_name = {
            "ceilings": self.ceilings,
            "casts": self.casts,
            "1.3b, remat dots": partial(train, "1.3b", remat="dots"),
            "180m": partial(train, "180m"),
            "180m, unrolled": partial(train, "180m", layers="unroll", **whole),
            **{f"product, {name}": partial(self.product, *how) for name, how in PRODUCTS.items()},
            "experts: products": self.expert_products,
            "180m, fp8 by tensor": partial(train, "180m", recipe="all", cast=BY_TENSOR),
            "1.3b, remat dots, fp8 by tensor": partial(train, "1.3b", remat="dots", recipe="all", cast=BY_TENSOR),
            "1.3b, remat dots, unrolled": partial(train, "1.3b", remat="dots", layers="unroll", **whole),
            "180m, twice": partial(self.repeated, "180m"),
            "180m, twice, --xla_gpu_deterministic_ops=true": partial(self.repeated, "180m"),
            "attention": self.attention,
            "diloco, 35m": self.diloco,
            "550m": partial(train, "550m"),
            "35m": partial(train, "35m", tokens=4 * TOKENS),
            "spectra": self.spectra,
            "experts: 180m": partial(train, "180m", experts=(32, 4)),
            "180m, capybara": partial(train, "180m", recipe="capybara"),
            "180m, deepseek_v3 simulated": partial(train, "180m", recipe="deepseek_v3", fp8="simulated"),
            "1.3b, micro-batches of 4,096": partial(train, "1.3b", micro=4_096),
            "180m, attention xla": partial(train, "180m", attention="xla"),
            "evaluation": self.evaluation,
            f"profile of 180m, {NAMED}": partial(self.profile, "180m"),
            f"profile of 1.3b, {NAMED}": partial(self.profile, "1.3b", remat="dots"),
            "180m, nvfp4 simulated": partial(train, "180m", recipe="nvfp4"),
            "product, blocks of 128, native": partial(self.product, "deepseek_v3", "", "native"),
            "180m, remat full": partial(train, "180m", remat="full"),
        }

    def config(self, size: str, *, tokens=TOKENS, micro=0, recipe="none", cast="", fp8="auto", experts=None, **compute):
        from jaxlab.config import check, default
        from jaxlab.model import families

        config = default()
        config.model.update(families.model("chinchilla", size))
        config.compute.update(compute)
        config.quant.update(recipe=recipe, cast=cast, fp8=fp8)
        config.batch.update(tokens=tokens, context=2_048, micro_tokens=micro)
        if experts:  # as many, of which a token meets so many, together as wide as the dense layer
            config.model.update(ffn="swiglu", num_experts=experts[0], experts_per_token=experts[1], balance_loss=0.01)
            config.model.d_ff //= experts[1]
        if self.tiny:
            config.model.update(TINY | {"vocab_size": 256})
            config.batch.update(tokens=tokens // 64, context=64, micro_tokens=micro // 64)
            config.compute.update(loss_chunk=64, attention="auto")
        config.tokens, config.schedule.warmup_tokens = 10 * config.batch.tokens, 0
        check(config)
        return config

    def train(self, size: str, **options) -> dict:
        """Tokens/s and the share of the peak of a training step on one device."""
        import jax

        from benchmarks.step import steps_of
        from jaxlab.cost import flops

        config = self.config(size, **options)
        step, compiling, _, compiled = steps_of(config)
        seconds = seconds_of(step)
        model = flops.training_per_token(config.model, config.batch.context) * config.batch.tokens
        peak = flops.peak(jax.devices()[0].device_kind)
        memory = compiled.memory_analysis()
        return {
            "step_s": seconds,
            "tokens_per_s": config.batch.tokens / seconds,
            "tflop_per_s": model / seconds / 1e12,
            "mfu": model / seconds / peak if peak else None,
            "compile_s": compiling,
            "temporary_gib": memory.temp_size_in_bytes / 2**30,
            "arguments_gib": memory.argument_size_in_bytes / 2**30,
            "loss": float(step()["loss"].mean()),
        }

    def repeated(self, size: str, steps: int = 20, **options) -> dict:
        """Whether the same steps, taken twice by one program, end with the same bits."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        from jaxlab import parallel
        from jaxlab.train.plan import Batch
        from jaxlab.train.program import program

        config = self.config(size, **options)
        made = program(config, parallel.mesh(1, 1, 1), config.model.vocab_size)
        whole = made.shape(Batch(config.batch.tokens, config.batch.context))
        compiled = made.compiling(whole).result()
        hypers, counts = {"lr": np.float32([1e-3]), "weight_decay": np.float32([1e-4])}, np.int32([1, 1])

        def trained():
            state, draw = made.init(np.uint32(0)), np.random.default_rng(0)
            batches = draw.integers(0, config.model.vocab_size, (steps, *whole)).astype(np.int32)
            for batch in batches:
                state, metrics = compiled(state, jax.device_put(batch, made.batch_sharding), hypers, counts)
            bits = [jax.lax.bitcast_convert_type(leaf, jnp.uint32) for leaf in jax.tree.leaves(state.params)]
            return [int(jnp.sum(b, dtype=jnp.uint32)) for b in bits], float(metrics["loss"][0, 0])

        (first, loss), (second, other) = trained(), trained()
        pairs = zip(first, second, strict=True)
        return {"parameters_that_differ": sum(a != b for a, b in pairs), "of": len(first), "losses": [loss, other]}

    def profile(self, size: str, steps: int = 3, **options) -> dict:
        """Milliseconds a step of the kernels that take longest, by name."""
        import collections
        import tempfile

        import jax
        from jax.profiler import ProfileData

        from benchmarks.step import steps_of

        step, _, _, compiled = steps_of(self.config(size, **options))
        jax.block_until_ready([step() for _ in range(2)])
        sources = dict(re.findall(r'%?([\w.-]+) = .*?metadata=\{op_name="([^"]*)"', compiled.as_text()))
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                jax.block_until_ready([step() for _ in range(steps)])
            data = ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb"))))
            kernels = collections.Counter()
            for plane in data.planes:
                for line in plane.lines if "GPU" in plane.name or (self.tiny and "CPU" in plane.name) else ():
                    if line.name.startswith("Stream") or self.tiny:
                        for event in line.events:
                            op = str(dict(event.stats).get("hlo_op", ""))
                            kernels[op, event.name[:90]] += event.duration_ns / 1e6 / steps
        rows = [
            {"ms": ms, "op": op, "kernel": kernel, "from": sources.get(op, "")[-160:]}
            for (op, kernel), ms in kernels.most_common(80)
        ]
        lines = [f"{plane.name}: {[line.name for line in plane.lines]}" for plane in data.planes]
        return {"ms_a_step": sum(kernels.values()), "kernels": rows} | ({} if rows else {"lines": lines})

    def ceilings(self) -> dict:
        """What the device does at best: large products, a copy."""
        import jax
        import jax.numpy as jnp

        n = 256 if self.tiny else 8_192
        x, y = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in (0, 1))
        rates = {}
        for name, dtype in {"bfloat16": jnp.bfloat16, "float32": jnp.float32, "e4m3fn": jnp.float8_e4m3fn}.items():
            a, b = x.astype(dtype), y.astype(dtype)
            out = jnp.float32 if dtype == jnp.float32 else jnp.bfloat16
            dot = jax.jit(lambda a, b, out=out: jax.lax.dot_general(
                a, b, (((1,), (1,)), ((), ())), preferred_element_type=out))  # fmt: skip
            rates[f"{name}_tflop_per_s"] = 2 * n**3 / seconds_of(lambda: dot(a, b)) / 1e12  # noqa: B023
        large = jnp.ones((n, n, 8), jnp.float32)
        copy = jax.jit(jnp.copy)
        rates["copy_gb_per_s"] = 2 * large.nbytes / seconds_of(lambda: copy(large)) / 1e9
        return rates

    def attention(self) -> dict:
        """Forward and backward pass of one layer's attention by kernel: seconds, and the error against float32."""
        import jax
        import jax.numpy as jnp

        from jaxlab.model import attention

        b, length, heads = (1, 128, 2) if self.tiny else (8, 2_048, 16)
        rows = {}
        for width in (64, 128):
            q, k, v, dy = (jax.random.normal(jax.random.key(i), (b, length, heads, width)) for i in range(4))

            exact = jax.jit(partial(both, attention.plain))(*(a[:1] for a in (q, k, v, dy)))
            sixteen = [a.astype(jnp.bfloat16) for a in (q, k, v, dy)]
            kernels = {"xla": attention.fused("xla"), "chunked": attention.chunked}
            if jax.devices()[0].platform == "gpu":
                kernels["cudnn"] = attention.fused("cudnn")
            for name, kernel in kernels.items():
                call = jax.jit(partial(both, kernel))
                error = [
                    float(jnp.linalg.norm(a[:1].astype(jnp.float32) - e) / jnp.linalg.norm(e))
                    for a, e in zip(call(*sixteen), exact, strict=True)
                ]
                seconds = seconds_of(lambda: call(*sixteen))  # noqa: B023
                rows[f"{name}, heads of {width}"] = {"seconds": seconds, "errors of y, dq, dk, dv": error}
        return rows

    def product(self, name: str, changes: str, fp8: str) -> dict:
        """A linear layer's three products by recipe: seconds, and the error against the same casts in float32."""
        import jax
        import jax.numpy as jnp

        from jaxlab.model import linear
        from jaxlab.quant.dot import dot
        from jaxlab.quant.recipes import recipe

        tokens, inputs, outputs = (64, 128, 256) if self.tiny else (TOKENS, 2_048, 8_192)
        keys = jax.random.split(jax.random.key(0), 3)
        x, dy = (jax.random.normal(k, (tokens, n), jnp.bfloat16) for k, n in zip(keys, (inputs, outputs), strict=False))
        w = jax.random.normal(keys[2], (inputs, outputs), jnp.bfloat16) * inputs**-0.5
        rule = recipe(name, changes)

        call = jax.jit(partial(both, dot(rule, fp8=fp8) if rule.casts else linear.dot))
        seconds = seconds_of(lambda: call(x, w, dy))
        wide = [a.astype(jnp.float32) for a in (x, w, dy)]
        exact = jax.jit(partial(both, dot(rule, fp8="simulated") if rule.casts else linear.dot))(*wide)
        errors = [
            float(jnp.linalg.norm(a.astype(jnp.float32) - e) / jnp.linalg.norm(e))
            for a, e in zip(call(x, w, dy), exact, strict=True)
        ]
        rate = 6 * tokens * inputs * outputs / seconds / 1e12
        return {"seconds": seconds, "tflop_per_s": rate, "errors of y, dx, dw": errors}

    def expert_products(self) -> dict:
        """A layer of 32 experts, 4 a token, forward and backward: grouped products by way, against a dense layer of as
        many operations."""
        import jax
        import jax.numpy as jnp

        from jaxlab.model import moe

        tokens, d, f, experts, chosen = (64, 32, 16, 8, 2) if self.tiny else (TOKENS, 1_024, 1_024, 32, 4)
        rows = tokens * chosen
        keys = jax.random.split(jax.random.key(0), 4)
        x = jax.random.normal(keys[0], (rows, d), jnp.bfloat16)
        w = jax.random.normal(keys[1], (experts, d, f), jnp.bfloat16) * d**-0.5
        dy = jax.random.normal(keys[2], (rows, f), jnp.bfloat16)
        draws = jax.random.categorical(keys[3], jnp.linspace(0, 1, experts), shape=(rows,))
        sizes = jnp.bincount(draws, length=experts)

        def blocked(block):
            @jax.custom_vjp
            def product(x, w):
                return moe.blocked_dot(x, w, sizes, block)

            def backward(residuals, dy):
                x, w = residuals
                dx = moe.blocked_dot(dy, w.swapaxes(1, 2), sizes, block)
                return dx, moe.blocked_outer(x, dy, sizes, block)

            product.defvjp(lambda x, w: (product(x, w), (x, w)), backward)
            return product

        @jax.custom_vjp
        def pallas(x, w):  # Mosaic's kernels for Hopper
            from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu

            return ragged_dot_mgpu.ragged_dot(x, w, group_sizes=sizes, **TILES)

        def pallas_backward(residuals, dy):
            from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu, transposed_ragged_dot_mgpu

            x, w = residuals
            dx = ragged_dot_mgpu.ragged_dot(dy, w, group_sizes=sizes, transpose_rhs=True, **TILES)
            return dx, transposed_ragged_dot_mgpu.transposed_ragged_dot(x, dy, group_sizes=sizes, **TILES)

        pallas.defvjp(lambda x, w: (pallas(x, w), (x, w)), pallas_backward)
        ways = {
            "dense": lambda x, w: x @ w[0],
            "ragged_dot": lambda x, w: jax.lax.ragged_dot(x, w, sizes),
            "grouped_dot": lambda x, w: moe.grouped_dot(x, w, sizes),
            **{f"blocks of {n}": blocked(n) for n in (64, 128, 256, 512)},
        }
        if jax.devices()[0].platform == "gpu":
            ways["pallas"] = pallas
        found = {}
        for name, product in ways.items():
            try:
                compiled = jax.jit(partial(both, product)).lower(x, w, dy).compile()
                found[name] = {
                    "seconds": seconds_of(lambda: compiled(x, w, dy)),  # noqa: B023
                    "temporary_gib": compiled.memory_analysis().temp_size_in_bytes / 2**30,
                }
            except Exception as error:  # one way that this version lacks is not to stop the others
                found[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        return found

    def casts(self) -> dict:
        """Block-scaled casts of a float32 matrix: elements/s, their time over a copy's, elements that differ from the
        same cast on the CPU."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        from jaxlab.quant.cast import cast

        n = 256 if self.tiny else 8_192
        x = jax.random.normal(jax.random.key(0), (n, n))
        copy = jax.jit(jnp.copy)
        base = seconds_of(lambda: copy(x))
        rows = {"copy": {"gb_per_s": 2 * x.nbytes / base / 1e9}}
        casts = {
            "e4m3, 128": {"format": "e4m3", "block": 128},
            "e4m3fn, 32, power of two": {"format": "e4m3fn", "block": 32, "scale": "power_of_two"},
            "e2m1, 16, e4m3 scale": {"format": "e2m1", "block": 16, "scale": "e4m3"},
            "e1m1, tensor": {"format": "e1m1", "axis": None, "block": None},
        }
        small, cpu = np.asarray(x[:256]), jax.devices("cpu")[0]
        for name, options in casts.items():
            call = jax.jit(lambda x, o=options: cast(x, **o))
            seconds = seconds_of(lambda: call(x))  # noqa: B023
            here, there = call(jnp.asarray(small)), call(jax.device_put(small, cpu))
            differ = int(np.sum(np.asarray(here).view(np.uint32) != np.asarray(there).view(np.uint32)))
            rows[name] = {"elements_per_s": x.size / seconds, "of_a_copy": base / seconds, "differ_from_cpu": differ}
        return rows

    def diloco(self) -> dict:
        """Whole rounds of 30 steps of 35M: data-parallel and M replicas on the same tokens a step."""
        from benchmarks import diloco

        shape = {
            "d_model": 512,
            "layers": 6,
            "heads": 8,
            "ff": 2_048,
            "context": 2_048,
            "sequences": 32,
            "vocab": 32_768,
        }
        if self.tiny:
            shape |= {"d_model": 64, "layers": 2, "heads": 2, "ff": 128, "context": 64, "vocab": 256}
        arms = {"data-parallel": {}, "M=1": {"replicas": 1}, "M=2": {"replicas": 2}, "M=8": {"replicas": 8}}
        rates = {}
        for name, arm in arms.items():
            changes = arm | ({"diloco.sync_every": diloco.H} if arm else {}) | {"compute.loss_chunk": shape["context"]}
            one = diloco.rounds(shape, "bfloat16", changes)
            rates[name] = diloco.H * shape["sequences"] * shape["context"] / seconds_of(one, repeats=2, least=0)
        return {"tokens_per_s": rates, "ratio": {name: rate / rates["data-parallel"] for name, rate in rates.items()}}

    def spectra(self) -> dict:
        """A measurement of all layers' spectra, in steps of training, and the eigenvalues of 12 wide layers."""
        import jax

        from benchmarks import spectra
        from benchmarks.step import SHAPES

        shape = SHAPES["demo" if self.tiny else "gpu"]
        step, measure = spectra.run_of(shape, "float32" if self.tiny else "bfloat16", "post")
        spectra.timed(measure, step, step)
        steps, measures = (min(spectra.timed(call) for _ in range(3)) for call in (step, measure))
        found = {"step_s": steps, "measurement_s": measures}
        if not self.tiny:
            found["eigvalsh of 12 layers at 3,072, s"] = min(spectra.eigenvalue_seconds())
        return found | {"device": jax.devices()[0].device_kind}

    def evaluation(self) -> dict:
        """Validation loss of 180M: tokens/s."""
        import numpy as np

        from jaxlab import parallel
        from jaxlab.train.program import program

        config = self.config("180m", loss_chunk=2_048)
        made = program(config, parallel.mesh(1, 1, 1), config.model.vocab_size)
        params = made.params(made.init(np.uint32(0)))
        shape = (config.batch.tokens // config.batch.context, config.batch.context + 1)
        tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, shape).astype(np.int32)
        return {"tokens_per_s": config.batch.tokens / seconds_of(lambda: made.evaluate_batch(params, tokens))}


def work(tiny: bool) -> None:
    """Answers each name on stdin with its measurement as one line of JSON."""
    measurements = Measurements(tiny).by_name
    import jax

    device = jax.devices()[0]
    print(json.dumps({"device": device.device_kind, "jax": jax.__version__}), flush=True)
    for line in sys.stdin:
        try:
            answer = measurements[line.rstrip("\n")]()
        except Exception as error:  # one measurement that fails is not to stop the others
            answer = {"error": f"{type(error).__name__}: {str(error)[:600]}"}
        jax.clear_caches()
        gc.collect()
        print(json.dumps(answer), flush=True)


class Worker:
    """A process that measures; restarted after it has crashed or not answered in time."""

    def __init__(self, tiny: bool, flags: str):
        self.flags = flags
        command = [sys.executable, "-m", "benchmarks.gpu", "--work", *(["--tiny"] if tiny else [])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"} | os.environ
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def answer(self, seconds: float) -> dict | None:
        """The next answer; None where there is none in time, and then the process has ended."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            line = None
        if line is None:
            self.end()
        return json.loads(line) if line else None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, name: str) -> None:
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing more is begun")
    parser.add_argument("--only", default="", help="words, separated by commas")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON, written after every measurement")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.tiny)
    end = time.monotonic() + 60 * args.minutes
    words = args.only.split(",")
    names = [name for name in Measurements(args.tiny).by_name if any(word in name for word in words)]
    worker, rows, about = None, [], {}
    for name in names:
        left = end - time.monotonic()
        if left <= 0:
            print(f"no time left for: {', '.join(names[len(rows) :])}")
            break
        began = time.monotonic()
        flags = name[name.find("--") :] if "--" in name else ""
        if worker and worker.flags != flags:
            worker = worker.end()
        if worker is None:
            worker = Worker(args.tiny, flags)
            about = worker.answer(SECONDS) or sys.exit("error: no device answers")
        worker.ask(name)
        answer = worker.answer(min(SECONDS, left))
        if answer is None:
            worker, answer = None, {"error": "no answer in time, or the process crashed"}
        rows.append({"name": name, "took_s": time.monotonic() - began, **answer})
        print(json.dumps(rows[-1])[:700], flush=True)
        if args.out:
            machine = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version()}
            record = {"command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])} | about | machine
            args.out.write_text(json.dumps(record | {"measurements": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

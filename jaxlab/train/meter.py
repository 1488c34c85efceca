"""How fast a run is: tokens a second, and their share of what the devices could do."""

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from functools import cache

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxlab.cost import flops
from jaxlab.train.plan import Block

SMOOTHED_BLOCKS = 20


class Meter:
    """Times blocks by the moments at which their results arrive.

    flops_per_token(context): of training. peak: FLOP/s of all devices, None where unknown.
    """

    def __init__(self, flops_per_token: Callable[[int], float], peak: float | None):
        self._flops, self._peak = flops_per_token, peak
        self._recent = deque(maxlen=SMOOTHED_BLOCKS)  # (tokens, seconds, data_seconds, flops) of a block
        self.restart()

    def restart(self) -> None:
        """Leaves out the time since the last result: what an evaluation or a checkpoint took is no training time."""
        self._last = time.perf_counter()

    def read(self, block: Block, data_seconds: float) -> dict[str, float]:
        """Seconds a step, those of them spent waiting for data, tokens a second and utilisation, of a block whose
        results have just arrived."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        tokens = block.end.tokens - block.start.tokens
        flops = tokens * self._flops(block.batch.context)
        self._recent.append((tokens, seconds, data_seconds, flops))
        values = {
            "seconds": round(seconds / block.count, 6),
            "data_seconds": round(data_seconds / block.count, 6),
            "tokens_per_second": round(tokens / seconds, 1),
        }
        return values | ({"utilisation": round(flops / seconds / self._peak, 4)} if self._peak else {})

    def status(self, tokens_left: int) -> str:
        """Speed over the last blocks, and the training time that is left at that speed."""
        tokens, seconds, data_seconds, flops = map(sum, zip(*self._recent, strict=True))
        rate = tokens / seconds
        text = f"{rate:,.0f} tokens/s"
        if self._peak:
            text += f"  MFU {flops / seconds / self._peak:.0%}"
        if data_seconds > 0.05 * seconds:
            text += f"  {data_seconds / seconds:.0%} waiting for data"
        return f"{text}  {timedelta(seconds=round(tokens_left / rate))} left"


def peak_flops(mesh: Mesh) -> tuple[float | None, str]:
    """(FLOP/s of all devices of the mesh, how it is known): the data sheet's bf16 figure; on CPU measured, since all
    CPU devices of a process share its cores; None for an accelerator that is not in the table."""
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return measured_flops() * jax.process_count(), "measured, float32 products of 512 x 512"
    peak = flops.peak(device.device_kind)
    return (peak * mesh.size, "data sheet, bfloat16") if peak else (None, f"unknown for {device.device_kind}")


@cache
def measured_flops(size: int = 512, repetitions: int = 8) -> float:
    """FLOP/s of the best of a few float32 matrix products on this machine."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)

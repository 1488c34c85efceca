"""Training steps of a model with experts on one and on eight CPU devices: python -m tests.model.moe_devices OUT.json

A process of its own, since the number of devices is fixed when JAX starts; test_moe.py reads what it writes.
"""

import json
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab import parallel
from jaxlab.config import default
from jaxlab.model.families import ARCHITECTURES
from jaxlab.train.program import program

CONTEXT, SEQUENCES, STEPS = 16, 16, 3
MODEL = ARCHITECTURES["qwen3_moe"] | {
    "num_experts": 8, "experts_per_token": 2, "balance_loss": 0.1, "init_std": 0.2, "num_layers": 2, "d_model": 32,
    "num_heads": 4, "num_kv_heads": 4, "head_dim": 8, "d_ff": 16, "vocab_size": 64, "context": CONTEXT,
}  # fmt: skip
REPLICAS = 2
CASES = {  # devices: (mesh, how layers are run)
    1: ((1, 1, 1), {"layers": "unroll", "remat": "none"}),
    8: ((2, 2, 2), {"layers": "scan", "remat": "dots"}),
}


def measure(mesh: tuple, compute: dict) -> dict:
    """Losses of all steps, and the shape of the experts' parameters on a device."""
    config = default()
    config.model.update(MODEL)
    config.replicas = REPLICAS
    config.batch.update(tokens=SEQUENCES * CONTEXT, context=CONTEXT, micro_tokens=4 * CONTEXT)
    config.compute.update(compute)
    made = program(config, parallel.mesh(*mesh), MODEL["vocab_size"])
    everywhere = NamedSharding(made.mesh, PartitionSpec())
    hypers, one = jax.device_put(
        ({"lr": np.float32([1e-2]), "weight_decay": np.float32([0])}, np.int32([1, 1])), everywhere
    )
    draw, shape = np.random.default_rng(0), (1, REPLICAS, SEQUENCES // 4 // REPLICAS, 4, CONTEXT + 1)
    tokens = draw.zipf(1.5, shape).astype(np.int32) % MODEL["vocab_size"]
    state, rows = made.init(0), []
    for _ in range(STEPS):  # of the same batch
        state, metrics = made.inner_steps(state, jax.device_put(tokens, made.batch_sharding), hypers, one)
        rows.append(jax.device_get(metrics))
    experts = state.params["blocks"]["experts"]
    return {
        "losses": [float(row["loss"][0].mean()) for row in rows],
        "balance": [float(row["balance"][0].mean()) for row in rows],
        "shards": {name: leaf["kernel"].addressable_shards[0].data.shape for name, leaf in experts.items()},
    }


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        json.dump({devices: measure(*case) for devices, case in CASES.items()}, file)

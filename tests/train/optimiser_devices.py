"""Optimisers on eight forced CPU devices: python -m tests.train.optimiser_devices STORE_KEYS_AS_JSON OUT.json

A process of its own, as tests/train/devices.py; test_optimisers.py reads what it writes.
"""

import json
import sys

from jaxlab import parallel
from jaxlab.train.build import build
from tests import tiny
from tests.train.devices import SHAPE, collectives, losses_and_end

MESHES = ((1, 1, 1), (2, 4, 1))  # one device; two replicas on four devices each


def measure(data: dict, name: str, mesh: tuple) -> dict:
    """Losses of two replicas that synchronise after two of four steps, and where the state is."""
    config = tiny.config(data | SHAPE, optim__name=name, replicas=2, diloco__sync_every=2)
    config.mesh.replica, config.mesh.data, config.mesh.tensor = mesh
    run = build(config)
    collected = collectives(run.compiled(0).as_text())
    losses, _, _ = losses_and_end(run)
    return {
        "losses": losses.mean(axis=1).tolist(),
        "table": dict(parallel.table(run.program.shardings)),
        "unsharded": run.program.unsharded,
        "crossing": [c for c in collected if any(len({device // 4 for device in g}) > 1 for g in c["groups"])],
        "collectives": len(collected),
    }


if __name__ == "__main__":
    keys, out = json.loads(sys.argv[1]), sys.argv[2]
    results = {name: [measure(keys, name, mesh) for mesh in MESHES] for name in ("muon", "adafactor")}
    with open(out, "w") as file:
        json.dump(results, file)

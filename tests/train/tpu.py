"""What goes between two TPU slices that are not there: python -m tests.train.tpu OUT.json

Compiled ahead of time for 2 x 16 chips of v5e, on any host with the extra `tpu`. Between slices the compiler sends
through the hosts: every such transfer is a `send` of its megascale runtime, with the shape of what leaves a chip.
"""

import json
import re
import sys

import jax
import numpy as np
from jax.experimental import topologies

from jaxlab import parallel
from jaxlab.config import default
from jaxlab.model import families
from jaxlab.optim.fragments import Event
from jaxlab.train.plan import Batch
from jaxlab.train.program import program
from tests.train.devices import collectives, numbers

CODECS = ("float32", "bfloat16", "int8", "e3m0")
CHIPS = 16  # of a slice


def sent(text: str) -> list[tuple[str, int]]:
    """(type, bytes) of what a chip sends to other slices, in the text of a compiled program."""
    found = re.findall(r"= \(([fsu]\w*?\d+)\[([\d,]*)\].*? send\(.*xla_megascale_runtime", text)
    return [(kind, int(np.prod(numbers(dims))) * int(re.sub(r"\D", "", kind)) // 8) for kind, dims in found]


def compiled(codec: str):
    config = default()
    config.model.update(families.model("chinchilla", "35m", context=256))
    config.model.update(num_layers=2, vocab_size=4_096)
    config.batch.update(tokens=32 * 256, context=256)
    config.replicas = 2
    config.diloco.update(sync_every=30, codec=codec)
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=2)
    return program(config, parallel.mesh(2, CHIPS, 1, devices=list(topology.devices)), config.model.vocab_size)


if __name__ == "__main__":
    made = compiled("float32")
    inner = made.compiling(made.shape(Batch(32 * 256, 256))).result().as_text()
    groups = [group for c in collectives(inner) for group in c["groups"]]
    results = {
        "inner": sent(inner),
        "inside": len(groups),
        "across": [g for g in groups if len({d // CHIPS for d in g}) > 1],
    }
    held = [x.sharding.shard_shape(x.shape)[1:] for x in jax.tree.leaves(made.abstract_state().params)]
    results["parameters"] = [int(np.prod(shape)) for shape in held]
    lr = jax.ShapeDtypeStruct((), np.float32)
    for codec in CODECS:
        made = compiled(codec)
        results[codec] = sent(made.outer_step.lower(made.abstract_state(), Event("sync", 0), lr).compile().as_text())
    with open(sys.argv[1], "w") as file:
        json.dump(results, file)

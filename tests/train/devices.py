"""What runs look like on eight forced CPU devices: python -m tests.train.devices STORE_KEYS_AS_JSON OUT.json

A process of its own, since the number of devices is fixed when JAX starts; test_devices.py reads what it writes.
"""

import json
import re
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab import parallel
from jaxlab.optim.fragments import Event
from jaxlab.train.build import build
from jaxlab.train.state import Clock
from tests import tiny
from tests.train.steps import losses_and_end

# Sizes that occur nowhere else in the shapes, so that a dimension of 40 (or 40 x 24 tokens) in the compiled program
# is the batch, whole; also not as a part of the batch times heads, since 12, 6 or 3 heads undo no cut by 2, 4 or 8.
SEQUENCES, CONTEXT, STEPS = 40, 24, 4
SHAPE = {
    "tokens": SEQUENCES * CONTEXT * STEPS, "batch.tokens": SEQUENCES * CONTEXT, "batch.context": CONTEXT,
    "model.context": CONTEXT, "model.num_heads": 12, "model.num_kv_heads": 12, "model.head_dim": 8, "model.d_model": 96,
    "model.d_ff": 256, "model.vocab_size": 512, "schedule.warmup_tokens": 0, "compute.attention": "plain",
    "compute.layers": "scan", "schedule.peak_lr": 1e-3, "spectra.tokens": 90 * CONTEXT,
}  # fmt: skip
CASES = {  # name: (replicas, mesh replica x data x tensor, fsdp)
    "1 device": (1, (1, 1, 1), True),
    "data 8": (1, (1, 8, 1), True),
    "data 8, no fsdp": (1, (1, 8, 1), False),
    "data 4 x tensor 2": (1, (1, 4, 2), True),
    "data 2 x tensor 4": (1, (1, 2, 4), True),
    "replica 2 x data 4": (1, (2, 4, 1), True),
    "2 replicas on 1 device": (2, (1, 1, 1), True),
    "2 replicas on replica 2 x data 4": (2, (2, 4, 1), True),
}

BATCH = SEQUENCES * CONTEXT
EVERYTHING = {  # the four studies in one run, on a batch that doubles
    "replicas": 2, "diloco.sync_every": 2, "diloco.fragments": 2, "diloco.overlap": 1, "diloco.mix": 0.5,
    "quant.recipe": "capybara", "quant.cast": "block=32,rounding=stochastic", "tokens": 6 * BATCH,
    "batch.growth": f"0:{BATCH} {2 * BATCH}:{2 * BATCH}", "batch.micro_tokens": BATCH // 2,
    "schedule.name": "wsd", "schedule.decay_tokens": 2 * BATCH, "spectra.at": f"every:{2 * BATCH}",
}  # fmt: skip

EVALUATED = ((1, 1, 1), (1, 4, 2))
SPECTRA = ("1 device", "data 8, no fsdp", "data 4 x tensor 2")


def measure(name: str, data: dict, replicas: int, mesh: tuple, fsdp: bool) -> dict:
    """Losses of all steps, and what the compiled program says about one device."""
    config = tiny.config(data | SHAPE, replicas=replicas, mesh__fsdp=fsdp, diloco__sync_every=2 * (replicas > 1))
    config.mesh.replica, config.mesh.data, config.mesh.tensor = mesh
    run = build(config)
    text, memory = run.compiled(0).as_text(), run.compiled(0).memory_analysis()
    losses, state, _ = losses_and_end(run)
    return {
        "losses": losses.mean(axis=1).tolist(),
        "argument_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(state)),
        "common_bytes": sum(x.nbytes for x in jax.tree.leaves(state.outer)),
        "dots": dot_shapes(text),
        "collectives": collectives(text),
        "meeting": meeting(run.program),
        "shards": {
            parallel.path_name(path): (x.shape, x.addressable_shards[0].data.shape, str(tuple(x.sharding.spec)))
            for path, x in jax.tree_util.tree_leaves_with_path(state)
        },
        "loss": run.evaluate(state)["loss"] if mesh in EVALUATED else None,
        "spectra": spectra(run) if name in SPECTRA else None,
    }  # fmt: skip


def everything(data: dict, mesh: tuple) -> dict:
    """Losses of all steps, and hard ranks of the global parameters at the end."""
    config = tiny.config(data | SHAPE | EVERYTHING)
    config.mesh.replica, config.mesh.data, config.mesh.tensor = mesh
    run = build(config)
    losses, state, clock = losses_and_end(run)
    values, _ = run.spectra(state, clock)
    return {"losses": losses.mean(axis=1).tolist(), "ranks": [v for name, v in values.items() if "hard_rank/" in name]}


def spectra(run) -> dict:
    """Of the first parameters on 90 sequences, in three micro-batches, the last of them partly padding."""
    values, found = run.spectra(run.program.init(0), Clock())
    sharding = NamedSharding(run.program.mesh, PartitionSpec(None, parallel.batch_axes(run.config.replicas)[1]))
    tokens = jax.ShapeDtypeStruct((3, SEQUENCES, CONTEXT + 1), np.int32, sharding=sharding)
    text = run.program.probe.lower(run.program.abstract_state().params, tokens, "post").compile().as_text()
    return {
        "values": values,
        "eigenvalues": {name: x.tolist() for name, x in found.items()},
        "collectives": collectives(text),
    }


def meeting(program) -> dict | None:
    """Collectives of the compiled outer step, and the bytes of float32 parameters on a device."""
    if not program.outer_loop:
        return None
    lr = jax.ShapeDtypeStruct((), np.float32)
    text = program.outer_step.lower(program.abstract_state(), Event("sync", 0), lr).compile().as_text()
    held = [x.sharding.shard_shape(x.shape)[1:] for x in jax.tree.leaves(program.abstract_state().params)]
    return {
        "collectives": collectives(text),
        "bytes": 4 * sum(int(np.prod(shape)) for shape in held),
        "leaves": len(held),
    }


def dot_shapes(text: str) -> list[list[list[int]]]:
    """Shapes of result and operands of every matrix product in the text of a compiled program."""
    shapes = {}
    for name, dims in re.findall(r"%([\w.-]+) = \w+\[([\d,]*)\]", text):
        shapes[name] = [int(d) for d in dims.split(",") if d]
    for name, dims in re.findall(r"([\w.-]+): \w+\[([\d,]*)\]", text):  # parameters of computations
        shapes.setdefault(name, [int(d) for d in dims.split(",") if d])
    found = []
    for line in text.splitlines():
        product = re.match(r"\s*(?:ROOT )?%([\w.-]+) = .* dot\((.*?)\),", line)
        if product:
            operands = re.findall(r"%([\w.-]+)", product[2])
            found.append([shapes[product[1]], *(shapes[o] for o in operands if o in shapes)])
    return found


def collectives(text: str) -> list[dict]:
    """{"name", "groups", "bytes"} of every collective: the groups of devices (positions in the mesh) that exchange, and
    the size of what it leaves on a device."""
    found = []
    for line in text.splitlines():
        kind = re.search(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", line)
        if not kind:
            continue
        shapes = re.findall(r"\b[fsu](\d+)\[([\d,]*)\]", line[: kind.start()])
        size = sum(int(bits) // 8 * int(np.prod(numbers(dims))) for bits, dims in shapes)
        found.append({"name": kind[1], "groups": groups(line), "bytes": size})
    return found


def groups(line: str) -> list[list[int]]:
    """Groups of devices of a collective, in its three spellings: {{0,1},{2,3}}; [2,4]<=[4,2]T(1,0); and as axes of a
    mesh, mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'b'}."""
    if spelled := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line):
        return [[int(d) for d in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", spelled[1])]
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return device_ids(iota[2], iota[3]).reshape(numbers(iota[1])).tolist()
    found = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}", line
    )
    axes = re.findall(r"'(\w+)'=(\d+)", found[1])
    exchanged = re.findall(r"'(\w+)'", found[4])
    if ":" in found[4]:
        raise ValueError(f"axes in parts are not understood: {found[0]}")
    sizes = [int(size) for _, size in axes]
    ids = device_ids(found[2] or str(np.prod(sizes)), found[3]).reshape(sizes)
    last = [i for i, (name, _) in enumerate(axes) if name in exchanged]
    first = [i for i in range(len(axes)) if i not in last]
    width = int(np.prod([sizes[i] for i in last]))
    return ids.transpose(first + last).reshape(-1, width).tolist()


def device_ids(dims: str, order: str | None) -> np.ndarray:
    ids = np.arange(np.prod(numbers(dims))).reshape(numbers(dims))
    return ids.transpose(numbers(order)) if order else ids


def numbers(text: str) -> list[int]:
    return [int(d) for d in text.split(",") if d]


if __name__ == "__main__":
    keys, out = json.loads(sys.argv[1]), sys.argv[2]
    wanted = sys.argv[3:] or CASES
    results = {name: measure(name, keys, *CASES[name]) for name in wanted}
    if not sys.argv[3:]:
        results["everything"] = [everything(keys, mesh) for mesh in ((1, 1, 1), (2, 4, 1))]
    with open(out, "w") as file:
        json.dump(results, file)

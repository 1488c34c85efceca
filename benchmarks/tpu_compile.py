"""Compiles a training step for TPUs without having them: does it fit, how is it sharded, what does it communicate?

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m benchmarks.tpu_compile --topology=v5e:4x4 --family=chinchilla \
        --size=1.3b --batch_tokens=524288 --mesh=1,16,1

Needs only the extra `tpu`, on any CPU host. Prints from the compiled program: memory per chip, collectives with the
mesh axes that they cross, and the shapes of the largest products on a chip. A program that does not fit into a chip's
memory fails here as it would on the TPU.
"""

import argparse
import collections
import re
import time

import jax
from jax.experimental import topologies

from jaxlab import parallel
from jaxlab.config import check, default
from jaxlab.cost import flops
from jaxlab.model import families
from jaxlab.optim.fragments import Event
from jaxlab.train.plan import Batch
from jaxlab.train.program import program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--family", default="chinchilla", choices=families.ARCHITECTURES)
    parser.add_argument("--size", default="1.3b")
    parser.add_argument("--batch_tokens", type=int, default=524_288)
    parser.add_argument("--context", type=int, default=2_048)
    parser.add_argument("--micro_tokens", type=int, default=0)
    parser.add_argument("--mesh", default="1,-1,1", help="replica,data,tensor")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--sync_every", type=int, default=0, help="DiLoCo: the outer step is compiled too")
    parser.add_argument("--codec", default="float32", help="DiLoCo: what replicas send")
    parser.add_argument("--compute", action="append", default=[], help="key=value of config.compute")
    args = parser.parse_args()

    config = default()
    config.model.update(families.model(args.family, args.size, context=max(args.context, 128)))
    config.batch.update(tokens=args.batch_tokens, context=args.context, micro_tokens=args.micro_tokens)
    config.tokens = max(config.tokens, args.batch_tokens)
    config.replicas = args.replicas
    config.diloco.update(sync_every=args.sync_every, codec=args.codec)
    for option in args.compute:
        key, value = option.split("=")
        config.compute[key] = type(config.compute[key])(value)
    check(config)
    slices = {"num_slices": args.slices} if args.slices > 1 else {}
    topology = topologies.get_topology_desc(platform="tpu", topology_name=args.topology, **slices)
    mesh = parallel.mesh(*map(int, args.mesh.split(",")), devices=list(topology.devices))
    made = program(config, mesh, config.model.vocab_size)
    began = time.monotonic()
    compiled = made.compiling(made.shape(Batch(args.batch_tokens, args.context))).result()
    report(made, compiled, time.monotonic() - began)
    if made.outer_loop:
        began = time.monotonic()
        lr = jax.ShapeDtypeStruct((), "float32")
        compiled = made.outer_step.lower(made.abstract_state(), Event("sync", 0), lr).compile()
        print("\nthe outer step:")
        report(made, compiled, time.monotonic() - began)


def report(made, compiled, seconds: float) -> None:
    """What the compiled program says about itself."""
    memory = compiled.memory_analysis()
    m, b = made.model.c, made.config.batch
    count = families.parameters(m)["total"]
    print(f"{m.family} {count:,} parameters on {made.mesh.size} x {made.mesh.devices.flat[0].device_kind}, "
          f"mesh {dict(made.mesh.shape)}, jax {jax.__version__}: compiled in {seconds:.0f} s")  # fmt: skip
    print(f"a chip holds {memory.argument_size_in_bytes / 2**30:.2f} GiB of state and batch, "
          f"{memory.temp_size_in_bytes / 2**30:.2f} GiB temporary; "
          f"{flops.training_per_token(m, b.context) * b.tokens / made.mesh.size / 1e12:.1f} TFLOP a step")  # fmt: skip
    text = compiled.as_text()
    sent = collections.Counter()
    for shape, kind, groups in re.findall(
        r"= \(?(\S+?)[ ,].*? (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(.*?"
        r"(?:replica_groups|source_target_pairs)=(\S+?), ", text,
    ):  # fmt: skip
        sent[f"{kind:18s} {shape:40s} groups {groups[:40]}"] += 1
    for line, times in sent.most_common(25):
        print(f"{times:4d} x {line}")
    shapes = collections.Counter(re.findall(r"= (\S+?)(?:\{\S*)? (?:dot|convolution)\(", text))
    print("per-chip products:", ", ".join(f"{n} x {shape}" for shape, n in shapes.most_common(16)))


if __name__ == "__main__":
    main()

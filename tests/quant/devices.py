"""Products of cast operands on eight forced CPU devices against one: python -m tests.quant.devices OUT.json

A process of its own, since the number of devices is fixed when JAX starts; test_dot.py reads what it writes: by case,
the largest differences of value and gradients, relative to the largest number; and how many numbers of casts and
rotations of one tensor, blocks across devices, have other bits.
"""

import json
import sys
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab.quant.dot import dot
from jaxlab.quant.recipes import recipe
from tests.quant import test_programs

CASES = {
    "capybara": recipe("capybara", "e2m1,block=16"),
    # Random numbers take a second to compile for eight devices: those of one operand will do.
    "nvfp4": replace(recipe("nvfp4", P3="rounding=nearest_even"), seed=3),
}
REPLICAS, SEQUENCES, LENGTH, INPUTS, OUTPUTS = 2, 4, 8, 32, 16


def mesh():
    return jax.make_mesh((2, 2, 2), ("replica", "data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)


def other_bits() -> dict[str, int]:
    where = NamedSharding(mesh(), PartitionSpec("replica", "data", "tensor"))
    many = jax.jit(jax.vmap(test_programs.drawn), in_shardings=where)(test_programs.X)
    one = jax.jit(jax.vmap(test_programs.drawn))(test_programs.X)
    return {
        name: int((np.asarray(many[name]).view(np.int32) != np.asarray(one[name]).view(np.int32)).sum()) for name in one
    }


def differences(rule) -> list[float]:
    rng = np.random.default_rng(1)
    w = rng.normal(size=(REPLICAS, INPUTS, OUTPUTS)).astype(np.float32)
    x = rng.normal(size=(REPLICAS, SEQUENCES, LENGTH, INPUTS)).astype(np.float32)
    product = dot(rule)

    def loss(w, x):
        y = product(x, w)
        return (y * y).mean(), y

    gradients = jax.vmap(jax.grad(loss, argnums=(0, 1), has_aux=True), spmd_axis_name="replica")
    specs = ("replica", "data", "tensor"), ("replica", "data", None, None)
    shardings = tuple(NamedSharding(mesh(), PartitionSpec(*spec)) for spec in specs)
    many = jax.jit(gradients, in_shardings=shardings)(w, x)
    assert len(many[0][0].sharding.device_set) == 8
    one = jax.jit(gradients)(w, x)
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True)
    return [float(np.abs(np.subtract(a, b)).max() / np.abs(a).max()) for a, b in pairs]


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        json.dump({name: differences(rule) for name, rule in CASES.items()} | {"bits": other_bits()}, file)

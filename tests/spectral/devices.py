"""Moments on eight forced CPU devices, replica 2 x data 2 x tensor 2: python -m tests.spectral.devices OUT.json

A process of its own, since the number of devices is fixed when JAX starts; test_covariance.py reads what it writes.
"""

import json
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab import parallel
from jaxlab.spectral.covariance import Moments, covariance, empty, merge, moments, pool
from tests.train.devices import collectives

REPLICAS, DATA, BATCHES, SEQUENCES, CONTEXT, WIDTH = 2, 2, 3, 4, 10, 24


def activations() -> np.ndarray:
    """[batch, replica, sequence, position, D] float32, the same in every process, with means of 10 deviations."""
    rng = np.random.default_rng(0)
    return np.float32(rng.normal(10, 1, size=(BATCHES, REPLICAS, SEQUENCES, CONTEXT, WIDTH)))


def main(out: str):
    mesh = parallel.mesh(REPLICAS, DATA, 2)
    specs = Moments(P("replica", "data"), P("replica", "data", "tensor"), P("replica", "data", "tensor", None))
    apart = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    together = jax.tree.map(lambda s: NamedSharding(mesh, P("replica", *s.spec[2:])), apart)
    where = NamedSharding(mesh, P("replica", "data", None, "tensor"))

    def add(held, x):
        """Every device adds its own sequences."""
        x = x.reshape(REPLICAS, DATA, SEQUENCES // DATA, CONTEXT, WIDTH)
        return merge(held, jax.vmap(jax.vmap(moments), spmd_axis_name="replica")(x))

    start = jax.tree.map(lambda x: np.broadcast_to(x, (REPLICAS, DATA, *x.shape)), empty(WIDTH))
    held, x = jax.device_put(start, apart), activations()
    add = jax.jit(add, in_shardings=(apart, where), out_shardings=apart).lower(held, x[0]).compile()
    reduce = jax.jit(jax.vmap(pool, spmd_axis_name="replica"), in_shardings=(apart,), out_shardings=together)
    reduce = reduce.lower(held).compile()
    for batch in jax.device_put(list(x), where):
        held = add(held, batch)
    result = {
        "covariance": covariance(reduce(held)).tolist(),
        "add": collectives(add.as_text()),
        "pool": collectives(reduce.as_text()),
    }
    with open(out, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(sys.argv[1])

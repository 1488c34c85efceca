"""DiLoCo's outer step compiled for eight forced CPU devices: python -m tests.optim.devices OUT.json

A process of its own, since the number of devices is fixed when JAX starts; test_codec.py reads what it writes.
"""

import json
import sys

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab import parallel
from jaxlab.optim import diloco, fragments
from jaxlab.optim.codec import CODECS, exchange

REPLICAS, DATA = 4, 2
SPECS = {"blocks": {"kernel": P(None, "data", None)}, "embedding": P(None, "data")}  # the embedding's rows are cut


def params():
    """Global parameters and replicas, the same in every process."""
    draw = np.random.default_rng(0).normal
    theta = {"blocks": {"kernel": draw(size=(6, 8, 48))}, "embedding": draw(size=(40, 24))}
    theta = jax.tree.map(np.float32, theta)
    return theta, jax.tree.map(lambda t: np.float32(t - 0.01 * draw(size=(REPLICAS, *t.shape))), theta)


def synchronise(theta, replicas, codec: str, share=lambda x: x):
    """One fragment of two, synchronised: the new global parameters and replicas."""
    outer = diloco.nesterov(0.9)
    part = fragments.fragments(theta, 2)[0]
    state = diloco.init(fragments.take(theta, part), outer)
    state, new = diloco.outer_step(
        state, fragments.take(replicas, part, axis=1), outer, exchange=exchange(codec, share), lr=0.5
    )
    return fragments.put(theta, part, state.params), fragments.put(replicas, part, new, axis=1)


def main(out: str):
    mesh = parallel.mesh(REPLICAS, DATA, 1)

    def share(x):
        """Encoded where its replica lives, then brought to all of them."""
        for first in ("replica", None):
            spec = P(first, *[P.UNCONSTRAINED] * (x.ndim - 1))
            x = lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
        return x

    theta, replicas = params()
    where = (
        jax.tree.map(lambda s: NamedSharding(mesh, s), SPECS),
        jax.tree.map(lambda s: NamedSharding(mesh, P("replica", *s)), SPECS),
    )
    results = {}
    for codec in CODECS:
        step = jax.jit(lambda t, r, c=codec: synchronise(t, r, c, share), in_shardings=where, out_shardings=where)
        compiled = step.lower(theta, replicas).compile()
        found = compiled(*jax.device_put((theta, replicas), where))
        results[codec] = {"text": compiled.as_text(), "theta": jax.tree.map(lambda x: x.tolist(), found[0])}
    with open(out, "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main(sys.argv[1])

"""Spectra measured during training: of what enters the activation functions and the down projections, layer by layer.

The protocol is that of the companion studies (2603.06922, 2605.21803): all positions of training batches, pooled over
micro-batches and devices.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab.model.decoder import Decoder
from jaxlab.optim.fragments import first_layer
from jaxlab.spectral.covariance import Moments, covariance, merge, pool
from jaxlab.spectral.metrics import eigenvalues, measure


def prober(model: Decoder, mesh: Mesh, axes) -> Callable:
    """probe(params [M, ...], tokens [k, b, L+1], taps) -> ({"TAP/METRIC/LAYER": scalar}, {"TAP/LAYER": eigenvalues}).

    Of the first of M replicas; negative tokens are padding. taps: "post", or "pre+post", static. model: that of one
    device's sequences. axes: of the mesh, over which b is sharded: each device adds up moments of its own sequences,
    and they are pooled once, at the end.
    """
    devices = math.prod(mesh.shape[axis] for axis in np.atleast_1d(axes))
    by_device = NamedSharding(mesh, PartitionSpec(axes))

    def of_device(params, tokens):
        inputs = tokens[:, :-1]
        arguments = {"params": params}, jnp.maximum(inputs, 0), inputs >= 0
        return model.apply(*arguments, method="features", mutable=["spectra"])[1]["spectra"]

    def probe(params, tokens, taps):
        params = jax.tree.map(lambda p: p[0], params)
        batches = tokens.reshape(len(tokens), devices, -1, tokens.shape[-1])

        def moments(batch):
            sown = jax.vmap(partial(of_device, params), spmd_axis_name=axes)(batch)
            return [{tap: stack["ffn"][tap][0] for tap in taps.split("+")} for stack in _stacks(sown)]

        shapes = jax.eval_shape(moments, batches[0])
        zeros = jax.tree.map(lambda x: lax.with_sharding_constraint(jnp.zeros(x.shape), by_device), shapes)
        add = partial(jax.tree.map, merge, is_leaf=lambda x: isinstance(x, Moments))
        total, _ = lax.scan(lambda total, batch: (add(total, moments(batch)), None), zeros, batches)
        return _read(total)

    return probe


def _stacks(sown: dict) -> list[dict]:
    """What blocks sowed, [devices, layers, ...], stack by stack from layer 0 on."""
    return [sown[name][0] for name in sorted(sown, key=first_layer)]


def _read(stacks: list[dict[str, Moments]]) -> tuple[dict, dict]:
    """Metrics and eigenvalues of every layer, one layer at a time: D^2 numbers are many."""

    def of_layer(m):
        return measure(m), eigenvalues(covariance(m), m.count)

    values, spectra, first = {}, {}, 0
    for stack in stacks:
        for tap, moments in stack.items():
            metrics, layers = lax.map(of_layer, pool(moments))
            for i, spectrum in enumerate(layers):
                spectra[f"{tap}/{first + i}"] = spectrum
                values |= {f"{tap}/{name}/{first + i}": value[i] for name, value in metrics.items()}
        first += len(layers)
    return values, spectra

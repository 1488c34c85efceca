"""Spectra measured during training: of what enters the activation functions and the down projections, layer by layer.

The protocol is that of the companion studies (2603.06922, 2605.21803): all positions of training batches, pooled over
micro-batches and devices.
"""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab.config import InputError
from jaxlab.model.decoder import Decoder
from jaxlab.spectral.covariance import Moments, covariance, merge, pool
from jaxlab.spectral.metrics import eigenvalues, measure
from jaxlab.train.plan import crossed, reached

# A layer collapses where fewer than two directions' worth of variance is left (two equal ones have hard rank 2), or
# where under 1 % of the directions hold all of it. A spectrum i^-1.5 of 1,024 has 5.4 and 0.953.
HARD_RANK, CONCENTRATION = 2, 0.99
# So it is, for a while, of sound layers too: as long as a model learns no more than how frequent tokens are. Of the 325
# runs of results/spectral/laptop, 264 ended well below the entropy of single tokens and 61 did not; 97 and 58 of them
# were below a threshold at some time, 10 and 40 for so long that tokens grew by this factor.
LASTING = 8
MOST = 10_000  # times that a run is measured at


class Times(NamedTuple):
    """When something is due, in tokens: at the multiples of `every`, and at points, in order."""

    every: int = 0
    points: tuple[int, ...] = ()

    def due(self, before: int, after: int) -> bool:
        """Whether one of them lies in (before, after]."""
        return crossed(before, after, self.every) or reached(before, after, self.points)


def times(at: str, first: int, last: int) -> Times:
    """What `config.spectra.at` says of a run whose first step ends at `first` tokens, the last by `last`.

    "" never; "every:N" at the multiples of N; "log:N" N times from first to last, at equal ratios; "N N N" there.
    Raises InputError for anything else, and for points outside (0, last] or more than MOST of them.
    """
    kind, _, number = at.rpartition(":")
    try:
        values = [_whole(word) for word in number.split()]
    except ValueError:
        values = [0]
    if not at:
        return Times()
    if kind not in ("", "every", "log") or min(values, default=0) < 1 or (kind and len(values) > 1):
        raise InputError(f"spectra.at={at!r}: must be as log:50, every:500000, or tokens as in 1e5 2e5 5e5")
    if kind == "every":
        return Times(every=values[0])
    if (number := values[0] if kind else len(values)) > MOST:
        raise InputError(f"spectra.at={at[:40]!r}: has {number:,} times; must be at most {MOST:,}")
    points = np.rint(np.geomspace(first, last, values[0])).astype(int).tolist() if kind else values
    if max(points) > last:
        raise InputError(f"spectra.at={at!r}: {max(points):,} is past the end of the run, tokens={last:,}")
    return Times(points=tuple(sorted({*points})))


def _whole(word: str) -> int:
    if not re.fullmatch(r"\d{1,19}(\.\d{0,19})?(e\d{1,2})?", word) or Fraction(word) % 1:
        raise ValueError(word)
    return int(Fraction(word))


def prober(model: Decoder, mesh: Mesh, axes) -> Callable:
    """probe(params [M, ...], tokens [k, b, L+1], taps) -> ({"TAP/METRIC/LAYER": scalar}, {"TAP/LAYER": eigenvalues}).

    Of the first of M replicas; negative tokens are padding. taps: "post", or "pre+post", static. model: that of one
    device's sequences. axes: of the mesh, over which b is sharded: each device adds up moments of its own sequences,
    and they are pooled once, at the end.
    """
    devices = math.prod(mesh.shape[axis] for axis in np.atleast_1d(axes))
    apart = NamedSharding(mesh, PartitionSpec(axes))

    def of_device(params, tokens):
        inputs = tokens[:, :-1]
        arguments = {"params": params}, jnp.maximum(inputs, 0), inputs >= 0
        return model.apply(*arguments, method="features", mutable=["spectra"])[1]["spectra"]

    def probe(params, tokens, taps):
        params = jax.tree.map(lambda p: p[0], params)
        batches = tokens.reshape(len(tokens), devices, -1, tokens.shape[-1])

        def found(batch):
            sown = jax.vmap(partial(of_device, params), spmd_axis_name=axes)(batch)
            return [{tap: stack["ffn"][tap][0] for tap in taps.split("+")} for stack in _stacks(sown)]

        shapes = jax.eval_shape(found, batches[0])
        held = jax.tree.map(lambda x: lax.with_sharding_constraint(jnp.zeros(x.shape), apart), shapes)
        add = partial(jax.tree.map, merge, is_leaf=lambda x: isinstance(x, Moments))
        held, _ = lax.scan(lambda held, batch: (add(held, found(batch)), None), held, batches)
        return _read(held)

    return probe


def _stacks(sown: dict) -> list[dict]:
    """What blocks sowed, [devices, layers, ...], stack by stack from layer 0 on: "blocks", "blocks_3" and so on."""
    names = sorted(sown, key=lambda name: int(name.partition("_")[2] or 0))
    return [sown[name][0] for name in names]


def _read(stacks: list[dict[str, Moments]]) -> tuple[dict, dict]:
    """Metrics and eigenvalues of every layer, one layer at a time: D^2 numbers are many."""

    def of_layer(m):
        return measure(m), eigenvalues(covariance(m), m.count)

    values, spectra, first = {}, {}, 0
    for stack in stacks:
        for tap, moments in stack.items():
            metrics, found = lax.map(of_layer, pool(moments))
            for i in range(len(found)):
                spectra[f"{tap}/{first + i}"] = found[i]
                values |= {f"{tap}/{name}/{first + i}": value[i] for name, value in metrics.items()}
        first += len(found)
    return values, spectra


def collapsed(row: dict) -> set[int]:
    """The layers whose down projection is fed from too few directions, of a row of metrics; NaN is too few."""
    layers = [int(key.rpartition("/")[2]) for key in row if key.startswith("post/hard_rank/")]
    return {
        i
        for i in layers
        if not row[f"post/hard_rank/{i}"] > HARD_RANK or not row[f"post/concentration/{i}"] < CONCENTRATION
    }


class Watch:
    """watch(row of metrics, the row before or {}) -> lines on it: its ranges over layers, and layers that have
    collapsed for so long that tokens have grown by LASTING, or have recovered from that. Each is named once."""

    def __init__(self):
        self._since, self._named = {}, set()  # {layer: tokens at which it had collapsed}

    def __call__(self, row: dict, before: dict) -> list[str]:
        if not self._since:  # of a run that was resumed
            self._since = dict.fromkeys(collapsed(before), before.get("tokens"))
        self._since = {i: self._since.get(i, row["tokens"]) for i in collapsed(row)}
        lasting = {i for i, tokens in self._since.items() if row["tokens"] >= LASTING * tokens or i in self._named}
        lines = [ranges(row)]
        for i in sorted(lasting ^ self._named):
            figures = f"hard rank {row[f'post/hard_rank/{i}']:.2f}, concentration {row[f'post/concentration/{i}']:.3f}"
            said = f"layer {i} recovered"
            if i in lasting:
                said = f"warning: layer {i} has collapsed since {self._since[i]:,} tokens"
            lines.append(f"{said}: {figures}")
        self._named = lasting
        return lines


def ranges(row: dict) -> str:
    """A line on a row of metrics: its ranges over layers."""

    def of(name):
        return [value for key, value in row.items() if key.startswith(f"post/{name}/")]

    hard, soft = of("hard_rank"), of("soft_rank")
    return (
        f"hard rank {min(hard):.1f} to {max(hard):.1f}, soft {min(soft):.1f} to {max(soft):.1f}; "
        f"{min(of('tokens_per_dimension')):.1f} tokens a dimension"
    )

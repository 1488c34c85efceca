"""Two idealised models of training across data centres: its wall-clock time, and the bandwidth that keeps chips busy.

`training_seconds` adds up compute and all-reduces (Charles et al. 2503.09799, appendix on wall-clock time): the
number of chips grows with the batch, networks have a bandwidth and a latency, and only the communication that `overlap`
allows is hidden behind compute. `utilisation` simulates one link between sites, which sends while the backward pass
still runs (Douillard et al. 2501.18512, section on compute utilisation); `required_bandwidth` inverts it on their grid.
"""

import math
from bisect import bisect_left
from typing import NamedTuple

import numpy as np

from jaxlab.config import InputError


class Network(NamedTuple):
    bandwidth: float  # bit/s of each chip
    latency: float  # s


NETWORKS = {"high": Network(400e9, 1e-4), "medium": Network(100e9, 1e-3), "low": Network(10e9, 1e-2)}
FLOPS = 300e12  # FLOP/s that a chip achieves: between half the peak of a TPU v5e and half that of a v6e
GRID = np.logspace(-1, 3, 50) * 1e9  # bit/s; every bandwidth of the published tables is one of these
FORWARD = 1 / 3  # fraction of a step's compute before the first gradient is ready


class Algorithm(NamedTuple):
    """What an algorithm communicates: gradients in every step and, every `sync_every` steps, outer gradients, in
    `fragments` pieces."""

    replicas: int = 0  # M; 0: data-parallel
    sync_every: int = 30  # H, inner steps between two outer steps of one fragment
    fragments: int = 1  # P, of equal size, synchronised at steps spread evenly over the H steps; 1: all at once
    overlap: int = 0  # tau < H, steps between sending an outer gradient and applying it
    bits: float = 16  # per parameter of a gradient
    outer_bits: float = 16  # per parameter of an outer gradient


class StepTime(NamedTuple):
    """Seconds of one step; outer: those of an outer step, divided by H."""

    compute: float
    inner: float
    outer: float


def chip_count(batch_tokens: float, tokens_per_chip: float = 4_096) -> float:
    """Number of chips R, in proportion to the batch and at least 1. The paper does not state the tokens per chip; 4,096
    gives 64 chips for a batch of 2^18."""
    return max(batch_tokens / tokens_per_chip, 1.0)


def all_reduce(bits: float, network: Network, ranks: float) -> float:
    """Seconds of a bandwidth-optimal all-reduce (Patarasuk and Yuan 2009): 2 bits / W (1 - 1 / ranks) + latency."""
    return 2 * bits / network.bandwidth * (1 - 1 / ranks) + network.latency


def step_time(
    a: Algorithm,
    params: float,
    batch_tokens: float,
    chips: float,
    across: Network,
    within: Network = NETWORKS["high"],
    flops: float = FLOPS,
) -> StepTime:
    """Seconds of one step of `params` parameters on `chips` chips in all, `batch_tokens` tokens in all.

    Data-parallel training and M = 1 all-reduce gradients over all chips, through the network `across` sites. M >= 2
    all-reduces gradients over the chips of a replica, `within` its site, and outer gradients `across`. Sending a
    fragment is hidden behind `overlap` steps, but at most until the next fragment needs the link, H / P steps later.
    Raises InputError for fewer chips than replicas, and unless 0 <= overlap < H.
    """
    _check(a)
    if chips < max(a.replicas, 1):
        raise InputError(f"chips={chips:g}: must be at least the {max(a.replicas, 1)} replicas")
    compute = 6 * params * batch_tokens / (chips * flops)
    site, ranks = (across, chips) if a.replicas < 2 else (within, chips / a.replicas)
    inner = all_reduce(params * a.bits, site, ranks)
    if a.replicas == 0:
        return StepTime(compute, inner, 0.0)
    fragment = all_reduce(params * a.outer_bits / a.fragments, across, chips)
    hidden = min(a.overlap, a.sync_every / a.fragments) * (compute + inner)
    return StepTime(compute, inner, a.fragments * max(fragment - hidden, 0.0) / a.sync_every)


def training_seconds(a: Algorithm, params: float, tokens: float, batch_tokens: float, *step) -> float:
    """Seconds of a run of tokens / batch_tokens steps; *step: the arguments of `step_time` from `chips` on."""
    return tokens / batch_tokens * sum(step_time(a, params, batch_tokens, *step))


def over_training(
    a: Algorithm,
    params: float,
    batch_tokens: float,
    baseline_batch: float,
    across: Network,
    tokens_per_chip: float = 4_096,
) -> float:
    """How many times as many tokens algorithm `a` trains on in the time of data-parallel training, with a batch of
    batch_tokens against one of baseline_batch tokens."""

    def seconds(x, batch):
        return training_seconds(x, params, 1.0, batch, chip_count(batch, tokens_per_chip), across)

    return seconds(Algorithm(bits=a.bits), baseline_batch) / seconds(a, batch_tokens)


def peak_bits(a: Algorithm, params: float) -> float:
    """Bits that a site sends in its busiest step, for P <= H: 2 (1 - 1 / sites) times those of a gradient or of a
    fragment's outer gradient.

    With M >= 2 every replica is a site. Data-parallel training and M = 1, which send gradients in every step, span two
    sites.
    """
    sent = params * a.bits if a.replicas < 2 else params * a.outer_bits / a.fragments
    return 2 * (1 - 1 / max(a.replicas, 2)) * sent


def utilisation(a: Algorithm, params: float, step_seconds: float, bandwidth: float, buckets: int = 128) -> float:
    """Fraction of the time that is spent computing, for steps of `step_seconds` of compute and a link of `bandwidth`
    bit/s between sites.

    A message is sent as equal buckets, which become ready one after another during the backward pass, through one
    first-in first-out link without latency. A step ends when its own message has arrived or, with `overlap`, the one
    sent that many steps before. Measured over the second round of H steps, to exclude the start. M < 2 sends in every
    step.
    """
    _check(a)
    period, fragments, overlap = (a.sync_every, a.fragments, a.overlap) if a.replicas > 1 else (1, 1, 0)
    message = peak_bits(a, params) / (bandwidth * step_seconds)  # in steps, as all times below
    first = FORWARD + (1 - FORWARD) / buckets
    sent = np.bincount([p * period // fragments for p in range(fragments)], minlength=period)
    clock = link = began = 0.0
    due = {}
    for step in range(2 * period):
        if step == period:
            began = clock
        for _ in range(sent[step % period]):  # delayed by the queue, by the first bucket or by the last
            link = max(link + message, clock + first + message, clock + 1 + message / buckets)
            due[step + overlap] = link
        clock = max(clock + 1, due.pop(step, 0.0))
    return period / (clock - began)


def required_bandwidth(a: Algorithm, params: float, step_seconds: float, target: float, buckets: int = 128) -> float:
    """The lowest bandwidth of GRID, bit/s, at which `utilisation` reaches `target`; infinite if none does."""
    i = bisect_left(GRID, target, key=lambda bandwidth: utilisation(a, params, step_seconds, bandwidth, buckets))
    return float(GRID[i]) if i < len(GRID) else math.inf


def _check(a: Algorithm) -> None:
    for name in ("sync_every", "fragments"):
        if getattr(a, name) < 1:
            raise InputError(f"{name}={getattr(a, name)}: must be above 0")
    if not 0 <= a.overlap < a.sync_every:
        raise InputError(f"overlap={a.overlap}: must be in [0, sync_every={a.sync_every})")

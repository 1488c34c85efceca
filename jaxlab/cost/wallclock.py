"""Seconds of training across data centres, and the bandwidth between them that keeps chips busy: two idealisations.

`training_seconds` adds up compute and all-reduces (Charles et al. 2503.09799, appendix on wall-clock time): chips grow
with the batch, networks have a bandwidth and a latency, nothing but what `overlap` says is hidden. `utilisation`
simulates one link between sites, busy while the backward pass still runs (Douillard et al. 2501.18512, section on
compute utilisation), and `required_bandwidth` reads it off the grid of their tables.
"""

import math
from bisect import bisect_left
from typing import NamedTuple

import numpy as np

from jaxlab.config import InputError


class Network(NamedTuple):
    bandwidth: float  # bit/s of a chip
    latency: float  # s


NETWORKS = {"high": Network(400e9, 1e-4), "medium": Network(100e9, 1e-3), "low": Network(10e9, 1e-2)}
FLOPS = 300e12  # FLOP/s that a chip reaches: between half the peak of a TPU v5e and that of a v6e
GRID = np.logspace(-1, 3, 50) * 1e9  # bit/s; every bandwidth of the published tables is one of these
FORWARD = 1 / 3  # share of a step before the first gradient is ready


class Algorithm(NamedTuple):
    """What is sent: gradients in every step and, every `sync_every` steps, outer gradients in `fragments` pieces."""

    replicas: int = 0  # M; 0: data-parallel
    sync_every: int = 30  # H, steps between two synchronisations of one fragment
    fragments: int = 1  # P, of equal size, at offsets spread evenly over the H steps; 1: all at once
    overlap: int = 0  # tau < H, steps that a fragment may take to arrive after the step in which it was sent
    bits: float = 16  # of a parameter's gradient
    outer_bits: float = 16  # of a parameter's outer gradient


class StepTime(NamedTuple):
    """Seconds of one step, the outer synchronisation spread over its H steps."""

    compute: float
    inner: float
    outer: float


def chip_count(batch_tokens: float, tokens_per_chip: float = 4_096) -> float:
    """Chips R in proportion to the batch, at least one; a chip's share is not published, 4,096 puts 64 on 2^18."""
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

    Data-parallel and M = 1 reduce gradients over all chips `across` sites, M >= 2 over the chips of a replica `within`
    its site; outer gradients go `across`. A fragment hides behind `overlap` steps, but no longer than until the link
    is wanted by the next one, H / P steps later. InputError: fewer chips than replicas, or overlap beyond H.
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
    """Seconds of tokens / batch_tokens steps; *step: the further arguments of `step_time`, from chips on."""
    return tokens / batch_tokens * sum(step_time(a, params, batch_tokens, *step))


def over_training(
    a: Algorithm,
    params: float,
    batch_tokens: float,
    baseline_batch: float,
    across: Network,
    tokens_per_chip: float = 4_096,
) -> float:
    """How many times data-parallel's tokens fit in data-parallel's time, each algorithm at its own batch in tokens."""

    def seconds(x, batch):
        return training_seconds(x, params, 1.0, batch, chip_count(batch, tokens_per_chip), across)

    return seconds(Algorithm(bits=a.bits), baseline_batch) / seconds(a, batch_tokens)


def peak_bits(a: Algorithm, params: float) -> float:
    """Bits that a site sends in its busiest step, P <= H: 2 (1 - 1 / sites) of a gradient or a fragment's outer one.

    M >= 2 are one site a replica; data-parallel and M = 1, which send gradients in every step, are spread over two.
    """
    sent = params * a.bits if a.replicas < 2 else params * a.outer_bits / a.fragments
    return 2 * (1 - 1 / max(a.replicas, 2)) * sent


def utilisation(a: Algorithm, params: float, step_seconds: float, bandwidth: float, buckets: int = 128) -> float:
    """Share of the time that goes into computing, steps of step_seconds and a link of bandwidth bit/s between sites.

    A message leaves as equal buckets, ready one by one through the backward pass, through one first-in first-out link
    without latency; a step ends when what is due in it has arrived: its own message, or with `overlap` the one sent
    that many steps before. Measured over the second round of H steps, when the start is forgotten. M < 2: every step.
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
        for _ in range(sent[step % period]):  # the link is held up by its queue, the first bucket or the last one
            link = max(link + message, clock + first + message, clock + 1 + message / buckets)
            due[step + overlap] = link
        clock = max(clock + 1, due.pop(step, 0.0))
    return period / (clock - began)


def required_bandwidth(a: Algorithm, params: float, step_seconds: float, target: float, buckets: int = 128) -> float:
    """The least bandwidth of GRID, bit/s, at which `utilisation` reaches target; infinite where none does."""
    i = bisect_left(GRID, target, key=lambda bandwidth: utilisation(a, params, step_seconds, bandwidth, buckets))
    return float(GRID[i]) if i < len(GRID) else math.inf


def _check(a: Algorithm) -> None:
    for name in ("sync_every", "fragments"):
        if getattr(a, name) < 1:
            raise InputError(f"{name}={getattr(a, name)}: must be above 0")
    if not 0 <= a.overlap < a.sync_every:
        raise InputError(f"overlap={a.overlap}: must be in [0, sync_every={a.sync_every})")

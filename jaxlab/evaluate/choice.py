"""Multiple choice by log-likelihood: which continuation of a context has the largest log-likelihood, either as a sum or
divided by the continuation's length. Scores have the names of lm-evaluation-harness."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab import parallel
from jaxlab.config import InputError
from jaxlab.data.tokenizer import Tokenizer
from jaxlab.evaluate.tasks import Item

# {score: the length by which a continuation's log-likelihood is divided}. The first three are the harness's. Characters
# and bytes (of UTF-8) do not include the space between context and continuation.
SCORES = {"acc": None, "acc_norm": "characters", "acc_bytes": "bytes", "acc_tokens": "tokens"}


class Choice(NamedTuple):
    """One continuation as token ids. `targets` are the continuation's ids: each is the id that follows one of the last
    len(targets) `inputs`.

    text: the continuation without the space before it. cut: number of tokens removed from the beginning because context
    and continuation together are longer than the model's context.
    """

    inputs: np.ndarray
    targets: np.ndarray
    text: str
    cut: int


def encode(tokenizer: Tokenizer, items: list[Item], context: int) -> list[list[Choice]]:
    """The choices of every item. A text longer than `context` tokens loses its beginning; an item with a continuation
    that alone is longer gets an empty list.

    Context and continuation are encoded as one text. If the context alone, without spaces at its end, has n tokens, the
    first n tokens of that text count as context and the rest as continuation. An empty context becomes the end-of-text
    id. Raises InputError for a continuation to which no token is left.
    """
    heads = [len(ids) for ids in tokenizer.encode([item.context.rstrip() for item in items])]
    wholes = iter(tokenizer.encode([item.context + choice for item in items for choice in item.choices]))

    def choice_of(item, start, text):
        ids = next(wholes)
        if not start:
            ids, start = np.concatenate(([tokenizer.eos], ids)), 1
        if len(ids) <= start:
            raise InputError(f"item {item.id}: the continuation {text[:60]!r} has no token of its own")
        fitting = ids[-(context + 1) :].astype(np.int32)
        return Choice(fitting[:-1], ids[start:].astype(np.int32), text.removeprefix(" "), len(ids) - len(fitting))

    encoded = [[choice_of(item, n, text) for text in item.choices] for item, n in zip(items, heads, strict=True)]
    return [choices if max(len(c.targets) for c in choices) <= context else [] for choices in encoded]


def scorer(model, chunk: int) -> Callable:
    """score(params [M, ...], tokens [n, b, L], positions [n, T], targets [n, T]) -> log-probabilities [n, T] float32.

    Each of the n groups has b sequences of L tokens. positions index a group's b L tokens, and targets are the ids that
    follow there. Natural logarithms, averaged over the M replicas. The output head is applied at these positions only,
    to `chunk` of each group at a time; chunk must divide T or be larger.
    """

    def one(params, tokens, positions, targets):
        n, b, length = tokens.shape
        hidden, head = model.apply({"params": params}, tokens.reshape(n * b, length), method="features")
        hidden = jnp.take_along_axis(hidden.reshape(n, b * length, -1), positions[..., None], axis=1)

        def part(xs):
            hidden, targets = xs
            logits = jnp.einsum("ntd,vd->ntv", hidden, head, preferred_element_type=jnp.float32)
            # A masked sum rather than a gather needs no communication when the vocabulary is sharded.
            is_target = lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
            return jnp.sum(jnp.where(is_target, logits, 0), axis=-1) - jax.nn.logsumexp(logits, axis=-1)

        if targets.shape[1] <= chunk:
            return part((hidden, targets))
        pieces = [x.reshape(n, -1, chunk, *x.shape[2:]).swapaxes(0, 1) for x in (hidden, targets)]
        return lax.map(part, tuple(pieces)).swapaxes(0, 1).reshape(n, -1)

    def score(params, tokens, positions, targets):
        return jax.vmap(one, in_axes=(0, None, None, None))(params, tokens, positions, targets).mean(0)

    return score


@dataclass(frozen=True)
class Layout:
    """Shapes of the batches: one for each length to which sequences are padded, all with about the same work.

    groups: parts of a batch, one for each device along the batch axes. tokens: tokens in a group, padding included.
    unit: all padded lengths but the longest, `context`, are multiples of it. chunk: positions of a group whose logits
    are in memory at one time.
    """

    context: int
    groups: int
    tokens: int
    unit: int
    chunk: int

    def length(self, size: int) -> int:
        """Padded length of a sequence of `size` tokens: a multiple of unit, with four lengths between powers of two."""
        length = self.unit
        while length < size:
            octave = 1 << (length // self.unit).bit_length() - 1
            length += self.unit * max(1, octave // 4)
        return min(length, self.context)

    def scored(self, choices: list[Choice]) -> int:
        """Number of scored positions to reserve in a group: 10 % above the average for these choices, so that a group
        rarely runs out of positions before it is full of sequences; rounded up to eighths of its tokens, so that few
        shapes occur; at least `context`, which is the longest continuation."""
        share = sum(len(c.targets) for c in choices) / max(1, sum(self.length(len(c.inputs)) for c in choices))
        eighths = math.ceil(8 * 1.1 * share)
        wanted = max(self.context, -(-eighths * self.tokens // 8))
        return wanted if wanted <= self.chunk else -(-wanted // self.chunk) * self.chunk


class Batch(NamedTuple):
    """Arguments of `scorer`, and for every scored position the index of its choice (-1: unused position)."""

    tokens: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    owners: np.ndarray


def batches(choices: list[Choice], layout: Layout, scored: int) -> Iterator[Batch]:
    """The choices in batches of a few shapes, long sequences first, with `scored` positions in each group."""
    by_length = {}
    for number, choice in enumerate(choices):
        by_length.setdefault(layout.length(len(choice.inputs)), []).append(number)
    for length in sorted(by_length, reverse=True):
        rows = max(1, layout.tokens // length)
        groups = list(_groups(choices, by_length[length], rows, scored))
        for first in range(0, len(groups), layout.groups):
            yield _batch(choices, groups[first : first + layout.groups], (layout.groups, rows, length), scored)


def _groups(choices: list[Choice], numbers: list[int], rows: int, scored: int) -> Iterator[list[tuple[int, int]]]:
    """Groups of (row, index of a choice). Neighbouring choices with equal inputs, such as A to D, share a row."""
    group, row, room, before = [], -1, scored, None
    for number in numbers:
        inputs, targets = choices[number][:2]
        new = not np.array_equal(inputs, before)
        if len(targets) > room or (new and row + 1 == rows):
            yield group
            group, row, room, new = [], -1, scored, True
        row += new
        group.append((row, number))
        room, before = room - len(targets), inputs
    yield group


def _batch(choices: list[Choice], groups: list, shape: tuple[int, int, int], scored: int) -> Batch:
    tokens = np.zeros(shape, np.int32)
    positions, targets = np.zeros((2, shape[0], scored), np.int32)
    owners = np.full((shape[0], scored), -1)
    for g, group in enumerate(groups):
        start = 0
        for row, number in group:
            inputs, ids = choices[number][:2]
            here = slice(start, start + len(ids))
            tokens[g, row, : len(inputs)] = inputs
            positions[g, here] = row * shape[2] + np.arange(len(inputs) - len(ids), len(inputs))
            targets[g, here], owners[g, here] = ids, number
            start += len(ids)
    return Batch(tokens, positions, targets, owners)


def log_likelihoods(score: Callable, choices: list[Choice], layout: Layout, scored: int) -> Callable[[], np.ndarray]:
    """Starts scoring and returns a function that waits for the result: the log-probability of each choice's targets,
    summed over its tokens, float64 [n], in nats.

    score(tokens, positions, targets): a `scorer` with its parameters, which puts its arrays on the devices.
    """
    started = [(batch.owners, score(*batch[:3])) for batch in batches(choices, layout, scored)]

    def result():
        total = np.zeros(len(choices))
        for owners, log_probs in started:
            scored = owners >= 0
            np.add.at(total, owners[scored], jax.device_get(log_probs)[scored].astype(np.float64))
        return total

    return result


def chooser(model, mesh: Mesh, replicas: int, *, sequences: int, chunk: int) -> Callable:
    """choose(params [M, ...], items, tokenizer) -> `evaluate`, compiled for a mesh and sharded over its batch axes.

    sequences: number of full-length sequences that fit into a batch. chunk: positions of each sequence whose logits are
    in memory at one time.
    """
    axes = parallel.batch_axes(replicas)[1]
    groups = math.prod(mesh.shape[axis] for axis in np.atleast_1d(axes))
    share = max(1, sequences // groups)
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    layout = Layout(
        context=model.c.context,
        groups=groups,
        tokens=share * model.c.context,
        unit=128 if on_tpu else 16,  # splash attention takes multiples of 128
        chunk=share * chunk,
    )
    sharding = NamedSharding(mesh, PartitionSpec(axes))
    compiled = jax.jit(scorer(model, layout.chunk), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def put(array):
        return parallel.global_array(array.shape, sharding, lambda index: array[index])

    def choose(params, items, tokenizer):
        return evaluate(lambda *arrays: compiled(params, *map(put, arrays)), items, tokenizer, layout)

    return choose


def evaluate(score: Callable, items: list[Item], tokenizer: Tokenizer, layout: Layout) -> Iterator[list[dict]]:
    """Scores the items and yields lists of their records, in order. Raises InputError as `encode` does, and for a
    log-likelihood that is not finite.

    A record has "id", "domain" and "gold", and lists with one element for each choice: "log_likelihood" (nats),
    "tokens", "characters", "bytes" and "cut". The lists are empty for an item that does not fit into the context.
    """
    before = scored = None
    size = max(1, layout.groups * layout.tokens // 4)  # some tens of batches, of which few are partly empty
    for first in range(0, len(items), size):
        window = items[first : first + size]
        encoded = encode(tokenizer, window, layout.context)
        choices = [choice for item_choices in encoded for choice in item_choices]
        scored = scored or layout.scored(choices)
        started = window, encoded, log_likelihoods(score, choices, layout, scored)
        if before:  # fetched while the devices compute the next window
            yield _records(*before)
        before = started
    if before:
        yield _records(*before)


def _records(items: list[Item], encoded: list[list[Choice]], result: Callable) -> list[dict]:
    likelihoods = iter(result().tolist())
    records = [
        {
            "id": item.id,
            "domain": item.domain,
            "gold": item.gold,
            "log_likelihood": [next(likelihoods) for _ in choices],
            "tokens": [len(c.targets) for c in choices],
            "characters": [len(c.text) for c in choices],
            "bytes": [len(c.text.encode()) for c in choices],
            "cut": [c.cut for c in choices],
        }
        for item, choices in zip(items, encoded, strict=True)
    ]
    for record in records:
        if not np.isfinite(record["log_likelihood"]).all():
            raise InputError(f"item {record['id']}: a log-likelihood is not finite: the model's numbers overflow")
    return records


def summarise(records: list[dict]) -> dict:
    """Scores over items, each with its standard error "..._se": sqrt(p (1 - p) / n) for a fraction p of n items.

    The keys of SCORES: the fraction of items whose right choice has the largest log-likelihood by that score. "margin":
    the log-likelihood of the right choice less the mean of the others, in nats per token; it rises while accuracy is
    still at chance. "chance": the expected accuracy of random guesses. "items": n, the items that fit into the context;
    "cut": those of them in which a choice lost the beginning of its context; "left_out": the items that do not fit.
    If none fits there are only these three counts.
    """
    fitting = [r for r in records if r["log_likelihood"]]
    n = len(fitting)
    counts = {"items": n, "cut": sum(any(r["cut"]) for r in fitting), "left_out": len(records) - n}
    if not n:
        return counts
    scores = {"chance": math.fsum(1 / len(r["log_likelihood"]) for r in fitting) / n}
    for name, unit in SCORES.items():
        p = sum(int(np.argmax(_likelihoods(r, unit))) == r["gold"] for r in fitting) / n
        scores |= {name: p, f"{name}_se": math.sqrt(p * (1 - p) / n)}
    margins = [_margin(_likelihoods(r, "tokens"), r["gold"]) for r in fitting]
    return counts | scores | {"margin": float(np.mean(margins)), "margin_se": float(np.std(margins)) / math.sqrt(n)}


def by_domain(records: list[dict]) -> dict:
    """`summarise` of all records and, if there are several domains, of each domain under "domains"."""
    domains = {}
    for record in records:
        domains.setdefault(record["domain"], []).append(record)
    parts = {name: summarise(domains[name]) for name in sorted(domains)} if len(domains) > 1 else {}
    return summarise(records) | ({"domains": parts} if parts else {})


def score_tasks(choose: Callable, tasks: dict[str, list[Item]]) -> dict:
    """{"TASK/SCORE": value} of `summarise` for {task: items}; choose(items) as `evaluate`."""
    values = {}
    for name, items in tasks.items():
        scores = summarise([record for window in choose(items) for record in window])
        values |= {f"{name}/{key}": value for key, value in scores.items()}
    return values


def _likelihoods(record: dict, unit: str | None) -> np.ndarray:
    return np.array(record["log_likelihood"]) / (np.array(record[unit]) if unit else 1)


def _margin(likelihoods: np.ndarray, gold: int) -> float:
    return likelihoods[gold] - np.delete(likelihoods, gold).mean()

"""From a config to a run: its program, its schedules, its data. Here and in `program` alone are the keys of the config
known."""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxlab import parallel
from jaxlab.config import InputError, check, check_context
from jaxlab.data.order import Sequences, Validation
from jaxlab.data.store import TokenStore, load_tokenizer, open_store
from jaxlab.evaluate.loss import evaluate
from jaxlab.evaluate.tasks import Item, read_tasks
from jaxlab.model.families import parameters
from jaxlab.optim.batch_growth import RULES, from_text, rounded, size_at, sizes
from jaxlab.optim.schedules import Times, schedule, times
from jaxlab.train.checkpoint import state_bytes
from jaxlab.train.plan import Batch, Block, Shape, blocks
from jaxlab.train.program import Own, Program, program
from jaxlab.train.state import Clock, State


@dataclass(frozen=True)
class Run:
    """A program, the schedules of one config, and the data that it is fed."""

    config: ConfigDict
    program: Program
    batches: dict[int, Batch]  # {tokens: batch from then on}
    store: TokenStore
    train: Sequences
    validation: Validation
    tasks: dict[str, list[Item]]
    spectra_times: Times

    def blocks(self, clock: Clock) -> Iterator[Block]:
        """The blocks from `clock` to the end of the run."""
        c, e = self.config, self.config.evaluate
        return blocks(
            clock,
            total_tokens=c.tokens,
            batch_at=partial(size_at, self.batches),
            hypers=hypers(c, self.batches[0].tokens),
            most_steps=c.compute.steps_per_call,
            stops=(e.every_tokens, e.tasks_every_tokens, c.checkpoint.every_tokens, self.spectra_times.every),
            changes=(*self.program.later, *self.spectra_times.points),
            **({"events": self.program.outer_loop.events} if self.program.outer_loop else {}),
        )

    def arrays(self, block: Block) -> tuple:
        """Device arrays (batches, hypers, counts) of a block. Each process reads only its devices' parts of a batch."""
        shape, compiled = self.program.shape(block.batch), self.compiled_shape(block.batch)
        order = self.order(block.batch.context)
        positions = np.arange(math.prod(shape[:-1])).reshape(shape[:-1]) + order.position(block.start.tokens)
        end, unused = order.position(block.end.tokens), compiled.micro_batches - shape.micro_batches
        positions = np.pad(positions, ((0, 0), (0, 0), (0, unused), (0, 0)), constant_values=end)
        batches = self._sequences(order, positions, end, self.program.batch_sharding)
        padded = {name: np.float32(v + [0.0] * (shape.steps - len(v))) for name, v in block.hypers.items()}
        put = partial(parallel.replicated, self.program.mesh)
        return batches, *jax.tree.map(put, (padded, np.int32([block.count, shape.micro_batches])))

    def compiled_shape(self, batch: Batch) -> Shape:
        """What is compiled for a batch. All batches of micro-batches of one size share a program, that of the largest:
        it is told how many of the micro-batches there are."""
        shape = self.program.shape(batch)
        return shape._replace(micro_batches=self._most[shape.sequences, shape.tokens])

    @cached_property
    def _most(self) -> dict[tuple[int, int], int]:
        """{(sequences, tokens) of micro-batches: how many the largest batch has}."""
        most = {}
        for shape in map(self.program.shape, self.batches.values()):
            micro = shape.sequences, shape.tokens
            most[micro] = max(shape.micro_batches, most.get(micro, 0))
        return most

    @cached_property
    def order(self) -> Callable[[int], Sequences]:
        """order(context): the training sequences of a length. Another length is another order, in which training goes
        on after as many tokens."""
        return cache(lambda context: replace(self.train, context=context))

    def _sequences(self, order: Sequences, positions: np.ndarray, end: int, sharding: NamedSharding) -> jax.Array:
        """Training sequences at positions [...], as [..., L+1]; from `end` on it is padding, -1."""
        length = order.context + 1

        def read(index):
            part = positions[index[:-1]]
            tokens = np.full((part.size, length), -1, np.int32)
            wanted = part.ravel() < end
            tokens[wanted] = order.read(part.ravel()[wanted])
            return tokens.reshape(*part.shape, length)

        return parallel.global_array((*positions.shape, length), sharding, read)

    def compiled(self, tokens: int):
        """The compiled inner steps of a step that starts at `tokens`, with their memory analysis."""
        return self._compiling(tokens).result()

    def compile_ahead(self, tokens: int) -> None:
        """Starts to compile what the first step after `tokens` with another program needs, on a thread of its own."""
        if changes := [at for at in {*self.program.later, *self.batches} if tokens < at < self.config.tokens]:
            self._compiling(min(changes))

    def _compiling(self, tokens: int) -> Future:
        return self.program.at(tokens).compiling(self.compiled_shape(size_at(self.batches, tokens)))

    @cached_property
    def outer_lr(self) -> jax.Array:
        """The outer learning rate, on the devices."""
        return parallel.replicated(self.program.mesh, np.float32(self.config.diloco.outer_lr))

    def evaluate(self, state: State, tokens: int | None = None) -> dict:
        """Loss and bits per byte of the state's parameters on the validation split (evaluate.loss), in the arithmetic
        of training at `tokens`, or at its end."""
        c, b = self.config, self._sequences_a_batch
        sharding = NamedSharding(self.program.mesh, PartitionSpec(parallel.batch_axes(c.replicas)[1], None))

        def put(positions):
            shape = (len(positions), self.validation.context + 1)
            return parallel.global_array(shape, sharding, lambda i: self.validation.read(positions[i[0]]))

        wanted = -(-c.evaluate.tokens // self.validation.context) or self.validation.num_sequences
        sequences = min(wanted, self.validation.num_sequences)
        score = self._at(tokens).evaluate_batch
        return evaluate(score, self.program.params(state), self.validation, put, sequences=sequences, batch_sequences=b)

    @property
    def _sequences_a_batch(self) -> int:
        """Of what is evaluated at once: as many as in the first micro-batch."""
        return self.program.shape(self.batches[0]).sequences

    @cached_property
    def _tokenizer(self):
        return load_tokenizer(self.config.data.store)

    def _at(self, tokens: int | None) -> Program:
        return self.program.at(self.config.tokens if tokens is None else tokens)

    def choose(self, state: State, items: list[Item], tokens: int | None = None) -> Iterator[list[dict]]:
        """Records of multiple-choice items under the state's parameters, a window at a time (evaluate.choice); tokens
        as for `evaluate`."""
        fitting = self._sequences_a_batch * self.config.batch.context // self.config.model.context
        choose = self._at(tokens).chooser(fitting)
        return choose(self.program.params(state), items, self._tokenizer)

    def spectra(self, state: State, clock: Clock) -> tuple[dict, dict]:
        """{"TAP/METRIC/LAYER": value} and {"TAP/LAYER": eigenvalues [D], descending} of the state's parameters on the
        training tokens that come next (train.spectra), in micro-batches and in the arithmetic of training there."""
        s, batch = self.config.spectra, size_at(self.batches, clock.tokens)
        order, b = self.order(batch.context), self.program.shape(batch).sequences
        first, count = order.position(clock.tokens), order.position(s.tokens or batch.tokens)
        positions = first + np.arange(-(-count // b) * b).reshape(-1, b)
        axes = parallel.batch_axes(self.config.replicas)[1]
        sharding = NamedSharding(self.program.mesh, PartitionSpec(None, axes, None))
        tokens = self._sequences(order, positions, first + count, sharding)
        values, eigenvalues = jax.device_get(self._at(clock.tokens).probe(self.program.params(state), tokens, s.taps))
        return {name: value.item() for name, value in values.items()}, eigenvalues


def build(config: ConfigDict, loss_fn=None, optimiser=None, init=None, *, compiled: Program | None = None) -> Run:
    """Checks the config against itself, the devices and the token store (InputError), and assembles the run.

    compiled: the program of an earlier run, taken again if it serves: many runs of one shape compile once.
    loss_fn, optimiser, init: a user's, in place of those that the config names (program.Own).
    """
    check(config)
    own = Own(loss_fn, optimiser, init)
    mesh = parallel.mesh(config.mesh.replica, config.mesh.data, config.mesh.tensor)
    planned = batches(config, mesh)
    store = open_store(config.data.store)
    _check_store(config, store)
    e, data, vocab_size = config.evaluate, config.data, vocabulary(config, store)
    serves = compiled is not None and own == compiled.own == Own() and compiled.serves(config, vocab_size)
    if not init:  # before anything is traced
        count = parameters(ConfigDict(config.model.to_dict() | {"vocab_size": vocab_size}))["total"]
        _check_memory(mesh, count, config.replicas, 4 * count * config.replicas, "alone")
    made = compiled if serves else program(config, mesh, vocab_size, own)
    needed = state_bytes(made.shapes._replace(outer=None))
    _check_memory(mesh, made.parameters, config.replicas, needed, "with the state of the optimiser")
    return Run(
        config=config,
        program=made,
        batches=planned,
        store=store,
        train=Sequences(store.split("train"), config.batch.context, config.seed),
        validation=Validation(store.split("validation"), config.batch.context),
        spectra_times=times(config.spectra.at, planned[0].tokens, config.tokens),
        tasks=read_tasks(e.tasks, e.items_from, archives=data.archives, tfds_dir=data.tfds_dir, limit=e.task_items),
    )


def hypers(config: ConfigDict, first: int) -> Callable[[float, int], dict[str, float]]:
    """(tokens, batch tokens) -> {"lr", "weight_decay"} of a step centred there; weight_decay is the fraction by which
    weights shrink in the step. first: batch tokens at the start of the run."""
    fraction, o = _fraction(config), config.optim

    def at(tokens, batch):
        lr = config.schedule.peak_lr * fraction(tokens) * RULES[config.batch.lr_rule](batch, first)
        share = {"independent": 1.0, "coupled": lr, "timescale": lr * batch / first}[o.decay]
        return {"lr": lr, "weight_decay": o.weight_decay * share}

    return at


def _fraction(config: ConfigDict) -> Callable[[float], float]:
    s = config.schedule
    options = {k: s[k] for k in ("warmup_tokens", "final_fraction", "decay_tokens", "decay_shape")}
    return schedule(s.name, total_tokens=config.tokens, **options)


def vocabulary(config: ConfigDict, store: TokenStore) -> int:
    """config.model.vocab_size, or the tokenizer's where that is 0; larger is padding, smaller an InputError."""
    wanted, needed = config.model.vocab_size, store.meta["vocab_size"]
    if wanted and wanted < needed:
        raise InputError(f"model.vocab_size={wanted}: the tokens of {config.data.store} need at least {needed}")
    return wanted or needed


def batches(config: ConfigDict, mesh: Mesh) -> dict[int, Batch]:
    """{tokens: batch of the steps that start from there on}. A batch that grows is rounded to whole micro-batches on
    all devices; one that does not must be whole as it is. Raises InputError."""
    b, replicas = config.batch, config.replicas
    share = mesh.shape["data"] * (1 if replicas > 1 else mesh.shape["replica"])
    wanted, contexts = stages(config), _named(b, "context_growth", lambda: sizes(b.context_growth or b.context))
    planned, size, context = {}, 0, 0
    for start in sorted({*wanted, *contexts}):
        size, context = wanted.get(start, size), contexts.get(start, context)
        check_context(config, context, "batch.context_growth" if b.context_growth else "batch.context")
        micro = b.micro_tokens or context * share
        if micro % (context * share):
            raise InputError(
                f"batch.micro_tokens={micro}: must be whole sequences of {context} on each of the {share} devices of "
                f"the mesh's batch axes"
            )
        planned[start] = Batch(rounded({start: size}, replicas * micro)[start], context)
    if not b.growth and planned[0].tokens != b.tokens:
        raise InputError(
            f"batch.tokens={b.tokens}: must be a multiple of {replicas} replicas x {share} devices of the mesh's batch "
            f"axes x batch.context={b.context}"
        )
    if planned[0].tokens > config.tokens:
        raise InputError(f"tokens={config.tokens}: less than the first batch, {planned[0].tokens}")
    n, largest = config.compute.steps_per_call, max(size for size, _ in planned.values())
    if n > (most := (2**31 - 1) // largest):
        raise InputError(f"compute.steps_per_call={n}: must be at most {most} with batches of {largest} tokens")
    return planned


def stages(config: ConfigDict) -> dict[int, int]:
    """{tokens: batch wanted from then on, tokens}, before `batches` rounds it. Raises InputError."""
    b, s = config.batch, config.schedule
    if "seesaw" in b.growth and (b.lr_rule != "sqrt" or s.name == "constant"):
        raise InputError(
            f"batch.growth={b.growth!r}: needs batch.lr_rule=sqrt, which is {b.lr_rule}, and a schedule.name that "
            f"decays, which is {s.name}"
        )
    options = {"until": config.tokens, "parameters": parameters(config.model)["non_embedding"], "first": b.tokens}
    options |= {"fraction": _fraction(config), "start": s.warmup_tokens}
    return _named(b, "growth", lambda: from_text(b.growth or str(b.tokens), **options))


def _named(b: ConfigDict, key: str, read: Callable[[], dict[int, int]]) -> dict[int, int]:
    """What `read` returns; its InputError names the key."""
    try:
        return read()
    except InputError as error:
        raise InputError(f"batch.{key}={b[key]!r}: {error}") from error


def _check_store(config: ConfigDict, store: TokenStore) -> None:
    for key in ("source", "tokenizer", "validation_fraction"):
        made = store.meta.get(key, config.data[key])  # stores of old versions do not say all
        if config.data[key] != made:
            raise InputError(f"data.{key}={config.data[key]}: the store {config.data.store} was made with {made}")


def _check_memory(mesh: Mesh, count: int, replicas: int, needed: int, what: str) -> None:
    """InputError where the bytes `needed` for what there is of `count` parameters are more than all devices hold."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * jax.process_count()
    else:
        there = (device.memory_stats() or {}).get("bytes_limit", math.inf) * mesh.size
    if needed > there:
        raise InputError(
            f"model: {count:,} parameters x replicas={replicas} take {needed / 1e9:,.0f} GB {what}, and the devices "
            f"have {there / 1e9:,.0f} GB"
        )

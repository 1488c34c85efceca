"""From a config to a run: its program, its schedules, its data. Here and in `program` alone are the keys of the config
known."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxlab import parallel
from jaxlab.config import InputError, check
from jaxlab.data.order import Sequences, Validation
from jaxlab.data.store import TokenStore, load_tokenizer, open_store
from jaxlab.evaluate.choice import score_tasks
from jaxlab.evaluate.loss import evaluate
from jaxlab.evaluate.tasks import Item, read_tasks
from jaxlab.optim.schedules import schedule
from jaxlab.train.plan import Call, calls
from jaxlab.train.program import Program, program
from jaxlab.train.state import Clock, State


@dataclass(frozen=True)
class Run:
    """A program, the schedules of one config, and the data that it is fed."""

    config: ConfigDict
    program: Program
    store: TokenStore
    train: Sequences
    validation: Validation
    tasks: dict[str, list[Item]]

    def calls(self, clock: Clock) -> Iterator[Call]:
        """The compiled calls that are left from `clock` to the end of the run."""
        c = self.config
        return calls(
            clock,
            total_tokens=c.tokens,
            context=c.batch.context,
            batch_tokens=c.batch.tokens,
            hypers=hypers(c),
            steps_per_call=c.compute.steps_per_call,
            stops=(c.evaluate.every_tokens, c.evaluate.tasks_every_tokens, c.checkpoint.every_tokens),
            changes=tuple(self.program.later),
            **({"events": self.program.rounds.events} if self.program.rounds else {}),
        )

    def arguments(self, call: Call) -> tuple:
        """Device arrays (batches, hypers, count) of a call; each process reads only its devices' parts of the batch."""
        c, (k, b), length = self.config, self.program.microbatch, self.train.context
        n, m = c.compute.steps_per_call, c.replicas
        positions = call.start.sequences + np.arange(n * call.sequences).reshape(n, m, k, b)

        def read(index):
            part = positions[index[:-1]]
            tokens = np.full((part.size, length + 1), -1, np.int32)
            wanted = part.ravel() < call.end.sequences
            tokens[wanted] = self.train.read(part.ravel()[wanted])
            return tokens.reshape(*part.shape, length + 1)

        batches = parallel.global_array((n, m, k, b, length + 1), self.program.batch_sharding, read)
        padded = {name: np.float32(v + [0.0] * (n - len(v))) for name, v in call.hypers.items()}
        put = partial(parallel.replicated, self.program.mesh)
        return batches, jax.tree.map(put, padded), put(np.int32(call.count))

    def step(self, state: State, call: Call, arguments: tuple) -> tuple[State, dict]:
        """The call's inner steps, and what is due after them: metrics [n], and scalars of the end of the call."""
        state, metrics = self.program.at(call.start.tokens).step(state, arguments)
        for event in call.events:
            state, found = self.program.meet(state, event, self._outer_lr)
            metrics |= found
        sent = sum(self.program.rounds.sent_bytes(event) for event in call.events)
        return state, metrics | ({"sent_bytes": sent} if sent else {})

    @cached_property
    def _outer_lr(self) -> jax.Array:
        return parallel.replicated(self.program.mesh, np.float32(self.config.diloco.outer_lr))

    def evaluate(self, state: State, tokens: int | None = None) -> dict:
        """Loss and bits per byte of the state's parameters on the validation split (evaluate.loss), in the arithmetic
        of training at `tokens`, or at its end."""
        c, b = self.config, self.program.microbatch[1]
        sharding = NamedSharding(self.program.mesh, PartitionSpec(parallel.batch_axes(c.replicas)[1], None))

        def put(positions):
            shape = (len(positions), self.validation.context + 1)
            return parallel.global_array(shape, sharding, lambda i: self.validation.read(positions[i[0]]))

        wanted = -(-c.evaluate.tokens // self.validation.context) or self.validation.num_sequences
        sequences = min(wanted, self.validation.num_sequences)
        score = self._at(tokens).evaluate_batch
        return evaluate(score, self.program.params(state), self.validation, put, sequences=sequences, batch_sequences=b)

    @cached_property
    def _tokenizer(self):
        return load_tokenizer(self.config.data.store)

    def _at(self, tokens: int | None) -> Program:
        return self.program.at(self.config.tokens if tokens is None else tokens)

    def choose(self, state: State, items: list[Item], tokens: int | None = None) -> Iterator[list[dict]]:
        """Records of multiple-choice items under the state's parameters, a window at a time (evaluate.choice); tokens
        as for `evaluate`."""
        return self._at(tokens).choose(self.program.params(state), items, self._tokenizer)

    def scores(self, state: State, tokens: int | None = None) -> dict:
        """{"TASK/SCORE": value} on the run's tasks; tokens as for `evaluate`."""
        return score_tasks(partial(self.choose, state, tokens=tokens), self.tasks)


def build(config: ConfigDict, compiled: Program | None = None) -> Run:
    """Checks the config against itself, the devices and the token store (InputError), and assembles the run.

    compiled: the program of an earlier run, taken again if it serves: many runs of one shape compile once.
    """
    check(config)
    mesh = parallel.mesh(config.mesh.replica, config.mesh.data, config.mesh.tensor)
    _check_batch(config, mesh)
    store = open_store(config.data.store)
    _check_store(config, store)
    e, data, vocab_size = config.evaluate, config.data, vocabulary(config, store)
    serves = compiled is not None and compiled.serves(config, vocab_size)
    return Run(
        config=config,
        program=compiled if serves else program(config, mesh, vocab_size),
        store=store,
        train=Sequences(store.split("train"), config.batch.context, config.seed),
        validation=Validation(store.split("validation"), config.batch.context),
        tasks=read_tasks(e.tasks, e.items_from, archives=data.archives, tfds_dir=data.tfds_dir, limit=e.task_items),
    )


def hypers(config: ConfigDict) -> Callable[[float], dict[str, float]]:
    """tokens -> {"lr", "decay"} of a step centred there; decay is the share by which weights shrink in the step."""
    s, o = config.schedule, config.optim
    options = {k: s[k] for k in ("warmup_tokens", "final_fraction", "decay_tokens", "decay_shape")}
    fraction = schedule(s.name, total_tokens=config.tokens, **options)

    def at(tokens):
        lr = s.peak_lr * fraction(tokens)
        return {"lr": lr, "decay": o.weight_decay * (lr if o.decay == "coupled" else 1.0)}

    return at


def vocabulary(config: ConfigDict, store: TokenStore) -> int:
    """config.model.vocab_size, or the tokenizer's where that is 0; larger is padding, smaller an InputError."""
    wanted, needed = config.model.vocab_size, store.meta["vocab_size"]
    if wanted and wanted < needed:
        raise InputError(f"model.vocab_size={wanted}: the tokens of {config.data.store} need at least {needed}")
    return wanted or needed


def _check_batch(config: ConfigDict, mesh: Mesh) -> None:
    b, replicas = config.batch, config.replicas
    share = mesh.shape["data"] * (1 if replicas > 1 else mesh.shape["replica"])
    sequences = (b.micro_tokens or b.tokens // replicas) // b.context
    if sequences % share:
        raise InputError(
            f"batch.tokens={b.tokens}: a micro-batch has {sequences} sequences a replica, which the {share} devices "
            f"of the mesh's batch axes do not divide"
        )


def _check_store(config: ConfigDict, store: TokenStore) -> None:
    for key in ("source", "tokenizer"):
        if config.data[key] != store.meta[key]:
            raise InputError(
                f"data.{key}={config.data[key]}: the store {config.data.store} was made with {store.meta[key]}"
            )

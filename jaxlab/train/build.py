"""From a config to the functions of a run: the only place that knows what the keys of the config mean."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict, FrozenConfigDict

from jaxlab import parallel
from jaxlab.config import InputError, check, flatten
from jaxlab.data.order import Sequences, Validation
from jaxlab.data.store import TokenStore, load_tokenizer, open_store
from jaxlab.evaluate.choice import chooser, score_tasks
from jaxlab.evaluate.loss import evaluate, evaluator
from jaxlab.evaluate.tasks import Item, read_tasks
from jaxlab.model import attention
from jaxlab.model.decoder import Decoder
from jaxlab.model.loss import cross_entropy
from jaxlab.optim.inner import adamw
from jaxlab.optim.schedules import schedule
from jaxlab.train.plan import Call, calls
from jaxlab.train.rounds import Rounds, regrouped
from jaxlab.train.state import Clock, State
from jaxlab.train.step import inner_steps

# What the host alone reads: configs that differ in nothing else train with the same compiled programs.
HOST_KEYS = (
    "seed", "tokens", "data", "schedule", "optim.weight_decay", "optim.decay", "diloco.outer_lr", "evaluate",
    "checkpoint", "log",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """What runs of one shape compute: pure functions of their state, and where everything lives. Needs no data."""

    config: ConfigDict  # HOST_KEYS of it are not read
    mesh: Mesh
    model: Decoder
    loss_fn: Callable  # (params, tokens [b, L+1]) -> (objective, sums)
    shardings: State  # NamedSharding of every leaf of the state
    start: Callable  # parameters of one model -> State, jitted
    inner_steps: Callable  # (State, batches, hypers, count) -> (State, metrics [n, M]), jitted, State donated
    rounds: Rounds | None  # where replicas meet between inner steps; None: nowhere

    @cached_property
    def microbatch(self) -> tuple[int, int]:
        """(k, b): micro-batches a step, sequences in each, for one replica."""
        b = self.config.batch
        sequences = b.tokens // b.context // self.config.replicas
        per_micro = b.micro_tokens // b.context or sequences
        return sequences // per_micro, per_micro

    @cached_property
    def batch_sharding(self) -> NamedSharding:
        """Of the batches of a call, [n, M, k, b, L+1]."""
        replica, batch = parallel.batch_axes(self.config.replicas)
        return NamedSharding(self.mesh, PartitionSpec(None, replica, None, batch, None))

    @cached_property
    def init(self) -> Callable:
        """seed, uint32 -> State, jitted."""
        return jax.jit(lambda seed: self.start(initial_params(self.model, seed)), out_shardings=self.shardings)

    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the state, without its arrays."""
        shapes = jax.eval_shape(self.init, np.uint32(0))
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings)

    @cached_property
    def compiled(self):
        """The compiled inner steps, with their memory analysis. Compiles for devices that need not be there."""
        c, (k, b) = self.config, self.microbatch
        n, everywhere = c.compute.steps_per_call, NamedSharding(self.mesh, PartitionSpec())
        shape = (n, c.replicas, k, b, c.batch.context + 1)
        batches = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self.batch_sharding)
        hyper = jax.ShapeDtypeStruct((n,), jnp.float32, sharding=everywhere)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
        inner = self.abstract_state()._replace(outer=None)
        return self.inner_steps.lower(inner, batches, {"lr": hyper, "decay": hyper}, count).compile()

    @cached_property
    def _average(self):
        return jax.jit(
            lambda metrics: jax.tree.map(lambda m: m.mean(axis=1), metrics),
            out_shardings=NamedSharding(self.mesh, PartitionSpec()),
        )

    def step(self, state: State, arguments: tuple) -> tuple[State, dict]:
        """The compiled inner steps, and their metrics [n] of the average replica, which every process can read."""
        inner, metrics = self.compiled(state._replace(outer=None), *arguments)
        return inner._replace(outer=state.outer), self._average(metrics)

    @cached_property
    def meet(self):
        """The compiled `Rounds.apply`: (State, event, lr) -> (State, metrics); one program an event, State donated."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(
            self.rounds.apply, static_argnums=1, donate_argnums=0, out_shardings=(self.shardings, everywhere)
        )

    @cached_property
    def _global_params(self):
        return jax.jit(self.rounds.params, out_shardings=parallel.unreplicated(self.shardings.params))

    def params(self, state: State):
        """The parameters to evaluate: those that replicas have in common, [1, ...], or those of each, [M, ...]."""
        return self._global_params(state) if self.rounds else state.params

    def regroup(self, state: State) -> State:
        """A state of any number of replicas as one of this program's (rounds.regrouped)."""
        replicas = self.config.replicas
        return jax.jit(regrouped, static_argnums=2, out_shardings=self.shardings)(state, self.params(state), replicas)

    @cached_property
    def evaluate_batch(self):
        """The compiled `evaluator` of the loss."""
        return jax.jit(evaluator(self.loss_fn))

    @cached_property
    def choose(self):
        """The compiled `chooser` of the model: (params, items, tokenizer) -> records of multiple-choice items."""
        c, sequences = self.config, self.microbatch[1] * self.config.batch.context // self.config.model.context
        return chooser(self.model, self.mesh, c.replicas, sequences=sequences, chunk=c.compute.loss_chunk)

    def serves(self, config: ConfigDict, vocab_size: int) -> bool:
        """Whether a run of `config` is a run of this program."""

        def compiled_from(c):
            return {k: v for k, v in flatten(c).items() if not any(k == h or k.startswith(h + ".") for h in HOST_KEYS)}

        return self.model.c.vocab_size == vocab_size and compiled_from(self.config) == compiled_from(config)


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
        state, metrics = self.program.step(state, arguments)
        for event in call.events:
            state, found = self.program.meet(state, event, self._outer_lr)
            metrics |= found
        sent = sum(self.program.rounds.sent_bytes(event) for event in call.events)
        return state, metrics | ({"sent_bytes": sent} if sent else {})

    @cached_property
    def _outer_lr(self) -> jax.Array:
        return parallel.replicated(self.program.mesh, np.float32(self.config.diloco.outer_lr))

    def evaluate(self, state: State) -> dict:
        """Loss and bits per byte of the state's parameters on the validation split (evaluate.loss)."""
        c, b = self.config, self.program.microbatch[1]
        sharding = NamedSharding(self.program.mesh, PartitionSpec(parallel.batch_axes(c.replicas)[1], None))

        def put(positions):
            shape = (len(positions), self.validation.context + 1)
            return parallel.global_array(shape, sharding, lambda i: self.validation.read(positions[i[0]]))

        wanted = -(-c.evaluate.tokens // self.validation.context) or self.validation.num_sequences
        sequences = min(wanted, self.validation.num_sequences)
        score = self.program.evaluate_batch
        return evaluate(score, self.program.params(state), self.validation, put, sequences=sequences, batch_sequences=b)

    @cached_property
    def _tokenizer(self):
        return load_tokenizer(self.config.data.store)

    def choose(self, state: State, items: list[Item]) -> Iterator[list[dict]]:
        """Records of multiple-choice items under the state's parameters, a window at a time (evaluate.choice)."""
        return self.program.choose(self.program.params(state), items, self._tokenizer)

    def scores(self, state: State) -> dict:
        """{"TASK/SCORE": value} on the run's tasks."""
        return score_tasks(partial(self.choose, state), self.tasks)


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


def program(config: ConfigDict, mesh: Mesh, vocab_size: int) -> Program:
    """The functions of runs on a mesh, whose devices may be described only (compilation ahead of time)."""
    c = FrozenConfigDict(config.model.to_dict() | {"vocab_size": vocab_size})
    model = decoder(c, config.compute, mesh, config.replicas)
    optimiser = adamw(**{k: config.optim[k] for k in ("b1", "b2", "eps", "clip", "decay_mask")})
    loss_fn = objective(model, config.compute.loss_chunk)
    params = jax.eval_shape(partial(initial_params, model), np.uint32(0))
    rounds = Rounds(config.diloco, params, config.replicas, mesh) if config.diloco.sync_every else None
    start = initial_state(optimiser, replicas=config.replicas, rounds=rounds)
    shardings = _shardings(jax.eval_shape(start, params), mesh, config)
    steps = inner_steps(loss_fn, optimiser, spmd_axis_name=parallel.batch_axes(config.replicas)[0])
    per_replica = NamedSharding(mesh, PartitionSpec(None, parallel.batch_axes(config.replicas)[0]))
    return Program(
        config=config,
        mesh=mesh,
        model=model,
        loss_fn=loss_fn,
        shardings=shardings,
        start=jax.jit(start, out_shardings=shardings),
        inner_steps=jax.jit(steps, donate_argnums=0, out_shardings=(shardings._replace(outer=None), per_replica)),
        rounds=rounds,
    )


def _shardings(shapes: State, mesh: Mesh, config: ConfigDict) -> State:
    """Of every leaf of the state. What replicas have in common is on the devices of each."""
    options = {"mesh": mesh, "replicas": config.replicas, "fsdp": config.mesh.fsdp}
    inner = parallel.state_shardings(shapes._replace(outer=None), **options)
    return inner._replace(outer=parallel.state_shardings(shapes.outer, per_replica=config.diloco.eager, **options))


def decoder(c: FrozenConfigDict, compute: ConfigDict, mesh: Mesh, replicas: int) -> Decoder:
    """The decoder as this platform runs it best, unless config.compute says otherwise."""
    platform = mesh.devices.flat[0].platform
    on_cpu = platform == "cpu"
    dtype = ("float32" if on_cpu else "bfloat16") if compute.dtype == "auto" else compute.dtype
    scan = not on_cpu if compute.layers == "auto" else compute.layers == "scan"
    best = {"cpu": "chunked", "gpu": "cudnn" if dtype == "bfloat16" else "xla", "tpu": "splash"}
    kernel = best[platform] if compute.attention == "auto" else compute.attention
    needs = {"cudnn": "gpu", "splash": "tpu"}.get(kernel, platform)
    if needs != platform:
        raise InputError(f"compute.attention={kernel}: runs on {needs}, and this is {platform}")
    kernels = {
        "plain": attention.plain,
        "chunked": attention.chunked,
        "xla": attention.fused("xla"),
        "cudnn": attention.fused("cudnn"),
        "splash": attention.splash(mesh, PartitionSpec(parallel.batch_axes(replicas)[1], None, "tensor", None)),
    }
    return Decoder(
        c,
        dtype=jnp.dtype(dtype),
        scan=scan,
        remat=compute.remat,
        kernel=kernels[kernel],
        constrain=parallel.constrainer(mesh, replicas),
    )


def objective(model: Decoder, chunk: int) -> Callable:
    """loss_fn(params, tokens [b, L+1]) -> (objective summed over tokens, sums): next-token prediction. Negative ids
    are padding: never a target, and the embedding of id 0 as an input."""

    def loss_fn(params, tokens):
        inputs, targets = jnp.maximum(tokens[:, :-1], 0), tokens[:, 1:]
        hidden, head = model.apply({"params": params}, inputs, method="features")
        return cross_entropy(hidden, head, targets, chunk=chunk, z_loss=model.c.z_loss)

    return loss_fn


def initial_params(model: Decoder, seed):
    """Parameters of one model. Made as plainly as can be: they do not depend on how the layers are run."""
    return Decoder(model.c).init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]


def initial_state(optimiser, *, replicas: int, rounds: Rounds | None = None) -> Callable:
    """start(params) -> State; all replicas start from the same parameters."""

    def start(params):
        inner = State(params, optimiser.init(params))
        inner = jax.tree.map(lambda x: jnp.broadcast_to(x, (replicas, *x.shape)), inner)
        return inner._replace(outer=rounds.init(params) if rounds else None)

    return start


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

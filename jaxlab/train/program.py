"""From a config to pure functions of a run's state: what is compiled, and where everything lives. Needs no data."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict, FrozenConfigDict

from jaxlab import parallel
from jaxlab.config import InputError, default, flatten, get
from jaxlab.cost import flops
from jaxlab.evaluate.choice import chooser
from jaxlab.evaluate.loss import evaluator
from jaxlab.model import attention, linear, moe
from jaxlab.model.decoder import Decoder
from jaxlab.model.loss import objective
from jaxlab.optim.inner import transformation
from jaxlab.optim.sphere import projected
from jaxlab.quant import dot as quant
from jaxlab.quant.recipes import OPERANDS, Recipe, recipe, stages
from jaxlab.train.outer_loop import OuterLoop, regrouped
from jaxlab.train.plan import Batch, Shape
from jaxlab.train.spectra import prober
from jaxlab.train.state import State
from jaxlab.train.step import inner_steps

# What the host alone reads: configs that differ in nothing else train with the same compiled programs.
HOST_KEYS = (
    "seed", "tokens", "data", "batch.tokens", "batch.growth", "batch.lr_rule", "schedule", "optim.weight_decay",
    "optim.decay", "diloco.outer_lr", "evaluate", "checkpoint", "log", "spectra",
)  # fmt: skip

STAGES = 100  # of casts: one compilation each
# Layers up to which a GPU runs them unrolled. A scan copies what every layer keeps: 12 layers on an H100 take a fifth
# less time unrolled, and compile in 27 s instead of 10 (benchmarks/results/h100-2.json).
GPU_UNROLLED = 24


class Own(NamedTuple):
    """A user's functions, in place of those that the config names.

    loss_fn(params, tokens [b, L+1] int32, negative: padding) -> (objective summed over tokens, sums {"nll", "tokens"}).
    optimiser: a transformation of optax (optim.inner.transformation). init(key) -> parameters of another model, any
    pytree of float32 arrays.
    """

    loss_fn: Callable | None = None
    optimiser: optax.GradientTransformation | None = None
    init: Callable | None = None


@dataclass(frozen=True)
class Program:
    """What runs of one shape compute: pure functions of their state, and where everything lives. Needs no data."""

    config: ConfigDict  # HOST_KEYS of it are not read
    mesh: Mesh
    model: Decoder | None  # None: a user's
    init_params: Callable  # seed, uint32 -> parameters of one model
    loss_fn: Callable  # (params, tokens [b, L+1]) -> (objective, sums)
    shapes: State  # jax.ShapeDtypeStruct of every leaf of the state
    shardings: State  # NamedSharding of every leaf of the state
    start: Callable  # parameters of one model -> State, jitted
    jitted_steps: Callable  # (State without outer, batches, hypers, counts) -> (State, metrics [n, M]), State donated
    probe: Callable  # spectra.prober's, jitted
    outer_loop: OuterLoop | None  # None: replicas are never synchronised
    later: dict[int, "Program"]  # {tokens: program from then on}: the same state, in other arithmetic
    own: Own

    def shape(self, batch: Batch) -> Shape:
        """The shape of a block of steps on such batches."""
        c = self.config
        sequences = batch.tokens // batch.context // c.replicas
        per_micro = c.batch.micro_tokens // batch.context or sequences
        return Shape(c.compute.steps_per_call, c.replicas, sequences // per_micro, per_micro, batch.context + 1)

    @cached_property
    def batch_sharding(self) -> NamedSharding:
        """Of the batches of a block."""
        replica, batch = parallel.batch_axes(self.config.replicas)
        return NamedSharding(self.mesh, PartitionSpec(None, replica, None, batch, None))

    @cached_property
    def init(self) -> Callable:
        """seed, uint32 -> State, jitted."""
        return jax.jit(lambda seed: self.start(self.init_params(seed)), out_shardings=self.shardings)

    def at(self, tokens: int) -> "Program":
        """The program of a step that starts at `tokens`, or of an evaluation there."""
        return self.later.get(max((start for start in self.later if start <= tokens), default=None), self)

    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the state, without its arrays."""
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.shapes, self.shardings
        )

    @property
    def parameters(self) -> int:
        """How many parameters one model has."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes.params)) // self.config.replicas

    @property
    def unsharded(self) -> list[str]:
        """Paths of the state's leaves that have no sharding rule."""
        return parallel.without_rule(self.shapes, self.shapes.params)

    def flops_per_token(self, context: int) -> int:
        """Of training (cost.flops); 6 a parameter for a user's model."""
        return flops.training_per_token(self.model.c, context) if self.model else 6 * self.parameters

    @cached_property
    def compiling(self) -> Callable[[tuple], Future]:
        """compiling(shape of batches) -> the compiled inner steps, with their memory analysis: once a shape, on a
        thread of its own. For devices that need not be there."""
        thread = ThreadPoolExecutor(1)
        return cache(lambda shape: thread.submit(self._compile, shape))

    def _compile(self, shape):
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        batches = jax.ShapeDtypeStruct(tuple(shape), jnp.int32, sharding=self.batch_sharding)
        hyper = jax.ShapeDtypeStruct(shape[:1], jnp.float32, sharding=everywhere)
        counts = jax.ShapeDtypeStruct((2,), jnp.int32, sharding=everywhere)
        inner = self.abstract_state()._replace(outer=None)
        return self.jitted_steps.lower(inner, batches, {"lr": hyper, "weight_decay": hyper}, counts).compile()

    def inner_steps(self, state: State, batches, hypers, counts) -> tuple[State, dict]:
        """The optimiser steps of a block on every replica (`step.inner_steps`), by the program compiled for batches of
        this shape; the state is overwritten. Metrics [n, M] of every step and replica, which this process can read."""
        steps = self.compiling(batches.shape).result()
        inner, metrics = steps(state._replace(outer=None), batches, hypers, counts)
        if jax.process_count() > 1:  # replicas may be on devices of other processes
            metrics = self._gathered(metrics)
        return inner._replace(outer=state.outer), metrics

    @cached_property
    def _gathered(self) -> Callable:
        """Behind the steps at once: dispatched later, when metrics are fetched, it would wait for the next block."""
        return jax.jit(lambda metrics: metrics, out_shardings=NamedSharding(self.mesh, PartitionSpec()))

    @cached_property
    def outer_step(self) -> Callable:
        """(State, event, lr) -> (State, metrics): `OuterLoop.step`, compiled for each event; State donated."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        shardings = self.shardings, everywhere
        return jax.jit(self.outer_loop.step, static_argnums=1, donate_argnums=0, out_shardings=shardings)

    @cached_property
    def _global_params(self):
        return jax.jit(self.outer_loop.params, out_shardings=parallel.unreplicated(self.shardings.params))

    def params(self, state: State):
        """The parameters to evaluate and to export: the global ones, [1, ...]; without an outer loop those of every
        replica, [M, ...]."""
        return self._global_params(state) if self.outer_loop else state.params

    def regroup(self, state: State) -> State:
        """A state of any number of replicas as one of this program's (outer_loop.regrouped)."""
        replicas = self.config.replicas
        return jax.jit(regrouped, static_argnums=2, out_shardings=self.shardings)(state, self.params(state), replicas)

    @cached_property
    def evaluate_batch(self):
        """The compiled `evaluator` of the loss."""
        return jax.jit(evaluator(self.loss_fn))

    @cached_property
    def chooser(self) -> Callable:
        """chooser(sequences in a batch) -> the compiled (params, items, tokenizer) -> records of multiple-choice
        items."""
        options = {"chunk": self.config.compute.loss_chunk}
        return cache(lambda n: chooser(self.model, self.mesh, self.config.replicas, sequences=n, **options))

    def serves(self, config: ConfigDict, vocab_size: int) -> bool:
        """Whether a run of `config` is a run of this program."""

        def compiled_from(c):
            return {k: v for k, v in flatten(c).items() if not any(k == h or k.startswith(h + ".") for h in HOST_KEYS)}

        return self.model.c.vocab_size == vocab_size and compiled_from(self.config) == compiled_from(config)


def program(config: ConfigDict, mesh: Mesh, vocab_size: int, own: Own = Own()) -> Program:  # noqa: B008
    """The functions of runs on a mesh, whose devices may be described only (compilation ahead of time). Raises
    InputError for what the devices cannot do."""
    _check_own(config, own)
    first, *others = recipes(config.quant).items()
    later = {start: _program(config, mesh, vocab_size, rule, {}, own) for start, rule in others}
    return _program(config, mesh, vocab_size, first[1], later, own)


def _check_own(config: ConfigDict, own: Own) -> None:
    if own.init and not own.loss_fn:
        raise InputError("init: needs a loss_fn, of the same model")
    decoders = ("quant.recipe",) * bool(own.loss_fn) + ("spectra.at", "evaluate.tasks") * bool(own.init)
    for key in decoders:
        if (value := get(config, key)) != (standard := get(default(), key)):
            raise InputError(f"{key}={value!r}: is of our decoder, not of a model of your own; must be {standard!r}")


def _program(
    config: ConfigDict, mesh: Mesh, vocab_size: int, rule: Recipe, later: dict[int, Program], own: Own
) -> Program:
    c = FrozenConfigDict(config.model.to_dict() | {"vocab_size": vocab_size})
    axes = parallel.batch_axes(config.replicas)
    make = partial(decoder, c, config.compute, mesh, dot=product(rule, config.quant.fp8, mesh))
    model = None if own.init else make(axes[1])
    if c.num_experts and rule.casts:
        raise InputError(
            f"model.num_experts={c.num_experts}: must be 0 with quant, which casts linears but not experts"
        )
    init_params = partial(initial_params, model) if model else lambda seed: own.init(jax.random.key(seed))
    params = jax.eval_shape(init_params, np.uint32(0))
    project = model.project if model else None
    optimiser = projected(transformation(config.optim, params, own.optimiser), project)
    loss_fn = own.loss_fn or objective(model, config.compute.loss_chunk)
    outer_loop = None
    if config.diloco.sync_every:
        outer_loop = OuterLoop(config.diloco, params, replicas=config.replicas, mesh=mesh, project=project)
    start = initial_state(optimiser, replicas=config.replicas, outer_loop=outer_loop)
    shapes = jax.eval_shape(start, params)
    shardings = _shardings(shapes, mesh, config)
    one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    steps = inner_steps(loss_fn, optimiser, spmd_axis_name=axes[0], one_by_one=one_cpu and config.replicas > 1)
    per_replica, everywhere = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((None, axes[0]), ()))
    return Program(
        config=config,
        mesh=mesh,
        model=model,
        init_params=init_params,
        loss_fn=loss_fn,
        shapes=shapes,
        shardings=shardings,
        start=jax.jit(start, out_shardings=shardings),
        jitted_steps=jax.jit(steps, donate_argnums=0, out_shardings=(shardings._replace(outer=None), per_replica)),
        probe=jax.jit(prober(make(None), mesh, axes[1]), static_argnums=2, out_shardings=everywhere),
        outer_loop=outer_loop,
        later=later,
        own=own,
    )


def recipes(q: ConfigDict) -> dict[int, Recipe]:
    """{tokens: recipe from then on}, from 0, by `config.quant`. Raises InputError."""
    with _keys_of("quant"):
        first = recipe(q.recipe, q.cast, **{p: q[p] for p in OPERANDS})
        for key, start in (("cast", recipe(q.recipe)), ("stages", first)):
            if q[key] and not any(getattr(start, p).format for p in OPERANDS):
                raise InputError(f"{key}={q[key]!r}: changes nothing, since recipe={q.recipe} casts no operand")
        if q.stages.count("/") >= STAGES:
            raise InputError(f"stages={q.stages[:40]!r}: must be at most {STAGES} stages, each a compilation")
        if q.fp8 == "native" and not first.casts:
            raise InputError(f"fp8=native: does nothing, since recipe={q.recipe} casts no operand")
        return stages(q.stages, first)


def product(rule: Recipe, fp8: str, mesh: Mesh) -> Callable:
    """The product of the blocks' linears. A recipe that casts nothing takes the plain one."""
    with _keys_of("quant"):
        return quant.dot(rule, fp8=fp8, device=mesh.devices.flat[0]) if rule.casts else linear.dot


@contextmanager
def _keys_of(section: str) -> Iterator[None]:
    """What is wrong with an argument is wrong with the key of that name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{section}.{error}") from error


def _shardings(shapes: State, mesh: Mesh, config: ConfigDict) -> State:
    """Of every leaf of the state. What replicas have in common is on the devices of each."""
    options = {"mesh": mesh, "replicas": config.replicas, "fsdp": config.mesh.fsdp, "params": shapes.params}
    inner = parallel.state_shardings(shapes._replace(outer=None), **options)
    return inner._replace(outer=parallel.state_shardings(shapes.outer, per_replica=config.diloco.eager, **options))


def decoder(c: FrozenConfigDict, compute: ConfigDict, mesh: Mesh, axes, dot: Callable = linear.dot) -> Decoder:
    """The decoder as this platform runs it best, unless config.compute says otherwise. axes: those of the mesh over
    which sequences are sharded, None where each device has its own."""
    platform = mesh.devices.flat[0].platform
    on_cpu = platform == "cpu"
    dtype = ("float32" if on_cpu else "bfloat16") if compute.dtype == "auto" else compute.dtype
    unrolled = {"cpu": c.num_layers, "gpu": GPU_UNROLLED}.get(platform, 0)
    scan = c.num_layers > unrolled if compute.layers == "auto" else compute.layers == "scan"
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
        "splash": attention.splash(mesh, PartitionSpec(axes, None, "tensor", None)),
    }
    return Decoder(
        c,
        dtype=jnp.dtype(dtype),
        scan=scan,
        remat=compute.remat,
        kernel=kernels[kernel],
        dot=dot,
        mixture=moe.sharded(mesh, axes),
        constrain=parallel.constrainer(mesh, axes),
    )


def initial_params(model: Decoder, seed):
    """Parameters of one model. They do not depend on how its layers are run: here as is traced fastest."""
    params = Decoder(model.c, scan=True).init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]
    return model.project(params) if model.project else params


def initial_state(optimiser, *, replicas: int, outer_loop: OuterLoop | None = None) -> Callable:
    """start(params) -> State; all replicas start from the same parameters."""

    def start(params):
        inner = State(params, optimiser.init(params))
        inner = jax.tree.map(lambda x: jnp.broadcast_to(x, (replicas, *x.shape)), inner)
        return inner._replace(outer=outer_loop.init(params) if outer_loop else None)

    return start

"""The inner optimiser: our AdamW, an optimiser of optax, or a user's, each as a transformation to whose update the
learning rate and the weight decay are arguments: `update(grads, state, params, lr=, decay=)`."""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlab.config import InputError, default
from jaxlab.files import first_line

# The keys of `config.optim` that an optimiser takes, besides the learning rate, weight decay, its mask and clipping.
TAKES = {
    "adamw": ("b1", "b2", "eps"),
    "muon": ("momentum", "b1", "b2", "eps"),
    "lion": ("b1", "b2"),
    "sgd": ("momentum",),
    "adafactor": (),
}
OPTAX_TAKES = ("b1", "b2", "eps")  # any other of optax: those of these that it has by the same name
DECAYED = re.compile(r"(^|/)(kernel|(position_)?embedding|head)$")  # by path, since layers are stacked
# What Muon orthogonalises, [..., in, out]: every kernel but that of a head or an embedding.
HIDDEN = re.compile(r"^(?!(.*/)?(head|lm_head|embed\w*)/)(.*/)?kernel$")
# Root mean square of a hidden matrix's update, relative to the learning rate, as in AdamW's: so that one learning rate
# and one weight decay serve all parameters (Moonlight, 2502.16982, equation 4).
MUON_RMS = 0.2
STACK = re.compile(r"blocks(_\d+)?(/|$)")  # the parameters of many layers, stacked along their first axis


def transformation(o: Mapping, params: Any, given: optax.GradientTransformation | None = None):
    """The optimiser that `config.optim` names, or a user's: `update(grads, state, params, lr=, decay=)`.

    params <- params + update - decay * params: the update is the optimiser's at the learning rate `lr`, of gradients
    clipped to global norm `o.clip`; `decay` is the share by which weights shrink in this step, of the leaves that
    `o.decay_mask` names. An optimiser's own weight decay is off.
    params: shapes, without a replica axis. given: a transformation whose learning rate is an injected
    hyper-parameter (`optax.inject_hyperparams`) or the keyword `lr` of its update.
    Raises InputError for one that has no learning rate, and for a key that would do nothing.
    """
    label = f"optim.name={o['name']}" if given is None else "optimiser"
    takes, inner = _named(o) if given is None else ((), driven(given))
    _check_keys(o, ("name", *takes) if given is None else takes, label)
    if given is None and o["name"].endswith("muon"):
        _check_names("optim.name=muon", hidden_matrices(params))
    if o["weight_decay"] and o["decay_mask"] == "matrices":
        _check_names(f"optim.weight_decay={o['weight_decay']:g} with decay_mask=matrices", matrices(params))
    optimiser = clocked(inner, clip=o["clip"], decay_mask=o["decay_mask"])
    try:
        follows = _depends(optimiser, params)
    except (TypeError, ValueError) as error:  # of an update that needs the loss, for instance
        raise InputError(f"{label}: cannot train with gradients alone ({first_line(error)})") from error
    if not follows:
        advice = "make it with optax.inject_hyperparams(...)(learning_rate=0.0), or let its update take the keyword lr"
        advice = "" if given is None else f"; {advice}"
        raise InputError(f"{label}: its updates do not depend on the learning rate, which is config.schedule's{advice}")
    return optimiser


def _check_keys(o: Mapping, takes: tuple[str, ...], label: str) -> None:
    """Raises InputError for a key that this optimiser does not take and that is not at its default."""
    for key in ("name", "momentum", *OPTAX_TAKES):
        standard = default().optim[key]
        if key not in takes and o[key] != standard:
            raise InputError(f"optim.{key}={o[key]}: does nothing with {label}; must be {standard}")


def _check_names(key: str, chosen: Any) -> None:
    if not any(jax.tree.leaves(chosen)):
        raise InputError(f"{key}: needs parameters whose paths end in kernel, as those of flax, and there are none")


def adamw(*, b1: float, b2: float, eps: float, clip: float = 0.0, decay_mask: str = "matrices"):
    """AdamW as an optax transformation over any pytree; `update(grads, state, params, lr=, decay=)`.

    params <- params - lr * m_hat / (sqrt(v_hat) + eps) - decay * params, after clipping the gradient to global norm
    `clip` (0: off). `decay` is the share by which weights shrink in this step, so that both readings of weight decay
    are the caller's arithmetic: coupled is lr * weight_decay (optax, torch), independent is weight_decay itself (the
    DiLoCo paper's 1/T). Being arguments, neither recompiles anything. Adam is decay = 0. State: 2x the parameters.
    decay_mask: matrices (leaves named kernel, embedding or head), or all.
    """
    return clocked(_adam(b1=b1, b2=b2, eps=eps), clip=clip, decay_mask=decay_mask)


def clocked(inner, *, clip: float, decay_mask: str) -> optax.GradientTransformationExtraArgs:
    """An `inner` that takes `lr`, after clipping and before weight decay (see `transformation`)."""
    clipped = optax.chain(optax.clip_by_global_norm(clip) if clip else optax.identity(), inner)

    def update(grads, state, params, *, lr, decay=0.0):
        updates, state = clipped.update(grads, state, params, lr=lr)
        decayed = jax.tree.map(lambda p: True, params) if decay_mask == "all" else matrices(params)
        return jax.tree.map(lambda u, p, d: u - decay * p if d else u, updates, params, decayed), state

    return optax.GradientTransformationExtraArgs(clipped.init, update)


def driven(given: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A user's transformation as one that takes `lr`: as the keyword of its update, and as the hyper-parameter
    `learning_rate` of every `optax.inject_hyperparams` in it."""
    accepts = inspect.signature(given.update).parameters.values()
    by_keyword = any(p.name == "lr" or p.kind is p.VAR_KEYWORD for p in accepts)

    def injected(state):
        return hasattr(state, "hyperparams") and "learning_rate" in state.hyperparams

    def update(grads, state, params, *, lr):
        def with_rate(node):
            if not injected(node):
                return node
            rate = jnp.asarray(lr, jnp.result_type(node.hyperparams["learning_rate"]))
            return node._replace(hyperparams=node.hyperparams | {"learning_rate": rate})

        state = jax.tree.map(with_rate, state, is_leaf=injected)
        return given.update(grads, state, params, **({"lr": lr} if by_keyword else {}))

    return optax.GradientTransformationExtraArgs(given.init, update)


def matrices(params: Any) -> Any:
    """Tree of bools: which leaves are matrices (kernels, embeddings, heads), by name, since layers are stacked."""
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(DECAYED.search(_name(path))), params)


def hidden_matrices(params: Any) -> Any:
    """Tree of bools: which leaves are the matrices between hidden states that Muon orthogonalises: [in, out], and in
    stacks [layers, ..., in, out]."""

    def is_hidden(path, leaf):
        name = _name(path)
        return bool(HIDDEN.search(name)) and (leaf.ndim == 2 or bool(STACK.match(name)))

    return jax.tree_util.tree_map_with_path(is_hidden, params)


def _name(path: tuple) -> str:
    """'blocks/ffn/up/kernel' from a tree path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(o: Mapping) -> tuple[tuple[str, ...], optax.GradientTransformationExtraArgs]:
    """The keys that the optimiser of `o.name` takes, and the optimiser, whose update takes `lr`."""
    name = o["name"].removeprefix("optax:")
    if name not in TAKES and name == o["name"]:
        raise InputError(f"optim.name={name!r}: must be one of {', '.join(TAKES)}, or optax:NAME")
    if name not in TAKES:
        return _of_optax(name, o)
    options = {key: o[key] for key in TAKES[name]}
    match name:
        case "adamw":
            inner = _adam(**options)
        case "muon":
            names = {"momentum": "beta", "b1": "adam_b1", "b2": "adam_b2", "eps": "eps"}
            options = {names[key]: value for key, value in options.items()} | {"consistent_rms": MUON_RMS}
            inner = _at_rate(partial(optax.contrib.muon, muon_weight_dimension_numbers=_in_and_out, **options))
        case "lion":
            inner = _at_rate(partial(optax.lion, weight_decay=0.0, **options))
        case "sgd":
            inner = _at_rate(partial(optax.sgd, **options))
        case "adafactor":
            inner = _layerwise(_at_rate(optax.adafactor))
    return TAKES[name], inner


def _of_optax(name: str, o: Mapping) -> tuple[tuple[str, ...], optax.GradientTransformationExtraArgs]:
    make = getattr(optax, name, None) or getattr(optax.contrib, name, None)
    if name.startswith("_") or not callable(make):
        raise InputError(f"optim.name=optax:{name}: optax {optax.__version__} has none of that name")
    arguments = inspect.signature(make).parameters
    needed = [p.name for p in arguments.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if "learning_rate" not in arguments or needed not in ([], ["learning_rate"]):
        raise InputError(
            f"optim.name=optax:{name}: must need a learning_rate and nothing else; its arguments are "
            f"{', '.join(arguments)}"
        )
    takes = tuple(key for key in OPTAX_TAKES if key in arguments)
    own_decay = {"weight_decay": 0.0} if "weight_decay" in arguments else {}
    return takes, _layerwise(_at_rate(partial(make, **{key: o[key] for key in takes}, **own_decay)))


def _adam(**options) -> optax.GradientTransformationExtraArgs:
    """Adam with optax's state of `scale_by_adam` alone, which is how AdamW's checkpoints have it."""
    adam = optax.scale_by_adam(**options)

    def update(grads, state, params=None, *, lr):
        directions, state = adam.update(grads, state, params)
        return jax.tree.map(lambda u: -lr * u, directions), state

    return optax.GradientTransformationExtraArgs(adam.init, update)


def _at_rate(make: Callable) -> optax.GradientTransformationExtraArgs:
    """make(learning_rate=) -> an optax transformation, as one whose update takes `lr`; its state has no rate."""

    def update(grads, state, params=None, *, lr):
        return optax.with_extra_args_support(make(learning_rate=lr)).update(grads, state, params)

    return optax.GradientTransformationExtraArgs(make(learning_rate=1.0).init, update)


def _in_and_out(params: Any) -> Any:
    """Muon's dimension numbers: the last two axes of hidden matrices, each layer's and each expert's by itself."""
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    return jax.tree.map(lambda hidden: matrix if hidden else None, hidden_matrices(params))


def _layerwise(inner) -> optax.GradientTransformationExtraArgs:
    """`inner` over parameters of which each layer's are leaves of their own, not stacked: norms, ratios and factors of
    a leaf are then those of one layer."""

    def split(tree):
        if not isinstance(tree, Mapping):
            return tree
        return {name: _layers(part) if STACK.match(str(name)) else part for name, part in tree.items()}

    def stacked(tree, like):
        if not isinstance(like, Mapping):
            return tree
        stacks = {name: part for name, part in tree.items() if STACK.match(str(name))}
        return tree | {name: jax.tree.map(lambda *x: jnp.stack(x), *layers) for name, layers in stacks.items()}

    def update(grads, state, params, *, lr):
        updates, state = inner.update(split(grads), state, split(params), lr=lr)
        return stacked(updates, grads), state

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(split(params)), update)


def _layers(stack: Any) -> list:
    """The parameters of each layer of a stack."""
    return [jax.tree.map(lambda p, i=i: p[i], stack) for i in range(len(jax.tree.leaves(stack)[0]))]


def _depends(optimiser, params: Any) -> bool:
    """Whether the updates depend on the learning rate: `vmap` does not leave results unmapped that do."""

    def updates(lr, params):
        return optimiser.update(params, optimiser.init(params), params, lr=lr, decay=jnp.float32(0))[0]

    try:
        jax.eval_shape(
            jax.vmap(updates, in_axes=(0, None), out_axes=None), jax.ShapeDtypeStruct((2,), jnp.float32), params
        )
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        return True
    return False

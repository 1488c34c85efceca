"""AdamW and Muon against float64 in numpy, every optimiser by name against optax, and what users give."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import FrozenConfigDict

from jaxlab.config import InputError, default
from jaxlab.model.decoder import Decoder
from jaxlab.model.families import SIZES, model
from jaxlab.optim.inner import adamw, hidden_matrices, matrices, transformation
from jaxlab.train.program import initial_params

STEPS = 20
DECAYED = {("layer", "kernel"), ("embedding",), ("position_embedding",), ("head",)}
SHAPES = {
    ("layer", "kernel"): (3, 4, 5), ("layer", "bias"): (3, 5), ("norm", "scale"): (4,), ("norm", "bias"): (4,),
    ("embedding",): (7, 4), ("position_embedding",): (6, 4), ("head",): (4, 7),
}  # fmt: skip


def tree(draw):
    nested = {}
    for path, shape in SHAPES.items():
        inner = nested
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = np.float32(draw(shape))
    return nested


def flat(nested):
    return {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(nested)}


def problem():
    """Parameters, and 20 gradients whose norms lie on both sides of 1."""
    rng = np.random.default_rng(0)
    params = tree(lambda s: rng.normal(size=s))
    sizes = np.geomspace(0.02, 1, STEPS)
    rng.shuffle(sizes)
    return params, [tree(lambda s, size=size: rng.normal(size=s) * size) for size in sizes]


LR = np.linspace(0.1, 0.01, STEPS)  # both change with every step
DECAY = np.linspace(0.02, 0.0, STEPS)


def in_float64(params, grads, *, b1, b2, eps, clip, decayed, decay):
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, with the schedule's factor on the decay made explicit."""
    x = {path: np.float64(p) for path, p in flat(params).items()}
    m, v = ({path: np.zeros_like(p) for path, p in x.items()} for _ in range(2))
    for t, gradient in enumerate(grads):
        g = {path: np.float64(a) for path, a in flat(gradient).items()}
        size = np.sqrt(sum((a**2).sum() for a in g.values()))
        factor = min(1.0, clip / size) if clip else 1.0
        for path in x:
            m[path] = b1 * m[path] + (1 - b1) * factor * g[path]
            v[path] = b2 * v[path] + (1 - b2) * (factor * g[path]) ** 2
            direction = m[path] / (1 - b1 ** (t + 1)) / (np.sqrt(v[path] / (1 - b2 ** (t + 1))) + eps)
            x[path] = x[path] - LR[t] * direction - decay[t] * (path in decayed) * x[path]
    return x


def run(optimiser, params, grads, decay):
    params, grads = jax.tree.map(jnp.asarray, (params, grads))
    state = optimiser.init(params)

    @jax.jit
    def step(params, state, gradient, lr, decay):
        updates, state = optimiser.update(gradient, state, params, lr=lr, decay=decay)
        return optax.apply_updates(params, updates), state

    for t, gradient in enumerate(grads):
        params, state = step(params, state, gradient, np.float32(LR[t]), np.float32(decay[t]))
    assert step._cache_size() == 1  # other rates compile nothing
    return params, state


@pytest.mark.parametrize("reading", ["independent", "coupled"])
@pytest.mark.parametrize("mask", ["matrices", "all"])
@pytest.mark.parametrize("clip", [0.0, 1.0, 1e3], ids=["no clip", "clip", "clip never reached"])
def test_twenty_steps(clip, mask, reading):
    params, grads = problem()
    sizes = [np.sqrt(sum((a**2).sum() for a in jax.tree.leaves(g))) for g in grads]
    assert min(sizes) < 1 < max(sizes) < 1e3
    decay = DECAY if reading == "independent" else 0.1 * LR
    options = {"b1": 0.9, "b2": 0.97, "eps": 1e-2, "clip": clip}  # an epsilon that matters
    found, _ = run(adamw(decay_mask=mask, **options), params, grads, decay)
    decayed = DECAYED if mask == "matrices" else SHAPES.keys()
    for path, wanted in in_float64(params, grads, decayed=decayed, decay=decay, **options).items():
        np.testing.assert_allclose(flat(found)[path], wanted, atol=5e-6)  # 20 float32 steps of numbers up to 4


def test_coupled_decay_is_optax_adamw():
    params, grads = problem()
    found, _ = run(adamw(b1=0.9, b2=0.95, eps=1e-8, clip=1.0), params, grads, 0.1 * LR)
    peer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda t: jnp.float32(LR)[t], b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=matrices(params)),
    )
    state, wanted = peer.init(params), params
    step = jax.jit(peer.update)
    for gradient in grads:
        updates, state = step(gradient, state, wanted)
        wanted = optax.apply_updates(wanted, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, wanted)


def test_only_matrices_are_decayed():
    params, _ = problem()
    assert {path for path, decayed in flat(matrices(params)).items() if decayed} == DECAYED


def test_with_no_gradient_weights_shrink_by_the_decay_alone():
    """Independent decay: (1 - 0.01)^20 whatever the learning rate, on matrices; norms and biases stay, bit by bit."""
    params, grads = problem()
    zero = jax.tree.map(np.zeros_like, grads)
    found, _ = run(adamw(b1=0.9, b2=0.99, eps=1e-8, clip=1.0), params, zero, np.full(STEPS, 0.01))
    for path, leaf in flat(found).items():
        if path in DECAYED:
            np.testing.assert_allclose(leaf, flat(params)[path] * 0.99**20, rtol=2e-6)
        else:
            np.testing.assert_array_equal(leaf, flat(params)[path])


def test_state_is_twice_the_parameters():
    params, _ = problem()
    for clip in (0.0, 1.0):
        state = adamw(b1=0.9, b2=0.99, eps=1e-8, clip=clip).init(params)
        moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        assert sum(leaf.nbytes for leaf in moments) == 2 * size
        assert len(jax.tree.leaves(state)) - len(moments) == 1  # the count


RATES = np.float32(LR[:6])
PLAIN = {"blocks": {"up": {"kernel": (3, 128, 130), "bias": (3, 130)}}, "embedding": (9, 8), "norm": {"scale": (8,)}}
NAMES = {  # name: (the same of optax, at a learning rate, whether each layer is a leaf of its own there)
    "adamw": (partial(optax.adam, b1=0.9, b2=0.99, eps=1e-8), False),
    "lion": (partial(optax.lion, b1=0.9, b2=0.99, weight_decay=0.0), False),
    "sgd": (partial(optax.sgd, momentum=0.95), False),
    "adafactor": (partial(optax.adafactor, min_dim_size_to_factor=128), True),
    "optax:lamb": (partial(optax.lamb, b1=0.9, b2=0.99, eps=1e-8), True),
    "optax:adan": (partial(optax.adan, b1=0.9, b2=0.99, eps=1e-8), True),
    "optax:adopt": (partial(optax.contrib.adopt, b1=0.9, b2=0.99, eps=1e-8), True),
    "optax:rmsprop": (partial(optax.rmsprop, eps=1e-8), True),
}


def drawn(shapes, seed, size=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: np.float32(size * rng.normal(size=s)), shapes, is_leaf=lambda s: isinstance(s, tuple))


def named(params, **changes):
    return transformation(default().optim.to_dict() | changes, params)


def steps(optimiser, params, grads, decay=0.0):
    """The parameters after a step of each rate."""
    state, update = optimiser.init(params), jax.jit(optimiser.update)
    for lr, gradient in zip(RATES, grads, strict=True):
        updates, state = update(gradient, state, params, lr=lr, decay=np.float32(decay))
        params = optax.apply_updates(params, updates)
    return params


MATRIX = ("kernel", "embedding")


def of_optax(make, params, grads, clip=0.0, decay=0.0, layers=None):
    """The same with optax alone: made anew at every rate, which its state does not hold. layers: of stacked parameters,
    each of which it gets as a tree of its own; all shrink but the biases and scales."""

    def split(tree):
        return tree | {"blocks": [jax.tree.map(lambda x, i=i: x[i], tree["blocks"]) for i in range(layers)]}

    params, grads = (params, grads) if layers is None else (split(params), [split(g) for g in grads])
    state, step = make(1.0).init(params), jax.jit(lambda lr, *arguments: make(lr).update(*arguments))
    for lr, gradient in zip(RATES, grads, strict=True):
        if clip:
            gradient, _ = optax.clip_by_global_norm(clip).update(gradient, optax.EmptyState())
        updates, state = step(lr, gradient, state, params)
        shrunk = jax.tree_util.tree_map_with_path(lambda k, p: decay * p * (k[-1].key in MATRIX), params)
        params = jax.tree.map(lambda p, u, s: p + u - s, params, updates, shrunk)
    if layers is None:
        return params
    return params | {"blocks": jax.tree.map(lambda *x: np.stack(x), *params["blocks"])}


@pytest.mark.parametrize("name", NAMES)
def test_an_optimiser_by_name_is_optax_at_the_rate_of_each_step(name):
    """Gradients clipped to 1; weights, not biases and scales, shrink by 0.01 a step whatever the rate. Per-layer norms
    and ratios are those of optax that sees each layer's parameters as leaves of their own."""
    make, apart = NAMES[name]
    params, grads = drawn(PLAIN, 0), [drawn(PLAIN, 1 + i, 0.1 + 0.1 * i) for i in range(len(RATES))]
    clip = 0.0 if name == "adamw" else 1.0
    found = steps(named(params, name=name, clip=clip), params, grads, decay=0.01)
    wanted = of_optax(make, params, grads, clip, decay=0.01, layers=3 if apart else None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, wanted)


def test_layers_are_normalised_one_by_one():
    """As a stack they would not be: the test above can tell."""
    params, grads = drawn(PLAIN, 0), [drawn(PLAIN, 1 + i) for i in range(len(RATES))]
    one_by_one, stack = (of_optax(optax.lamb, params, grads, layers=n)["blocks"]["up"]["kernel"] for n in (3, None))
    assert np.abs(one_by_one - stack).max() > 1e-3


def orthogonalised(matrix, steps=5, a=3.4445, b=-4.775, c=2.0315):
    """Newton-Schulz of one matrix in float64 (K. Jordan, Muon, 2024)."""
    x = np.float64(matrix)
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x


SHAPES_OF_MUON = {
    "blocks": {"up": {"kernel": (3, 8, 12)}, "experts": {"down": {"kernel": (2, 4, 12, 8)}}, "norm": {"scale": (3, 8)}},
    "blocks_3": {"up": {"kernel": (1, 16, 6)}}, "embedding": (9, 8), "position_embedding": (7, 8), "head": (8, 9),
}  # fmt: skip
HIDDEN = {("blocks", "up", "kernel"), ("blocks", "experts", "down", "kernel"), ("blocks_3", "up", "kernel")}


def test_muon_orthogonalises_every_matrix_by_itself():
    """Of layers, of experts and, mapped over, of replicas; its momentum 0.95 is Nesterov's. The root mean square of an
    update is near 0.2 of the learning rate (2502.16982, equation 4): 0.2 sqrt(max(in, out)) of the orthogonal matrix.
    All other parameters have optax's Adam with Nesterov momentum."""
    shapes = jax.tree.map(lambda s: (2, *s), SHAPES_OF_MUON, is_leaf=lambda s: isinstance(s, tuple))  # two replicas
    params, grads = drawn(shapes, 0), [drawn(shapes, 1 + i) for i in range(2)]
    one = jax.tree.map(lambda p: p[0], params)
    optimiser = named(one, name="muon", clip=0.0, b2=0.97)
    state, found = jax.vmap(optimiser.init)(params), []
    update = jax.jit(jax.vmap(lambda g, s, p: optimiser.update(g, s, p, lr=0.5, decay=0.0)))
    for gradient in grads:
        updates, state = update(gradient, state, params)
        found.append(flat(updates))
    beta, (first, second) = 0.95, (flat(g) for g in grads)
    for path in HIDDEN:
        g1, g2 = np.float64(first[path]), np.float64(second[path])
        m1 = (1 - beta) * g1
        m2 = beta * m1 + (1 - beta) * g2
        look_ahead = beta * m2 / (1 - beta**3) + (1 - beta) * g2 / (1 - beta**2)
        size = 0.2 * np.sqrt(max(g1.shape[-2:]))
        for i in np.ndindex(g1.shape[:-2]):
            np.testing.assert_allclose(found[0][path][i], -0.5 * size * orthogonalised(g1[i]), atol=2e-5)
            np.testing.assert_allclose(found[1][path][i], -0.5 * size * orthogonalised(look_ahead[i]), atol=2e-5)
    adam = optax.adam(0.5, b1=0.9, b2=0.97, eps=1e-8, nesterov=True)
    wanted, _ = adam.update(grads[0], adam.init(params))
    for path in flat(params).keys() - HIDDEN:
        np.testing.assert_allclose(found[0][path], flat(wanted)[path], rtol=2e-6)


def test_hidden_matrices_of_every_family():
    """The kernels of blocks: all parameters but embeddings, head and vectors."""
    for family in ("chinchilla", "gpt2", "ngpt", "qwen3_moe"):
        sizes = SIZES[family]
        c = FrozenConfigDict(model(family, next(iter(sizes)), num_layers=2))
        params = jax.eval_shape(partial(initial_params, Decoder(c)), np.uint32(0))
        for path, hidden in flat(hidden_matrices(params)).items():
            assert hidden == (path[0] == "blocks" and path[-1] == "kernel"), (family, path)
    others = drawn({"head": {"kernel": (2, 2)}, "embedder": {"kernel": (2, 2)}, "multi_head": {"kernel": (2, 2)}}, 0)
    others["query"] = {"kernel": np.ones((4, 2, 2))}  # as flax has it, with an axis of heads
    assert [path[0] for path, hidden in flat(hidden_matrices(others)).items() if hidden] == ["multi_head"]


REFUSED = {
    "adm": ({"name": "adm"}, "optim.name='adm': must be one of adamw, muon, lion, sgd, adafactor, or optax:NAME"),
    "no such": ({"name": "optax:adm"}, "optim.name=optax:adm: optax .* has none of that name"),
    "no rate": ({"name": "optax:clip"}, "optim.name=optax:clip: must need a learning_rate and nothing else"),
    "needs more": ({"name": "optax:dpsgd"}, "must need a learning_rate and nothing else"),
    "rate at the start": ({"name": "optax:rprop"}, "optim.name=optax:rprop: its updates do not depend on the learning"),
    "needs the loss": ({"name": "optax:lbfgs"}, "optim.name=optax:lbfgs: cannot train with gradients alone"),
    "b1 of sgd": ({"name": "sgd", "b1": 0.8}, "optim.b1=0.8: does nothing with optim.name=sgd; must be 0.9"),
    "eps of lion": ({"name": "lion", "eps": 1e-6}, "optim.eps=1e-06: does nothing with optim.name=lion"),
    "eps of adafactor": ({"name": "adafactor", "eps": 1e-6}, "optim.eps=1e-06: does nothing"),
    "b2 of rmsprop": ({"name": "optax:rmsprop", "b2": 0.9}, "optim.b2=0.9: does nothing with optim.name=optax:rmsprop"),
    "momentum of adamw": ({"momentum": 0.5}, "optim.momentum=0.5: does nothing with optim.name=adamw; must be 0.95"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_keys_and_names_that_would_do_nothing_are_refused(case):
    changes, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        named(drawn(PLAIN, 0), **changes)


@pytest.mark.parametrize("changes", [{"name": "muon"}, {"weight_decay": 0.1}], ids=["muon", "decay"])
def test_parameters_of_other_names_are_refused_where_names_decide(changes):
    with pytest.raises(InputError, match="needs parameters whose paths end in kernel"):
        named({"weight": np.ones((2, 2), np.float32)}, **changes)
    named({"weight": np.ones((2, 2), np.float32)}, weight_decay=0.1, decay_mask="all")


def by_keyword():
    adam = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-8)

    def update(grads, state, params=None, *, lr):
        del params
        directions, state = adam.update(grads, state)
        return jax.tree.map(lambda d: -lr * d, directions), state

    return optax.GradientTransformationExtraArgs(adam.init, update)


GIVEN = {
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.0, b1=0.9, b2=0.99),
    "injected, in a chain": lambda: optax.chain(
        optax.clip(1e9), optax.inject_hyperparams(optax.adam)(learning_rate=1.0, b2=0.99)
    ),
    "by keyword": by_keyword,
    "by keyword, in a chain": lambda: optax.chain(optax.clip(1e9), by_keyword()),
    "our own": lambda: adamw(b1=0.9, b2=0.99, eps=1e-8),
}


@pytest.mark.parametrize("case", GIVEN)
def test_a_given_transformation_follows_the_rates(case):
    params, grads = drawn(PLAIN, 0), [drawn(PLAIN, 1 + i) for i in range(len(RATES))]
    found = steps(transformation(default().optim, params, GIVEN[case]()), params, grads, decay=0.01)
    wanted = of_optax(NAMES["adamw"][0], params, grads, clip=1.0, decay=0.01)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, wanted)


@pytest.mark.parametrize(
    "given",
    [
        optax.adam(1e-3),
        optax.adam(optax.cosine_decay_schedule(1.0, 10)),
        optax.inject_hyperparams(optax.adam)(optax.cosine_decay_schedule(1.0, 10)),
        optax.inject_hyperparams(optax.scale_by_adam)(b1=0.9),
        optax.chain(optax.scale_by_adam(), optax.scale(-1e-3)),
    ],
    ids=["a number", "its own schedule", "its own schedule, injected", "another hyper-parameter", "a chain"],
)
def test_a_given_transformation_without_a_learning_rate_is_refused(given):
    with pytest.raises(InputError, match=r"optimiser: its updates do not depend on the learning rate, .*inject_hyper"):
        transformation(default().optim, drawn(PLAIN, 0), given)
    with pytest.raises(InputError, match=r"optim\.b2=0\.5: does nothing with optimiser"):
        transformation(default().optim.to_dict() | {"b2": 0.5}, drawn(PLAIN, 0), by_keyword())

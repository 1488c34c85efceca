"""AdamW against a float64 AdamW in numpy, and against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.optim.inner import adamw, matrices

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

"""The outer step against numbers worked by hand, and against the algorithms that it contains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.optim import diloco
from jaxlab.optim.inner import adamw

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 5)).astype(np.float32), RNG.normal(size=(64, 3)).astype(np.float32)
START = {"w": jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), "b": jnp.zeros(3)}


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"] - y) ** 2)


def replicated(params, m):
    return jax.tree.map(lambda p: jnp.stack([p] * m), params)


def batches(steps, m, size=8):
    """[steps, m, size] rows of the data, in order."""
    rows = np.arange(steps * m * size).reshape(steps, m, size) % len(X)
    return X[rows], Y[rows]


def stepper(optimiser, **hypers):
    """(initial state of all replicas, one inner step on each of them)."""

    def one(params, opt_state, x, y):
        updates, opt_state = optimiser.update(jax.grad(loss)(params, (x, y)), opt_state, params, **hypers)
        return optax.apply_updates(params, updates), opt_state

    return jax.vmap(optimiser.init), jax.jit(jax.vmap(one))


ADAMW = stepper(adamw(b1=0.9, b2=0.99, eps=1e-8, clip=1.0, decay_mask="all"), lr=0.05, decay=0.01)
SGD = stepper(optax.sgd(0.1))


def trained(m, steps, sync_every, outer, *, inner=ADAMW, data=None, **hypers):
    """(global parameters, replicas) after `steps` of a plain loop that synchronises after every `sync_every`."""
    (start, step_all), (x, y) = inner, data or batches(steps, m)
    replicas, state = replicated(START, m), diloco.init(START, outer)
    opt_state = start(replicas)
    for step in range(steps):
        replicas, opt_state = step_all(replicas, opt_state, x[step], y[step])
        if (step + 1) % sync_every == 0:
            state, replicas = diloco.outer_step(state, replicas, outer, **hypers)
    return state.params, replicas


def assert_close(found, wanted, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), found, wanted)


def test_two_rounds_worked_by_hand():
    """Two replicas of two weights, mu 0.9, lr 0.5. Round 1: Delta = (0.2, 0.4), v = Delta, step 0.5 (1.9 Delta) =
    (0.19, 0.38). Round 2: Delta = (0.1, -0.2), v = (0.28, 0.16), step 0.5 (0.1 + 0.252, -0.2 + 0.144)."""
    outer = diloco.nesterov(0.9)
    state = diloco.init(jnp.array([1.0, 2.0]), outer)
    state, replicas = diloco.outer_step(state, jnp.array([[0.9, 1.4], [0.7, 1.8]]), outer, lr=0.5)
    np.testing.assert_allclose(state.params, [0.81, 1.62], rtol=1e-6)
    np.testing.assert_array_equal(replicas, [state.params] * 2)
    moved = replicas - jnp.array([[0.2, -0.1], [0.0, -0.3]])
    state, replicas = diloco.outer_step(state, moved, outer, lr=0.5)
    np.testing.assert_allclose(state.params, [0.81 - 0.176, 1.62 + 0.028], rtol=1e-6)
    np.testing.assert_array_equal(replicas, [state.params] * 2)


def test_the_recurrence_is_that_of_optax():
    ours, theirs = diloco.nesterov(0.9), optax.sgd(0.7, momentum=0.9, nesterov=True)
    a, b = diloco.init(START, ours), diloco.init(START, theirs)
    for i in range(4):
        moved = jax.tree.map(lambda p, i=i: p[None] + 0.1 * (i + 1) * jnp.ones((3, *p.shape)), START)
        a, _ = diloco.outer_step(a, moved, ours, lr=0.7)
        b, _ = diloco.outer_step(b, moved, theirs)
    assert_close(a.params, b.params)


def test_one_replica_that_is_taken_over_is_data_parallel_training():
    """M = 1, lr 1, no momentum, any H. theta - (theta - theta_m) is theta_m up to one rounding of the difference,
    which the later steps carry on: 1e-6 after 12 steps."""
    plain = trained(1, 12, 100, diloco.nesterov(0.0), lr=1.0)[1]
    for sync_every in (1, 3, 4):
        assert_close(trained(1, 12, sync_every, diloco.nesterov(0.0), lr=1.0)[1], plain)


def test_averaging_after_every_sgd_step_is_one_large_batch():
    """Inner SGD, H = 1, lr 1, no momentum, no clipping: 4 replicas of 8 sequences against one of 32."""
    x, y = batches(6, 4)
    small = trained(4, 6, 1, diloco.nesterov(0.0), inner=SGD, data=(x, y), lr=1.0)[0]
    large = trained(
        1, 6, 1, diloco.nesterov(0.0), inner=SGD, data=(x.reshape(6, 1, 32, 5), y.reshape(6, 1, 32, 3)), lr=1.0
    )
    assert_close(small, large[0])


def test_replicas_of_identical_batches_are_one_replica():
    x, y = batches(8, 1)
    same = tuple(np.repeat(v, 4, axis=1) for v in (x, y))
    one = trained(1, 8, 4, diloco.nesterov(), data=(x, y), lr=0.6)[0]
    assert_close(trained(4, 8, 4, diloco.nesterov(), data=same, lr=0.6)[0], one)


def test_one_round_over_the_whole_run_is_the_mean_of_the_models():
    outer = diloco.nesterov(0.0)
    souped, _ = trained(3, 6, 6, outer, lr=1.0)
    _, apart = trained(3, 6, 100, outer, lr=1.0)
    assert_close(souped, jax.tree.map(lambda r: r.mean(0), apart))


def test_lookahead_is_one_replica_without_momentum():
    slow, _ = trained(1, 4, 4, diloco.nesterov(0.0), lr=0.5)
    _, fast = trained(1, 4, 100, diloco.nesterov(0.0), lr=0.5)
    assert_close(slow, jax.tree.map(lambda s, f: s + 0.5 * (f[0] - s), START, fast))


def test_the_inner_state_is_kept_and_theta_rests_between_rounds():
    """Replicas differ between rounds, and the global parameters are those of the last one."""
    outer = diloco.nesterov()
    after_four, _ = trained(2, 4, 4, outer, lr=0.6)
    after_seven, replicas = trained(2, 7, 4, outer, lr=0.6)
    jax.tree.map(np.testing.assert_array_equal, after_four, after_seven)
    assert not np.allclose(replicas["w"][0], replicas["w"][1])


def test_a_lost_replica_leaves_the_mean_and_rejoins():
    """What it holds is not read, even NaN, and it goes on from the global parameters."""
    outer, state = diloco.nesterov(0.0), diloco.init(START, diloco.nesterov(0.0))
    moved = jax.tree.map(lambda p: jnp.stack([p + 1, p + 3, p * jnp.nan]), START)
    state, replicas = diloco.outer_step(state, moved, outer, weights=jnp.array([1, 1, 0]), lr=1.0)
    assert_close(state.params, jax.tree.map(lambda p: p + 2, START))
    jax.tree.map(lambda r, t: np.testing.assert_array_equal(r, [t] * 3), replicas, state.params)
    unmoved, _ = diloco.outer_step(state, replicas, outer, weights=jnp.zeros(3), lr=1.0)
    jax.tree.map(np.testing.assert_array_equal, unmoved.params, state.params)


@pytest.mark.parametrize("average", [diloco.mean, diloco.radial_directional])
def test_a_lost_replica_counts_in_no_average(average):
    deltas = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)}
    with_lost = {"w": jnp.concatenate([deltas["w"], jnp.full((1, 4), jnp.nan)])}
    found = average(with_lost, jnp.array([1.0, 1, 1, 0]))
    assert_close(found, average(deltas, jnp.ones(3)))


def test_weights_are_tokens():
    deltas = jnp.asarray(RNG.normal(size=(3, 7)), jnp.float32)
    tokens = np.array([100.0, 300.0, 50.0])
    np.testing.assert_allclose(
        diloco.mean(deltas, jnp.asarray(tokens)), np.average(deltas, axis=0, weights=tokens), rtol=1e-5
    )


def test_radial_directional_keeps_the_length():
    """Of orthogonal changes of lengths 3 and 5: length 4, in the direction of the mean of the unit vectors."""
    found = diloco.radial_directional(jnp.array([[3.0, 0, 0], [0, 5.0, 0]]), jnp.ones(2))
    np.testing.assert_allclose(found, [4 / np.sqrt(2), 4 / np.sqrt(2), 0], rtol=1e-6)
    np.testing.assert_array_equal(diloco.radial_directional(jnp.zeros((2, 3)), jnp.ones(2)), np.zeros(3))


def test_small_changes_of_bfloat16_replicas_are_not_lost():
    """Differences are taken in float32: the mean of two neighbours of 1 in bfloat16 is exact."""
    replicas = jnp.array([[1.0078125], [1.015625]], jnp.bfloat16)
    delta = diloco.outer_gradient(jnp.ones(1, jnp.bfloat16), replicas)
    assert delta.dtype == jnp.float32
    np.testing.assert_array_equal(delta, [-0.01171875])


def test_diagnostics_are_those_of_flat_vectors():
    moved = jax.tree.map(lambda p: p + jnp.asarray(RNG.normal(size=(4, *p.shape)), jnp.float32), START)
    found = diloco.diagnostics(START, moved)
    flat = np.concatenate([np.asarray(START[k] - moved[k], np.float64).reshape(4, -1) for k in ("w", "b")], axis=1)
    norms = np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(found["delta_norm"], norms, rtol=1e-5)
    np.testing.assert_allclose(found["cosine"], flat @ flat.T / np.outer(norms, norms), atol=1e-5)


MODEL = {
    "blocks": {"kernel": jnp.asarray(RNG.normal(size=(5, 2, 3)), jnp.float32)},
    "embedding": jnp.asarray(RNG.normal(size=(7, 2)), jnp.float32),
}


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 5), how=st.sampled_from(["strided", "sequential"]))
def test_every_layer_is_in_one_fragment(count, how):
    parts = diloco.fragments(MODEL, count, how)
    layers = np.concatenate([part["blocks"]["kernel"] for part in parts])
    assert sorted(layers) == list(range(5))
    assert [part["embedding"] for part in parts] == [True] + [False] * (count - 1)
    back = jax.tree.map(jnp.zeros_like, MODEL)
    for part in parts:
        back = diloco.put(back, part, diloco.take(MODEL, part))
    jax.tree.map(np.testing.assert_array_equal, back, MODEL)


def test_fragments_one_after_the_other_are_a_whole_step():
    """Streaming without delay: the outer step of every fragment, each with its own momentum, equals one of all."""
    outer = diloco.nesterov()
    moved = jax.tree.map(lambda p: p + jnp.asarray(RNG.normal(size=(2, *p.shape)), jnp.float32), MODEL)
    whole, _ = diloco.outer_step(diloco.init(MODEL, outer), moved, outer, lr=0.6)
    theta = MODEL
    for part in diloco.fragments(MODEL, 3):
        state = diloco.init(diloco.take(theta, part), outer)
        state, _ = diloco.outer_step(state, diloco.take(moved, part, axis=1), outer, lr=0.6)
        theta = diloco.put(theta, part, state.params)
    assert_close(theta, whole.params)


def test_mixing_keeps_a_share_of_the_local_progress():
    outer = diloco.nesterov(0.0)
    state = diloco.init(jnp.zeros(2), outer)
    state, replicas = diloco.apply(state, jnp.array([[1.0, 2], [3, 4]]), jnp.array([-1.0, -1]), outer, mix=0.25, lr=2.0)
    np.testing.assert_array_equal(state.params, [2.0, 2])
    np.testing.assert_array_equal(replicas, [[1.75, 2.0], [2.25, 2.5]])


def test_fragments_take_turns():
    """H = 100, P = 2: the first at 100, 200, ..., the second at 150, 250, ... (the example of 2501.18512)."""
    turns = {step: found for step in range(1, 301) if (found := diloco.due(step, 100, 2))}
    assert turns == {100: [0], 150: [1], 200: [0], 250: [1], 300: [0]}
    assert [step for step in range(1, 13) if diloco.due(step, 4, 1)] == [4, 8, 12]


@pytest.mark.parametrize(
    ("count", "how", "says"),
    [(0, "strided", "count=0"), (6, "strided", "must be 1 to 5"), (2, "random", "how='random'")],
)
def test_bad_fragments(count, how, says):
    with pytest.raises(ValueError, match=says):
        diloco.fragments(MODEL, count, how)

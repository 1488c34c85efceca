"""The outer step against numbers worked by hand, and against the algorithms that it contains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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


def test_mixing_keeps_a_share_of_the_local_progress():
    outer = diloco.nesterov(0.0)
    state = diloco.init(jnp.zeros(2), outer)
    state, replicas = diloco.apply(state, jnp.array([[1.0, 2], [3, 4]]), jnp.array([-1.0, -1]), outer, mix=0.25, lr=2.0)
    np.testing.assert_array_equal(state.params, [2.0, 2])
    np.testing.assert_array_equal(replicas, [[1.75, 2.0], [2.25, 2.5]])


def test_any_optax_transformation_is_an_outer_one():
    """Adam: optax's own, fed the same mean changes as gradients; its state and bias correction live in Outer."""
    outer = optax.adam(0.05)
    state, replicas = diloco.init(START, outer), replicated(START, 2)
    theta, opt_state = START, outer.init(START)
    for _ in range(3):
        moves = jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=(2, *p.shape)), jnp.float32), START)
        state, replicas = diloco.outer_step(state, jax.tree.map(jnp.subtract, replicas, moves), outer)
        updates, opt_state = outer.update(jax.tree.map(lambda d: d.mean(0), moves), opt_state)
        theta = optax.apply_updates(theta, updates)
    assert_close(state.params, theta, atol=1e-5)


def eager(m, rounds, sync_every, data, outer, **hypers):
    """(mean of the theta_m, state) after `rounds` rounds of eager updates in a plain loop."""
    (start, step_all), (x, y) = ADAMW, data
    state, replicas = diloco.eager_init(START, outer, m), replicated(START, m)
    opt_state = start(replicas)
    for step in range(rounds * sync_every):
        replicas, opt_state = step_all(replicas, opt_state, x[step], y[step])
        if (step + 1) % sync_every == 0:
            state, replicas = diloco.eager_step(state, replicas, outer, **hypers)
            jax.tree.map(np.testing.assert_array_equal, replicas, state.params)
    return jax.tree.map(lambda p: p.mean(0), state.params), state


def test_one_eager_replica_is_diloco_with_one():
    outer = diloco.nesterov()
    found, state = eager(1, 3, 2, batches(6, 1), outer, lr=0.6)
    assert_close(found, trained(1, 6, 2, outer, lr=0.6)[0])
    jax.tree.map(lambda others: np.testing.assert_array_equal(others, np.zeros_like(others)), state.others)


def test_eager_replicas_of_identical_batches_stay_identical():
    same = tuple(np.repeat(v, 2, axis=1) for v in batches(6, 1))
    mean, state = eager(2, 3, 2, same, diloco.nesterov(), lr=0.6)
    jax.tree.map(lambda p, m: np.testing.assert_allclose(p, [m] * 2, rtol=1e-6, atol=1e-7), state.params, mean)


def test_three_eager_rounds_worked_by_hand():
    """A linear model w1 x1 + w2 x2 on one example a replica, x = (1, 0) and (0, 2), targets 1 and 2, from w = 0, one
    inner SGD step of rate 0.5 on half the squared error; outer rate 1, mu 0.5 (all numbers are exact in binary).

    Replica 1 moves its first weight half way to 1, replica 2 its second by -0.5 * 2 (2 w2 - 2) = 2 - 2 w2.
    Delta~_1 = (d_1 / 2, previous d_2 / 2), Delta~_2 = (previous d_1 / 2, d_2 / 2), where d_1 = -(1 - w1) / 2 of
    replica 1 and d_2 = -(2 - 2 w2) of replica 2; v <- v / 2 + Delta~, theta_m <- theta_m - Delta~ - v / 2.

    round 1, d = (-1/2, -2): Delta~ = v = (-1/4, 0) and (0, -1), theta = (3/8, 0) and (0, 3/2).
    round 2, d = (-5/16, 1): Delta~ = (-5/32, -1) and (-1/4, 1/2), v = (-9/32, -1) and (-1/4, 0).
    round 3, d = (-21/128, 0): Delta~ = (-21/256, 1/2) and (-5/32, 0), v = (-57/256, 0) and (-9/32, 0).
    """
    x, y = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([1.0, 2.0])
    outer = diloco.nesterov(0.5)
    state = diloco.eager_init(jnp.zeros(2), outer, 2)
    replicas = state.params
    expected = [
        [[3 / 8, 0], [0, 3 / 2]],
        [[43 / 64, 3 / 2], [3 / 8, 1]],
        [[443 / 512, 1], [43 / 64, 1]],
    ]
    for theta in expected:
        replicas -= 0.5 * x * (jnp.sum(x * replicas, axis=1) - y)[:, None]
        state, replicas = diloco.eager_step(state, replicas, outer, lr=1.0)
        np.testing.assert_array_equal(state.params, theta)


def test_the_mean_of_eager_replicas_is_one_outer_sgd_of_the_mean_gradients():
    """By linearity, with Delta(t) / M + (1 - 1/M) Delta(t-1); and only what arrives of the others is used of them."""
    outer, moves = diloco.nesterov(0.9), RNG.normal(size=(4, 3, 5)).astype(np.float32)
    state = diloco.eager_init(jnp.zeros(5), outer, 3)
    theta, velocity, before = np.zeros(5), np.zeros(5), np.zeros(5)
    for delta in moves:
        state, _ = diloco.eager_step(state, state.params - delta, outer, exchange=lambda d: 2 * d, lr=0.3)
        mixed = delta.mean(0) / 3 + 2 * (1 - 1 / 3) * before
        velocity, before = 0.9 * velocity + mixed, delta.mean(0)
        theta -= 0.3 * (mixed + 0.9 * velocity)
    np.testing.assert_allclose(state.params.mean(0), theta, rtol=1e-4, atol=1e-5)


def test_a_change_under_way_is_applied_to_the_parameters_it_was_taken_from():
    """Overlap: sent, two more inner steps, received. theta = 4, replicas at 3 and 1: Delta = 2; they go on to 2 and 0;
    lr 1: theta = 2, and mixed half and half the replicas are 2 and 1."""
    outer = diloco.nesterov(0.0)
    state = diloco.init(jnp.array([4.0]), outer)
    delta = diloco.outer_gradient(state.params, jnp.array([[3.0], [1.0]]))
    state, replicas = diloco.apply(state, jnp.array([[2.0], [0.0]]), delta, outer, mix=0.5, lr=1.0)
    np.testing.assert_array_equal(state.params, [2.0])
    np.testing.assert_array_equal(replicas, [[2.0], [1.0]])

"""Accumulation up to the scheduled batch against one big batch, and where optax.MultiSteps differs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.config import InputError
from jaxlab.optim import batch_growth as growth

PARAMS = {"w": np.float32([[0.3, -0.2], [0.5, 1.0]]), "b": np.float32([0.1, 0.2])}


def inner():
    return optax.adamw(0.1, weight_decay=0.1)


def compiled(transform):
    """update(grads, state, params, tokens=) and the parameters after it."""

    def step(grads, state, params, **tokens):
        updates, state = transform.update(grads, state, params, **tokens)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


def tree(gradients):
    """Gradients [..., 6] as trees of PARAMS's shapes, float32."""
    return {
        "w": np.float32(gradients[..., :4]).reshape(*gradients.shape[:-1], 2, 2),
        "b": np.float32(gradients[..., 4:]),
    }


def micro_batches(counts, seed=0):
    """A gradient for each token, float64, and its mean over micro-batches of `counts` tokens."""
    each = np.random.default_rng(seed).normal(1, 2, (sum(counts), 6))
    return each, [part.mean(0) for part in np.split(each, np.cumsum(counts)[:-1])]


def test_one_big_batch():
    """k = 1 to 7 micro-batches of ragged token counts make the update of the mean over all their tokens, and only the
    last changes anything; to 1e-6 relative or 1e-7 of parameters near 1, a few roundings of float32."""
    transform, expected_step = growth.accumulate(inner(), {0: 28}), compiled(inner())
    step = compiled(transform)
    for k in range(1, 8):
        counts = [*[3, 1, 7, 2, 5, 4][: k - 1], 28 - sum([3, 1, 7, 2, 5, 4][: k - 1])]
        each, means = micro_batches(counts, k)
        params, state = PARAMS, transform.init(PARAMS)
        for round_ in range(2):
            before = state.inner
            for i, (grads, n) in enumerate(zip(means, counts, strict=True)):
                jax.tree.map(np.testing.assert_array_equal, state.inner, before)
                new, state = step(tree(grads), state, params, tokens=np.int32(n))
                if i < k - 1:
                    jax.tree.map(np.testing.assert_array_equal, new, params)
                params = new
            assert growth.consumed(state) == (round_ + 1) * sum(counts)
        expected, big = PARAMS, inner().init(PARAMS)
        for _ in range(2):
            expected, big = expected_step(tree(each.mean(0)), big, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), params, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), state.inner, big)


def test_multi_steps_weighs_micro_batches_alike():
    """On ragged counts optax.MultiSteps takes the mean of means: off by far more than rounding."""
    counts = [3, 1, 7, 2]
    each, means = micro_batches(counts)
    expected = tree(each.mean(0))
    ours, theirs = growth.accumulate(optax.identity(), {0: 13}), optax.MultiSteps(optax.identity(), 4)
    a, b, update, other = ours.init(PARAMS), theirs.init(PARAMS), jax.jit(ours.update), jax.jit(theirs.update)
    for grads, n in zip(means, counts, strict=True):
        found, a = update(tree(grads), a, tokens=n)
        alike, b = other(tree(grads), b)
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6)
    assert np.abs(alike["w"] - expected["w"]).max() > 0.1
    np.testing.assert_allclose(alike["w"], tree(np.mean(means, 0))["w"], rtol=1e-6)


def test_multi_steps_counts_steps_not_tokens():
    """2 tokens a batch, 6 from token 8 on, in micro-batches of 1, 2 or 3 tokens. The schedule that optax can follow, of
    its own steps and of the mean count of 2, updates elsewhere."""
    counts = [1, 1, 3, 3, 1, 2, 3, 3, 3, 1, 2]
    transform = growth.accumulate(optax.identity(), {0: 2, 8: 6})
    multi = optax.MultiSteps(optax.identity(), lambda step: jnp.where(step < 4, 1, 3))
    a, b, update, other = transform.init(PARAMS), multi.init(PARAMS), jax.jit(transform.update), jax.jit(multi.update)
    ours, theirs = [], []
    ones = jax.tree.map(np.ones_like, PARAMS)
    for i, n in enumerate(counts):
        updates, a = update(ones, a, tokens=n)
        ours += [i] if updates["b"][0] else []
        updates, b = other(ones, b)
        theirs += [i] if updates["b"][0] else []
    # by hand: batches end at 2, 5 and 8 tokens; then 1 + 2 + 3, 3 + 3 and what is left
    assert ours == [1, 2, 3, 6, 8]
    assert theirs == [0, 1, 2, 3, 6, 9]


def test_no_nan_from_an_empty_micro_batch():
    """The mean of no tokens is NaN: not read here. MultiSteps multiplies it by zero: it never recovers."""
    transform, other = growth.accumulate(inner(), {0: 4}), optax.MultiSteps(inner(), 3)
    step, both = compiled(transform), compiled(other)
    params, state, alike, b = PARAMS, transform.init(PARAMS), PARAMS, other.init(PARAMS)
    empty, ones = jax.tree.map(lambda p: np.full_like(p, np.nan), PARAMS), jax.tree.map(np.ones_like, PARAMS)
    for n in (2, 0, 2, 2, 2, 2):
        grads = ones if n else empty
        params, state = step(grads, state, params, tokens=np.int32(n))
        alike, b = both(grads, b, alike)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state)))
    assert growth.consumed(state) == 10
    assert np.isnan(alike["w"]).all()
    assert np.isnan(b.acc_grads["w"]).all()


def test_inner_runs_only_on_full_batches():
    """Counted by a callback; and an inner optimiser that divides by the gradient's norm makes 0 / 0 of a first
    micro-batch without signal, which MultiSteps lets through."""
    runs = []

    def normalise(grads, state, params=None):
        jax.debug.callback(lambda: runs.append(1))
        return jax.tree.map(lambda g: g / optax.tree.norm(grads), grads), state

    normalised = optax.GradientTransformation(lambda params: optax.EmptyState(), normalise)
    transform, other = growth.accumulate(normalised, {0: 6}), optax.MultiSteps(normalised, 3)
    step, both = compiled(transform), compiled(other)
    zeros, ones = (jax.tree.map(make, PARAMS) for make in (np.zeros_like, np.ones_like))
    params, state, alike, b = PARAMS, transform.init(PARAMS), PARAMS, other.init(PARAMS)
    for grads in (zeros, ones, ones, zeros, ones, ones):
        params, state = step(grads, state, params, tokens=np.int32(2))
    jax.block_until_ready(params)
    jax.effects_barrier()
    assert len(runs) == 2
    np.testing.assert_allclose(params["b"], PARAMS["b"] + 2 / np.sqrt(6), rtol=1e-6)
    alike, b = both(zeros, b, alike)
    assert np.isnan(alike["b"]).all()


def test_counts_are_exact_beyond_32_bits():
    """Micro-batches of 2^31 - 1 tokens to 3 2^32; the size changes at 2^33 + 5, on the step that starts there."""
    n, stages = 2**31 - 1, {0: 1, 2**32 + 7: 2, 2**33 + 5: 2**31 - 1}
    transform = growth.accumulate(optax.identity(), stages, scales={0: 1.0, 2**32 + 7: 2.0, 2**33 + 5: 3.0})
    counts = np.array([n, n, 2, 6, 1, n, n - 11, 1, 10, n, 5, n], np.uint32)
    ones = jax.tree.map(np.ones_like, PARAMS)

    def one(state, tokens):
        updates, state = transform.update(ones, state, tokens=tokens)
        return state, updates["b"][0]

    state, found = jax.jit(lambda s, c: jax.lax.scan(one, s, c))(transform.init(PARAMS), counts)
    expected, at, filled = [], 0, 0
    for tokens in counts.tolist():
        start = max(s for s in stages if s <= at)
        filled += tokens
        full = filled >= stages[start]
        expected.append(float(full) * {0: 1, 2**32 + 7: 2, 2**33 + 5: 3}[start])
        at, filled = (at + filled, 0) if full else (at, filled)
    np.testing.assert_allclose(found, expected)
    assert {0, 1, 2, 3} <= set(expected)
    assert growth.consumed(state) == sum(counts.tolist())


def test_replicas_that_fill_at_different_times():
    """Under vmap with a count each, a replica is as it is alone, to a few roundings of float32."""
    transform = growth.accumulate(optax.sgd(0.5, momentum=0.9), {0: 4})
    counts = np.array([[4, 1, 3, 2, 2], [1, 0, 1, 2, 4]], np.int32)
    grads = tree(np.random.default_rng(0).normal(size=(2, 5, 6)))

    def run(grads, counts):
        def one(carry, x):
            params, state = carry
            updates, state = transform.update(x[0], state, params, tokens=x[1])
            return (optax.apply_updates(params, updates), state), updates

        return jax.lax.scan(one, (PARAMS, transform.init(PARAMS)), (grads, counts))

    (mapped, _), updates = jax.jit(jax.vmap(run))(grads, counts)
    alone, same = jax.jit(run), partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    for i in range(2):
        (expected, _), _ = alone(jax.tree.map(lambda g, i=i: g[i], grads), counts[i])
        jax.tree.map(lambda a, b, i=i: same(a[i], b), mapped, expected)
    assert (np.abs(updates["b"]).sum(-1) > 0).tolist() == [[1, 0, 1, 0, 1], [0, 0, 0, 1, 1]]


def test_dtypes():
    """bfloat16 gradients: sums in float32, the update and the inner state as without the wrapper."""
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS)
    plain, transform = inner(), growth.accumulate(inner(), {0: 4})
    state = jax.eval_shape(transform.init, params)
    updates, after = jax.eval_shape(partial(transform.update, tokens=2), params, state, params)
    assert (updates, after.inner) == jax.eval_shape(plain.update, params, plain.init(params), params)
    assert after == state
    assert after.sums["w"].dtype == jnp.float32


def test_scales_must_be_those_of_the_stages():
    with pytest.raises(InputError, match=r"scales from \[0, 5\] tokens: must be those of the stages, \[0, 7\]"):
        growth.accumulate(optax.identity(), {0: 2, 7: 4}, scales={0: 1.0, 5: 2.0})

"""The compiled step: micro-batches, several steps a call, replicas, and what it keeps and compiles."""

import warnings
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from jaxlab.config import default
from jaxlab.model.decoder import Decoder
from jaxlab.model.loss import objective
from jaxlab.optim.inner import adamw
from jaxlab.train.program import initial_params, initial_state
from jaxlab.train.state import State
from jaxlab.train.step import gradient_sums, inner_steps

SMALL = {"vocab_size": 29, "context": 12, "num_layers": 1, "d_model": 16, "num_heads": 2, "num_kv_heads": 2}
SMALL |= {"head_dim": 8, "d_ff": 24, "norm_eps": 0.03, "z_loss": 0.01, "positions": "learned", "qk_norm": False}
MODEL = Decoder(FrozenConfigDict(default().model.to_dict() | SMALL))
LOSS = objective(MODEL, 256)
OPTIMISER = adamw(b1=0.9, b2=0.99, eps=1e-8, clip=1.0)
STEP = jax.jit(inner_steps(LOSS, OPTIMISER, spmd_axis_name="replica"), donate_argnums=0)
START = {m: jax.jit(initial_state(OPTIMISER, replicas=m)) for m in (1, 2)}
GRADIENT = jax.jit(jax.grad(LOSS, has_aux=True))


@cache
def params():
    return jax.jit(initial_params, static_argnums=0)(MODEL, 0)


def start(replicas=1):
    return START[replicas](params())


def batches(*shape, seed=0):
    """Token ids [*shape, 13] of which every row is cut at another length."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 29, (*shape, 13)).astype(np.int32)
    return np.where(np.arange(13) < rng.integers(2, 14, (*shape, 1)), tokens, -1)


def hypers(n, scale=1.0):
    lr, weight_decay = np.linspace(0.02, 0.01, n), np.linspace(0.01, 0, n)
    return {"lr": np.float32(scale * lr), "weight_decay": np.float32(scale * weight_decay)}


def run(state, tokens, hypers, count=None):
    counts = len(tokens) if count is None else count, tokens.shape[2]
    return STEP(state, jnp.asarray(tokens), hypers, jnp.int32(counts))


def part(hypers, i):
    return {name: h[i : i + 1] for name, h in hypers.items()}


def assert_close(a, b, relative):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.abs(np.float64(x) - y).max() <= relative * np.abs(y).max()


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def first_replica(tree):
    return jax.tree.map(lambda x: x[0], tree)


def test_micro_batches_equal_one_batch():
    """Rows of 1 to 12 targets: a mean of micro-batch means would be off by tens of per cent."""
    params, rows = first_replica(start().params), batches(8)
    counts = [(rows[i : i + 2, 1:] >= 0).sum() for i in range(0, 8, 2)]
    assert max(counts) > 1.5 * min(counts)
    gradient = jax.jit(partial(gradient_sums, LOSS))
    whole = gradient(params, rows[None], 1)
    grads, sums = gradient(params, rows.reshape(4, 2, 13), 4)
    assert_close((grads, {name: sums[name] for name in whole[1]}), whole, 1e-5)  # float32 sums in another order
    assert_close(whole, GRADIENT(params, rows), 1e-6)
    assert whole[1]["tokens"] == (rows[:, 1:] >= 0).sum()


def test_a_smaller_batch_runs_the_same_program():
    """Micro-batches beyond the count are never looked at."""
    rows = batches(1, 1, 4, 2)
    few, metrics = run(start(), rows[:, :, :2], hypers(1))
    same, of_same = STEP(start(), jnp.asarray(rows), hypers(1), jnp.int32([1, 2]))
    assert_close(of_same, metrics, 1e-5)  # another program: XLA may fuse otherwise
    assert_close(same, few, 1e-4)
    rows[:, :, 2:] = 7
    assert_equal(STEP(start(), jnp.asarray(rows), hypers(1), jnp.int32([1, 2])), (same, of_same))


def test_a_step_is_the_one_by_hand():
    """Metrics, and AdamW's first step from the gradient of the mean over all tokens: it moves by lr g / (|g| + eps)."""
    tokens, rates = batches(1, 1, 2, 2), hypers(1)
    rows, before = tokens.reshape(4, 13), first_replica(start().params)
    gradient, sums = GRADIENT(before, rows)
    n = (rows[:, 1:] >= 0).sum()
    gradient = jax.tree.map(lambda g: np.float64(g) / n, gradient)
    size = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
    state, metrics = run(start(), tokens, rates)
    wanted = {"loss": sums["nll"] / n, "z": sums["z"] / n, "grad_norm": size}  # the norm before clipping
    assert metrics.keys() == wanted.keys() | {"signal", "noise"}
    for name in wanted:
        np.testing.assert_allclose(metrics[name], [[wanted[name]]], rtol=1e-5)
    assert size > 1  # so it is clipped

    def check(path, p, g, found):
        decay = rates["weight_decay"][0] * (path[-1].key in ("kernel", "embedding", "position_embedding"))
        moved = p - rates["lr"][0] * np.sign(g) - decay * p
        certain = np.abs(g / size) > 1e-5  # smaller ones are float32 noise, of either sign, or zero
        np.testing.assert_allclose(np.asarray(found)[certain], moved[certain], atol=5e-5)  # 1e-8 / 1e-5 of lr
        return certain.sum()

    checked = jax.tree_util.tree_map_with_path(check, before, gradient, first_replica(state.params))
    assert all(count for count in jax.tree.leaves(checked))


@pytest.mark.parametrize("replicas", [1, 2])
def test_many_steps_a_call_equal_one_a_call(replicas):
    tokens, rates = batches(3, replicas, 2, 2), hypers(3)
    together, metrics = run(start(replicas), tokens, rates)
    alone = start(replicas)
    for i in range(3):
        alone, row = run(alone, tokens[i : i + 1], part(rates, i))
        # The same operations in a loop, which XLA may fuse otherwise.
        assert_close(jax.tree.map(lambda m, i=i: m[i : i + 1], metrics), row, 2e-5)
    assert_close(together, alone, 2e-4)


def test_a_remainder_runs_the_same_program_and_leaves_the_rest_untouched():
    tokens, rates = batches(3, 1, 2, 2), hypers(3)
    _, all_three = run(start(), tokens, rates)
    compiled = STEP._cache_size()
    for count in range(3):
        state, metrics = run(start(), tokens, rates, count)
        for name, values in metrics.items():
            np.testing.assert_array_equal(values[:count], all_three[name][:count])
            np.testing.assert_array_equal(values[count:], 0)
        assert state.opt_state[1].count.tolist() == [count]
        if count == 0:
            assert_equal(state, start())
    # What lies beyond count is never looked at.
    garbage = tokens.copy()
    garbage[2:] = 7
    assert_equal(run(start(), garbage, rates, 2), run(start(), tokens, rates, 2))
    assert STEP._cache_size() == compiled


def test_rates_compile_nothing_and_are_obeyed():
    tokens = batches(1, 1, 2, 2)
    first, _ = run(start(), tokens, hypers(1))
    compiled = STEP._cache_size()
    other, _ = run(start(), tokens, hypers(1, scale=3))
    still, _ = run(start(), tokens, hypers(1, scale=0))
    assert STEP._cache_size() == compiled
    assert_equal(still.params, start().params)
    moved, further = (jax.tree.map(lambda a, b: np.float64(a) - b, s.params, start().params) for s in (first, other))
    assert_close(further, jax.tree.map(lambda m: 3 * m, moved), 1e-4)  # float32 parameters of size 1, steps of 0.02


def test_every_step_has_its_own_rate():
    tokens = batches(3, 1, 2, 2)
    rates = {"lr": np.float32([0.01, 0, 0]), "weight_decay": np.float32([0, 0, 0.5])}
    one, two, three = (run(start(), tokens, rates, count)[0].params for count in (1, 2, 3))
    assert_equal(two, one)
    np.testing.assert_array_equal(three["embedding"], two["embedding"] / 2)


def test_replicas_fed_the_same_data_are_one_replica():
    tokens, rates = batches(3, 1, 2, 2), hypers(3)
    single, metrics = run(start(1), tokens, rates)
    pair, of_pair = run(start(2), np.repeat(tokens, 2, axis=1), rates)
    assert_equal(*(jax.tree.map(lambda x, i=i: x[i], pair) for i in range(2)))
    assert_close(of_pair, metrics, 2e-5)
    assert_close(jax.tree.map(lambda x: x[:1], pair), single, 2e-4)


def test_replicas_one_by_one_are_replicas_all_at_once():
    """The same sums, products batched or not: within float32's rounding, through Adam's quotient in two steps."""
    tokens, steps = batches(2, 2, 2, 2), inner_steps(LOSS, OPTIMISER, one_by_one=True)
    one_by_one = jax.jit(steps)(start(2), tokens, hypers(2), jnp.int32([2, 2]))
    assert_close(one_by_one, run(start(2), tokens, hypers(2)), 1e-4)


def test_signal_and_noise_are_those_of_the_micro_batches():
    """Against gradients taken one by one; micro-batches have unequal counts of tokens, and the last has none."""
    tokens = batches(1, 1, 4, 2)
    tokens[0, 0, 3] = -1
    _, metrics = run(start(), tokens, hypers(1))
    found = [GRADIENT(params(), jnp.asarray(t)) for t in tokens[0, 0, :3]]
    counts = np.float64([sums["tokens"] for _, sums in found])
    each = [np.concatenate([np.ravel(np.float64(g)) for g in jax.tree.leaves(grads)]) for grads, _ in found]
    squares = [np.sum((g / n) ** 2) for g, n in zip(each, counts, strict=True)]
    small, large = np.average(squares, weights=counts), np.sum((sum(each) / counts.sum()) ** 2)
    noise = (small - large) / (1 / counts.mean() - 1 / counts.sum())
    np.testing.assert_allclose(metrics["noise"], noise, rtol=1e-4)
    np.testing.assert_allclose(metrics["signal"], large - noise / counts.sum(), rtol=1e-4)


def test_one_micro_batch_tells_no_noise():
    tokens = batches(1, 1, 4, 2)
    tokens[0, 0, 1:] = -1
    _, metrics = run(start(), tokens, hypers(1))
    assert metrics["loss"] > 0
    assert metrics["signal"] == metrics["noise"] == 0


def test_replicas_do_not_see_each_other():
    tokens, rates = batches(1, 2, 2, 2), hypers(1)
    pair, metrics = run(start(2), tokens, rates)
    alone = [run(start(1), tokens[:, i : i + 1], rates) for i in range(2)]
    for i, (state, _) in enumerate(alone):
        assert_close(jax.tree.map(lambda x, i=i: x[i : i + 1], pair.opt_state), state.opt_state, 2e-5)
    assert_close(metrics, jax.tree.map(lambda a, b: np.concatenate((a, b), axis=1), alone[0][1], alone[1][1]), 1e-5)


def test_state_is_three_times_the_parameters_and_reused():
    state = start(2)
    size = {name: sum(x.nbytes for x in jax.tree.leaves(getattr(state, name)) if x.ndim > 1) for name in State._fields}
    assert size["params"] + size["opt_state"] == 3 * size["params"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*donated")  # JAX warns of a donated buffer that no output could take
        run(state, batches(1, 2, 2, 2), hypers(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 2, 2, 2)], ids=["one step", "steps, replicas, micro-batches"])
def test_the_program_overwrites_all_of_its_state(shape):
    state = jax.eval_shape(START[shape[1]], params())
    tokens, n = jax.ShapeDtypeStruct((*shape, 13), jnp.int32), jax.ShapeDtypeStruct((shape[0],), jnp.float32)
    memory = STEP.lower(state, tokens, {"lr": n, "weight_decay": n}, jax.ShapeDtypeStruct((2,), jnp.int32)).compile()
    assert memory.memory_analysis().alias_size_in_bytes == sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(state)
    )

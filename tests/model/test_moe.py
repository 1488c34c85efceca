"""Routed experts against loops over tokens and experts, in float64 where it can be."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from ml_collections import FrozenConfigDict

from jaxlab import parallel
from jaxlab.config import InputError, check, default
from jaxlab.cost import flops
from jaxlab.model import moe
from jaxlab.model.decoder import Decoder
from jaxlab.model.families import ARCHITECTURES, model, parameters
from jaxlab.model.loss import objective
from jaxlab.train.program import program
from tests import tiny
from tests.model import reference

RNG = np.random.default_rng(0)
SHAPE = {"d_model": 16, "d_ff": 24, "num_experts": 5, "experts_per_token": 2, "ffn": "swiglu", "init_std": 0.5}


def experts(**changes):
    """(config, module, parameters) of one layer."""
    c = reference.tiny(**SHAPE | changes)
    layer = moe.Experts(c)
    return c, layer, jax.jit(layer.init)(jax.random.key(1), jnp.zeros((1, 1, c.d_model)))["params"]


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def loop(p, x, k):
    """x [b, L, d]: token after token through each of its k experts, float64; and who was chosen [tokens, k]."""
    p, tokens = jax.tree.map(np.float64, p), np.float64(x).reshape(-1, x.shape[-1])
    y, everyone = np.zeros_like(tokens), []
    for i, token in enumerate(tokens):
        odds = np.exp(token @ p["router"]["kernel"])
        chosen = np.argsort(-odds)[:k]
        everyone.append(chosen)
        for e in chosen:
            gate, up = token @ p["gate"]["kernel"][e], token @ p["up"]["kernel"][e]
            y[i] += odds[e] / odds[chosen].sum() * (gate / (1 + np.exp(-gate)) * up) @ p["down"]["kernel"][e]
    return y.reshape(x.shape), np.array(everyone)


def all_experts(p, x, k):
    """The same with every token through every expert, for gradients: those not chosen count for nothing."""
    odds = jax.nn.softmax(x @ p["router"]["kernel"])
    kept = jnp.where(odds >= jnp.sort(odds)[..., -k, None], odds, 0)
    gate, up = (jnp.einsum("bld,edf->blef", x, p[name]["kernel"]) for name in ("gate", "up"))
    out = jnp.einsum("blef,efd->bled", jax.nn.silu(gate) * up, p["down"]["kernel"])
    return jnp.sum(out * (kept / kept.sum(-1, keepdims=True))[..., None], axis=-2)


@pytest.mark.parametrize("k", [1, 2])
def test_outputs_and_gradients_are_those_of_a_loop_over_experts(k):
    """float32 has 6e-8 a rounding, and sums of up to 24 products of numbers around 1 are compared."""
    _, layer, p = experts(experts_per_token=k)
    x, dy = draw(3, 50, 16), draw(3, 50, 16)
    wanted, _ = loop(p, x, k)
    (found, y), (exact, _) = (
        jax.jit(jax.grad(lambda p, x, f=f: (jnp.vdot(f(p, x), dy), f(p, x)), (0, 1), has_aux=True))(p, x)
        for f in (lambda p, x: layer.apply({"params": p}, x), lambda p, x: all_experts(p, x, k))
    )
    np.testing.assert_allclose(y, wanted, atol=1e-5 * np.abs(wanted).max())
    largest = max(np.abs(g).max() for g in jax.tree.leaves(exact))  # of one expert alone the router has no gradient
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), found, exact)


@pytest.mark.parametrize("collapsed", [False, True])
def test_every_token_reaches_exactly_k_experts(collapsed):
    """Experts that give the unit vector of their number show who was asked; all tokens may ask the same two."""
    c, n = reference.tiny(**SHAPE), 300
    x = np.ones((1, n, 16), np.float32)  # every expert's hidden layer is silu(1) then
    odds = np.repeat(RNG.normal(size=(1, 1, 5)), n, axis=1) if collapsed else RNG.normal(size=(1, n, 5))
    chosen = lax.top_k(odds, c.experts_per_token)[1]
    one = np.zeros((5, 16, 24), np.float32)
    one[:, 0] = 1
    down = np.zeros((5, 24, 16), np.float32)
    down[np.arange(5), 0, np.arange(5)] = 1 / jax.nn.silu(1.0)
    y = jax.jit(moe.mixture)(jnp.asarray(x), jnp.ones(chosen.shape), chosen, one, one, down)
    wanted = np.zeros((n, 16))
    np.put_along_axis(wanted, np.asarray(chosen[0]), 1, axis=1)
    np.testing.assert_allclose(y[0], wanted, atol=1e-6)
    assert (wanted.sum(0)[:5] == n).sum() == (2 if collapsed else 0)


SIZES = {
    "even": (40, 40, 40, 40, 40), "all in one": (0, 0, 200, 0, 0), "all in the last": (0, 0, 0, 0, 200),
    "full blocks": (moe.BLOCK, 0, 2 * moe.BLOCK, 1, 7), "elsewhere": (3, 0, 50, 1, 0), "none": (0, 0, 0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dot", [(moe.blocked_dot, moe.blocked_outer), (moe.ragged_dot, moe.ragged_outer)])
def test_products_of_groups(dot, sizes):
    """Of CPU and of the other platforms, for two replicas, against one product a group; rows past the last group are no
    matter."""
    x, w, dy, n = draw(200, 6), draw(5, 6, 9), draw(200, 9), sum(sizes)
    both, groups = jnp.stack((x, -x)), np.split(np.arange(n), np.cumsum(sizes)[:-1])
    rows, outer = (
        np.array(jax.jit(jax.vmap(f, (0, None, None)))(both, other, jnp.array(sizes)))
        for f, other in zip(dot, (w, dy), strict=True)
    )
    for e, group in enumerate(groups):
        for replica, here in enumerate(np.float64(both)[:, group]):
            np.testing.assert_allclose(rows[replica, group], here @ np.float64(w[e]), atol=1e-5)
            np.testing.assert_allclose(outer[replica, e], here.T @ np.float64(dy)[group], atol=2e-5)


def test_random_data_load_the_experts_evenly():
    """With weights as they are drawn, no expert is far from its share of tokens, and the loss is close to its 1."""
    _, layer, p = experts(d_model=64, num_experts=8, init_std=0.02)
    x = draw(4, 1_024, 64)
    load = np.bincount(loop(p, x, 2)[1].ravel(), minlength=8) / (4 * 1_024 * 2 / 8)
    assert 0.7 < load.min() <= load.max() < 1.3
    _, sown = jax.jit(partial(layer.apply, mutable=["losses"]))({"params": p}, x)
    assert 1 <= sown["losses"]["balance"][0] < 1.01


def test_balance_loss():
    """E sum f P by hand: 1 where probabilities or choices are even, E / k where k experts have it all."""
    even, chosen = jnp.full((2, 6, 4), 0.25), jnp.array([[[0, 1], [2, 3], [0, 2], [1, 3], [0, 3], [1, 2]]] * 2)
    assert moe.balance(even, chosen) == 1
    assert moe.balance(even, jnp.zeros_like(chosen)) == 1  # only through P is there something to be lowered
    all_in_two = jnp.tile(jnp.array([0.5, 0.5, 0, 0]), (2, 6, 1))
    assert moe.balance(all_in_two, jnp.tile(jnp.array([0, 1]), (2, 6, 1))) == 4 / 2
    probabilities = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
    picked = jnp.array([[0, 1], [1, 2]])  # f = (1, 2, 1) / 4, P = (0.3, 0.45, 0.25)
    np.testing.assert_allclose(moe.balance(probabilities, picked), 3 * (0.3 + 2 * 0.45 + 0.25) / 4, rtol=1e-6)
    alone = moe.balance(probabilities, picked, jnp.array([True, False]))  # the second token is padding
    np.testing.assert_allclose(alone, 3 * (0.5 + 0.3) / 2, rtol=1e-6)


def test_descent_on_the_balance_loss_evens_the_load():
    _, layer, p = experts(num_experts=4)
    bias = jnp.array([3.0, 1.0, 0.0, -1.0])
    x = draw(1, 512, 16).at[..., 0].set(1)
    p["router"]["kernel"] = 0.1 * p["router"]["kernel"].at[0].set(10 * bias)

    def loss(p):
        return layer.apply({"params": p}, x, mutable=["losses"])[1]["losses"]["balance"][0]

    step = jax.jit(lambda p: (loss(p), jax.tree.map(lambda a, g: a - 0.5 * g, p, jax.grad(loss)(p))))
    before, _ = step(p)
    for _ in range(100):
        after, p = step(p)
    assert before > 1.5
    assert after < 1.1


FAMILY = ARCHITECTURES["qwen3_moe"] | SHAPE | {"num_layers": 2, "balance_loss": 0.3}


def test_the_objective_has_the_mean_balance_loss_of_the_layers():
    """Per token, over the tokens that are predicted."""
    c = reference.tiny(**FAMILY)
    params, tokens = reference.random_params(c), RNG.integers(0, c.vocab_size, (3, 11)).astype(np.int32)
    tokens[2, 5:] = -1
    run = jax.jit(objective(Decoder(c, scan=True), 256))
    value, sums = run(params, tokens)
    np.testing.assert_allclose(value, sums["nll"] + c.z_loss * sums["z"] + 0.3 * sums["balance"], rtol=1e-6)
    assert sums["tokens"] < sums["balance"]  # 1 a token, and a little more where the load is not even
    tokens[2] = -1
    np.testing.assert_allclose(
        run(params, tokens)[0], jax.jit(objective(Decoder(c), 256))(params, tokens[:2])[0], rtol=1e-6
    )


@pytest.mark.slow
def test_eight_devices_train_as_one(request):
    """Two replicas, each with experts and tokens on four devices, and layers run in another way. Sums are in another
    order: float32 roundings, which Adam's first steps enlarge."""
    one, eight = tiny.on_devices("tests.model.moe_devices", cache=request.config.cache.mkdir("jax")).values()
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=2e-6)
    np.testing.assert_allclose(eight["balance"], one["balance"], rtol=2e-5)
    assert one["losses"][-1] < one["losses"][0]
    for name, shape in one["shards"].items():  # experts on the tensor axis, one width of theirs on the data axis
        cut = {"gate": (2, 2, 1), "up": (2, 2, 1), "down": (2, 1, 2), "router": (2, 1)}[name]
        assert tuple(np.divide(shape, eight["shards"][name])[-len(cut) :]) == cut


def test_published_counts():
    """Qwen3's parameters to the digit, and about 3.3B and 22B active (2505.09388, table of models). 4B and 538M are
    those of 2601.05034, whose shapes are ours."""
    counts = {s: parameters(FrozenConfigDict(model("qwen3_moe", s))) for s in ("30b-a3b", "235b-a22b", "4b-a0.5b")}
    assert counts["30b-a3b"]["total"] == 30_532_122_624
    assert counts["235b-a22b"]["total"] == 235_093_634_560
    for size, (total, active) in {"30b-a3b": (30.5, 3.3), "235b-a22b": (235, 22), "4b-a0.5b": (4, 0.538)}.items():
        found = counts[size]["total"] / 1e9, counts[size]["active"] / 1e9
        np.testing.assert_allclose(found, (total, active), rtol=0.02)
    for size, millions in {"122m": 122, "210m": 210, "350m": 350, "600m": 600, "1b": 1_000}.items():
        count = parameters(FrozenConfigDict(model("internlm2", size)))
        np.testing.assert_allclose(count["non_embedding"] / 1e6, millions, rtol=0.02)
        assert count["active"] == count["total"]
    assert round(parameters(FrozenConfigDict(model("qwen3", "2b")))["total"] / 1e9, 1) == 2.0


def test_flops_are_those_of_the_experts_that_a_token_meets():
    c = FrozenConfigDict(model("qwen3_moe", "30b-a3b"))
    layer = 2_048 * 128 * 2 * (32 + 4) + 8 * 3 * 2_048 * 768 + 2_048 * 128
    assert flops.forward_per_token(c, 1)["linears"] == 2 * 48 * layer


REFUSED = (
    ({"experts_per_token": 6}, "model.experts_per_token=6: must be from 1 to model.num_experts=5"),
    ({"experts_per_token": 0}, "model.experts_per_token=0: must be from 1 to model.num_experts=5"),
    ({"num_experts": 0}, "model.experts_per_token=2: must be from 0 to model.num_experts=0"),
    ({"ffn": "gelu"}, "model.ffn='gelu': must be 'swiglu' with model.num_experts=5"),
    ({"use_bias": True}, "model.use_bias=True: must be False with model.num_experts=5"),
)


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_experts_cannot_be_is_refused(changes, message):
    config = default()
    config.model.update(SHAPE | changes)
    with pytest.raises(InputError, match=re.escape(message)):
        check(config)


def test_casts_and_spectra_are_refused():
    config = default()
    config.model.update(SHAPE)
    config.quant.recipe = "capybara"
    with pytest.raises(InputError, match=re.escape("model.num_experts=5: must be 0 with quant")):
        program(config, parallel.mesh(1, 1, 1), 29)
    config.spectra.at = "log:4"
    with pytest.raises(InputError, match=re.escape("spectra.at='log:4': must be empty with model.num_experts")):
        check(config)

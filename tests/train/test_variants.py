"""The variants of the decoder in training: two replicas, cast operands, parts of the model that meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import parallel
from jaxlab.config import check, default
from jaxlab.model import families
from jaxlab.model.ngpt import unit_axis
from jaxlab.optim.fragments import Event
from jaxlab.optim.sphere import unit_norm
from jaxlab.train.outer_loop import OuterLoop
from jaxlab.train.program import initial_params, program
from jaxlab.train.state import State

pytestmark = pytest.mark.slow

MESH = parallel.mesh(1, 1, 1, devices=jax.devices()[:1])
SMALL = {
    "model.context": 8, "model.num_layers": 2, "model.d_model": 16, "model.num_heads": 2, "model.num_kv_heads": 2,
    "model.head_dim": 8, "model.d_ff": 24, "batch.tokens": 32, "batch.context": 8, "replicas": 2,
    "diloco.sync_every": 2, "diloco.mix": 0.5, "quant.recipe": "capybara", "quant.cast": "e4m3,block=8",
    "optim.weight_decay": 0.01, "compute.layers": "scan", "model.tied": False, "model.init_std": 0.02,
}  # fmt: skip
NGPT = {f"model.{key}": value for key, value in families.ARCHITECTURES["ngpt"].items()}
VARIANTS = {
    "ngpt": NGPT,
    "mix, weight, widths": {
        "model.norm_placement": "mix", "model.mix_fraction": 0.5, "model.ffn_weight_norm": "weight",
        "model.layer_d_ff": "8,24",
    },
}  # fmt: skip
# Of nGPT's matrices, the axis of d_model (arXiv 2410.01131, section 2.6, step 2).
UNIT = {
    "embedding": -1, "head": -2, "query/kernel": -2, "key/kernel": -2, "value/kernel": -2, "out/kernel": -1,
    "up/kernel": -2, "gate/kernel": -2, "down/kernel": -1,
}  # fmt: skip


def made(**changes):
    c = default()
    c.update_from_flattened_dict(SMALL | changes)
    check(c)
    return program(c, MESH, 29)


def after_each_step(run, steps=2):
    """(state, losses) at the start, after every step and after every meeting."""
    rng = np.random.default_rng(0)
    first = jax.jit(lambda: run.start(initial_params(run.model, np.uint32(0))))
    step = jax.jit(run.jitted_steps)
    outer_step = jax.jit(run.outer_loop.step, static_argnums=1)
    yield (state := first()), None
    for i in range(1, steps + 1):
        batches = rng.integers(0, 29, (1, 2, 1, 2, 9)).astype(np.int32)
        hypers = {"lr": np.full(1, 0.02, np.float32), "weight_decay": np.full(1, 1e-4, np.float32)}
        inner, metrics = step(state._replace(outer=None), batches, hypers, np.int32([1, 1]))
        yield (state := inner._replace(outer=state.outer)), metrics["loss"]
        for event in run.outer_loop.events(i, last=i == steps):
            yield (state := outer_step(state, event, np.float32(0.6))[0]), None


def named(params):
    return {parallel.path_name(path): np.asarray(p) for path, p in jax.tree_util.tree_leaves_with_path(params)}


def assert_on_the_sphere(params):
    found = {name: (p, axis) for name, p in named(params).items() for end, axis in UNIT.items() if name.endswith(end)}
    assert len(found) == len(UNIT)
    for name, (p, axis) in found.items():
        np.testing.assert_allclose(np.linalg.norm(p, axis=axis), 1, atol=1e-6, err_msg=name)


def assert_starts_as_its_table_says(found):
    """arXiv 2410.01131: stored as 1 / sqrt(d) what is read as 0.05 (alphas) or 1 (s_qk, s_z); s_u and s_v are 1."""
    names = ("attention_alpha", "ffn_alpha", "s_qk", "s_z", "s_u", "s_v")
    vectors = {name.rpartition("/")[2]: p for name, p in found.items() if name.endswith(names)}
    for name, stored in zip(names, (1 / 4,) * 4 + (1,) * 2, strict=True):
        np.testing.assert_array_equal(vectors[name], np.full_like(vectors[name], stored))


@pytest.mark.parametrize("name", VARIANTS)
def test_two_steps_and_a_meeting(name):
    """All parameters learn and stay finite, from a loss near that of 29 equally likely tokens; those of nGPT are on
    their spheres all the time, replicas and global ones, also where replicas keep half of themselves."""
    run = made(**VARIANTS[name])
    states = list(after_each_step(run))
    assert abs(np.mean(states[1][1]) - np.log(29)) < 0.2
    start, end = (named(states[i][0].params) for i in (0, -1))
    for path, p in end.items():
        assert np.isfinite(p).all(), path
        assert (p != start[path]).any(), path
    if name == "ngpt":
        assert_starts_as_its_table_says(start)
        for state, _ in states:
            assert_on_the_sphere(state.params)
            assert_on_the_sphere(run.outer_loop.params(state))
        assert np.ptp(end["embedding"], axis=0).max() > 1e-4  # replicas are half their own


@pytest.mark.parametrize("way", [{"mix": 0.5}, {"eager": True}, {"overlap": 1, "fragments": 2}], ids=str)
def test_where_replicas_meet_is_on_the_sphere(way):
    """The global parameters, which with eager updates are a mean, and what replicas that left the sphere go on from."""
    d = default().diloco
    d.update(sync_every=2, **way)
    rng = np.random.default_rng(0)
    params = jax.tree.map(jnp.float32, {
        "embedding": unit(rng.normal(size=(5, 4))), "blocks": {"out": {"kernel": unit(rng.normal(size=(2, 3, 4)))}},
        "blocks_2": {"out": {"kernel": unit(rng.normal(size=(1, 2, 4)))}},
    })  # fmt: skip
    outer_loop = OuterLoop(d, params, replicas=2, mesh=MESH, project=lambda params: unit_norm(params, unit_axis))
    replicas = jax.tree.map(lambda p: jnp.float32(p + 0.1 * rng.normal(size=(2, *p.shape))), params)
    state = State(replicas, None, outer_loop.init(params))
    for kind in ("send", "receive") if "overlap" in way else ("sync",):
        for index in range(d.fragments):
            state, _ = outer_loop.step(state, Event(kind, index), np.float32(0.6))
    assert (np.ptp(state.params["embedding"], axis=0).max() > 1e-3) == ("overlap" not in way)  # half their own, or all
    for p in jax.tree.leaves((state.params, outer_loop.params(state))):
        np.testing.assert_allclose(np.linalg.norm(p, axis=-1), 1, atol=1e-6)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

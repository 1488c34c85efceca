"""Fragments partition a model; the plan of a run against a simulation that counts each fragment's inner steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.optim import diloco
from jaxlab.optim.fragments import SPLITS, due, events, fragments, put, take

RNG = np.random.default_rng(0)
MODEL = {
    "blocks": {"kernel": jnp.asarray(RNG.normal(size=(5, 2, 3)), jnp.float32), "norm": {"scale": jnp.ones((5, 2))}},
    "embedding": jnp.asarray(RNG.normal(size=(7, 2)), jnp.float32),
    "final_norm": {"scale": jnp.ones(2)},
}
LEAVES = 5 + 2  # layers and other leaves


def layers(part) -> list[int]:
    kernel, norm = part["blocks"]["kernel"], part["blocks"]["norm"]["scale"]
    assert kernel is norm
    return [] if kernel is False else kernel.tolist()


@pytest.mark.parametrize(("how", "count"), [(h, c) for h in SPLITS for c in (2, 5)] + [("balanced", LEAVES)])
def test_everything_is_in_one_fragment(how, count):
    parts = fragments(MODEL, count, how)
    assert sorted(i for part in parts for i in layers(part)) == list(range(5))
    for name in ("embedding", "final_norm"):
        assert sum(jax.tree.leaves(part[name])[0] for part in parts) == 1
    back = jax.tree.map(np.zeros_like, MODEL)
    for part in parts:
        held = take(MODEL, part)
        assert sum(x.size for x in jax.tree.leaves(held)) > 0
        back = put(jax.tree.map(jnp.asarray, back), part, held)
    jax.tree.map(np.testing.assert_array_equal, back, MODEL)


def test_layers_of_each_split():
    """Strided and sequential as in the figure of 2501.18512; what is no layer goes first."""
    assert [layers(part) for part in fragments(MODEL, 2)] == [[0, 2, 4], [1, 3]]
    assert [layers(part) for part in fragments(MODEL, 2, "sequential")] == [[0, 1, 2], [3, 4]]
    assert [part["embedding"] for part in fragments(MODEL, 3)] == [True, False, False]


def test_layers_in_several_stacks():
    """A stack's name says which layer it begins with, its leaves are cut at places of its own. Ten layers and more, so
    that names are not in the order of layers."""
    sizes = {"blocks": (2, 3), "blocks_2": (8, 4), "blocks_10": (3, 5), "embedding": (7, 2)}
    model = {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in sizes.items()}
    parts = fragments(model, 4)
    second = {name: own if own is False else own.tolist() for name, own in parts[1].items()}
    assert second == {"blocks": [1], "blocks_2": [3, 7], "blocks_10": False, "embedding": False}  # 1, 5 and 9 of 13
    runs = {name: own if own is False else own.tolist() for name, own in fragments(model, 13, "sequential")[12].items()}
    assert runs == {"blocks": False, "blocks_2": False, "blocks_10": [2], "embedding": False}
    back = jax.tree.map(jnp.zeros_like, model)
    for part in fragments(model, 5, "balanced"):
        back = put(back, part, take(model, part))
    jax.tree.map(np.testing.assert_array_equal, back, model)


def test_balanced_by_hand():
    """Bytes: embedding 56, five layers of 32 each, last norm 8. In three: 56 + 8, then layers 0, 2, 3... by load:
    [56], [32], [32], [32 + 32], [32 + 32], [56 + 32], [64 + 8]."""
    parts = fragments(jax.eval_shape(lambda: MODEL), 3, "balanced")
    assert [layers(part) for part in parts] == [[4], [0, 2], [1, 3]]
    assert [part["embedding"] for part in parts] == [True, False, False]
    assert [part["final_norm"]["scale"] for part in parts] == [False, True, False]


@settings(max_examples=30, deadline=None)
@given(num_layers=st.integers(1, 9), width=st.integers(1, 9), vocab=st.integers(1, 200), data=st.data())
def test_balanced_within_one_unit(num_layers, width, vocab, data):
    """Greedy: the heaviest fragment exceeds the lightest by no more than the largest unit, and none is empty."""
    shapes = {"blocks": {"kernel": (num_layers, width, width)}, "embedding": (vocab, width), "norm": (width,)}
    model = {
        "blocks": {"kernel": jax.ShapeDtypeStruct(shapes["blocks"]["kernel"], jnp.float32)},
        **{name: jax.ShapeDtypeStruct(shapes[name], jnp.float32) for name in ("embedding", "norm")},
    }
    count = data.draw(st.integers(1, num_layers + 2))
    loads = [
        sum(0 if own is False else 4 * width * width * len(own) for own in [part["blocks"]["kernel"]])
        + 4 * vocab * width * part["embedding"]
        + 4 * width * part["norm"]
        for part in fragments(model, count, "balanced")
    ]
    assert min(loads) > 0
    assert max(loads) - min(loads) <= 4 * width * max(width, vocab)


@pytest.mark.parametrize(("how", "count"), [("strided", 3), ("balanced", 4)])
def test_fragments_one_after_the_other_are_a_whole_step(how, count):
    """Streaming without delay: the outer step of every fragment, each with its own momentum, equals one of all, also
    where a fragment is the embedding alone."""
    parts = fragments(MODEL, count, how)
    assert (how == "balanced") == ([] in [layers(part) for part in parts])
    outer = diloco.nesterov()
    moved = jax.tree.map(lambda p: np.float32(p + RNG.normal(size=(2, *p.shape))), MODEL)

    def step(theta, replicas):
        state, replicas = diloco.outer_step(diloco.init(theta, outer), replicas, outer, lr=0.6)
        return state.params, replicas

    def one_after_the_other(theta, replicas):
        for part in parts:
            own, taken_over = step(take(theta, part), take(replicas, part, axis=1))
            theta, replicas = put(theta, part, own), put(replicas, part, taken_over, axis=1)
        return theta, replicas

    found, whole = jax.jit(one_after_the_other)(MODEL, moved), jax.jit(step)(MODEL, moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, whole)


@pytest.mark.parametrize(
    ("count", "how", "says"),
    [
        (0, "strided", "count=0"),
        (6, "strided", "must be 1 to 5"),
        (8, "balanced", "must be 1 to 7"),
        (2, "random", "how='random'"),
    ],
)
def test_bad_fragments(count, how, says):
    with pytest.raises(ValueError, match=says):
        fragments(MODEL, count, how)


def test_fragments_take_turns():
    """H = 100, P = 2: the first at 100, 200, ..., the second at 150, 250, ... (the example of 2501.18512)."""
    turns = {step: found for step in range(1, 301) if (found := due(step, 100, 2))}
    assert turns == {100: [0], 150: [1], 200: [0], 250: [1], 300: [0]}
    assert [step for step in range(1, 13) if due(step, 4, 1)] == [4, 8, 12]


def test_a_short_run_by_hand():
    """H = 4, P = 2, tau = 2, 9 steps: sent at 4 and 6, received two later; what arrives at 8 does so before what
    leaves; after 9 the one that left at 8 arrives and both are synchronised."""
    plan = [events(step, sync_every=4, fragments=2, overlap=2, last=step == 9) for step in range(1, 10)]
    assert plan[:3] == [[], [], []]
    assert plan[3:] == [
        [("send", 0)], [], [("receive", 0), ("send", 1)], [], [("receive", 1), ("send", 0)],
        [("receive", 0), ("sync", 0), ("sync", 1)],
    ]  # fmt: skip


def test_a_last_step_that_is_a_regular_one_adds_nothing():
    for last in (False, True):
        assert events(12, sync_every=4, fragments=1, last=last) == [("sync", 0)]


@settings(max_examples=150, deadline=None)
@given(sync_every=st.integers(1, 12), steps=st.integers(1, 40), data=st.data())
def test_nothing_is_lost_and_the_load_is_even(sync_every, steps, data):
    """Simulated with counters: every fragment leaves exactly every H steps, at most one in a step, spread evenly; what
    was sent arrives tau steps later or at the end; no inner step is unsynchronised then."""
    count = data.draw(st.integers(1, sync_every))
    overlap = data.draw(st.integers(0, sync_every - 1))
    unseen, under_way, left = [0] * count, {}, [[] for _ in range(count)]
    for step in range(1, steps + 1):
        unseen = [n + 1 for n in unseen]
        last = step == steps
        happening = events(step, sync_every=sync_every, fragments=count, overlap=overlap, last=last)
        assert last or sum(what != "receive" for what, _ in happening) <= 1
        for what, p in happening:
            if what == "receive":
                sent_at = under_way.pop(p)
                assert step - sent_at == overlap or (last and step - sent_at < overlap)
                continue
            assert p not in under_way
            assert last or unseen[p] == sync_every + (0 if left[p] else p * sync_every // count)
            assert (what == "send") == (overlap > 0 and not last)
            if what == "send":
                under_way[p] = step
            unseen[p] = 0
            left[p].append(step)
    assert unseen == [0] * count
    assert not under_way
    assert all(len(done) >= max(1, (steps - sync_every) // sync_every) for done in left)


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"sync_every": 4, "fragments": 5}, "fragments=5: must be 1 to sync_every=4"),
        ({"sync_every": 4, "fragments": 0}, "fragments=0"),
        ({"sync_every": 0, "fragments": 1}, "sync_every=0"),
        ({"sync_every": 4, "fragments": 1, "overlap": 4}, "overlap=4: must be 0 or more steps, and below sync_every=4"),
        ({"sync_every": 4, "fragments": 1, "overlap": -1}, "overlap=-1"),
    ],
)
def test_bad_plans(settings_, says):
    with pytest.raises(ValueError, match=says):
        events(1, **settings_)

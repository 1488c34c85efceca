"""Steps that end on spheres, against the same steps in float64."""

import jax
import numpy as np
import optax

from jaxlab.optim.sphere import projected, unit_norm

RNG = np.random.default_rng(0)
PARAMS = {"rows": RNG.normal(size=(2, 3, 5)), "columns": RNG.normal(size=(3, 5)), "free": RNG.normal(size=5)}
AXES = {"rows": -1, "columns": 0, "free": None}


def project(params):
    return unit_norm(params, lambda path: AXES[path[-1].key])


def in_float64(params):
    return {
        name: p if AXES[name] is None else p / np.sqrt((p**2).sum(AXES[name], keepdims=True))
        for name, p in params.items()
    }


def assert_close(found, wanted):
    """Entries of at most 1: a few float32 roundings."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-7), found, wanted)


def test_only_what_has_an_axis_is_normalised():
    params = jax.tree.map(np.float32, PARAMS)
    assert_close(project(params), in_float64(PARAMS))
    np.testing.assert_array_equal(project(params)["free"], params["free"])


def test_steps_of_any_optimiser_end_on_the_sphere():
    """Three steps of SGD, each followed by the projection; the momentum is that of the updates before it. The parts of
    a model that a fragment lacks are None."""
    grads = [jax.tree.map(lambda p: RNG.normal(size=p.shape), PARAMS) for _ in range(3)]
    optimiser = projected(optax.sgd(0.3, momentum=0.9), project)
    params = jax.tree.map(np.float32, in_float64(PARAMS)) | {"elsewhere": None}
    state, wanted, trace = optimiser.init(params), in_float64(PARAMS), jax.tree.map(np.zeros_like, PARAMS)
    for g in grads:
        updates, state = optimiser.update(jax.tree.map(np.float32, g) | {"elsewhere": None}, state, params)
        params = optax.apply_updates(params, updates)
        trace = jax.tree.map(lambda v, g: 0.9 * v + g, trace, g)
        wanted = in_float64(jax.tree.map(lambda p, v: p - 0.3 * v, wanted, trace))
        assert_close({name: params[name] for name in wanted}, {**wanted})
    np.testing.assert_allclose(np.linalg.norm(params["rows"], axis=-1), 1, atol=1e-6)

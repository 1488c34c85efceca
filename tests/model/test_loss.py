"""Cross-entropy in chunks, and its hand-written gradient: against float64, and automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.model.loss import cross_entropy

B, L, D, V = 3, 12, 8, 23
RNG = np.random.default_rng(0)
HIDDEN = np.float32(RNG.normal(size=(B, L, D)))
HEAD = np.float32(RNG.normal(size=(V, D)))
TARGETS = RNG.integers(0, V, (B, L)).astype(np.int32)
TARGETS[0, 5:] = -1
TARGETS[2, :2] = -1
CHUNKS = [1, 4, 12, 100]


def in_float64(hidden, head, targets, z_loss):
    """(objective, nll, z, tokens) summed over the targets that are not negative."""
    logits = np.float64(hidden) @ np.float64(head).T
    top = logits.max(-1)
    log_z = top + np.log(np.exp(logits - top[..., None]).sum(-1))
    nll = log_z - np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
    kept = targets >= 0
    nll, z = nll[kept].sum(), (log_z[kept] ** 2).sum()
    return nll + z_loss * z, nll, z, kept.sum()


def naive(hidden, head, targets, z_loss):
    """The same objective for automatic differentiation."""
    logits = hidden @ head.T
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return ((nll + z_loss * jax.nn.logsumexp(logits, -1) ** 2) * (targets >= 0)).sum()


def value_and_grad(hidden, head, targets, **options):
    def objective(hidden, head):
        return cross_entropy(hidden, head, targets, **options)

    return jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(hidden, head)


def assert_close(a, b, relative=1e-5):  # float32 sums of some tens of terms
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=relative * np.abs(y).max()), a, b)


@pytest.mark.parametrize("scale", [1, 40], ids=["small", "large"])  # logits to 8 or to 300: exp overflows at 89
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_value_and_sums(chunk, z_loss, scale):
    hidden = HIDDEN * scale
    for run in (cross_entropy, lambda *a, **k: value_and_grad(*a, **k)[0]):  # both passes compute the value
        value, sums = jax.jit(run, static_argnames=("chunk", "z_loss"))(
            hidden, HEAD, TARGETS, chunk=chunk, z_loss=z_loss
        )
        found = np.array([value, sums["nll"], sums["z"], sums["tokens"]])
        np.testing.assert_allclose(found, in_float64(hidden, HEAD, TARGETS, z_loss), rtol=2e-6)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_gradient(chunk, z_loss):
    _, found = jax.jit(lambda h, w: value_and_grad(h, w, TARGETS, chunk=chunk, z_loss=z_loss))(HIDDEN, HEAD)
    assert_close(found, jax.grad(naive, (0, 1))(HIDDEN, HEAD, TARGETS, z_loss))


def test_gradient_of_a_multiple():
    """The gradient is made in the forward pass; the backward pass must still scale it."""

    def scaled(f):
        return jax.grad(lambda h, w: 3 * f(h, w), (0, 1))(HIDDEN, HEAD)

    found = scaled(lambda h, w: cross_entropy(h, w, TARGETS, chunk=4, z_loss=0.1)[0])
    assert_close(found, scaled(lambda h, w: naive(h, w, TARGETS, 0.1)))


@pytest.mark.parametrize("chunk", CHUNKS)
def test_only_padding_has_no_loss_and_no_gradient(chunk):
    (value, sums), gradient = value_and_grad(HIDDEN, HEAD, np.full_like(TARGETS, -1), chunk=chunk, z_loss=0.1)
    for leaf in jax.tree.leaves((value, sums, gradient)):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_reported_sums_have_no_gradient():
    for name in ("nll", "z", "tokens"):
        g = jax.grad(lambda h, name=name: cross_entropy(h, HEAD, TARGETS, chunk=4)[1][name])(HIDDEN)
        np.testing.assert_array_equal(g, np.zeros_like(g))


@pytest.mark.parametrize("chunk", [4, 12])
def test_under_vmap(chunk):
    """Replicas: every argument mapped. Evaluation: the head mapped, the targets not."""

    def run(*a):
        return value_and_grad(*a, chunk=chunk, z_loss=0.1)

    hidden, head = np.stack([HIDDEN, HIDDEN[::-1]]), np.stack([HEAD, -HEAD])
    for targets, axis in ((np.stack([TARGETS, TARGETS[:, ::-1]]), 0), (TARGETS, None)):
        found = jax.jit(jax.vmap(run, in_axes=(0, 0, axis)))(hidden, head, targets)
        for i in range(2):
            wanted = run(hidden[i], head[i], targets if axis is None else targets[i])
            assert_close(jax.tree.map(lambda x, i=i: x[i], found), wanted)


def test_bfloat16_states():
    """Logits and sums stay float32: the value of bfloat16 inputs is exact, their gradient good to bfloat16's 2^-8."""
    hidden, head = jnp.bfloat16(HIDDEN), jnp.bfloat16(HEAD)
    (value, _), gradient = value_and_grad(hidden, head, TARGETS, chunk=4, z_loss=0.1)
    assert abs(value - in_float64(hidden, head, TARGETS, 0.1)[0]) < 2e-6 * value
    assert all(g.dtype == jnp.bfloat16 for g in gradient)
    wanted = jax.grad(naive, (0, 1))(np.float32(hidden), np.float32(head), TARGETS, 0.1)
    assert_close(jax.tree.map(np.float32, gradient), wanted, 2**-7)

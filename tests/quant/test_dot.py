"""Products of cast operands: each operand alone against numpy, nothing cast against `lax`, transformations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax import lax

from jaxlab.config import InputError
from jaxlab.model import linear
from jaxlab.quant import dot as module
from jaxlab.quant.dot import arithmetic, dot, dot_general
from jaxlab.quant.recipes import OPERANDS, RECIPES, Operand, Recipe, recipe
from tests import tiny
from tests.quant.devices import CASES
from tests.quant.layer import ATTENTION, BLOCK, DY, LINEAR, RNG, W, X, assert_same, linear_of, products
from tests.quant.oracle import cast_along


@pytest.fixture(scope="module")
def alone():
    """{operand: (y, dx, dw)} with that operand alone in E2M1, and "" with none; one compilation."""
    rules = {"": Recipe()} | {p: Recipe(**{p: Operand("e2m1", BLOCK)}) for p in OPERANDS}
    return jax.jit(lambda *a: {p: products(linear_of(rule), *a) for p, rule in rules.items()})(X, W, DY)


@pytest.mark.parametrize("operand", OPERANDS)
def test_each_operand_changes_its_product_alone(operand, alone):
    """Against numpy in float64 with that operand cast by ml_dtypes. 1e-5 of the largest: float32 sums of 60 terms."""
    tensor, axes, product = {
        "P1": ("x", (2,), 0), "P2": ("w", (0,), 0), "P3": ("dy", (2,), 1), "P4": ("w", (1,), 1),
        "P5": ("dy", (0, 1), 2), "P6": ("x", (0, 1), 2),
    }[operand]  # fmt: skip
    tensors = {"x": X, "w": W, "dy": DY}
    tensors[tensor] = cast_along(tensors[tensor], axes, "e2m1", BLOCK)
    x, w, dy = (a.astype(np.float64) for a in tensors.values())
    expected = [x @ w, dy @ w.T, np.tensordot(x, dy, ((0, 1), (0, 1)))][product]
    np.testing.assert_allclose(alone[operand][product], expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(alone[operand][product] - alone[""][product]).max() > 0.01 * np.abs(expected).max()
    for other in {0, 1, 2} - {product}:
        np.testing.assert_array_equal(alone[operand][other], alone[""][other])


def test_nothing_cast_is_the_plain_product_to_the_bit(alone):
    """Of `lax.dot_general` and of the model's `linear.dot`; `alone` has what an operand's cast leaves alone."""
    plain = jax.jit(lambda *a: products(lambda x, w: lax.dot_general(x, w, LINEAR), *a))(X, W, DY)
    assert_same(alone[""], plain)
    both = jax.jit(lambda *a: (products(dot(Recipe()), *a), products(linear.dot, *a)))(X, W, DY)
    assert_same(*both)
    assert_same(both[0], plain)


@pytest.mark.parametrize(("dtype", "preferred"), [("float32", None), ("bfloat16", jnp.float32)])
def test_any_dimension_numbers(dtype, preferred):
    """Of numbers on E2M1's grid, cast without a scale, all three products are those of `lax.dot_general` to the bit:
    the casts change nothing, and multiples of 1/4 below 1,000 add up exactly in any order."""
    rule = Recipe(*[Operand("e2m1", scale=None)] * 6)

    def grid(shape):
        return jnp.asarray(RNG.choice([-6, -3, -1.5, -1, -0.5, 0, 0.5, 1, 2, 4], shape), dtype)

    def of(product, arrays):
        out = []
        for (dims, *_), (a, b, dy) in zip(ATTENTION.values(), arrays, strict=True):
            how = partial(product, dimension_numbers=dims, preferred_element_type=preferred)
            out += products(how, a, b, dy.astype(preferred or dtype))
        return out

    arrays = []
    for dims, *shapes in ATTENTION.values():
        a, b = map(grid, shapes)
        arrays.append((a, b, grid(jax.eval_shape(partial(lax.dot_general, dimension_numbers=dims), a, b).shape)))
    found, expected = jax.jit(lambda arrays: (of(dot_general(rule), arrays), of(lax.dot_general, arrays)))(arrays)
    assert [a.dtype for a in found] == [b.dtype for b in expected]
    assert_same(found, expected)


def test_a_recipe_that_casts_nothing_is_lax_dot_general():
    assert dot_general(Recipe(seed=3)) is lax.dot_general


@pytest.mark.parametrize("case", ["scores", "two contracted, crossed"])
def test_cast_along_the_contracted_axes_of_any_product(case):
    """P1, P2, P4 and P6 with blocks of 4; the tolerance as above."""
    dims, *shapes = ATTENTION[case]
    a, b = (RNG.normal(size=s).astype(np.float32) for s in shapes)
    four = Operand("e4m3fn", 4)
    rule = Recipe(P1=four, P2=four, P4=four, P6=four)
    dy = RNG.normal(size=lax.dot_general(a, b, dims).shape).astype(np.float32)
    found = jax.jit(lambda a, b: products(lambda a, b: dot_general(rule)(a, b, dims), a, b, dy))(a, b)
    spell = {"scores": "blhd,bmhd->bhlm", "two contracted, crossed": "abcd,deb->ace"}[case]
    (of_a, of_b), of_y = spell.split("->")[0].split(","), spell.split("->")[1]

    def at(letters, of):
        return tuple(of.index(i) for i in letters)

    summed = {"scores": "d", "two contracted, crossed": "db"}[case]
    kept_a, kept_b = {"scores": ("l", "m"), "two contracted, crossed": ("ac", "e")}[case]
    cast = partial(cast_along, format="e4m3fn", block=4)
    expected = (
        np.einsum(spell, cast(a, at(summed, of_a)), cast(b, at(summed, of_b))),
        np.einsum(f"{of_y},{of_b}->{of_a}", dy, cast(b, at(kept_b, of_b))),
        np.einsum(f"{of_a},{of_y}->{of_b}", cast(a, at(kept_a, of_a)), dy),
    )
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, atol=1e-5 * np.abs(e).max())


def test_tiles_and_whole_tensors():
    """deepseek_v3 at 8 for 128, its tiles of w 8 long along what a product contracts (inputs forward, outputs backward)
    and 2 across; and one scale for a tensor: numpy over the same blocks."""
    rule = recipe("deepseek_v3", "block=8", P2="rows=2", P4="rows=2")

    def tiled(w, height, width):
        w = w.copy()
        for i, j in np.ndindex(w.shape[0] // height, w.shape[1] // width):
            tile = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
            w[tile] = cast_along(w[tile], (0, 1), "e4m3fn", 0)
        return w

    tensor = Recipe(P1=Operand("e4m3fn", rows=0))
    y, dx, flat = jax.jit(
        lambda x, w, dy: (*products(linear_of(rule), x, w, dy)[:2], linear_of(tensor)(x, w))
    )(X, W, DY)  # fmt: skip
    expected = cast_along(X, (2,), "e4m3fn", 8) @ tiled(W, 8, 2), cast_along(DY, (2,), "e4m3fn", 8) @ tiled(W, 2, 8).T
    np.testing.assert_allclose(y, expected[0], atol=1e-4)
    np.testing.assert_allclose(dx, expected[1], atol=1e-4)
    np.testing.assert_allclose(flat, cast_along(X, (0, 1, 2), "e4m3fn", 0) @ W, atol=1e-4)


@pytest.mark.parametrize("name", ["capybara", pytest.param("nvfp4", marks=pytest.mark.slow)])
def test_transformations_leave_the_numbers(name):
    """Two layers of 32 tokens in a loop, against scan with remat, and vmap over replicas: with stochastic rounding too,
    the draws being the data's. 1e-5: sums may be fused in another way, though no rounding may flip."""
    product = dot(CASES[name])
    w, x = RNG.normal(size=(2, 2, 16, 16)).astype(np.float32) / 4, RNG.normal(size=(2, 2, 16, 16)).astype(np.float32)

    def looped(w, x):
        for one in w:
            x = product(x, one)
        return (x * x).sum()

    def scanned(w, x):
        return (lax.scan(jax.checkpoint(lambda x, w: (product(x, w), None)), x, w)[0] ** 2).sum()

    @jax.jit
    def gradients(w, x):
        loops = [jax.value_and_grad(f)(w[0], x[0]) for f in (looped, scanned)]
        replicas = jax.vmap(jax.value_and_grad(scanned), spmd_axis_name="replica")(w, x)
        return [*loops, jax.tree.map(lambda a: a[0], replicas)]

    first, *others = gradients(w, x)
    for other in others:
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())


@pytest.mark.slow
def test_on_eight_devices(request):
    """Sharded over replicas, batch and features: the numbers of one device, within float32 sums in another order."""
    found = tiny.on_devices("tests.quant.devices", cache=request.config.cache.mkdir("jax"), optimised=True)
    assert set(found.pop("bits").values()) == {0}
    assert set(found) == set(CASES)
    for name, differences in found.items():
        assert max(differences) < 1e-5, name


def test_fp8_products_are_the_simulated_ones(monkeypatch):
    """In float32 they differ in the order of sums alone, 1e-5 of the largest; blocks of 16 of 24, 40 and 60, with both
    kinds of scale and of block. On CPU XLA multiplies the same FP8 operands after widening them."""
    rule = recipe("mxfp8", "block=16", P2="rows=16,scale=float32", P3="e5m2ieee", P5="scale=float32")
    with pytest.raises(InputError, match=r"fp8=native: FP8 products must have an NVIDIA GPU .* this is cpu"):
        dot_general(rule, fp8="native")
    simulated = dot_general(rule)
    monkeypatch.setattr(module, "_missing", lambda device: "")
    native = dot_general(rule, fp8="native")
    text = jax.jit(lambda x, w: native(x, w, LINEAR)).lower(X, W).as_text()
    assert "f8E4M3FN" in text
    both = [partial(f, dimension_numbers=LINEAR) for f in (simulated, native)]
    run = jax.jit(lambda *a: [products(f, *a) for f in both])
    for s, n in zip(*run(X, W, DY), strict=True):
        np.testing.assert_allclose(n, s, atol=1e-5 * np.abs(s).max())
    dims, *shapes = ATTENTION["scores"]
    a, b = (RNG.normal(size=shape).astype(np.float32) for shape in shapes)
    s, n = jax.jit(lambda a, b: (simulated(a, b, dims), native(a, b, dims)))(a, b)
    np.testing.assert_allclose(n, s, atol=1e-5 * np.abs(s).max())


def test_what_runs_where(monkeypatch):
    on_cpu = arithmetic(RECIPES["mxfp8"])
    assert set(on_cpu) == {"forward", "input gradient", "weight gradient"}
    assert all(how.startswith("simulated: FP8 products must have") for how in on_cpu.values())

    class Device:
        platform, device_kind = "gpu", "NVIDIA"

        def __init__(self, capability):
            self.compute_capability = capability

    hopper = Device("9.0")
    assert "compute capability 8.9" in arithmetic(RECIPES["mxfp8"], device=Device("8.0"))["forward"]
    assert "compute capability 8.9" in arithmetic(RECIPES["mxfp8"], device=Device("gfx942"))["forward"]
    assert set(arithmetic(RECIPES["deepseek_v3"], "native", hopper).values()) == {"native"}
    assert set(arithmetic(RECIPES["mxfp8"], "simulated", hopper).values()) == {"simulated: as asked"}
    assert all("has been faster" in how for how in arithmetic(RECIPES["mxfp8"], device=hopper).values())
    mixed = recipe("mxfp8", P1="none", P3="block=16")
    assert arithmetic(mixed, "native", hopper) == {
        "forward": "simulated: P1 is not cast",
        "input gradient": "simulated: blocks of P3 and P4 are 16 and 32 long",
        "weight gradient": "native",
    }
    other = recipe("mxfp8", P6="e4m3")
    wanted = "simulated: P6 is e4m3, and tensor cores take e4m3fn and e5m2ieee"
    assert arithmetic(other, "native", hopper)["weight gradient"] == wanted
    with pytest.raises(InputError, match="fp8=native: no product can be, forward: P1 is not cast"):
        arithmetic(RECIPES["capybara"], "native", hopper)
    with pytest.raises(InputError, match="fp8='fast': must be one of auto, native, simulated"):
        arithmetic(Recipe(), "fast")


def test_trains_flax_linen_and_nnx():
    """A Dense and a Linear, all operands in E4M3: a step lowers the loss, by gradients that are not the plain ones."""
    x, target = X.reshape(-1, 24), RNG.normal(size=(60, 8)).astype(np.float32)
    product = dot_general(RECIPES["all"])
    dense, plain = linen.Dense(8, dot_general=product), linen.Dense(8)
    params = plain.init(jax.random.key(0), x)

    def loss(layer, params):
        return ((layer.apply(params, x) - target) ** 2).mean()

    @jax.jit
    def step(params):
        value, gradients = jax.value_and_grad(partial(loss, dense))(params)
        updates, _ = optax.sgd(0.1).update(gradients, optax.sgd(0.1).init(params))
        after = optax.apply_updates(params, updates)
        return value, loss(dense, after), gradients, jax.grad(partial(loss, plain))(params)

    before, after, gradients, exact = step(params)
    assert after < before
    kernel, other = gradients["params"]["kernel"], exact["params"]["kernel"]
    assert 0 < np.abs(kernel - other).max() < 0.1 * np.abs(other).max()

    model = nnx.Linear(24, 8, dot_general=product, rngs=nnx.Rngs(0))
    model.kernel[...], model.bias[...] = params["params"]["kernel"], params["params"]["bias"]
    value, of_nnx = nnx.jit(nnx.value_and_grad(lambda m: ((m(x) - target) ** 2).mean()))(model)
    assert float(value) == pytest.approx(float(before), rel=1e-6)
    np.testing.assert_allclose(of_nnx["kernel"][...], kernel, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"out_sharding=.*must be None"):
        product(x, x, (((1,), (1,)), ((), ())), out_sharding=jax.sharding.PartitionSpec())

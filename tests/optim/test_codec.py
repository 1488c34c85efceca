"""The codecs against float64 searches over each format's values; bytes counted; eight devices send the small types."""

import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxlab.optim import diloco
from jaxlab.optim.codec import CODECS, decode, encode, exchange, sent_bytes
from tests import quick, tiny
from tests.optim import devices
from tests.train.devices import groups

RNG = np.random.default_rng(0)
# All values of each format before scaling, from its definition.
VALUES = {
    "int8": np.arange(-127, 128.0),
    "e3m0": np.array([0.0, *(s * 2.0**e for s in (-1, 1) for e in range(-2, 5))]),
}
X = (RNG.normal(size=(3, 4, 33)) * 10.0 ** RNG.integers(-6, 3, size=(3, 4, 1))).astype(np.float32)
encoded = jax.jit(encode, static_argnums=1)
decoded = jax.jit(decode, static_argnums=(1, 2))


def there_and_back(x, codec):
    return np.asarray(decoded(encoded(x, codec), codec, x.shape))


@pytest.mark.parametrize("codec", VALUES)
def test_nearest_of_all_values(codec):
    """Every element becomes a scaled value of the format, and none is nearer: brute force in float64. Tolerance: the
    scaled value and the quotient that is rounded are float32."""
    assert len(VALUES["e3m0"]) == 15
    found = there_and_back(X, codec).astype(np.float64)
    grid = VALUES[codec] / VALUES[codec].max() * np.abs(X).max(-1, keepdims=True).astype(np.float64)
    distance = np.abs(X[..., None] - grid[..., None, :])
    nearest = np.abs(found[..., None] - grid[..., None, :]).min(-1)
    size = np.abs(X).max(-1, keepdims=True)
    assert (nearest <= 1e-7 * size).all()
    assert (np.abs(found - X) <= distance.min(-1) + 1e-6 * size).all()


@pytest.mark.parametrize("passes", ["none", "few", "all"])
@pytest.mark.parametrize("codec", VALUES)
def test_the_values_of_a_format_come_back_exactly(codec, passes):
    """Not compiled, and compiled with few passes of XLA or all: it makes products of some divisions."""
    values = VALUES[codec].astype(np.float32)[None]
    with {"none": jax.disable_jit, "few": quick.compiling, "all": nullcontext}[passes]():
        found = jax.jit(lambda x: decode(encode(x, codec), codec, x.shape))(values)
    np.testing.assert_array_equal(found, values)


def test_ties_go_to_the_even_code():
    """Codes of e3m0 in order: 0, 2^-2, 2^-1, ..., 2^4. int8: as numpy rounds."""
    magnitudes = np.sort(VALUES["e3m0"])[7:]
    ties = np.append((magnitudes[1:] + magnitudes[:-1]) / 2, 16).astype(np.float32)
    expected = magnitudes[[0, 2, 2, 4, 4, 6, 6, 7]]
    np.testing.assert_array_equal(there_and_back(np.stack([ties, -ties]), "e3m0"), [expected, -expected])
    halves = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127]], np.float32)
    np.testing.assert_array_equal(encoded(halves, "int8")["values"], np.round(halves))


def test_rows_of_tiny_numbers_fade_and_do_not_saturate():
    """2^-120 times a quarter is a quarter of 127, 32; below 127 x 2^-126 a row is in steps of 2^-126."""
    x = np.array([[1, 0.25, -0.5], [2.0**-6, 2.0**-8, 0], [0, 0, 0]], np.float32) * np.float32(2.0**-118)
    np.testing.assert_array_equal(encoded(x, "int8")["values"], [[127, 32, -64], [4, 1, 0], [0, 0, 0]])


def test_bfloat16_is_that_of_ml_dtypes():
    np.testing.assert_array_equal(there_and_back(X, "bfloat16"), X.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_two_values_a_byte():
    """Rows of 3: sign 8 and exponent code in each half, the last byte's high half empty."""
    wire = encoded(np.array([[16.0, -0.25, 8.0], [0, 0, 0]], np.float32), "e3m0")
    assert wire["values"].dtype == jnp.uint8
    np.testing.assert_array_equal(wire["values"], [[7 | (8 + 1) << 4, 6], [0, 0]])
    np.testing.assert_array_equal(wire["scale"], [[16.0], [0.0]])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(2,), (2, 3, 5)])
def test_zeros_shapes_and_replicas(codec, shape):
    """Zeros stay zeros; the leading axis is never mixed: each replica alone gives the same."""
    np.testing.assert_array_equal(there_and_back(np.zeros(shape, np.float32), codec), np.zeros(shape))
    x = RNG.normal(size=shape).astype(np.float32)
    alone = np.concatenate([there_and_back(x[i : i + 1], codec) for i in range(shape[0])])
    np.testing.assert_array_equal(there_and_back(x, codec), alone)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible(codec, bad):
    x = np.array([[1.0, bad, -3.0], [1.0, 2.0, 4.0]], np.float32)
    found = there_and_back(x, codec)
    assert not np.isfinite(found[0, 1])
    assert np.isfinite(found[1]).all()


def test_replicas_are_encoded_before_the_mean():
    """Changes 16 and 5 of one weight (beside 16): 5 is sent as 4, mean 10; the mean 10.5 would have been sent as 8."""
    replicas = -np.array([[16.0, 16.0], [5.0, 16.0]], np.float32)
    delta = jax.jit(lambda r: diloco.outer_gradient(jnp.zeros(2), r, exchange=exchange("e3m0")))(replicas)
    np.testing.assert_array_equal(delta, [10.0, 16.0])


def test_float32_changes_nothing():
    deltas = {"w": jnp.asarray(X)}
    assert exchange("float32", share=None)(deltas) is deltas


TREE = {"kernel": np.ones((3, 8, 5), np.float32), "scale": np.ones(7, np.float16), "alone": np.float32(1)}


@pytest.mark.parametrize(
    ("codec", "expected"),
    # elements: 24 rows of 5, 1 of 7, 1 of 1; with a scale a row for int8 and e3m0
    [("float32", 4 * 128), ("bfloat16", 2 * 128), ("int8", 128 + 4 * 26), ("e3m0", 24 * 3 + 4 + 1 + 4 * 26)],
)
def test_bytes_are_counted_by_hand_and_in_the_arrays(codec, expected):
    assert sent_bytes(TREE, codec) == expected
    wire = jax.tree.map(lambda p: encoded(np.float32(p)[None], codec), TREE)
    assert sum(x.nbytes for x in jax.tree.leaves(wire)) == expected


def test_an_unknown_codec_is_named():
    for use in (lambda: exchange("fp4"), lambda: sent_bytes(TREE, "fp4"), lambda: encode(X, "fp4")):
        with pytest.raises(ValueError, match="codec='fp4': must be one of float32, bfloat16, int8, e3m0"):
            use()


@pytest.fixture(scope="module")
def compiled(request):
    return tiny.on_devices("tests.optim.devices", cache=request.config.cache.mkdir("jax"), optimised=True)


def sent(text: str) -> list[tuple[str, str, int]]:
    """(collective, dtype, elements) of everything that crosses the replica axis in a compiled program."""
    found = []
    for line in text.splitlines():
        match = re.search(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\w*\(", line)
        # the mesh is replicas x data: devices of one replica have neighbouring numbers
        if match and any(len({device // devices.DATA for device in group}) > 1 for group in groups(line)):
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
                found.append((match[2], dtype, int(np.prod([int(d) for d in dims.split(",")]))))
    return found


# Of half the layers and the embedding, on one of two devices of a replica; everything gathered has 4 replicas' rows.
ELEMENTS = {"kernel": 3 * 4 * 48, "embedding": 40 * 12}
SCALES = [("all-gather", "f32", devices.REPLICAS * rows) for rows in (3 * 4, 40)]


@pytest.mark.parametrize(
    ("codec", "wire"),
    [
        ("float32", [("all-reduce", "f32", n) for n in ELEMENTS.values()]),
        ("bfloat16", [("all-gather", "u16", 4 * n) for n in ELEMENTS.values()]),
        ("int8", [("all-gather", "s8", 4 * n) for n in ELEMENTS.values()] + SCALES),
        ("e3m0", [("all-gather", "u8", 4 * n // 2) for n in ELEMENTS.values()] + SCALES),
    ],
)
def test_only_the_small_types_cross_the_replica_axis(compiled, codec, wire):
    assert sorted(sent(compiled[codec]["text"])) == sorted(wire)


@pytest.mark.parametrize("codec", CODECS)
def test_eight_devices_compute_what_one_computes(compiled, codec):
    """1e-6: the four changes are summed in another order; a code that flips would move a weight by more than 1e-4."""
    expected, _ = jax.jit(devices.synchronise, static_argnums=2)(*devices.params(), codec)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.array(b), atol=1e-6), expected, compiled[codec]["theta"])

"""What distinguishes the variants of the decoder, beside their formulas (test_reference.py): limits, starts, norms."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.model import families
from jaxlab.model.decoder import Decoder
from jaxlab.model.linear import Linear
from jaxlab.optim.inner import matrices
from tests.model import reference

TOKENS = np.random.default_rng(1).integers(0, 29, (2, 9)).astype(np.int32)
NGPT = families.ARCHITECTURES["ngpt"]


def features(c, params, scan=True, **options):
    model = Decoder(c, scan=scan, **options)
    run = jax.jit(lambda params: model.apply({"params": params}, TOKENS, method="features"))
    return run(params)


def test_limits_of_mix_ln():
    """No layer, and every layer, is Post-LN: the same programs. Halfway it is another one."""

    def traced(placement, fraction):
        c = reference.tiny(num_layers=4, norm_placement=placement, mix_fraction=fraction)
        shapes = jax.eval_shape(partial(reference.random_params, c))
        apply = partial(Decoder(c, scan=True).apply, tokens=TOKENS)
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(lambda params: apply({"params": params}))(shapes)))

    pre, post = traced("pre", 0.5), traced("post", 0.5)
    assert traced("mix", 0.0) == pre
    assert traced("mix", 1.0) == post
    assert len({pre, post, traced("mix", 0.5)}) == 3


@pytest.mark.parametrize(
    ("layers", "fraction", "post"),
    [(12, 0.25, 3), (24, 0.25, 6), (4, 0.25, 1), (32, 0.0625, 2), (3, 0.67, 2), (5, 0.25, 1)],
)
def test_the_first_layers_are_post_ln(layers, fraction, post):
    """Mix-LN: 3 of 12, 6 of 24 (arXiv 2412.13795), 2 of the 32 layers of its 7B model."""
    c = reference.tiny(num_layers=layers, norm_placement="mix", mix_fraction=fraction)
    assert [layer.norm_placement for layer in families.layers(c)] == ["post"] * post + ["pre"] * (layers - post)


def test_scanned_and_unrolled():
    """Layers that are three scans: post, pre, and pre of another width; gradients are in test_layers.py."""
    c = reference.tiny(num_layers=3, norm_placement="mix", mix_fraction=0.33, layer_d_ff="8,8,24")
    params = reference.random_params(c)
    scanned, unrolled = (features(c, params, scan=scan)[0] for scan in (True, False))
    np.testing.assert_allclose(scanned, unrolled, atol=1e-5)  # numbers near 1


def test_weight_normalisation_starts_as_the_plain_linear():
    """From the same seed the same kernel, and gains that give it back."""
    x = np.float32(np.random.default_rng(0).normal(size=(3, 5)))
    plain, weight = (Linear(7, weight_norm=w).init_with_output(jax.random.key(0), x) for w in ("none", "weight"))
    kernel = plain[1]["params"]["kernel"]
    np.testing.assert_array_equal(weight[1]["params"]["kernel"], kernel)
    np.testing.assert_allclose(weight[1]["params"]["gain"], np.linalg.norm(kernel, axis=0), rtol=1e-6)
    np.testing.assert_allclose(weight[0], plain[0], atol=1e-6)


def test_gains_are_vectors_in_all_of_the_ffn_and_only_there():
    """As many as outputs, a layer, and not decayed."""
    c = reference.tiny(ffn_weight_norm="weight", ffn="swiglu")
    layer = jax.eval_shape(partial(reference.random_params, c))["blocks"]
    assert {name: linear["gain"].shape for name, linear in layer["ffn"].items()} == {
        "up": (2, c.d_ff), "gate": (2, c.d_ff), "down": (2, c.d_model)
    }  # fmt: skip
    assert all(linear.keys() == {"kernel"} for name, linear in layer["attention"].items() if "norm" not in name)
    assert matrices(layer)["ffn"]["down"] == {"kernel": True, "gain": False}


@pytest.mark.parametrize(("weight_norm", "length"), [("hyperspherical", 1.0), ("weight", 3.0)])
def test_what_is_multiplied_is_normalised(weight_norm, length):
    """The product, which may cast its operands, gets the normalised weights, in the type of the activations."""
    seen = []

    def product(x, w):
        seen.append(w)
        return x @ w

    kernel = np.float32(np.random.default_rng(0).normal(size=(5, 7)))
    params = {"kernel": kernel} | ({"gain": np.full(7, 3.0, np.float32)} if weight_norm == "weight" else {})
    Linear(7, dot=product, weight_norm=weight_norm).apply({"params": params}, jnp.ones((2, 5), jnp.bfloat16))
    assert seen[-1].dtype == jnp.bfloat16
    wanted = length * kernel / np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(np.float32(seen[-1]), wanted, rtol=2**-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_hidden_states_of_ngpt_have_norm_1(dtype):
    """Whatever the parameters; bfloat16 rounds each entry by 2^-9."""
    c = reference.tiny(**NGPT)
    hidden, head = features(c, reference.random_params(c), dtype=dtype)
    assert hidden.dtype == head.dtype == dtype
    norms = np.linalg.norm(np.float32(hidden), axis=-1)
    np.testing.assert_allclose(norms, 1, atol=1e-6 if dtype == jnp.float32 else 2**-8)


def test_width_is_a_multiple_rounded_to_eight():
    """The widths of the Mix-LN recipe (arXiv 2412.13795)."""
    assert [families.width(d, 2.67) for d in (512, 768, 1_024)] == [1_368, 2_048, 2_736]
    assert [families.width(768, m) for m in (1, 4, 8)] == [768, 3_072, 6_144]


def test_stacks_of_unequal_widths():
    """A stack for each run of layers of one width, named by its first; equal widths are the plain tree."""
    shapes = jax.eval_shape(lambda: reference.random_params(reference.tiny(num_layers=4, layer_d_ff="8,24,24,8")))
    stacks = {name: shapes[name]["ffn"]["up"]["kernel"].shape for name in shapes if name.startswith("blocks")}
    assert stacks == {"blocks": (1, 16, 8), "blocks_1": (2, 16, 24), "blocks_3": (1, 16, 8)}
    equal, plain = (reference.random_params(reference.tiny(layer_d_ff=w)) for w in ("24,24", ""))
    jax.tree.map(np.testing.assert_array_equal, equal, plain)

"""Ways of running the layers: scanned or unrolled, with or without recomputation, alone or under the replicas' vmap."""

import io
import math
import re
from contextlib import redirect_stdout
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name, print_saved_residuals

from jaxlab.model.decoder import REMAT, Decoder
from jaxlab.model.loss import objective
from tests.model import reference

TOKENS = np.random.default_rng(1).integers(0, 29, (2, 2, 13)).astype(np.int32)  # two replicas
SMALL = {
    "gated": {"ffn": "swiglu", "norm": "rms", "tied": False, "num_kv_heads": 2},
    "biased": {"positions": "learned", "use_bias": True},
}


def gradients(c, params, **options):
    """Objective and gradients of two replicas with the same parameters and other tokens, as the trainer maps them."""
    grad = jax.value_and_grad(objective(Decoder(c, **options), 256), has_aux=True)
    return jax.jit(jax.vmap(grad, in_axes=(None, 0)))(params, TOKENS)


def assert_close(a, b, relative):
    """To a share of the leaf's largest value, and of the whole tree's: some gradients are zero but for rounding."""
    largest = max(np.abs(y).max() for y in jax.tree.leaves(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.abs(x - y).max() <= relative * np.abs(y).max() + 1e-6 * largest


def test_scanned_and_unrolled_start_from_the_same_parameters():
    c = reference.tiny(**SMALL["biased"])
    trees = [jax.jit(Decoder(c, scan=s).init)(jax.random.key(0), TOKENS[0, :, :-1]) for s in (False, True)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *trees)  # the same draws, compiled apart


@pytest.fixture(scope="module", params=SMALL.values(), ids=SMALL)
def unrolled(request):
    c = reference.tiny(**request.param)
    params = reference.random_params(c)
    return c, params, gradients(c, params, scan=False)


@pytest.mark.parametrize(
    ("scan", "remat"), [(True, "none"), (True, "dots"), (True, "full"), (False, "dots"), (False, "full")]
)
def test_every_way_gives_the_same_gradients(unrolled, scan, remat):
    """On the same parameters. The same operations, fused otherwise: a few float32 roundings."""
    c, params, wanted = unrolled
    assert_close(gradients(c, params, scan=scan, remat=remat), wanted, 2e-5)


@pytest.mark.parametrize("replicas", [None, 2], ids=["alone", "mapped"])
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_recomputation_keeps_what_it_says(scan, replicas):
    """Kept for the backward pass, floats a token and layer. full: the layer's input. dots: also the output of every
    linear, but for the last one, whose value nothing in the layer needs again. Without: more than that."""
    c = reference.tiny(**SMALL["gated"])
    kept = {remat: kept_per_token(c, replicas, scan=scan, remat=remat) for remat in ("none", "dots", "full")}
    assert kept["full"] == c.d_model
    projections = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim + c.d_model
    assert kept["dots"] == c.d_model + projections + 2 * c.d_ff
    assert kept["none"] > 2 * kept["dots"]


def test_recomputation_keeps_what_attention_kernels_need():
    """cuDNN's forward pass by the name of its primitive, which this jax must still have, and whatever a kernel calls
    `attention`; its backward pass is nothing to keep."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    keeps = REMAT["dots"]
    assert keeps(cudnn._dot_product_attention_fwd_p_wrapper)
    assert not keeps(cudnn._dot_product_attention_bwd_p_wrapper)
    text = io.StringIO()
    with redirect_stdout(text):
        layer = jax.checkpoint(lambda x: jnp.sin(checkpoint_name(jnp.sin(x), "attention")), policy=keeps)
        print_saved_residuals(layer, 1.0)
    assert "named 'attention'" in text.getvalue()


def kept_per_token(c, replicas, **options):
    """Activations that one more layer keeps for its backward pass: those of two layers less those of one."""
    shape, length = (1, 11) if replicas is None else (replicas, 1, 11), 11  # 11: no other axis has this size
    tokens = np.ones(shape, np.int32)

    def kept(num_layers):
        deep = reference.tiny(**(c.to_dict() | {"num_layers": num_layers}))
        model = Decoder(deep, **options)

        def hidden(params, tokens):
            return model.apply({"params": params}, tokens, method="features")[0].sum()

        mapped = hidden if replicas is None else jax.vmap(hidden, in_axes=(None, 0))
        text = io.StringIO()
        with redirect_stdout(text):
            print_saved_residuals(lambda p: mapped(p, tokens).sum(), reference.random_params(deep))
        shapes = [[int(n) for n in m.split(",")] for m in re.findall(r"^f32\[([\d,]+)\]", text.getvalue(), re.M)]
        return sum(math.prod(s) for s in shapes if length in s)

    return (kept(2) - kept(1)) / tokens.size


def test_logits_of_bfloat16_activations_are_summed_in_float32():
    """They are the products of the rounded hidden states and head, not these sums rounded to bfloat16 again."""
    c = reference.tiny()
    params = reference.random_params(c)
    decoder, tokens = Decoder(c, dtype=jnp.bfloat16, scan=True), TOKENS[0, :, :-1]
    hidden, head = decoder.apply({"params": params}, tokens, method="features")
    logits = decoder.apply({"params": params}, tokens)
    wanted = np.einsum("bld,vd->blv", np.float64(hidden), np.float64(head))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(np.float64(logits.astype(jnp.bfloat16)) - wanted).max() > 1e-3

"""The formula for FLOPs against the products of the traced program, exactly, and against XLA's own count."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params
from ml_collections import FrozenConfigDict

from jaxlab.config import default
from jaxlab.cost import flops
from jaxlab.model.decoder import Decoder
from jaxlab.model.families import ARCHITECTURES
from jaxlab.model.loss import objective

BATCH, CONTEXT = 8, 256
SHAPE = {
    "num_layers": 6, "d_model": 256, "num_heads": 8, "num_kv_heads": 8, "head_dim": 32, "d_ff": 1_024,
    "context": CONTEXT, "vocab_size": 1_024,
}  # fmt: skip


def traced(family, **changes):
    """(config, value and gradient of the unrolled model with plain attention, traced for the batch)."""
    c = FrozenConfigDict(default().model.to_dict() | ARCHITECTURES[family] | SHAPE | changes)
    model = Decoder(c)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    gradient = jax.value_and_grad(objective(model, CONTEXT), has_aux=True)
    return c, jax.jit(gradient).trace(params, jax.ShapeDtypeStruct((BATCH, CONTEXT + 1), jnp.int32))


def products(jaxpr) -> int:
    """FLOPs of all products of matrices in a jaxpr without loops: 2 x elements of the result x elements summed over.

    Products with a vector are the norms' sums, not the model's.
    """
    total = 0
    for eqn in jaxpr.eqns:
        assert eqn.primitive.name not in ("scan", "while")
        if eqn.primitive.name == "dot_general":
            (summed, _), _ = eqn.params["dimension_numbers"]
            a, y = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
            total += 2 * math.prod(y) * math.prod(a[i] for i in summed) * (1 not in y)
        total += sum(products(inner) for inner in jaxprs_in_params(eqn.params))
    return total


@pytest.mark.parametrize("family", [name for name, keys in ARCHITECTURES.items() if not keys["num_experts"]])
def test_formula_is_the_products_and_within_2_percent_of_xla(family):
    """XLA also counts elementwise work (not exp and the like): 0.7 to 1.4 % at this shape."""
    c, program = traced(family)
    tokens = BATCH * CONTEXT
    formula = tokens * flops.training_per_token(c, CONTEXT)
    assert formula == products(program.jaxpr.jaxpr)
    assert 1 <= program.lower().cost_analysis()["flops"] / formula < 1.02


@pytest.mark.parametrize(
    "changes",
    [{"num_kv_heads": 2}, {"head_dim": 48}, {"vocab_size": 300, "tied": False}, {"layer_d_ff": "256,640"}],
    ids=str,
)
def test_formula_is_the_products_at_odd_shapes(changes):
    c, program = traced("qwen3", num_layers=2, **changes)
    assert BATCH * CONTEXT * flops.training_per_token(c, CONTEXT) == products(program.jaxpr.jaxpr)


def test_six_flops_a_parameter_and_token():
    """Without attention's square and with a head as large as the embedding, C = 6 N D (arXiv 2001.08361)."""
    c = FrozenConfigDict(default().model.to_dict() | ARCHITECTURES["llama"] | SHAPE)
    parts = flops.forward_per_token(c, CONTEXT)
    matrices = 6 * (256 * 256 * 4 + 256 * 1024 * 3) + 256 * 1024
    assert 3 * (parts["linears"] + parts["head"]) == 6 * matrices
    assert parts["attention"] == 2 * 2 * CONTEXT * 256 * 6


def test_peak_takes_the_longest_name():
    """Data sheets, dense bf16: v5e 197, v5p 459, H100 SXM 989 TFLOP/s."""
    assert flops.peak("TPU v5 lite") == 197e12
    assert flops.peak("TPU v5") == flops.peak("TPU v5p") == 459e12
    assert flops.peak("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.peak("cpu") is None

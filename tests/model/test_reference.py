"""Every model variant against the numpy decoder of reference.py: logits, objective and the gradient of every leaf."""

import jax
import numpy as np
import pytest

from jaxlab.model.decoder import Decoder
from jaxlab.model.families import ARCHITECTURES
from jaxlab.model.loss import objective
from tests.model import reference

FAMILIES = {
    name: {k: v for k, v in keys.items() if k not in ("norm_eps", "rope_theta", "init_std", "z_loss")}
    for name, keys in ARCHITECTURES.items()
    if not keys["num_experts"]  # test_moe.py
}


def variant(norm, positions, ffn, *flags, heads=(4, 4, 4)):
    given = {name: name in flags for name in ("qk_norm", "tied", "use_bias")}
    shape = dict(zip(("num_heads", "num_kv_heads", "head_dim"), heads, strict=True))
    return {"norm": norm, "positions": positions, "ffn": ffn} | given | shape


# The families, then combinations such that every pair of values of two keys occurs.
VARIANTS = [
    *(FAMILIES[name] for name in FAMILIES if name != "ngpt"),
    variant("layer", "learned", "relu", "qk_norm", heads=(4, 2, 6)),
    variant("layer", "rotary", "relu2", "use_bias", heads=(4, 1, 4)),
    variant("rms", "learned", "gelu", "qk_norm", "tied", "use_bias", heads=(2, 1, 10)),
    variant("rms", "rotary", "relu", "tied", "use_bias", heads=(4, 2, 2)),
    variant("rms", "learned", "relu2", "tied", heads=(4, 2, 8)),
    variant("layer", "rotary", "swiglu", "qk_norm", "use_bias", heads=(8, 2, 6)),
    variant("layer", "learned", "swiglu", "tied", heads=(1, 1, 16)),
    variant("rms", "rotary", "gelu", heads=(4, 4, 6)),
    variant("layer", "rotary", "relu2", "qk_norm", "tied", heads=(8, 4, 4)),
    variant("rms", "learned", "swiglu", "use_bias", heads=(2, 2, 4)),
    variant("layer", "rotary", "relu", "use_bias", "qk_norm", heads=(2, 2, 16)),
]
# What studies vary of a family.
CHANGES = [
    FAMILIES["gpt2"]
    | {"norm_placement": "mix", "mix_fraction": 0.67, "num_layers": 3, "layer_d_ff": "8,24,24"}
    | {"ffn_weight_norm": "weight"},
    FAMILIES["ngpt"] | {"layer_d_ff": "8,24", "num_kv_heads": 2},
]


@pytest.mark.parametrize("flags", VARIANTS + CHANGES, ids=lambda f: "-".join(str(v) for v in f.values()))
def test_logits_objective_and_gradients(flags):
    c = reference.tiny(**flags)
    params = reference.random_params(c)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, c.vocab_size, (2, 10)).astype(np.int32)
    tokens[1, 6:] = -1
    model = Decoder(c, scan=True)  # compiles faster; test_layers.py holds the unrolled model to it

    def run(params):
        logits = model.apply({"params": params}, np.maximum(tokens[:, :-1], 0))
        return logits, *jax.value_and_grad(objective(model, 256), has_aux=True)(params, tokens)

    logits, (value, sums), gradient = jax.jit(run)(params)
    wanted = reference.logits(c, params, np.maximum(tokens[:, :-1], 0))
    # float32 has 1.2e-7 relative; some 10 roundings in sequence, relative to the largest logit.
    assert np.abs(logits - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert sums["tokens"] == (tokens[:, 1:] >= 0).sum()
    assert abs(value - reference.objective(c, params, tokens)) < 1e-5 * value
    whole = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
    exact, tree = jax.tree.flatten(jax.tree.map(np.float64, params))
    for i, (path, g) in enumerate(jax.tree_util.tree_leaves_with_path(gradient)):
        direction = rng.normal(size=g.shape) + np.sign(g)  # never almost orthogonal to the gradient
        direction /= np.linalg.norm(direction)

        def along(step, i=i, direction=direction):
            moved = [*exact[:i], exact[i] + step * direction, *exact[i + 1 :]]
            return reference.objective(c, jax.tree.unflatten(tree, moved), tokens)

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        # Central differences are good to 1e-8 here; the rest is float32. Some gradients are zero (keys' bias).
        assert abs(slope - (g * direction).sum()) < 2e-5 * np.linalg.norm(g) + 1e-7 * whole, jax.tree_util.keystr(path)


def test_every_pair_of_values_of_two_keys_is_covered():
    values = {
        k: sorted({v[k] for v in VARIANTS}, key=str)
        for k in ("norm", "positions", "ffn", "qk_norm", "tied", "use_bias")
    }
    for a in values:
        for b in values:
            if a < b:
                assert {(v[a], v[b]) for v in VARIANTS} == {(x, y) for x in values[a] for y in values[b]}, (a, b)

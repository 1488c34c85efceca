"""Published parameter counts, to the digit, and the counts of initialised trees."""

import itertools
import math

import jax
import jax.numpy as jnp
import pytest
from ml_collections import FrozenConfigDict

from jaxlab.config import default
from jaxlab.model.decoder import Decoder
from jaxlab.model.families import ARCHITECTURES, SIZES, model, parameters
from tests.model import reference


def count(family, size, **changes):
    return parameters(FrozenConfigDict(model(family, size, **changes)))


def initialised(c):
    shapes = jax.eval_shape(Decoder(c, scan=True).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


# arXiv 2503.09799, table of model shapes: layers, d, and 12 L d^2 + 32,768 d in millions.
DILOCO = {
    "35m": (6, 512, "35.65"), "90m": (9, 768, "88.87"), "180m": (12, 1024, "184.55"), "335m": (15, 1280, "336.86"),
    "550m": (18, 1536, "559.94"), "1.3b": (24, 2048, "1275.07"), "2.4b": (30, 2560, "2443.18"),
    "4b": (36, 3072, "4177.53"), "10b": (48, 4096, "9797.89"),
}  # fmt: skip


@pytest.mark.parametrize("size", DILOCO)
def test_diloco_scaling_laws(size):
    layers, d, millions = DILOCO[size]
    n = count("chinchilla", size)
    assert f"{(n['block_matrices'] + n['embedding']) / 1e6:.2f}" == millions
    assert n["block_matrices"] + n["embedding"] == 12 * layers * d**2 + 32_768 * d
    # Its fits are best explained by NanoDO's vocabulary (T5's 32,000 words and 101 more).
    fit = count("chinchilla", size, vocab_size=32_101)
    assert fit["block_matrices"] + fit["embedding"] == 12 * layers * d**2 + 32_101 * d
    assert model("chinchilla", size)["head_dim"] == 64
    assert SIZES["chinchilla"].keys() == DILOCO.keys()


# arXiv 2501.02423, model table: N without embeddings.
FLOATING_POINT = {
    "41m": 40_894_464, "85m": 84_934_656, "154m": 154_140_672, "679m": 679_477_248, "1.2b": 1_233_125_376,
    "7b": 7_083_130_880, "70b": 71_236_059_136,
}  # fmt: skip


@pytest.mark.parametrize("size", FLOATING_POINT)
def test_floating_point(size):
    assert count("llama", size)["block_matrices"] == FLOATING_POINT[size]


# The Mix-LN / GaLore recipe (arXiv 2412.13795), untied: millions of parameters, the norms' scales not counted (with
# them 250m would round to 247.4).
SPECTRAL = {"60m": "58.1", "71m": "70.6", "130m": "134.1", "250m": "247.3", "350m": "367.9", "1b": "1339"}


def spectral(size, **changes):
    n = count("llama", size, **changes)
    return n["block_matrices"] + n["embedding"] + n["head"]


@pytest.mark.parametrize("size", SPECTRAL)
def test_spectral(size):
    digits = len(SPECTRAL[size].partition(".")[2])
    assert f"{spectral(size) / 1e6:.{digits}f}" == SPECTRAL[size]


@pytest.mark.parametrize(
    ("size", "widths", "ends"),
    [
        ("71m", (512, 4_096), ("54.8", "120.8")),
        ("130m", (768, 6_144), ("98.7", "247.3")),
        ("250m", (768, 6_144), ("148", "446")),
    ],
)
def test_spectral_width_sweep(size, widths, ends):
    for width, millions in zip(widths, ends, strict=True):
        digits = len(millions.partition(".")[2])
        assert f"{spectral(size, d_ff=width) / 1e6:.{digits}f}" == millions


@pytest.mark.parametrize(
    ("family", "size", "total"),
    [
        ("gpt2", "124m", 124_439_808),
        ("gpt2", "355m", 354_823_168),
        ("gpt2", "774m", 774_030_080),
        ("gpt2", "1.5b", 1_557_611_200),
        ("internlm2", "1.8b", 1_889_110_016),
        ("qwen3", "0.6b", 596_049_920),
    ],
)
def test_published_checkpoints(family, size, total):
    assert count(family, size)["total"] == total


@pytest.mark.parametrize(("size", "millions"), [("0.5b", "468.2"), ("1b", "1025.6")])
def test_ngpt(size, millions):
    """arXiv 2410.01131, table of models: matrices alone."""
    n = count("ngpt", size)
    assert f"{(n['block_matrices'] + n['embedding'] + n['head']) / 1e6:.1f}" == millions


@pytest.mark.parametrize(
    "changes",
    [
        {"ffn_weight_norm": "weight", "ffn": "swiglu"},
        {"ffn_weight_norm": "weight", "layer_d_ff": "8,24", "use_bias": True, "norm_placement": "mix"},
        {"ffn_weight_norm": "hyperspherical", "norm_placement": "post"},
        ARCHITECTURES["ngpt"] | {"layer_d_ff": "8,24", "num_kv_heads": 2},
    ],
    ids=str,
)
def test_every_variant_is_what_is_initialised(changes):
    c = reference.tiny(**changes)
    assert parameters(c)["total"] == initialised(c)


@pytest.mark.parametrize("family", SIZES)
def test_every_size_is_what_is_initialised(family):
    for size in SIZES[family]:
        c = FrozenConfigDict(model(family, size))
        assert parameters(c)["total"] == initialised(c), size


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("ffn", ["gelu", "swiglu"])
def test_every_combination_of_flags_is_what_is_initialised(norm, ffn):
    shapes = {"learned": (8, 2, 6), "rotary": (4, 4, 4)}
    for *flags, positions in itertools.product((True, False), (True, False), (True, False), shapes):
        c = reference.tiny(
            norm=norm, ffn=ffn, positions=positions, **dict(zip(("qk_norm", "tied", "use_bias"), flags, strict=True)),
            **dict(zip(("num_heads", "num_kv_heads", "head_dim"), shapes[positions], strict=True)),
        )  # fmt: skip
        n = parameters(c)
        assert n["total"] == initialised(c), dict(c)
        outside = n["embedding"] + n["positions"] + n["head"]
        assert n["total"] - n["non_embedding"] == outside
        assert n["non_embedding"] == n["block_matrices"] + n["norms"] + n["biases"]


def test_a_family_gives_every_key_of_the_config():
    for family in ARCHITECTURES:
        for size in SIZES[family]:
            assert model(family, size).keys() == set(default().model)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(KeyError, match=r"family 'lama': must be one of .*llama"):
        model("lama", "7b")
    with pytest.raises(KeyError, match=r"size '8b': must be one of 41m.*70b"):
        model("llama", "8b")

"""configs/spectral.py: every size of the recipe, its variants, and what may not be asked."""

import re
import runpy
from pathlib import Path

import pytest

from jaxlab.config import InputError, check
from jaxlab.model.families import parameters

get_config = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "spectral.py"))["get_config"]
# Mix-LN (2412.13795): parameters in millions, untied and without norms; steps of 512 x 256 tokens, of which warm-up.
SIZES = {"70m": (70.6, 10_000, 1_000), "130m": (134.1, 20_000, 2_000), "250m": (247.3, 40_000, 4_000)}


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_the_recipe_s(size):
    c = get_config(size)
    check(c)
    count = parameters(c.model)
    millions, steps, warmup = SIZES[size]
    assert (count["block_matrices"] + count["embedding"] + count["head"]) / 1e6 == pytest.approx(millions, abs=0.05)
    assert (c.batch.tokens, c.batch.context) == (131_072, 256)
    assert (c.tokens, c.schedule.warmup_tokens) == (steps * 131_072, warmup * 131_072)
    assert (c.optim.b1, c.optim.b2, c.optim.weight_decay, c.optim.clip) == (0.9, 0.999, 0.0, 0.0)
    assert (c.schedule.peak_lr, c.schedule.name, c.schedule.final_fraction) == (1e-3, "cosine", 0.1)
    assert c.spectra.tokens == 131_072


@pytest.mark.parametrize(("width", "millions"), [(1, 148.0), (8, 446.0)])
def test_widths_of_250m(width, millions):
    """The ends of its published sweep, D 768 to 6,144."""
    c = get_config(f"250m,width={width}")
    count = parameters(c.model)
    assert c.model.d_ff == 768 * width
    assert (count["block_matrices"] + count["embedding"] + count["head"]) / 1e6 == pytest.approx(millions, abs=0.5)


def test_variants():
    m = get_config("250m,norm=post,ffn=weight,width=2.67").model
    assert (m.norm_placement, m.ffn_weight_norm, m.d_ff) == ("post", "weight", 2048)
    assert get_config("70m,norm=mix").model.mix_fraction == 0.25
    c = get_config("ngpt,lr=0.003")
    assert (c.model.parametrisation, c.schedule.warmup_tokens, c.schedule.peak_lr) == ("ngpt", 0, 0.003)
    gpt2 = get_config("gpt2").model
    assert (gpt2.ffn, gpt2.norm, gpt2.d_ff) == ("gelu", "layer", 3072)


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("60m", "'60m': must be one of 70m, 130m"),
        ("70m,D=4", "'D=4': must be one of norm, ffn, width, lr"),
        ("70m,width=0", "width=0: must be above 0"),
        ("70m,width=wide", "width=wide: must be a number"),
        ("70m,norm=before", "model.norm_placement='before': must be one of pre, post, mix"),
        ("70m,ffn=spectral", "model.ffn_weight_norm='spectral': must be one of"),
        ("ngpt,norm=post", "model.norm_placement='post': must be 'pre' with model.parametrisation=ngpt"),
    ],
)
def test_what_may_not_be_asked(mode, says):
    with pytest.raises(InputError, match=re.escape(says)):
        check(get_config(mode))

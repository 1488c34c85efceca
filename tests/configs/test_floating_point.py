"""configs/floating_point.py: every published size, its casts."""

import runpy
from pathlib import Path

import pytest

from jaxlab.config import check
from jaxlab.model.families import parameters
from jaxlab.quant.recipes import Operand
from jaxlab.train.program import recipes

get_config = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "floating_point.py"))["get_config"]
# The paper's N, exact: layers (4 h^2 + 3 h f) of its table of models (2501.02423), f = 11,008 for 7B.
SIZES = {"41m": 40894464, "85m": 84934656, "154m": 154140672, "679m": 679477248, "1.2b": 1233125376,
         "7b": 7083130880, "70b": 71236059136}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_the_published_ones(size):
    """And so is the recipe: 5,000 steps of 1,024 sequences of 2,048 tokens, 500 of them warm-up, cosine to 0."""
    c = get_config(f"{size},e4m3")
    check(c)
    assert parameters(c.model)["block_matrices"] == SIZES[size]
    assert (c.batch.tokens, c.batch.context, c.tokens) == (1024 * 2048, 2048, 10_485_760_000)
    assert (c.schedule.peak_lr, c.schedule.warmup_tokens, c.schedule.final_fraction) == (3e-4, 500 * 1024 * 2048, 0)
    o = c.optim
    assert (o.b1, o.b2, o.eps, o.weight_decay, o.decay, o.clip) == (0.9, 0.95, 1e-8, 0.1, "coupled", 1.0)


def test_formats_become_casts():
    (cast,) = recipes(get_config("85m,e4m3,block=128,targets=P2+P5").quant).values()
    assert (Operand("e4m3", 128), Operand("e4m3", 128)) == (cast.P2, cast.P5)
    assert {cast.P1, cast.P3, cast.P4, cast.P6} == {Operand()}
    (cast,) = recipes(get_config("85m,e1m1,block=tensor").quant).values()
    assert (*(Operand("e1m1", 0, rows=0),) * 3, Operand()) == (cast.P2, cast.P4, cast.P6, cast.P1)
    assert not recipes(get_config("85m").quant)[0].casts


def test_tokens_are_whole_batches():
    assert get_config("41m,D=20e9").tokens == 9536 * 1024 * 2048

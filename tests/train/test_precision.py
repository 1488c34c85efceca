"""Casts in the trainer: stages over tokens, what evaluation sees, what is refused before anything compiles."""

import numpy as np
import pytest

from jaxlab.config import InputError, default
from jaxlab.train.build import build
from jaxlab.train.program import recipes
from jaxlab.train.report import precision
from jaxlab.train.state import Clock
from tests import tiny
from tests.train.steps import losses_and_end

pytestmark = pytest.mark.slow

BASE = {"compute__layers": "scan", "tokens": 4_096, "compute__steps_per_call": 3}  # 8 steps of 512
CAST = {"quant__recipe": "all", "quant__cast": "e2m1,block=16", "quant__P5": "none"}


def test_stages_change_the_arithmetic_where_they_say_and_nothing_else(data):
    """Cast up to 2,048 tokens, then not: the first four steps are those of a run that casts throughout, the fifth
    starts from the same parameters and another loss; the end is evaluated as an uncast run would."""
    cast = build(tiny.config(data, **BASE, **CAST))
    staged = build(tiny.config(data, **BASE, **CAST, quant__stages="0:e2m1/2048:none"))
    plain = build(tiny.config(data, **BASE))
    throughout, *_ = losses_and_end(cast)
    found, state, _ = losses_and_end(staged)
    never, *_ = losses_and_end(plain)
    np.testing.assert_array_equal(found[:4], throughout[:4])
    assert (found[4:] != throughout[4:]).all()
    assert (found != never).all()
    assert [block.start.tokens for block in staged.blocks(Clock())] == [0, 1_536, 2_048, 3_584]
    assert staged.evaluate(state) == plain.evaluate(state) == staged.evaluate(state, 2_048)
    assert staged.evaluate(state, 2_047) == cast.evaluate(state) != plain.evaluate(state)
    assert precision(plain) == ""
    said = precision(staged)
    assert "from 0 tokens P1 e2m1/16, P2 e2m1/16, P3 e2m1/16, P4 e2m1/16, P6 e2m1/16 (forward, input gradient" in said
    assert "simulated: FP8 products must have" in said
    assert said.endswith("from 2,048 tokens none")


def test_single_operands_may_be_cast_without_a_recipe():
    q = default().quant
    q.update(P1="e4m3", stages="0:e2m1/500:e4m3,block=8")
    stages = recipes(q)
    assert {tokens: str(rule.P1) for tokens, rule in stages.items()} == {0: "e2m1/0", 500: "e4m3/8"}
    assert all(rule.P2.format == "" for rule in stages.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant__recipe": "fp9"}, "quant.recipe='fp9': must be one of none, capybara, all"),
        ({"quant__recipe": "all", "quant__cast": "e9m9"}, "e9m9"),
        ({"quant__P2": "e4m3,rows=two"}, "quant.P2='e4m3,rows=two': rows must be a whole number"),
        ({"quant__recipe": "all", "quant__stages": "5:e2m1"}, "quant.stages='5:e2m1': tokens must start at 0 and grow"),
        ({"quant__recipe": "mxfp8", "quant__fp8": "native"}, "quant.fp8=native: FP8 products must have an NVIDIA GPU"),
        ({"quant__recipe": "mxfp8", "quant__fp8": "yes"}, "quant.fp8='yes': must be one of auto, native, simulated"),
        ({"quant__fp8": "garbage"}, "quant.fp8='garbage': must be one of auto, native, simulated"),
        ({"quant__fp8": "native"}, "quant.fp8=native: does nothing, since recipe=none casts no operand"),
        ({"quant__cast": "garbage"}, "quant.cast='garbage': changes nothing, since recipe=none casts no operand"),
        ({"quant__cast": "e2m1", "quant__P1": "e4m3"}, "quant.cast='e2m1': changes nothing, since recipe=none"),
        ({"quant__stages": "0:garbage"}, "quant.stages='0:garbage': changes nothing, since recipe=none"),
        ({"quant__P1": "e4m3", "quant__stages": "0:garbage"}, "quant.stages='garbage'"),
        ({"quant__recipe": "all", "quant__stages": "0:e2m1/inf:none"}, "must start at 0 and grow, in whole numbers"),
        ({"quant__recipe": "all", "quant__stages": "0:e2m1/0.5:none"}, "must start at 0 and grow, in whole numbers"),
        ({"quant__recipe": "all", "quant__stages": "0:e2m1/nan:none"}, "must start at 0 and grow, in whole numbers"),
        (
            {"quant__recipe": "all", "quant__stages": "/".join(f"{i}:e2m1" for i in range(101))},
            "quant.stages='0:e2m1/1:e2m1/2:e2m1/3:e2m1/4:e2m1/5:e2m': must be at most 100 stages",
        ),
        ({"quant__recipe": "all", "quant__cast": f"block={'9' * 5_000}"}, "block must be a whole number"),
    ],
)
def test_bad_input(data, changes, message):
    with pytest.raises(InputError) as error:
        build(tiny.config(data, **BASE, **changes))
    assert message in str(error.value)

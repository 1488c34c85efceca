"""configs/batch_size.py: the published schedule, the ablations, and what may not be asked."""

import re
import runpy
from pathlib import Path

import pytest

from jaxlab.config import InputError, check
from jaxlab.model.families import parameters
from jaxlab.optim.batch_growth import sizes, walk

get_config = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "batch_size.py"))["get_config"]
Mi = 2**20


def test_the_published_ramp():
    """`0:2Mi 125B:4Mi 250B:5Mi 375B:6Mi`; steps of the four stages, and 11.7 % more than at a constant 4Mi; the decay
    takes the last 100B tokens."""
    c = get_config("moe")
    stages = sizes(c.batch.growth)
    assert stages == sizes("0:2Mi 125B:4Mi 250B:5Mi 375B:6Mi")
    steps = [stage.steps for stage in walk(stages, 500 * 10**9)]
    assert steps == pytest.approx([59_605, 29_802, 23_842, 19_868], abs=1)
    (constant,) = walk(sizes("4Mi"), 500 * 10**9)
    assert sum(steps) / constant.steps == pytest.approx(1.117, abs=5e-4)
    s = c.schedule
    assert (c.tokens, s.name, s.decay_tokens, s.decay_shape) == (600 * 10**9, "wsd", 100 * 10**9, "linear")
    assert (s.peak_lr, s.final_fraction, c.batch.lr_rule) == (6e-4, 0.1, "kept")
    assert (c.optim.b1, c.optim.b2, c.optim.eps, c.optim.clip, c.optim.weight_decay) == (0.9, 0.95, 1e-8, 1.0, 0.1)
    assert s.warmup_tokens == 1_000 * stages[0]


def test_ablations():
    longer = get_config("moe,arm=longer,B=4Mi,schedule=constant,D=500B")
    assert sizes(longer.batch.growth) == {0: 4 * Mi, 250 * 10**9: 6 * Mi}  # 1,024 sequences throughout
    assert sizes(longer.batch.context_growth) == {0: 4_096, 250 * 10**9: 6_144}
    assert longer.model.context == 6_144
    assert get_config("moe,rule=sqrt").batch.lr_rule == "sqrt"
    cosine = get_config("dense,schedule=cosine,D=500B")
    assert (cosine.schedule.name, cosine.batch.micro_tokens) == ("cosine", Mi // 2)
    back = sizes(get_config("moe,arm=back").batch.growth)
    assert list(back.items())[-1] == (500 * 10**9, 4 * Mi)
    fixed = get_config("122m,B=64Ki")
    assert (fixed.batch.growth, fixed.batch.tokens, fixed.schedule.name) == ("", 65_536, "constant")


@pytest.mark.parametrize(("mode", "total", "active"), [("dense", 2e9, 2e9), ("moe", 4e9, 538e6), ("1b", 1e9, 1e9)])
def test_sizes_are_about_those_named(mode, total, active):
    """Shapes are not published: within 10 %, those of InternLM2 without embeddings."""
    found = parameters(get_config(mode).model)
    kinds = ("non_embedding", "non_embedding") if mode == "1b" else ("total", "active")
    assert [found[kind] for kind in kinds] == pytest.approx([total, active], rel=0.1)


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("7b", "'7b': must be one of 122m, 210m"),
        ("moe,M=4", "'M=4': must be one of B, arm, rule"),
        ("moe,arm=half", "arm=half: must be one of constant, mean, ramp"),
        ("moe,B=2.5", "B=2.5: '2.5': must be a whole number"),
        ("moe,B=4M,arm=constant", "batch.tokens=4000000: must be a multiple of batch.context=4096"),
        ("moe,wd=no", "wd=no: must be a number"),
        ("moe,rule=none", "batch.lr_rule='none': must be one of kept, sqrt"),
        ("moe,schedule=step", "schedule.name='step': must be one of"),
        ("moe,lr=0", "schedule.peak_lr=0.0: must be above 0"),
    ],
)
def test_what_may_not_be_asked(mode, says):
    with pytest.raises(InputError, match=re.escape(says)):
        check(get_config(mode))

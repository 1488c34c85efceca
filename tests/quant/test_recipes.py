"""Recipes by name, their changes in words, stages over tokens, and bad input."""

import jax
import jax.numpy as jnp
import pytest

from jaxlab.config import InputError
from jaxlab.quant.dot import dot
from jaxlab.quant.recipes import OPERANDS, RECIPES, Operand, Recipe, recipe, stages

OFF = Operand()


def cast(rule: Recipe) -> dict[str, Operand]:
    return {p: getattr(rule, p) for p in OPERANDS if getattr(rule, p) != OFF}


def test_the_named_recipes():
    """Operands as the papers have them: 2501.02423 (targets 2, 4, 6), OCP Microscaling 1.0 (blocks of 32, powers of
    two), 2509.25149 (blocks of 16 under E4M3, weights 16 x 16, gradients stochastic, rotation of the weight gradient
    by 16), 2412.19437 (1 x 128 and 128 x 128)."""
    assert OPERANDS == ("P1", "P2", "P3", "P4", "P5", "P6")
    assert set(cast(RECIPES["capybara"])) == {"P2", "P4", "P6"}
    assert not cast(RECIPES["none"])
    for name, format in (("mxfp8", "e4m3fn"), ("mxfp4", "e2m1")):
        assert set(cast(RECIPES[name]).values()) == {Operand(format, 32, scale="power_of_two")}
        assert set(cast(RECIPES[name])) == set(OPERANDS)
    nvfp4 = RECIPES["nvfp4"]
    assert {(o.format, o.block, o.scale) for o in cast(nvfp4).values()} == {("e2m1", 16, "e4m3")}
    assert {p for p, o in cast(nvfp4).items() if o.rounding == "stochastic"} == {"P3", "P5"}
    assert {p: o.hadamard for p, o in cast(nvfp4).items() if o.hadamard} == {"P5": 16, "P6": 16}
    assert {p: o.rows for p, o in cast(nvfp4).items() if o.rows != 1} == {"P2": 16, "P4": 16}
    deepseek = RECIPES["deepseek_v3"]
    assert {p: (o.rows, o.block) for p, o in cast(deepseek).items()} == {
        p: (128 if p in ("P2", "P4") else 1, 128) for p in OPERANDS
    }


def test_changes():
    assert recipe("capybara", "e1m1,block=64") == Recipe(**{p: Operand("e1m1", 64) for p in ("P2", "P4", "P6")})
    assert recipe("none", P5="format=e1m1,block=32") == Recipe(P5=Operand("e1m1", 32))
    assert recipe("none", "e2m1") == Recipe()  # there is nothing to change
    changed = recipe("all", "scale=none,rounding=nearest_away", P1="none", P3="e5m2")
    assert (changed.P1, changed.P2.rounding, changed.P3.format, changed.P4.format) == (
        OFF,
        "nearest_away",
        "e5m2",
        "e4m3",
    )
    assert recipe("all", "scale=none").P1.scale is None
    rotated = recipe("nvfp4", P5="none", P6="none")
    assert rotated.P5 == rotated.P6 == Operand(hadamard=16)  # still turned: the product is as it was


def test_stages():
    """One compilation a stage."""
    rules = stages("0:e2m1/1000:e4m3/2e3:none", RECIPES["capybara"])
    assert {tokens: rule.P2.format for tokens, rule in rules.items()} == {0: "e2m1", 1000: "e4m3", 2000: ""}
    assert rules[0].P1 == OFF
    assert rules[0].P2.block == 128
    assert rules[2000] == Recipe()
    assert stages("", RECIPES["nvfp4"]) == {0: RECIPES["nvfp4"]}
    traces = []

    def step(x, recipe):
        traces.append(recipe)
        return dot(recipe)(x, x)

    jitted = jax.jit(step, static_argnums=1)
    for rule in (*rules.values(), *rules.values()):
        jitted(jnp.eye(4), rule)
    assert len(traces) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipe("fp8"), "recipe='fp8': must be one of none, capybara, all, mxfp8"),
        (lambda: recipe("all", P7="e4m3"), "operand='P7': must be one of P1, P2"),
        (lambda: recipe("all", P1="e9m3"), "P1='e9m3': format=e9m3: must be"),
        (lambda: recipe("all", P1="fp8"), "P1='fp8': format='fp8': must"),
        (lambda: recipe("all", "bits=8"), "cast='bits=8': bits must be one of format, block"),
        (lambda: recipe("all", P2="block=-1"), "P2='block=-1': block must be a whole number, 0 or above"),
        (lambda: recipe("all", P2="rounding=up"), "P2='rounding=up': rounding='up': must be one of nearest_even"),
        (lambda: recipe("all", P2="scale=e8m0"), "P2='scale=e8m0': scale='e8m0': must be one of float32"),
        (lambda: recipe("all", P2="rows=0"), "P2='rows=0': block=128: must be 0 with rows=0"),
        (lambda: recipe("all", P2="hadamard=12"), "P2='hadamard=12': hadamard=12: must be 0 or a power of two"),
        (lambda: recipe("all", P2="hadamard=16"), "P1.hadamard=0: must be that of P2, 16"),
        (lambda: Operand("e4m3", -1), "block=-1: must be a whole number"),
        (lambda: stages("100:e2m1", Recipe()), "stages='100:e2m1': tokens must start at 0 and grow, in whole numbers"),
        (lambda: stages("0:e2m1/0:e4m3", Recipe()), "tokens must start at 0 and grow, in whole numbers"),
        (lambda: stages("e2m1/0:e4m3", Recipe()), "stages='e2m1/0:e4m3': must read like"),
        (lambda: recipe("all", "block=٣٢"), "block must be a whole number"),
        (lambda: recipe("all", "block=" + "9" * 5000), "block must be a whole number, 0 or above, of at most 9 digits"),
        (lambda: recipe("x" * 9999), "recipe='xxx.*: must be one of none, capybara"),
        (lambda: recipe("all", "x" * 9999 + "=1"), "cast='xxx.*: xxx.* must be one of format, block"),
        (lambda: recipe("all", "scale=" + "x" * 9999), "scale='xxx.*: must be one of float32"),
        (lambda: Operand(["e4m3"]), r"format=\['e4m3'\]: must read like e4m3"),
        (lambda: stages("0:e2m1/inf:e4m3", Recipe()), "in whole numbers"),
        (lambda: stages("0:e2m1/nan:e4m3", Recipe()), "in whole numbers"),
        (lambda: stages("0:e2m1/0.5:e4m3", Recipe()), "in whole numbers"),
        (lambda: stages("0:e2m1/٣:e4m3", Recipe()), "must read like"),
        (lambda: stages("0:e2m1/-1:e4m3", Recipe()), "start at 0 and grow"),
        (lambda: stages("0:" + "e2m1/" * 9999, Recipe()), "must read like"),
        (lambda: stages("0:e2m1/5:e4m33", RECIPES["all"]), "stages='e4m33': format="),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300

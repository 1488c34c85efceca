"""Recipes: which operands of a linear layer's three products are cast, to what, and when in a run.

A linear layer y = x w has three products, and every operand of each may be cast on its own (Sun et al. 2501.02423,
section 3):

    forward          y  = P1 x  . P2 w
    input gradient   dx = P3 dy . P4 w
    weight gradient  dw = P5 dy . P6 x
"""

import re
from dataclasses import dataclass, fields, replace

from jaxlab.config import InputError
from jaxlab.quant.cast import ROUNDINGS, SCALES
from jaxlab.quant.formats import parse

PRODUCTS = {"forward": ("P1", "P2"), "input gradient": ("P3", "P4"), "weight gradient": ("P6", "P5")}


@dataclass(frozen=True)
class Operand:
    """How one operand of a product is cast; by default not at all. Raises InputError.

    format: a name that `formats.parse` reads, or "" for none. block: elements along the contracted axis that share a
    scale; 0: all of them. rows: as many of the last kept axis share it with them; 0: the whole tensor, with block 0.
    scale, rounding: as in `cast`. hadamard: length of the pieces of the contracted axis that are rotated before the
    cast; 0: none.
    """

    format: str = ""
    block: int = 0
    rows: int = 1
    scale: str | None = "float32"
    rounding: str = "nearest_even"
    hadamard: int = 0

    def __str__(self):
        """As one says it: e4m3/128 for E4M3 in blocks of 128."""
        share = str(self.block) if self.rows == 1 else f"{self.rows}x{self.block}"
        scale = "" if self.scale == "float32" else f" scaled by {self.scale}"
        rounding = "" if self.rounding == "nearest_even" else f" {self.rounding}"
        return f"{self.format}/{share}{scale}{rounding}"

    def __post_init__(self):
        if self.format:
            parse(self.format)
        for name in ("block", "rows", "hadamard"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 0):
                raise InputError(f"{name}={value!r}: must be a whole number, 0 or above")
        for name, allowed in (("scale", SCALES), ("rounding", ROUNDINGS)):
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"{name}={value!r:.80}: must be one of {', '.join(map(str, allowed))}")
        if self.block and not self.rows:
            raise InputError(f"block={self.block}: must be 0 with rows=0, which is one scale for the whole tensor")
        if self.hadamard & (self.hadamard - 1):
            raise InputError(f"hadamard={self.hadamard}: must be 0 or a power of two")


@dataclass(frozen=True)
class Recipe:
    """The six operands; `seed` is that of stochastic rounding. Hashable. Raises InputError.

    Both operands of a product are rotated or none is: only then do the rotations cancel.
    """

    P1: Operand = Operand()
    P2: Operand = Operand()
    P3: Operand = Operand()
    P4: Operand = Operand()
    P5: Operand = Operand()
    P6: Operand = Operand()
    seed: int = 0

    @property
    def casts(self) -> bool:
        """Whether any operand is cast or rotated."""
        return self != Recipe(seed=self.seed)

    def __post_init__(self):
        for a, b in PRODUCTS.values():
            sizes = getattr(self, a).hadamard, getattr(self, b).hadamard
            if sizes[0] != sizes[1]:
                raise InputError(f"{a}.hadamard={sizes[0]}: must be that of {b}, {sizes[1]}, in the same product")


OPERANDS = tuple(field.name for field in fields(Recipe) if field.type is Operand)


def _layer(x: Operand, w: Operand, dy: Operand) -> Recipe:
    return Recipe(P1=x, P2=w, P3=dy, P4=w, P5=dy, P6=x)


def _nvfp4() -> Recipe:
    x = Operand("e2m1", 16, scale="e4m3")
    dy = replace(x, rounding="stochastic")
    layer = _layer(x, replace(x, rows=16), dy)
    return replace(layer, P5=replace(dy, hadamard=16), P6=replace(x, hadamard=16))


def _all(*args, **kwargs) -> Recipe:
    return _layer(*[Operand(*args, **kwargs)] * 3)


_E4M3 = Operand("e4m3", 128)
RECIPES = {
    "none": Recipe(),
    "capybara": Recipe(P2=_E4M3, P4=_E4M3, P6=_E4M3),  # as in every run behind the law (2501.02423, section 4)
    "all": _all("e4m3", 128),
    "mxfp8": _all("e4m3fn", 32, scale="power_of_two"),  # OCP Microscaling Formats 1.0
    "mxfp4": _all("e2m1", 32, scale="power_of_two"),
    "nvfp4": _nvfp4(),  # 2509.25149, section 4
    "deepseek_v3": _layer(  # 2412.19437, section 3.3: tiles of 1 x 128, weights of 128 x 128
        x=Operand("e4m3fn", 128), w=Operand("e4m3fn", 128, rows=128), dy=Operand("e4m3fn", 128)
    ),
}  # fmt: skip


def recipe(name: str, changes: str = "", **operands: str) -> Recipe:
    """A recipe of RECIPES, with changes to all operands that it casts, then to single ones.

    Changes read like `e2m1,block=32,rounding=stochastic`: fields of Operand, of which `format=` may be left out; `none`
    is an operand that is not cast, and "" changes nothing. Raises InputError.

        recipe("capybara", "e1m1,block=64")     # every operand that capybara casts, in E1M1
        recipe("none", P5="e1m1,block=64")      # dy of the weight gradient alone
    """
    if name not in RECIPES:
        raise InputError(f"recipe={name!r:.80}: must be one of {', '.join(RECIPES)}")
    for key in operands:
        if key not in OPERANDS:
            raise InputError(f"operand={key!r:.80}: must be one of {', '.join(OPERANDS)}")
    made = RECIPES[name]
    whole = {p: changed(getattr(made, p), changes, "cast") for p in OPERANDS if getattr(made, p).format}
    made = replace(made, **whole)
    return replace(made, **{p: changed(getattr(made, p), text, p) for p, text in operands.items()})


def changed(operand: Operand, text: str, name: str = "operand") -> Operand:
    """The operand with the changes that the text says, as in `recipe`; `name` is for the InputError."""
    if text == "none":
        return Operand(hadamard=operand.hadamard)  # its product may still be rotated
    kinds = {field.name: field.type for field in fields(Operand)}
    found = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.rpartition("=")
        key = key or "format"
        if key not in kinds:
            raise InputError(f"{name}={text!r:.80}: {key:.80} must be one of {', '.join(kinds)}")
        if kinds[key] is int and not re.fullmatch("[0-9]{1,9}", value):
            raise InputError(f"{name}={text!r:.80}: {key} must be a whole number, 0 or above, of at most 9 digits")
        found[key] = int(value) if kinds[key] is int else None if value == "none" else value
    try:
        return replace(operand, **found)
    except InputError as error:
        raise InputError(f"{name}={text!r:.80}: {error}") from error


def stages(text: str, start: Recipe) -> dict[int, Recipe]:
    """{tokens consumed: recipe from then on}, coarse first and finer later: `0:e2m1/400000:e4m3/8e5:none`.

    Every stage is TOKENS:CHANGES to the operands that `start` casts; "" is `start` throughout. One recipe a stage,
    hence one compilation. Raises InputError.
    """
    parts = [part.partition(":")[::2] for part in text.split("/")] if text else [("0", "")]
    try:
        begins = [float(tokens) for tokens, _ in parts]
    except ValueError:
        begins = []
    if not begins or not text.isascii():
        raise InputError(f"stages={text!r:.80}: must read like 0:e2m1/400000:e4m3/8e5:none, TOKENS:CHANGES")
    if not all(b.is_integer() for b in begins) or begins[0] != 0 or sorted(set(begins)) != begins:
        raise InputError(f"stages={text!r:.80}: tokens must start at 0 and grow, in whole numbers")
    cast = [p for p in OPERANDS if getattr(start, p).format]
    recipes = [replace(start, **{p: changed(getattr(start, p), c, "stages") for p in cast}) for _, c in parts]
    return {int(tokens): rule for tokens, rule in zip(begins, recipes, strict=True)}

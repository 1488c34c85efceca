"""The numbers that the paper's claims are about, each a function of the study's runs (`measures.finished`)."""

import math
from collections.abc import Callable

import jax
import numpy as np
from scipy import optimize

from jaxlab.config import InputError
from jaxlab.laws import floating_point as law
from jaxlab.quant.cast import cast
from jaxlab.quant.formats import parse
from jaxlab.studies.floating_point import measures as measure
from jaxlab.studies.floating_point.grid import ALONE, BITS, TARGETS, Setting
from jaxlab.studies.tuning import slope

TOLERANT, HARMED = ("P2", "P4", "P6"), ("P1", "P3", "P5")
COMPUTE = (1e21, 1e31)  # FLOP, the range of the paper's optimum
PAPER_BLOCK = 128


def mean_of(values, what: str) -> float:
    """Raises InputError where there are none, saying what was not run."""
    values = list(values)
    if not values:
        raise InputError(what)
    return float(np.mean(values))


def together(found: dict[Setting, float], name: str) -> dict[Setting, dict]:
    """{setting with `name` blank: {value of `name`: v}}: settings that differ in nothing else, values in order."""
    lines = {}
    for s, value in found.items():
        lines.setdefault(s._replace(**{name: ""}), {})[getattr(s, name)] = value
    return {s: dict(sorted(line.items(), key=lambda item: str(item[0]).zfill(12))) for s, line in lines.items()}


# F1: operands


def operands(runs: list[dict]) -> dict[str, float]:
    """{targets: per cent of loss}, of the setting that ran with each operand alone."""
    for line in together(measure.percent(runs), "targets").values():
        if {*ALONE, TARGETS} <= line.keys():
            return line
    raise InputError("the six operands and all three of the paper have not all run")


def ordered(runs: list[dict]) -> tuple[str, str]:
    """The least harmful of P1, P3, P5 and the most harmful of P2, P4, P6."""
    found = operands(runs)
    return min(HARMED, key=found.get), max(TOLERANT, key=found.get)


def worst_other(runs: list[dict]) -> tuple[str, str]:
    """P5 and the most harmful other."""
    found = operands(runs)
    return "P5", max((p for p in ALONE if p != "P5"), key=found.get)


def largest(runs: list[dict]) -> float:
    found = operands(runs)
    return max(found[p] for p in ALONE)


def three_for_one(runs: list[dict]) -> float:
    """All of P2, P4, P6 less P2 alone, percentage points."""
    found = operands(runs)
    return found[TARGETS] - found["P2"]


# F2 to F4: exponent and mantissa bits


def apart(params: dict) -> float:
    return params["delta"] - params["nu"]


def layouts(runs: list[dict]) -> dict[Setting, dict]:
    """{setting: {format: nats}} where formats were swept, with one scale an axis."""
    lines = together(measure.gaps(runs), "format")
    return {s: line for s, line in lines.items() if len(line) > 3 and s.block == "channel" and not s.stages}


def predicted(bits: int) -> str:
    """The paper's layout of so many bits."""
    return "e{}m{}".format(*law.integer_layout(law.CAPYBARA_CONSTANTS, bits))


def excess(*budgets: int) -> Callable:
    """Loss of the predicted layout less the best other's of as many bits, nats, the mean of the budgets."""

    def quantity(runs: list[dict]) -> float:
        wanted = {f for bits in budgets for f in BITS[bits]}
        lines = [line for line in layouts(runs).values() if wanted <= line.keys()]
        others = {bits: [f for f in BITS[bits] if f != predicted(bits)] for bits in budgets}
        values = (line[predicted(b)] - min(line[f] for f in others[b]) for line in lines for b in budgets)
        return mean_of(values, f"the layouts of {', '.join(map(str, budgets))} bits have not all run")

    return quantity


def least_error(bits: int) -> str:
    """The layout with the least mean squared error of Gaussian values, one scale for PAPER_BLOCK of them."""
    x = jax.random.normal(jax.random.key(0), (256, PAPER_BLOCK))
    return min(BITS[bits], key=lambda f: float(_error(x, parse(f).grid)))


@jax.jit
def _error(x, grid):
    return ((cast(x, grid) - x) ** 2).mean()


# F5 and F6: tokens


def lines_of(runs: list[dict], found: dict[Setting, float], at_least: int = 3) -> dict[Setting, dict]:
    """{setting: {tokens: v}} where tokens were swept, coarsest format first."""
    lines = {s: line for s, line in together(found, "tokens").items() if len(line) >= at_least}
    bits = {s: sum(measure.layout(s.format)) for s in lines}
    return dict(sorted(lines.items(), key=lambda item: (bits[item[0]], -len(item[1]))))


def coarsest(runs: list[dict]) -> tuple[Setting, dict]:
    """The format with the fewest bits that was swept over tokens, and its losses."""
    found = {s: line for s, line in lines_of(runs, measure.losses(runs)).items() if s.format}
    if not found:
        raise InputError("no format was swept over tokens")
    return next(iter(found.items()))


def rise(line: dict[int, float]) -> float:
    """Loss at the most tokens less the lowest at fewer, nats."""
    *fewer, most = line.values()
    return most - min(fewer)


def turn(runs: list[dict]) -> float:
    return rise(coarsest(runs)[1])


def unquantised(runs: list[dict]) -> float:
    """The largest rise of an unquantised line."""
    found = [rise(line) for s, line in lines_of(runs, measure.losses(runs)).items() if not s.format]
    if not found:
        raise InputError("tokens were not swept without quantisation")
    return max(found)


def with_tokens(runs: list[dict]) -> float:
    """Nats that the cost grows by with a doubling of tokens, the mean over models and formats."""
    lines = lines_of(runs, measure.gaps(runs)).values()
    return mean_of((slope(np.log2(list(line)), list(line.values())) for line in lines), "tokens were not swept")


def with_size(runs: list[dict]) -> float:
    """Nats that the cost grows by with a doubling of N at the same format and tokens, the mean."""
    lines = [line for line in together(measure.of_the_law(measure.gaps(runs)), "model").values() if len(line) > 1]
    sizes = [np.log2([measure.MODELS[m].parameters for m in line]) for line in lines]
    return mean_of(
        (slope(x, list(line.values())) for x, line in zip(sizes, lines, strict=True)),
        "no format ran at one budget with two models",
    )


def with_bits(runs: list[dict]) -> float:
    """The least by which E1M0 costs more than E1M1 and that more than E2M1, nats, mean over where all ran."""
    lines = [
        line for line in together(measure.gaps(runs), "format").values() if {"e1m0", "e1m1", "e2m1"} <= line.keys()
    ]
    least = (min(line["e1m0"] - line["e1m1"], line["e1m1"] - line["e2m1"]) for line in lines)
    return mean_of(least, "E1M0, E1M1 and E2M1 have not run together")


# F8: blocks


def blocks(runs: list[dict]) -> dict[Setting, dict]:
    """{setting: {log2 of the mean block: nats}} where blocks were swept."""
    lines = {}
    for s, gap in measure.of_the_law(measure.gaps(runs)).items():
        lines.setdefault(s._replace(block=""), {})[measure.log2_block(s)] = gap
    found = {s: dict(sorted(line.items())) for s, line in lines.items() if len(line) > 3}
    if not found:
        raise InputError("blocks were not swept")
    return found


def straight(line: dict[float, float]) -> tuple[float, float]:
    """(slope, value at one element) of the cost against log2 B."""
    return tuple(np.polyfit(list(line), list(line.values()), 1).tolist())


def with_block(runs: list[dict]) -> float:
    """Nats that the cost grows by with a doubling of the block, the mean."""
    return float(np.mean([straight(line)[0] for line in blocks(runs).values()]))


def at_one(runs: list[dict]) -> float:
    """What the straight lines say that one element a scale costs, as a share of the largest block's cost."""
    lines = [(*straight(line), max(line)) for line in blocks(runs).values()]
    return sum(b for _, b, _ in lines) / sum(a * x + b for a, b, x in lines)


def explained(line: dict[float, float], form: Callable) -> float:
    """R^2 of a straight line in form(log2 B)."""
    return float(np.corrcoef(form(np.array(list(line))), list(line.values()))[0, 1] ** 2)


def better_than_linear(runs: list[dict]) -> float:
    """R^2 in log2 B less that in B, the mean."""
    return float(np.mean([explained(line, np.array) - explained(line, np.exp2) for line in blocks(runs).values()]))


# F12: precision over a run


def stage_bits(s: Setting) -> list[int]:
    """Bits of a run's stages in order."""
    return [1 + sum(measure.layout(f)) for f in (s.stages or s.format).split(",")]


def schedules(runs: list[dict]) -> dict[Setting, float]:
    """{setting: nats} of the staged runs and the constant one, where both directions ran."""
    found = measure.gaps(runs)
    for s in found:
        line = {t: g for t, g in found.items() if t._replace(stages="") == s}
        if {0, 1, -1} <= {direction(t) for t in line}:
            return line
    raise InputError("rising, falling and constant precision have not all run")


def direction(s: Setting) -> int:
    """1: from few bits to many; -1: the other way; 0: constant."""
    bits = stage_bits(s)
    return (bits[-1] > bits[0]) - (bits[-1] < bits[0])


def of_direction(runs: list[dict], which: int) -> float:
    """Mean cost, nats."""
    return float(np.mean([g for s, g in schedules(runs).items() if direction(s) == which]))


def rising(runs: list[dict]) -> float:
    """The cost of rising precision less the lower of falling and constant, nats."""
    return of_direction(runs, 1) - min(of_direction(runs, -1), of_direction(runs, 0))


# F7, F13, F14: consequences of the law


def critical(p: dict, s: Setting) -> float:
    """Tokens beyond which more raise the loss of a setting, by the law."""
    x = measure.inputs([s._replace(tokens=1)])
    return float(law.critical_tokens(p, *(x[k][0] for k in "NEMB")))


def exponent_of_compute(p: dict) -> float:
    """e of P_opt ~ C^e at fixed N (closed form)."""
    return 2 * p["beta"] / (p["delta"] + p["nu"] + 2 * p["beta"])


def best_precision(p: dict, compute: float, parameters: float | None = None, overhead: float = 0.0) -> float:
    """P of lowest loss at C = k (P + overhead) N D by direct minimisation, N given or best too."""

    def loss(v):
        P, N = math.exp(v[0]), math.exp(v[1]) if parameters is None else parameters
        D = compute / (law.FLOP_PER_BIT * (P + overhead) * N)
        kept = law.gamma_rho(p) * P ** (p["delta"] + p["nu"])
        return law.base(p, {"N": N, "D": D}) + D ** p["beta"] / N ** p["alpha"] * math.log2(PAPER_BLOCK) / kept

    P, N, _ = law.allocation(p, compute, PAPER_BLOCK)
    start = [math.log(P)] if parameters else [math.log(P), math.log(N)]
    return math.exp(optimize.minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-13}).x[0])


def slope_at_size(p: dict, parameters: float = 1e9) -> float:
    """d log P / d log C at fixed N, minimised directly."""
    compute = np.geomspace(*COMPUTE, 6)
    best = [best_precision(p, c, parameters) for c in compute]
    return slope(np.log(compute), np.log(best))

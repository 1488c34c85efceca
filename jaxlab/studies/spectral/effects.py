"""What the claims compare: arms of runs, the setting that collapses, budgets spent in other ways, allocations."""

import math

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from jaxlab.config import InputError
from jaxlab.laws.lines import PowerLaw, power_law
from jaxlab.model.families import model, parameters
from jaxlab.studies.spectral import measures as measure
from jaxlab.studies.spectral.grid import MODELS
from jaxlab.studies.spectral.measures import arm, at, line, main, of, pairs
from jaxlab.studies.tuning import grouped, select

GAP = of("soft_rank", over="hard_rank")  # grows as D^(beta_soft - beta_hard)
SWEET_SPOT = math.sqrt(2.67 * 4)  # times d_model, the middle of the published range
ARMS = {  # {name: (norm, ffn)}
    "Post-LN": ("post", "none"), "+ weight normalisation": ("post", "weight"),
    "+ hyperspherical": ("post", "hyperspherical"), "Mix-LN": ("mix", "none"), "Pre-LN": ("pre", "none"),
}  # fmt: skip


def sweeps(runs: list[dict]) -> dict[tuple, list[dict]]:
    """{(model, norm): runs} of three widths or more, as long as the base's, each at its best learning rate."""
    base = main(runs)
    tokens, samples = base[0]["tokens"], base[0]["samples"]
    alike = [r for r in select(runs, ffn="none", allocation="", samples=samples) if r["tokens"] == tokens]
    found = grouped([r for r in alike if r["part"] in ("base", "norm", "family", "depth")], ("model", "norm"))
    swept = {key: of_it for key, of_it in found.items() if len({r["D"] for r in of_it}) > 2}
    if not swept:
        raise InputError("no model has finished at three widths")
    return swept


def at_the_middle_rate(runs: list[dict], part: str) -> tuple[list[dict], list[dict]]:
    """(runs of a part that ran at one learning rate, those of the base at that rate)."""
    found = arm(runs, part=part)
    return found, arm(main(runs), log2_lr=found[0]["log2_lr"])


def hard_utilisation(run: dict) -> float:
    return run["value"]["hard_rank"] / run["D"]


def family(runs: list[dict], name: str) -> list[dict]:
    """The runs of part family of one."""
    of_it = [r for r in select(runs, part="family") if MODELS[r["model"]].family == name]
    if not of_it:
        raise InputError(f"no run of {name} has finished")
    return of_it


def drift(run: dict) -> float:
    """Hard utilisation at the end over that at half of the run."""
    return at("hard_rank", 1.0)(run) / at("hard_rank", 0.5)(run)


# Collapse


def plain(runs: list[dict]) -> list[dict]:
    """Post-LN without normalised weights, with its layers and d_model. Raises InputError where none ended."""
    return arm([shaped(run) for run in runs], norm="post", ffn="none", allocation="")


def shaped(run: dict) -> dict:
    m = MODELS[run["model"]]
    return run | {"layers": m.layers, "d_model": m.d_model}


def flips(runs: list[dict], name: str) -> list[float]:
    """Collapsed at the largest value of `name` (D, layers or log2_lr) less collapsed at the smallest, 1, 0 or -1, of
    all settings that differ in nothing else."""
    others = [k for k in ("layers", "d_model", "D", "log2_lr", "seed") if k != name]
    cells = {}
    for run in plain(runs):
        cells.setdefault(tuple(run[k] for k in others), {})[run[name]] = run["collapsed"]
    return [float(line[max(line)]) - float(line[min(line)]) for line in cells.values() if len(line) > 1]


def collapsing(runs: list[dict], by: str = "collapsed") -> list[dict]:
    """All runs, of any arm, of the setting (model, width, lowest learning rate) at which plain Post-LN collapsed with
    every seed, by its loss or as "warned", and normalised weights ran."""
    keys = ("model", "width", "log2_lr")
    cured = {tuple(r[k] for k in keys) for r in runs if r["ffn"] != "none"}
    cells = {}
    for run in select(runs, norm="post", ffn="none"):
        cells.setdefault(tuple(run[k] for k in keys), []).append(run[by])
    found = sorted((cell for cell, each in cells.items() if all(each) and cell in cured), key=lambda cell: cell[2])
    if not found:
        raise InputError("plain Post-LN did not collapse where the other arms ran")
    return select(runs, **dict(zip(keys, found[0], strict=True)))


def context_gain(run: dict) -> float:
    """Entropy of single tokens less the loss, nats: what is learnt of the context; 0 of a run that diverged."""
    return run["unigram"] - (run["unigram"] if run["loss"] is None else run["loss"])


def where_it_collapses(runs: list[dict]) -> list[dict]:
    """Each arm's runs at its own best learning rate, of the model and width that collapse."""
    cell = collapsing(runs)[0]
    same = select(runs, model=cell["model"], width=cell["width"], tokens=cell["tokens"])
    return measure.tuned([r for r in same if r["status"] == "finished"], measure.CELL)


# Widths, depth and tokens


def kink(runs: list[dict]) -> PowerLaw:
    """eDim = A D^e beyond^k, beyond = max(1, D / sweet spot): k is by how much the exponent changes there."""
    base = main(runs)
    D, edim = measure.over_widths([(run["D"], run["value"]["edim"]) for run in base])
    beyond = np.maximum(1, D / (SWEET_SPOT * MODELS[base[0]["model"]].d_model))
    return power_law({"D": D, "beyond": beyond}, edim)


def width_against_others(runs: list[dict], narrow: float) -> tuple[list[float], str]:
    """(loss of the next width less that of more depth or more tokens, whichever is better, one a seed; which), at equal
    FLOPs and best learning rates."""
    base, others = main(runs), arm(runs, part="balance", width=narrow)
    budget = np.mean([run["flops"] for run in others])
    wide = min(base, key=lambda run: abs(run["flops"] - budget))["width"]
    options = grouped(others, ("model", "tokens"))
    other, tokens = min(options, key=lambda key: np.mean([run["loss"] for run in options[key]]))
    found = pairs(arm(base, width=wide), options[other, tokens])
    which = "tokens" if tokens > base[0]["tokens"] else "depth"
    return [x["loss"] - y["loss"] for x, y in found], f"{which} against {wide:g} times d_model"


def growth(runs: list[dict]) -> list[float]:
    """Of every layer, the exponent of its eDim in D."""
    base = main(runs)
    count = len(base[0]["last"]["edim"])
    return [line(base, lambda run, i=i: run["last"]["edim"][i]).exponents["D"] for i in range(count)]


def allocations(runs: list[dict]) -> dict[str, list[dict]]:
    """{guided, even, reversed: runs}: guided gives more width to layers whose eDim grows more with width."""
    exponents, found = np.array(growth(runs)), grouped(arm(runs, part="layers"), ("allocation",))

    def agrees(allocation):
        return np.dot(exponents - exponents.mean(), [int(d) for d in allocation.split(",")])

    order = sorted((allocation for (allocation,) in found), key=agrees)
    if len(order) < 2:
        raise InputError("the two allocations have not both finished")
    even = arm(main(runs), width=found[order[0],][0]["width"])
    return {"guided": found[order[-1],], "even": even, "reversed": found[order[0],]}


def differing(runs: list[dict]) -> PowerLaw:
    """eDim of the layer that grows most over that of the layer that grows least, chosen once, against D."""
    exponents = growth(runs)
    most, least = int(np.argmax(exponents)), int(np.argmin(exponents))
    return line(main(runs), lambda run: run["last"]["edim"][most] / run["last"]["edim"][least])


# Spectra and losses


SHAPE = ("layers", "d_model", "width", "tokens")  # equal where correlations are partial


def correlation(runs: list[dict], name: str, within: tuple[str, ...]) -> tuple[float, float, float]:
    """Pearson's r of the loss with ln of a metric, both less their means within groups of runs of equal keys, and its
    interval by Fisher's z, groups counted off."""
    groups = grouped(runs, within)
    apart = []
    for of_it in groups.values():
        points = np.array([(math.log(run["value"][name]), run["loss"]) for run in of_it])
        apart += list(points - points.mean(0))
    freedom = len(apart) - len(groups) - 2
    if freedom < 1:
        raise InputError(f"{len(apart)} runs in {len(groups)} groups: a correlation needs more")
    r = float(np.corrcoef(np.transpose(apart))[0, 1])
    half = stats.norm.ppf(0.975) / math.sqrt(freedom)
    return r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def healthy(runs: list[dict]) -> list[dict]:
    """Those that did not collapse, with their layers and d_model; even widths, each run once."""
    even = [shaped(run) for run in runs if not run["allocation"] and run["part"] != "samples"]
    return [run for run in even if not run["collapsed"]]


USUAL = {"GPT-2 at 4": ("gpt2", "124m"), "LLaMA at 2.67": ("llama", "71m"), "LLaMA-250M": ("llama", "250m")}


def share_of_parameters() -> dict[str, tuple[float, float]]:
    """{model: the feed-forward's share of the blocks' matrices, and of all parameters}."""
    counts = {name: parameters(ConfigDict(model(*shape))) for name, shape in USUAL.items()}
    return {name: (c["ffn"] / c["block_matrices"], c["ffn"] / c["total"]) for name, c in counts.items()}

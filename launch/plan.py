"""Prints what published scaling laws predict for a run:

python -m launch.plan diloco --params=1.3e9 --replicas=4
python -m launch.plan precision --params=1e9 --tokens=1e12
python -m launch.plan width --d_model=768
python -m launch.plan batch --params=4e9 --tokens=500e9 --schedule="0:2Mi 125B:4Mi 250B:5Mi 375B:6Mi"
"""

import csv
import inspect
import math

from absl import flags
from rich.console import Console
from rich.table import Table

from jaxlab import files
from jaxlab.config import InputError
from jaxlab.cost import wallclock as cost
from launch import entry

_PARAMS = flags.DEFINE_float("params", None, "parameters N; for precision those of the linear layers in the blocks")
_REPLICAS = flags.DEFINE_integer("replicas", 1, "replicas M; 0: only data-parallel")
_TOKENS_PER_PARAM = flags.DEFINE_float("tokens_per_param", 20.0, "training tokens per parameter, D / N")
_CHIPS = flags.DEFINE_integer("chips", None, "number of chips; default: one for 4,096 tokens of the batch")
_TOKENS = flags.DEFINE_float("tokens", None, "training tokens D")
_BLOCK = flags.DEFINE_float("block", 128.0, "elements that share one scale, B")
_D_MODEL = flags.DEFINE_integer("d_model", None, "width of the residual stream")
_OPTIMISER = flags.DEFINE_string("optimiser", None, "published rank laws to use: adamw (default), dion-1/16, dion-1/2")
_RANKS = flags.DEFINE_string("ranks", None, "CSV file with ranks of your own instead: width, hard_rank, soft_rank")
_SCHEDULE = flags.DEFINE_string("schedule", None, "batch sizes: 0:2Mi 125B:4Mi, or curve:A,b,c every 125B, A N^b D^c")
# Flags have the names of the plans' arguments.
FLAGS = (_PARAMS, _REPLICAS, _TOKENS_PER_PARAM, _CHIPS, _TOKENS, _BLOCK, _D_MODEL, _OPTIMISER, _RANKS, _SCHEDULE)
WIDTH = 120  # characters; tables are wider than the default for a pipe
SEQUENCE = 2_048  # tokens in a sequence, in every run behind the laws
BUSY = 0.9  # compute utilisation to reach
LINES = (  # (quantity, source) for each string of `diloco_column`, in the same order
    ("validation loss on C4, nats/token", "law in N and M at D = 20 N; data-parallel: law in N"),
    ("peak learning rate", "laws of the same form"),
    ("  on the grid", "nearest power of sqrt 2"),
    ("batch B, tokens", "laws of the same form"),
    ("  on the grid", "nearest power of two in tokens per replica"),
    ("  sequences per replica", f"of {SEQUENCE:,} tokens"),
    ("outer learning rate", "best for M, the same for all N from 335M up"),
    ("inner steps H between outer steps", "as in every run behind the laws"),
    ("tokens D", "--tokens_per_param"),
    ("steps D / B", "at the batch on the grid"),
    ("weight decay", "1 / steps, not multiplied by the learning rate"),
    ("chips", f"{cost.FLOPS / 1e12:.0f} TFLOP/s each, number in proportion to B"),
    *((f"hours, {name} network", f"idealised, {w / 1e9:.0f} Gbit/s and {1e3 * e:g} ms between sites")
      for name, (w, e) in cost.NETWORKS.items()),
    ("tokens in data-parallel's hours", f"relative to its own; {', '.join(cost.NETWORKS)} network"),
    ("Gbit that a site sends in an outer step", "16 bits per parameter; with M < 2 in every step"),
    (f"Gbit/s for {BUSY:.0%} compute utilisation", "simulated, 0.1 to 1,000 Gbit/s"),
)  # fmt: skip
RANGES = {  # smallest and largest arguments: beyond them the laws say nothing and numbers overflow
    "params": (1, 1e18), "tokens": (1, 1e24), "tokens_per_param": (1e-3, 1e9), "replicas": (0, 10**6),
    "chips": (1, 10**9), "d_model": (8, 10**7), "block": (1, 2.0**60),
}  # fmt: skip
MULTIPLES = (1, 2, 2.67, 4, 6, 8)  # widths to compare, in units of d_model
BITS = (3, 4, 5, 6, 8, 10, 12, 16)  # formats to compare


def main(words: list[str], console: Console) -> int:
    plans = {"diloco": diloco, "precision": precision, "width": width, "batch": batch}
    if len(words) != 1 or words[0] not in plans:
        raise InputError(f"{' '.join(words) or 'no plan'}: say one of {', '.join(plans)}")
    plan = plans[words[0]]
    takes = inspect.signature(plan).parameters
    for flag in FLAGS:
        if flag.present and flag.name not in takes:
            raise InputError(f"--{flag.name}: {words[0]} takes --{', --'.join(takes)}")
    table = plan(**{flag.name: flag.value for flag in FLAGS if flag.name in takes})
    entry.console(width=max(console.width, WIDTH)).print(table)
    return 0


def diloco(params: float, replicas: int, tokens_per_param: float = 20.0, chips: int | None = None) -> Table:
    """A DiLoCo run compared with data-parallel training, each at its own batch (Charles et al. 2503.09799).

    replicas 0: only data-parallel training. Raises InputError for a value out of range.
    """
    _check(params=params, tokens_per_param=tokens_per_param, replicas=replicas)
    if chips is not None:
        _check(chips=chips)
    if chips is not None and chips < max(replicas, 1):
        raise InputError(f"--chips={chips}: must be at least {max(replicas, 1)}, one a replica")
    from jaxlab.laws.diloco import published_batch  # imports jax: after bad input has been refused

    batch = published_batch(params, replicas)
    share = batch / (chips or max(cost.chip_count(batch), replicas))
    tokens = tokens_per_param * params
    if tokens < max(batch, published_batch(params, 0)):
        raise InputError(
            f"--tokens_per_param={tokens_per_param:g}: {tokens:.4g} tokens are less than one batch of {batch:,} or, "
            f"data-parallel, {published_batch(params, 0):,}"
        )
    columns = {0: "data-parallel"} if replicas == 0 else {replicas: f"DiLoCo, M = {replicas}", 0: "data-parallel"}
    table = Table("", *columns.values(), "source", title=f"{params:.4g} parameters", title_justify="left")
    table.caption = "laws of 2503.09799, fitted at 35M to 2.4B; losses measured at 10B are 3 to 4 % above the law"
    values = [diloco_column(params, m, tokens, share) for m in columns]
    for (quantity, source), *row in zip(LINES, *values, strict=True):
        table.add_row(quantity, *row, source)
    return table


def diloco_column(params: float, replicas: int, tokens: float, tokens_per_chip: float) -> list[str]:
    """The values of LINES for M replicas (0: data-parallel) and D tokens, as strings."""
    from jaxlab.laws import diloco as laws

    loss, lr, best_batch = (laws.published(quantity, params, replicas) for quantity in ("loss", "lr", "batch"))
    batch = laws.published_batch(params, replicas)
    run = cost.Algorithm(replicas)
    chips = cost.chip_count(batch, tokens_per_chip)
    across = cost.NETWORKS.values()
    hours = [cost.training_seconds(run, params, tokens, batch, chips, network) / 3600 for network in across]
    baseline = laws.published_batch(params, 0)
    times = [cost.over_training(run, params, batch, baseline, network, tokens_per_chip) for network in across]
    compute = cost.step_time(run, params, batch, chips, cost.NETWORKS["high"]).compute
    return [
        f"{loss:.3f}",
        f"{lr:.3g}",
        f"2^{math.log2(laws.nearest_lr(lr)):g}",
        f"{best_batch:,.0f}",
        f"{batch:,}",
        f"{batch // SEQUENCE // max(replicas, 1):,}",
        f"{laws.outer_lr(replicas)}" if replicas else "",
        f"{run.sync_every}" if replicas else "",
        f"{tokens:.4g}",
        f"{tokens / batch:,.0f}",
        f"{batch / tokens:.3g}",
        f"{chips:,.0f}",
        *(f"{h:,.3g}" for h in hours),
        ", ".join(f"{x:.2g}x" for x in times),
        f"{cost.peak_bits(run, params) / 1e9:,.4g}",
        _bandwidth(cost.required_bandwidth(run, params, compute, BUSY)),
    ]


def _bandwidth(needed: float) -> str:
    """A bandwidth in Gbit/s; infinite if it is beyond the simulated ones."""
    return f"{needed / 1e9:,.4g}" if needed < math.inf else f"above {cost.GRID[-1] / 1e9:,.0f}"


def _check(**values: float | None) -> None:
    """Raises InputError unless each value is in its range."""
    for name, value in values.items():
        least, most = RANGES[name]
        if value is None or not least <= value <= most:
            zero = "0, which is data-parallel, or " * (name == "replicas")
            raise InputError(f"--{name}={value}: must be {zero}{max(least, 1) if zero else least:g} to {most:g}")


def precision(params: float, tokens: float, block: float = 128.0) -> Table:
    """Loss and critical data size of a run for several formats, by the Capybara law (Sun et al. 2501.02423).

    Raises InputError for a value out of range.
    """
    _check(params=params, tokens=tokens, block=block)
    if block == 1:
        raise InputError(f"--block={block}: must be above 1, at which the law has no penalty")
    from jaxlab.laws import floating_point as laws  # imports jax: after bad input has been refused

    p = laws.CAPYBARA_CONSTANTS
    run = {"N": params, "D": tokens, "B": block}
    best = float(laws.precision_at_tokens(p, tokens, block))
    columns = "format, bits, loss (nats/token), excess over BF16, effective parameters, critical tokens, D / critical"
    table = Table(*columns.split(", "), title=f"{params:.4g} parameters, {tokens:.4g} tokens, blocks of {block:g}")
    table.title_justify = "left"
    for P in BITS:
        E, M = laws.integer_layout(p, P)
        table.add_row(f"E{E}M{M}", f"{P}", *precision_row(run, E, M))
    table.caption = (
        f"compute-optimal at this D: {best:.2f} bits, if the cost is bits x N x D; beyond the critical tokens more "
        "data raise the loss; law of 2501.02423 for quantised weights (P2, P4) and activations in the weight gradient "
        "(P6), fitted at 41M to 679M parameters, 10B to 105B tokens, 3 to 10 bits: elsewhere an extrapolation"
    )
    return table


def precision_row(run: dict, E: int, M: int) -> list[str]:
    """The values of one format at N, D and B, as strings. Its effective parameters reach the same loss unquantised."""
    from jaxlab.laws import floating_point as laws

    p = laws.CAPYBARA_CONSTANTS
    loss = laws.CAPYBARA(p, run | {"E": E, "M": M})
    penalty = loss - laws.BASE(p, run)
    effective = (run["N"] ** -p["alpha"] + penalty / p["n"]) ** (-1 / p["alpha"])
    critical = laws.critical_tokens(p, run["N"], E, M, run["B"])
    return [f"{loss:.4f}", f"{penalty:.4f}", f"{effective:.3g}", f"{critical:.4g}", f"{run['D'] / critical:.2g}"]


def width(d_model: int, optimiser: str | None = None, ranks: str | None = None) -> Table:
    """Ranks and effective dimension for several feed-forward widths D (Jha and Reagen 2510.00537).

    Raises InputError for a value out of range, and for a file without ranks.
    """
    _check(d_model=d_model)
    from jaxlab.laws import spectral as laws  # imports scipy: after bad input has been refused
    from jaxlab.model.families import width as rounded

    if ranks is not None and optimiser is not None:
        raise InputError(f"--optimiser={optimiser}: --ranks takes the place of published ranks; give one of them")
    optimiser = "adamw" if optimiser is None else optimiser
    if optimiser not in laws.PUBLISHED:
        raise InputError(f"--optimiser={optimiser}: must be one of {', '.join(laws.PUBLISHED)}")
    rank_laws = _fitted(ranks) if ranks is not None else laws.PUBLISHED[optimiser]
    columns = "D, D / d_model, weights of a gated FFN, hard rank, soft rank, eDim, eDim / D, d eDim / d D"
    table = Table(*columns.split(", "), title=f"d_model {d_model:,}", title_justify="left")
    for multiple in MULTIPLES:
        d = rounded(d_model, multiple)
        hard, soft = rank_laws.ranks(d)
        edim, slope = laws.edim(d, hard, soft), laws.marginal_edim(rank_laws, d)
        numbers = (f"{x:,.0f}" for x in (hard, soft, edim))
        table.add_row(f"{d:,}", f"{multiple:g}", f"{3 * d_model * d:,}", *numbers, f"{edim / d:.3f}", f"{slope:.3f}")
    source = ranks if ranks else f"{optimiser} at d_model 768, D 768 to 6,144 (2605.21803): elsewhere an extrapolation"
    (a, hard), (b, soft) = rank_laws
    half = laws.recommended_width(rank_laws, d_model)
    where = f"from D = {half:,.0f} on" if half < math.inf else "nowhere below 64 d_model"
    table.caption = (
        f"hard rank {a:.3g} D^{hard:.3g}, soft rank {b:.3g} D^{soft:.3g} of {source}; d eDim / d D is below half of "
        f"its value at D = d_model {where}"
    )
    return table


def _fitted(path: str):
    """Rank laws fitted to the widths, hard ranks and soft ranks of a CSV file."""
    from jaxlab.laws import spectral as laws

    names, where = ("width", "hard_rank", "soft_rank"), f"--ranks={path}"
    file = files.local(path, "--ranks")
    with files.reading(where), file.open(newline="", encoding="utf-8-sig") as lines:
        table = csv.DictReader(lines, strict=True)
        header = table.fieldnames or []
        if any(header.count(name) != 1 for name in names):
            raise InputError(f"{where}: its columns are {', '.join(header)[:80] or 'none'}; must be {', '.join(names)}")
        rows = [_ranks(row, names, f"{where}, line {table.line_num}") for row in table]
    if len(rows) < 3:
        raise InputError(f"{where}: {len(rows)} rows; must be 3 or more")
    try:
        return laws.fitted(*zip(*rows, strict=True))
    except InputError as error:  # for example if all widths are equal
        raise InputError(f"{where}: {error}") from error


def _ranks(row: dict, names: tuple, where: str) -> list[float]:
    """The width and the ranks of one row. Raises InputError unless 1 <= rank <= width."""
    try:
        values = [float(row[name]) for name in names]
    except (TypeError, ValueError):
        values = [math.nan]
    if None in row or not (1 <= min(values[1:], default=0) <= max(values[1:]) <= values[0] < math.inf):
        shown = ", ".join(f"{name}={str(row[name])[:20]}" for name in names)
        raise InputError(f"{where}: {shown}; ranks must be numbers from 1 to the width")
    return values


def batch(params: float, tokens: float, schedule: str | None = None) -> Table:
    """Batch sizes by published rules, and the steps of a batch-size schedule (optim.batch_growth).

    Raises InputError for a value out of range, and for a schedule without a single step.
    """
    _check(params=params, tokens=tokens)
    from jaxlab.laws import batch_size as laws  # imports jax: after bad input has been refused
    from jaxlab.laws import chinchilla
    from jaxlab.optim.batch_growth import from_text, walk

    loss = float(chinchilla.parametric_loss(chinchilla.MUENNIGHOFF, {"N": params, "D": tokens}))
    table = Table("rule", "batch, tokens", "steps", "source", title=f"{params:.4g} parameters, {tokens:.4g} tokens")
    table.title_justify = "left"
    for rule, size, source in (
        ("critical, from the loss", laws.kaplan(loss), "2001.08361: 2e8 L^(-1 / 0.21)"),
        ("critical, from D", laws.zhang(tokens), "2410.21676: 18.2 D^0.468, takes 20 % more steps than ideal scaling"),
        ("best, from the loss", laws.minicpm(loss), "2404.06395: 1.21e9 L^-6.24"),
        ("best, from compute", laws.deepseek(6 * params * tokens), "2401.02954: 0.292 C^0.327, C = 6 N D"),
        ("best, from D", laws.step_law(tokens), "2503.04715: 0.58 D^0.571"),
        ("best, from D", laws.five_percent(tokens), "2607.01487: 0.667 D^0.566, within 5 % over a factor of four"),
        ("used, from N", laws.olmo(params), "OLMo ladder: 2048 x 160 (N / 108e6)^(2/3)"),
    ):
        table.add_row(rule, f"{size:,.0f}" if size >= 1 else "below 1", f"{tokens / size:,.0f}", source)
    stages = []
    if schedule is not None:
        try:
            stages = walk(from_text(schedule, until=int(tokens), parameters=params), int(tokens))
        except InputError as error:
            raise InputError(f"--schedule={schedule}: {error}") from error
        if not stages:
            raise InputError(f"--schedule={schedule}: its first batch is larger than --tokens={tokens:g}")
    for stage in stages:
        table.add_row(f"from {stage.start:,}", f"{stage.size:,}", f"{stage.steps:,}", "--schedule")
    if stages:
        taken = sum(stage.steps for stage in stages)
        mean = sum(stage.steps * stage.size for stage in stages) / taken
        table.add_row("mean", f"{mean:,.0f}", f"{taken:,}", "--schedule, whole run")
    decay = laws.weight_decay_timescale(tokens / params) * tokens
    table.caption = (
        f"loss {loss:.3f} nats/token, by Muennighoff et al.'s law for C4; rules from other data, optimisers and "
        f"schedules differ by factors of several. Best learning rate x weight decay: batch / {decay:.3g} (2505.13738)"
    )
    return table


if __name__ == "__main__":
    entry.run_actions(main)

"""What published laws say of a run before it is made:

python -m launch.plan diloco --params=1.3e9 --replicas=4
python -m launch.plan precision --params=1e9 --tokens=1e12
"""

import inspect
import math

from absl import flags
from rich.console import Console
from rich.table import Table

from jaxlab.config import InputError
from jaxlab.cost import wallclock as cost
from launch import entry

_PARAMS = flags.DEFINE_float("params", None, "parameters N; for precision those of the blocks' linears")
_REPLICAS = flags.DEFINE_integer("replicas", 1, "replicas M; 0: data-parallel alone")
_TOKENS_PER_PARAM = flags.DEFINE_float("tokens_per_param", 20.0, "training tokens D / N")
_CHIPS = flags.DEFINE_integer("chips", None, "chips in all; left out: one for 4,096 tokens of the batch")
_TOKENS = flags.DEFINE_float("tokens", None, "training tokens D")
_BLOCK = flags.DEFINE_float("block", 128.0, "elements that share one scale, B")
FLAGS = (_PARAMS, _REPLICAS, _TOKENS_PER_PARAM, _CHIPS, _TOKENS, _BLOCK)  # named as what the plans take
WIDTH = 120  # tables are wider than a pipe is said to be
SEQUENCE = 2_048  # tokens, in every run behind the laws
BUSY = 0.9  # compute utilisation to reach
LINES = (  # (quantity, source) of the strings of `diloco_column`, in their order
    ("loss, nats a token of C4", "law in N and M, D = 20 N; data-parallel its own"),
    ("peak learning rate", "laws of the same kind"),
    ("  on the grid", "nearest power of sqrt 2"),
    ("batch B, tokens", "laws of the same kind"),
    ("  on the grid", "nearest power of two of tokens a replica"),
    ("  sequences a replica", f"of {SEQUENCE:,} tokens"),
    ("outer learning rate", "best by M, the same for all N from 335M up"),
    ("steps H between syncs", "as in every run behind the laws"),
    ("tokens D", "--tokens_per_param"),
    ("steps D / B", "at the batch on the grid"),
    ("weight decay", "1 / steps in every step, whatever the rate"),
    ("chips", f"{cost.FLOPS / 1e12:.0f} TFLOP/s each, in proportion to B"),
    *((f"hours, {name} network", f"idealised, {w / 1e9:.0f} Gbit/s and {1e3 * e:g} ms across")
      for name, (w, e) in cost.NETWORKS.items()),
    ("tokens in data-parallel's hours", f"on the {', '.join(cost.NETWORKS)} network"),
    ("Gbit a site sends at a sync", "16 bits a parameter; with M < 2 in every step"),
    (f"Gbit/s for a utilisation of {BUSY:.0%}", "simulated, 0.1 to 1,000 Gbit/s"),
)  # fmt: skip
BITS = (3, 4, 5, 6, 8, 10, 12, 16)  # of the formats that are compared


def main(words: list[str], console: Console) -> int:
    plans = {"diloco": diloco, "precision": precision}
    if len(words) != 1 or words[0] not in plans:
        raise InputError(f"{' '.join(words) or 'no plan'}: say one of {', '.join(plans)}")
    plan = plans[words[0]]
    takes = inspect.signature(plan).parameters
    for flag in FLAGS:
        if flag.present and flag.name not in takes:
            raise InputError(f"--{flag.name}: {words[0]} takes --{', --'.join(takes)}")
    table = plan(**{flag.name: flag.value for flag in FLAGS if flag.name in takes})
    Console(width=max(console.width, WIDTH)).print(table)
    return 0


def diloco(params: float, replicas: int, tokens_per_param: float = 20.0, chips: int | None = None) -> Table:
    """A run of DiLoCo beside data-parallel at its own batch (Charles et al. 2503.09799); replicas 0: that alone.

    InputError: a value out of range.
    """
    _check(params=params, tokens_per_param=tokens_per_param)
    if replicas < 0:
        raise InputError(f"--replicas={replicas}: must be 0, which is data-parallel, or above")
    if chips is not None and chips < max(replicas, 1):
        raise InputError(f"--chips={chips}: must be at least {max(replicas, 1)}, one a replica")
    from jaxlab.laws.diloco import published_batch  # imports jax: after bad input has been refused

    batch = published_batch(params, replicas)
    share = batch / (chips or max(cost.chip_count(batch), replicas))
    columns = {0: "data-parallel"} if replicas == 0 else {replicas: f"DiLoCo, M = {replicas}", 0: "data-parallel"}
    table = Table("", *columns.values(), "source", title=f"{params:.4g} parameters", title_justify="left")
    table.caption = "laws of 2503.09799, sizes 35M to 2.4B; losses measured at 10B are 3 to 4 % above them"
    values = [diloco_column(params, m, tokens_per_param * params, share) for m in columns]
    for (quantity, source), *row in zip(LINES, *values, strict=True):
        table.add_row(quantity, *row, source)
    return table


def diloco_column(params: float, replicas: int, tokens: float, tokens_per_chip: float) -> list[str]:
    """The numbers of LINES for M replicas, 0 for data-parallel, in tokens D."""
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
        f"{cost.required_bandwidth(run, params, compute, BUSY) / 1e9:,.4g}",
    ]


def _check(**values: float | None) -> None:
    for name, value in values.items():
        if value is None or not 0 < value < math.inf:
            raise InputError(f"--{name}={value}: must be above 0 and finite")


def precision(params: float, tokens: float, block: float = 128.0) -> Table:
    """Loss and critical data size of a run by format, under the Capybara law (Sun et al. 2501.02423).

    InputError: a value out of range.
    """
    _check(params=params, tokens=tokens)
    if not 1 < block < math.inf:
        raise InputError(f"--block={block}: must be above 1, at which the law has no penalty, and finite")
    from jaxlab.laws import floating_point as laws  # imports jax: after bad input has been refused

    p = laws.CAPYBARA_CONSTANTS
    run = {"N": params, "D": tokens, "B": block}
    best = float(laws.precision_at_tokens(p, tokens, block))
    columns = "format, bits, loss (nats a token), of it precision, worth parameters, critical tokens, D / critical"
    table = Table(*columns.split(", "), title=f"{params:.4g} parameters, {tokens:.4g} tokens, blocks of {block:g}")
    table.title_justify = "left"
    for P in BITS:
        E, M = laws.integer_layout(p, P)
        table.add_row(f"E{E}M{M}", f"{P}", *precision_row(run, E, M))
    table.caption = (
        f"compute-optimal at this D: {best:.2f} bits, if bits x N x D is the cost; beyond the critical tokens more "
        "data raise the loss; law of 2501.02423 for weights and the activations of weight gradients quantised, fitted "
        "at 41M to 679M parameters, 10B to 105B tokens, 3 to 10 bits: elsewhere an extrapolation"
    )
    return table


def precision_row(run: dict, E: int, M: int) -> list[str]:
    """The numbers of one format at N, D and B; it is worth as many parameters as reach its loss without a penalty."""
    from jaxlab.laws import floating_point as laws

    p = laws.CAPYBARA_CONSTANTS
    loss = laws.CAPYBARA(p, run | {"E": E, "M": M})
    penalty = loss - laws.BASE(p, run)
    worth = (run["N"] ** -p["alpha"] + penalty / p["n"]) ** (-1 / p["alpha"])
    critical = laws.critical_tokens(p, run["N"], E, M, run["B"])
    return [f"{loss:.4f}", f"{penalty:.4f}", f"{worth:.3g}", f"{critical:.4g}", f"{run['D'] / critical:.2g}"]


if __name__ == "__main__":
    entry.run_actions(main)

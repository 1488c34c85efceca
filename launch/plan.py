"""What published laws say of a run before it is made: python -m launch.plan diloco --params=1.3e9 --replicas=4"""

import math

from absl import flags
from rich.console import Console
from rich.table import Table

from jaxlab.config import InputError
from jaxlab.cost import wallclock as cost
from launch import entry

_PARAMS = flags.DEFINE_float("params", None, "parameters N")
_REPLICAS = flags.DEFINE_integer("replicas", 1, "replicas M; 0: data-parallel alone")
_TOKENS_PER_PARAM = flags.DEFINE_float("tokens_per_param", 20.0, "training tokens D / N")
_CHIPS = flags.DEFINE_integer("chips", None, "chips in all; left out: one for 4,096 tokens of the batch")
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


def main(words: list[str], console: Console) -> int:
    actions = {"diloco": diloco}
    if len(words) != 1 or words[0] not in actions:
        raise InputError(f"{' '.join(words) or 'no plan'}: say one of {', '.join(actions)}")
    table = actions[words[0]](_PARAMS.value, _REPLICAS.value, _TOKENS_PER_PARAM.value, _CHIPS.value)
    Console(width=max(console.width, WIDTH)).print(table)
    return 0


def diloco(params: float, replicas: int, tokens_per_param: float = 20.0, chips: int | None = None) -> Table:
    """A run of DiLoCo beside data-parallel at its own batch (Charles et al. 2503.09799); replicas 0: that alone.

    InputError: a value out of range.
    """
    for name, value in (("params", params), ("tokens_per_param", tokens_per_param)):
        if value is None or not 0 < value < math.inf:
            raise InputError(f"--{name}={value}: must be above 0 and finite")
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


if __name__ == "__main__":
    entry.run_actions(main)

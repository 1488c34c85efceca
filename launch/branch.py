"""Measures the critical batch of a run by branches (Merrill et al. 2505.23971):

python -m launch.branch --workdir=runs/demo --at=400000,800000 --times=1,2,4,8 --window=131072

From each checkpoint training goes on at several times the batch; the largest that does not lose marks the critical one.
Branches are runs in WORKDIR/branches/: finished ones are skipped, stopped ones go on. Prints a table and the schedule
that doubles where it should; draws WORKDIR/branches/branches.png.
"""

import math
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from jaxlab.config import InputError, check
from launch import entry

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run, which is left as it is but for branches/")
_AT = flags.DEFINE_list("at", [], "tokens of the checkpoints to branch from; left out: of the newest")
_TIMES = flags.DEFINE_list("times", ["1", "2", "4", "8"], "batches of the branches, as multiples of the run's there")
_WINDOW = flags.DEFINE_integer("window", 0, "tokens that each branch trains for; left out: 32 steps of the largest")
_TOLERANCE = flags.DEFINE_float("tolerance", 0.01, "nats/token by which a larger batch may be above a smaller one")
_PROCESSES = flags.DEFINE_string("processes", "", "as for launch.train")
flags.register_validator("workdir", bool, message="name the folder of the run, as in --workdir=runs/demo")


def main(words: list[str], console: Console) -> int:
    from jaxlab import parallel
    from jaxlab.files import local
    from jaxlab.interop.workdir import recorded_config
    from jaxlab.optim.batch_growth import doubled, size_at
    from jaxlab.optim.noise_scale import branched
    from jaxlab.train.branch import branch, loss
    from jaxlab.train.build import build
    from jaxlab.train.checkpoint import listed
    from jaxlab.train.claim import check_run
    from jaxlab.train.log import say

    if words:
        raise InputError(f"{words[0]}: only flags are understood")
    workdir, times, at = local(_WORKDIR.value, "--workdir"), integers(_TIMES), integers(_AT)
    if not 0 <= _TOLERANCE.value < math.inf:
        raise InputError(f"--tolerance={_TOLERANCE.value}: must be a number of nats/token from 0 on")
    console.quiet = not parallel.start(_PROCESSES.value)
    run = build(recorded_config(workdir))
    check_run(run, workdir)
    there = listed(workdir / "checkpoints")
    at = at or there[-1:]
    if not at or set(at) - set(there):
        raise InputError(f"--at={','.join(_AT.value)}: checkpoints are at {', '.join(map(str, there)) or 'no'} tokens")
    sizes = {tokens: size_at(run.batches, tokens).tokens for tokens in at}
    configs = {
        (tokens, k): branch(run, tokens, k, _WINDOW.value or 32 * max(times) * sizes[tokens])
        for tokens in at for k in times
    }  # fmt: skip
    for config in configs.values():  # before the first of them trains
        check(config)
    measured = {tokens: {} for tokens in at}
    for (tokens, k), config in configs.items():
        folder = workdir / "branches" / f"{tokens}-x{k}"
        say(console, f"\n{folder}: {config.batch.tokens:,} tokens a step")
        found = loss(run, workdir, config, tokens, folder=folder, console=console)
        if found is None:
            return 0
        measured[tokens][k] = found
    critical = {tokens: branched(losses, sizes[tokens], _TOLERANCE.value)[1] for tokens, losses in measured.items()}
    console.print(table(measured, sizes, critical))
    say(console, proposal(doubled(critical, run.batches[0].tokens)))
    figure(measured, sizes, _TOLERANCE.value, workdir / "branches" / "branches.png", workdir.name)
    return 0


def proposal(stages: dict[int, int]) -> str:
    """What {tokens: batch, tokens}, of a batch that doubles where its critical batch allows, says to do."""
    if len(stages) == 1:
        return "no critical batch is more than twice the run's first batch: the batch should not grow"
    text = " ".join(f"{start}:{size}" for start, size in stages.items())
    return f"doubled where the critical batch is twice as large: --config.batch.growth='{text}'"


def integers(flag) -> list[int]:
    """Those of a list flag, in order. InputError: what is none, or not from 1 to 2^63 - 1."""
    values = sorted({int(word) if word.isdecimal() and len(word) < 20 else 0 for word in flag.value})
    if flag.present and not (values and all(1 <= value < 2**63 for value in values)):
        raise InputError(f"--{flag.name}={','.join(flag.value)}: must be whole numbers from 1 on, as in 1,2,4")
    return values


def table(measured: dict[int, dict[int, float]], sizes: dict[int, int], critical: dict[int, float]) -> Table:
    """A row a branch. The critical batch is at least the largest that was tried, where it is that."""
    found = Table("from, tokens", "times", "batch, tokens", "held-out loss", "")
    for tokens, losses in measured.items():
        for k, value in losses.items():
            batch = k * sizes[tokens]
            mark = "critical" + (", or more" if k == max(losses) else "") if batch == critical[tokens] else ""
            shown = f"{value:.4f}" if math.isfinite(value) else "diverged"
            found.add_row(f"{tokens:,}", f"{k}", f"{batch:,}", shown, mark)
    return found


def figure(measured: dict[int, dict[int, float]], sizes: dict[int, int], tolerance: float, path: Path, title: str):
    """Losses above the best branch of their checkpoint against the batch, as PNG."""
    import matplotlib  # a second to import
    from matplotlib.figure import Figure

    fig = Figure(figsize=(7, 4), layout="constrained")
    axes = fig.subplots()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(measured)))
    for colour, (tokens, losses) in zip(colours, measured.items(), strict=True):
        above = np.array(list(losses.values())) - min(losses.values())
        axes.plot(np.array(list(losses)) * sizes[tokens], above, "o-", color=colour, label=f"from {tokens:,} tokens")
    axes.axhline(tolerance, color="0.5", lw=1, ls="--", label=f"tolerance {tolerance:g}")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="batch (tokens)", ylabel="loss above the best branch (nats/token)")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    fig.savefig(path, dpi=150)


if __name__ == "__main__":
    entry.with_huge_pages()
    entry.run_actions(main)

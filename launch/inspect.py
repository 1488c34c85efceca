"""Draws the spectra of a finished or running run: python -m launch.inspect --workdir=runs/demo

Writes WORKDIR/spectra-post.png (and spectra-pre.png, if that was measured): eigenvalues at the last measurement, ranks
during training, utilisation and concentration of each layer. Prints a table of the last measurement.
"""

import io
from pathlib import Path

import numpy as np
from absl import flags
from rich.table import Table

from jaxlab import files
from jaxlab.config import InputError
from jaxlab.train.log import say
from launch import entry

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
flags.register_validator("workdir", bool, message="name the folder of the run, as in --workdir=runs/demo")

COLUMNS = {  # {column of the table: (metric, format)}
    "hard rank": ("hard_rank", ".1f"),
    "soft rank": ("soft_rank", ".1f"),
    "SUI": ("sui", ".3f"),
    "eDim": ("edim", ".1f"),
    "concentration": ("concentration", ".3f"),
}
UTILISATIONS = {"soft": ("soft_utilisation", "^--"), "SUI": ("sui", "s-."), "hard": ("hard_utilisation", "o-")}


def measurements(workdir: Path) -> tuple[list[dict], dict[str, np.ndarray]]:
    """(rows of spectra of the run in workdir, {"TAP/LAYER": eigenvalues [D]} of the last of them). Raises InputError
    if there are none, or if rows and eigenvalues do not belong together."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        raise InputError(f"workdir={workdir}: holds no run")
    rows = [row for row in files.read_rows(path, kind=str, tokens=int)[0] if row["kind"] == "spectra"]
    if not rows:
        raise InputError(f"workdir={workdir}: has no spectra; train with --config.spectra.at=log:50")
    arrays = workdir / "spectra" / f"{rows[-1]['tokens']}.npz"
    with files.reading(arrays), np.load(arrays) as file:
        eigenvalues = {name: file[name] for name in file.files}
    wanted = {f"{tap}/{i}" for tap in taps(eigenvalues) for i in range(depth(eigenvalues, tap))}
    if not wanted or "post/0" not in wanted or wanted != eigenvalues.keys():
        raise InputError(f"{arrays}: holds {', '.join(eigenvalues) or 'nothing'}; must hold post/0, post/1, ...")
    for name, values in eigenvalues.items():
        if values.ndim != 1 or not values.size or values.dtype.kind != "f":
            raise InputError(f"{arrays}: {name} is {values.dtype} {list(values.shape)}; must be eigenvalues, float [D]")
    metrics = dict.fromkeys(metric for metric, _ in (*COLUMNS.values(), *UTILISATIONS.values()))
    kinds = {name.replace("/", f"/{metric}/"): (int, float) for name in eigenvalues for metric in metrics}
    for row in rows:
        where = f"{path}: the spectra at {row['tokens']} tokens"
        files.need(row, where, **kinds)
        with files.reading(where):
            np.array([row[key] for key in (*kinds, "tokens")], float)  # raises for integers that float64 cannot hold
    for tap in taps(eigenvalues):
        count = sum(key.startswith(f"{tap}/hard_rank/") for key in rows[-1])
        if count != depth(eigenvalues, tap):
            raise InputError(f"{arrays}: holds {depth(eigenvalues, tap)} layers of {tap}; {path} has {count} there")
    return rows, eigenvalues


def taps(eigenvalues: dict) -> list[str]:
    return list(dict.fromkeys(name.partition("/")[0] for name in eigenvalues))


def depth(eigenvalues: dict, tap: str) -> int:
    return sum(name.startswith(f"{tap}/") for name in eigenvalues)


def layers(rows: list[dict], tap: str, metric: str) -> np.ndarray:
    """Values of a metric, [measurements, layers]."""
    count = sum(key.startswith(f"{tap}/{metric}/") for key in rows[-1])
    return np.array([[row[f"{tap}/{metric}/{i}"] for i in range(count)] for row in rows])


def table(rows: list[dict], widths: list[int]) -> Table:
    """A row for each layer: metrics of the inputs of its down projection at the last measurement."""
    from jaxlab.spectral.collapse import collapsed

    shown, lost = Table("layer", "D", *COLUMNS), collapsed(rows[-1])
    for i, width in enumerate(widths):
        cells = [f"{rows[-1][f'post/{metric}/{i}']:{form}}" for metric, form in COLUMNS.values()]
        shown.add_row(f"{i} collapsed" if i in lost else f"{i}", f"{width:,}", *cells)
    return shown


def figure(rows: list[dict], spectra: list[np.ndarray], tap: str, path: Path, title: str) -> None:
    """Draws four panels as PNG; spectra: the eigenvalues of every layer at the last measurement."""
    import matplotlib
    from matplotlib.figure import Figure

    fig = Figure(figsize=(11, 8), layout="constrained")
    (decay, ranks), (use, top) = fig.subplots(2, 2)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(spectra)))
    tokens, hard, soft = [row["tokens"] for row in rows], layers(rows, tap, "hard_rank"), layers(rows, tap, "soft_rank")
    for i, (colour, values) in enumerate(zip(colours, spectra, strict=True)):
        positive = values[values > 0]  # a logarithmic axis has no zeros
        fractions = positive / positive.sum()
        decay.loglog(np.arange(1, len(fractions) + 1), fractions, color=colour, lw=1.3, label=f"layer {i}")
        ranks.loglog(tokens, soft[:, i], "--", color=colour, lw=1.2, marker=".", ms=3)
        ranks.loglog(tokens, hard[:, i], "-", color=colour, lw=1.2, marker=".", ms=3)
    decay.legend(frameon=False, fontsize="small", ncols=1 + len(spectra) // 9)
    decay.set(xlabel="eigenvalue, largest first", ylabel="fraction of the variance", title=f"at {tokens[-1]:,} tokens")
    for style, name in (("-", "hard rank"), ("--", "soft rank")):
        ranks.plot([], [], style, color="0.3", label=name)
    ranks.set(xlabel="training tokens", ylabel="rank", title="during training, coloured by layer")
    at = np.arange(len(spectra))
    for name, (metric, form) in UTILISATIONS.items():
        use.plot(at, layers(rows, tap, metric)[-1], form, ms=5, label=name)
    use.set(ylabel="utilisation (rank / D)", ylim=(0, None))
    top.plot(at, layers(rows, tap, "concentration")[-1], "o-", ms=5, color="C3")
    top.set(ylabel="concentration", ylim=(0, 1))
    for axes in (use, top):
        axes.set(xlabel="layer", xticks=at)
    for axes in (ranks, use):
        axes.legend(frameon=False)
    for axes in fig.axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    fig.suptitle(title, parse_math=False)
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=130)
    files.write_atomic(path, file.getvalue())


def main(words, console) -> int:
    if words:
        raise InputError(f"{words[0]}: only --workdir is understood")
    workdir = files.local(_WORKDIR.value, "--workdir")
    rows, eigenvalues = measurements(workdir)
    paths = []
    for tap in taps(eigenvalues):
        spectra = [eigenvalues[f"{tap}/{i}"] for i in range(depth(eigenvalues, tap))]
        paths.append(workdir / f"spectra-{tap}.png")
        figure(rows, spectra, tap, paths[-1], f"{workdir.name}: {tap}-activation")
    say(console, f"{workdir}: {len(rows)} measurements, the last at {rows[-1]['tokens']:,} tokens")
    console.print(table(rows, [len(eigenvalues[f"post/{i}"]) for i in range(depth(eigenvalues, "post"))]))
    say(console, ", ".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    entry.run_actions(main)

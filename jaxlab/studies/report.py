"""The report of a study: tables, fits, figures and claims, as Markdown and as one self-contained HTML page."""

import base64
import html
import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from jaxlab import files
from jaxlab.config import InputError
from jaxlab.studies.claim import Judged
from jaxlab.studies.study import Analysis, Study, csv_text, of_the_study, record, survey

LOSS = "validation loss (nats/token)"
COLOURS = {"supported": "#1a7f37", "contradicted": "#b3261e", "inconclusive": "#6b6b6b"}
STYLE = """
body { font: 16px/1.5 Georgia, serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { font-weight: normal; line-height: 1.2 }
table { border-collapse: collapse; font: 13px/1.4 sans-serif; margin: 1rem 0 }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
img { max-width: 100% }
figure { margin: 1.5rem 0 }
figcaption { font-size: 14px; color: #555 }
pre { background: #f4f4f4; padding: .5rem }
"""


def write(study: Study, folder: str | Path, command: str) -> tuple[list[Path], dict[str, str]]:
    """Writes results.csv, seconds.csv, claims.json, figures, report.md and report.html: all of them, or none where
    anything goes wrong. Returns their paths, and {run: why} of the runs that are left out.

    command: what made the runs, for the reader. Raises InputError where no run has ended.
    """
    rows, left = survey(study)
    if not rows:
        why = f"{len(left)} left out, {next(iter(left.values()))}" if left else f"first {command}"
        raise InputError(f"{study.folder}: no run has ended; {why}")
    about = _about(study, rows, left, command)
    content = {"study": study.name, "scale": study.scale, "command": command, "about": about}
    with of_the_study(f"{study.name}:{study.scale}", "its analysis failed"):
        analysis = study.module.analyse(rows)
        pictures = {name: _png(figure) for name, (figure, _) in analysis.figures.items()}
        claims = [claim_record(judged) for judged in analysis.claims]
        blocks = list(_blocks(study, analysis, claims, about, command))
        made = {
            "results.csv": csv_text([{k: v for k, v in row.items() if k != "seconds"} for row in rows]),
            "seconds.csv": csv_text([{"name": row["name"], "seconds": row["seconds"]} for row in rows]),
            "claims.json": files.seal(content | {"claims": claims}),
            **{f"{name}.png": picture for name, picture in pictures.items()},
            "report.md": "\n\n".join(map(_markdown, blocks)) + "\n",
            "report.html": _page(study, blocks, pictures),
        }
    into = files.local(folder, "--results") / study.name / study.scale
    into.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=into, prefix=".report-") as beside:
        for name, text in made.items():
            files.write_atomic(Path(beside) / name, text)
        for name in made:  # nothing is left to go wrong
            (Path(beside) / name).replace(into / name)
    return sorted(into / name for name in made), left


def _png(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, facecolor="white")
    return file.getvalue()


def claim_record(judged: Judged) -> dict:
    """A claim and its verdict as plain values; numbers that are not finite become None."""
    claim, verdict = judged.claim, judged.verdict
    numbers = {k: v if math.isfinite(v := getattr(verdict, k)) else None for k in ("effect", "low", "high")}
    return {
        "id": claim.id, "claim": claim.text, "published": claim.published, "verdict": verdict.verdict, **numbers,
        "measured": verdict.what, "runs": judged.runs, "tokens": judged.tokens, "seconds": judged.seconds,
    }  # fmt: skip


def _about(study: Study, rows: list[dict], left: dict[str, str], command: str) -> list[str]:
    """Sentences on what lies behind the report."""
    begun = record(study.folder / rows[0]["name"] / "config.json")
    diverged = sum(row["status"] == "diverged" for row in rows)
    epochs = [row["epochs"] for row in rows if row["epochs"] is not None] or [0.0]
    missing = len(study.trials) - len(rows) - len(left)
    others = f"; {missing} have not ended, and the report leaves them out" if missing else ""
    if left:
        others += f"; {len(left)} are damaged or of another config, and the report leaves them out: {', '.join(left)}"
    versions = ", ".join(f"{name} {version}" for name, version in begun["versions"].items())
    return [
        f"{len(rows)} of {len(study.trials)} runs have ended ({diverged} diverged){others}.",
        f"{sum(r['tokens'] for r in rows):,} training tokens of {begun['config']['data.source']} "
        f"({begun['config']['data.tokenizer']}), {min(epochs):.2f} to {max(epochs):.2f} epochs a run, "
        f"{sum(r['flops'] for r in rows):.3g} FLOP, {sum(r['seconds'] for r in rows):,.0f} seconds of training summed "
        "over runs.",
        f"{begun['machine']}; {versions}; one worker a core on CPU.",
    ]


def _blocks(study: Study, analysis: Analysis, claims: list[dict], about: list[str], command: str) -> Iterable[tuple]:
    """The report in reading order: (kind, content) pairs."""
    yield "title", f"{study.name}, {study.scale}"
    yield "text", " ".join(study.module.__doc__.split())
    for line in about:
        yield "text", line
    yield "code", f"{command}\n{command.removesuffix('run')}report"
    yield "heading", "Claims"
    yield "text", "The interval is of 95 %. Supported: it lies where the claim says; contradicted: wholly elsewhere."
    yield "table", [claim_row(claim) for claim in claims]
    for i, (name, (_, caption)) in enumerate(analysis.figures.items()):
        if i == 0:
            yield "heading", "Figures"
        yield "figure", (name, caption)
    for title, table in analysis.fits.items():
        yield "heading", title
        yield "table", table


def claim_row(claim: dict) -> dict:
    """A claim as a line of the report's table."""
    if claim["effect"] is None:
        found = "-"
    else:
        ends = [f"{claim[k]:.3g}" if claim[k] is not None else "unbounded" for k in ("low", "high")]
        found = f"{claim['effect']:.3g} [{', '.join(ends)}]"
    behind = f"{claim['runs']} runs, {claim['tokens'] / 1e6:,.1f} M tokens, {claim['seconds']:,.0f} s"
    return {
        "": claim["id"], "claim": claim["claim"], "published": claim["published"], "found": found,
        "of what": claim["measured"], "verdict": claim["verdict"], "behind it": behind,
    }  # fmt: skip


def _markdown(block: tuple) -> str:
    kind, content = block
    if kind == "table":
        content = content or [{"none": ""}]
        lines = [content[0].keys(), ["---"] * len(content[0]), *(row.values() for row in content)]
        return "\n".join("| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
    if kind == "figure":
        return f"![{_plain(content[0])}]({quote(content[0])}.png)\n\n*{_plain(content[1])}*"
    if kind == "code":
        return f"```\n{content}\n```"
    return {"title": "# {}", "heading": "## {}", "text": "{}"}[kind].format(_plain(content))


def _plain(text) -> str:
    """One line in which Markdown finds no HTML and no links."""
    return " ".join(str(text).split()).replace("<", "\\<").replace("](", "]\\(")


def _page(study: Study, blocks: list[tuple], pictures: dict[str, bytes]) -> str:
    body = "\n".join(_html(block, pictures) for block in blocks)
    title = html.escape(f"{study.name}, {study.scale}")
    head = f"<meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang=en><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def _html(block: tuple, pictures: dict) -> str:
    kind, content = block
    if kind == "table":
        content = content or [{"none": ""}]
        head = "".join(f"<th>{html.escape(str(name))}" for name in content[0])
        rows = ("<tr>" + "".join(f"<td>{_coloured(cell)}" for cell in row.values()) for row in content)
        return f"<table><tr>{head}\n" + "\n".join(rows) + "\n</table>"
    if kind == "figure":
        name, caption = content
        data = base64.b64encode(pictures[name]).decode()
        width = int.from_bytes(pictures[name][16:20], "big") * 96 / 150  # the size that it was drawn for
        picture = f'<img alt="{html.escape(name)}" width={width:.0f} src=data:image/png;base64,{data}>'
        return f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"
    tag = {"title": "h1", "heading": "h2", "text": "p", "code": "pre"}[kind]
    return f"<{tag}>{html.escape(content)}</{tag}>"


def _coloured(cell) -> str:
    text = html.escape(str(cell))
    return f"<b style=color:{COLOURS[cell]}>{text}</b>" if cell in COLOURS else text


def reproduce(folder: str | Path) -> str:
    """docs/REPRODUCE.md: every claim of every report below the folder of results. Raises InputError for a claims.json
    that is damaged."""
    lines = [
        "# What reproduces",
        "",
        "Written by `python -m launch.study ... report` from the committed results; not to be edited. Intervals are of "
        "95 %, at the scale named: a small one, on other data than the papers'.",
    ]
    for path in sorted(Path(folder).glob("*/*/claims.json")):
        found = files.read_record(path, study=str, scale=str, about=list, command=str, claims=list)
        report = path.parent.relative_to(Path(folder).parent) / "report.md"
        with files.reading(path):
            table = [claim_row(claim) for claim in found["claims"]]
        lines += ["", _markdown(("heading", f"{found['study']}, {found['scale']}")), ""]
        lines += [*map(_plain, found["about"]), "", f"`{found['command']}`, [report](../{report})", ""]
        lines.append(_markdown(("table", table)))
    return "\n".join(lines) + "\n"


def kept(parts: dict[str, Callable], runs: list[dict]) -> dict:
    """{title: what its function makes of the settings}, without those that lack their runs."""
    made = {}
    for title, make in parts.items():
        try:
            found = make(runs)
        except InputError:
            continue
        if found:
            made[title] = found
    return made


def panels(rows: int, columns: int, *, width: float, height: float, **options):
    """(figure, axes) in the one style of all reports: light, no frame, a faint grid; axes is one object if alone."""
    from matplotlib.figure import Figure  # a second to import

    fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(rows, columns, **options)
    for ax in fig.axes:
        ax.grid(alpha=0.25, lw=0.5)
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def plain_numbers(axis) -> None:
    """Ticks of a logarithmic axis that spans little more than a decade: 1, 2, 5, 10, ... without powers of ten."""
    from matplotlib.ticker import LogLocator

    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")


def sequential(i: int, count: int) -> tuple:
    """Colour i of `count` in order, dark to light, told apart by colour-blind readers and in print."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * i / max(count - 1, 1))


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """A number and its interval, three significant digits."""
    return f"{value:.3g} [{interval[0]:.3g}, {interval[1]:.3g}]"

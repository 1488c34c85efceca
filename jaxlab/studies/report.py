"""The report of a study: tables, fits, figures and claims, as Markdown and as one self-contained HTML page."""

import base64
import html
import io
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from jaxlab.config import InputError
from jaxlab.studies.claim import Judged
from jaxlab.studies.study import ENDED, Analysis, Study, results, status, write_csv

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


def write(study: Study, folder: str | Path, command: str) -> list[Path]:
    """Writes results.csv, seconds.csv, claims.json, figures, report.md and report.html; returns their paths.

    command: what made the runs, for the reader. Raises InputError where no run has ended.
    """
    rows = results(study)
    if not rows:
        raise InputError(f"{study.folder}: no run has ended; first {command}")
    into = Path(folder) / study.name / study.scale
    into.mkdir(parents=True, exist_ok=True)
    write_csv(into / "results.csv", [{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    write_csv(into / "seconds.csv", [{"name": row["name"], "seconds": row["seconds"]} for row in rows])
    analysis = study.module.analyse(rows)
    for name, (figure, _) in analysis.figures.items():
        figure.savefig(into / f"{name}.png", dpi=150, facecolor="white")
    about = _about(study, rows, command)
    record = {"study": study.name, "scale": study.scale, "command": command, "about": about}
    claims = [claim_record(judged) for judged in analysis.claims]
    (into / "claims.json").write_text(json.dumps(record | {"claims": claims}, indent=1) + "\n")
    blocks = list(_blocks(study, analysis, claims, about, command))
    (into / "report.md").write_text("\n\n".join(map(_markdown, blocks)) + "\n")
    pictures = {name: figure for name, (figure, _) in analysis.figures.items()}
    (into / "report.html").write_text(_page(study, blocks, pictures))
    return sorted(into.iterdir())


def claim_record(judged: Judged) -> dict:
    """A claim and its verdict as plain values; numbers that are not finite become None."""
    claim, verdict = judged.claim, judged.verdict
    numbers = {k: v if math.isfinite(v := getattr(verdict, k)) else None for k in ("effect", "low", "high")}
    return {
        "id": claim.id, "claim": claim.text, "published": claim.published, "verdict": verdict.verdict, **numbers,
        "measured": verdict.what, "runs": judged.runs, "tokens": judged.tokens, "seconds": judged.seconds,
    }  # fmt: skip


def _about(study: Study, rows: list[dict], command: str) -> list[str]:
    """Sentences on what lies behind the report."""
    record = json.loads((study.folder / rows[0]["name"] / "config.json").read_text())
    states = [status(study.folder / trial.name)[0] for trial in study.trials]
    ended, diverged = sum(state in ENDED for state in states), states.count("diverged")
    finished = [row for row in rows if row["epochs"] is not None]
    epochs = [row["epochs"] for row in finished] or [0.0]
    left = f"; {len(states) - ended} have not ended, and the report leaves them out" if ended < len(states) else ""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return [
        f"{ended} of {len(states)} runs have ended ({diverged} diverged){left}.",
        f"{sum(r['tokens'] for r in rows):,} training tokens of {record['config']['data.source']} "
        f"({record['config']['data.tokenizer']}), {min(epochs):.2f} to {max(epochs):.2f} epochs a run, "
        f"{sum(r['flops'] for r in rows):.3g} FLOP, {sum(r['seconds'] for r in rows):,.0f} seconds of training summed "
        "over runs.",
        f"{record['machine']}; {versions}; one worker a core on CPU.",
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
        lines = [content[0].keys(), ["---"] * len(content[0]), *(row.values() for row in content)]
        return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
    if kind == "figure":
        return f"![{content[0]}]({content[0]}.png)\n\n*{content[1]}*"
    return {"title": "# {}", "heading": "## {}", "text": "{}", "code": "```\n{}\n```"}[kind].format(content)


def _page(study: Study, blocks: list[tuple], pictures: dict) -> str:
    body = "\n".join(_html(block, pictures) for block in blocks)
    head = f"<meta charset=utf-8><title>{study.name}, {study.scale}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang=en><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def _html(block: tuple, pictures: dict) -> str:
    kind, content = block
    if kind == "table":
        head = "".join(f"<th>{html.escape(str(name))}" for name in content[0])
        rows = ("<tr>" + "".join(f"<td>{_coloured(cell)}" for cell in row.values()) for row in content)
        return f"<table><tr>{head}\n" + "\n".join(rows) + "\n</table>"
    if kind == "figure":
        name, caption = content
        file = io.BytesIO()
        pictures[name].savefig(file, format="png", dpi=150, facecolor="white")
        data = base64.b64encode(file.getvalue()).decode()
        width = 96 * pictures[name].get_figwidth()  # the size that it was drawn for
        picture = f"<img alt={name} width={width:.0f} src=data:image/png;base64,{data}>"
        return f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"
    tag = {"title": "h1", "heading": "h2", "text": "p", "code": "pre"}[kind]
    return f"<{tag}>{html.escape(content)}</{tag}>"


def _coloured(cell) -> str:
    text = html.escape(str(cell))
    return f"<b style=color:{COLOURS[cell]}>{text}</b>" if cell in COLOURS else text


def reproduce(folder: str | Path) -> str:
    """docs/REPRODUCE.md: every claim of every report below the folder of results."""
    lines = [
        "# What reproduces",
        "",
        "Written by `python -m launch.study ... report` from the committed results; not to be edited. Intervals are of "
        "95 %, at the scale named: a small one, on other data than the papers'.",
    ]
    for path in sorted(Path(folder).glob("*/*/claims.json")):
        record = json.loads(path.read_text())
        report = path.parent.relative_to(Path(folder).parent) / "report.md"
        lines += ["", f"## {record['study']}, {record['scale']}", "", *record["about"], ""]
        lines += [f"`{record['command']}`, [report](../{report})", ""]
        lines.append(_markdown(("table", [claim_row(claim) for claim in record["claims"]])))
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

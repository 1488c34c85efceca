"""Tokenises a corpus into a token store: python -m launch.prepare --config=configs/demo.py"""

import time

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxlab.data.prepare import prepare
from launch import entry


def prepare_with_progress(data, console: Console) -> tuple[dict, bool]:
    """Runs `prepare` on config.data with a progress line; returns the metadata, and whether there was work to do."""
    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()]
    began = time.monotonic()
    worked = False
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"reading {data.source}, making tokenizer {data.tokenizer}")

        def show(documents: int, size: int, tokens: int) -> None:
            nonlocal worked
            worked = True
            speed = tokens / (time.monotonic() - began) / 1e6
            counts = f"{documents:,} documents  {size / 1e6:,.1f} MB  {tokens / 1e6:,.2f} M tokens"
            bar.update(task, description=f"{counts}  {speed:.2f} M tokens/s")

        meta = prepare(
            data.source,
            data.tokenizer,
            data.store,
            validation_fraction=data.validation_fraction,
            archives=data.archives,
            tfds_dir=data.tfds_dir or None,
            progress=show,
        )
    return meta, worked


def summary(meta: dict, path: str, seconds: float) -> Table:
    """A table of the store's contents and origin."""
    table = Table("", title=f"token store {path}", title_justify="left")
    for name in meta["splits"]:
        table.add_column(name, overflow="fold")  # hashes must stay whole
    splits = meta["splits"].values()
    for key in ("documents", "bytes", "tokens"):
        table.add_row(key, *(f"{counts[key]:,}" for counts in splits))
    table.add_row("bytes/token", *(f"{counts['bytes'] / counts['tokens']:.3f}" for counts in splits))
    table.add_section()
    for key in ("source", "licence", "corpus_sha256", "tokenizer", "vocab_size", "tokenizer_sha256"):
        table.add_row(key, str(meta[key]))
    table.add_row("seconds", f"{seconds:.1f}")
    return table


def main(config, console) -> int:
    data = config.data
    began = time.monotonic()
    meta, worked = prepare_with_progress(data, console)
    if not worked:
        console.print(f"already complete: {data.store}")
    console.print(summary(meta, data.store, time.monotonic() - began))
    if meta["note"]:
        console.print(f"note: {data.source} is {meta['note']}")
    if altered := meta.get("altered"):  # not recorded by older versions
        console.print(
            f"note: {data.tokenizer} does not give back {altered:,} documents as they were: bytes that it loses are "
            "counted although no token predicts them, so bits per byte are too low"
        )
    return 0


if __name__ == "__main__":
    entry.run(main)

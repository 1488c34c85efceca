"""Speed of a run whose batch grows compared with a constant batch of the same mean size: whole runs of the demo's
model.

    python -m benchmarks.growth [--tokens=2000000] [--out=benchmarks/results/NAME.json]

The growing batch has 1,024 tokens for a fifth of the run, 2,048 for two fifths and 4,096 for two fifths: as many steps
as with a constant batch of 2,048. Both accumulate micro-batches of 1,024 tokens. The two runs take turns and compile
anew each time. Tokens/s are those of all steps but the first, so that waiting for the program of the next size would
count; compilations are counted. The ratio is the median over rounds of the ratios of the two runs.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

ROUNDS = 7
SHARES = {1_024: 0.2, 2_048: 0.4, 4_096: 0.4}  # of the tokens, by batch size


def growth(tokens: int) -> str:
    """The stages as `config.batch.growth`, at whole batches."""
    starts, words = 0, []
    for size, share in SHARES.items():
        words.append(f"{starts}:{size}")
        starts += int(share * tokens) // max(SHARES) * max(SHARES)
    return " ".join(words)


def trained(store: str, tokens: int, stages: str) -> dict:
    """Tokens/s, steps and compilations of one run in a folder of its own."""
    from rich.console import Console

    from configs.demo import get_config
    from jaxlab.train import loop
    from jaxlab.train.build import build

    config = get_config()
    config.tokens, config.data.store, config.log.tensorboard = tokens, store, False
    config.batch.update(tokens=2_048, growth=stages, micro_tokens=1_024)
    config.schedule.warmup_tokens = tokens // 20
    config.evaluate.update(every_tokens=0, tokens=4_096)
    config.checkpoint.every_tokens = 0
    run, compiled = build(config), []
    compile_ = run.program._compile
    object.__setattr__(run.program, "_compile", lambda shape: compiled.append(shape) or compile_(shape))
    with tempfile.TemporaryDirectory() as folder:
        loop.train(run, folder, Console(quiet=True))
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    seconds = sum(row["seconds"] for row in steps[1:])
    rate = (steps[-1]["tokens"] - steps[0]["tokens"]) / seconds
    return {"tokens_per_second": rate, "steps": len(steps), "compilations": len(compiled)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="data/news-bpe4096", help="of `make demo`")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    import jax

    arms = {"constant": "", "growing": growth(args.tokens)}
    found = {name: [] for name in arms}
    for _ in range(args.rounds):
        for name, stages in arms.items():
            found[name].append(trained(args.store, args.tokens, stages))
            jax.clear_caches()
    rows = []
    for name, runs in found.items():
        rates = [run["tokens_per_second"] for run in runs]
        pairs = zip(rates, found["constant"], strict=True)
        ratios = sorted(rate / constant["tokens_per_second"] for rate, constant in pairs)
        measured = {"tokens_per_second": statistics.median(rates), "ratio": statistics.median(ratios), "ratios": ratios}
        rows.append({"arm": name, "growth": arms[name]} | runs[-1] | measured)
        ratio = f"{measured['ratio']:.2f} of constant ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        counts = f"{runs[-1]['steps']} steps, {runs[-1]['compilations']} compilations"
        print(f"{name:10} {measured['tokens_per_second']:9,.0f} tokens/s  {ratio}, {counts}")
    if args.out:
        machine = {"device": jax.devices()[0].device_kind, "cpus": os.cpu_count(), "jax": jax.__version__}
        Path(args.out).write_text(json.dumps(machine | {"tokens": args.tokens, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    from launch import entry

    entry.with_huge_pages()
    main()

"""Cost of casting operands in the blocks' linear layers: a training step by recipe and without casts, interleaved.

    python -m benchmarks.quant_step                                   # capybara, blocks of 128, E4M3
    python -m benchmarks.quant_step capybara:e2m1,block=32 nvfp4      # RECIPE:CHANGES, as quant.recipes.recipe reads

Model and batches are those of benchmarks.step. One process, 4 warm-up steps for each recipe, then blocks of steps in
turns. Prints a row for each recipe: median and best milliseconds and CPU seconds per step, and their ratios to the step
without casts.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from benchmarks.step import BLOCK, ROUNDS, SHAPES, WARM_UP, ours
from launch.entry import with_huge_pages


def quantised(words: str, shape: dict, dtype: str):
    """(step, compile seconds) of `benchmarks.step.ours` by RECIPE:CHANGES."""
    name, _, changes = words.partition(":")
    return ours(shape, dtype, [], {"quant.recipe": name, "quant.cast": changes})[:2]


def interleaved(sides: dict, rounds: int) -> list[dict]:
    """Times the steps of all sides, {name: (step, compile seconds)}, in turns; prints and returns a row a side, with
    its ratios to the first."""
    seconds, cpu = {name: [] for name in sides}, {name: [] for name in sides}
    for step, _ in sides.values():
        for _ in range(WARM_UP):
            step()
    for _ in range(rounds):
        for name, (step, _) in sides.items():
            for _ in range(BLOCK):
                began, cpu_began = time.perf_counter(), time.process_time()
                step()
                seconds[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - cpu_began)
    rows, first = [], next(iter(sides))
    for name, (_, compile_s) in sides.items():
        of = {"median_s": lambda n: statistics.median(seconds[n]), "best_s": lambda n: min(seconds[n]),
              "cpu_s": lambda n: statistics.median(cpu[n])}  # fmt: skip
        numbers = {key: (measure(name), measure(name) / measure(first)) for key, measure in of.items()}
        rows.append({"side": name, "compile_s": compile_s, **numbers})
        text = "   ".join(f"{key} {value:.3f} x {ratio:.2f}" for key, (value, ratio) in numbers.items())
        print(f"{name:32} {text}   compiled in {compile_s:.1f} s")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["capybara:block=128"], help="RECIPE:CHANGES")
    parser.add_argument("--shape", choices=SHAPES, default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", default="", help="also write the rows as JSON")
    args = parser.parse_args()
    with_huge_pages()
    shape = SHAPES[args.shape]
    sides = {"plain": ours(shape, args.dtype, [])[:2]}
    sides |= {words: quantised(words, shape, args.dtype) for words in args.recipes}
    rows = interleaved(sides, args.rounds)
    if args.out:
        Path(args.out).write_text(json.dumps({"shape": shape, "dtype": args.dtype, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

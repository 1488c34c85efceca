"""Cost of experts: a training step of a mixture-of-experts model compared with dense models, interleaved.

    python -m benchmarks.moe                          # 8 experts, 2 per token
    python -m benchmarks.moe --experts=32 --chosen=4

Shapes and batches are those of benchmarks.step, with gated feed-forward layers. Each expert is d_ff / CHOSEN wide, so a
token uses as many parameters as in the dense model `active` of width d_ff (the router aside); the dense model `total`
has the parameters of all experts. One process, 4 warm-up steps for each model, then blocks of steps in turns; a row for
each model as in benchmarks.quant_step.
"""

import argparse
import json
from pathlib import Path

from benchmarks.quant_step import interleaved
from benchmarks.step import ROUNDS, SHAPES, ours
from launch.entry import with_huge_pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--chosen", type=int, default=2, help="experts a token")
    parser.add_argument("--shape", choices=SHAPES, default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", default="", help="also write the rows as JSON")
    args = parser.parse_args()
    with_huge_pages()
    shape = SHAPES[args.shape]
    each = shape["ff"] // args.chosen
    routed = {"num_experts": args.experts, "experts_per_token": args.chosen, "balance_loss": 0.01, "d_ff": each}
    sides = {"active": {"d_ff": shape["ff"]}, "experts": routed, "total": {"d_ff": args.experts * each}}
    made = {}
    for name, keys in sides.items():
        changes = {f"model.{key}": value for key, value in (keys | {"ffn": "swiglu"}).items()}
        made[name] = ours(shape, args.dtype, [], changes)[:2]
    rows = interleaved(made, args.rounds)
    if args.out:
        about = {"shape": shape, "dtype": args.dtype, "sides": sides}
        Path(args.out).write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

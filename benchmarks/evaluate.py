"""Speed of multiple-choice scoring compared with transformers, on the same exported model and items, interleaved.

    python -m launch.export --help                                       # how to write FOLDER
    python -m benchmarks.evaluate --folder=FOLDER                        # ours alone
    python -m benchmarks.evaluate --folder=FOLDER --peer_python=PYTHON   # against transformers in another environment

By default both sides score HellaSwag's 10,042 validation items, from text to log-likelihoods, in blocks in turns; the
first block is also scored once before, to compile. The peer scores as lm-evaluation-harness does: requests sorted by
length, batches padded to their longest, full logits. Prints tokens/s of each side, their ratio, and the largest
difference of a log-likelihood. Tokens are those of all inputs without padding.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

BLOCK = 1_000  # items


def peer(folder: str, batch_size: int) -> None:
    """Answers each block on stdin, [[context, choices], ...], with its log-likelihoods and counts of tokens."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    context = model.config.max_position_embeddings
    print("READY " + json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}), flush=True)

    def encode(texts):
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def score(block):
        pairs = [(c, choice) for c, choices in block for choice in choices]
        wholes, heads = encode([c + choice for c, choice in pairs]), encode([c.rstrip() for c, _ in pairs])
        requests = [(w[-(context + 1) :], len(w) - len(h)) for w, h in zip(wholes, heads, strict=True)]
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][0]))
        found = [0.0] * len(requests)
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            longest = len(requests[batch[0]][0]) - 1
            inputs = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, i in enumerate(batch):
                inputs[row, : len(requests[i][0]) - 1] = torch.tensor(requests[i][0][:-1])
            log_probs = torch.log_softmax(model(inputs).logits, dim=-1)
            for row, i in enumerate(batch):
                ids, scored = requests[i]
                targets = torch.tensor(ids[-scored:])
                rows = log_probs[row, len(ids) - 1 - scored : len(ids) - 1]
                found[i] = rows.gather(1, targets[:, None]).double().sum().item()
        return found, sum(len(ids) - 1 for ids, _ in requests)

    for line in sys.stdin:
        block = json.loads(line)
        began = time.perf_counter()
        found, tokens = score(block)
        seconds = time.perf_counter() - began
        print("FOUND " + json.dumps({"seconds": seconds, "tokens": tokens, "found": found}), flush=True)


class Peer:
    """The peer's process."""

    def __init__(self, python: str, folder: str, batch_size: int):
        command = [python, __file__, "--peer", f"--folder={folder}", f"--batch_size={batch_size}"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, **pipes)
        self.about = self._answer("READY ")

    def _answer(self, mark: str) -> dict:
        for line in self.process.stdout:
            if line.startswith(mark):
                return json.loads(line[len(mark) :])
        raise SystemExit(f"the peer stopped with status {self.process.wait()}")

    def __call__(self, block) -> dict:
        self.process.stdin.write(json.dumps([(item.context, item.choices) for item in block]) + "\n")
        self.process.stdin.flush()
        return self._answer("FOUND ")


def ours(folder: str, sequences: int):
    """score(items) -> {"seconds", "found"} of the model in the folder."""
    import jax
    from ml_collections import FrozenConfigDict

    from jaxlab import parallel
    from jaxlab.config import default
    from jaxlab.data.tokenizer import make_tokenizer
    from jaxlab.evaluate.choice import chooser
    from jaxlab.interop.hugging_face import load
    from jaxlab.train.program import decoder

    keys, params = load(folder)
    tokenizer = make_tokenizer(f"hf:{folder}/tokenizer.json", [])
    mesh = parallel.mesh(1, 1, 1)
    model = decoder(FrozenConfigDict(default().model.to_dict() | keys), default().compute, mesh, None)
    choose = chooser(model, mesh, 1, sequences=sequences, chunk=256)
    params = jax.device_put(jax.tree.map(lambda x: x[None], params))

    def score(items):
        began = time.perf_counter()
        records = [record for window in choose(params, items, tokenizer) for record in window]
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "found": [x for record in records for x in record["log_likelihood"]]}

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="a model as transformers opens it, with tokenizer.json")
    parser.add_argument("--peer_python", default="", help="a Python with torch and transformers")
    parser.add_argument("--task", default="hellaswag")
    parser.add_argument("--items", default="archive", help="archive, or a file or folder")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--archives", default="data/archives")
    parser.add_argument("--sequences", type=int, default=16, help="full sequences in one of our batches")
    parser.add_argument("--batch_size", type=int, default=16, help="requests in one of the peer's")
    parser.add_argument("--out", default="", help="also write the result as JSON")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args.folder, args.batch_size)
    from jaxlab.evaluate.tasks import read_items

    items = read_items(args.task, args.items, archives=args.archives, tfds_dir="", limit=args.limit)
    sides = {"ours": ours(args.folder, args.sequences)}
    if args.peer_python:
        sides["transformers"] = Peer(args.peer_python, args.folder, args.batch_size)
    first = {name: score(items[:BLOCK])["seconds"] for name, score in sides.items()}
    found = {name: [] for name in sides}
    for start in range(0, len(items), BLOCK):
        for name, score in sides.items():
            found[name].append(score(items[start : start + BLOCK]))
    report(args, len(items), first, found, getattr(sides.get("transformers"), "about", {}))


def report(args, count: int, first: dict, found: dict, about: dict) -> None:
    import jax

    result = {"task": args.task, "items": count, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    result |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__, **about}
    for name, blocks in found.items():
        result[f"{name}_seconds"] = sum(block["seconds"] for block in blocks)
        result[f"{name}_compile_seconds"] = first[name] - blocks[0]["seconds"]
    if "transformers" in found:
        result["tokens"] = sum(block["tokens"] for block in found["transformers"])
        for name in found:
            result[f"{name}_tokens_per_s"] = result["tokens"] / result[f"{name}_seconds"]
        result["ratio"] = result["transformers_seconds"] / result["ours_seconds"]
        pairs = [(b["found"], t["found"]) for b, t in zip(found["ours"], found["transformers"], strict=True)]
        result["largest_difference"] = max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True))
    for key, value in result.items():
        print(f"{key:28s} {value:,.4g}" if isinstance(value, float) else f"{key:28s} {value}")
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if "--peer" not in sys.argv:
        from launch.entry import with_huge_pages

        with_huge_pages()
    main()

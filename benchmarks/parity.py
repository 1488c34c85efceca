"""Agreement of our models with their exports in transformers: logits of every family, and the scores of
lm-evaluation-harness for every item.

    python -m benchmarks.parity                                                  # logits on random weights
    python -m benchmarks.parity --workdir=runs/llama --evals=FOLDER --save=FILE  # and the scores of a run

FOLDER holds HellaSwag, PIQA and ARC-Easy as jsonl files. Every item is scored by (a) the harness with our model class,
(b) the harness's own class on the exported folder, in float32, (c) jaxlab.evaluate.choice; prompts and choices of (a)
and (b) are those of the harness's task files. Needs pip install -e '.[parity]'.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from jaxlab.data import tokenizer
from jaxlab.data.store import load_tokenizer
from jaxlab.evaluate import choice, tasks
from jaxlab.interop.hugging_face import export
from jaxlab.interop.workdir import newest_params, recorded_config
from jaxlab.model import families
from jaxlab.model.decoder import Decoder
from jaxlab.train.build import build

FAMILIES = ("llama", "internlm2", "qwen3", "qwen3_moe", "gpt2")
TASKS = {"hellaswag": "hellaswag", "piqa": "piqa", "arc_easy": "arc"}  # and the harness's folder of each
PACKAGES = ("jax", "torch", "transformers", "lm-eval", "safetensors", "tokenizers")


def random_model(family: str, **changes) -> tuple[dict, dict]:
    """(keys of `config.model`, parameters): a small model with every parameter random, norms and biases too."""
    shape = {"num_layers": 3, "d_model": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "d_ff": 128}
    kind = {
        "qwen3": {"head_dim": 32},
        "qwen3_moe": {"head_dim": 32, "d_ff": 48, "num_experts": 5, "experts_per_token": 2},
        "gpt2": {"num_kv_heads": 4, "d_ff": 256},
    }.get(family, {})
    model = {"family": family} | families.ARCHITECTURES[family] | shape | kind | {"vocab_size": 300, "context": 64}
    model |= changes
    decoder = Decoder(FrozenConfigDict(model), scan=True)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    draw = np.random.default_rng(0)

    def random(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.1 * draw.standard_normal(leaf.shape)).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(random, shapes["params"])


def logits(model: dict, params, tokens: np.ndarray, dtype=jnp.float32) -> np.ndarray:
    """Ours, float32 [b, L, V]."""
    apply = jax.jit(Decoder(FrozenConfigDict(model), dtype=dtype).apply)
    return np.asarray(apply({"params": params}, jnp.asarray(tokens)))


def logit_difference(family: str, dtype: str) -> dict:
    """The largest difference of logits between ours and transformers' over 2 x 64 random tokens, and its scale."""
    import torch
    from transformers import AutoModelForCausalLM

    model, params = random_model(family)
    tokens = np.random.default_rng(1).integers(0, model["vocab_size"], (2, model["context"]))
    if dtype == "bfloat16":  # the weights that both have
        params = jax.tree.map(lambda x: np.asarray(jnp.asarray(x).astype(dtype).astype(jnp.float32)), params)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        export(folder, params, model, tokenizer.load("bytes", None), dtype)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)(torch.tensor(tokens)).logits.float().numpy()
    ours, exact = logits(model, params, tokens, dtype), logits(model, params, tokens)
    pairs = {"difference": ours - theirs, "ours_from_float32": ours - exact, "theirs_from_float32": theirs - exact}
    return {name: float(np.abs(x).max()) for name, x in pairs.items()} | {"largest_logit": float(np.abs(exact).max())}


def local_task(name: str, evals: Path, folder: Path) -> str:
    """Writes the harness's task with its items read from a file in `evals`; returns the path of its yaml."""
    import lm_eval.tasks
    import yaml

    published = Path(lm_eval.tasks.__file__).parent / TASKS[name] / f"{name}.yaml"
    data = {"validation": str(next(evals.glob(f"{name}_val*.jsonl")))}
    changes = {
        "include": str(published), "task": name, "dataset_path": "json", "dataset_name": None,
        "dataset_kwargs": {"data_files": data}, "training_split": None, "test_split": None,
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(changes))
    return str(path)


def harness(model, files: list[str], limit: int) -> dict[str, list[dict]]:
    """{task: its items in order: {"log_likelihood", "greedy", "acc", "acc_norm"}} by lm-evaluation-harness."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    known = TaskManager(include_defaults=False)  # its index of all tasks takes seconds
    found = simple_evaluate(model=model, tasks=files, limit=limit or None, bootstrap_iters=0, task_manager=known)
    return {
        name: [
            {"log_likelihood": [r[0] for r in s["filtered_resps"]], "greedy": [r[1] for r in s["filtered_resps"]]}
            | {key: s[key] for key in ("acc", "acc_norm")}
            for s in sorted(samples, key=lambda s: s["doc_id"])
        ]
        for name, samples in found["samples"].items()
    }


def own(workdir: str, evals: Path, names: Iterable[str], limit: int) -> dict[str, list[dict]]:
    """The items of the named tasks by jaxlab.evaluate.choice: {"log_likelihood", "acc"}."""
    run = build(recorded_config(workdir))
    model = run.program.model
    params = jax.tree.map(lambda x: x[None], newest_params(run, workdir))
    choose = choice.chooser(model, run.program.mesh, 1, sequences=8, chunk=256)
    scored = {}
    for name in names:
        items = tasks.read_items(name, str(evals), archives="", tfds_dir="", limit=limit)
        found = choose(params, items, load_tokenizer(run.config.data.store))
        scored[name] = [
            {"log_likelihood": r["log_likelihood"], "acc": float(np.argmax(r["log_likelihood"]) == r["gold"])}
            for records in found
            for r in records
        ]
    return scored


def scores(workdir: str, evals: Path, names: Iterable[str], limit: int) -> dict[str, dict[str, list[dict]]]:
    """{"jaxlab", "transformers", "own"}: the items of the named tasks, as `harness` and `own` have them."""
    from lm_eval.models.huggingface import HFLM

    from jaxlab.interop.harness import JaxlabLM

    config = recorded_config(workdir)
    run = build(config)
    with tempfile.TemporaryDirectory() as folder:
        params = newest_params(run, workdir)
        export(folder, params, run.program.model.c, load_tokenizer(config.data.store))
        files = [local_task(name, evals, Path(folder)) for name in names]
        theirs = harness(HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=16), files, limit)
        ours = harness(JaxlabLM(workdir), files, limit)
    return {"jaxlab": ours, "transformers": theirs, "own": own(workdir, evals, names, limit)}


def agreement(found: dict[str, dict[str, list[dict]]]) -> dict[str, dict]:
    """By task: items, mean scores, the largest difference in log-likelihood, and how many items differ in a score."""
    summary = {}
    for name in found["own"]:
        ours, theirs, own = (found[side][name] for side in ("jaxlab", "transformers", "own"))
        assert len(ours) == len(theirs) == len(own)

        def worst(a, b):
            rows = zip(a, b, strict=True)
            return max(float(np.abs(np.subtract(x["log_likelihood"], y["log_likelihood"])).max()) for x, y in rows)

        def differing(key, a, b):
            return sum(x[key] != y[key] for x, y in zip(a, b, strict=True))

        summary[name] = {
            "items": len(ours),
            "acc": float(np.mean([item["acc"] for item in theirs])),
            "acc_norm": float(np.mean([item["acc_norm"] for item in theirs])),
            "log_likelihood_difference": {"transformers": worst(ours, theirs), "own": worst(ours, own)},
            "items_that_differ": {key: differing(key, ours, theirs) for key in ("acc", "acc_norm", "greedy")}
            | {"acc_own": differing("acc", ours, own)},
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", help="a finished run of a family that transformers has")
    parser.add_argument("--evals", type=Path, help="folder of TASK_val*.jsonl files")
    parser.add_argument("--limit", type=int, default=0, help="items of each task; 0: all")
    parser.add_argument("--save", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    result = {
        "command": f"python -m benchmarks.parity --limit={options.limit}",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "versions": {package: version(package) for package in PACKAGES},
        "logits": {f"{f}, {d}": logit_difference(f, d) for f in FAMILIES for d in ("float32", "bfloat16")},
    }
    if options.workdir:
        result["model"] = recorded_config(options.workdir).model.to_dict()
        result["scores"] = agreement(scores(options.workdir, options.evals, TASKS, options.limit))
    text = json.dumps(result, indent=1)
    print(text)
    if options.save:
        options.save.write_text(text + "\n")


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # nothing here is downloaded
    main()

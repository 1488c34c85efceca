"""The evaluation of a run as a process and in training: what it writes, how it goes on, what it refuses."""

import json
import shutil
import sys

import numpy as np
import pytest
from rich.console import Console

from jaxlab.config import InputError
from jaxlab.data.prepare import prepare
from jaxlab.train import loop
from jaxlab.train.build import build
from jaxlab.train.checkpoint import load
from jaxlab.train.loop import check_run
from tests import tiny

TASKS = {"tasks": "piqa", "tasks_every_tokens": 2_048, "task_items": 8}


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """30 items in PIQA's format."""
    rows = [{"goal": f"w{i} w7", "sol1": "w1 " * (i % 5 + 1), "sol2": f"w2 w{i}", "label": i % 2} for i in range(30)]
    path = tmp_path_factory.mktemp("items") / "piqa_validation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def trained(data, items, tmp_path_factory):
    """(config file, workdir) of a short run that scores a task as it trains."""
    folder = tmp_path_factory.mktemp("trained")
    changes = {f"evaluate__{name}": value for name, value in TASKS.items()} | {
        "evaluate__items_from": str(items), "tokens": 4_096, "compute__layers": "scan", "evaluate__every_tokens": 0,
        "checkpoint__every_tokens": 0,
    }  # fmt: skip
    with Console(file=(folder / "out.txt").open("w"), width=100) as console:
        loop.train(build(tiny.config(data, **changes)), folder / "run", console)
    return tiny.config_file(folder / "config.py", data, **changes), folder / "run"


def evaluate(trained, *flags, **options):
    file, workdir = trained
    return tiny.launch("evaluate", f"--config={file}", f"--workdir={workdir}", *flags, **options)


def records(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_in_training_at_the_chosen_tokens(trained):
    scores = [row for row in tiny.rows(trained[1]) if row["kind"] == "tasks"]
    assert [row["tokens"] for row in scores] == [2_048, 4_096]
    assert all(row["piqa/items"] == 8 and row["piqa/chance"] == 0.5 for row in scores)
    assert "piqa" in (trained[1].parent / "out.txt").read_text()


def test_scores_an_item_a_line_goes_on_and_does_not_depend_on_the_devices(trained, items, data, request):
    """Cut off in the middle of a line, and continued on two devices: the same numbers within rounding."""
    flags = "--tasks=piqa", f"--items={items}", f"--stores={data['data.store']}"
    cache = request.config.cache.mkdir("jax")
    first = evaluate(trained, *flags, cache=cache)
    assert first.returncode == 0, first.stderr
    path = trained[1] / "evaluation" / "piqa.jsonl"
    whole, text = records(path), path.read_text()
    assert [row["id"] for row in whole] == [str(i) for i in range(30)]
    results = json.loads((path.parent / "results.json").read_text())["4096"]
    best = [int(np.argmax(np.divide(r["log_likelihood"], r["bytes"]))) == r["gold"] for r in whole]
    assert results["tasks"]["piqa"]["per_byte"] == np.mean(best)
    loss = json.loads((trained[1] / "result.json").read_text())["loss"]
    store = results["stores"][data["data.store"]]
    assert store["loss"] == pytest.approx(loss, rel=1e-6)
    assert store["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)

    path.write_text(text[: len(text) // 2])  # as a kill might leave it
    kept = records_of_whole_lines(path)
    second = evaluate(trained, *flags, cache=cache, devices=2)
    assert second.returncode == 0, second.stderr
    again = records(path)
    assert again[: len(kept)] == kept
    assert [row["key"] for row in again] == [row["key"] for row in whole]
    for a, b in zip(again, whole, strict=True):
        np.testing.assert_allclose(a["log_likelihood"], b["log_likelihood"], rtol=1e-5)


def records_of_whole_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_one_line_for_bad_input(trained):
    result = evaluate(trained, "--tasks=piqa:3")
    assert result.returncode == 2
    assert result.stderr.splitlines() == ["error: tasks=piqa:3: only mmlu and cmmlu take shots, 0 to 5, as in mmlu:5"]


@pytest.fixture(scope="module")
def launcher():
    """The launcher as a module; its flags are defined once in a process."""
    import launch.evaluate

    return sys.modules[launch.evaluate.__name__]


def test_refuses_another_run_and_other_tokenizers(launcher, trained, data, tmp_path):
    run = build(tiny.config(data, tokens=4_096))
    with pytest.raises(InputError, match="absent: holds no run"):
        check_run(run, tmp_path / "absent")
    with pytest.raises(InputError, match=r"holds a run that differs in .*model.d_ff: 64 -> 32"):
        check_run(build(tiny.config(data, model__d_ff=32)), trained[1])
    (tmp_path / "a.txt").write_text("the cat sat on the mat and the dog ran " * 50)
    (tmp_path / "b.txt").write_text("the man and the cat ran to the dog on the mat " * 50)
    prepare(f"files:{tmp_path}/*.txt", "bpe:280", tmp_path / "bpe", validation_fraction=0.5, archives="")
    with pytest.raises(InputError, match=r"was made with tokenizer bpe:280, sha256 .* the checkpoint with bytes"):
        launcher.open_stores(run, [str(tmp_path / "bpe")])


def test_refuses_missing_and_damaged_checkpoints_and_touches_nothing(trained, data, tmp_path):
    run = build(tiny.config(data, tokens=4_096))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        load(tmp_path, run.program.abstract_state())
    shutil.copytree(trained[1] / "checkpoints", tmp_path / "run" / "checkpoints")
    _, clock = load(tmp_path / "run", run.program.abstract_state())
    assert clock.tokens == 4_096
    for file in (tmp_path / "run" / "checkpoints" / "4096" / "state").rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(b"\0" * file.stat().st_size)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="checkpoint 4096 is damaged"):
        load(tmp_path / "run", run.program.abstract_state())
    assert sorted(tmp_path.rglob("*")) == before

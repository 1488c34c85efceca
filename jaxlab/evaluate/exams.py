"""MMLU (Hendrycks et al. 2021) and CMMLU (Li et al. 2023): exam questions by subject, from csv files and TFDS."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from jaxlab.config import InputError
from jaxlab.files import reading

LETTERS = ("A", "B", "C", "D")
FILES = {"mmlu": "{split}/*_{split}.csv", "cmmlu": "{split}/*.csv"}  # one file for each subject
SPLITS = ("dev", "test")
ENGLISH_ANSWER, CHINESE_ANSWER = "Answer:", "答案："  # noqa: RUF001


def english_header(subject: str) -> str:
    """The first line of a prompt of MMLU."""
    about = subject.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {about}.\n\n"


def chinese_header(subject: str) -> str:
    """The first line of a prompt of CMMLU. Raises ValueError for a subject that it does not have."""
    if subject not in CHINESE:
        raise ValueError(f"subject is {subject!r:.60}; must be one of CMMLU's {len(CHINESE)}, such as anatomy")
    return f"以下是关于{CHINESE[subject]}的单项选择题，请直接给出正确答案的选项。\n\n"  # noqa: RUF001


def rows(path: Path) -> Iterator[tuple[str, dict]]:
    """(place, {"question", "choices", "answer", "subject"}) of one subject's csv file. MMLU's files have no header
    line; CMMLU's have one, and a first column of numbers. Raises InputError for a row with other columns."""
    lines = list(_lines(path))
    named = bool(lines) and lines[0][1][1:2] == ["Question"]
    subject = path.stem if named else path.stem.removesuffix(f"_{path.parent.name}")
    for where, line in lines[named:]:
        if len(line) != 6 + named:
            raise InputError(f"{where}: has {len(line)} columns; must have {6 + named}, as in {_COLUMNS[named]}")
        _, question, *choices, answer = line if named else ["", *line]
        yield where, {"question": question, "choices": choices, "answer": answer, "subject": subject}


_COLUMNS = ("question,A,B,C,D,answer", "number,question,A,B,C,D,answer")


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(place, columns) of every row of a csv file, empty rows left out."""
    with reading(path):
        reader = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
    line = []
    while line is not None:
        where = f"{path}:{reader.line_num + 1}"
        with reading(where):
            line = next(reader, None)
        if line:
            yield where, line


def prepare(name: str, folder: str | Path, data_dir: str | Path) -> None:
    """Prepares "mmlu" or "cmmlu" as the TFDS data set `name` in data_dir, from a folder with the original csv files.

    The splits are dev and test, in array_record; TensorFlow is not needed. Raises InputError if files are missing.
    """
    import tensorflow_datasets as tfds  # most of a second

    paths = {split: sorted(Path(folder).glob(FILES[name].format(split=split))) for split in SPLITS}
    if not all(paths.values()):
        raise InputError(f"{folder}: must hold {' and '.join(FILES[name].format(split=s) for s in SPLITS)} of {name}")

    class Exams(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None  # nothing is downloaded; without this TFDS looks for checksums and fails

        def _info(self):
            features = {
                "question": tfds.features.Text(),
                "choices": tfds.features.Sequence(tfds.features.Text()),
                "answer": tfds.features.ClassLabel(names=LETTERS),
                "subject": tfds.features.Text(),
            }
            features = tfds.features.FeaturesDict(features)
            # Keeps the order of the files: the first rows of dev are the few-shot examples.
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(files) for split, files in paths.items()}

        def _generate_examples(self, files):
            for file in files:
                for number, (_, row) in enumerate(rows(file)):
                    yield f"{file.stem}/{number:05d}", row

    Exams.name = name
    Exams(data_dir=data_dir, file_format="array_record").download_and_prepare()


CHINESE = {  # {file of CMMLU: its subject as the prompt names it}
    "agronomy": "农学",
    "anatomy": "解剖学",
    "ancient_chinese": "古汉语",
    "arts": "艺术学",
    "astronomy": "天文学",
    "business_ethics": "商业伦理",
    "chinese_civil_service_exam": "中国公务员考试",
    "chinese_driving_rule": "中国驾驶规则",
    "chinese_food_culture": "中国饮食文化",
    "chinese_foreign_policy": "中国外交政策",
    "chinese_history": "中国历史",
    "chinese_literature": "中国文学",
    "chinese_teacher_qualification": "中国教师资格",
    "clinical_knowledge": "临床知识",
    "college_actuarial_science": "大学精算学",
    "college_education": "大学教育学",
    "college_engineering_hydrology": "大学工程水文学",
    "college_law": "大学法律",
    "college_mathematics": "大学数学",
    "college_medical_statistics": "大学医学统计",
    "college_medicine": "大学医学",
    "computer_science": "计算机科学",
    "computer_security": "计算机安全",
    "conceptual_physics": "概念物理学",
    "construction_project_management": "建设工程管理",
    "economics": "经济学",
    "education": "教育学",
    "electrical_engineering": "电气工程",
    "elementary_chinese": "小学语文",
    "elementary_commonsense": "小学常识",
    "elementary_information_and_technology": "小学信息技术",
    "elementary_mathematics": "初等数学",
    "ethnology": "民族学",
    "food_science": "食品科学",
    "genetics": "遗传学",
    "global_facts": "全球事实",
    "high_school_biology": "高中生物",
    "high_school_chemistry": "高中化学",
    "high_school_geography": "高中地理",
    "high_school_mathematics": "高中数学",
    "high_school_physics": "高中物理学",
    "high_school_politics": "高中政治",
    "human_sexuality": "人类性行为",
    "international_law": "国际法学",
    "journalism": "新闻学",
    "jurisprudence": "法理学",
    "legal_and_moral_basis": "法律与道德基础",
    "logical": "逻辑学",
    "machine_learning": "机器学习",
    "management": "管理学",
    "marketing": "市场营销",
    "marxist_theory": "马克思主义理论",
    "modern_chinese": "现代汉语",
    "nutrition": "营养学",
    "philosophy": "哲学",
    "professional_accounting": "专业会计",
    "professional_law": "专业法学",
    "professional_medicine": "专业医学",
    "professional_psychology": "专业心理学",
    "public_relations": "公共关系",
    "security_study": "安全研究",
    "sociology": "社会学",
    "sports_science": "体育学",
    "traditional_chinese_medicine": "中医中药",
    "virology": "病毒学",
    "world_history": "世界历史",
    "world_religions": "世界宗教",
}

"""Every resolved config as text, so that a refactor shows what it changed.

After a change that is meant: python tests/configs/test_golden.py, and read the difference before committing it.
"""

import inspect
import runpy
from pathlib import Path

import pytest

from jaxlab.config import check, flatten

HERE = Path(__file__).parent
FILES = sorted((HERE.parents[1] / "configs").glob("*.py"))


def resolved() -> dict[str, str]:
    """{name of a golden file: its text}. A file whose get_config takes an argument lists its values in MODES."""
    texts = {}
    for path in FILES:
        module = runpy.run_path(str(path))
        get_config = module["get_config"]
        modes = module["MODES"] if inspect.signature(get_config).parameters else (None,)
        for mode in modes:
            config = get_config() if mode is None else get_config(mode)
            check(config)
            name = path.stem if mode is None else f"{path.stem}-{mode.replace('/', '-')}"
            texts[f"{name}.txt"] = "".join(f"{key} = {value!r}\n" for key, value in flatten(config).items())
    return texts


RESOLVED = resolved()


@pytest.mark.parametrize("name", RESOLVED)
def test_config_is_as_recorded(name):
    assert (HERE / "golden" / name).read_text() == RESOLVED[name]


def test_no_record_is_left_over():
    assert {path.name for path in (HERE / "golden").iterdir()} == set(RESOLVED)


def test_modes_are_all_listed():
    """A config without modes must not read one, and every file is a config."""
    assert FILES
    for path in FILES:
        assert callable(runpy.run_path(str(path)).get("get_config")), path


if __name__ == "__main__":
    for old in (HERE / "golden").glob("*.txt"):
        old.unlink()
    (HERE / "golden").mkdir(exist_ok=True)
    for name, text in RESOLVED.items():
        (HERE / "golden" / name).write_text(text)

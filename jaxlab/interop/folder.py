"""Writes a folder completely or not at all."""

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from jaxlab.config import InputError
from jaxlab.files import writing


def check_replaceable(folder: Path, files: Collection[str]) -> None:
    """Raises InputError unless `folder` is absent, empty, or holds exactly `files`."""
    names = _names(folder)
    if names and names != {*files}:
        raise InputError(
            f"{folder}: holds {_listed(names)}; must be absent, empty, or an earlier one of the same files"
        )


def replace_folder(folder: Path, write: Callable[[Path], None], files: Collection[str]) -> None:
    """Calls write(temporary folder) and renames the result to `folder`, if `check_replaceable` allows it.

    A reader finds the complete old folder or the complete new one or, for an instant between two renames, neither. If
    write raises, the old folder stays. The temporary folders are .FOLDER.part and .FOLDER.old beside it; raises
    InputError if one of them holds other files.
    """
    check_replaceable(folder, files)
    folder = folder.resolve()
    part, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "old"))
    for beside in (part, old):  # left by a killed process, or somebody else's
        if others := _names(beside) - {*files}:
            raise InputError(
                f"{beside}: holds {_listed(others)}; it is in the way of {folder.name}, which needs the name"
            )
    shutil.rmtree(part, ignore_errors=True)
    try:
        with writing(folder):
            part.mkdir(parents=True)
            write(part)
            for path in part.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5])

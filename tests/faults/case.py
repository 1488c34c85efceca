"""What a case is, and what speaks against how it ended."""

import fnmatch
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults.runner import Ended, Job
from tests.faults.template import Template

WRITES = {  # what launchers are documented to write where they do not refuse
    "train": ("half/*", "run/*", "new/*"),
    "evaluate": ("*/evaluation/*",),
    "branch": ("*/branches/*",),
    "inspect": ("*/spectra-*.png",),
    "export": ("hf/*",),
    "prepare": ("store/*", "new/*"),
    "study": ("runs/*", "results/*", "docs/REPRODUCE.md"),
}
TOTALS = (
    "traceback",
    "time-out",
    "accepted wrongly",
    "refused wrongly",
    "bytes lost",
    "lines",
    "words",
    "status",
    "result",
)


class Skipped(Exception):
    """The case cannot be tried here; the message says why."""


class Case(NamedTuple):
    """A launcher with flags, in a folder with copies of parts of the template that `make` has changed.

    expect: refused (exit 2, one line on stderr), failed (exit 1 or 2, one line), fine (exit 0), either (refused or
        fine).
    words: what that line, or the output where it is fine, must hold; alternatives stand between bars.
    check: what is wrong with what the launcher left in the folder, empty: nothing; where `either`, if it is fine.
    stop: text at which the launcher is told to stop.
    writes: patterns of files that may change besides WRITES.
    """

    name: str
    launcher: str
    flags: tuple[str, ...]
    expect: str
    words: tuple[str, ...]
    parts: str = "config store"
    make: Callable[[Path], None] | None = None
    check: Callable[[Path, Template], str] | None = None
    stop: str = ""
    writes: tuple[str, ...] = ()


def prepare(case: Case, template: Template, folder: Path) -> tuple[Job, dict[str, str]]:
    """Sets a case up in a new folder: the job, and the hashes of the files there. Raises Skipped."""
    template.copy(case.parts, folder)
    if case.make:
        case.make(folder)
    return Job(folder, case.launcher, case.flags, stop=case.stop), hashes(folder)


def hashes(folder: Path) -> dict[str, str]:
    """{path in the folder: hash of the content}."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def judge(case: Case, ended: Ended, folder: Path, before: dict[str, str], template: Template) -> list[tuple[str, str]]:
    """(one of TOTALS, what was seen) for everything that is not as expected."""
    found, text = [], ended.out + ended.err
    lines = [line for line in ended.err.splitlines() if line.strip()]
    if "Traceback (most recent call last)" in text or "Fatal Python error" in text or (ended.status or 0) < 0:
        found.append(("traceback", last_line(text) or f"signal {ended.status}"))
    if ended.status is None:
        found.append(("time-out", f"{ended.seconds:.0f} s"))
    lost = lost_bytes(case, before, hashes(folder))
    if lost:
        found.append(("bytes lost", ", ".join(lost[:3])))
    if case.expect == "refused" and case.check and (complaint := case.check(folder, template)):
        found.append(("result", complaint))
    if found:
        return found
    expect = case.expect
    if expect == "either":
        expect = "fine" if ended.status == 0 else "refused"
    wanted = {"fine": 0, "failed": 1, "refused": 2}[expect]
    if ended.status == 0 and wanted:
        return [("accepted wrongly", last_line(ended.out))]
    if ended.status and not wanted:
        return [("refused wrongly", last_line(ended.err))]
    if ended.status != wanted and not (expect == "failed" and ended.status == 2):
        found.append(("status", f"{ended.status}, not {wanted}"))
    if wanted and len(lines) != 1:
        found.append(("lines", f"{len(lines)}"))
    within = ended.err if wanted else text
    for word in case.words if case.expect != "either" or wanted else ():
        if not any(part.lower() in within.lower() for part in word.split("|")):
            found.append(("words", f"no {word!r}"))
    if not wanted and case.check and (complaint := case.check(folder, template)):
        found.append(("result", complaint))
    return found


def lost_bytes(case: Case, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Files that are gone or changed, their content nowhere else in the folder either, that nobody may write."""
    allowed = case.writes + (WRITES.get(case.launcher, ()) if case.expect in ("fine", "either") else ())
    there = set(after.values())
    return [
        name for name, content in before.items()
        if after.get(name) != content and content not in there
        and not any(fnmatch.fnmatch(name, pattern) for pattern in allowed)
    ]  # fmt: skip


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def disk(folder: Path, size: str) -> None:
    """A disk of its own at folder/disk."""
    (folder / "disk").mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder / "disk"], capture_output=True, text=True
    )
    if done.returncode:
        raise Skipped(f"no disk can be mounted ({done.stderr.strip()})")


def unmount(folder: Path) -> None:
    if (folder / "disk").is_mount():
        subprocess.run(["umount", "-l", folder / "disk"], check=True)

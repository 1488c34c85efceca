"""Plants small faults, one at a time, and looks whether the tests beside the module notice:
python -m tests.mutants --packages=laws,data --each=12 --table=mutants.csv

A fault is a wrong sign, operator, comparison, constant, condition, order or an argument left out, at a random place of
a random function; error messages and annotations are left alone. Each is tried on a copy of the project, and counts as
killed if a test of tests/PACKAGE fails or does not end. The table is written as it goes; faults in it are not tried
again.
"""

import argparse
import ast
import csv
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = ("laws", "evaluate", "data", "optim", "quant", "spectral", "model", "interop", "cost", "train")
# Tests of whole processes and devices, which are about something else and take long.
APART = ("test_devices.py", "test_tpu.py", "test_coverage.py", "test_parity.py")
LIMIT = 600  # seconds: a test that goes on longer hangs
COLUMNS = ("place", "before", "after", "verdict", "by", "seconds")

SWAPPED = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "//", ast.Pow: "*",
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in",
    ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is", ast.And: "or", ast.Or: "and",
    ast.BitAnd: "|", ast.BitOr: "&", ast.LShift: ">>", ast.RShift: "<<",
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "argmin": "argmax", "argmax": "argmin",
    "floor": "ceil", "ceil": "floor", "any": "all", "all": "any", "mean": "sum", "log": "log2", "log2": "log",
    "exp": "expm1", "var": "std", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like",
    "ones_like": "zeros_like",
}  # fmt: skip


class Fault(NamedTuple):
    """A piece of a file, as byte offsets, and what stands there instead."""

    path: str
    line: int
    start: int
    end: int
    before: str
    after: str

    @property
    def place(self) -> str:
        return f"{self.path}:{self.line}"


def faults(path: Path) -> Iterator[Fault]:
    """All that can be planted in a file."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    name = path.relative_to(ROOT).as_posix()

    def span(node):
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def text(node):
        start, end = span(node)
        return source[start:end].decode()

    for node in _computing(ast.parse(source)):
        for after in _changes(node, text):
            start, end = span(node)
            yield Fault(name, node.lineno, start, end, text(node), after)


def _computing(tree: ast.AST) -> Iterator[ast.AST]:
    """The expressions within functions, but for annotations, texts, errors and decorators."""

    def walk(node, inside):
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
            return
        if inside and isinstance(node, ast.expr):
            yield node
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_comment", "handlers"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    function = isinstance(node, ast.FunctionDef | ast.Lambda) and field == "body"
                    yield from walk(child, inside or function)

    yield from walk(tree, False)


def _changes(node: ast.AST, text) -> Iterator[str]:
    """What may stand in place of an expression."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        yield f"(({text(node.left)}) {SWAPPED[type(node.op)]} ({text(node.right)}))"
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPPED:
        yield f"(({text(node.left)}) {SWAPPED[type(node.ops[0])]} ({text(node.comparators[0])}))"
    elif isinstance(node, ast.BoolOp):
        yield "(" + f" {SWAPPED[type(node.op)]} ".join(f"({text(v)})" for v in node.values) + ")"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield f"({text(node.operand)})"
    elif isinstance(node, ast.IfExp):
        yield f"(({text(node.orelse)}) if ({text(node.test)}) else ({text(node.body)}))"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"({text(node)} + 1)" if isinstance(node.value, int) else f"({text(node)} * 2)"
    elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
        last = node.attr if isinstance(node, ast.Attribute) else node.id
        if last in NAMES:
            yield f"{text(node)[: -len(last)]}{NAMES[last]}"
    elif isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg:
                others = [text(a) for a in node.args]
                others += [f"{k.arg}={text(k.value)}" if k.arg else f"**{text(k.value)}"
                           for k in node.keywords if k is not keyword]  # fmt: skip
                yield f"{text(node.func)}({', '.join(others)})"


def drawn(package: str, each: int, seed: int) -> list[Fault]:
    """`each` faults of a package, no two on one line."""
    every = [fault for path in sorted((ROOT / "jaxlab" / package).rglob("*.py")) for fault in faults(path)]
    random.Random(f"{seed} {package}").shuffle(every)
    return list({fault.place: fault for fault in reversed(every)}.values())[::-1][:each]


def verdict(path: str, source: bytes, copy: Path) -> tuple[str, str]:
    """(killed, the test that failed) or (survived, "") for this source of a module."""
    _, package, *_, file = Path(path).parts
    own, module = f"test_{Path(file).stem}.py", path.removesuffix(".py").replace("/", ".")
    beside = [p for p in (copy / "tests" / package).glob("test_*.py") if p.name not in APART]
    beside.sort(key=lambda p: (p.name != own, module not in p.read_text(), p.stat().st_size))  # the likeliest first
    tests = [path.relative_to(copy).as_posix() for path in beside]
    whole = (copy / path).read_bytes()
    (copy / path).write_bytes(source)
    command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-o", f"cache_dir={copy.parent}/cache", *tests]
    try:
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return "killed", "does not end"
    finally:
        (copy / path).write_bytes(whole)
    if done.returncode == 0:
        return "survived", ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "killed", failed[0].split(" - ")[0].split(" ", 1)[1] if failed else f"pytest exits {done.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--packages", default=",".join(PACKAGES))
    parser.add_argument("--each", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=Path("mutants.csv"))
    options = parser.parse_args()
    rows = []
    if options.table.exists():
        with options.table.open(newline="") as file:
            rows = list(csv.DictReader(file))
    tried = {(row["place"], row["after"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, tracked.split("\0")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        shared = ROOT.parent / "shared"  # real data, which some tests skip without
        if shared.exists():
            (Path(folder) / "shared").symlink_to(shared)
        for package in options.packages.split(","):
            wanted = [f for f in drawn(package, options.each, options.seed) if (f.place, f.after) not in tried]
            if wanted:
                what, by = verdict(wanted[0].path, (copy / wanted[0].path).read_bytes(), copy)
                if what == "killed":
                    sys.exit(f"{by} fails without a fault: nothing can be said of {package}")
            for fault in wanted:
                began, source = time.monotonic(), (copy / fault.path).read_bytes()
                what, by = verdict(fault.path, source[: fault.start] + fault.after.encode() + source[fault.end :], copy)
                values = fault.place, fault.before, fault.after, what, by, round(time.monotonic() - began)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
                with options.table.open("w", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
                print(f"{what:8s} {fault.place}: {fault.before} -> {fault.after}  {by}", flush=True)
    count = Counter((Path(row["place"]).parts[1], row["verdict"]) for row in rows)
    for package in dict.fromkeys(name for name, _ in count):
        killed, survived = count[package, "killed"], count[package, "survived"]
        print(f"{package:10s} {killed:4d} of {killed + survived} killed")


if __name__ == "__main__":
    main()

"""Bad inputs over all launchers, each a launcher's whole life, and what speaks against how it ended:

python -m tests.faults [--only=SUBSTRING] [--jobs=2] [--keep] [--short]
python -m tests.faults --damages=60 [--seed=0]

A line a case; exit status 1 unless all totals are 0. --damages: random single-byte changes of workdirs, stores and
studies, after which the same command must end as it does undisturbed, or in one line that names the file.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "PYTHONPATH": str(ROOT), "COLUMNS": "400",
    "OPENBLAS_NUM_THREADS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "NO_COLOR": "1",
}  # fmt: skip


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this, or one of these, by commas")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of --damages, and of the order of the cases unless 0")
    parser.add_argument("--keep", action="store_true", help="the folders of cases that are not as expected")
    parser.add_argument("--short", action="store_true", help="the few cases of the test suite")
    parser.add_argument("--damages", type=int, default=0, metavar="N")
    parser.add_argument("--patience", type=float, default=60, help="seconds, after which a launcher hangs")
    parser.add_argument("--cache", default="", help="folder of compiled programs, kept between calls")
    return parser.parse_args()


def main() -> int:
    options, folder = arguments(), Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        os.environ.update(ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": options.cache or str(folder / "compiled")})
        # From here on JAX and its friends are imported, which read the environment once.
        from tests import quick
        from tests.faults import cases, damage, preload  # noqa: F401
        from tests.faults.template import Template

        os.environ["XLA_FLAGS"] = quick.FLAGS
        sys.dont_write_bytecode = True
        template = Template(folder / "template")
        if options.damages:
            return damage.main(template, folder, options)
        wanted = [c for c in cases.CASES if any(part in c.name for part in options.only.split(","))]
        wanted = [c for c in wanted if c.name in cases.SHORT or not options.short]
        if options.seed:
            random.Random(options.seed).shuffle(wanted)
        return run(wanted, template, folder, options)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def run(wanted: list, template, folder: Path, options) -> int:
    """Runs cases and prints the table; exit status."""
    from tests.faults.case import TOTALS, Skipped, judge, last_line, prepare, unmount
    from tests.faults.runner import run_all

    totals, skipped, began, cpu = dict.fromkeys(TOTALS, 0), [], time.monotonic(), 0.0
    for part in sorted({part for case in wanted for part in case.parts.split()}):
        template.want(part)  # before the first case: a template that fails is no case's fault

    def jobs():
        for number, case in enumerate(wanted):
            place = folder / f"{number:03d}"
            try:
                job, before = prepare(case, template, place)
            except Skipped as reason:
                skipped.append(f"{case.name}: {reason}")
                continue
            yield (case, place, before), job

    print(f"{'case':60s} {'exit':>4s} {'seconds':>7s}  verdict: line")
    for (case, place, before), ended in run_all(jobs(), options.patience, options.jobs):
        problems = judge(case, ended, place, before, template)
        unmount(place)
        for kind, _ in problems:
            totals[kind] += 1
        cpu += ended.cpu
        line = last_line(ended.err if ended.err.strip() else ended.out).removeprefix("error: ")
        verdict = "; ".join(f"{kind.upper()} {what}" for kind, what in problems) or "ok"
        status = "-" if ended.status is None else ended.status
        print(f"{case.name[:60]:60s} {status:>4} {ended.seconds:7.1f}  {verdict}: {line}"[:400], flush=True)
        if not (options.keep and problems):
            shutil.rmtree(place, ignore_errors=True)
    for line in skipped:
        print(f"skipped: {line}")
    print(f"\n{len(wanted) - len(skipped)} cases, {time.monotonic() - began:.0f} s, {cpu:.0f} CPU seconds in launchers")
    print(", ".join(f"{kind}: {count}" for kind, count in totals.items()))
    if options.keep:
        print(f"kept in {folder}")
    return int(any(totals.values()))


if __name__ == "__main__":
    sys.exit(main())

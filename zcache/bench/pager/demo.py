"""`scripts/run --pager`: a NumPy array of three times its limit is filled, sorted and grouped, in a
region (`zcache run`), as plain memory without a limit, and in a file (numpy.memmap).

What each took and did is printed, and plotted over time: memory of all its processes (the kernel's
proportional share: what is in a file counts, too), and how far it was. The results are compared.
No VM, and no root.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console

from zcache.bench.pager.demo_job import KINDS
from zcache.bench.report import Figure, Report
from zcache.bench.served import REPOSITORY
from zcache.errors import EnvironmentProblem
from zcache.linux.process import family, share_bytes

#: Of the array; the limit is a third.
ARRAY_BYTES: Final = 384 << 20
SAMPLE_SECONDS: Final = 0.1


class Course(NamedTuple):
    """Of one job, over seconds: memory in MiB, MiB that were done; and what it printed last."""

    seconds: list[float]
    memory: list[float]
    steps: list[tuple[float, float]]
    result: dict[str, Any]


def main() -> int:
    """Prints a table; exit status 0 only if all results are the same."""
    report = Report(Path(tempfile.mkdtemp(prefix="zcache-run-pager-")), Console(width=150))
    courses = {}
    for kind in KINDS:
        report.console.print(f"{kind}: an array of {ARRAY_BYTES >> 20} MiB is filled, sorted and grouped")
        with tempfile.TemporaryDirectory(prefix="zcache-demo-") as place:
            courses[kind] = follow(command_of(kind, Path(place)))
    if len({course.result["digest"] for course in courses.values()}) > 1:
        raise EnvironmentProblem("the results differ")
    rows = [_row(kind, course) for kind, course in courses.items()]
    title = f"an array of {ARRAY_BYTES >> 20} MiB; in the region at most a third of it uncompressed"
    report.table("demo", title, rows)
    report.lines(
        "demo",
        {
            "memory of all processes, MiB": {kind: (each.seconds, each.memory) for kind, each in courses.items()},
            "MiB filled, sorted and grouped": {
                kind: ([at for at, _ in each.steps], [mib for _, mib in each.steps]) for kind, each in courses.items()
            },
        },
        [],
    )
    report.save()
    report.console.print(verdict(courses))
    report.console.print(f"all results are the same; demo.png, report.json: {report.folder}")
    return 0


def verdict(courses: dict[str, Course]) -> str:
    """What it comes to."""
    region, plain = courses["region"], courses["memory"]
    times = region.result["seconds"] / plain.result["seconds"]
    saved_mib = max(plain.memory) - max(region.memory)
    return (
        f"The region saves {saved_mib:.0f} MiB and takes {times:.1f} times as long: for what would not run at all. "
        "(Its memory is the limit, the rest compressed, and three Pythons. Of memmap's the kernel can drop what is "
        "written to the file.)"
    )


def command_of(kind: str, place: Path, array_bytes: int = ARRAY_BYTES) -> list[str]:
    """What to run; files go to that folder."""
    job = [sys.executable, "-m", "zcache.bench.pager.demo_job", kind, str(array_bytes), str(place)]
    if kind != "region":
        return job
    return [sys.executable, "-m", "zcache.run.run", "--limit", f"{array_bytes // 3 >> 20}M", "codec=zstd", "--", *job]


def follow(command: list[str]) -> Course:
    """Run it, and look at it. Raises `EnvironmentProblem` if it fails."""
    seconds: list[float] = []
    memory: list[float] = []
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile("w+") as output:
        begin = time.time()
        process = subprocess.Popen(command, stdout=output, stderr=errors, cwd=REPOSITORY)
        while process.poll() is None:
            seconds.append(time.time() - begin)
            memory.append(sum(map(share_bytes, family(process.pid))) / (1 << 20))
            time.sleep(SAMPLE_SECONDS)
        errors.seek(0)
        output.seek(0)
        lines = output.read().splitlines()
        if process.returncode or not lines:
            raise EnvironmentProblem(f"{command[2]}: {errors.read().strip() or process.returncode}")
    *steps, result = map(json.loads, lines)
    return Course(seconds, memory, [(0.0, 0.0), *((at - begin, done / (1 << 20)) for at, done in steps)], result)


def _row(kind: str, course: Course) -> dict[str, Figure]:
    return {
        "array in": kind,
        "seconds": course.result["seconds"],
        "of them filling": course.result["fill"],
        "sorting": course.result["sort"],
        "grouping": course.result["group"],
        "memory at most, MiB": max(course.memory),
    }

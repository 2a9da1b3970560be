"""`scripts/bench pager`: memory that is larger than what a job may take, by a region of the pager.

Three tables: patterns of touches, beside a file that is mapped (numpy.memmap) and, without a limit,
plain memory; from a touch to the page, by where it was; jobs of NumPy and pandas under `zcache
run`. Whatever is compared takes turns, round by round; a figure is the median of its rounds.

In the first, each job runs in a control group of its own, with the same limit: a region's holds
client, pager and store, and its resident limit is what is left beside those. The pages compress to
a third. Root only, for the group.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console

from zcache.bench.groups import group
from zcache.bench.pager.arrays import JOBS
from zcache.bench.pager.resident import KINDS as PLACES
from zcache.bench.pager.touches import PATTERNS
from zcache.bench.report import Figure, Report
from zcache.bench.served import REPOSITORY
from zcache.errors import EnvironmentProblem
from zcache.testvm.arguments import whole_number

TABLES: Final = ("patterns", "resident", "jobs")
KINDS: Final = ("region", "memmap", "memory")
#: Of the limit: the size of the memory.
TIMES: Final = (2, 5)
#: What client and pager take for themselves; and for each page of the memory, as a share of it.
PROGRAMS_MIB: Final = 80
TABLES_SHARE: Final = 1 / 128
#: Of a page, in frames, with what is dead in them.
COMPRESSED_SHARE: Final = 0.42
THREADS: Final = (1, 2, 4)
#: What a job's arrays may take when they are measured.
ENOUGH: Final = "8G"


class Cell(NamedTuple):
    """A job of the first table."""

    times: int
    kind: str


def main(words: Sequence[str]) -> int:
    """Prints the tables; exit status 0."""
    parser = argparse.ArgumentParser(prog="scripts/bench pager", description=__doc__)
    add = parser.add_argument
    add("tables", nargs="*", choices=[*TABLES, []], help=f"some of {', '.join(TABLES)} (default: all)")
    add("--limit", type=whole_number(192), default=512, metavar="MIB", help="of a job's group (%(default)s)")
    add("--seconds", type=whole_number(), default=10, help="in each pattern (%(default)s)")
    add("--pages", type=whole_number(), default=20_000, help="that are touched in the second table (%(default)s)")
    add("--rows", type=whole_number(), default=24_000_000, help="of the jobs' arrays (%(default)s)")
    add("--rounds", type=whole_number(), default=3, help="the median of so many (%(default)s)")
    add("--folder", type=Path, help="for the results (default: a new temporary one)")
    add("--disk", type=Path, help="a folder on the disk to use for files (default: a new temporary one)")
    arguments = parser.parse_args(words)
    report = Report(arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-")), Console(width=150))
    wanted = arguments.tables or TABLES
    with tempfile.TemporaryDirectory(prefix="zcache-pager-", dir=arguments.disk) as disk:
        if "resident" in wanted:
            _resident(report, arguments.rounds, arguments.pages, Path(disk))
        if "jobs" in wanted:
            _jobs(report, arguments.rounds, arguments.rows)
        if "patterns" in wanted:
            _patterns(report, arguments.rounds, arguments.limit, arguments.seconds, Path(disk))
    report.save()
    report.console.print(f"report.json: {report.folder}")
    return 0


# -- patterns of touches
# --------------------------------------------------------------------------------------------------


def _patterns(report: Report, rounds: int, limit_mib: int, seconds: int, disk: Path) -> None:
    cells = [Cell(times, kind) for times in TIMES for kind in KINDS]
    found: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in cells}
    for turn in range(rounds):
        for cell in reversed(cells) if turn % 2 else cells:
            found[cell].append(_run(cell, limit_mib, seconds, disk, turn))
            report.console.print(f"round {turn + 1} of {rounds}: {cell.times} times, {cell.kind}")
    title = f"memory of 2 and 5 times {limit_mib} MiB"
    report.table("fill", f"{title}, filled", [_fill_row(cell, found[cell]) for cell in cells])
    rows = [
        _row(Cell(times, kind), pattern, found[Cell(times, kind)])
        for times in TIMES
        for pattern in PATTERNS
        for kind in KINDS
    ]
    report.table("patterns", f"{title}, and then touched for {seconds} s in each pattern", rows)
    bars = {
        f"{times}x {pattern}": {
            kind: _median(found[Cell(times, kind)], pattern, "touches_per_second") / 1e3 for kind in KINDS[:2]
        }
        for times in TIMES
        for pattern in PATTERNS
    }
    report.bars("patterns", f"{title}: thousand touches a second", bars, "1,000/s")


def shares_mib(limit_mib: int, size_mib: int) -> tuple[int, int]:
    """What of a limit is a region's resident limit, and what its store's budget: all pages in RAM,
    if a quarter of the limit is left for those that are resident."""
    left = limit_mib - PROGRAMS_MIB - int(size_mib * TABLES_SHARE)
    resident = int((left - COMPRESSED_SHARE * size_mib) / (1 - COMPRESSED_SHARE))
    resident = max(resident, left // 4)
    return resident, left - resident


def _run(cell: Cell, limit_mib: int, seconds: int, disk: Path, seed: int) -> dict[str, Any]:
    size_mib = cell.times * limit_mib
    words = [cell.kind, size_mib, *shares_mib(limit_mib, size_mib), seconds, disk, seed]
    command = [sys.executable, "-m", "zcache.bench.pager.job", *map(str, words)]
    with group() as limits:
        if cell.kind != "memory":
            limits.set_limit(limit_mib << 20)
        done = subprocess.run(limits.start(*command), capture_output=True, text=True, check=False, cwd=REPOSITORY)
        killed = limits.killed()
    for name in ("file", "backing"):
        (disk / name).unlink(missing_ok=True)
    return _json_of(done, f"{cell.times} times, {cell.kind} ({killed} killed at the limit)")


def _json_of(done: "subprocess.CompletedProcess[str]", what: str) -> dict[str, Any]:
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise EnvironmentProblem(f"{what}: {last}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _fill_row(cell: Cell, rounds: list[dict[str, Any]]) -> dict[str, Figure]:
    seconds = statistics.median(each["fill_seconds"] for each in rounds)
    return {"times the limit": cell.times, "memory": cell.kind, "seconds": seconds}


def _median(rounds: list[dict[str, Any]], pattern: str, name: str) -> float:
    return float(statistics.median(each[pattern][name] for each in rounds))


def _row(cell: Cell, pattern: str, rounds: list[dict[str, Any]]) -> dict[str, Figure]:
    medians = {name: _median(rounds, pattern, name) for name in rounds[0][pattern]}
    return {"times the limit": cell.times, "touched": pattern, "memory": cell.kind, **medians}


# -- from a touch to the page
# --------------------------------------------------------------------------------------------------


def _resident(report: Report, rounds: int, pages: int, disk: Path) -> None:
    cells = [(kind, threads) for kind in PLACES for threads in THREADS]
    found: dict[tuple[str, int], list[dict[str, float]]] = {cell: [] for cell in cells}
    for turn in range(rounds):
        for kind, threads in reversed(cells) if turn % 2 else cells:
            words = [kind, threads, pages, disk, turn]
            command = [sys.executable, "-m", "zcache.bench.pager.resident", *map(str, words)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
            found[kind, threads].append(_json_of(done, kind))
            (disk / "backing").unlink(missing_ok=True)
    rows: list[dict[str, Figure]] = [
        {
            "page": kind,
            "threads": threads,
            **{name: statistics.median(each[name] for each in found[kind, threads]) for name in ("p50_us", "p99_us")},
            "pages_per_second": threads
            * statistics.median(each["touches_per_second"] for each in found[kind, threads]),
        }
        for kind, threads in cells
    ]
    report.table("resident", f"from a touch to the page: {pages} cold pages, at random", rows)


# -- jobs
# --------------------------------------------------------------------------------------------------


def _jobs(report: Report, rounds: int, rows: int) -> None:
    table: list[dict[str, Figure]] = []
    for job in JOBS:
        command = [sys.executable, "-m", "zcache.bench.pager.arrays", job, str(rows)]
        _, said = _limited(ENOUGH, command)
        arrays_mib = float(said["arrays"])
        limit_mib = int(arrays_mib / 3)
        limited, unlimited, moved = [], [], []
        for turn in range(rounds):
            for is_limited in (True, False) if turn % 2 else (False, True):
                if is_limited:
                    found, said = _limited(f"{limit_mib}M", command)
                    limited.append(found)
                    moved.append(int(said["left"]) + int(said["came"]))
                else:
                    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
                    unlimited.append(_json_of(done, job))
        digests = {each["digest"] for each in (*limited, *unlimited)}
        if len(digests) > 1:
            raise EnvironmentProblem(f"{job}: the result is another under the limit")
        with_limit, without = (statistics.median(each["seconds"] for each in some) for some in (limited, unlimited))
        pages = statistics.median(moved)
        table.append(
            {
                "job": job,
                "arrays, MiB": arrays_mib,
                "limit, MiB": limit_mib,
                "seconds": with_limit,
                "without a limit": without,
                "times slower": with_limit / without,
                "pages moved": pages,
                "us for each": (with_limit - without) / pages * 1e6,
            }
        )
    report.table("jobs", "zcache run --limit, a third of the arrays, beside the same job without", table)


_ARRAYS: Final = re.compile(r"arrays of up to ([0-9.]+)([MG])")
_MOVED: Final = re.compile(r"went out: (\d+), that came in: (\d+)")


def _limited(limit: str, command: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the job has found, and what `zcache run` says of it."""
    run = [sys.executable, "-m", "zcache.run.run", "--limit", limit, "--", *command]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    found = _json_of(done, " ".join(command[2:]))
    arrays, moved = _ARRAYS.search(done.stderr), _MOVED.search(done.stderr)
    if not arrays or not moved:
        raise EnvironmentProblem(f"zcache run says nothing of the job: {done.stderr.strip()}")
    mib = float(arrays[1]) * {"M": 1, "G": 1024}[arrays[2]]
    return found, {"arrays": str(mib), "left": moved[1], "came": moved[2]}

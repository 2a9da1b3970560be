"""`scripts/bench pager`: memory that is larger than what a job may take, by a region of the pager,
by a file that is mapped (numpy.memmap), and, without a limit, as plain memory.

Each job runs in a control group of its own, with the same limit: a region's holds client, pager and
store, and its resident limit is what is left beside those. Jobs take turns, round by round; a
figure is the median of its rounds. The pages compress to a third. Root only, for the group.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console

from zcache.bench.groups import group
from zcache.bench.pager.job import PATTERNS
from zcache.bench.report import Figure, Report
from zcache.bench.served import REPOSITORY
from zcache.errors import EnvironmentProblem
from zcache.testvm.arguments import whole_number

KINDS: Final = ("region", "memmap", "memory")
#: Of the limit: the size of the memory.
TIMES: Final = (2, 5)
#: What client and pager take for themselves.
PROGRAMS_MIB: Final = 80
#: Of a page, in frames, with what is dead in them.
COMPRESSED_SHARE: Final = 0.42


class Cell(NamedTuple):
    """A job."""

    times: int
    kind: str


def main(words: Sequence[str]) -> int:
    """Prints the table; exit status 0."""
    parser = argparse.ArgumentParser(prog="scripts/bench pager", description=__doc__)
    add = parser.add_argument
    add("--limit", type=whole_number(192), default=256, metavar="MIB", help="of a job's group (%(default)s)")
    add("--touches", type=whole_number(), default=50_000, help="of pages, in each pattern (%(default)s)")
    add("--rounds", type=whole_number(), default=3, help="the median of so many (%(default)s)")
    add("--folder", type=Path, help="for the results (default: a new temporary one)")
    add("--disk", type=Path, help="a folder on the disk to use for files (default: a new temporary one)")
    arguments = parser.parse_args(words)
    report = Report(arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-")), Console(width=150))
    cells = [Cell(times, kind) for times in TIMES for kind in KINDS]
    found: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in cells}
    with tempfile.TemporaryDirectory(prefix="zcache-pager-", dir=arguments.disk) as disk:
        for turn in range(arguments.rounds):
            for cell in reversed(cells) if turn % 2 else cells:
                report.console.print(f"round {turn + 1} of {arguments.rounds}: {' '.join(map(str, cell))}")
                found[cell].append(_run(cell, arguments.limit, arguments.touches, Path(disk), turn))
    title = f"memory of 2 and 5 times {arguments.limit} MiB"
    report.table("fill", f"{title}, filled", [_fill_row(cell, found[cell]) for cell in cells])
    rows = [
        _row(Cell(times, kind), pattern, found[Cell(times, kind)])
        for times in TIMES
        for pattern in PATTERNS
        for kind in KINDS
    ]
    report.table("pager", f"{title}, and then {arguments.touches} pages touched in each pattern", rows)
    report.save()
    report.console.print(f"report.json: {report.folder}")
    return 0


def shares_mib(limit_mib: int, size_mib: int) -> tuple[int, int]:
    """What of a limit is a region's resident limit, and what its store's budget: all pages in RAM,
    if a quarter of the limit is left for those that are resident."""
    left = limit_mib - PROGRAMS_MIB
    resident = int((left - COMPRESSED_SHARE * size_mib) / (1 - COMPRESSED_SHARE))
    resident = max(resident, left // 4)
    return resident, left - resident


def _run(cell: Cell, limit_mib: int, touches: int, disk: Path, seed: int) -> dict[str, Any]:
    size_mib = cell.times * limit_mib
    words = [cell.kind, size_mib, *shares_mib(limit_mib, size_mib), touches, disk, seed]
    command = [sys.executable, "-m", "zcache.bench.pager.job", *map(str, words)]
    with group() as limits:
        if cell.kind != "memory":
            limits.set_limit(limit_mib << 20)
        done = subprocess.run(limits.start(*command), capture_output=True, text=True, check=False, cwd=REPOSITORY)
        killed = limits.killed()
    for name in ("file", "backing"):
        (disk / name).unlink(missing_ok=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise EnvironmentProblem(f"{' '.join(map(str, cell))}: {last} ({killed} killed at the limit)")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _fill_row(cell: Cell, rounds: list[dict[str, Any]]) -> dict[str, Figure]:
    seconds = statistics.median(each["fill_seconds"] for each in rounds)
    return {"times the limit": cell.times, "memory": cell.kind, "seconds": seconds}


def _row(cell: Cell, pattern: str, rounds: list[dict[str, Any]]) -> dict[str, Figure]:
    medians = {name: statistics.median(each[pattern][name] for each in rounds) for name in rounds[0][pattern]}
    return {"times the limit": cell.times, "touched": pattern, "memory": cell.kind, **medians}

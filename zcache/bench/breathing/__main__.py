"""`scripts/bench breathing`: a budget that may move follows a step of memory pressure, up and down;
a table and a plot.

In the test VM, swapping to zcache inside it, a program fills a heap that is larger than the guest,
touches it at random, and ends: twice, with a rest after each. The plot shows the budget, what
memory could be had, and the swapping. The table says, for each step, how long after it, or after
the first page went out, the budget had come nine tenths of its way, and how often it had turned
round by the next: not once, if it does not oscillate.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from zcache.bench import corpus
from zcache.bench.report import Figure, Report
from zcache.errors import EnvironmentProblem
from zcache.testvm import VmConfig
from zcache.testvm.arguments import whole_number
from zcache.testvm.vm import run_in_vm

CORPUS_PAGES: Final = 8192
PARAMETERS: Final = ("size=1G", "budget=32M..256M", "hardening=require")
DISK_BYTES: Final = 1400 << 20
BOOT_SECONDS: Final = 240
#: Of the way.
ARRIVED: Final = 0.9


def main(words: Sequence[str]) -> int:
    """Prints the table; exit status 1 if a page was wrong or the budget did not move."""
    parser = argparse.ArgumentParser(prog="scripts/bench breathing", description=__doc__)
    add = parser.add_argument
    add("--memory", type=whole_number(256), default=700, metavar="MIB", help="of the guest (%(default)s)")
    add("--heap", type=whole_number(), default=900, metavar="MIB", help="that is filled (%(default)s)")
    add("--touches", type=whole_number(), default=10_000, help="of its pages (%(default)s)")
    add("--steps", type=whole_number(), default=2, help="(%(default)s)")
    add("--rest-seconds", type=whole_number(), default=30, help="after each (%(default)s)")
    add("--seed", type=int, default=1)
    add("--folder", type=lambda text: Path(text).absolute(), help="for the results (default: a new temporary one)")
    add("parameters", nargs="*", metavar="key=value", help=f"instead of {' '.join(PARAMETERS)}")
    arguments = parser.parse_args(words)
    report = Report(arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-")), Console(width=150))
    found = _run(arguments)
    rows = _tabulate(report, found)
    _plot(report, found)
    report.save()
    report.console.print(f"report.json and breathing.png: {report.folder}")
    return int(found["wrong_pages"] > 0 or any(row["moved, MiB"] == 0 for row in rows))


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="zcache-breathing-") as name:
        pages, disk, share = (Path(name) / part for part in ("pages", "disk", "share"))
        share.mkdir()
        content = corpus.mixed(corpus.gather(CORPUS_PAGES), CORPUS_PAGES, arguments.seed).pages
        pages.write_bytes(b"".join(content))
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        job = {"parameters": arguments.parameters or PARAMETERS, "heap_mib": arguments.heap, "seed": arguments.seed}
        job |= {"touches": arguments.touches, "steps": arguments.steps, "rest_seconds": arguments.rest_seconds}
        (share / "job.json").write_text(json.dumps(job))
        seconds = BOOT_SECONDS + arguments.steps * (600 + arguments.rest_seconds)
        config = VmConfig(f"{arguments.memory}M", disks=(pages, disk), share=share, timeout_seconds=seconds)
        result = run_in_vm(config, [sys.executable, "-m", "zcache.bench.breathing.guest", str(share)])
        if result.exit_status != 0:
            trouble = result.failure or f"exit status {result.exit_status}"
            raise EnvironmentProblem(f"the run in the guest failed: {trouble}; its kernel log: {result.kernel_log}")
        result.kernel_log.unlink()
        found: dict[str, Any] = json.loads((share / "report.json").read_text())
        return found


def _tabulate(report: Report, found: dict[str, Any]) -> list[dict[str, Figure]]:
    samples, marks = found["samples"], found["marks"]
    rows: list[dict[str, Figure]] = []
    for number, mark in enumerate(marks):
        end = marks[number + 1] if number + 1 < len(marks) else samples[-1]["seconds"]
        rows.append(_row([sample for sample in samples if mark <= sample["seconds"] <= end], mark, number % 2 == 0))
    report.table("breathing", "the budget after each step", rows)
    report.table(
        "decisions",
        "decisions, the latest first",
        [
            {
                "MiB before": decision["before_bytes"] / (1 << 20),
                "after": decision["after_bytes"] / (1 << 20),
                "why": decision["why"],
            }
            for decision in found["status"]["budget_decisions"]
        ],
    )
    return rows


def _row(samples: list[dict[str, float]], mark: float, is_rising: bool) -> dict[str, Figure]:
    """From one step to the next."""
    sizes = [sample["budget_bytes"] / (1 << 20) for sample in samples]
    way = (max(sizes) if is_rising else min(sizes)) - sizes[0]
    pages_out = samples[0]["pages_out"]
    begin = next((s["seconds"] for s in samples if s["pages_out"] > pages_out), mark) if is_rising else mark
    moves = [after - before for before, after in itertools.pairwise(sizes) if after != before]

    def reached(share: float) -> float | None:
        """Seconds after the step."""
        if not way:
            return None
        places = zip(samples, sizes, strict=True)
        return next(s["seconds"] - begin for s, size in places if (size - sizes[0]) / way >= share)

    return {
        "step": "pressure comes" if is_rising else "pressure goes",
        "at, s": round(mark, 1),
        "first page out after": round(begin - mark, 1) if is_rising else None,
        "from, MiB": sizes[0],
        "to, MiB": sizes[0] + way,
        "moved, MiB": abs(way),
        "first move after, s": reached(1e-6),
        "half after": reached(0.5),
        "nine tenths after": reached(ARRIVED),
        "turned round": sum((before < 0) is not (after < 0) for before, after in itertools.pairwise(moves)),
    }


def _plot(report: Report, found: dict[str, Any]) -> None:
    samples = found["samples"]
    seconds = [sample["seconds"] for sample in samples]

    def mebibytes(name: str) -> tuple[list[float], list[float]]:
        return seconds, [sample[name] / (1 << 20) for sample in samples]

    def rate(name: str, scale: float) -> tuple[list[float], list[float]]:
        pairs = [*itertools.pairwise(samples)]
        return seconds[1:], [(b[name] - a[name]) * scale / (b["seconds"] - a["seconds"]) for a, b in pairs]

    panels = {
        "MiB": {"budget": mebibytes("budget_bytes"), "MemAvailable": mebibytes("available_bytes")},
        "MiB a second": {"swapped out": rate("pages_out", 1 / 256), "swapped in": rate("pages_in", 1 / 256)},
        "some task stood still, % of the time (PSI)": {"memory": rate("stalled_us", 1e-4)},
    }
    report.lines("breathing", panels, found["marks"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

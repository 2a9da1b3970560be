"""`scripts/test --suites [SUITE…]`: runs other projects' test suites for NBD servers against
zcache.

Prints what failed, what was left out and why, and a table. Exit status 1 if a test failed, or a
suite ran none or did not find a wrong byte; 125 if a suite cannot be had.
"""

import argparse
import ctypes
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.suites import libnbd, nbd, nbdkit, qemu
from tests.suites.running import Case, Result, Runner, Verdict
from zcache.errors import ZcacheError
from zcache.linux import standard_streams
from zcache.testvm.signals import end_in_order

SUITES: Final[dict[str, ModuleType]] = {suite.NAME: suite for suite in (nbd, libnbd, nbdkit, qemu)}
_PR_SET_CHILD_SUBREAPER: Final = 36


class Summary(NamedTuple):
    """What a suite found. `is_sharp`: its control, a server that returns wrong bytes, failed as it
    must."""

    name: str
    results: tuple[Result, ...]
    is_sharp: bool
    seconds: float

    def count(self, verdict: Verdict) -> int:
        """Tests with that verdict."""
        return sum(result.verdict is verdict for result in self.results)

    @property
    def is_good(self) -> bool:
        """Whether it ran, found nothing, and could have."""
        return self.is_sharp and self.count(Verdict.PASSED) > 0 and self.count(Verdict.FAILED) == 0


def run(name: str, runner: Runner, cases: Iterable[Case], excluded: dict[str, str], control: str) -> Summary:
    """All cases of a suite, told as they come; its control among them, in its place."""
    begun = time.monotonic()
    results: list[Result] = []
    is_sharp = False
    for case in cases:
        if case.name == control:
            is_sharp = runner.can_fail(case)
            print(f"{name}: {case.name}, with wrong bytes: {'found' if is_sharp else 'NOT FOUND'}", flush=True)
        results.append(runner.judge(case, excluded))
        print(f"{name}: {case.name}: {results[-1].verdict.value}: {results[-1].why}", flush=True)
    return Summary(name, tuple(results), is_sharp, time.monotonic() - begun)


def show(summaries: Sequence[Summary]) -> None:
    """What is not passed, by its reason, and the table."""
    for summary in summaries:
        reasons: dict[str, list[str]] = {}
        for result in summary.results:
            if result.verdict is not Verdict.PASSED:
                reasons.setdefault(f"{result.verdict.value}: {result.why}", []).append(result.name)
        for reason, names in sorted(reasons.items()):
            print(f"{summary.name}: {reason}: {', '.join(names)}")
    table = Table(box=None)
    for column in ("suite", "ran", "passed", "failed", "left out", "a wrong byte is", "seconds"):
        table.add_column(column, justify="left" if column == "suite" else "right")
    for summary in summaries:
        passed, failed, left_out = map(summary.count, Verdict)
        found = "found" if summary.is_sharp else "NOT FOUND"
        counts = map(str, (passed + failed, passed, failed, left_out))
        table.add_row(summary.name, *counts, found, f"{summary.seconds:.0f}")
    Console(width=100).print(table)


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/test --suites", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--only", action="append", metavar="TEST", help="and the suite's control")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.suites if name not in SUITES]
    if unknown:
        parser.error(f"{unknown[0]}: no such suite; give {', '.join(SUITES)}, or none")
    end_in_order()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what a test leaves running is ours to end
    work = Path(tempfile.mkdtemp(prefix="zcache-suites-"))
    summaries = []
    try:
        for name in arguments.suites or SUITES:
            suite, runner = SUITES[name], Runner(work / name)
            wanted = {suite.CONTROL, *arguments.only} if arguments.only else None
            cases = (case for case in suite.prepare(runner) if wanted is None or case.name in wanted)
            summaries.append(run(name, runner, cases, suite.EXCLUDED, suite.CONTROL))
    except (ZcacheError, OSError, subprocess.SubprocessError) as error:
        print(f"suites: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    show(summaries)
    if all(summary.is_good for summary in summaries):
        shutil.rmtree(work)
        return 0
    print(f"what each test printed: {work}/SUITE/TEST.zcache/output")
    return 1


if __name__ == "__main__":
    sys.exit(standard_streams.run("suites", main, lost_output=125))

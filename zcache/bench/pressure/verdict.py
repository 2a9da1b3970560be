"""What a cell has to show to have passed. Everything that speaks against it is said, in a line
each."""

import re
from typing import Any, Final

from zcache.bench.run.__main__ import kernel_troubles, losses

#: Of the guest's memory: a cell that swapped less than this out, or back in, was no trial of swap.
LEAST_OUT: Final = 0.05
LEAST_IN: Final = 0.01
PAGES_PER_MIB: Final = 256

MARK: Final = re.compile(r"zcache pressure: cell (\w+)")


def cells_of_log(log: str) -> dict[str, str]:
    """A guest's kernel log, cut where its cells begin; what came before the first is under ""."""
    cells: dict[str, str] = {}
    name = ""
    for line in log.splitlines():
        mark = MARK.search(line)
        name = mark[1] if mark else name
        cells[name] = cells.get(name, "") + line + "\n"
    return cells


def judge_report(report: dict[str, Any], memory_mib: int) -> list[str]:
    """What a cell's own report says against it."""
    failures = [report["error"]] if "error" in report else []
    if "programs" not in report:
        return failures
    for program in report["programs"]:
        if program["exit_status"] != 0:
            end = "did not end" if program["exit_status"] is None else f"ended with {program['exit_status']}"
            failures.append(f"{' '.join(program['command'][-6:])} {end}: {program['said'][-300:]}")
            failures += program.get("standing", "").splitlines()
        if program.get("read_mib", memory_mib) < memory_mib:
            failures.append(f"only {program['read_mib']} MiB of files were read, less than memory")
    if report.get("longest_gap_seconds") is None:
        failures.append("the ticker did not live")
    for name, share in (("pages_out", LEAST_OUT), ("pages_in", LEAST_IN)):
        least = int(memory_mib * PAGES_PER_MIB * share)
        if report.get(name, 0) < least:
            failures.append(f"it hardly swapped: {name} is {report.get(name)}, less than {least}")
    if report.get("oom_kills"):
        failures.append(f"{report['oom_kills']} processes were killed for memory")
    if "check" in report and not report["check"]["balanced"]:
        failures.append(f"the books do not balance: {report['check']['imbalance']}")
    if report.get("server_replaced"):
        failures.append("the server did not live")
    return failures + judge_status(report.get("status"))


def judge_status(status: dict[str, Any] | None) -> list[str]:
    """What a server's counters say."""
    return losses(status) if status else []


def judge_log(log: str) -> list[str]:
    """What the kernel says; who was killed, first."""
    killed = [f"the kernel killed {name}" for name in re.findall(r"Killed process \d+ \(([^)]*)\)", log)]
    return killed + [f"kernel log: {line}" for line in kernel_troubles(log)[:5]]

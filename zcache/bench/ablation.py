"""`scripts/bench ablation`: what each protection is for, shown by taking it away under real memory pressure.

Each row boots a small guest that swaps to zcache inside itself under stress-ng, with every protection, with none, and
with each one left out. A guest that does not come to an end is made to dump its tasks, and is then killed; what the
server's threads were doing is shown below the table, and the kernel logs are kept in the folder that is named. Not
for CI: a row takes two minutes or more.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from zcache.testvm import VmConfig, VmResult
from zcache.testvm.run import kernel_troubles
from zcache.testvm.vm import run_in_vm

PROTECTIONS: Final = (
    "io_flusher",
    "real_time",
    "small_pages",
    "heap",
    "memory_lock",
    "program",
    "prefault",
    "oom_score",
    "gc_off",
    "stderr",
    "threads",
    "warm_up",
)
PARAMETERS: Final = ("size=768M", "budget=96M", "backing=/dev/disk/by-id/virtio-vmdisk0")
DISK_BYTES: Final = 700 << 20


@dataclass(frozen=True)
class Row:
    """What one guest went through."""

    name: str
    result: VmResult
    report: dict[str, Any] | None

    @property
    def outcome(self) -> str:
        """In a few words."""
        troubles = kernel_troubles(self.result.kernel_log.read_text(errors="replace"))
        if self.result.panicked:
            return "guest panicked"
        if self.result.timed_out:
            return f"WEDGED ({len(troubles)} complaints in the kernel log)"
        if not self.report:
            return self.result.failure or "no report"
        verified = "verified" if self.report["stress_exit_status"] == 0 else "stress-ng FAILED"
        return verified + (f", {len(troubles)} complaints in the kernel log" if troubles else "")


def main(words: Sequence[str]) -> int:
    """Prints the table and the traces."""
    parser = argparse.ArgumentParser(prog="scripts/bench ablation", description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"of: all, off, {', '.join(PROTECTIONS)} (default: every one)")
    parser.add_argument("--memory", default="640M", help="guest memory (default: %(default)s)")
    parser.add_argument("--stress-bytes", default="900M", help="memory used in it (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=45, help="how long the load runs (default: %(default)s)")
    parser.add_argument("--timeout", type=int, default=240, help="then a guest counts as wedged (default: %(default)s)")
    arguments = parser.parse_args(words)
    folder = Path(tempfile.mkdtemp(prefix="zcache-ablation-"))
    console = Console(width=120)
    table = Table(box=None)
    for heading in ("without", "outcome", "pages out", "in", "load s", "swapoff s", "locked MiB"):
        table.add_column(heading)
    wedged = []
    for name in arguments.rows or ("all", "off", *PROTECTIONS):
        row = _run(name, arguments, folder)
        report = row.report or {}
        status = report.get("status", {})
        table.add_row(
            {"all": "(nothing)", "off": "(everything: hardening=off)"}.get(name, name),
            row.outcome,
            *(str(report.get(key, "-")) for key in ("pages_out", "pages_in", "load_seconds", "swap_off_seconds")),
            str(status.get("locked_bytes", 0) >> 20) if status else "-",
        )
        print(f"{name}: {row.outcome}", flush=True)
        if row.result.timed_out or row.result.panicked:
            wedged.append(row)
    console.print(table)
    for row in wedged:
        console.print(f"\n-- without {row.name}: where the server's threads were --")
        print(server_traces(row.result.kernel_log.read_text(errors="replace")))
    console.print(f"kernel logs: {folder}")
    return 0


def _run(name: str, arguments: argparse.Namespace, folder: Path) -> Row:
    disk, share = folder / f"{name}.disk", folder / name
    share.mkdir()
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    config = VmConfig(
        memory=arguments.memory,
        disks=(disk,),
        share=share,
        kernel_log=folder / f"{name}.log",
        timeout_seconds=arguments.timeout,
    )
    hardening = "hardening=off" if name == "off" else "hardening=warn"
    without = "" if name in ("all", "off") else name
    load = ["--vm", "4", "--vm-bytes", arguments.stress_bytes, "--vm-method", "all", "--vm-keep", "--verify"]
    command = ["env", f"ZCACHE_WITHOUT={without}", sys.executable, "-m", "zcache.testvm.swap_run"]
    command += [str(share / "report.json"), *PARAMETERS, hardening, "--", *load, "--timeout", f"{arguments.seconds}s"]
    with (share / "output").open("wb") as output:
        result = run_in_vm(config, command, stdout=output, stderr=output)
    disk.unlink()
    report_path = share / "report.json"
    return Row(name, result, json.loads(report_path.read_text()) if report_path.exists() else None)


def server_traces(kernel_log: str, lines: int = 16) -> str:
    """The kernel's stack traces of nbdkit's threads, from the last dump of all tasks in a log."""
    plain = [re.sub(r"^\[ *[\d.]+\](\[[^]]*\])? ?", "", line) for line in kernel_log.splitlines()]
    starts = [number for number, line in enumerate(plain) if line.startswith(("task:nbdkit", "task:kswapd"))]
    return "\n".join("\n".join(plain[start : start + lines]) for start in starts[-12:])

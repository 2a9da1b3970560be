"""`scripts/bench ablation`: what each protection is for, shown by taking it away under a load that
needs it.

Most rows boot a small guest that swaps to zcache inside itself under stress-ng: with every
protection, with none, and with each of `PROTECTIONS` left out (`shutdown` is not among them: its
test shuts a machine down). A guest that does not come to an end is made to dump its tasks, and is
then killed; what the server's threads were doing is shown below the table, and the kernel logs are
kept in the folder that is named. Even where nothing stalls, each page fault of the server under
load is a wait for memory with a request in hand: with all protections there are next to none.

Two protections are against other things than stress-ng does, and have loads of their own:
`oom_score` programs that need more than all memory and swap, so that the kernel must kill; `stderr`
thousands of failing requests, with a reader of the server's messages that stands still. Not for CI:
a row takes two minutes or more.
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

from zcache.bench.complaints import complain
from zcache.bench.run.__main__ import kernel_troubles
from zcache.testvm import VmConfig, VmResult
from zcache.testvm.arguments import whole_number
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
    "stderr",
    "threads",
    "warm_up",
)
DEVICE_MIB: Final = 768

#: Programs of 96 MiB that do not compress: each smaller than the server with its budget, all of
#: them more than memory and swap.
GREEDY: Final = "import os, time; held = [os.urandom(1 << 20) for _ in range(96)]; time.sleep(20)"
OUT_OF_MEMORY: Final = f"for n in $(seq 16); do {sys.executable} -S -c '{GREEDY}' & done; wait; true"
OUT_OF_MEMORY_SECONDS: Final = 420


@dataclass(frozen=True)
class Row:
    """What one guest went through."""

    result: VmResult
    report: dict[str, Any] | None

    @property
    def outcome(self) -> str:
        """In a few words."""
        log = self.result.kernel_log.read_text(errors="replace")
        killed = re.findall(r"Killed process \d+ \(([^)]*)\)", log)
        if "nbdkit" in killed:
            return "the kernel KILLED THE SERVER"
        if self.result.timed_out:
            return f"WEDGED ({len(kernel_troubles(log))} complaints in the kernel log)"
        if self.result.panicked:
            return "guest panicked"
        if not self.report:
            return self.result.failure or "no report"
        if killed:
            return f"{len(killed)} other programs killed, the swap lives"
        verified = "verified" if self.report["load_exit_status"] == 0 else "stress-ng FAILED"
        troubles = len(kernel_troubles(log))
        return verified + (f", {troubles} complaints in the kernel log" if troubles else "")


def main(words: Sequence[str]) -> int:
    """Prints the table and the traces."""
    parser = argparse.ArgumentParser(prog="scripts/bench ablation", description=__doc__)
    rows_help = f"of: all, off, {', '.join(PROTECTIONS)}, or several joined by + (default: each)"
    parser.add_argument("rows", nargs="*", help=rows_help)
    parser.add_argument("--memory", default="640M", help="guest memory (default: %(default)s)")
    parser.add_argument(
        "--budget", default=96, type=whole_number(), metavar="MIB", help="of the server (default: %(default)s)"
    )
    parser.add_argument("--stress-bytes", default="900M", help="memory used in it (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=whole_number(), default=45, help="how long the load runs (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=whole_number(), default=240, help="then a guest counts as wedged (default: %(default)s)"
    )
    parser.add_argument("--runs", type=whole_number(), default=1, help="of each row (default: %(default)s)")
    arguments = parser.parse_args(words)
    folder = Path(tempfile.mkdtemp(prefix="zcache-ablation-"))
    console = Console(width=150)
    table = Table(box=None)
    for heading in ("without", "load", "outcome", "faults", "pages out", "in", "load s", "swapoff s", "locked MiB"):
        table.add_column(heading)
    stalled = []
    for run, without, load in [
        (run, without, load)
        for name in arguments.rows or ("all", "off", *PROTECTIONS)
        for without, load in trials(name)
        for run in range(arguments.runs)
    ]:
        shown = {"all": "(nothing)", "off": "(everything: hardening=off)"}.get(without, without)
        if load == "complaints":
            outcome, figures = complain(folder, without), []
        else:
            row = _run(f"{without}-{load}-{run}", without, load, arguments, folder)
            outcome, figures = row.outcome, _figures(row.report or {})
            if row.result.timed_out or row.result.panicked:
                stalled.append((f"{shown}, {load}", row))
        table.add_row(shown, load, outcome, *figures)
        print(f"{shown}, {load}: {outcome} {' '.join(figures)}", flush=True)
    console.print(table)
    for title, row in stalled:
        console.print(f"\n-- without {title}: where the server's threads were --")
        print(server_traces(row.result.kernel_log.read_text(errors="replace")))
    console.print(f"kernel logs: {folder}")
    return 0


def trials(name: str) -> list[tuple[str, str]]:
    """What to leave out, and under which load, for a row's name."""
    if name in ("oom_score", "stderr"):
        load = "out of memory" if name == "oom_score" else "complaints"
        return [("all", load), (name, load)]
    return [(name, "stress-ng")]


def _figures(report: dict[str, Any]) -> list[str]:
    names = ("server_page_faults", "pages_out", "pages_in", "load_seconds", "swap_off_seconds")
    status = report.get("status")
    return [*(str(report.get(name, "-")) for name in names), str(status["locked_bytes"] >> 20) if status else "-"]


def _run(title: str, without: str, load: str, arguments: argparse.Namespace, folder: Path) -> Row:
    disk, share = folder / f"{title.replace(' ', '-')}.disk", folder / title.replace(" ", "-")
    share.mkdir()
    with disk.open("wb") as file:
        file.truncate((DEVICE_MIB - arguments.budget + 1) << 20)
    config = VmConfig(
        memory=arguments.memory,
        disks=(disk,),
        share=share,
        kernel_log=disk.with_suffix(".log"),
        timeout_seconds=arguments.timeout if load == "stress-ng" else OUT_OF_MEMORY_SECONDS,
    )
    parameters = [f"size={DEVICE_MIB}M", f"budget={arguments.budget}M", "backing=/dev/disk/by-id/virtio-vmdisk0"]
    parameters += ["hardening=off" if without == "off" else "hardening=warn"]
    stress = ["stress-ng", "--vm", "4", "--vm-bytes", arguments.stress_bytes, "--vm-method", "all", "--vm-keep"]
    stress += ["--verify", "--timeout", f"{arguments.seconds}s"]
    left_out = "" if without in ("all", "off") else without.replace("+", ",")
    command = ["env", f"ZCACHE_WITHOUT={left_out}", sys.executable]
    command += ["-m", "zcache.bench.run.guest", str(share / "report.json"), *parameters, "--"]
    command += stress if load == "stress-ng" else ["sh", "-c", OUT_OF_MEMORY]
    with (share / "output").open("wb") as output:
        result = run_in_vm(config, command, stdout=output, stderr=output)
    disk.unlink()
    report_path = share / "report.json"
    return Row(result, json.loads(report_path.read_text()) if report_path.exists() else None)


def server_traces(kernel_log: str, lines: int = 16) -> str:
    """The kernel's stack traces of nbdkit's threads, from the last dump of all tasks in a log."""
    plain = [re.sub(r"^\[ *[\d.]+\](\[[^]]*\])? ?", "", line) for line in kernel_log.splitlines()]
    starts = [
        number for number, line in enumerate(plain) if line.startswith(("task:nbdkit", "task:zcache", "task:kswapd"))
    ]
    return "\n".join("\n".join(plain[start : start + lines]) for start in starts[-12:])

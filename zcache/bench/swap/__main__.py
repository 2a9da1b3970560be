"""`scripts/bench swap`: how long a fixed piece of work takes in a guest whose memory is two thirds
of what it needs.

The work fills a heap with real pages (corpus.py) and touches them at random, verifying each. Each
row is a guest of its own with another swap area. What swap takes in memory is taken from the guest,
whoever has it: a server on the host has its memory, budget and all, from the same total. The rows
of nbdkit's `memory` are what NBD itself costs at the place of the zcache row before: it does not
compress, has all the memory it wants besides, and the guest as much as it had there. Disks are
files in the host's page cache: no disk is faster.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from zcache.bench import corpus
from zcache.bench.report import Figure, Report
from zcache.bench.served import running, speaks_nbd
from zcache.control.ask import ask
from zcache.testvm import VmConfig
from zcache.testvm.arguments import whole_number
from zcache.testvm.figures import status_kib
from zcache.testvm.vm import run_in_vm

CORPUS_PAGES: Final = 8192
#: Of memory: the heap.
HEAP_SHARE: Final = 1.5
#: nbdkit's own, with the stacks of its threads locked.
NBDKIT_MIB: Final = 400
BOOT_SECONDS: Final = 180
WORK_SECONDS: Final = 900


@dataclass(frozen=True)
class Row:
    """`area` of areas.py; `server`: on the host; `like`: the row whose guest it gets."""

    name: str
    area: str
    server: str | None = None
    like: str | None = None


ROWS: Final = (
    Row("zcache, in the guest", "zcache"),
    Row("nbdkit memory, in the guest", "memory", like="zcache, in the guest"),
    Row("zcache, on the host", "host", server="zcache"),
    Row("nbdkit memory, on the host", "host", server="memory", like="zcache, on the host"),
    Row("zram lz4", "zram-lz4"),
    Row("zram zstd", "zram-zstd"),
    Row("zswap lz4 over disk", "zswap"),
    Row("disk", "disk"),
)


@dataclass(frozen=True)
class Work:
    """What is the same for all rows."""

    memory_mib: int
    budget_mib: int
    touches: int
    seed: int
    parameters: Sequence[str]

    @property
    def heap_mib(self) -> int:
        return int(self.memory_mib * HEAP_SHARE)

    @property
    def size_mib(self) -> int:
        """Of the swap area: room for the whole heap, and for slots that the kernel does not give
        back at once."""
        return self.heap_mib * 5 // 4

    @property
    def disk_mib(self) -> int:
        """Below it: as much as zcache wants in case nothing compresses."""
        return self.size_mib * 8 // 7


def main(words: Sequence[str]) -> int:
    """Prints the table; exit status 1 if a page was wrong or a guest did not come to its end."""
    parser = argparse.ArgumentParser(prog="scripts/bench swap", description=__doc__)
    add = parser.add_argument
    add("--memory", type=whole_number(256), default=512, metavar="MIB", help="guest and swap together (%(default)s)")
    add("--budget", type=whole_number(16), default=128, metavar="MIB", help="for zcache and zswap (%(default)s)")
    add("--touches", type=whole_number(), default=60_000, help="of pages (%(default)s)")
    add("--rounds", type=whole_number(), default=1, help="the median of so many (%(default)s)")
    add("--only", metavar="TEXT", help="rows whose name has that in it")
    add("--seed", type=int, default=1)
    add("--folder", type=lambda text: Path(text).absolute(), help="for the results (default: a new temporary one)")
    add("parameters", nargs="*", metavar="key=value", help="more for zcache on the host")
    arguments = parser.parse_args(words)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-"))
    report = Report(folder, Console(width=170))
    work = Work(arguments.memory, arguments.budget, arguments.touches, arguments.seed, arguments.parameters)
    rows = [row for row in ROWS if not arguments.only or arguments.only in row.name]
    failed = measure(report, work, rows, arguments.rounds)
    report.save()
    report.console.print(f"report.json: {folder}")
    return 1 if failed else 0


def measure(report: Report, work: Work, rows: Sequence[Row], rounds: int) -> bool:
    """All rows, `rounds` times turn about, into the report; whether one failed."""
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="zcache-swap-") as name:
        pages, share = Path(name) / "pages", Path(name) / "share"
        share.mkdir()
        _write_pages(pages, work.seed)
        for turn in range(rounds):
            for row in rows:
                figures = _run(row, work, pages, share, found.get(row.like or "", [{}])[-1])
                found.setdefault(row.name, []).append(figures)
                report.console.print(f"round {turn + 1} of {rounds}: {row.name}: {figures}", highlight=False)
    _tabulate(report, work, found)
    return any(figures.get("wrong_pages", 1) for several in found.values() for figures in several)


def _write_pages(path: Path, seed: int) -> None:
    pages = corpus.mixed(corpus.gather(CORPUS_PAGES), CORPUS_PAGES, seed).pages
    path.write_bytes(b"".join(pages))


def _run(row: Row, work: Work, pages: Path, share: Path, like: dict[str, Any]) -> dict[str, Any]:
    """One guest; its report, or `failure`."""
    if row.like and "available_mib" not in like:
        return {"failure": f"there is no row “{row.like}” to be like"}
    (share / "report.json").unlink(missing_ok=True)
    with contextlib.ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="zcache-swap-")))
        disk, socket = folder / "disk", folder / "socket"
        with disk.open("wb") as file:
            os.truncate(file.fileno(), work.disk_mib << 20)
        server_mib, guest_mib = 0, work.memory_mib
        if row.server:
            command = _server_command(row.server, work, folder)
            pid = undo.enter_context(running(command, folder / "log", lambda: speaks_nbd(socket)))
            server_mib = like.get("server_mib", status_kib(pid, "VmRSS") >> 10)
            guest_mib -= server_mib
        elif like:
            guest_mib += work.size_mib + NBDKIT_MIB
        job = {"area": row.area, "size_mib": work.size_mib, "budget_mib": work.budget_mib, "memory_mib": guest_mib}
        job |= {"heap_mib": work.heap_mib, "touches": work.touches, "seed": work.seed}
        (share / "job.json").write_text(json.dumps(job | {"available_mib": like.get("available_mib")}))
        config = VmConfig(
            memory=f"{guest_mib}M",
            disks=(pages,) if row.server else (pages, disk),
            share=share,
            timeout_seconds=BOOT_SECONDS + WORK_SECONDS,
            host_socket=socket if row.server else None,
        )
        result = run_in_vm(config, [sys.executable, "-m", "zcache.bench.swap.guest", str(share)])
        if result.exit_status != 0:
            return {"failure": result.failure or f"exit status {result.exit_status}", "log": str(result.kernel_log)}
        result.kernel_log.unlink()
        report: dict[str, Any] = json.loads((share / "report.json").read_text())
        report |= {"server_mib": server_mib}
        if row.server == "zcache":
            report["held_pages"] = ask(folder / "control", "status")["stored_pages"]
        return report


def _server_command(name: str, work: Work, folder: Path) -> list[str]:
    socket = f"--unix={folder}/socket"
    if name == "memory":
        return ["nbdkit", "-f", socket, "memory", f"{work.size_mib}M"]
    words = [f"size={work.size_mib}M", f"budget={work.budget_mib}M", f"backing={folder}/backing"]
    return [sys.executable, "-m", "nbd_plugin.serve", socket, *words, f"control={folder}/control", *work.parameters]


def _tabulate(report: Report, work: Work, found: dict[str, list[dict[str, Any]]]) -> None:
    rows: list[dict[str, Figure]] = []
    for name, several in found.items():

        def median(figure: str, several: list[dict[str, Any]] = several) -> float | None:
            values = [each[figure] for each in several if figure in each]
            return statistics.median(values) if values else None

        taken = (median("server_mib") or 0) + (median("taken_mib") or 0) + (median("held_bytes") or 0) / (1 << 20)
        pages = median("held_pages")
        rows.append(
            {
                "swap": name,
                "seconds": median("seconds"),
                "filling": median("fill_seconds"),
                "touching": median("touch_seconds"),
                "major faults": median("major_faults"),
                "longest s": median("longest_touch_seconds"),
                "pages out": median("pages_out"),
                "pages in": median("pages_in"),
                "swap's MiB": taken,
                "bytes a page held": taken * (1 << 20) / pages if pages else None,
                "pages wrong": median("wrong_pages"),
                "failed": "; ".join(each["failure"] for each in several if "failure" in each),
            }
        )
    title = f"{work.heap_mib} MiB of heap, {work.touches} touches; {work.memory_mib} MiB for guest and swap"
    report.table("swap", title, rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`scripts/bench peers`: zcache over NBD beside nbdkit's own plugins, by fio's nbd engine, in one
run.

`memory` does not compress: it is the protocol's floor; `memory -t 1` is the floor with one thread
for a connection, as zcache has. `memory zstd` is what a C plugin makes of the same idea (32 KiB
pieces, so it pays for what it does not need at 4 KiB). `file` is a file on this machine's disk,
through the page cache, as nbdkit has it. All are up together and measured turn about, each figure
the median of its rounds, because the machine is never quiet; the device is written whole first. fio
makes up what it writes, to compress to about a third, and takes a good share of two CPUs itself.
"""

import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from zcache.bench.nbd.fio import Load, Target, run_benchmark, run_fio
from zcache.bench.report import Figure, Report
from zcache.bench.served import running, speaks_nbd
from zcache.control.ask import ask
from zcache.testvm.figures import status_kib

LOADS: Final = (
    Load("4K write qd1", "randwrite", 4, 1),
    Load("4K write qd32", "randwrite", 4, 32),
    Load("4K read qd1", "randread", 4, 1),
    Load("4K read qd32", "randread", 4, 32),
    Load("32K write qd4", "randwrite", 32, 4),
    Load("32K read qd4", "randread", 32, 4),
    Load("128K write qd4", "randwrite", 128, 4),
    Load("128K read qd4", "randread", 128, 4),
)


@dataclass
class Peer:
    """A server, and what was measured of it: for each load, a value a round."""

    target: Target
    rss_before_kib: int
    control: Path | None = None
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.target.name

    def median(self, load: Load, figure: str) -> float:
        """Over the rounds."""
        return statistics.median(values[figure] for values in self.rounds[load.name])

    def budget_mib(self) -> float:
        """What is locked for frames from the start: zcache's."""
        return float(ask(self.control, "status")["budget_bytes"]) / (1 << 20) if self.control else 0.0

    def memory_mib(self) -> float:
        """What it takes for what is stored: what it grew by; zcache, whose budget is all there from
        the start, the frames in use."""
        if self.control is None:
            return (status_kib(self.target.pid, "VmRSS") - self.rss_before_kib) / 1024
        status = ask(self.control, "status")
        return float(status["resident_frames"] * status["frame_bytes"]) / (1 << 20)


def main(words: Sequence[str]) -> int:
    """Prints the tables; exit status 0."""
    return run_benchmark("peers", __doc__, measure, words)


def measure(report: Report, size_mib: int, seconds: int, rounds: int, parameters: Sequence[str] = ()) -> None:
    """All servers under all loads, into the report."""
    with tempfile.TemporaryDirectory(prefix="zcache-peers-") as work, contextlib.ExitStack() as servers:
        peers = [
            servers.enter_context(_served(name, command, Path(work)))
            for name, command in _commands(size_mib, Path(work), parameters).items()
        ]
        for peer in peers:
            run_fio([peer.target], Load("fill", "write", 128, 4), size_mib, 0)
        memory: list[dict[str, Figure]] = [
            {
                "server": peer.name,
                "its own RSS MiB": peer.rss_before_kib / 1024 - peer.budget_mib(),
                "MiB for each GiB stored": peer.memory_mib() * 1024 / size_mib,
            }
            for peer in peers
        ]
        report.table("nbd_memory", "memory; zcache's budget, which is locked from the start, is left out", memory)
        with report.console.status("") as status:
            for turn in range(rounds):
                for load in LOADS:
                    for peer in peers:
                        status.update(f"round {turn + 1} of {rounds}: {load.name}, {peer.name}")
                        peer.rounds.setdefault(load.name, []).append(run_fio([peer.target], load, size_mib, seconds))
    _tabulate(report, peers, size_mib)


def _commands(size_mib: int, work: Path, parameters: Sequence[str]) -> dict[str, list[str]]:
    disk = work / "disk"
    with disk.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_mib << 20)
    zcache = [sys.executable, "-m", "nbd_plugin.serve"]
    size, budget = f"{size_mib}M", f"{size_mib * 5 // 4}M"  # what log wants to be sure, if nothing compressed
    return {
        "zcache": [*zcache, "{socket}", f"size={size}", f"budget={budget}", f"control={work}/control", *parameters],
        "memory": ["nbdkit", "-f", "{socket}", "memory", size],
        "memory -t 1": ["nbdkit", "-f", "-t", "1", "{socket}", "memory", size],
        "memory zstd": ["nbdkit", "-f", "{socket}", "memory", size, "allocator=zstd"],
        "file": ["nbdkit", "-f", "{socket}", "file", str(disk)],
    }


@contextlib.contextmanager
def _served(name: str, command: list[str], work: Path) -> Iterator[Peer]:
    path = work / f"{name.replace(' ', '-')}.sock"
    words = [word if word != "{socket}" else f"--unix={path}" for word in command]
    with running(words, work / f"{path.stem}.log", lambda: speaks_nbd(path)) as pid:
        yield Peer(Target(name, path, pid), status_kib(pid, "VmRSS"), work / "control" if name == "zcache" else None)


def _tabulate(report: Report, peers: list[Peer], size_mib: int) -> None:
    rows: list[dict[str, Figure]] = []
    for load in LOADS:
        for peer in peers:
            figures = {name: peer.median(load, name) for name in peer.rounds[load.name][0]}
            times = peers[0].median(load, "iops") / figures["iops"]
            rows.append({"load": load.name, "server": peer.name, **figures, "zcache's iops to it": times})
    report.table("nbd", f"over NBD: {size_mib} MiB written first; us of CPU are for each I/O", rows)
    groups = {load.name: {peer.name: peer.median(load, "mb") for peer in peers} for load in LOADS}
    report.bars("nbd", f"over NBD, {size_mib} MiB written first", groups, "MB/s")

"""`scripts/bench peers`: zcache over NBD beside nbdkit's own plugins, by fio's nbd engine, in one
run.

`memory` does not compress: it is the protocol's floor; `memory -t 1` is the floor with one thread
for a connection, as zcache has. `memory zstd` is what a C plugin makes of the same idea (32 KiB
pieces, so it pays for what it does not need at 4 KiB). `file` is a file on this machine's disk,
through the page cache, as nbdkit has it. All are up together and measured turn about, each figure
the median of its rounds, because the machine is never quiet; `spread` is half the distance between
the quartiles of its operations. The device is written whole first. fio makes up what it writes, to
compress to about a third, and takes a good share of two CPUs itself.

All servers have one scheduling policy (zcache is left without real time) and are locked in memory
alike, which the table of memory shows. Where zcache's time goes is measured apart, on a server with
clocks in it (`timed_plugin.py`): of each I/O the client's CPU, the kernel's for the server, and the
server's own, which is the codec (with what the page loop does around it, page by page), the rest
of our callbacks, and what is left: nbdkit and Python's way into a callback.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from zcache.bench.nbd.fio import Load, Target, run_benchmark, run_fio
from zcache.bench.nbd.times import VARIABLE, Times
from zcache.bench.report import Figure, Report, spread
from zcache.bench.served import REPOSITORY, running, speaks_nbd
from zcache.control.ask import ask
from zcache.errors import EnvironmentProblem
from zcache.server.assembly import WITHOUT_VARIABLE
from zcache.server.program import STACK_BYTES
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


POLICIES: Final = ("SCHED_OTHER", "SCHED_BATCH", "SCHED_IDLE", "SCHED_FIFO", "SCHED_RR")
ZCACHE: Final = "zcache"


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

    def spread(self, load: Load, figure: str) -> float:
        """Over the rounds, in percent."""
        return 100 * spread([values[figure] for values in self.rounds[load.name]])

    def policy(self) -> str:
        """How the kernel schedules its process."""
        number = os.sched_getscheduler(self.target.pid)
        return next(name for name in POLICIES if getattr(os, name) == number)

    def is_locked(self) -> bool:
        """Whether it is in memory for good."""
        return status_kib(self.target.pid, "VmLck") > 0

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
        commands = _commands(size_mib, Path(work), parameters)
        peers = [servers.enter_context(_served(ZCACHE, commands.pop(ZCACHE), Path(work)))]
        locked = ["--swap"] if peers[0].is_locked() else []
        peers += [
            servers.enter_context(_served(name, [*command[:1], *locked, *command[1:]], Path(work)))
            for name, command in commands.items()
        ]
        _refuse_unlike(peers)
        for peer in peers:
            run_fio([peer.target], Load("fill", "write", 128, 4), size_mib, 0)
        memory: list[dict[str, Figure]] = [
            {
                "server": peer.name,
                "policy": peer.policy(),
                "locked": "yes" if peer.is_locked() else "no",
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
    report.table(
        "where", "where zcache's time goes: us of CPU for each I/O", _where(size_mib, seconds, rounds, parameters)
    )


def _refuse_unlike(peers: Sequence[Peer]) -> None:
    """Or one would be measured with an advantage over another."""
    kinds = {peer.name: (peer.policy(), peer.is_locked()) for peer in peers}
    if len(set(kinds.values())) > 1:
        raise EnvironmentProblem(f"the servers are not scheduled and locked alike: {kinds}")


def _where(size_mib: int, seconds: int, rounds: int, parameters: Sequence[str]) -> list[dict[str, Figure]]:
    """A row for each load."""
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="zcache-times-") as folder:
        times = Times(Path(folder) / "times")
        script = Path(__file__).with_name("timed_plugin.py")
        command = [*_environment({VARIABLE: f"{folder}/times", "PYTHONMALLOC": "malloc"}), "nbdkit", "-f", "-t", "1"]
        command += ["{socket}", "python", str(script), *_size(size_mib), *parameters]
        with _served("timed", command, Path(folder)) as peer:
            run_fio([peer.target], Load("fill", "write", 128, 4), size_mib, 0)
            for _ in range(rounds):
                for load in LOADS:
                    before = times.look()
                    figures = run_fio([peer.target], load, size_mib, seconds)
                    callback, codec, requests = (now - then for now, then in zip(times.look(), before, strict=True))
                    of_ours = {"callback_us": callback / requests / 1000, "codec_us": codec / requests / 1000}
                    found.setdefault(load.name, []).append({**figures, **of_ours})
    rows: list[dict[str, Figure]] = []
    for name, several in found.items():
        medians = {figure: statistics.median(each[figure] for each in several) for figure in several[0]}
        own = medians["server_us"] - medians["kernel_us"]
        rows.append(
            {
                "load": name,
                "client": medians["client_us"],
                "kernel": medians["kernel_us"],
                "codec": medians["codec_us"],
                "rest of callbacks": medians["callback_us"] - medians["codec_us"],
                "nbdkit, and into Python": own - medians["callback_us"],
                "all of the server": medians["server_us"],
            }
        )
    return rows


def _environment(variables: dict[str, str]) -> list[str]:
    """How a command gets these, and finds what we find."""
    places = ":".join([str(REPOSITORY), *filter(None, sys.path)])
    return ["env", *(f"{name}={value}" for name, value in {**variables, "PYTHONPATH": places}.items())]


def _size(size_mib: int) -> list[str]:
    return [f"size={size_mib}M", f"budget={size_mib * 5 // 4}M"]  # what log wants to be sure, if nothing compressed


def _commands(size_mib: int, work: Path, parameters: Sequence[str]) -> dict[str, list[str]]:
    disk = work / "disk"
    with disk.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_mib << 20)
    zcache = ["env", f"{WITHOUT_VARIABLE}=real_time", sys.executable, "-m", "nbd_plugin.serve"]
    size = f"{size_mib}M"
    return {
        ZCACHE: [*zcache, "{socket}", *_size(size_mib), f"control={work}/control", *parameters],
        "memory": ["nbdkit", "-f", "{socket}", "memory", size],
        "memory -t 1": ["nbdkit", "-f", "-t", "1", "{socket}", "memory", size],
        "memory zstd": ["nbdkit", "-f", "{socket}", "memory", size, "allocator=zstd"],
        "file": ["nbdkit", "-f", "{socket}", "file", str(disk)],
    }


@contextlib.contextmanager
def _served(name: str, command: list[str], work: Path) -> Iterator[Peer]:
    path = work / f"{name.replace(' ', '-')}.sock"
    words = [word if word != "{socket}" else f"--unix={path}" for word in command]
    # Stacks of one size: they are locked, too, and glibc keeps up to 40 MiB of those of threads
    # that have ended.
    words = ["prlimit", f"--stack={STACK_BYTES}:", *words]
    with running(words, work / f"{path.stem}.log", lambda: speaks_nbd(path)) as pid:
        _wait_for_threads_to_end(pid)
        yield Peer(Target(name, path, pid), status_kib(pid, "VmRSS"), work / "control" if name == ZCACHE else None)


def _wait_for_threads_to_end(pid: int) -> None:
    """Those of a connection that was there to see whether the server is up."""
    counts: list[int] = []
    while len(counts) < 10 or len(set(counts[-10:])) > 1:
        counts.append(len(list(Path(f"/proc/{pid}/task").iterdir())))
        time.sleep(0.02)


def _tabulate(report: Report, peers: list[Peer], size_mib: int) -> None:
    rows: list[dict[str, Figure]] = []
    for load in LOADS:
        for peer in peers:
            figures = {name: peer.median(load, name) for name in peer.rounds[load.name][0]}
            times = peers[0].median(load, "iops") / figures["iops"]
            more = {"spread %": peer.spread(load, "iops"), "zcache's iops to it": times}
            rows.append({"load": load.name, "server": peer.name, **figures, **more})
    report.table("nbd", f"over NBD: {size_mib} MiB written first; us of CPU are for each I/O", rows)
    groups = {load.name: {peer.name: peer.median(load, "mb") for peer in peers} for load in LOADS}
    report.bars("nbd", f"over NBD, {size_mib} MiB written first", groups, "MB/s")

"""`scripts/bench groups`: servers in control groups with little memory, under a load that fills
them.

For each size of group, budgets that are fixed and that breathe, some of which cannot fit. A server
either refuses, in one line, or takes more than the group holds, of pages that do not compress,
while file cache fills the group; a budget that breathes then has to give way to a program in the
group that grows, too. Where a budget is refused, the largest one is tried that the refusal's
figures allow. Every page is read back. The kernel must have ended nothing in the group. Root only;
version 1 or 2.
"""

import argparse
import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console

from zcache.bench.report import Figure, Report
from zcache.bench.served import REPOSITORY, START_SECONDS, Served
from zcache.budget.breathing import BREATH_SECONDS
from zcache.control.ask import ask
from zcache.errors import EnvironmentProblem

MIB: Final = 1 << 20
ROOT: Final = Path("/sys/fs/cgroup")
GROUPS_MIB: Final = (64, 128, 200)
#: For each of them; the second never fits, nor does all that the last may become.
BUDGETS: Final = ("15%", "85%", "8M..25%", "8M..90%")

#: Of writing, for a budget that grows by it.
MOST_ROUNDS: Final = 20

#: Reads a file over and over, but not ahead: the kernel cannot take back what it is reading (8 MiB
#: on some hosts).
READING: Final = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
while True:
    offset = 0
    while part := os.pread(file, 1 << 16, offset):
        offset += len(part)
"""

#: Grows by 1 MiB at a time, up to so many, and stays.
GROWING: Final = """
import sys, time
held = []
for _ in range(int(sys.argv[1])):
    held.append(bytearray(b"\\1" * (1 << 20)))
    time.sleep(0.2)
print("grown", flush=True)
time.sleep(600)
"""


class Group(NamedTuple):
    """A control group for a test; `around` is what goes before each command that is started in
    it."""

    path: Path
    is_version_2: bool
    around: tuple[str, ...] = ()

    def start(self, *command: str) -> list[str]:
        """What runs the command in it."""
        return ["sh", "-c", f'echo $$ > "{self.path}/cgroup.procs" && exec "$@"', "sh", *self.around, *command]

    def set_limit(self, limit_bytes: int) -> None:
        name = "memory.max" if self.is_version_2 else "memory.limit_in_bytes"
        (self.path / name).write_text(str(limit_bytes))

    def killed(self) -> int:
        """How many processes the kernel has ended in it, for want of memory."""
        text = (self.path / ("memory.events" if self.is_version_2 else "memory.oom_control")).read_text()
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])

    def used_bytes(self) -> int:
        name = "memory.current" if self.is_version_2 else "memory.usage_in_bytes"
        return int((self.path / name).read_text())


@contextlib.contextmanager
def group(controller: str = "memory") -> Iterator[Group]:
    """A new one; raises `EnvironmentProblem` where none can be made. What still runs in it at the
    end is ended."""
    is_version_2 = controller in _words(ROOT / "cgroup.controllers")
    path = (ROOT if is_version_2 else ROOT / controller) / f"zcache-test-{os.getpid()}"
    try:
        if is_version_2:
            (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
        elif controller not in [name for line in _words(Path("/proc/self/cgroup")) for name in line.split(":")]:
            raise EnvironmentProblem(f"no {controller} controller is mounted at {ROOT}")
        path.mkdir()
    except OSError as error:
        raise EnvironmentProblem(f"{path}: {error.strerror}; this needs root and control groups") from None
    try:
        yield Group(path, is_version_2)
    finally:
        _remove(path)


def _words(file: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return file.read_text().split()
    return []


def _remove(path: Path) -> None:
    deadline_seconds = time.monotonic() + 30
    while True:
        for pid in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        try:
            path.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline_seconds:
                raise
        time.sleep(0.05)


class Outcome(NamedTuple):
    """Of one server in one group: what it said, and what became of it."""

    said: str
    is_refused: bool
    exit_status: int | None  # of a server that did not come to serve
    killed: int
    wrong_pages: int = 0
    budget_bytes: tuple[int, int] = (0, 0)  # at the start, and at the most
    given_way_bytes: int = 0

    def own_lines(self) -> list[str]:
        """Of the log: not the one about whoever started this (under nice, say)."""
        return [line for line in self.said.splitlines() if "WARNING: inherited from " not in line]

    def is_good(self, lines: int, is_breathing: bool) -> bool:
        """Whether nothing was killed, lost, or left unsaid: `lines` of the log name the group."""
        if self.killed or self.wrong_pages:
            return False
        if self.is_refused:
            return self.exit_status == 1 and lines == len(self.own_lines()) == 1
        return self.exit_status is None and lines >= is_breathing


def try_budget(cage: Group, folder: Path, budget: str, device_bytes: int, growing_mib: int = 0) -> Outcome:
    """Start a server in the group, fill both, and read all back."""
    log, socket, control, backing = (folder / name for name in ("server.log", "socket", "control", "backing"))
    words = [f"size={device_bytes}", f"budget={budget}", f"backing={backing}", f"control={control}"]
    command = [sys.executable, "-P", "-m", "nbd_plugin.serve", "-U", str(socket), *words]
    with log.open("wb") as file:
        server = subprocess.Popen(cage.start(*command), cwd=REPOSITORY, stdout=file, stderr=file)
    try:
        if not _is_up(server, control):
            said = log.read_text(errors="replace").strip()
            return Outcome(said, bool(said), server.wait(START_SECONDS), cage.killed())
        served = Served(socket, control, server.pid)
        first_bytes = _budget(served)
        with _busy(cage, [sys.executable, "-ISc", READING, str(backing)]):
            wrong, most_bytes = _fill(served, device_bytes)
            given_way_bytes = _give_way(cage, served, growing_mib, most_bytes) if growing_mib else 0
            wrong += _wrong_pages(served, device_bytes)
        wrong += not served.ask("check")["balanced"]
    finally:
        server.terminate()
        server.wait(START_SECONDS)
        backing.unlink(missing_ok=True)
    said = log.read_text(errors="replace").strip()
    return Outcome(said, False, None, cage.killed(), wrong, (first_bytes, most_bytes), given_way_bytes)


def _is_up(server: "subprocess.Popen[bytes]", control: Path) -> bool:
    deadline_seconds = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline_seconds:
        with contextlib.suppress(EnvironmentProblem):
            ask(control, "status")
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def _busy(cage: Group, command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(cage.start(*command), stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)


def _budget(served: Served) -> int:
    return int(served.ask("status")["budget_bytes"])


def _block(number: int) -> bytes:
    """MiB `number` of what is written: does not compress."""
    return random.Random(number).randbytes(MIB)


def _fill(served: Served, device_bytes: int) -> tuple[int, int]:
    """Write all of the device, twice, and again for as long as the budget grows by that; how many
    pieces could not be written, and the most that the budget was."""
    client, failed, most_bytes = served.connect(), 0, 0
    for round_number in range(MOST_ROUNDS):
        before_bytes = most_bytes
        for number in range(device_bytes // MIB):
            block = _block(number)
            for offset in range(0, MIB, 128 << 10):  # as the kernel swaps
                failed += not _is_written(client, block[offset : offset + (128 << 10)], number * MIB + offset)
            most_bytes = max(most_bytes, _budget(served))
        if round_number and most_bytes == before_bytes:
            break
    client.shutdown()
    return failed, most_bytes


def _is_written(client: Any, data: bytes, offset: int) -> bool:
    import nbd

    try:
        client.pwrite(data, offset)
    except nbd.Error:
        return False
    return True


def _give_way(cage: Group, served: Served, growing_mib: int, most_bytes: int) -> int:
    """By how much the budget was less when a program in the group had grown."""
    with _busy(cage, [sys.executable, "-ISc", GROWING, str(growing_mib)]) as process:
        assert process.stdout
        process.stdout.readline()
        return most_bytes - _settled_budget(served)


def _settled_budget(served: Served) -> int:
    """The budget when it has rested for some breaths; as it is, if it does not come to rest."""
    now_bytes, rested_seconds, deadline_seconds = _budget(served), time.monotonic(), time.monotonic() + START_SECONDS
    while time.monotonic() < min(rested_seconds + 6 * BREATH_SECONDS, deadline_seconds):
        time.sleep(BREATH_SECONDS / 2)
        if _budget(served) != now_bytes:
            now_bytes, rested_seconds = _budget(served), time.monotonic()
    return now_bytes


def _wrong_pages(served: Served, device_bytes: int) -> int:
    client = served.connect()
    blocks = range(device_bytes // MIB)
    wrong = sum(bytes(client.pread(MIB, number * MIB)) != _block(number) for number in blocks)
    client.shutdown()
    return wrong


def largest(refusal: str, budget_bytes: int) -> int:
    """The budget that a refusal allows by its figures, in bytes."""
    found = re.search(r"leaves (\d+) MiB: (\d+) MiB are needed", refusal)
    if not found:
        raise EnvironmentProblem(f"a refusal without figures: {refusal}")
    return budget_bytes // MIB * MIB - (int(found[2]) - int(found[1]) + 1) * MIB


def measure(report: Report, groups_mib: Sequence[int], budgets: Sequence[str], disk: Path) -> bool:
    """A table; whether all is as it should be. The backing lies in the folder `disk`."""
    rows = []
    for group_mib in groups_mib:
        for budget in budgets:
            row, said = _row(group_mib, budget, disk)
            rows.append(row)
            if row["outcome"] == "refused" and budget.endswith("%"):
                share = float(budget.rpartition("..")[2][:-1]) / 100
                rows.append(_row(group_mib, str(largest(said, int(share * group_mib * MIB))), disk)[0])
    report.table("groups", "MiB; pages that do not compress, twice as many as the group holds", rows)
    return all(row["good"] == "yes" for row in rows)


def _row(group_mib: int, budget: str, disk: Path) -> tuple[dict[str, Figure], str]:
    """Of the table; and what the server said."""
    with group() as cage, tempfile.TemporaryDirectory(prefix="zcache-groups-", dir=disk) as folder:
        cage.set_limit(group_mib * MIB)
        growing_mib = group_mib // 8 if ".." in budget else 0
        outcome = try_budget(cage, Path(folder), budget, 2 * group_mib * MIB, growing_mib)
    lines = [line for line in outcome.said.splitlines() if str(cage.path) in line]
    first, most = (None if outcome.is_refused else size_bytes / MIB for size_bytes in outcome.budget_bytes)
    row: dict[str, Figure] = {
        "group": group_mib,
        "budget=": budget,
        "outcome": "refused" if outcome.is_refused else "served",
        "budget": first,
        "at most": most,
        "gave way by": outcome.given_way_bytes / MIB if growing_mib and not outcome.is_refused else None,
        "wrong": None if outcome.is_refused else outcome.wrong_pages,
        "killed": outcome.killed,
        "good": "yes" if outcome.is_good(len(lines), ".." in budget) else "NO",
        "what the log says of the group": " ".join(lines).replace(str(cage.path), "GROUP"),
    }
    return row, outcome.said


def main(words: Sequence[str]) -> int:
    """Exit status: 0 if every server refused in one line, or served and lost nothing; and none was
    killed."""
    parser = argparse.ArgumentParser(prog="scripts/bench groups", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--mib", type=int, nargs="+", default=GROUPS_MIB, help="of the groups (%(default)s)")
    parser.add_argument("--budget", nargs="+", default=BUDGETS, help="as the server takes them (%(default)s)")
    parser.add_argument("--disk", type=Path, default="/var/tmp", help="a folder that is no tmpfs (%(default)s)")
    parser.add_argument("--folder", type=Path, help="for the results (default: a new temporary one)")
    arguments = parser.parse_args(words)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="zcache-bench-"))
    report = Report(folder, Console(width=200))
    is_good = measure(report, arguments.mib, arguments.budget, arguments.disk)
    report.save()
    return 0 if is_good else 1

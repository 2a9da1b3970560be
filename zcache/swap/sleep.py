"""`zcache sleep pre` before the machine is suspended, `post` when it is awake again, or when
nothing came of it.

To suspend, the kernel first freezes all programs, in no order that we could choose: the server at
once, and a program that waits for a page of its own from the server never. After 20 s the kernel
gives up ("tasks refusing to freeze"). So whoever has something in swap is frozen before, while the
server still serves; then nobody is left to ask for a page:

  1. sync(2), which the kernel is going to do anyway: now, while all goes on.
  2. Freeze all control groups that have something in swap, but for those who must go on
     (control_groups.py). What is frozen is written down first (frozen.py). A task that never
     freezes (it waits for a dead file server; FUSE) costs the suspend: all is thawed, and the exit
     status says so.
  3. Have the frozen ones give up some memory, for what comes next must not swap out either.
  4. Bring in what those who go on have in swap: PID 1, D-Bus, whoever asks for the suspend, and
     what they have open in tmpfs: the journal (bring_in.py).
  5. Wait until nothing of the swap is under way.

`post` thaws what `pre` froze, and nothing else. Each may be run twice. With no swap of zcache's on,
both do nothing. For a hibernation the swap has to be off: taken_off.py.

Where there is no cgroup v2, not even beside version 1 as systemd has it, there is nothing to freeze
by; version 1's own freezer is not used, for nobody makes a tree of groups for it. Then the pages of
all programs are brought in, as far as memory allows, and a line says so.
"""

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcache.errors import SwapError
from zcache.inherited import start
from zcache.keeper.state import StateFolder
from zcache.linux import cgroup, meminfo
from zcache.linux.proc_swaps import parse_swaps
from zcache.swap import control_groups, swapoff, sysctls, taken_off
from zcache.swap.bring_in import bring_in, bring_in_open_files
from zcache.swap.control_groups import ControlGroups, Process
from zcache.swap.freezing import Freezer, all_records, thaw
from zcache.swap.interruption import Interrupted, Interruption
from zcache.swap.taken_off import TakenOff

#: That no page has come or gone for so long means that nothing of the swap is under way.
QUIET_SECONDS: Final = 0.3
UNTIL_QUIET_SECONDS: Final = 20.0
#: Free memory for the kernel, systemd-sleep and the drivers, none of which can swap any more: a
#: share of all, within limits; above the high watermarks, below which kswapd would begin to swap
#: out.
ROOM_SHARE: Final = 1 / 16
ROOM_MOST_BYTES: Final = 128 << 20
ROOM_SECONDS: Final = 15.0
ROOM_STEP_BYTES: Final = 8 << 20
#: What those who go on may have in swap, for each of them.
BRING_IN_MOST_BYTES: Final = 64 << 20
LOOK_SECONDS: Final = 0.02

Report = Callable[[str], None]


@dataclass(frozen=True)
class Area:
    """A swap area: its record of what is frozen, its keeper, its device."""

    record: Path
    keeper_pid: int
    off: TakenOff  # how it is taken off for a hibernation
    is_on: bool = True

    @property
    def device(self) -> str:
        return self.off.device


def find_areas(holders: Iterable[str], swaps: Path = Path("/proc/swaps")) -> list[Area]:
    """All swap areas of zcache's, by their state files, wherever they are."""
    found = []
    on = {entry.path for entry in parse_swaps(swaps.read_text())}
    for holder in holders:
        folder = StateFolder(Path(holder).parent)
        state = folder.load()
        if state and state.device:
            off = TakenOff(folder.taken_off, state.device, state.may_hibernate, state.is_discarding)
            found.append(Area(folder.frozen, state.keeper.pid, off, state.device in on))
    return found


class Machine:
    """What is asked of the kernel; the unit tests have their own folders."""

    def __init__(self, root: Path | None, proc: Path = Path("/proc"), sysfs: Path = Path("/sys/block")) -> None:
        self.root = root
        self.proc = proc
        self._sysfs = sysfs

    def free_bytes(self) -> int:
        return meminfo.read_bytes("MemFree", self.proc / "meminfo")

    def total_bytes(self) -> int:
        return meminfo.read_bytes("MemTotal", self.proc / "meminfo")

    def pages_moved(self) -> int:
        vmstat = self.proc / "vmstat"
        return meminfo.read_counter("pswpin", vmstat) + meminfo.read_counter("pswpout", vmstat)

    def requests_under_way(self, device: str) -> int:
        """Of a swap device."""
        try:
            words = (self._sysfs / device.removeprefix("/dev/") / "inflight").read_text().split()
        except FileNotFoundError:  # swap files have no device of ours
            return 0
        return sum(map(int, words))

    def high_watermark_bytes(self) -> int:
        """Above it kswapd is at rest."""
        with contextlib.suppress(OSError, ValueError):
            words = (self.proc / "zoneinfo").read_text().split()
            pages = sum(int(after) for word, after in itertools.pairwise(words) if word == "high")
            return pages * os.sysconf("SC_PAGE_SIZE")
        return 0

    def sync(self) -> None:
        os.sync()


class Sleep:
    """Before and after a suspend, for these swap areas."""

    def __init__(self, areas: list[Area], machine: Machine) -> None:
        self._areas = areas
        self._machine = machine
        records = {area.record: area.keeper_pid for area in areas}
        self._freezer = Freezer(machine.root, machine.proc, records) if machine.root else None

    def pre(self) -> str:
        """What was done, in a line. Raises `SwapError` when a suspend would fail; everything goes
        on then."""
        begin = time.monotonic()
        self._machine.sync()
        times = [time.monotonic()]
        try:
            groups = self._freezer.freeze() if self._freezer else []
            times.append(time.monotonic())
            self._make_room(groups)
            times.append(time.monotonic())
            brought_bytes = self._bring_in(groups)
            times.append(time.monotonic())
            self._wait_until_quiet()
        except BaseException:
            self.post()
            raise
        seconds = [f"{after - before:.1f}" for before, after in itertools.pairwise([begin, *times, time.monotonic()])]
        return (
            f"{len(groups)} control groups frozen, {brought_bytes >> 10} KiB brought in; seconds: sync {seconds[0]}, "
            f"freeze {seconds[1]}, make room {seconds[2]}, bring in {seconds[3]}, come to rest {seconds[4]}"
        )

    def post(self) -> None:
        """Thaw what was frozen, and nothing else."""
        if self._freezer:
            self._freezer.thaw()
        else:
            thaw([area.record for area in self._areas], None)

    # 3: room

    def _make_room(self, groups: list[Path]) -> None:
        """As far as it can be had: no reason to stay awake."""
        machine = self._machine
        room_bytes = min(int(machine.total_bytes() * ROOM_SHARE), ROOM_MOST_BYTES)
        wanted_bytes = machine.high_watermark_bytes() + room_bytes + self._bytes_to_bring_in(groups)
        deadline_seconds = time.monotonic() + ROOM_SECONDS
        left = sorted(groups, key=_memory_bytes)  # the largest last
        while left and machine.free_bytes() < wanted_bytes and time.monotonic() < deadline_seconds:
            try:
                (left[-1] / "memory.reclaim").write_text(str(ROOM_STEP_BYTES))
            except OSError:  # it has no more to give (or the kernel no such file, before Linux 5.19)
                left.pop()

    # 4: those who go on

    def _awake(self, groups: list[Path]) -> list[Process]:
        tree = ControlGroups(self._machine.root or cgroup.ROOT, self._machine.proc)
        asleep = set(groups)
        return [each for each in tree.processes() if not asleep & {each.group, *each.group.parents}]

    def _awake_with_swap(self, groups: list[Path]) -> list[tuple[Process, int]]:
        """And how many KiB each has out."""
        tree = ControlGroups(self._machine.root or cgroup.ROOT, self._machine.proc)
        return [(process, kib) for process in self._awake(groups) if (kib := tree.swapped_kib(process))]

    def _bytes_to_bring_in(self, groups: list[Path]) -> int:
        return sum(min(kib << 10, BRING_IN_MOST_BYTES) for _, kib in self._awake_with_swap(groups))

    def _bring_in(self, groups: list[Path]) -> int:
        """How many bytes; never so many that others are swapped out for them."""
        brought_bytes = 0
        for process, _ in sorted(self._awake_with_swap(groups), key=lambda found: found[1]):
            brought_bytes += bring_in(process.pid, self._most_bytes(), self._machine.proc)
        seen: set[tuple[int, int]] = set()
        for process in self._awake(groups):
            bring_in_open_files(process.pid, self._most_bytes(), seen, self._machine.proc)
        return brought_bytes

    def _most_bytes(self) -> int:
        """Of one process, now."""
        spare_bytes = self._machine.free_bytes() - self._machine.high_watermark_bytes()
        return max(0, min(BRING_IN_MOST_BYTES, spare_bytes))

    # 5: quiet

    def _wait_until_quiet(self) -> None:
        machine = self._machine
        deadline_seconds = time.monotonic() + UNTIL_QUIET_SECONDS
        quiet_since, moved = time.monotonic(), machine.pages_moved()
        while time.monotonic() - quiet_since < QUIET_SECONDS:
            time.sleep(LOOK_SECONDS)
            busy = [area.device for area in self._areas if machine.requests_under_way(area.device)]
            now = machine.pages_moved()
            if busy or now != moved:
                quiet_since, moved = time.monotonic(), now
            if time.monotonic() > deadline_seconds:
                what = f"requests to {busy[0]} are under way" if busy else "the kernel swaps"
                raise SwapError(
                    f"{what} after {UNTIL_QUIET_SECONDS:.0f} s with all programs frozen that have something in swap, "
                    "so the machine cannot sleep: try again when it is less busy"
                )


def _memory_bytes(group: Path) -> int:
    try:
        return int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return 0


def run(what: str, report: Report, is_hibernation: bool = False) -> None:
    """`pre` or `post`. Raises `SwapError`."""
    root = control_groups.version_2()
    if what == "post" and not is_hibernation:  # with the swap off by now, too
        thaw(all_records(), root)
        return
    areas = find_areas(sysctls.holders())
    if is_hibernation:
        off = [area.off for area in areas]
        if what == "pre":
            taken_off.take_off(off, report)
        else:
            taken_off.turn_on(off)
        return
    areas = [area for area in areas if area.is_on]
    if not areas:
        report("no swap of zcache's is on: nothing to do")
        return
    if root is None:
        report(
            "warning: no cgroup v2 here, so programs with pages in swap cannot be frozen beforehand: a suspend may "
            "fail under load; pages are brought in as far as memory allows"
        )
    report(Sleep(areas, Machine(root)).pre())


def main() -> int:
    """`pre` or `post`: what systemd runs; by hand it is `zcache sleep`, which loads more."""
    arguments = sys.argv[1:]
    if arguments[:1] not in (["pre"], ["post"]) or arguments[1:] not in ([], ["--hibernate"]):
        print("usage: python -m zcache.swap.sleep pre|post [--hibernate]", file=sys.stderr)
        return 2
    return command(arguments[0], bool(arguments[1:]))


def command(moment: str, is_hibernation: bool = False) -> int:
    """Exit status: 0; 1 when the machine had better not sleep, and a line says why; 128+n a
    signal."""

    def report(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody to read it is no reason to stop half-way
            print(f"zcache sleep {moment}: {line}", flush=True)

    try:
        if os.geteuid() != 0:
            raise SwapError("only root can do this")
        swapoff.lock_memory()  # or we might be who waits for a page
        with Interruption():
            run(moment, report, is_hibernation)
    except (SwapError, OSError) as error:
        print(f"zcache sleep {moment}: error: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print(f"zcache sleep {moment}: {interrupted}: not finished", file=sys.stderr)
        return interrupted.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(start.run("zcache sleep", main))

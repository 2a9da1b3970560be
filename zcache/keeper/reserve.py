"""What the kernel keeps free below its min watermark, lent to a server that starts while there is
none.

When the server and its standby die at once, a new one has to start from the disk, in a machine
whose memory is full and cannot be swapped: a program has taken what the dead ones left before the
new one has begun. It waits for memory until the requests fail; seen, 700 MiB guest: 15.4 MiB free
of a min of 31.1, and the new server in the page allocator for ever. (Real-time tasks, as ours are,
are let down to half of the watermark or three quarters, as the kernel is new or old:
mm/page_alloc.c; other programs not below it. And as ours may not do I/O for memory, the kernel's
OOM killer is not asked: it wants `__GFP_FS`.)

So the watermark follows what is free, up when they have died and down as the new server takes of
it: whatever is free, no other program gets any. When that is used up, too, the OOM killer is asked:
a program is lost, or all that is swapped out. Afterwards the watermark comes back with what is
freed, for the server in its turn needs what is below it.

It follows the largest zone; what is free in others may go to others. The files are opened and read
once beforehand: after that they take hardly any memory.
"""

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Final, NamedTuple

from zcache.linux.kernel_page import KERNEL_PAGE_BYTES

PROC: Final = Path("/proc")
#: How far above what it was: some more than a server and its standby leave when they die.
LENT_KIB: Final = 64 << 10
#: The watermark does not go below this: nbd's own requests need memory of the kernel's to reach the
#: new server.
FLOOR_KIB: Final = 4 << 10
#: With no more than that left for so long, a program has to end.
OOM_SECONDS: Final = 5.0
#: As many, each time that there is no server: more would not help it.
MAX_PROGRAMS: Final = 8

#: The watermark is not shared out to these.
OTHER_ZONES: Final = ("HighMem", "Movable", "Device")


class _Zone(NamedTuple):
    line: re.Pattern[str]  # its free blocks, by their order
    managed: int  # pages that the kernel gives out
    protected: int  # pages of those that it keeps from whoever could use a higher zone, as programs can

    def free_kib(self, buddyinfo: str) -> int:
        """KiB that programs can have."""
        blocks = self.line.search(buddyinfo)
        counts = blocks[1].split() if blocks else []
        pages = sum(int(count) << order for order, count in enumerate(counts))
        return max(pages - self.protected, 0) * (KERNEL_PAGE_BYTES >> 10)


class Reserve:
    """`vm.min_free_kbytes` while it is lent. Without the rights to it, real time, or such a kernel,
    nothing is done."""

    def __init__(self, proc: Path = PROC) -> None:
        self._min_free = _open(proc / "sys/vm/min_free_kbytes", os.O_RDWR)
        self._buddyinfo = _open(proc / "buddyinfo", os.O_RDONLY)
        self._sysrq = _open(proc / "sysrq-trigger", os.O_WRONLY)
        self.zones = _zones(proc / "zoneinfo")
        self._can_lend = None not in (self._min_free, self._buddyinfo) and bool(self.zones) and _is_real_time()
        self._usual_kib = 0  # what the watermark is otherwise
        self._lowered_kib = 0  # that it was less at the last look
        self.is_lent = False
        self._lent_seconds = self._enough_seconds = 0.0  # the last look, and the last one with more than the least
        self._programs = 0  # that were ended
        if self._can_lend:
            self.remember()
            self._free_kib()

    def remember(self) -> None:
        """That the watermark is as it should be now."""
        if self._can_lend:
            self._usual_kib = self._now_kib()

    def lend(self, is_all: bool) -> None:
        """Again and again, while no server serves: whatever is free if there is `is_all` of one to
        start, and else what is below the watermark already."""
        if not self._can_lend:
            return
        now = time.monotonic()
        if not self.is_lent:
            self.is_lent = True
            self._programs = 0
        free_kib = self._follow(self._usual_kib + (LENT_KIB if is_all else 0))
        if free_kib > FLOOR_KIB or not is_all or now - self._lent_seconds > OOM_SECONDS:
            self._enough_seconds = now
        self._lent_seconds = now

    def is_used_up(self) -> bool:
        """Whether nothing has been left for a while, and a program can be ended for it."""
        is_short = self.is_lent and time.monotonic() - self._enough_seconds > OOM_SECONDS
        return is_short and self._sysrq is not None and self._programs < MAX_PROGRAMS

    def kill_a_program(self) -> None:
        """The one that the kernel's OOM killer chooses (sysrq's `f`)."""
        assert self._sysrq is not None
        self._programs += 1
        self._enough_seconds = time.monotonic()
        os.write(self._sysrq, b"f")

    def take_back(self) -> None:
        """Again and again, when a server serves: as much as is free by now, until it is what it
        was."""
        if self.is_lent:
            self._follow(self._usual_kib)
            self.is_lent = self._now_kib() != self._usual_kib

    def raise_again(self) -> int:
        """If it is not lent, and was lowered since it was remembered: as it was, in KiB; else 0.

        Lowered to the same at two looks: the keeper of another area whose server has died moves it
        all the time.
        """
        if not self._can_lend or self.is_lent:
            return 0
        before, self._lowered_kib = self._lowered_kib, 0
        now = self._now_kib()
        if now >= self._usual_kib:
            return 0
        if now != before:
            self._lowered_kib = now
            return 0
        self.write(self._usual_kib)
        return self._usual_kib

    def put_back(self) -> None:
        """At once: there is no swap any more."""
        if self.is_lent:
            self.write(self._usual_kib)
            self.is_lent = False

    def _follow(self, most_kib: int) -> int:
        """KiB that are free, in all zones."""
        free_kib = self._free_kib()
        # The watermark is shared out among the zones by their size.
        share = self.zones[0].managed / sum(zone.managed for zone in self.zones)
        wanted_kib = max(min(int(free_kib[0] / share), most_kib), min(FLOOR_KIB, self._usual_kib))
        if wanted_kib != self._now_kib():
            self.write(wanted_kib)
        return sum(free_kib)

    def _free_kib(self) -> list[int]:
        """Of each zone."""
        assert self._buddyinfo is not None
        buddyinfo = os.pread(self._buddyinfo, 4096, 0).decode()
        return [zone.free_kib(buddyinfo) for zone in self.zones]

    def _now_kib(self) -> int:
        assert self._min_free is not None
        return int(os.pread(self._min_free, 32, 0))

    def write(self, kib: int) -> None:
        assert self._min_free is not None
        os.pwrite(self._min_free, str(kib).encode(), 0)


def _open(path: Path, flags: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.open(path, flags | os.O_CLOEXEC)
    return None


def _is_real_time() -> bool:
    """Or the watermark would keep the server out like everybody else."""
    return os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO)


def _zones(zoneinfo: Path) -> list[_Zone]:
    """The largest first."""
    with contextlib.suppress(OSError):
        found = re.findall(
            r"^(Node \d+, zone +(\w+))$.*?^ +managed +(\d+)$.*?^ +protection: \(([\d, ]*)\)$",
            zoneinfo.read_text(),
            re.MULTILINE | re.DOTALL,
        )
        zones = [
            _Zone(
                re.compile(rf"^{heading}\s+(.*)$", re.MULTILINE),
                int(managed),
                max(int(pages) for pages in protection.split(",")),
            )
            for heading, name, managed, protection in found
            if name not in OTHER_ZONES and int(managed)
        ]
        return sorted(zones, key=lambda zone: -zone.managed)
    return []

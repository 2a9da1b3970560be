"""What the kernel keeps below its min watermark, lent to a server that starts while there is none.

When the server and its standby die at once, a new one has to start from the disk, in a machine whose memory is full and
cannot be swapped: a program has taken what the dead ones left before the new one has begun. It waits for memory until
the requests fail; seen, 700 MiB guest: 15.4 MiB free of a min of 31.1, and the new server in the page allocator for
ever. (Real-time tasks are let down to half of the watermark, ALLOC_MIN_RESERVE in mm/page_alloc.c; nobody else below
it. And as ours may not wait for swap, the kernel's OOM killer is not asked: it wants `__GFP_FS`.)

So the watermark follows what is free, up when they have died and down as the new server takes of it: whatever is free,
nobody else gets any. When that is used up, too, the OOM killer is asked: a program is lost, or all that is swapped out.
Afterwards the watermark comes back with what is freed, for the server in its turn needs what is below it.

The largest zone is what the watermark follows. The files are opened beforehand, and small: to read and write them takes
no memory.
"""

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
#: How far above what it was: some more than a server and its standby leave when they die.
LENT_KIB: Final = 64 << 10
#: The watermark does not go below this: nbd's own requests need memory of the kernel's to reach the new server.
FLOOR_KIB: Final = 4 << 10
#: With no more than that left for so long, a program has to end.
OOM_SECONDS: Final = 5.0


@dataclass(frozen=True)
class _Zone:
    heading: str
    managed: int  # pages that the kernel gives out
    protected: int  # pages of those that it keeps from whoever could use a higher zone, as programs can

    def free_kib(self, buddyinfo: str) -> int:
        """KiB that programs can have."""
        blocks = re.search(rf"^{self.heading}\s+(.*)$", buddyinfo, re.MULTILINE)
        counts = blocks[1].split() if blocks else []
        pages = sum(int(count) << order for order, count in enumerate(counts))
        return max(pages - self.protected, 0) * (os.sysconf("SC_PAGE_SIZE") >> 10)


class Reserve:
    """`vm.min_free_kbytes` while it is lent. Without the rights to it, or on another kernel, nothing is done."""

    def __init__(self, proc: Path = PROC) -> None:
        self._min_free = _open(proc / "sys/vm/min_free_kbytes", os.O_RDWR)
        self._buddyinfo = _open(proc / "buddyinfo", os.O_RDONLY)
        self._sysrq = _open(proc / "sysrq-trigger", os.O_WRONLY)
        self._zones = _zones(proc / "zoneinfo")
        self._largest = max(self._zones, key=lambda zone: zone.managed, default=None)
        self._usual_kib = 0  # none is lent
        self._enough_seconds = 0.0  # when there was more than the least, last

    def lend(self, is_all: bool) -> None:
        """Again and again, while no server serves: whatever is free if there is `is_all` of one to start, and else what
        is below the watermark already."""
        if self._min_free is None or self._buddyinfo is None or self._largest is None:
            return
        if not self._usual_kib:
            self._usual_kib = self._now_kib()
            self._enough_seconds = time.monotonic()
        free_kib = self._follow(self._usual_kib + (LENT_KIB if is_all else 0))
        if free_kib > FLOOR_KIB or not is_all:
            self._enough_seconds = time.monotonic()

    def is_used_up(self) -> bool:
        """Whether nothing has been left for a while."""
        return bool(self._usual_kib) and time.monotonic() - self._enough_seconds > OOM_SECONDS

    def kill_a_program(self) -> None:
        """The one that the kernel's OOM killer chooses (sysrq's `f`)."""
        self._enough_seconds = time.monotonic()
        if self._sysrq is not None:
            os.write(self._sysrq, b"f")

    def take_back(self) -> None:
        """Again and again, when a server serves: as much as is free by now, until it is what it was."""
        if self._usual_kib:
            self._follow(self._usual_kib)
            if self._now_kib() == self._usual_kib:
                self._usual_kib = 0

    def put_back(self) -> None:
        """At once: there will be no server."""
        if self._usual_kib:
            self._write(self._usual_kib)
            self._usual_kib = 0

    def _follow(self, most_kib: int) -> int:
        """KiB that are free, in all zones."""
        assert self._buddyinfo is not None and self._largest is not None
        buddyinfo = os.pread(self._buddyinfo, 4096, 0).decode()
        free_kib = {zone: zone.free_kib(buddyinfo) for zone in self._zones}
        # The watermark is shared out among the zones by their size.
        share = self._largest.managed / sum(zone.managed for zone in self._zones)
        wanted_kib = min(int(free_kib[self._largest] / share), most_kib)
        wanted_kib = max(wanted_kib, min(FLOOR_KIB, self._usual_kib))
        if wanted_kib != self._now_kib():
            self._write(wanted_kib)
        return sum(free_kib.values())

    def _now_kib(self) -> int:
        assert self._min_free is not None
        return int(os.pread(self._min_free, 32, 0))

    def _write(self, kib: int) -> None:
        assert self._min_free is not None
        os.pwrite(self._min_free, str(kib).encode(), 0)


def _open(path: Path, flags: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.open(path, flags | os.O_CLOEXEC)
    return None


def _zones(zoneinfo: Path) -> list[_Zone]:
    with contextlib.suppress(OSError):
        found = re.findall(
            r"^(Node \d+, zone +\w+)$.*?^ +managed +(\d+)$.*?^ +protection: \(([\d, ]*)\)$",
            zoneinfo.read_text(),
            re.MULTILINE | re.DOTALL,
        )
        return [
            _Zone(heading, int(managed), max(int(pages) for pages in protection.split(",")))
            for heading, managed, protection in found
            if int(managed)
        ]
    return []

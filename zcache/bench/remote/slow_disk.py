"""A tier behind a disk of so many operations a second, each of which takes its time: a slower disk
than this machine's, injected over it.

Operations begin in the order in which they are asked for, one every 1/N s; a read is over no sooner
than its own time after it began, however many others are under way. That is how cloud volumes are
sold. What such a volume allows is not used up (a burst): each second is like the one before. A
request counts as one operation for each 256 KiB, as there; its limit on bytes a second is left out,
which is in the disk's favour, and so is that writes take no time of their own.

Locking: `_lock` for when the next operation may begin; the disk's own time, and the waiting, are
outside. A wait is precise to some microseconds: its end is spun, which is CPU time of ours.
"""

import threading
import time
from collections.abc import Sequence
from typing import Final

from zcache.linux.libc import LIBC
from zcache.tiers import Tier

#: What a request may have for one operation.
OPERATION_BYTES: Final = 256 << 10
#: The end of a wait, which is spun: Linux oversleeps by 50 us, and a virtual machine by as much
#: again.
_SPUN_SECONDS: Final = 0.0002


class SlowDisk:
    """A `Tier` over another one, which is no faster than that."""

    def __init__(self, tier: Tier, operations_per_second: float, read_seconds: float) -> None:
        self.slot_count = tier.slot_count
        self.is_prompt = tier.is_prompt
        self._tier = tier
        self._interval_seconds = 1 / operations_per_second
        self._read_seconds = read_seconds
        self._lock = threading.Lock()
        self._next = 0.0  # when the next operation may begin

    @property
    def used_slots(self) -> int:
        return self._tier.used_slots

    @property
    def free_slots(self) -> int:
        return self._tier.free_slots

    def reserve(self, count: int) -> tuple[int, int]:
        return self._tier.reserve(count)

    def take_over(self, slot: int) -> None:
        self._tier.take_over(slot)

    def release(self, slot: int) -> None:
        self._tier.release(slot)

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """When it is their turn."""
        begins = self._turn(sum(map(len, frames)))
        self._tier.write(first_slot, frames)
        wait_until(begins)

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """When it is their turn, and no faster than such a disk."""
        begins = self._turn(sum(map(len, frames)))
        self._tier.read(first_slot, frames)
        wait_until(begins + self._read_seconds)

    def fault_ahead(self) -> None:
        self._tier.fault_ahead()

    def used_map(self) -> memoryview:
        return self._tier.used_map()

    def close(self) -> None:
        self._tier.close()

    def _turn(self, size_bytes: int) -> float:
        """When the last operation of a request begins."""
        operations = max(-(-size_bytes // OPERATION_BYTES), 1)
        with self._lock:
            begins = max(self._next, time.monotonic())
            self._next = begins + operations * self._interval_seconds
        return begins + (operations - 1) * self._interval_seconds


def wait_until(due: float) -> None:
    """`due` is a `time.monotonic()`; one that is past is not waited for."""
    left = due - time.monotonic()
    if left > _SPUN_SECONDS:
        time.sleep(left - _SPUN_SECONDS)
    while time.monotonic() < due:
        LIBC.sched_yield()  # without the interpreter's lock; sleep(0) takes 50 us

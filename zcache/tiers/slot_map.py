"""Which slots of a tier are in use: one byte each, handed out next-fit in runs.

A run of free slots is what makes writeback one large sequential write, so `reserve` looks for a
whole run first, then for half of it, and so on down to a single slot. It looks from where the last
run ended, a window at a time, and begins with twice the length that was found last time: in a
fragmented map a call costs a few scans of a window, not of the map. `mmap.find` does the looking in
C, as fast as that of a bytearray, which would be touched, and so locked, whole. Cost: a byte for
each slot up to some way beyond the highest that was used.
"""

from collections.abc import Callable, Sequence
from typing import Final

from zcache.errors import Imbalance
from zcache.linux import memory
from zcache.linux.kernel_page import page_start
from zcache.linux.memory import anonymous_memory

#: Slots looked at before shorter runs are tried: 1 GiB of zbud frames; a scan takes some 50 us.
WINDOW_SLOTS: Final = 1 << 18


class SlotMap:
    """Slots 1 to `slot_count`; the caller holds the store's lock."""

    #: See `Tier`.
    is_prompt = True

    def __init__(self, slot_count: int) -> None:
        self.slot_count = slot_count
        self.used_slots = 0
        self._used = anonymous_memory(slot_count + 1)
        self._used[0] = 1
        self.next_slot = 1
        self._last_run = slot_count
        self._populated = 0

    @property
    def free_slots(self) -> int:
        """How many can be reserved now."""
        return self.slot_count - self.used_slots

    def reserve(self, count: int) -> tuple[int, int]:
        """Up to `count` consecutive free slots: the first, and how many (0 when none is free)."""
        if self.used_slots == self.slot_count:
            return 0, 0
        longest = min(count, 2 * self._last_run)
        start = self.next_slot
        for _ in range(self.slot_count // WINDOW_SLOTS + 2):
            count = longest
            while count:
                first = self._used.find(bytes(count), start, start + WINDOW_SLOTS)
                if first > 0:
                    self._used[first : first + count] = b"\1" * count
                    self.used_slots += count
                    self.next_slot = first + count
                    self._last_run = count
                    return first, count
                count //= 2
            start = start + WINDOW_SLOTS if start + WINDOW_SLOTS <= self.slot_count else 1
        raise AssertionError("free slots are counted, and none is found")

    def take_over(self, slot: int) -> None:
        """See `Tier.take_over`."""
        if slot > self.slot_count or self._used[slot]:
            raise Imbalance(f"a frame is in slot {slot} below, which is another's or is not there")
        self._used[slot] = 1
        self.used_slots += 1

    def release(self, slot: int) -> None:
        """Make one slot free again."""
        assert self._used[slot] and slot, f"slot {slot} is not in use"
        self._used[slot] = 0
        self.used_slots -= 1

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """See `Tier.read`."""
        raise NotImplementedError

    def read_again(self, slot: int, frame: memoryview, is_right: Callable[[], bool]) -> None:
        """See `Tier.read_again`: there is one copy."""
        self.read(slot, [frame])
        is_right()

    def fault_ahead(self) -> None:
        """Keep the map populated a window beyond what is in use. Not for the I/O path: it may wait
        for memory.

        Raises `OSError` when there is none, or on a kernel that cannot.
        """
        end = min(self.next_slot + 2 * WINDOW_SLOTS, self.slot_count + 1)
        if end > self._populated:
            with memoryview(self._used) as used, used[page_start(self._populated) : end] as part:
                memory.populate(part)
            self._populated = end

    def used_map(self) -> memoryview:
        """A byte for each slot, from 0 on: 1 if it is reserved."""
        return memoryview(self._used)

"""The memory of the RAM slots: one stretch of it, of which some may be absent, given back to the
system.

What is there is populated as a whole at the start, so that no put and no fetch ever asks the system
for memory. What is absent is a hole: it costs nothing, and is populated before it is used again.

A slot can be smaller than a page of the kernel's (zbud's, where that is not 4 KiB). The kernel
gives and takes whole pages, so a page becomes a hole when the last slot in it is absent, and is
populated when the first one is not.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from zcache.image.flat_array import sparse_section
from zcache.image.image import Section
from zcache.linux import meminfo, memory
from zcache.linux.kernel_page import KERNEL_PAGE_BYTES, page_end, page_start
from zcache.linux.memory import anonymous_memory

#: RAM that is populated between two signs of life: some 10 ms.
POPULATED_RUN_BYTES: Final = 64 << 20


class Ram:
    """`slot_count` slots of `frame_bytes`; of an image, if its section is given. One thread gives
    back and gets back."""

    def __init__(
        self, slot_count: int, frame_bytes: int, section: Section | None, page_bytes: int = KERNEL_PAGE_BYTES
    ) -> None:
        if section is None and meminfo.is_overcommit_strict():
            section = sparse_section(slot_count * frame_bytes)
        self.memory: mmap.mmap = section.memory if section else anonymous_memory(slot_count * frame_bytes)
        self.view = memoryview(self.memory)
        self._section = section
        self._page_bytes = section.page_bytes if section else page_bytes
        self._slot_count = slot_count
        self._frame_bytes = frame_bytes
        self._absent = bytearray(slot_count)  # by slot

    def mark(self, slots: Iterable[int], is_absent: bool) -> None:
        """Under the store's lock: slots leave the budget, or are in it again."""
        for slot in slots:
            self._absent[slot] = is_absent

    def give_back(self, slots: Iterable[int]) -> None:
        """Without the lock: the memory of a few absent slots goes to the system, in pages that hold
        no others. Raises `OSError` where that cannot be (locked memory before Linux 5.18)."""
        for start, stop in self._spans(sorted(slots)):
            self._discard(start, stop)

    def give_back_absent(self) -> None:
        """The same for all of them; what is a hole already stays one."""
        for start, stop in self._runs(is_absent=True):
            self._discard(start, stop)

    def get_back(self, slots: Iterable[int]) -> None:
        """Without the lock: a few absent slots have memory again. May wait for it; raises `OSError`
        if there is none.

        The memory of an image is allocated before it is mapped: whoever waits for it does not hold
        up the address space, and with that all threads that fault or map something.
        """
        for start, stop in self._spans(sorted(slots)):
            start = page_start(start, self._page_bytes)
            if self._section:
                self._section.allocate(start, stop)
            memory.populate(self.view[start:stop])

    def _discard(self, start: int, stop: int) -> None:
        """Of the pages that hold absent slots, from byte `start` to `stop`, those that hold no
        others."""
        first, last = page_start(start, self._page_bytes), page_end(stop, self._page_bytes)
        if not self._are_absent(first, start):
            first = page_end(start, self._page_bytes)
        if not self._are_absent(stop, last):
            last = page_start(stop, self._page_bytes)
        if first >= last:
            return
        if self._section:
            self._section.discard(first, min(last, len(self.view)))
        else:
            memory.discard(self.view[first:last])

    def _are_absent(self, start: int, stop: int) -> bool:
        """Whether the slots are, or none are there."""
        return self._absent.find(False, start // self._frame_bytes, stop // self._frame_bytes) < 0

    def populate(self, beat: Callable[[], None]) -> None:
        """Fault in all that is not absent; raises `OSError` when there is not that much memory.
        `beat` is called on the way."""
        for start, stop in self._runs(is_absent=False):
            for part in range(page_start(start, self._page_bytes), stop, POPULATED_RUN_BYTES):
                memory.populate(self.view[part : min(part + POPULATED_RUN_BYTES, stop)])
                beat()

    def is_populated(self) -> bool:
        """Whether all that is not absent is in memory, asked of the kernel."""
        runs = self._runs(is_absent=False)
        starts = ((page_start(start, self._page_bytes), stop) for start, stop in runs)
        return all(memory.resident_share(self.view[start:stop]) == 1.0 for start, stop in starts)

    def slots_with_memory(self) -> bytearray:
        """Taking over: a byte for each slot, 1 if a predecessor has left all of it memory."""
        if not self._section:
            return bytearray(b"\1" * self._slot_count)
        has_memory = bytearray(self._slot_count)
        for start, stop in self._section.touched():
            first, last = -(-start // self._frame_bytes), stop // self._frame_bytes
            has_memory[first:last] = b"\1" * (last - first)
        return has_memory

    def held_bytes(self) -> int:
        """What of an image's slots has memory."""
        return sum(stop - start for start, stop in self._section.touched()) if self._section else len(self.view)

    def _runs(self, *, is_absent: bool) -> Iterator[tuple[int, int]]:
        """Of slots that are absent, or are not, as bytes."""
        start = self._absent.find(is_absent)
        while start >= 0:
            stop = self._absent.find(not is_absent, start)
            stop = self._slot_count if stop < 0 else stop
            yield start * self._frame_bytes, stop * self._frame_bytes
            start = self._absent.find(is_absent, stop)

    def _spans(self, slots: list[int]) -> Iterator[tuple[int, int]]:
        """Ascending slots as runs of bytes."""
        size = self._frame_bytes
        for position, slot in enumerate(slots):
            if not position or slot != slots[position - 1] + 1:
                start = slot
            if position + 1 == len(slots) or slots[position + 1] != slot + 1:
                yield start * size, (slot + 1) * size

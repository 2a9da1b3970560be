"""Flat arrays in memory of their own: what the page table and the frame table are made of.

A `FlatArray` is zero until it is written and costs no memory where it was never touched: a page
table for a huge device is mostly address space. That is at odds with the rule that the I/O path
asks the system for nothing, so the memory is *faulted ahead*: off the I/O path, what is in use and
some way beyond it is populated.

Cost: one `mmap` for each array, never resized, never given back. An array is private to the process
unless it is made over memory of an image (`zcache.image.image`), which outlives it.
"""

import os
from collections.abc import Iterator
from typing import Final, Literal

from zcache.image.image import Section
from zcache.linux import memory
from zcache.linux.kernel_page import page_start
from zcache.linux.memory import anonymous_memory

#: Bytes that are looked at, as a copy, at a time.
COUNTED_RUN_BYTES: Final = 1 << 16

Typecode = Literal["B", "H", "I", "Q"]
_ITEM_BYTES: Final[dict[Typecode, int]] = {"B": 1, "H": 2, "I": 4, "Q": 8}


def sparse_section(size_bytes: int) -> Section:
    """Memory of a file of its own, as an image is: the kernel promises it page by page, whatever
    its rules are. It has to be allocated before it is touched, or there may be none then
    (SIGBUS)."""
    descriptor = os.memfd_create("zcache-sparse", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size_bytes)
    return Section(descriptor, 0, size_bytes)


def count_bytes(view: memoryview, value: int) -> int:
    """How many bytes of `view` are `value`; without a copy of the whole, which would be a demand
    for memory."""
    starts = range(0, len(view), COUNTED_RUN_BYTES)
    return sum(bytes(view[start : start + COUNTED_RUN_BYTES]).count(value) for start in starts)


class FlatArray:
    """`count` unsigned items of `typecode` (B, H, I or Q), all zero at first; read and written
    through `view`.

    Over a section of an image, if one is given: they are then what that holds.
    """

    def __init__(self, typecode: Typecode, count: int, section: Section | None = None) -> None:
        self.count = count
        self.item_bytes = _ITEM_BYTES[typecode]
        self._section = section
        self._memory = section.memory if section else anonymous_memory(max(count * self.item_bytes, 1))
        self.view = memoryview(self._memory)[: count * self.item_bytes].cast(typecode)
        self._populated = 0

    def populate(self, start: int, stop: int) -> None:
        """Fault in items `start` to `stop` (exclusive). Not for the I/O path; safe beside it."""
        first = page_start(start * self.item_bytes)
        last = min(stop * self.item_bytes, len(self._memory))
        if last > first:
            with memoryview(self._memory) as items, items[first:last] as part:
                memory.populate(part)

    def touched(self) -> Iterator[tuple[int, int]]:
        """The parts of an array over an image that were ever written, as item numbers; all the rest
        is zero."""
        assert self._section
        for start, stop in self._section.touched():
            yield start // self.item_bytes, min(stop // self.item_bytes, self.count)

    def fault_ahead(self, stop: int) -> None:
        """Fault in all items before `stop` that were not yet."""
        if stop > self._populated:
            self.populate(self._populated, stop)
            self._populated = stop

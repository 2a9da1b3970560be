"""The page table: one 64-bit entry for each page of an object, flat. It is the only truth: what it
does not name does not exist.

Beside the entries there is one byte for each block of 512 entries (4 KiB of the table) that says
whether any of them was ever written: scans of a huge and mostly empty device skip whole blocks by
`bytearray.find`, and do not touch their memory.
"""

import sys
import threading
from array import array
from collections.abc import Iterator
from typing import Final

from zcache.image.flat_array import FlatArray
from zcache.image.image import Section
from zcache.image.whole_words import WHOLE_WORDS, fill
from zcache.pages.entry import EMPTY, LOST, SAME_FILLED

BLOCK_SHIFT: Final = 9
BLOCK_ENTRIES: Final = 1 << BLOCK_SHIFT

#: A request is worked on in runs of at most this many pages (256 KiB): bounds the memory and the
#: time under the lock that one request can take, whatever its size. The kernel's swap client sends
#: at most 32 pages.
MAX_RUN_PAGES: Final = 64

#: The table is populated by stretches of 1 GiB of device (2 MiB of entries): each that was touched,
#: and the next one.
STRETCH_BLOCKS: Final = 1 << 9
STRETCH_ENTRIES: Final = STRETCH_BLOCKS * BLOCK_ENTRIES
POPULATED: Final = 1
WANTED: Final = 2

LOST_RUN: Final = memoryview(array("Q", [LOST]) * MAX_RUN_PAGES)
EMPTY_RUN: Final = memoryview(array("Q", [EMPTY]) * WHOLE_WORDS)

assert sys.byteorder == "little" and array("Q").itemsize == 8 and MAX_RUN_PAGES <= WHOLE_WORDS


class PageTable:
    """`page_count` entries; the caller holds the store's lock except for `extents` and
    `fault_ahead`."""

    def __init__(self, page_count: int, section: Section | None = None) -> None:
        self._array = FlatArray("Q", page_count, section)
        self.entries = self._array.view
        self.touched = bytearray((page_count + BLOCK_ENTRIES - 1) >> BLOCK_SHIFT)
        self._populated = bytearray(len(self.touched) // STRETCH_BLOCKS + 1)  # by stretch: no, yes, wanted

    def touch(self, first: int, last: int) -> None:
        """Note that entries `first` to `last` (inclusive) are about to be written."""
        touched = self.touched
        for block in range(first >> BLOCK_SHIFT, (last >> BLOCK_SHIFT) + 1):
            touched[block] = 1

    def touched_runs(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of `first` to `stop` (exclusive) in touched blocks, each at most a block: all
        else is EMPTY."""
        block = first >> BLOCK_SHIFT
        last_block = (stop - 1) >> BLOCK_SHIFT
        while (block := self.touched.find(1, block, last_block + 1)) >= 0:
            yield max(first, block << BLOCK_SHIFT), min(stop, (block + 1) << BLOCK_SHIFT)
            block += 1

    def take_over(self) -> Iterator[list[int]]:
        """The entries of each block that a predecessor wrote to. Notes them as touched."""
        for start, stop in self._array.touched():
            for first in range(start, stop, BLOCK_ENTRIES):
                entries = self.entries[first : min(first + BLOCK_ENTRIES, stop)].tolist()
                if any(entries):
                    self.touched[first >> BLOCK_SHIFT] = 1
                    yield entries

    def extents(self, first: int, count: int, lock: threading.Lock) -> Iterator[tuple[int, int, bool]]:
        """Runs of pages from `first` as (first, count, reads as zeros), merged, in order, without
        gaps.

        The caller does not hold `lock`: it is taken for a block at a time.
        """
        run_start, run_zero = first, True
        position, end = first, first + count
        for start, stop in self.touched_runs(first, end):
            if start > position and not run_zero:
                yield run_start, position - run_start, False
                run_start, run_zero = position, True
            with lock:
                entries = self.entries[start:stop].tolist()
            for index, entry in enumerate(entries, start):
                zero = not entry or entry == SAME_FILLED
                if zero != run_zero:
                    if index > run_start:
                        yield run_start, index - run_start, run_zero
                    run_start, run_zero = index, zero
            position = stop
        if position < end and not run_zero:
            yield run_start, position - run_start, False
            run_start, run_zero = position, True
        if end > run_start:
            yield run_start, end - run_start, run_zero

    def clear_block(self, first: int, stop: int) -> None:
        """Make a run of entries EMPTY; if it is a whole block, its memory need not be looked at
        again."""
        for start in range(first, stop, WHOLE_WORDS):
            fill(self.entries, start, min(start + WHOLE_WORDS, stop), EMPTY_RUN)
        if stop - first == BLOCK_ENTRIES:
            self.touched[first >> BLOCK_SHIFT] = 0

    def fault_ahead(self) -> None:
        """Keep the table populated where it is in use and just beyond. Not for the I/O path."""
        for stretch in range(len(self._populated)):
            first = stretch * STRETCH_BLOCKS
            is_wanted = not stretch or self._populated[stretch] == WANTED
            if is_wanted or self.touched.find(1, first, first + STRETCH_BLOCKS) >= 0:
                self._populate(stretch)
                self._populate(stretch + 1)

    def _populate(self, stretch: int) -> None:
        if stretch < len(self._populated) and self._populated[stretch] != POPULATED:
            self._array.populate(stretch * STRETCH_ENTRIES, (stretch + 1) * STRETCH_ENTRIES)
            self._populated[stretch] = POPULATED

    def is_populated(self, first: int, stop: int) -> bool:
        """Whether entries `first` to `stop` (exclusive; at most 1 GiB of device) can be read and
        written without a page fault. If not, they soon can: `fault_ahead` is told."""
        populated = self._populated
        is_there = True
        for stretch in {first // STRETCH_ENTRIES, (stop - 1) // STRETCH_ENTRIES}:
            if populated[stretch] != POPULATED:
                populated[stretch] = WANTED
                is_there = False
        return is_there

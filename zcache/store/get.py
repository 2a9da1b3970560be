"""Get: from entries to pages.

A get copies its zpages out of their frames under the lock, once, and decompresses them without it;
what is below only is fetched in between, also without it.
"""

from collections.abc import Sequence

from lz4.block import decompress as lz4_decompress

from zcache.books import Books
from zcache.errors import PageDamaged
from zcache.fetch.fetch import Fetcher
from zcache.pageframes import PageFrames
from zcache.pages.entry import (
    FRAME_MASK,
    LENGTH_MASK,
    LENGTH_SHIFT,
    LOST,
    OFFSET_MASK,
    OFFSET_SHIFT,
    PAGE_BYTES,
    PAGE_SHIFT,
    SAME_FILLED,
)
from zcache.pages.page_table import MAX_RUN_PAGES
from zcache.pages.tmem import TmemObject
from zcache.pages.zpages import END_LZ4, FIRST_LZ4, decode, decode_lz4
from zcache.store.waiting import Waiting


class Getter:
    """The gets of a store, by any number of threads, without its lock; `Store.get` says which is
    for what."""

    def __init__(
        self,
        frames: PageFrames,
        fetcher: Fetcher | None,
        waiting: Waiting,
        books: Books,
    ) -> None:
        self._frames = frames
        self._fetcher = fetcher
        self._waiting = waiting
        self._lock, self._statistics = books.lock, books.statistics

    def get_page(self, thing: TmemObject, first: int, out: memoryview) -> bool:
        """Fast path: one page, if it is an lz4 zpage in RAM. False: nothing has been done."""
        frames = self._frames
        lock = self._lock
        lock.acquire()
        try:
            entry = thing.table.entries[first]
            if not FIRST_LZ4 <= entry < END_LZ4:
                return False
            slot = frames.home[entry & FRAME_MASK]
            if not slot:
                return False
            start = (slot << frames.frame_shift) + (entry >> OFFSET_SHIFT & OFFSET_MASK)
            body = frames.ram[start : start + (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1]
            frames.referenced[slot] = 1
            self._statistics.gets += 1
        finally:
            lock.release()
        try:
            out[:] = lz4_decompress(body, PAGE_BYTES)
        except Exception:  # the slow path will say it
            with lock:
                self._statistics.gets -= 1
            return False
        return True

    def get_run(self, thing: TmemObject, first: int, out: memoryview) -> Sequence[int]:
        """One run; which of its pages are misses. Pages that are lost only while their put waits
        for room are waited for."""
        while (misses := self._try_get_run(thing, first, out)) is None:
            self._waiting.wait_for_lost(thing, first, len(out) >> PAGE_SHIFT)
        return misses

    def get_runs(self, thing: TmemObject, first: int, out: memoryview) -> int:
        """A request that is longer than a run; how many of its pages are misses."""
        misses = 0
        for start in range(0, len(out), MAX_RUN_PAGES * PAGE_BYTES):
            run = out[start : start + MAX_RUN_PAGES * PAGE_BYTES]
            misses += len(self.get_run(thing, first + (start >> PAGE_SHIFT), run))
        return misses

    def find(self, thing: TmemObject, first: int, out: memoryview) -> list[int]:
        """Fill `out` with pages `first` and following of an ephemeral pool; returns which of them
        are misses, ascending: they read as zeros, and are to be had elsewhere."""
        missing: list[int] = []
        if len(out) == PAGE_BYTES and self.get_page(thing, first, out):
            with self._lock:
                self._statistics.ephemeral_gets += 1
            return missing
        for start in range(0, len(out), MAX_RUN_PAGES * PAGE_BYTES):
            run = out[start : start + MAX_RUN_PAGES * PAGE_BYTES]
            page = first + (start >> PAGE_SHIFT)
            missing += [page + index for index in self.get_run(thing, page, run)]
        with self._lock:
            self._statistics.ephemeral_gets += len(out) >> PAGE_SHIFT
            self._statistics.ephemeral_misses += len(missing)
        return missing

    def _try_get_run(self, thing: TmemObject, first: int, out: memoryview) -> Sequence[int] | None:
        """One run; None, and `out` undefined, if a page in it is lost."""
        frames = self._frames
        count = len(out) >> PAGE_SHIFT
        bodies: list[bytes] = []
        misses: Sequence[int] = ()
        self._lock.acquire()
        try:
            self._statistics.gets += count
            entries = thing.table.entries[first : first + count].tolist()
            if min(entries) >= FIRST_LZ4 and max(entries) < END_LZ4:
                home = frames.home
                slots = [home[entry & FRAME_MASK] for entry in entries]
                if all(slots):  # fast path: all are lz4 zpages in RAM
                    ram, referenced, frame_shift = frames.ram, frames.referenced, frames.frame_shift
                    bodies = [
                        ram[
                            (start := (slot << frame_shift) + (entry >> OFFSET_SHIFT & OFFSET_MASK)) : start
                            + (entry >> LENGTH_SHIFT & LENGTH_MASK)
                            + 1
                        ]
                        for slot, entry in zip(slots, entries, strict=False)
                    ]
                    for slot in set(slots):
                        referenced[slot] = 1
            is_fast = len(bodies) > 0
            if not is_fast:
                cold, bodies = self._collect(entries)
                if 0 in entries:
                    misses = [index for index, entry in enumerate(entries) if not entry]
                    self._statistics.get_misses += len(misses)
        finally:
            self._lock.release()
        if not is_fast:
            if max(entries) >= LOST:
                return None
            if cold:
                assert self._fetcher
                self._fetcher.fetch(thing.table.entries, first, cold, entries, bodies)
                if max(entries) >= LOST:
                    return None
        try:
            if is_fast:
                decode_lz4(bodies, out)
            else:
                decode(entries, bodies, out)
        except PageDamaged:
            with self._lock:
                self._statistics.decode_errors += 1
            raise
        return misses

    def _collect(self, entries: list[int]) -> tuple[list[int], list[bytes]]:
        """Under the lock: which of the zpages are in no frame in RAM; and the bytes of all, empty
        where there are none, or not yet."""
        frames = self._frames
        ram, home, referenced, frame_shift = frames.ram, frames.home, frames.referenced, frames.frame_shift
        offset_shift, offset_mask, length_shift, length_mask = OFFSET_SHIFT, OFFSET_MASK, LENGTH_SHIFT, LENGTH_MASK
        cold: list[int] = []
        bodies: list[bytes] = []
        for entry in entries:
            if 0 < entry < SAME_FILLED:
                slot = home[entry & FRAME_MASK]
                if slot:
                    start = (slot << frame_shift) + (entry >> offset_shift & offset_mask)
                    bodies.append(ram[start : start + (entry >> length_shift & length_mask) + 1])
                    referenced[slot] = 1
                    continue
                cold.append(len(bodies))
            bodies.append(b"")
        return cold, bodies

"""Invalidation: what becomes of pages whose entries go, because they were flushed or overwritten,
or because their put has failed.

Under one hold of the store's lock, an entry is taken out of its table and what it named is
released: so nobody finds an entry whose zpage is gone, and no zpage stays that no entry names.
"""

from zcache.allocators import Allocator
from zcache.books import Books
from zcache.pages.entry import EMPTY, LENGTH_MASK, LENGTH_SHIFT, LOST, SAME_FILLED, zpage_bytes
from zcache.pages.page_table import BLOCK_SHIFT
from zcache.pages.tmem import Kind, TmemObject
from zcache.pages.zpages import END_LZ4, FIRST_LZ4
from zcache.store.partial_write import PartialWrite


class Invalidation:
    """Of the pages of a store. The caller holds its lock, but for `abandon_early`."""

    def __init__(self, allocator: Allocator, partial_write: PartialWrite, books: Books) -> None:
        self._allocator = allocator
        self._partial_write = partial_write
        self._lock, self._statistics = books.lock, books.statistics

    def drop(self, old: list[int], kind: Kind) -> None:
        """Pages' former entries, which no table holds any more, die."""
        if min(old) >= FIRST_LZ4 and max(old) < END_LZ4 and not kind:
            statistics = self._statistics
            stored = statistics.stored_pages - len(old)
            size = statistics.compressed_bytes - len(old) - sum([entry >> LENGTH_SHIFT & LENGTH_MASK for entry in old])
            statistics.stored_pages, statistics.compressed_bytes = stored, size
            self._allocator.release(old)
            return
        self._statistics.account(old, kind, -1)
        self._allocator.release([entry for entry in old if 0 < entry < SAME_FILLED])

    def clear(self, thing: TmemObject, start: int, stop: int) -> int:
        """Pages of one block of the table become EMPTY; returns how many had been something."""
        if self._partial_write.page:
            self._partial_write.agrees(thing, start, stop, False)
        old = thing.table.entries[start:stop].tolist()
        thing.table.clear_block(start, stop)
        if not any(old):
            return 0
        self.drop(old, thing.kind)
        return len(old) - old.count(0)

    def clear_page(self, thing: TmemObject, page: int) -> int:
        """One page becomes EMPTY; returns 1 if it had been something, or else 0."""
        if self._partial_write.page:
            self._partial_write.agrees(thing, page, page + 1, False)
        entries = thing.table.entries
        if not (thing.table.touched[page >> BLOCK_SHIFT] and (old := entries[page])):
            return 0
        entries[page] = EMPTY
        if FIRST_LZ4 <= old < END_LZ4 and not thing.kind:
            statistics = self._statistics
            stored, size = statistics.stored_pages - 1, statistics.compressed_bytes - zpage_bytes(old)
            statistics.stored_pages, statistics.compressed_bytes = stored, size
            self._allocator.release((old,))
        else:
            self.drop([old], thing.kind)
        return 1

    def settle(self, thing: TmemObject, first: int, placed: list[int], start: int, count: int) -> None:
        """Account for what was placed from `start` on, and for the rest, which is absent now."""
        self._statistics.account(placed[start:], thing.kind, 1)
        missing = count - len(placed)
        if thing.kind is Kind.EPHEMERAL:
            for index in range(first + len(placed), first + count):
                thing.table.entries[index] = EMPTY
        else:
            self._statistics.lost_pages += missing

    def abandon(self, thing: TmemObject, first: int, count: int, placed: list[int], cleared: bool = True) -> None:
        """After an exception that nobody foresaw (no memory): a put's pages are absent; what was
        placed dies, and so does what the pages had, if that is still there (not `cleared`)."""
        self._allocator.release([entry for entry in placed if 0 < entry < SAME_FILLED])
        lost = thing.kind is Kind.PERSISTENT
        for index in range(first, first + count):
            old = thing.table.entries[index]
            thing.table.entries[index] = LOST if lost else EMPTY
            if not cleared:
                self.drop([old], thing.kind)
        self._statistics.lost_pages += count * lost

    def abandon_early(self, thing: TmemObject, first: int, count: int, modifier: bool) -> None:
        """After an exception before a put had changed anything: its pages are absent all the same,
        unless the caller is `modify` and its page is another's by now."""
        with self._lock:
            if self._partial_write.agrees(thing, first, first + count, modifier):
                thing.table.touch(first, first + count - 1)
                self.abandon(thing, first, count, [], cleared=False)

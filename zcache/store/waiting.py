"""Waiting: puts whose frames ran out wait for room, and gets of their pages wait for them.

The pages of such a put are LOST for the time being: a get of one is no error before it is known
that there will be no room.
"""

from zcache.allocators import Allocator
from zcache.books import Books
from zcache.errors import PageLost, StoreFull
from zcache.image.whole_words import fill, publish
from zcache.pages.entry import LOST
from zcache.pages.page_table import LOST_RUN
from zcache.pages.tmem import Kind, TmemObject
from zcache.reclaim.reclaimer import Reclaimer
from zcache.store.invalidation import Invalidation
from zcache.store.partial_write import PartialWrite


class Waiting:
    """The puts of a store that wait for room, one run of pages each; called without its lock, but
    for `begin` and `page_count`."""

    def __init__(
        self,
        allocator: Allocator,
        reclaimer: Reclaimer,
        invalidation: Invalidation,
        partial_write: PartialWrite,
        books: Books,
    ) -> None:
        self._allocator = allocator
        self._reclaimer = reclaimer
        self._invalidation = invalidation
        self._partial_write = partial_write
        self._lock, self._statistics = books.lock, books.statistics
        self._runs: list[tuple[TmemObject, range]] = []

    def begin(self, thing: TmemObject, pages: range) -> None:
        """Under the lock: a put of these pages has placed some, found no frame for the rest, and
        will call `place_rest`."""
        self._runs.append((thing, pages))

    def place_rest(
        self,
        thing: TmemObject,
        first: int,
        data: bytes,
        tags: list[int],
        placed: list[int],
        modifier: bool,
    ) -> bool:
        """Finish a put that has begun to wait: make room and place, until all are placed or no room
        can be made. False, and no more is done, if the caller is `modify` and its page was written
        meanwhile. Raises `StoreFull` (persistent pools only)."""
        table, count = thing.table, len(tags)
        try:
            while len(placed) < count:
                room = self._reclaimer.make_room(thing.kind)
                with self._lock:
                    start, stop = first + len(placed), first + count
                    if self._partial_write.page and not self._partial_write.agrees(thing, start, stop, modifier):
                        return False
                    if not room:
                        self._statistics.reject_no_frame += count - len(placed)
                        if thing.kind is Kind.EPHEMERAL:
                            self._statistics.ignored_puts += count - len(placed)
                            return True
                        self._statistics.failed_puts += count - len(placed)
                        why = self._reclaimer.why_full()
                        raise StoreFull(f"no room for {count - len(placed)} of {count} pages: {why}")
                    table.touch(start, stop - 1)  # again: a flush of the whole block may have come meanwhile
                    old = table.entries[start:stop].tolist()
                    fill(table.entries, start, stop, LOST_RUN)
                    self._invalidation.drop(old, thing.kind)
                    before = len(placed)
                    try:
                        self._allocator.place(thing.kind, data, tags, placed, thing.owner_base + first)
                    except BaseException:
                        self._invalidation.abandon(thing, start, count - before, placed[before:])
                        raise
                    publish(table.entries, start, placed[before:])
                    self._invalidation.settle(thing, first, placed, before, count)
            return True
        finally:
            with self._lock:
                self._runs.remove((thing, range(first, first + count)))
                self._reclaimer.landed.notify_all()

    def wait_for_lost(self, thing: TmemObject, first: int, count: int) -> None:
        """Return once none of the pages is lost only because its put still waits for room;
        `PageLost` if one is for good: no put that waits is for it."""
        with self._lock:
            while True:
                entries = thing.table.entries[first : first + count].tolist()
                lost = {page for page, entry in enumerate(entries, first) if entry >= LOST}
                if not lost:
                    return
                if lost.difference(*(pages for other, pages in self._runs if other is thing)):
                    raise PageLost(f"page {first} or one of {count} from there: its last write failed")
                self._reclaimer.landed.wait()

    @property
    def page_count(self) -> int:
        """Under the lock: how many pages are LOST for the time being only."""
        pages = {(thing, page) for thing, run in self._runs for page in run}
        return sum(thing.table.entries[page] >= LOST for thing, page in pages)

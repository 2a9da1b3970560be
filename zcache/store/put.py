"""Put: pages become zpages in frames, and entries that say where.

A put first compresses all its pages, without the lock; then, under one lock, drops what the pages
held, places all zpages and publishes all entries. So the lock is never held while a codec works,
and the codec (which releases the GIL) can use a second core.

No stale data, by construction: a put clears its pages' entries (to LOST) before it stores, and
publishes new ones after, or goes from one to the other at once, where nothing can fail in between.
A put that fails leaves its persistent pages LOST (a get is an error until they are written or
flushed), never old and never zeros.
"""

import itertools
import threading

from zcache.allocators import Allocator
from zcache.errors import PageLost, StoreFull
from zcache.image.whole_words import fill, publish
from zcache.pageframes import PageFrames
from zcache.pages.codec import Codec
from zcache.pages.entry import LOST, PAGE_BYTES, SAME_FILLED
from zcache.pages.page_table import LOST_RUN, MAX_RUN_PAGES
from zcache.pages.tmem import Kind, TmemObject
from zcache.pages.zpages import END_LZ4, FIRST_LZ4, SUSPECT_BYTES, encode
from zcache.reclaim.reclaimer import Reclaimer
from zcache.statistics import Statistics
from zcache.store.admission import Admission
from zcache.store.partial_write import PartialWrite


class Putter:
    """The puts of a store, by any number of threads. `put`, `put_run` and `wait_for_lost` take the
    store's lock; whoever calls `clear`, or asks `waiting_pages`, holds it."""

    def __init__(
        self,
        codec: Codec,
        frames: PageFrames,
        allocator: Allocator,
        reclaimer: Reclaimer,
        admission: Admission,
        lock: threading.Lock,
        statistics: Statistics,
    ) -> None:
        self.codec = codec  # of puts to come
        self._slots = frames.slots
        self._allocator = allocator
        self._reclaimer = reclaimer
        self._admission = admission
        self._lock = lock
        self._statistics = statistics
        self.partial_write = PartialWrite()
        self._waiting: list[tuple[TmemObject, range]] = []  # puts that wait for room: LOST for the time being

    # -- hot
    # ----------------------------------------------------------------------------------------------

    def put(self, thing: TmemObject, first: int, data: memoryview) -> None:
        """Store whole pages: `data` (format B, a multiple of 4096 bytes) becomes pages `first` and
        following.

        Raises `StoreFull` (persistent pools only); pages that found no room are then lost, all
        others are stored. So it is with any other exception: no page keeps what it had.
        """
        size_bytes = len(data)
        if size_bytes == PAGE_BYTES and self._put_page(thing, first, data):
            return
        if thing.kind:
            self._put_ephemeral(thing, first, data)
            return
        if size_bytes <= MAX_RUN_PAGES * PAGE_BYTES:
            self.put_run(thing, first, data)
            return
        failure: Exception | None = None
        for start in range(0, size_bytes, MAX_RUN_PAGES * PAGE_BYTES):
            run = data[start : start + MAX_RUN_PAGES * PAGE_BYTES]
            try:
                self.put_run(thing, first + (start >> 12), run)
            except Exception as error:  # the runs after it must not keep what they had
                failure = failure or error
        if failure:
            raise failure

    def _put_page(self, thing: TmemObject, first: int, data: memoryview) -> bool:
        """Fast path: one page, if it is persistent, compresses, and finds room at once. False:
        nothing has been done.

        Nothing can fail between the old entry and the new one, so the page is not LOST in
        between."""
        if thing.kind:
            return False
        codec = self.codec
        try:
            body = codec.compress(data)
        except BaseException:
            self._abandon_early(thing, first, 1, modifier=False)
            raise
        length = len(body)
        if not SUSPECT_BYTES <= length <= self._allocator.max_zpage_bytes:
            return False
        table = thing.table
        entries = table.entries
        entry = 0
        lock = self._lock
        lock.acquire()
        try:
            if self.partial_write.page:
                return False
            entry = self._allocator.place_one(0, body, codec.tag_base + (length << 47), thing.owner_base + first)
            if not entry:
                return False
            table.touched[first >> 9] = 1
            old = entries[first]
            entries[first] = entry
            if old:
                self._drop([old], Kind.PERSISTENT)
            statistics = self._statistics
            statistics.puts += 1
            statistics.stored_pages += 1
            statistics.compressed_bytes += length
        except BaseException:
            table.touched[first >> 9] = 1
            self._abandon(thing, first, 1, [entry] if entry else [], cleared=entry != 0 and entries[first] == entry)
            raise
        finally:
            lock.release()
        if self._slots.free_count < self._reclaimer.wake_below_slots:
            self._reclaimer.wake_if_low()
        return True

    def put_run(self, thing: TmemObject, first: int, data: memoryview, modifier: bool = False) -> bool:
        """One run. False, and nothing is done, if the caller is `modify` and its page was written
        meanwhile."""
        kind = thing.kind
        try:
            bodies, tags, same_filled, raw, compressed_bytes = encode(self.codec, self._allocator.max_zpage_bytes, data)
            if kind:
                with self._lock:
                    self._admission.reject_poor(bodies, tags)
        except BaseException:
            self._abandon_early(thing, first, len(data) >> 12, modifier)
            raise

        count = len(bodies)
        last = first + count
        table = thing.table
        placed: list[int] = []
        cleared = False
        self._lock.acquire()
        try:
            if self.partial_write.page and not self.partial_write.agrees(thing, first, last, modifier):
                return False
            table.touched[first >> 9] = 1
            if first >> 9 != (last - 1) >> 9:
                table.touch(first, last - 1)
            entries = table.entries
            old = entries[first:last].tolist()
            if any(old):
                fill(entries, first, last, LOST_RUN)
                cleared = True
                self._drop(old, kind)
            cleared = True
            done = self._allocator.place(kind, bodies, tags, placed, thing.owner_base + first)
            if count == 1 == done:
                entries[first] = placed[0]
            else:
                publish(entries, first, placed)
            statistics = self._statistics
            statistics.puts += count
            if done == count and not kind:
                statistics.stored_pages += count
                statistics.compressed_bytes += compressed_bytes
                if raw or same_filled:
                    statistics.raw_pages += raw
                    statistics.reject_compress_poor += raw
                    statistics.same_filled_pages += same_filled
            else:
                fill(entries, first + done, last, LOST_RUN)
                self._settle(thing, first, placed, 0, count)
                if done < count:
                    self._waiting.append((thing, range(first, last)))
        except BaseException:
            self._abandon(thing, first, count, placed, cleared)
            raise
        finally:
            self._lock.release()
        if done < count and not self._put_slowly(thing, first, bodies, tags, placed, modifier):
            return False
        if self._slots.free_count < self._reclaimer.wake_below_slots:
            self._reclaimer.wake_if_low()
        return True

    def _put_ephemeral(self, thing: TmemObject, first: int, data: memoryview) -> None:
        """Put what has shown that it is used again, in runs; all else is absent."""
        for start in range(0, len(data), MAX_RUN_PAGES * PAGE_BYTES):
            run = data[start : start + MAX_RUN_PAGES * PAGE_BYTES]
            try:
                self._put_admitted(thing, first + (start >> 12), run)
            except BaseException:
                self._abandon_early(thing, first, len(data) >> 12, modifier=False)
                raise

    def _put_admitted(self, thing: TmemObject, first: int, data: memoryview) -> None:
        """One run."""
        with self._lock:
            were_active = self._admission.were_active(thing.owner_base + first, len(data) >> 12)
        start = 0
        for is_admitted, same in itertools.groupby(were_active):
            stop = start + len(list(same))
            if is_admitted:
                self.put_run(thing, first + start, data[start << 12 : stop << 12])
                with self._lock:
                    self._statistics.ephemeral_puts += stop - start
            else:
                for part in thing.table.touched_runs(first + start, first + stop):
                    with self._lock:
                        self.clear(thing, *part)
            start = stop

    # -- slow, and bookkeeping
    # --------------------------------------------------------------------------------------

    def _put_slowly(
        self,
        thing: TmemObject,
        first: int,
        bodies: list[bytes],
        tags: list[int],
        placed: list[int],
        modifier: bool,
    ) -> bool:
        """Finish a put whose frames ran out: make room and place, until all are placed or no room
        can be made."""
        table, count = thing.table, len(bodies)
        try:
            while len(placed) < count:
                room = self._reclaimer.make_room(thing.kind)
                with self._lock:
                    start, stop = first + len(placed), first + count
                    if self.partial_write.page and not self.partial_write.agrees(thing, start, stop, modifier):
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
                    self._drop(old, thing.kind)
                    before = len(placed)
                    try:
                        self._allocator.place(thing.kind, bodies, tags, placed, thing.owner_base + first)
                    except BaseException:
                        self._abandon(thing, start, count - before, placed[before:])
                        raise
                    publish(table.entries, start, placed[before:])
                    self._settle(thing, first, placed, before, count)
            return True
        finally:
            with self._lock:
                self._waiting.remove((thing, range(first, first + count)))
                self._reclaimer.landed.notify_all()

    def _abandon(self, thing: TmemObject, first: int, count: int, placed: list[int], cleared: bool = True) -> None:
        """Under the lock, after an exception that nobody foresaw (no memory): a put's pages are
        absent; what was placed dies, and so does what the pages had, if that is still there (not
        `cleared`)."""
        self._allocator.release([entry for entry in placed if 0 < entry < SAME_FILLED])
        lost = thing.kind is Kind.PERSISTENT
        for index in range(first, first + count):
            old = thing.table.entries[index]
            thing.table.entries[index] = LOST if lost else 0
            if not cleared:
                self._drop([old], thing.kind)
        self._statistics.lost_pages += count * lost

    def _abandon_early(self, thing: TmemObject, first: int, count: int, modifier: bool) -> None:
        """After an exception before a put had changed anything: its pages are absent all the same,
        unless the caller is `modify` and its page is another's by now."""
        with self._lock:
            if self.partial_write.agrees(thing, first, first + count, modifier):
                thing.table.touch(first, first + count - 1)
                self._abandon(thing, first, count, [], cleared=False)

    def _settle(self, thing: TmemObject, first: int, placed: list[int], start: int, count: int) -> None:
        """Under the lock: account for what was placed from `start` on, and for the rest, which is
        absent now."""
        self._statistics.account(placed[start:], thing.kind, 1)
        missing = count - len(placed)
        if thing.kind is Kind.EPHEMERAL:
            for index in range(first + len(placed), first + count):
                thing.table.entries[index] = 0
        else:
            self._statistics.lost_pages += missing

    def clear(self, thing: TmemObject, start: int, stop: int) -> int:
        """Under the lock: pages of one block of the table become EMPTY; returns how many had been
        something."""
        if self.partial_write.page:
            self.partial_write.agrees(thing, start, stop, False)
        old = thing.table.entries[start:stop].tolist()
        thing.table.clear_block(start, stop)
        if not any(old):
            return 0
        self._drop(old, thing.kind)
        return len(old) - old.count(0)

    def _drop(self, old: list[int], kind: Kind) -> None:
        """Under the lock: pages' former entries, which no table holds any more, die."""
        if min(old) >= FIRST_LZ4 and max(old) < END_LZ4 and not kind:
            self._statistics.stored_pages -= len(old)
            self._statistics.compressed_bytes -= sum([entry >> 47 & 0xFFF for entry in old]) + len(old)
            self._allocator.release(old)
            return
        self._statistics.account(old, kind, -1)
        self._allocator.release([entry for entry in old if 0 < entry < SAME_FILLED])

    def wait_for_lost(self, thing: TmemObject, first: int, count: int) -> None:
        """Return once none of the pages is lost only because its put still waits for room;
        `PageLost` if one is for good: no put that waits is for it."""
        with self._lock:
            while True:
                entries = thing.table.entries[first : first + count].tolist()
                lost = {page for page, entry in enumerate(entries, first) if entry >= LOST}
                if not lost:
                    return
                if lost.difference(*(pages for other, pages in self._waiting if other is thing)):
                    raise PageLost(f"page {first} or one of {count} from there: its last write failed")
                self._reclaimer.landed.wait()

    @property
    def waiting_pages(self) -> int:
        """How many pages are LOST for the time being only."""
        pages = {(thing, page) for thing, run in self._waiting for page in run}
        return sum(thing.table.entries[page] >= LOST for thing, page in pages)

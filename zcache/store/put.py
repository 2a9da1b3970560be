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
from typing import Final

from zcache.allocators import Allocator
from zcache.books import Books
from zcache.image.whole_words import fill
from zcache.page_loop import PageLoop
from zcache.pageframes import PageFrames
from zcache.pages.codec import Codec
from zcache.pages.entry import LENGTH_SHIFT, PAGE_BYTES, PAGE_SHIFT
from zcache.pages.page_table import BLOCK_SHIFT, LOST_RUN, MAX_RUN_PAGES
from zcache.pages.tmem import Kind, TmemObject
from zcache.reclaim.reclaimer import Reclaimer
from zcache.store.admission import Admission
from zcache.store.invalidation import Invalidation
from zcache.store.partial_write import PartialWrite
from zcache.store.waiting import Waiting

#: Looked up once.
_PERSISTENT: Final = Kind.PERSISTENT


class Putter:
    """The puts of a store, by any number of threads, without its lock; `Store.put` says which is
    for what."""

    def __init__(
        self,
        loop: PageLoop,
        codec: Codec,
        frames: PageFrames,
        allocator: Allocator,
        reclaimer: Reclaimer,
        admission: Admission,
        invalidation: Invalidation,
        waiting: Waiting,
        partial_write: PartialWrite,
        books: Books,
    ) -> None:
        self._loop, self._held, self._publish = loop, loop.held, loop.publish
        self._slots = frames.slots
        self._allocator = allocator
        self._reclaimer = reclaimer
        self._admission = admission
        self._invalidation = invalidation
        self._waiting = waiting
        self.partial_write = partial_write
        self._lock, self._statistics = books.lock, books.statistics
        self.codec = codec

    @property
    def codec(self) -> Codec:
        """Of puts to come."""
        return self._codec

    @codec.setter
    def codec(self, codec: Codec) -> None:
        encoder = self._loop.encoder(codec, self._allocator.max_zpage_bytes)
        self._codec = codec
        self._encode_page, self._encode_run = encoder.page, encoder.run
        self._tag_base, self._suspect_bytes = codec.tag_base, codec.suspect_bytes

    def put_page(self, thing: TmemObject, first: int, data: memoryview) -> bool:
        """Fast path: one page, if it is persistent, compresses, is not suspected to repeat a word,
        and finds room at once. False: nothing has been done.

        Nothing can fail between the old entry and the new one, so the page is not LOST in
        between."""
        if thing.kind or self._suspect_bytes > PAGE_BYTES:
            return False
        try:
            body = self._encode_page(data)
        except BaseException:
            self._invalidation.abandon_early(thing, first, 1, modifier=False)
            raise
        length = len(body)
        if not self._suspect_bytes <= length <= self._allocator.max_zpage_bytes:
            return False
        table = thing.table
        entries = table.entries
        entry = 0
        lock = self._lock
        lock.acquire()
        try:
            if self.partial_write.page:
                return False
            entry = self._allocator.place_one(
                _PERSISTENT, body, self._tag_base + (length << LENGTH_SHIFT), thing.owner_base + first
            )
            if not entry:
                return False
            table.touched[first >> BLOCK_SHIFT] = 1
            old = entries[first]
            entries[first] = entry
            if old:
                self._invalidation.drop([old], _PERSISTENT)
            statistics = self._statistics
            # All numbers are made before one is changed: or there is no memory for one of them.
            puts, stored, size = statistics.puts + 1, statistics.stored_pages + 1, statistics.compressed_bytes + length
            statistics.puts, statistics.stored_pages, statistics.compressed_bytes = puts, stored, size
        except BaseException:
            table.touched[first >> BLOCK_SHIFT] = 1
            self._invalidation.abandon(
                thing, first, 1, [entry] if entry else [], cleared=entry != 0 and entries[first] == entry
            )
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
            zpages, tags, same_filled, raw = self._encode_run(data)
            if kind:
                with self._lock:
                    zpages = self._admission.reject_poor(zpages, tags)
        except BaseException:
            self._invalidation.abandon_early(thing, first, len(data) >> PAGE_SHIFT, modifier)
            raise
        count = len(tags)
        last = first + count
        table = thing.table
        placed: list[int] = []
        cleared = False
        self._lock.acquire()
        try:
            if self.partial_write.page and not self.partial_write.agrees(thing, first, last, modifier):
                return False
            table.touched[first >> BLOCK_SHIFT] = 1
            if first >> BLOCK_SHIFT != (last - 1) >> BLOCK_SHIFT:
                table.touch(first, last - 1)
            entries = table.entries
            old = self._held(entries, first, count)
            if old:
                fill(entries, first, last, LOST_RUN)
                cleared = True
                self._invalidation.drop(old, kind)
            cleared = True
            done = self._allocator.place(kind, zpages, tags, placed, thing.owner_base + first)
            if count == 1 == done:
                entries[first] = placed[0]
            else:
                self._publish(entries, first, placed)
            statistics = self._statistics
            if done == count and not kind:
                stored, size = statistics.stored_pages + count, statistics.compressed_bytes + len(zpages)
                puts = statistics.puts + count
                statistics.puts, statistics.stored_pages, statistics.compressed_bytes = puts, stored, size
                if raw or same_filled:
                    statistics.raw_pages += raw
                    statistics.reject_compress_poor += raw
                    statistics.same_filled_pages += same_filled
            else:
                statistics.puts += count
                fill(entries, first + done, last, LOST_RUN)
                self._invalidation.settle(thing, first, placed, 0, count)
                if done < count:
                    self._waiting.begin(thing, range(first, last))
        except BaseException:
            self._invalidation.abandon(thing, first, count, placed, cleared)
            raise
        finally:
            self._lock.release()
        if done < count and not self._waiting.place_rest(thing, first, zpages, tags, placed, modifier):
            return False
        if self._slots.free_count < self._reclaimer.wake_below_slots:
            self._reclaimer.wake_if_low()
        return True

    def put_runs(self, thing: TmemObject, first: int, data: memoryview) -> None:
        """A persistent request that is longer than a run. If one run fails, those after it are put
        all the same; raises the first failure then."""
        failure: Exception | None = None
        for start in range(0, len(data), MAX_RUN_PAGES * PAGE_BYTES):
            run = data[start : start + MAX_RUN_PAGES * PAGE_BYTES]
            try:
                self.put_run(thing, first + (start >> PAGE_SHIFT), run)
            except Exception as error:  # the runs after it must not keep what they had
                failure = failure or error
        if failure:
            raise failure

    def put_ephemeral(self, thing: TmemObject, first: int, data: memoryview) -> None:
        """Put what has shown that it is used again, in runs; all else is absent."""
        for start in range(0, len(data), MAX_RUN_PAGES * PAGE_BYTES):
            run = data[start : start + MAX_RUN_PAGES * PAGE_BYTES]
            try:
                self._put_admitted(thing, first + (start >> PAGE_SHIFT), run)
            except BaseException:
                self._invalidation.abandon_early(thing, first, len(data) >> PAGE_SHIFT, modifier=False)
                raise

    def _put_admitted(self, thing: TmemObject, first: int, data: memoryview) -> None:
        """One run."""
        with self._lock:
            were_active = self._admission.were_active(thing.owner_base + first, len(data) >> PAGE_SHIFT)
        start = 0
        for is_admitted, same in itertools.groupby(were_active):
            stop = start + len(list(same))
            if is_admitted:
                self.put_run(thing, first + start, data[start << PAGE_SHIFT : stop << PAGE_SHIFT])
                with self._lock:
                    self._statistics.ephemeral_puts += stop - start
            else:
                for part in thing.table.touched_runs(first + start, first + stop):
                    with self._lock:
                        self._invalidation.clear(thing, *part)
            start = stop

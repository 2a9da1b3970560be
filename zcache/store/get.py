"""Get: from entries to pages.

A get copies its zpages out of their frames under the lock, once, and decompresses them without it;
what is below only is fetched in between, also without it.
"""

from collections.abc import Sequence

from zcache.books import Books
from zcache.errors import PageDamaged
from zcache.fetch.fetch import Fetcher
from zcache.page_loop import PageLoop
from zcache.pageframes import PageFrames
from zcache.pages.entry import LOST, PAGE_BYTES, PAGE_SHIFT
from zcache.pages.page_table import MAX_RUN_PAGES
from zcache.pages.tmem import TmemObject
from zcache.store.waiting import Waiting


class Getter:
    """The gets of a store, by any number of threads, without its lock; `Store.get` says which is
    for what."""

    def __init__(
        self,
        loop: PageLoop,
        frames: PageFrames,
        fetcher: Fetcher | None,
        waiting: Waiting,
        books: Books,
    ) -> None:
        self._loop = loop
        reader = loop.reader(frames.home, frames.ram, frames.referenced, frames.frame_shift)
        self._zpage, self._lz4_zpages, self._zpages = reader.page, reader.lz4_run, reader.run
        self._fetcher = fetcher
        self._waiting = waiting
        self._lock, self._statistics = books.lock, books.statistics

    def get_page(self, thing: TmemObject, first: int, out: memoryview) -> bool:
        """Fast path: one page, if it is an lz4 zpage in RAM. False: nothing has been done."""
        lock = self._lock
        lock.acquire()
        try:
            body = self._zpage(thing.table.entries, first)
            if body is None:
                return False
            self._statistics.gets += 1
        finally:
            lock.release()
        if self._loop.decode_page(body, out):
            return True
        with lock:  # the slow path will say it
            self._statistics.gets -= 1
        return False

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
        count = len(out) >> PAGE_SHIFT
        table = thing.table.entries
        misses: Sequence[int] | None = None
        self._lock.acquire()
        try:
            self._statistics.gets += count
            zpages = self._lz4_zpages(table, first, count)
            if zpages is None:  # slow path: not all are lz4 zpages in RAM
                entries, bodies, cold, misses, is_lost = self._zpages(table, first, count)
                if misses:
                    self._statistics.get_misses += len(misses)
        finally:
            self._lock.release()
        if zpages is None:
            if is_lost:
                return None
            if cold:
                assert self._fetcher
                self._fetcher.fetch(table, first, cold, entries, bodies)
                if max(entries) >= LOST:
                    return None
        try:
            if zpages is None:
                self._loop.decode(entries, bodies, out)
            else:
                self._loop.decode_lz4(zpages, out)
        except PageDamaged:
            with self._lock:
                self._statistics.decode_errors += 1
            raise
        return misses or ()

"""A region, as the pager has it: faults that are served, pages that leave."""

import contextlib
import mmap
import os
import signal
import sys
from collections.abc import Iterable
from typing import Final

from zcache.errors import PageDamaged, PageLost, StoreFull
from zcache.hardening.own_thread import OwnThread
from zcache.linux import libc, memory, userfaultfd
from zcache.pager.pages import ResidentPages
from zcache.pages.entry import PAGE_BYTES, PAGE_SHIFT
from zcache.pages.tmem import TmemObject
from zcache.store.store import Store

#: Pages that leave together, at most: a run of a put.
BATCH_PAGES: Final = 32
#: Pages that a fault brings along, at most, itself included.
MAX_WINDOW_PAGES: Final = 32


class PagedRegion:
    """What the process `client` has mapped at `start`, of the file `memfd`; at most `limit_pages`
    are resident.

    `descriptor` is its userfaultfd. Faults are served by whoever calls `serve_faults`; pages leave
    by a thread of its own."""

    def __init__(
        self, store: Store, pages: TmemObject, client: int, descriptor: int, memfd: int, start: int, limit_pages: int
    ) -> None:
        self._store = store
        self._pages = pages
        self._client = client
        self._descriptor = descriptor
        self._memfd = memfd
        self._start = start
        self._limit_pages = limit_pages
        # Between two watermarks, so that a fault seldom waits for a page to leave.
        self._slack_pages = max(min(limit_pages // 16, 256), 1)
        self.resident = ResidentPages(pages.page_count)
        self._window = 1  # pages that the next fault brings
        self._expected = -1  # where it will be, if faults come in a row
        self._buffer = mmap.mmap(-1, MAX_WINDOW_PAGES * PAGE_BYTES)
        self._buffer_at = memory.address(self._buffer)
        self._out = memoryview(self._buffer)
        self._is_closing = False
        self.faults = 0
        self.lost_pages = 0
        self._evictor = OwnThread("zcache-evictor", self._evict_ahead)

    def start(self) -> None:
        """Start the thread."""
        self._evictor.start()

    def close(self) -> None:
        """End it; faults wait from now on."""
        with self.resident.changed:
            self._is_closing = True
            self.resident.changed.notify_all()
        self._evictor.join()

    # -- faults
    # ----------------------------------------------------------------------------------------------

    def serve_faults(self) -> int:
        """Those that wait now; how many there were."""
        faults = userfaultfd.read_faults(self._descriptor)
        for fault in faults:
            if fault.flags & userfaultfd.UFFD_PAGEFAULT_FLAG_WP:
                continue  # it is woken when the page has left
            with contextlib.suppress(ProcessLookupError):  # the client has ended
                self._fill(fault.address - self._start >> PAGE_SHIFT, fault.thread_id)
        return len(faults)

    def _fill(self, page: int, thread_id: int) -> None:
        """Bring a page back; and those that follow, if faults have come in a row."""
        self.faults += 1
        resident = self.resident
        if resident.is_resident(page):  # another thread's fault was first
            userfaultfd.wake(self._descriptor, self._start + (page << PAGE_SHIFT), PAGE_BYTES)
            return
        self._window = min(2 * self._window, MAX_WINDOW_PAGES) if page == self._expected else 1
        with resident.changed:
            resident.changed.wait_for(lambda: resident.count < self._limit_pages)
        count = resident.absent_run(page, min(self._window, self._limit_pages - resident.count))
        try:
            self._bring(page, count)
        except (PageLost, PageDamaged):
            self._bring_or_refuse(page, thread_id)
        self._expected = page + count

    def _bring(self, first: int, count: int) -> None:
        """A run of pages that are in the store only. Raises `PageLost` or `PageDamaged`."""
        size_bytes = count << PAGE_SHIFT
        self._store.get(self._pages, first, self._out[:size_bytes])
        done = 0
        while done < size_bytes:
            address = self._start + (first << PAGE_SHIFT) + done
            try:
                done += userfaultfd.copy(self._descriptor, address, self._buffer_at + done, size_bytes - done)
            except FileExistsError:  # it came by another way, such as a write to the file
                userfaultfd.wake(self._descriptor, address, PAGE_BYTES)
                done += PAGE_BYTES
        self._store.flush(self._pages, first, count)
        self.resident.came(first, count)

    def _bring_or_refuse(self, page: int, thread_id: int) -> None:
        """The one that somebody waits for: it, or SIGBUS."""
        try:
            self._bring(page, 1)
        except (PageLost, PageDamaged) as error:
            self.lost_pages += 1
            print(f"zcache: page {page} of a region is lost: {error}", file=sys.stderr, flush=True)
            self._refuse(page, thread_id)

    def _refuse(self, page: int, thread_id: int) -> None:
        try:
            userfaultfd.poison(self._descriptor, self._start + (page << PAGE_SHIFT), PAGE_BYTES)
        except FileExistsError:  # for another thread, just now
            userfaultfd.wake(self._descriptor, self._start + (page << PAGE_SHIFT), PAGE_BYTES)
        except OSError:  # before Linux 6.6: for this thread, which goes on waiting if that does not end it
            libc.signal_thread(self._client, thread_id, signal.SIGBUS)

    # -- advice
    # ----------------------------------------------------------------------------------------------

    def will_need(self, first: int, stop: int) -> None:
        """Bring pages back before somebody faults on them, as far as there is room that nobody has
        to leave for."""
        while first < stop:
            self.serve_faults()  # this may take long
            room = self._limit_pages - self._slack_pages - self.resident.count
            count = self.resident.absent_run(first, min(MAX_WINDOW_PAGES, room, stop - first))
            if count > 0:
                try:
                    self._bring(first, count)
                except (PageLost, PageDamaged):
                    return  # whoever touches it will be told
            elif room <= 0:
                return
            first += max(count, 1)

    def forget(self, first: int, stop: int) -> None:
        """What is in these pages is needed no more: they read as zeros."""
        pages = self.resident.begin_to_leave_of(first, stop)
        self._punch(first, stop, pages)
        self._store.flush(self._pages, first, stop - first)

    def _punch(self, first: int, stop: int, pages: Iterable[int]) -> None:
        """A hole, where these pages were, and no others are."""
        mode = libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE
        if first < stop:
            libc.fallocate(self._memfd, mode, first << PAGE_SHIFT, stop - first << PAGE_SHIFT)
        self.resident.left(pages)

    # -- pages that leave
    # ----------------------------------------------------------------------------------------------

    def _evict_ahead(self) -> None:
        resident = self.resident
        high = self._limit_pages - self._slack_pages
        while True:
            with resident.changed:
                resident.changed.wait_for(lambda: resident.count > high or self._is_closing)
                if self._is_closing:
                    return
            self.evict(min(BATCH_PAGES, self._slack_pages))

    def evict(self, most: int) -> None:
        """Have at most so many pages leave, those that came first."""
        try:
            self._evict(sorted(self.resident.begin_to_leave(most)))
        except ProcessLookupError:  # the client has ended
            self._is_closing = True

    def _evict(self, pages: list[int]) -> None:
        begin = 0
        for end in range(1, len(pages) + 1):
            if end == len(pages) or pages[end] != pages[end - 1] + 1:
                self._evict_run(pages[begin], pages[end - 1] + 1)
                begin = end

    def _evict_run(self, first: int, stop: int) -> None:
        address, length = self._start + (first << PAGE_SHIFT), stop - first << PAGE_SHIFT
        userfaultfd.write_protect(self._descriptor, address, length)
        data = os.pread(self._memfd, length, first << PAGE_SHIFT)
        try:
            self._store.put(self._pages, first, memoryview(data))
        except StoreFull:
            userfaultfd.allow_writes(self._descriptor, address, length)
            for page in range(first, stop):
                self.resident.stayed(page)
            return
        self._punch(first, stop, range(first, stop))
        userfaultfd.allow_writes(self._descriptor, address, length)

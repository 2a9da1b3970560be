"""A region, as the pager has it: faults that are served, pages that leave."""

import contextlib
import errno
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Final

from zcache.errors import PageDamaged, PageLost, StoreFull
from zcache.hardening.own_thread import OwnThread
from zcache.linux import libc, memory, userfaultfd
from zcache.linux.files import data_extents
from zcache.pager.pages import ResidentPages
from zcache.pages.entry import PAGE_BYTES, PAGE_SHIFT
from zcache.pages.tmem import TmemObject
from zcache.store.store import Store

#: Pages that leave together, at most: a run of a put.
BATCH_PAGES: Final = 32
#: Pages that a fault brings along, at most, itself included.
MAX_WINDOW_PAGES: Final = 32
#: How long a fault waits for a page to leave, when none can: the store is full.
FULL_SECONDS: Final = 10.0
REST_SECONDS: Final = 0.1
#: How the kernel says that the client has ended, or its mapping.
CLIENT_HAS_ENDED: Final = (ProcessLookupError, FileNotFoundError)


class PagedRegion:
    """What the process `client` has mapped at `start`, of the file `memfd`; at most `limit_pages`
    are resident.

    `descriptor` is its userfaultfd; `note_refused` is told of each page that is going to be SIGBUS.
    Faults are served by whoever calls `serve_faults`; pages leave by a thread of its own. If that
    cannot go on, the process ends, and its keeper has another one begin."""

    def __init__(
        self,
        store: Store,
        pages: TmemObject,
        client: int,
        descriptor: int,
        memfd: int,
        start: int,
        limit_pages: int,
        note_refused: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._pages = pages
        self._client = client
        self._descriptor = descriptor
        self._memfd = memfd
        self._start = start
        self._limit_pages = limit_pages
        self._note_refused = note_refused
        # Between two watermarks, so that a fault seldom waits for a page to leave.
        self._slack_pages = max(min(limit_pages // 16, 256), 1)
        self.resident = ResidentPages(pages.page_count)
        self._window = 1  # pages that the next fault brings
        self._expected = -1  # where it will be, if faults come in a row
        self._buffer = mmap.mmap(-1, MAX_WINDOW_PAGES * PAGE_BYTES)
        self._buffer_at = memory.address(self._buffer)
        self._out = memoryview(self._buffer)
        self._is_closing = False
        self._refused: set[int] = set()  # pages that are SIGBUS
        self._is_full = False
        self.faults = 0
        self.lost_pages = 0
        self._evictor = OwnThread("zcache-evictor", self._evict_ahead)

    def take_over(self, refused: Iterable[int]) -> None:
        """Go on where another pager has died, first of all; `refused` are pages that it made
        SIGBUS.

        What is in the memfd is true, whatever the store has. It may be protected; and of those who
        wait, only the pager that is no more has heard."""
        self._refused.update(refused)
        for first, stop in self._extents():
            self._store.flush(self._pages, first, stop - first)
            self.resident.came(first, stop - first)
        length = self.resident.page_count << PAGE_SHIFT
        with contextlib.suppress(*CLIENT_HAS_ENDED):
            userfaultfd.allow_writes(self._descriptor, self._start, length)
            userfaultfd.wake(self._descriptor, self._start, length)

    def _extents(self) -> Iterable[tuple[int, int]]:
        """The runs of pages that the memfd has."""
        size_bytes = self.resident.page_count << PAGE_SHIFT
        for start, stop in data_extents(self._memfd, 0, size_bytes):
            yield start >> PAGE_SHIFT, stop >> PAGE_SHIFT

    def start(self) -> None:
        """Start the thread."""
        self._evictor.start()

    def close(self) -> None:
        """End it; faults wait from now on."""
        self._end()
        self._evictor.join()

    def _end(self) -> None:
        with self.resident.changed:
            self._is_closing = True
            self.resident.changed.notify_all()

    # -- faults
    # ----------------------------------------------------------------------------------------------

    def serve_faults(self) -> int:
        """Those that wait now; how many there were."""
        faults = userfaultfd.read_faults(self._descriptor)
        for fault in faults:
            page = fault.address - self._start >> PAGE_SHIFT
            with contextlib.suppress(*CLIENT_HAS_ENDED):
                if not fault.flags & userfaultfd.UFFD_PAGEFAULT_FLAG_WP:
                    self._fill(page, fault.thread_id)
                elif not self.resident.is_leaving(page):  # it has left, or stayed, before we heard of it
                    self._wake(page)
        return len(faults)

    def _wake(self, page: int) -> None:
        userfaultfd.wake(self._descriptor, self._start + (page << PAGE_SHIFT), PAGE_BYTES)

    def _fill(self, page: int, thread_id: int) -> None:
        """Bring a page back; and those that follow, if faults have come in a row."""
        self.faults += 1
        resident = self.resident
        if resident.is_resident(page):  # another thread's fault was first
            self._wake(page)
            return
        self._window = min(2 * self._window, MAX_WINDOW_PAGES) if page == self._expected else 1
        with resident.changed:
            has_room = resident.changed.wait_for(
                lambda: resident.count < self._limit_pages or self._is_closing, FULL_SECONDS
            )
        if not has_room:
            self._refuse(page, thread_id, "no page can leave: the store is full")
            return
        count = resident.absent_run(page, max(min(self._window, self._limit_pages - resident.count), 1))
        try:
            self._bring(page, count)
        except (PageLost, PageDamaged):
            self._bring_or_refuse(page, thread_id)
        self._expected = page + count

    def _bring(self, first: int, count: int) -> None:
        """A run of pages that are in the store only. Raises `PageLost` or `PageDamaged`."""
        size_bytes = count << PAGE_SHIFT
        self._store.get(self._pages, first, self._out[:size_bytes])
        self._copy(first, size_bytes)
        self._store.flush(self._pages, first, count)
        self.resident.came(first, count)

    def _copy(self, first: int, size_bytes: int) -> None:
        """What is in the buffer, to where it belongs."""
        done = 0
        while done < size_bytes:
            address = self._start + (first << PAGE_SHIFT) + done
            try:
                done += userfaultfd.copy(self._descriptor, address, self._buffer_at + done, size_bytes - done)
            except FileExistsError:  # it came by another way, such as a write to the file
                userfaultfd.wake(self._descriptor, address, PAGE_BYTES)
                done += PAGE_BYTES
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                time.sleep(REST_SECONDS)  # pages leave meanwhile

    def _bring_or_refuse(self, page: int, thread_id: int) -> None:
        """The one that somebody waits for: it, or SIGBUS."""
        try:
            self._bring(page, 1)
        except (PageLost, PageDamaged) as error:
            self.lost_pages += 1
            self._refuse(page, thread_id, str(error))

    def _refuse(self, page: int, thread_id: int, why: str) -> None:
        print(f"zcache: page {page} of a region cannot be had: {why}", file=sys.stderr, flush=True)
        self._note_refused(page)
        try:
            userfaultfd.poison(self._descriptor, self._start + (page << PAGE_SHIFT), PAGE_BYTES)
            self._refused.add(page)
        except FileExistsError:  # for another thread, just now
            self._wake(page)
        except CLIENT_HAS_ENDED:
            raise
        except OSError:  # before Linux 6.6: for this thread, which goes on waiting if that does not end it
            libc.signal_thread(self._client, thread_id, signal.SIGBUS)

    # -- advice
    # ----------------------------------------------------------------------------------------------

    def will_need(self, first: int, stop: int) -> None:
        """Bring pages back before somebody faults on them, as far as there is room that nobody has
        to leave for."""
        while first < stop and not self._is_closing:
            self.serve_faults()  # this may take long
            room = self._limit_pages - self._slack_pages - self.resident.count
            count = self.resident.absent_run(first, min(MAX_WINDOW_PAGES, room, stop - first)) if room > 0 else 0
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
        for page in [page for page in self._refused if first <= page < stop]:  # no hole is there any more
            self._out[:PAGE_BYTES] = bytes(PAGE_BYTES)
            self._copy(page, PAGE_BYTES)
            self.resident.came(page)
            self._refused.discard(page)

    def _punch(self, first: int, stop: int, pages: Iterable[int]) -> None:
        """A hole, where these pages were, and no others are."""
        mode = libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE
        if first < stop:
            libc.fallocate(self._memfd, mode, first << PAGE_SHIFT, stop - first << PAGE_SHIFT)
        self.resident.left(pages)

    # -- pages that leave
    # ----------------------------------------------------------------------------------------------

    def _evict_ahead(self) -> None:
        try:
            self._evict_until_closed()
        except CLIENT_HAS_ENDED:
            self._end()
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # nobody could serve a fault any more

    def _evict_until_closed(self) -> None:
        resident = self.resident
        high = self._limit_pages - self._slack_pages
        while True:
            with resident.changed:
                resident.changed.wait_for(lambda: resident.count > high or self._is_closing)
                if self._is_closing:
                    return
            if not self.evict(min(BATCH_PAGES, self._slack_pages)):
                if not self._is_full:
                    print("zcache: a region's store is full: no page can leave", file=sys.stderr, flush=True)
                self._is_full = True
                time.sleep(REST_SECONDS)
            else:
                self._is_full = False

    def evict(self, most: int) -> bool:
        """Have at most so many pages leave, those that came first; whether all of them could."""
        pages = sorted(self.resident.begin_to_leave(most))
        have_left = True
        begin = 0
        for end in range(1, len(pages) + 1):
            if end == len(pages) or pages[end] != pages[end - 1] + 1:
                have_left &= self._evict_run(pages[begin], pages[end - 1] + 1)
                begin = end
        return have_left

    def _evict_run(self, first: int, stop: int) -> bool:
        address, length = self._start + (first << PAGE_SHIFT), stop - first << PAGE_SHIFT
        userfaultfd.write_protect(self._descriptor, address, length)
        data = os.pread(self._memfd, length, first << PAGE_SHIFT)
        if len(data) != length:
            raise OSError(errno.EIO, f"pages {first} to {stop} of a region cannot be read")
        try:
            self._store.put(self._pages, first, memoryview(data))
        except StoreFull:
            self._store.flush(self._pages, first, stop - first)
            for page in range(first, stop):
                self.resident.stayed(page)
            userfaultfd.allow_writes(self._descriptor, address, length)
            return False
        self._punch(first, stop, range(first, stop))
        userfaultfd.allow_writes(self._descriptor, address, length)
        return True

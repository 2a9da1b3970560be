"""A region, as the pager has it: faults that are served, pages that are brought or forgotten."""

import contextlib
import errno
import mmap
import signal
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from zcache.errors import Imbalance, PageDamaged, PageLost
from zcache.hardening.log_pipe import say
from zcache.linux import libc, memory, userfaultfd
from zcache.pager.eviction import FULL, Eviction
from zcache.pager.latencies import Latencies
from zcache.pager.pages import ResidentPages
from zcache.pager.readahead import MAX_WINDOW_PAGES, Readahead
from zcache.pager.region_memory import CLIENT_HAS_ENDED, RegionMemory
from zcache.pager.stored_pages import StoredPages
from zcache.pages.entry import PAGE_BYTES, PAGE_SHIFT

#: How long a fault waits for a page to leave, when none can (the store is full), or for memory.
#: Meanwhile others are served, and requests, of which one may be what makes room; and it is tried
#: again.
FULL_SECONDS: Final = 10.0
BEHIND_SECONDS: Final = 0.02
#: Of a check, while nothing can leave.
CHECKED_PAGES: Final = 1024


class Waiter(NamedTuple):
    """Whoever waits for a page, since `begin` (`time.perf_counter`)."""

    page: int
    thread_id: int
    begin: float


class PagedRegion:
    """Of a process `client`, with `limit_pages` resident at most. `note_refused` is told of each
    page that is going to be SIGBUS, `failed` of an `OSError` that was met elsewhere than in a
    method.

    Faults are served by whoever calls `serve_faults`; all other methods are for the same thread."""

    def __init__(
        self,
        memory_of_client: RegionMemory,
        stored: StoredPages,
        client: int,
        limit_pages: int,
        note_refused: Callable[[int], None],
        failed: Callable[[OSError], None],
    ) -> None:
        self._memory = memory_of_client
        self.stored = stored
        self.client = client
        self.limit_pages = limit_pages
        self._note_refused = note_refused
        slack_pages = max(min(limit_pages // 16, 256), 1)  # that a fault seldom waits for one to leave
        self._high = limit_pages - slack_pages
        self.resident = ResidentPages(memory_of_client.page_count, self._high)
        self._eviction = Eviction(memory_of_client, stored, self.resident, slack_pages, failed)
        self._readahead = Readahead()
        self._zeros = mmap.mmap(-1, PAGE_BYTES)
        self._zeros_at = memory.address(self._zeros)
        self._buffer = mmap.mmap(-1, MAX_WINDOW_PAGES * PAGE_BYTES)
        self._buffer_at = memory.address(self._buffer)
        self._out = memoryview(self._buffer)
        self._refused: set[int] = set()  # pages that are SIGBUS
        self._waiting: list[Waiter] = []
        self.latencies = Latencies()
        self.faults = 0
        self.lost_pages = 0

    def fileno(self) -> int:
        """Ready when there are faults."""
        return self._memory.fileno()

    def take_over(self, refused: Iterable[int]) -> None:
        """Go on where another pager has died, first of all; `refused` are pages that it made
        SIGBUS.

        What is in the memfd is true, whatever the store has. It may be protected; and of those who
        wait, only the pager that is no more has heard."""
        self._refused.update(refused)
        self._note_what_is_there(0, self._memory.page_count)
        with contextlib.suppress(*CLIENT_HAS_ENDED):
            self._memory.let_all_go_on()

    @property
    def trouble(self) -> str:
        """What is the matter with it; "" if nothing is."""
        return f"process {self.client}: {FULL}" if self._eviction.is_full else ""

    def start(self) -> None:
        """Pages leave from now on."""
        self._eviction.start()

    def close(self) -> None:
        """None leaves any more, and faults wait."""
        self._eviction.close()

    # -- faults
    # ----------------------------------------------------------------------------------------------

    def serve_faults(self, spin_seconds: float = 0.0) -> int:
        """Those that wait now, or come within that time; how many there were."""
        faults = self._memory.faults(spin_seconds)
        begin = time.perf_counter()
        try:
            for fault in faults:
                page = self._memory.page_of(fault)
                if not 0 <= page < self._memory.page_count:
                    raise OSError(errno.EFAULT, "a fault was told of memory that is not the region's")
                if not fault.flags & userfaultfd.UFFD_PAGEFAULT_FLAG_WP:
                    self.faults += 1
                    waiter = Waiter(page, fault.thread_id, begin)
                    if not self._serve(waiter):
                        self._waiting.append(waiter)
                elif not self.resident.is_leaving(page):  # it has left, or stayed, before we heard of it
                    self._memory.wake(page)
        except CLIENT_HAS_ENDED:  # nobody waits
            pass
        return len(faults)

    @property
    def has_waiting(self) -> bool:
        """Whether there are faults for which there was no room: `retry` soon."""
        return bool(self._waiting)

    def retry(self) -> None:
        """Serve those for which there is room now; what has waited for too long is SIGBUS."""
        waiting, self._waiting = self._waiting, []
        with contextlib.suppress(*CLIENT_HAS_ENDED):
            for each in waiting:
                if self.resident.count < self.limit_pages and self._serve(each):
                    continue
                if time.perf_counter() < each.begin + FULL_SECONDS:
                    self._waiting.append(each)
                else:
                    self._refuse(each, "no page can leave for it, as the store is full; or there is no memory")

    def _serve(self, waiter: Waiter) -> bool:
        """Whether its page is there now; or there is no room yet."""
        page, resident = waiter.page, self.resident
        resident.wait_until_left(page)
        if resident.is_resident(page) and not self._is_removed(page):  # another thread's fault was first
            self._memory.wake(page)
        elif resident.count < self.limit_pages or self._eviction.wait_for_room(self.limit_pages, BEHIND_SECONDS):
            try:
                self._fill(waiter)
            except MemoryError:
                if not resident.is_resident(page):
                    return False
        else:
            return False
        self.latencies.add(time.perf_counter() - waiter.begin)
        return True

    def _fill(self, waiter: Waiter) -> None:
        """Bring its page back; and those that follow, if faults have come in a row. Raises
        `MemoryError`."""
        page, resident = waiter.page, self.resident
        window = self._readahead.window(page)
        next_page, left = page, window
        try:
            while left and (next_page == page or resident.count < self.limit_pages):
                count = 1  # the page itself is not there
                if window > 1:
                    count = resident.absent_run(next_page, max(min(left, self.limit_pages - resident.count), 1))
                if not count:  # nothing near
                    break
                self._bring(next_page, count)
                left -= count
                next_page = resident.next_absent(next_page + count, window)
        except (PageLost, PageDamaged):
            if next_page == page:
                self._bring_or_refuse(waiter)
        self._readahead.brought(next_page, window)

    def _is_removed(self, page: int) -> bool:
        """Whether the client has made a hole of it by itself, by madvise(MADV_REMOVE) say: it is
        zeros then, and we know it now."""
        with self.resident.changed:
            if not self.resident.is_staying(page) or any(self._memory.extents(page, page + 1)):
                return False
            self.resident.was_removed(page)
        return True

    def _bring(self, first: int, count: int) -> None:
        """A run of pages that are not resident. Raises `PageLost` or `PageDamaged`; and
        `MemoryError`, then a part of them may be."""
        if count == 1 and not self.stored.holds(first):  # nobody has written there
            self._memory.fill(first, self._zeros_at, PAGE_BYTES)
        else:
            size_bytes = count << PAGE_SHIFT
            self.stored.get(first, self._out[:size_bytes])
            try:
                self._memory.fill(first, self._buffer_at, size_bytes)
            except MemoryError:
                self._note_what_is_there(first, first + count)
                raise
            self.stored.flush(first, count)
        self.resident.came(first, count)

    def _note_what_is_there(self, first: int, stop: int) -> None:
        """Of pages that are not known to be resident, some are."""
        for begin, end in self._memory.extents(first, stop):
            self.stored.flush(begin, end - begin)
            self.resident.came(begin, end - begin)

    def _bring_or_refuse(self, waiter: Waiter) -> None:
        """The page that somebody waits for: it, or SIGBUS."""
        try:
            self._bring(waiter.page, 1)
        except (PageLost, PageDamaged) as error:
            self.lost_pages += 1
            self._refuse(waiter, str(error))

    def _refuse(self, waiter: Waiter, why: str) -> None:
        page = waiter.page
        say(f"zcache: page {page} of a region cannot be had: {why}")
        self._note_refused(page)
        try:
            self._memory.poison(page)
            self._refused.add(page)
        except FileExistsError:  # for another thread, just now
            self._memory.wake(page)
        except CLIENT_HAS_ENDED:
            raise
        except OSError:  # before Linux 6.6: for this thread, which goes on waiting if that does not end it
            libc.signal_thread(self.client, waiter.thread_id, signal.SIGBUS)

    # -- requests
    # ----------------------------------------------------------------------------------------------

    def will_need(self, first: int, stop: int) -> None:
        """Bring pages back before somebody faults on them, as far as there is room that nobody has
        to leave for."""
        while first < stop and not self._eviction.is_closing:
            self.serve_faults()  # this may take long
            room = self._high - self.resident.count
            count = self.resident.absent_run(first, min(MAX_WINDOW_PAGES, room, stop - first)) if room > 0 else 0
            if count > 0:
                try:
                    self._bring(first, count)
                except (PageLost, PageDamaged, MemoryError):
                    return  # whoever touches it will be told
            elif room <= 0:
                return
            first += max(count, 1)

    def forget(self, first: int, stop: int) -> None:
        """What is in these pages is needed no more: they read as zeros."""
        pages = self.resident.begin_to_leave_of(first, stop)
        self._memory.punch_all(first, stop)
        self.resident.left(pages)
        self.stored.flush(first, stop - first)
        for page in [page for page in self._refused if first <= page < stop]:  # no hole is there any more
            with contextlib.suppress(MemoryError):  # it stays SIGBUS
                self._memory.fill(page, self._zeros_at, PAGE_BYTES)
                self.resident.came(page)
                self._refused.discard(page)

    def check(self) -> int:
        """Raises `Imbalance` unless each page is where we think it is, and in one place only. (Of
        pages that are leaving either is right.) Returns how many the client has removed by
        itself."""
        resident, removed = self.resident, 0
        for first in range(0, resident.page_count, CHECKED_PAGES):
            stop = min(first + CHECKED_PAGES, resident.page_count)
            with resident.changed:
                in_file = {page for extent in self._memory.extents(first, stop) for page in range(*extent)}
                for page in range(first, stop):
                    if page in in_file and not resident.is_resident(page):
                        raise Imbalance(f"page {page} of a region is in its memfd, and the pager does not know it")
                    if resident.is_staying(page) and self.stored.holds(page):
                        raise Imbalance(f"page {page} of a region is resident, and in the store, too")
                    removed += resident.is_staying(page) and page not in in_file
        with resident.changed:
            if resident.count != resident.counted():
                raise Imbalance(f"{resident.count} pages of a region are resident; the walk found {resident.counted()}")
        return removed

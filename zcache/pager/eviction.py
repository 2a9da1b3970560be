"""Pages of a region leave, in batches, ahead of need: between two watermarks, so that a fault
seldom waits for one."""

import mmap
import os
import time
import traceback
from array import array
from collections.abc import Callable
from typing import Final

from zcache.errors import StoreFull
from zcache.hardening.log_pipe import say
from zcache.hardening.own_thread import OwnThread
from zcache.pager.page_moves import runs
from zcache.pager.pages import ResidentPages
from zcache.pager.region_memory import CLIENT_HAS_ENDED, RegionMemory
from zcache.pager.stored_pages import StoredPages
from zcache.pages.entry import PAGE_BYTES

#: Pages that leave together, at most: a run of a put.
BATCH_PAGES: Final = 32
#: When none can, because the store is full: until it is tried again.
REST_SECONDS: Final = 0.1
FULL: Final = (
    "a region's store is full: its program is ended (SIGBUS) 10 s after it touches one page more than fits; "
    "give a larger budget=, or a backing="
)


class Eviction:
    """Has pages leave while more than `resident.high` are there, by a thread of its own, no more
    than `slack_pages` at a time. Raises nothing there: `failed` is told of an `OSError`, which is
    the client's affair; after all else the process ends, and its keeper has another one begin."""

    def __init__(
        self,
        memory: RegionMemory,
        stored: StoredPages,
        resident: ResidentPages,
        slack_pages: int,
        failed: Callable[[OSError], None],
    ) -> None:
        self._memory, self._stored, self._resident = memory, stored, resident
        self._batch = min(BATCH_PAGES, slack_pages)
        self._failed = failed
        self.is_full = False
        self.is_closing = False
        self._out = memoryview(mmap.mmap(-1, BATCH_PAGES * PAGE_BYTES))
        self._thread = OwnThread("zcache-evictor", self._run)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self.end()
        self._thread.join()

    def end(self) -> None:
        """Say that it is to end."""
        with self._resident.changed:
            self.is_closing = True
            self._resident.changed.notify_all()
            self._resident.many.notify_all()

    def wait_for_room(self, limit_pages: int, seconds: float) -> bool:
        """Whether fewer are there within that time; or it has ended."""
        resident = self._resident
        with resident.changed:
            return resident.changed.wait_for(lambda: resident.count < limit_pages or self.is_closing, seconds)

    def _run(self) -> None:
        try:
            self._evict_until_closed()
        except CLIENT_HAS_ENDED:
            self.end()
        except OSError as error:
            self._failed(error)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # nobody could serve a fault any more

    def _evict_until_closed(self) -> None:
        resident = self._resident
        while True:
            with resident.many:
                resident.many.wait_for(lambda: resident.count > resident.high or self.is_closing)
                if self.is_closing:
                    return
            if not self.evict(self._batch):
                was_full, self.is_full = self.is_full, True  # so that who has read it finds it so
                if not was_full:
                    say(f"zcache: {FULL}")
                time.sleep(REST_SECONDS)
            else:
                self.is_full = False

    def evict(self, most: int) -> bool:
        """Have at most so many pages leave, those that are next; whether all of them could."""
        pages = array("I", sorted(self._resident.begin_to_leave(most)))
        if not pages:  # they are being forgotten
            with self._resident.changed:
                self._resident.changed.wait(REST_SECONDS)
            return True
        try:
            self._memory.protect_and_read(pages, self._out)
            count = self._put(pages)
            gone = pages[:count]
            self._memory.punch(gone)
        except OSError:  # the region is about to end; nobody is to wait for these
            for page in pages:
                self._resident.stayed(page)
            raise
        self._resident.left(gone)
        for page in pages[count:]:
            self._resident.stayed(page)
        self._memory.allow_writes(pages)
        return count == len(pages)

    def _put(self, pages: "array[int]") -> int:
        """How many of them the store has now; the first ones."""
        done = 0
        for first, count in runs(pages):
            try:
                self._stored.put(first, self._out[done * PAGE_BYTES : (done + count) * PAGE_BYTES])
            except StoreFull:
                self._stored.flush(first, count)
                break
            done += count
        return done

"""Pages of a region leave, in batches, ahead of need: between two watermarks, so that a fault
seldom waits for one."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final

from zcache.errors import StoreFull
from zcache.hardening.own_thread import OwnThread
from zcache.pager.pages import ResidentPages
from zcache.pager.region_memory import CLIENT_HAS_ENDED, RegionMemory
from zcache.pager.stored_pages import StoredPages

#: Pages that leave together, at most: a run of a put.
BATCH_PAGES: Final = 32
#: When none can, because the store is full: until it is tried again.
REST_SECONDS: Final = 0.1


class Eviction:
    """Has pages leave while more than `limit_pages` less `slack_pages` are resident, by a thread of
    its own. Raises nothing there: `failed` is told of an `OSError`, which is the client's affair;
    after all else the process ends, and its keeper has another one begin."""

    def __init__(
        self,
        memory: RegionMemory,
        stored: StoredPages,
        resident: ResidentPages,
        limit_pages: int,
        failed: Callable[[OSError], None],
    ) -> None:
        self._memory, self._stored, self._resident = memory, stored, resident
        self.slack_pages = max(min(limit_pages // 16, 256), 1)
        self._high = limit_pages - self.slack_pages
        self._failed = failed
        self._is_full = False
        self.is_closing = False
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
            with resident.changed:
                resident.changed.wait_for(lambda: resident.count > self._high or self.is_closing)
                if self.is_closing:
                    return
            if not self.evict(min(BATCH_PAGES, self.slack_pages)):
                if not self._is_full:
                    print("zcache: a region's store is full: no page can leave", file=sys.stderr, flush=True)
                self._is_full = True
                time.sleep(REST_SECONDS)
            else:
                self._is_full = False

    def evict(self, most: int) -> bool:
        """Have at most so many pages leave, those that came first; whether all of them could."""
        pages = sorted(self._resident.begin_to_leave(most))
        have_left = True
        begin = 0
        for end in range(1, len(pages) + 1):
            if end == len(pages) or pages[end] != pages[end - 1] + 1:
                have_left &= self._evict_run(pages[begin], pages[end - 1] + 1)
                begin = end
        return have_left

    def _evict_run(self, first: int, stop: int) -> bool:
        self._memory.write_protect(first, stop)
        data = self._memory.read(first, stop)
        try:
            self._stored.put(first, data)
        except StoreFull:
            self._stored.flush(first, stop - first)
            for page in range(first, stop):
                self._resident.stayed(page)
            self._memory.allow_writes(first, stop)
            return False
        self._memory.punch(first, stop)
        self._resident.left(range(first, stop))
        self._memory.allow_writes(first, stop)
        return True

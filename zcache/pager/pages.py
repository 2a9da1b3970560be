"""Where a region's pages are: in its memfd, or only in the store; and which leave first.

In the order in which they came, but for those that come back soon after they had left: these are
put into a queue of their own, from which none leaves while the other is longer than its share. So
what is touched again and again stays, and what is touched once, as by somebody who goes through
all of it, does not push it out. Nobody sees pages that are touched while they are there (to see
it would cost a fault each); this is 2Q's way (Johnson and Shasha, 1994, with their shares) with
both queues in the order of arrival. On touches by Zipf's law it has 4 % (memory of twice the limit)
to 14 % (of five times) fewer faults than one queue; with a scan among them 7 to 10 %. (By the clock
it was faster in three of these four, and slower at twice the limit: zcache/bench/RESULTS.md.)
"""

import threading
from collections.abc import Iterable
from typing import Final

from zcache.linux.memory import anonymous_memory

#: A page's states; the first two queues are of pages that stay. The memfd has a page if, and only
#: if, it is not ABSENT.
ABSENT: Final = 0
NEW: Final = 1
RETURNED: Final = 2
LEAVING: Final = 3
_ABSENT_BYTE, _LEAVING_BYTE = bytes([ABSENT]), bytes([LEAVING])
#: Of those that may be resident: the new ones' share; and how many others leave, at most, before
#: one that comes back is as good as new.
NEW_SHARE: Final = 0.25
SOON_SHARE: Final = 0.5
COUNTED_PAGES: Final = 1 << 20


def _words(count: int) -> "memoryview[int]":
    """Of 32 bits, all zero, in memory that is taken as it is used."""
    return memoryview(anonymous_memory(4 * count)).cast("I")


class ResidentPages:
    """Of a region of `page_count`: a state for each, and two queues of those that are resident.
    Thread-safe; `changed` is notified when there are fewer, `many`, over the same lock, while there
    are more than `high`.

    Cost: 13 bytes for each page that was ever there."""

    def __init__(self, page_count: int, high: int) -> None:
        self.page_count = page_count
        self.high = high
        self.count = 0  # all but ABSENT
        self._lock = threading.RLock()
        self.changed, self.many = threading.Condition(self._lock), threading.Condition(self._lock)
        self._most_new = int(high * NEW_SHARE)
        self._soon = int(high * SOON_SHARE)
        self._new_count = 0
        self._left = self._soon + 1 & 0xFFFFFFFF  # how many ever left; so that nobody has, soon before
        self._left_at = _words(page_count)  # of each page, `_left` at its last time
        self._state = anonymous_memory(page_count)
        # A queue is a ring. Behind the pages are their heads: of new ones, of those that returned.
        self._newer, self._older = _words(page_count + 2), _words(page_count + 2)
        for head in (page_count, page_count + 1):
            self._newer[head] = self._older[head] = head

    def is_resident(self, page: int) -> bool:
        """Whether the memfd has it, for all that we know."""
        return self._state[page] != ABSENT

    def is_leaving(self, page: int) -> bool:
        """Whether somebody will wake who waits to write to it."""
        with self.changed:
            return self._state[page] == LEAVING

    def is_staying(self, page: int) -> bool:
        """Whether the memfd has it, and it is not leaving. `changed` is held as long as that is to
        be so."""
        return self._state[page] in (NEW, RETURNED)

    def counted(self) -> int:
        """What `count` has to be."""
        with self.changed:
            parts = range(0, self.page_count, COUNTED_PAGES)
            return self.page_count - sum(self._state[part : part + COUNTED_PAGES].count(ABSENT) for part in parts)

    def wait_until_left(self, page: int) -> None:
        """For one that is not in the memfd any more: whoever has punched it is about to say so."""
        if self._state[page] == LEAVING:
            with self.changed:
                self.changed.wait_for(lambda: self._state[page] != LEAVING)

    def absent_run(self, first: int, most: int) -> int:
        """How many pages from `first` on, at most so many, are in the store only."""
        stop = min(first + most, self.page_count)
        with self.changed:
            states: bytes = self._state[first:stop]
        return len(states) - len(states.lstrip(_ABSENT_BYTE))

    def next_absent(self, first: int, most: int) -> int:
        """The first page from `first` on, among so many, that is in the store only; the one behind
        them if none is."""
        stop = min(first + most, self.page_count)
        place = self._state.find(_ABSENT_BYTE, first, stop)
        return place if place >= 0 else stop

    def came(self, first: int, count: int = 1) -> None:
        """They were filled."""
        with self._lock:  # by itself: this is for each fault
            for page in range(first, first + count):
                others = self._left - self._left_at[page] - 1 & 0xFFFFFFFF  # that have left since
                self._append(page, RETURNED if others < self._soon else NEW)
            self.count += count
            if self.count > self.high:
                self.many.notify_all()

    def begin_to_leave(self, most: int) -> list[int]:
        """At most so many of those that are the next, which leave now."""
        pages: list[int] = []
        with self.changed:
            new, returned = self.page_count, self.page_count + 1
            while len(pages) < most:
                is_new = self._new_count > self._most_new or self._newer[returned] == returned
                page = self._newer[new if is_new else returned]
                if page >= self.page_count:
                    break
                self._take(page)
                pages.append(page)
        return pages

    def begin_to_leave_of(self, first: int, stop: int) -> list[int]:
        """The same of all those among the pages from `first` to `stop` (exclusive); returns once
        none of the others there is LEAVING."""
        with self.changed:
            self.changed.wait_for(lambda: self._state.find(_LEAVING_BYTE, first, stop) < 0)
            pages = [page for page in range(first, stop) if self._state[page] != ABSENT]
            for page in pages:
                self._take(page)
        return pages

    def left(self, pages: Iterable[int]) -> None:
        """Those that were leaving, of which there is nothing in the memfd any more."""
        with self.changed:
            for page in pages:
                self._state[page] = ABSENT
                self._left_at[page] = self._left
                self._left = self._left + 1 & 0xFFFFFFFF
                self.count -= 1
            self.changed.notify_all()

    def was_removed(self, page: int) -> None:
        """One that was staying is not in the memfd any more."""
        with self.changed:
            self._take(page)
            self.left([page])

    def stayed(self, page: int) -> None:
        """It could not leave: it is the last of the new ones again."""
        with self.changed:
            self._append(page, NEW)
            self.changed.notify_all()

    def _append(self, page: int, state: int) -> None:
        head = self.page_count + (state == RETURNED)
        last = self._older[head]
        self._state[page] = state
        self._newer[last] = self._older[head] = page
        self._older[page], self._newer[page] = last, head
        self._new_count += state == NEW

    def _take(self, page: int) -> None:
        older, newer = self._older[page], self._newer[page]
        self._newer[older], self._older[newer] = newer, older
        self._new_count -= self._state[page] == NEW
        self._state[page] = LEAVING

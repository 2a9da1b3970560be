"""Where a region's pages are: in its memfd, or only in the store; in which order they came."""

import threading
from array import array
from collections.abc import Iterable
from typing import Final

#: A page's states. It is RESIDENT or LEAVING if, and only if, the memfd has it.
ABSENT: Final = 0
RESIDENT: Final = 1
LEAVING: Final = 2


class ResidentPages:
    """Of a region of `page_count`: a state for each, and a queue of those that are resident, in the
    order in which they came. Thread-safe; `changed` is notified when there are fewer, `many`, over
    the same lock, while there are more than `high`.

    Cost: 9 bytes a page."""

    def __init__(self, page_count: int, high: int) -> None:
        self.page_count = page_count
        self.high = high
        self.count = 0  # RESIDENT and LEAVING
        lock = threading.RLock()
        self.changed, self.many = threading.Condition(lock), threading.Condition(lock)
        self._state = bytearray(page_count)
        # The queue is a ring; page number `page_count` is its head.
        self._newer = array("I", bytes(4 * (page_count + 1)))
        self._older = array("I", bytes(4 * (page_count + 1)))
        self._newer[page_count] = self._older[page_count] = page_count

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
        return self._state[page] == RESIDENT

    def counted(self) -> int:
        """What `count` has to be."""
        with self.changed:
            return self.page_count - self._state.count(ABSENT)

    def wait_until_left(self, page: int) -> None:
        """For one that is not in the memfd any more: whoever has punched it is about to say so."""
        if self._state[page] == LEAVING:
            with self.changed:
                self.changed.wait_for(lambda: self._state[page] != LEAVING)

    def absent_run(self, first: int, most: int) -> int:
        """How many pages from `first` on, at most so many, are in the store only."""
        stop = min(first + most, self.page_count)
        with self.changed:
            places = (self._state.find(RESIDENT, first, stop), self._state.find(LEAVING, first, stop))
        return min([place for place in places if place >= 0], default=stop) - first

    def came(self, first: int, count: int = 1) -> None:
        """They were filled."""
        with self.changed:
            for page in range(first, first + count):
                self._append(page)
            self.count += count
            if self.count > self.high:
                self.many.notify_all()

    def begin_to_leave(self, most: int) -> list[int]:
        """At most so many of those that came first, which leave now."""
        pages: list[int] = []
        with self.changed:
            while len(pages) < most and (page := self._newer[self.page_count]) != self.page_count:
                self._take(page)
                pages.append(page)
        return pages

    def begin_to_leave_of(self, first: int, stop: int) -> list[int]:
        """The same of all those among the pages from `first` to `stop` (exclusive); returns once
        none of the others there is LEAVING."""
        with self.changed:
            self.changed.wait_for(lambda: self._state.find(LEAVING, first, stop) < 0)
            pages = [page for page in range(first, stop) if self._state[page] == RESIDENT]
            for page in pages:
                self._take(page)
        return pages

    def left(self, pages: Iterable[int]) -> None:
        """Those that were leaving, of which there is nothing in the memfd any more."""
        with self.changed:
            for page in pages:
                self._state[page] = ABSENT
                self.count -= 1
            self.changed.notify_all()

    def was_removed(self, page: int) -> None:
        """One that was RESIDENT is not in the memfd any more."""
        with self.changed:
            self._take(page)
            self.left([page])

    def stayed(self, page: int) -> None:
        """It could not leave: it is the last in the queue again."""
        with self.changed:
            self._append(page)
            self.changed.notify_all()

    def _append(self, page: int) -> None:
        head, last = self.page_count, self._older[self.page_count]
        self._state[page] = RESIDENT
        self._newer[last] = self._older[head] = page
        self._older[page], self._newer[page] = last, head

    def _take(self, page: int) -> None:
        older, newer = self._older[page], self._newer[page]
        self._newer[older], self._older[newer] = newer, older
        self._state[page] = LEAVING

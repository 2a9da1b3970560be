"""Admission: which pages of ephemeral pools are worth their room. Persistent pools admit
everything.

Two questions. Before a page is compressed: has it shown that it is used again (WasActive)? The
original asked the kernel whether a page had been on the active list; we see reads only, and ask
whether the page was missed before, not long ago (`zcache.store.ghost`). So what is read once, by a
scan of a disk or a backup, washes nothing out of the cache. Then, with the zpage in hand: is it
short enough?
"""

from typing import Final

from zcache.pages.entry import EMPTY, PAGE_BYTES, zpage_bytes
from zcache.statistics import Statistics
from zcache.store.ghost import Ghost

ADMIT: Final = ("reused", "always")

#: The ghost remembers as many pages as the whole budget can hold, at four to one.
PAGES_A_PAGEFRAME: Final = 4

#: The original's `zv_max_mean_zsize`: with a mean beyond 5/8 of a page, an ephemeral page that is
#: worse still is not worth its room.
MAX_MEAN_ZPAGE_BYTES: Final = PAGE_BYTES * 5 // 8


class Admission:
    """For the ephemeral pools of a store, with `budget_bytes` of pageframes; the caller holds its
    lock. `admit` may change at any time."""

    def __init__(self, admit: str, budget_bytes: int, statistics: Statistics) -> None:
        self.admit = admit
        self.ghost = Ghost(budget_bytes // PAGE_BYTES * PAGES_A_PAGEFRAME)
        self._statistics = statistics

    def were_active(self, owner: int, count: int) -> list[bool]:
        """Which of the pages from `owner` on, all of them missed now, may be put; those that may
        not are counted. All are remembered."""
        saw = self.ghost.saw
        active = [saw(key) for key in range(owner, owner + count)]
        if self.admit == "always":
            return [True] * count
        refused = active.count(False)
        self._statistics.reject_not_reused += refused
        self._statistics.ignored_puts += refused
        return active

    def reject_poor(self, data: bytes, tags: list[int]) -> bytes:
        """Pages that compress poorly are not stored, their entry will be EMPTY. The tags of a put
        change in place; returns the zpages that are left of its `data`. Each reason is counted."""
        statistics = self._statistics
        mean = statistics.ephemeral_bytes / statistics.ephemeral_pages if statistics.ephemeral_pages else 0
        kept: list[bytes] = []
        start = 0
        for index, tag in enumerate(tags):
            size = zpage_bytes(tag)
            if size == PAGE_BYTES:
                statistics.reject_compress_poor += 1
            elif mean > MAX_MEAN_ZPAGE_BYTES and size > mean:
                statistics.reject_mean_poor += 1
            else:
                kept.append(data[start : start + size])
                start += size
                continue
            statistics.ignored_puts += 1
            tags[index] = EMPTY
            start += size
        return b"".join(kept)

    def populate(self) -> None:
        """Fault in what it remembers with. Not for the I/O path."""
        self.ghost.populate()

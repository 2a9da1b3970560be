"""Compaction: packs what is alive in the emptiest frames of the log into fewer. (The cleaner of
log-structured stores; here "clean" is a frame whose bytes are below, too.)

In RAM, packing competes with writing the oldest frames below: either gives frames back. A light
frame is packed, because copying what little is alive in it costs less than a write and a later
read; above `WORTH_WEIGHT` frames are written, and packed only if they cannot be. Below, it is only
done when slots run out: the lightest frames there are read, what is alive in them goes into frames
in RAM, the oldest of all, and those go down again as others do.

What is packed keeps its age, as near as may be: victims are packed in the order of their births,
and the frame that takes them stands in the queue where the first of them stood.

Law: a victim is chosen among the frames of a window (256 MiB of them), so that a look costs a
millisecond at most under the lock, whatever the budget; only a put for which nothing else can be
done looks at all. A search that found nothing is not repeated before some pages have died.
"""

import heapq
from collections.abc import Callable, Iterable
from typing import Final

from zcache.allocators.log import WORST_WEIGHT, Log
from zcache.allocators.log_frame import Stream
from zcache.allocators.log_packing import LogPacking
from zcache.books import Books
from zcache.fetch.readback import Readback
from zcache.pageframes import PageFrames, State
from zcache.pageframes.queues import Queue
from zcache.pageframes.states import CLEAN, DIRTY
from zcache.tiers.damage import SEAL_BROKEN, UNREADABLE

#: Frames in one go: their zpages are copied under the lock, some 40 us a frame.
VICTIMS: Final = 4
#: Frames that are looked at in one go, and how many of them are remembered as victims.
WINDOW_FRAMES: Final = 1 << 12
REMEMBERED: Final = 64
#: Packing four frames of this weight gives one back.
WORTH_WEIGHT: Final = WORST_WEIGHT * 3 // 4
#: As many pages as an ordinary frame holds must have died since a search found nothing.
PAGES_BETWEEN_SEARCHES: Final = 64
#: Zpages in one go, or one frame's: a frame of those of 8 bytes has thousands.
MOST_ZPAGES: Final = 512


class _Search:
    """Where a search for light frames goes on, and what it has found. All windows must have been
    empty before it is said that there are none, and then some pages must die before it looks
    again."""

    def __init__(self, log: Log, frames: PageFrames) -> None:
        self._log = log
        self._frames = frames
        self._next = 0
        self._empty_items = 0  # looked at since the last one was found
        self._nothing_at = -PAGES_BETWEEN_SEARCHES  # zpages that had died when there was none
        self.found: list[int] = []  # the youngest first

    def is_due(self) -> bool:
        """Whether it may find something that it has not found last time."""
        return self._log.released_zpages - self._nothing_at >= PAGES_BETWEEN_SEARCHES

    def look(self, look: Callable[[int, int], Iterable[int]], end: int, limit: int, everywhere: bool) -> None:
        """Find the lightest frames of the next window, or of the next that has any."""
        for _ in range(end // WINDOW_FRAMES + 2 if everywhere else 1):
            start = self._next if self._next < end else 0
            self._next = min(start + WINDOW_FRAMES, end)
            found = heapq.nsmallest(limit, look(start, self._next), key=self._log.weight.__getitem__)
            if found:
                self._empty_items = 0
                self.found = sorted(found, key=self._frames.birth.__getitem__, reverse=True)
                return
            self._empty_items += self._next - start
        if self._empty_items >= end:
            self._empty_items = 0
            self._nothing_at = self._log.released_zpages


class Compactor:
    """Packs frames: in RAM under the store's lock, below without it."""

    def __init__(
        self,
        frames: PageFrames,
        log: Log,
        packing: LogPacking,
        readback: Readback | None,
        books: Books,
    ) -> None:
        self._frames = frames
        self._log = log
        self._packing = packing
        self._readback = readback
        self._lock, self._statistics, self._damage, _ = books
        self._below = _Search(log, frames)
        self._in_ram: dict[int, _Search] = {}  # by the weight that is looked for
        self.under_way = 0  # threads that read frames to pack them

    def pack_ram(self, worst_weight: int, everywhere: bool = False) -> bool:
        """Under the lock: pack some of the lightest frames that are in RAM only. Whether anything
        was moved.

        Looks at one window, or `everywhere`."""
        search = self._in_ram.setdefault(worst_weight, _Search(self._log, self._frames))
        if self._pack_some(search.found, worst_weight):
            return True
        if everywhere or search.is_due():
            self._look_in_ram(search, worst_weight, everywhere)
        return self._pack_some(search.found, worst_weight)

    def _pack_some(self, victims: list[int], worst_weight: int) -> bool:
        """The last of those that were found, if they still are what they were then, or lighter."""
        frames, weight = self._frames, self._log.weight
        moved = packed = 0
        while victims and packed < VICTIMS and moved < MOST_ZPAGES:
            frame = victims.pop()
            slot = frames.home[frame]
            is_light = frames.state[frame] == State.DIRTY and weight[frame] <= worst_weight
            if is_light and frames.queue_of[slot] == Queue.PERSISTENT:
                moved += self._move_out(frame, slot, behind=slot)
                packed += 1
        return moved > 0

    def pack_below(self, everywhere: bool = False) -> bool:
        """Without the lock: give some slots below back. False: nothing has changed, and trying
        again will not help."""
        frames, log = self._frames, self._log
        with self._lock:
            if not everywhere and not self._below.is_due():
                return False
            released = log.released_zpages
            self._look_below(everywhere)
            cold = []
            for frame in reversed(self._below.found):
                if slot := frames.home[frame]:
                    self._move_out(frame, slot, behind=0)
                else:
                    cold.append(frame)
            self.under_way += 1
        has_changed = False
        try:
            if cold and self._readback:
                with self._readback.borrowed(cold) as jobs, self._lock:
                    for job in jobs:
                        if frames.birth[job.frame] != job.birth or frames.state[job.frame] != State.COLD:
                            continue
                        if job.is_read:
                            self._move_out(job.frame, job.slot, behind=0)
                        elif job.failed:
                            has_changed |= self._mark(job.frame, job.birth, job.wrong)
                    # Some may be gone by somebody else's doing: packed, dead, or brought back.
                    has_changed |= any(frames.state[frame] != State.COLD for frame in cold)
        finally:
            with self._lock:
                self.under_way -= 1
        return has_changed or log.released_zpages != released

    def _mark(self, frame: int, birth: int, wrong: str) -> bool:
        """Under the lock: a frame could not be read: it will not be tried again. Whether others
        may."""
        assert self._readback
        self._statistics.checksum_errors += wrong == SEAL_BROKEN
        self._statistics.fetch_errors += wrong == UNREADABLE
        is_new = not self._is_damaged(frame)
        self._damage.mark(frame, birth, wrong)
        return is_new and self._is_damaged(frame) and not self._readback.is_known_dead(frame)

    def _is_damaged(self, frame: int) -> bool:
        return self._damage.is_marked(frame, self._frames.birth[frame])

    def _move_out(self, frame: int, slot: int, behind: int) -> int:
        """Under the lock: move all that is alive in a frame, whose bytes are in RAM slot `slot`;
        returns how many."""
        zpages = self._packing.collect(frame, slot)
        stream = Stream.RECOMPRESSED if self._log.is_tight[frame] else Stream.PACKED
        moved = self._packing.append(zpages, stream, behind)
        self._statistics.packed_pages += moved
        self._statistics.packed_frames += moved == len(zpages)
        return moved

    def _look_in_ram(self, search: _Search, worst_weight: int, everywhere: bool) -> None:
        frames, weight = self._frames, self._log.weight
        state, home, queue_of, queue = frames.state, frames.home, frames.queue_of, Queue.PERSISTENT

        def look(start: int, stop: int) -> list[int]:
            return [
                frame
                for slot, frame in enumerate(frames.frame_of[start:stop], start)
                if weight[frame] <= worst_weight
                and state[frame] == DIRTY
                and home[frame] == slot
                and queue_of[slot] == queue
            ]

        search.look(look, frames.slot_count, REMEMBERED, everywhere)

    def _look_below(self, everywhere: bool) -> None:
        frames, weight = self._frames, self._log.weight
        state = frames.state

        def look(start: int, stop: int) -> list[int]:
            return [
                frame
                for frame in range(start, stop)
                if weight[frame] <= WORST_WEIGHT and state[frame] >= CLEAN and not self._is_damaged(frame)
            ]

        self._below.found = []
        self._below.look(look, frames.fresh_id, VICTIMS, everywhere)

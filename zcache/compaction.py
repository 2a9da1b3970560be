"""Compaction: packs what is alive in the emptiest frames of the log into fewer. (The cleaner of log-structured stores;
here "clean" is a frame whose bytes are below, too.)

In RAM, packing competes with writing the oldest frames below: either gives frames back. A light frame is packed,
because copying what little is alive in it costs less than a write and a later read; above `WORTH_WEIGHT` frames are
written, and packed only if they cannot be. Below, it is only done when slots run out: the lightest frames there are
read, what is alive in them goes into frames in RAM, the oldest of all, and those go down again as others do.

What is packed keeps its age, as near as may be: victims are packed in the order of their births, and the frame that
takes them stands in the queue where the first of them stood.

Law: a victim is chosen among the frames of a window (256 MiB of them), so that a look costs a third of a millisecond
under the lock, whatever the budget; only a put that would fail looks at all. A search that found nothing is not
repeated before some pages have died.
"""

import heapq
import threading
from collections.abc import Callable, Iterable
from typing import Final

from zcache.allocators.log import WORST_WEIGHT, Log, Stream
from zcache.fetch import Fetcher
from zcache.health import Health
from zcache.pageframes import PageFrames, State
from zcache.pageframes.frames import Queue
from zcache.statistics import Statistics

#: Frames in one go: their zpages are copied under the lock, some 40 us a frame.
VICTIMS: Final = 4
#: Frames that are looked at in one go, and how many of them are remembered as victims.
WINDOW_FRAMES: Final = 1 << 12
REMEMBERED: Final = 64
#: Packing four frames of this weight gives one back.
WORTH_WEIGHT: Final = WORST_WEIGHT * 3 // 4
#: As many pages as a frame may hold must have died since a search found nothing.
PAGES_BETWEEN_SEARCHES: Final = 64


class Compactor:
    """Packs frames: in RAM under the store's lock, below without it."""

    def __init__(
        self,
        frames: PageFrames,
        log: Log,
        fetcher: Fetcher | None,
        lock: threading.Lock,
        statistics: Statistics,
        health: Health,
    ) -> None:
        self._frames = frames
        self._log = log
        self._fetcher = fetcher
        self._lock = lock
        self._statistics = statistics
        self._health = health
        self._next_slot = 0  # where the next window begins
        self._next_id = 1
        self._victims: list[int] = []  # that a search has found in RAM, the youngest first
        # How many zpages had died when a search found none, in RAM by the weight that was looked for:
        self._found_nothing_in_ram: dict[int, int] = {}
        self._found_nothing_below = -PAGES_BETWEEN_SEARCHES
        self.under_way = 0  # threads that read frames to pack them

    def pack_ram(self, worst_weight: int, everywhere: bool = False) -> bool:
        """Under the lock: pack some of the lightest frames that are in RAM only. Whether anything was moved.

        Looks at one window, or `everywhere`."""
        moved = self._pack_victims(worst_weight)
        last = self._found_nothing_in_ram.get(worst_weight, -PAGES_BETWEEN_SEARCHES)
        if moved or (not everywhere and self._is_too_early(last)):
            return moved
        self._victims = self._lightest_in_ram(worst_weight, everywhere)
        moved = self._pack_victims(worst_weight)
        if not moved:
            self._found_nothing_in_ram[worst_weight] = self._log.released_zpages
        return moved

    def _pack_victims(self, worst_weight: int) -> bool:
        """Some of those that were found, if they still are what they were then, or lighter."""
        frames, weight = self._frames, self._log.weight
        moved = packed = 0
        while self._victims and packed < VICTIMS:
            frame = self._victims.pop()
            slot = frames.home[frame]
            is_light = frames.state[frame] == State.DIRTY and weight[frame] <= worst_weight
            if is_light and frames.queue_of[slot] == Queue.PERSISTENT:
                moved += self._move_out(frame, slot, behind=slot)
                packed += 1
        return moved > 0

    def pack_below(self, everywhere: bool = False) -> bool:
        """Without the lock: give some slots below back. Whether anything was moved."""
        frames = self._frames
        moved = 0
        with self._lock:
            if not everywhere and self._is_too_early(self._found_nothing_below):
                return False
            cold = []
            for frame in self._lightest_below(everywhere):
                if slot := frames.home[frame]:
                    moved += self._move_out(frame, slot, behind=0)
                else:
                    cold.append(frame)
            self.under_way += 1
        try:
            if cold and self._fetcher:
                with self._fetcher.borrowed(cold) as jobs, self._lock:
                    for job in jobs:
                        if job.is_read and frames.birth[job.frame] == job.birth:
                            if frames.state[job.frame] == State.COLD:
                                moved += self._move_out(job.frame, job.slot, behind=0)
                        elif job.failed:
                            self._health.mark(job.frame, job.birth, job.wrong)
        finally:
            with self._lock:
                self.under_way -= 1
                if not moved:
                    self._found_nothing_below = self._log.released_zpages
        return moved > 0

    def _is_too_early(self, found_nothing: int) -> bool:
        return self._log.released_zpages - found_nothing < PAGES_BETWEEN_SEARCHES

    def _move_out(self, frame: int, slot: int, behind: int) -> int:
        """Under the lock: move all that is alive in a frame, whose bytes are in RAM slot `slot`; returns how many."""
        zpages = self._log.collect(frame, slot)
        stream = Stream.RECOMPRESSED if self._log.is_tight[frame] else Stream.PACKED
        moved = self._log.append(zpages, stream, behind)
        self._statistics.packed_pages += moved
        self._statistics.packed_frames += moved == len(zpages)
        return moved

    def _lightest_in_ram(self, worst_weight: int, everywhere: bool) -> list[int]:
        """The youngest first."""
        frames, weight = self._frames, self._log.weight
        state, home, queue_of = frames.state, frames.home, frames.queue_of

        def look(start: int, stop: int) -> list[int]:
            return [
                frame
                for slot, frame in enumerate(frames.frame_of[start:stop], start)
                if weight[frame] <= worst_weight
                and state[frame] == 2  # DIRTY
                and home[frame] == slot
                and queue_of[slot] == Queue.PERSISTENT
            ]

        end = frames.slot_count
        found, self._next_slot = self._look_around(look, self._next_slot, end, REMEMBERED, everywhere)
        return found[::-1]

    def _lightest_below(self, everywhere: bool) -> list[int]:
        frames, weight, damaged = self._frames, self._log.weight, self._health.damaged
        state = frames.state

        def look(start: int, stop: int) -> list[int]:
            return [
                frame
                for frame in range(start, stop)
                if weight[frame] <= WORST_WEIGHT and state[frame] >= 4 and frame not in damaged  # CLEAN or COLD
            ]

        end = frames.fresh_id
        found, self._next_id = self._look_around(look, self._next_id, end, VICTIMS, everywhere)
        return found

    def _look_around(
        self, look: Callable[[int, int], Iterable[int]], start: int, end: int, limit: int, everywhere: bool
    ) -> tuple[list[int], int]:
        """The lightest frames of the first window that has any, the oldest first, and where the next one begins."""
        for _ in range(end // WINDOW_FRAMES + 2 if everywhere else 1):
            if start >= end:
                start = 0
            stop = min(start + WINDOW_FRAMES, end)
            found = heapq.nsmallest(limit, look(start, stop), key=self._log.weight.__getitem__)
            start = stop
            if found:
                return sorted(found, key=self._frames.birth.__getitem__), start
        return [], start

"""The budget: how many RAM slots there are, between two bounds, and how they become more or fewer
while pages come and go.

Growing: slots that were absent are given memory, without the lock, and are free. Shrinking: free
slots leave, then those of clean copies and ephemeral pages, which are eaten for it, and then, if
that may be, those of the oldest persistent frames, which are written below first; the memory of all
goes back to the system. A put sees fewer frames, or more, and nothing else: there is no moment at
which something could not go on.

The budget never becomes less than `min_frames`, which is enough for what the device was promised,
and for requests to find room (`Allocator.min_budget_frames`).

One thread changes it.
"""

import threading
from array import array
from collections.abc import Callable
from typing import Final

from zcache.hardening.threads import without_real_time
from zcache.pageframes import PageFrames
from zcache.pageframes.queues import Queue
from zcache.pageframes.transitions import drop_oldest_clean
from zcache.reclaim.reclaimer import Reclaimer
from zcache.statistics import Statistics

#: What changes under one lock: to evict that many ephemeral frames takes a millisecond, or two.
STEP_BYTES: Final = 1 << 20

#: Flights for one change, 32 MiB: then the machine is looked at again.
MOST_FLIGHTS: Final = 64

#: Breaths after a change, and when in them what is absent is given back once more: half a second, 2
#: s and 10 s later.
SWEEPS: Final = (20, 19, 16, 0)


class Budget:
    """Of a store with as many RAM slots as `max_frames` at most; `changed` is told each new figure,
    without the lock."""

    def __init__(
        self,
        frames: PageFrames,
        reclaimer: Reclaimer,
        lock: threading.Lock,
        statistics: Statistics,
        min_frames: int,
        changed: Callable[[int], None] = lambda _frames: None,
    ) -> None:
        self._frames = frames
        self._reclaimer = reclaimer
        self._lock = lock
        self._statistics = statistics
        self.changed = changed
        self._breaths_left = 0  # until all that is absent is surely a hole
        self.least_frames = min_frames  # that `min_frames` can be
        self.min_frames = min_frames
        self.max_frames = frames.max_budget_frames
        self._step = max(STEP_BYTES // frames.frame_bytes, 1)

    def begin(self, wanted_frames: int) -> None:
        """Before the first request, and before RAM is populated: so many, or as many as hold
        something. What else has memory, in an image, gives it back later: there is no time for that
        now."""
        with self._lock:
            surplus = self._frames.max_budget_frames - max(wanted_frames, self.min_frames)
            if self._frames.slots.withdraw(max(surplus, 0)):
                self._breaths_left = SWEEPS[0]
        self._set_watermarks()

    def sweep(self) -> None:
        """At each breath: what is absent goes back to the system once more, now and then after a
        change. What was given back comes again if the keeper was about to fault it in just then;
        and some of it had never gone. Raises `OSError`."""
        if self._breaths_left:
            self._breaths_left -= 1
            if self._breaths_left in SWEEPS[1:]:
                self._frames.memory.give_back_absent()

    def grow(self, count: int) -> int:
        """By up to `count` frames; by how many it was. Waits for memory; raises `OSError` if there
        is none."""
        frames = self._frames
        count = min(count, self.max_frames - frames.budget_frames)
        done = 0
        while done < count:
            part = min(count - done, self._step)
            self._breaths_left = SWEEPS[0]  # some may get memory and stay absent
            with without_real_time():
                frames.memory.get_back(frames.slots.absent()[-part:])
            with self._lock:
                frames.slots.restore(part)
                self._statistics.budget_grown_frames += part
                self._reclaimer.landed.notify_all()
            done += part
            self._set_watermarks()
        return done

    def shrink(self, count: int, may_write: bool) -> int:
        """By up to `count` frames; by how many it was. At most `MOST_FLIGHTS` are flown for it.
        Raises `OSError`, and the budget is what it was, where memory cannot be given back."""
        frames = self._frames
        count = min(count, frames.budget_frames - self.min_frames)
        done = flights = 0
        while done < count:
            with self._lock:
                slots = self._withdraw(min(count - done, self._step))
            try:
                frames.memory.give_back(slots)
            except OSError:
                with self._lock:
                    frames.slots.restore(len(slots))
                raise
            if slots:
                self._breaths_left = SWEEPS[0]
                done += len(slots)
                self._statistics.budget_shrunk_frames += len(slots)
                self._set_watermarks()
                continue
            flights += 1
            if not may_write or flights > MOST_FLIGHTS or not self._reclaimer.clean_some():
                break
        return done

    def _withdraw(self, count: int) -> "array[int]":
        """Under the lock: slots that are free, or of what gives way; the reserve stays."""
        frames = self._frames
        while frames.free_slot_count - frames.reserve_frames < count:
            gave_way = drop_oldest_clean(frames) or self._reclaimer.ouroboros.evict_oldest()
            if not gave_way:
                break
        return frames.slots.withdraw(min(count, max(frames.free_slot_count - frames.reserve_frames, 0)))

    def _set_watermarks(self) -> None:
        self._reclaimer.set_watermarks(self._frames.budget_frames)
        self.changed(self._frames.budget_frames)

    def is_settled(self) -> bool:
        """Whether it is what it has to be, and nothing is left to be given back."""
        return self.min_frames == self.max_frames == self._frames.budget_frames and not self._breaths_left

    def idle_frames(self) -> tuple[int, int]:
        """Under the lock: how many frames are free, and how many more give way."""
        frames = self._frames
        free = max(frames.free_slot_count - frames.reserve_frames, 0)
        return free, frames.queue_length[Queue.CLEAN] + frames.queue_length[Queue.EPHEMERAL]

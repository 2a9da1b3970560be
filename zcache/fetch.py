"""Fetch: brings zpages back from frames that are below only (COLD).

A read of the medium takes long and is done without the lock, so nothing that was known before it is believed after
it: the page's entry and the frame's birth are looked up again. If both are what they were, the bytes read are the
page's, and the seal proves it; if not, the page was overwritten, trimmed or moved meanwhile, and is looked for anew.
That is why no frame is ever pinned, and why a slot below may be reused under a reader: what it then reads is thrown
away.

A frame is read into a RAM slot beside the budget. If the budget has a free slot, or a CLEAN frame to drop for it, the
slot becomes the frame's home and the other takes its place (COLD -> CLEAN, no copy): its neighbours will be found in
RAM. It never costs a DIRTY frame its place.
"""

import threading
from collections.abc import Sequence

from zcache.entry import FRAME_MASK, LENGTH_MASK, LENGTH_SHIFT, OFFSET_MASK, OFFSET_SHIFT, SAME_FILLED
from zcache.errors import PageDamaged
from zcache.pageframes import PageFrames, State
from zcache.seals import Seal
from zcache.statistics import Statistics
from zcache.tiers import Tier

__all__ = ["Fetcher"]


class _Job:
    """One frame to read: what was known of it under the lock, and the run's pages that are in it."""

    __slots__ = ("below", "birth", "failed", "frame", "pages", "seal", "slot")

    def __init__(self, frames: PageFrames, frame: int, slot: int, pages: list[int]) -> None:
        self.frame = frame
        self.slot = slot
        self.pages = pages
        self.below = frames.below[frame]
        self.birth = frames.birth[frame]
        self.seal = frames.seal_of(frame)
        self.failed: str | None = None


class Fetcher:
    """Reads cold frames; one for a store, called by any number of threads without the lock."""

    def __init__(
        self, frames: PageFrames, tier: Tier, seal: Seal, lock: threading.Lock, statistics: Statistics
    ) -> None:
        self._frames = frames
        self._tier = tier
        self._seal = seal
        self._lock = lock
        self._statistics = statistics
        self._slot_returned = threading.Condition(lock)

    def fetch(self, table: memoryview, first: int, cold: list[int], entries: list[int], bodies: list[bytes]) -> None:
        """Bring `entries[i]` and `bodies[i]` up to date for each i in `cold`; page `first + i` is meant.

        Raises `PageDamaged` if a frame cannot be read, or is not what was written.
        """
        wanted = cold
        while wanted:
            with self._lock:
                jobs = self._look_up(table, first, wanted, entries, bodies)
                while jobs is None:
                    self._slot_returned.wait()
                    jobs = self._look_up(table, first, wanted, entries, bodies)
            if jobs:
                try:
                    self._read(jobs)
                    with self._lock:
                        self._take_over(jobs, table, first, entries, bodies)
                finally:
                    self._give_back(jobs)
            wanted = [index for index in wanted if not bodies[index] and 0 < entries[index] < SAME_FILLED]

    def _look_up(
        self, table: memoryview, first: int, wanted: Sequence[int], entries: list[int], bodies: list[bytes]
    ) -> list[_Job] | None:
        """Under the lock: what must be read for the pages wanted; None: no slot to read into is free now."""
        frames = self._frames
        by_frame: dict[int, list[int]] = {}
        for index in wanted:
            entry = entries[index] = table[first + index]
            bodies[index] = b""  # what an earlier look found may have died while we waited for a slot
            if 0 < entry < SAME_FILLED:
                frame = entry & FRAME_MASK
                if frames.home[frame]:
                    bodies[index] = _body(frames, frames.home[frame], entry)
                else:
                    by_frame.setdefault(frame, []).append(index)
        jobs = []
        for frame, pages in by_frame.items():
            slot = frames.take_fetch_slot()
            if not slot:
                break
            jobs.append(_Job(frames, frame, slot, pages))
        return None if by_frame and not jobs else jobs

    def _read(self, jobs: list[_Job]) -> None:
        """Without the lock: read all frames, neighbours below in one go, and open their seals."""
        jobs.sort(key=lambda job: job.below)
        size, ram = self._frames.frame_bytes, self._frames.ram_view
        views = [ram[job.slot * size : (job.slot + 1) * size] for job in jobs]
        start = 0
        for stop in range(1, len(jobs) + 1):
            if stop < len(jobs) and jobs[stop].below == jobs[stop - 1].below + 1:
                continue
            try:
                self._tier.read(jobs[start].below, views[start:stop])
            except OSError as error:
                for job in jobs[start:stop]:
                    job.failed = f"reading slot {job.below}: {error.strerror}"
            start = stop
        for job, view in zip(jobs, views, strict=True):
            if not job.failed and not self._seal.opens(job.frame, job.birth, job.seal, view):
                job.failed = f"what is in slot {job.below} is not what was sealed"

    def _take_over(
        self, jobs: list[_Job], table: memoryview, first: int, entries: list[int], bodies: list[bytes]
    ) -> None:
        """Under the lock: use what was read, where it is still what is wanted."""
        frames, statistics = self._frames, self._statistics
        damage = None
        for job in jobs:
            if frames.birth[job.frame] == job.birth:
                valid = [index for index in job.pages if table[first + index] == entries[index]]
                if job.failed:
                    if valid:
                        damage = job.failed
                        statistics.checksum_errors += "sealed" in job.failed
                        statistics.fetch_errors += "reading" in job.failed
                else:
                    for index in valid:
                        bodies[index] = _body(frames, job.slot, entries[index])
                    statistics.fetched_frames += 1
                    if frames.state[job.frame] == State.COLD:
                        spare = frames.adopt(job.frame, job.slot)
                        statistics.readopted_frames += spare != job.slot
                        job.slot = spare
        if damage:
            raise PageDamaged(damage)

    def _give_back(self, jobs: list[_Job]) -> None:
        """Without the lock: each job's slot, or the one that it was exchanged for, can be read into again."""
        with self._lock:
            for job in jobs:
                self._frames.give_fetch_slot(job.slot)
            self._slot_returned.notify_all()


def _body(frames: PageFrames, slot: int, entry: int) -> bytes:
    start = slot * frames.frame_bytes + (entry >> OFFSET_SHIFT & OFFSET_MASK)
    return frames.ram[start : start + (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1]

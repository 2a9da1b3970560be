"""Fetch: brings zpages back from frames that are below only (COLD).

A read of the medium takes long and is done without the lock, so nothing that was known before it is
believed after it: the page's entry and the frame's birth are looked up again. If both are what they
were, the bytes read are the page's, and the seal proves it; if not, the page was overwritten,
trimmed or moved meanwhile, and is looked for anew. That is why no frame is ever pinned, and why a
slot below may be reused under a reader: what it then reads is thrown away.

A frame is read into a RAM slot beside the budget. If the budget has a free slot, or a frame that
gives way (CLEAN or ephemeral, whichever there are more of), the slot becomes the frame's home and
the other takes its place (COLD -> CLEAN, no copy): its neighbours will be found in RAM. Nothing
persistent that is in RAM only makes room for it. Frames that follow on the disk are read along
while that pays (`zcache.fetch.readahead`).

What becomes of a read that fails, `zcache.fetch.readback` says.
"""

from collections.abc import Callable, Sequence
from typing import Final

from zcache.books import Books
from zcache.errors import PageDamaged
from zcache.fetch.readahead import Readahead
from zcache.fetch.readback import Job, Readback
from zcache.pageframes import PageFrames, State
from zcache.pageframes.slots import FETCH_SLOTS
from zcache.pageframes.transitions import adopt, ephemeral_gives_way, has_room_for
from zcache.pages.entry import FRAME_MASK, LENGTH_MASK, LENGTH_SHIFT, OFFSET_MASK, OFFSET_SHIFT, SAME_FILLED
from zcache.tiers.damage import SEAL_BROKEN, UNREADABLE

__all__ = ["Fetcher"]

#: Slots to read into that are not for what nobody has asked for.
KEPT_SLOTS: Final = FETCH_SLOTS // 2


class Fetcher:
    """Reads cold frames; one for a store, called by any number of threads without the lock."""

    def __init__(
        self,
        frames: PageFrames,
        readback: Readback,
        books: Books,
        eat_ephemeral: Callable[[], bool],
    ) -> None:
        self._frames = frames
        self.readback = readback
        self._eat_ephemeral = eat_ephemeral
        self.readahead = Readahead(frames, books.statistics)
        self._lock, self._statistics, self._damage, _ = books

    def fetch(self, table: memoryview, first: int, cold: list[int], entries: list[int], bodies: list[bytes]) -> None:
        """Bring `entries[i]` and `bodies[i]` up to date for each i in `cold`; page `first + i` is
        meant.

        Raises `PageDamaged` if a frame cannot be read, or is not what was written.
        """
        wanted = cold
        while wanted:
            with self._lock:
                jobs = self.look_up(table, first, wanted, entries, bodies)
                while jobs is None:
                    self.readback.slot_returned.wait()
                    jobs = self.look_up(table, first, wanted, entries, bodies)
            if jobs:
                try:
                    self.readback.read(jobs)
                    with self._lock:
                        self._take_over(jobs, table, first, entries, bodies)
                finally:
                    self.readback.give_back(jobs)
            wanted = [index for index in wanted if not bodies[index] and 0 < entries[index] < SAME_FILLED]

    def look_up(
        self, table: memoryview, first: int, wanted: Sequence[int], entries: list[int], bodies: list[bytes]
    ) -> list[Job] | None:
        """Under the lock: what must be read for the pages wanted; None: no slot to read into is
        free now."""
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
            jobs.append(Job(frames, frame, pages))
        del jobs[frames.slots.fetch_count :]
        if not jobs:
            return None if by_frame else jobs
        more = frames.slots.fetch_count - len(jobs) - KEPT_SLOTS
        if more > 0 and self.readback.is_well(jobs):
            ahead = self.readahead.choose(table, first + len(entries), [job.frame for job in jobs])
            jobs += [Job(frames, frame, [], is_ahead=True) for frame in ahead[:more]]
        for job in jobs:  # last: nothing after it can fail for lack of memory
            job.slot = frames.slots.take_fetch()
        return jobs

    def _take_over(
        self, jobs: list[Job], table: memoryview, first: int, entries: list[int], bodies: list[bytes]
    ) -> None:
        """Under the lock: use what was read, where it is still what is wanted. What was not is
        looked up again."""
        frames, statistics = self._frames, self._statistics
        damage = None
        for job in jobs:
            if frames.birth[job.frame] == job.birth:
                valid = [index for index in job.pages if table[first + index] == entries[index]]
                if job.failed:
                    # If another get has read it meanwhile, and it is in RAM, or another tier has it
                    # by now, the next look finds it there.
                    is_where_it_was = frames.state[job.frame] == State.COLD and frames.below[job.frame] == job.below
                    if valid and is_where_it_was:
                        damage = job.failed
                        statistics.checksum_errors += job.wrong == SEAL_BROKEN
                        statistics.fetch_errors += job.wrong == UNREADABLE
                        self._damage.mark(job.frame, job.birth, job.wrong)
                elif job.is_read:
                    self._damage.unmark(job.frame)
                    for index in valid:
                        bodies[index] = _body(frames, job.slot, entries[index])
                    statistics.fetched_frames += not job.is_ahead
                    if frames.state[job.frame] == State.COLD:
                        self._adopt(job)
        if damage:
            raise PageDamaged(damage)

    def _adopt(self, job: Job) -> None:
        """Under the lock: the frame stays in RAM, if something there gives way."""
        frames = self._frames
        if job.is_ahead and not has_room_for(frames, self.readahead.window):
            self.readahead.came(job.frame, is_kept=False)
            return
        if ephemeral_gives_way(frames) and not job.is_ahead:
            self._eat_ephemeral()
        spare = adopt(frames, job.frame, job.slot)
        is_kept = spare != job.slot
        job.slot = spare
        self._statistics.readopted_frames += is_kept
        if job.is_ahead:
            self.readahead.came(job.frame, is_kept)


def _body(frames: PageFrames, slot: int, entry: int) -> bytes:
    start = slot * frames.frame_bytes + (entry >> OFFSET_SHIFT & OFFSET_MASK)
    return frames.ram[start : start + (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1]

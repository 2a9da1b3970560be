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

A read that fails kills the task whose page it was, so a frame is not given up at the first error:
it is read again, alone (its neighbours in the run may be sound), at once and then after each of
`RETRY_PAUSES_SECONDS`. A wrong seal is read again once: a bit that flipped on the way is right on
the disk. All that begins within `PATIENCE_SECONDS` of the beginning of the first transfer that
failed, or not at all, so a request is held up by pauses for 3 s at most; and there are none when
nothing could be read for that long: then the disk is dead, and whoever waits behind this request is
not helped by waiting. For the same reason, what a request has not begun to read when it gives a
frame up, and has no patience left, is not read: it is an error already. A disk that is slow, and
does not fail, is waited for.
"""

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from zcache.clock import Clock
from zcache.errors import PageDamaged
from zcache.fetch.readahead import Readahead
from zcache.pageframes import PageFrames, State
from zcache.pageframes.slots import FETCH_SLOTS
from zcache.pageframes.transitions import adopt, ephemeral_gives_way, has_room_for
from zcache.pages.entry import FRAME_MASK, LENGTH_MASK, LENGTH_SHIFT, OFFSET_MASK, OFFSET_SHIFT, SAME_FILLED
from zcache.seals import Seal
from zcache.statistics import Statistics
from zcache.tiers import Tier
from zcache.tiers.backoff import PATIENCE_SECONDS
from zcache.tiers.health import SEAL_BROKEN, UNREADABLE, Health, describe

__all__ = ["Fetcher"]

#: Before a frame is read for the third, fourth and fifth time: a disk may be gone for as long as a
#: put has patience.
RETRY_PAUSES_SECONDS: Final = (0.1, 0.4, 1.0)

#: Slots to read into that are not for what nobody has asked for.
KEPT_SLOTS: Final = FETCH_SLOTS // 2


class _Job:
    """One frame to read: what was known of it under the lock, and the run's pages that are in
    it."""

    __slots__ = ("below", "birth", "failed", "frame", "is_ahead", "is_read", "pages", "seal", "slot", "view", "wrong")

    def __init__(self, frames: PageFrames, frame: int, pages: list[int], is_ahead: bool = False) -> None:
        self.frame = frame
        self.is_ahead = is_ahead  # nobody has asked for it
        self.slot = 0  # that it is read into
        self.view: memoryview  # its bytes
        self.pages = pages
        self.below = frames.below[frame]
        self.birth = frames.birth[frame]
        self.seal = frames.seal_of(frame)
        self.is_read = False  # and is what was sealed
        self.failed: str | None = None  # why its pages cannot be had
        self.wrong = ""  # the same, in `Health`'s words


class _Patience:
    """One request's, with what fails: it begins with the first transfer that does."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends = math.inf

    def begin(self, began: float) -> None:
        """A transfer failed that had begun then."""
        self._ends = min(self._ends, began + PATIENCE_SECONDS)

    def is_over(self) -> bool:
        return self._clock.now() >= self._ends


class Fetcher:
    """Reads cold frames; one for a store, called by any number of threads without the lock."""

    def __init__(
        self,
        frames: PageFrames,
        tier: Tier,
        seal: Seal,
        lock: threading.Lock,
        statistics: Statistics,
        health: Health,
        eat_ephemeral: Callable[[], bool],
    ) -> None:
        self._frames = frames
        self._eat_ephemeral = eat_ephemeral
        self.readahead = Readahead(frames, statistics)
        self._tier = tier
        self._seal = seal
        self._lock = lock
        self._statistics = statistics
        self._health = health
        self._slot_returned = threading.Condition(lock)

    def fetch(self, table: memoryview, first: int, cold: list[int], entries: list[int], bodies: list[bytes]) -> None:
        """Bring `entries[i]` and `bodies[i]` up to date for each i in `cold`; page `first + i` is
        meant.

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

    @contextlib.contextmanager
    def borrowed(self, wanted: Sequence[int]) -> Iterator[list["_Job"]]:
        """Some of the frames wanted, those that are COLD, in slots beside the budget for as long as
        the context is entered, and nobody's home there. Which of them are what was sealed,
        `is_read` tells."""
        frames = self._frames
        with self._lock:
            while True:
                jobs = [_Job(frames, frame, []) for frame in wanted if frames.state[frame] == State.COLD]
                del jobs[frames.slots.fetch_count :]
                if jobs or not any(frames.state[frame] == State.COLD for frame in wanted):
                    break
                self._slot_returned.wait()
            for job in jobs:
                job.slot = frames.slots.take_fetch()
        try:
            self._read(jobs)
            yield jobs
        finally:
            self._give_back(jobs)

    def _look_up(
        self, table: memoryview, first: int, wanted: Sequence[int], entries: list[int], bodies: list[bytes]
    ) -> list[_Job] | None:
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
            jobs.append(_Job(frames, frame, pages))
        del jobs[frames.slots.fetch_count :]
        if not jobs:
            return None if by_frame else jobs
        more = frames.slots.fetch_count - len(jobs) - KEPT_SLOTS
        if more > 0 and not self._health.reading.failures:
            ahead = self.readahead.choose(table, first + len(entries), [job.frame for job in jobs])
            jobs += [_Job(frames, frame, [], is_ahead=True) for frame in ahead[:more]]
        for job in jobs:  # last: nothing after it can fail for lack of memory
            job.slot = frames.slots.take_fetch()
        return jobs

    def _read(self, jobs: list[_Job]) -> None:
        """Without the lock: read all frames, neighbours below in one go, and open their seals; but
        nothing more once one is given up and patience is over."""
        size, ram = self._frames.frame_bytes, self._frames.ram_view
        for job in jobs:
            job.view = ram[job.slot * size : (job.slot + 1) * size]
        jobs.sort(key=lambda job: job.below)
        self._read_sorted(jobs, _Patience(self._health.clock))

    def _read_sorted(self, jobs: list[_Job], patience: _Patience) -> None:
        starts = [n for n, job in enumerate(jobs) if not n or job.below != jobs[n - 1].below + 1]
        for start, stop in itertools.pairwise([*starts, len(jobs)]):
            self._read_run(jobs[start:stop], patience)
            if patience.is_over() and any(job.failed for job in jobs if not job.is_ahead):
                break

    def _read_run(self, run: list[_Job], patience: _Patience) -> None:
        """Neighbours below. What is read along costs those that were asked for neither a try nor
        patience."""
        began = self._health.clock.now()
        try:
            self._transfer(run[0].below, [job.view for job in run])
        except OSError as error:
            wanted = [job for job in run if not job.is_ahead]
            if len(wanted) < len(run):
                self._read_sorted(wanted, patience)
                return
            patience.begin(began)
            self._read_apart(run, error, patience)
        for job in run:
            if not job.failed and not self._opens(job) and not job.is_ahead:
                patience.begin(began)
                self._verify_again(job, patience)

    def _read_apart(self, wanted: list[_Job], error: OSError, patience: _Patience) -> None:
        """Each frame of a read that has failed, by itself: until all are there, or those that are
        not are not worth another try. One that is bad costs its neighbours no try of their own."""
        clock, reading = self._health.clock, self._health.reading
        for pause in (0.0, *RETRY_PAUSES_SECONDS):
            if patience.is_over() or (pause and reading.failures and not reading.patience_seconds()):
                break
            clock.sleep(pause)
            missing = []
            for job in wanted:
                try:
                    if patience.is_over():
                        raise error
                    with self._lock:
                        self._statistics.fetch_retries += 1
                    self._transfer(job.below, [job.view])
                except OSError as again:
                    error = again
                    missing.append(job)
            wanted = missing
            if not wanted:
                return
        for job in wanted:
            with self._lock:
                reading.failed(describe(error))
            job.failed, job.wrong = f"reading slot {job.below}: {error.strerror}", UNREADABLE

    def _verify_again(self, job: _Job, patience: _Patience) -> None:
        """One frame that was read, and is not what was written: was it the reading?"""
        if not patience.is_over():
            with self._lock:
                self._statistics.fetch_retries += 1
            with contextlib.suppress(OSError):
                self._transfer(job.below, [job.view])
                if self._opens(job):
                    return
        job.failed, job.wrong = f"what is in slot {job.below} is not what was sealed", SEAL_BROKEN

    def _opens(self, job: _Job) -> bool:
        job.is_read = self._seal.opens(job.frame, job.birth, job.seal, job.view)
        return job.is_read

    def _transfer(self, first_slot: int, views: list[memoryview]) -> None:
        """One read, timed; a success ends what trouble there was."""
        health = self._health
        transfer = health.begin_transfer()
        try:
            self._tier.read(first_slot, views)
        finally:
            if health.end_transfer(transfer):
                with self._lock:
                    self._statistics.slow_reads += 1
        if health.reading.failures:
            with self._lock:
                health.reading.succeeded()

    def _take_over(
        self, jobs: list[_Job], table: memoryview, first: int, entries: list[int], bodies: list[bytes]
    ) -> None:
        """Under the lock: use what was read, where it is still what is wanted. What was not is
        looked up again."""
        frames, statistics = self._frames, self._statistics
        damage = None
        for job in jobs:
            if frames.birth[job.frame] == job.birth:
                valid = [index for index in job.pages if table[first + index] == entries[index]]
                if job.failed:
                    # If another get has read it meanwhile, and it is in RAM, the next look finds it
                    # there.
                    if valid and frames.state[job.frame] == State.COLD:
                        damage = job.failed
                        statistics.checksum_errors += job.wrong == SEAL_BROKEN
                        statistics.fetch_errors += job.wrong == UNREADABLE
                        self._health.mark(job.frame, job.birth, job.wrong)
                elif job.is_read:
                    self._health.unmark(job.frame)
                    for index in valid:
                        bodies[index] = _body(frames, job.slot, entries[index])
                    statistics.fetched_frames += not job.is_ahead
                    if frames.state[job.frame] == State.COLD:
                        self._adopt(job)
        if damage:
            raise PageDamaged(damage)

    def _adopt(self, job: _Job) -> None:
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

    def _give_back(self, jobs: list[_Job]) -> None:
        """Without the lock: each job's slot, or the one that it was exchanged for, can be read into
        again."""
        with self._lock:
            for job in jobs:
                self._frames.slots.give_fetch(job.slot)
            self._slot_returned.notify_all()


def _body(frames: PageFrames, slot: int, entry: int) -> bytes:
    start = slot * frames.frame_bytes + (entry >> OFFSET_SHIFT & OFFSET_MASK)
    return frames.ram[start : start + (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1]

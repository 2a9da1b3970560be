"""Readback: frames that are below are read into RAM slots beside the budget, and their seals are
opened.

A read that fails kills the task whose page it was, so a frame is not given up at the first error:
it is read again, alone (its neighbours in the run may be sound), at once and then after each of
`RETRY_PAUSES_SECONDS`. A wrong seal is read again once: a bit that flipped on the way is right on
the disk. All that begins within `PATIENCE_SECONDS` of the beginning of the first transfer that
failed, or not at all, so a request is held up by pauses for 3 s at most; and there are none for
what is known to be dead (`Place.is_known_dead`): whoever waits behind this request is not helped by
waiting. For the same reason, what a request has not begun to read when it gives a
frame up, and has no patience left, is not read: it is an error already. A disk that is slow, and
does not fail, is waited for.

One try more is owed by a tier that is a network (not `is_prompt`): it gives a read up by itself,
but may take `PATIENCE_SECONDS` for that, and no patience is left then. So there the frames of the
request's first read that failed are tried again at once, however late it is, until one of these
tries fails, too. If all reads time out, a request takes the time of two. Nothing is owed for what
is known to be dead. (If frames were read along, the read of the others by themselves was the second
try.)
"""

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from zcache.books import Books
from zcache.clock import Clock
from zcache.errors import AT_ENGINES
from zcache.pageframes import PageFrames, State
from zcache.seals import Seal
from zcache.tiers.backoff import PATIENCE_SECONDS
from zcache.tiers.below import Below, Place
from zcache.tiers.damage import SEAL_BROKEN, UNREADABLE
from zcache.tiers.health import Health, describe

#: Before a frame is read for the third, fourth and fifth time: a disk may be gone for as long as a
#: put has patience.
RETRY_PAUSES_SECONDS: Final = (0.1, 0.4, 1.0)


class Job:
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
        self.wrong = ""  # the same, in `Damage`'s words


class _Patience:
    """One request's, with what fails: it begins with the first transfer that does."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends = math.inf
        self._failures = 0

    def begin(self, began: float) -> None:
        """A transfer failed that had begun then."""
        self._ends = min(self._ends, began + PATIENCE_SECONDS)
        self._failures += 1

    def is_over(self) -> bool:
        return self._clock.now() >= self._ends

    def owes_a_try(self, place: Place, jobs: Sequence[Job]) -> bool:
        """Whether what has just failed there is tried again even if patience is over."""
        is_hopeless = all(place.is_known_dead(job.below) for job in jobs)
        return self._failures == 1 and not place.tier.is_prompt and not is_hopeless


def _where(place: Place, job: Job) -> str:
    """For people."""
    return f"slot {job.below}" if place.tier.is_prompt else f"slot {job.below} {AT_ENGINES}"


class Readback:
    """Reads frames from `below`; one for a store, called by any number of threads without the
    lock."""

    def __init__(
        self,
        frames: PageFrames,
        below: Below,
        seal: Seal,
        books: Books,
    ) -> None:
        self._frames = frames
        self._below = below
        self._seal = seal
        self._lock, self._statistics, self._damage, self._clock = books
        self.slot_returned = threading.Condition(books.lock)

    def is_well(self, jobs: list[Job]) -> bool:
        """Whether the last read from each tier that these are in succeeded."""
        return not any(self._below.place_of(job.below).health.reading.failures for job in jobs)

    def is_known_dead(self, frame: int) -> bool:
        """Whether what a frame is in is not worth waiting for."""
        slot = self._frames.below[frame]
        return self._below.place_of(slot).is_known_dead(slot)

    @contextlib.contextmanager
    def borrowed(self, wanted: Sequence[int]) -> Iterator[list[Job]]:
        """Some of the frames wanted, those that are COLD, in slots beside the budget for as long as
        the context is entered, and nobody's home there. Which of them are what was sealed,
        `is_read` tells."""
        frames = self._frames
        with self._lock:
            while True:
                jobs = [Job(frames, frame, []) for frame in wanted if frames.state[frame] == State.COLD]
                del jobs[frames.slots.fetch_count :]
                if jobs or not any(frames.state[frame] == State.COLD for frame in wanted):
                    break
                self.slot_returned.wait()
            for job in jobs:
                job.slot = frames.slots.take_fetch()
        try:
            self.read(jobs)
            yield jobs
        finally:
            self.give_back(jobs)

    def read(self, jobs: list[Job]) -> None:
        """Without the lock: read all frames, neighbours below in one go, and open their seals; but
        nothing more once one is given up and patience is over."""
        size, ram = self._frames.frame_bytes, self._frames.ram_view
        for job in jobs:
            job.view = ram[job.slot * size : (job.slot + 1) * size]
        jobs.sort(key=lambda job: job.below)
        self._read_sorted(jobs, _Patience(self._clock))

    def give_back(self, jobs: list[Job]) -> None:
        """Without the lock: each job's slot, or the one that it was exchanged for, can be read into
        again."""
        with self._lock:
            for job in jobs:
                self._frames.slots.give_fetch(job.slot)
            self.slot_returned.notify_all()

    def _read_sorted(self, jobs: list[Job], patience: _Patience) -> None:
        firsts = self._below.firsts
        starts = [n for n, job in enumerate(jobs) if not n or job.below != jobs[n - 1].below + 1 or job.below in firsts]
        for start, stop in itertools.pairwise([*starts, len(jobs)]):
            self._read_run(self._below.place_of(jobs[start].below), jobs[start:stop], patience)
            if patience.is_over() and any(job.failed for job in jobs if not job.is_ahead):
                break

    def _read_run(self, place: Place, run: list[Job], patience: _Patience) -> None:
        """Neighbours in one tier. What is read along costs those that were asked for no try; they
        are read once more, however long it took."""
        began = self._clock.now()
        try:
            self._transfer(place.read, place.health, run[0].below, [job.view for job in run])
        except OSError as error:
            wanted = [job for job in run if not job.is_ahead]
            patience.begin(began)
            if len(wanted) < len(run):
                self._read_sorted(wanted, patience)
                return
            self._read_apart(place, run, error, patience)
        for job in run:
            if not job.failed and not self._opens(job) and not job.is_ahead:
                patience.begin(began)
                self._verify_again(place, job, patience)

    def _read_apart(self, place: Place, wanted: list[Job], error: OSError, patience: _Patience) -> None:
        """Each frame of a read that has failed, by itself: until all are there, or those that are
        not are not worth another try. One that is bad costs its neighbours no try of their own."""
        clock = self._clock
        places = dict.fromkeys(wanted, place)  # where each was tried last
        is_owed = patience.owes_a_try(place, wanted)
        for pause in (0.0, *RETRY_PAUSES_SECONDS):
            if (patience.is_over() and not is_owed) or (
                pause and all(places[job].is_known_dead(job.below) for job in wanted)
            ):
                break
            clock.sleep(pause)
            missing = []
            for job in wanted:
                try:
                    if patience.is_over() and not is_owed:
                        raise error
                    with self._lock:
                        self._statistics.fetch_retries += 1
                        place = places[job] = self._look_again(job)
                    self._transfer(place.read, place.health, job.below, [job.view])
                except OSError as again:
                    error = again
                    is_owed = False
                    missing.append(job)
            wanted = missing
            if not wanted:
                return
        for job in wanted:
            with self._lock:
                self._damage.last_error = describe(error)
                places[job].health.reading.failed(self._damage.last_error)
            job.failed, job.wrong = f"reading {_where(places[job], job)}: {error.strerror}", UNREADABLE

    def _verify_again(self, place: Place, job: Job, patience: _Patience) -> None:
        """One frame that was read, and is not what was written: was it the reading?"""
        if not patience.is_over():
            with self._lock:
                self._statistics.fetch_retries += 1
                place = self._look_again(job)

            def again(slot: int, views: list[memoryview]) -> None:
                place.read_again(slot, views[0], lambda: self._opens(job))

            with contextlib.suppress(OSError):
                self._transfer(again, place.health, job.below, [job.view])
            if job.is_read:
                return
        job.failed, job.wrong = f"what is in {_where(place, job)} is not what was sealed", SEAL_BROKEN

    def _opens(self, job: Job) -> bool:
        job.is_read = self._seal.opens(job.frame, job.birth, job.seal, job.view)
        return job.is_read

    def _look_again(self, job: Job) -> Place:
        """Under the lock: where the frame is now; another tier may have it."""
        if self._frames.birth[job.frame] == job.birth and self._frames.below[job.frame]:
            job.below = self._frames.below[job.frame]
        return self._below.place_of(job.below)

    def _transfer(
        self, read: Callable[[int, list[memoryview]], None], health: Health, first_slot: int, views: list[memoryview]
    ) -> None:
        """One read, timed; a success ends what trouble there was."""
        transfer = health.begin_transfer()
        try:
            read(first_slot, views)
        finally:
            if health.end_transfer(transfer):
                with self._lock:
                    self._statistics.slow_reads += 1
        if health.reading.failures:
            with self._lock:
                health.reading.succeeded()

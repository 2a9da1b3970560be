"""A flight: some of the oldest frames are written below, in one go.

Under the lock, reserve a run of slots below and isolate as many of the oldest frames (they are
WRITEBACK now: nobody changes their bytes or reuses their RAM); without the lock, seal and write
them; under the lock, they land as CLEAN, or go straight to FREE if all their pages died meanwhile.
A write that fails puts them back as the oldest.

How large a flight is, is bounded: a put that waits for one waits for a short write, and background
reclaim writes long ones. These are two kinds, and no flight of one kind waits for memory that the
other has (`zcache.seals`), however few frames it has: one in the background may be to a network,
for which no put waits.
"""

import errno
import threading
from typing import Final, NamedTuple

from zcache.allocators import Allocator
from zcache.books import Books
from zcache.pageframes import PageFrames
from zcache.pageframes.queues import Queue
from zcache.pageframes.transitions import abort, isolate_oldest, land
from zcache.seals import Seal
from zcache.tiers.below import Below, Place
from zcache.tiers.health import describe

#: One background flight: one sequential write, which takes a disk of 500 MB/s one millisecond.
BATCH_BYTES: Final = 512 << 10
#: One synchronous flight: its put waits for the whole of it.
SYNC_BATCH_BYTES: Final = 128 << 10


def flights_frames(frame_bytes: int) -> tuple[int, int]:
    """How many frames a flight has at most: a synchronous one, and one in the background."""
    return max(SYNC_BATCH_BYTES // frame_bytes, 1), max(BATCH_BYTES // frame_bytes, 1)


class Flight(NamedTuple):
    """Frames, now in WRITEBACK, and what they will be below."""

    place: Place
    first_slot: int
    first_birth: int
    frames: list[int]
    most_frames: int  # that a flight of its kind has


class Flights:
    """Of frames from RAM to `below`; any number at a time. `landed` is notified at the end of each,
    for whoever waits for one."""

    def __init__(
        self,
        frames: PageFrames,
        allocator: Allocator,
        below: Below,
        seal: Seal,
        books: Books,
    ) -> None:
        self._frames = frames
        self._allocator = allocator
        self._below = below
        self._seal = seal
        self._lock, self._statistics = books.lock, books.statistics
        self.landed = threading.Condition(books.lock)

    def can_clean(self) -> bool:
        """Under the lock: whether there is a frame to clean, and room below for it."""
        return self._frames.queue_length[Queue.PERSISTENT] > self._allocator.kept_frames and self._below.has_room()

    def start(self, place: Place, limit: int) -> Flight:
        """Under the lock, after `can_clean`: up to `limit` of the oldest frames are to be written
        to this tier, which has room. The limit is one of `flights_frames`, and tells the kind."""
        waiting = self._frames.queue_length[Queue.PERSISTENT] - self._allocator.kept_frames
        first_slot, count = place.reserve(min(limit, waiting))
        batch = isolate_oldest(self._frames, count, self._allocator.retire)  # as many: that many wait
        flight = Flight(place, first_slot, self._frames.give_births(len(batch)), batch, limit)
        place.flights += 1
        return flight

    def fly(self, flight: Flight) -> bool:
        """Without the lock: seal and write; then land the frames. False: the tier failed, and the
        frames are DIRTY again."""
        place, first_slot, first_birth, batch, most_frames = flight
        frames, health, release = self._frames, place.health, self._below.release
        size = frames.frame_bytes
        seals: list[bytes] = []
        failure = ""
        may_be_full = False
        transfer = health.begin_transfer()
        try:
            starts = [frames.home[frame] * size for frame in batch]
            views = [frames.ram_view[start : start + size] for start in starts]
            with self._seal.sealed(batch, first_birth, views, most_frames) as (bodies, seals):
                place.write(first_slot, bodies)
        except Exception as error:  # whatever it is, frames that stayed in flight would be waited for for ever
            failure = describe(error)
            may_be_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        arrived = not failure
        with self._lock:
            place.flights -= 1
            self._statistics.slow_writes += health.end_transfer(transfer)
            for index, frame in enumerate(batch):
                if arrived:
                    self._below.note(first_slot + index, frame)
                    release(land(frames, frame, first_slot + index, first_birth + index, seals[index]))
                else:
                    release(first_slot + index)
            if not arrived:
                for frame in reversed(batch):  # each becomes the oldest, so the oldest goes back last
                    abort(frames, frame, self._allocator.restore)
                if not (may_be_full and not place.has_room()):  # if it is, the next tier is asked
                    health.writing.failed(failure)
                    self._statistics.writeback_errors += 1
                    self._statistics.writeback_kept_frames += len(batch)
            else:
                health.writing.succeeded()
            self._statistics.writeback_batches += 1
            self.landed.notify_all()
        return arrived

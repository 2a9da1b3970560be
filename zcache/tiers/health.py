"""Health: what is wrong with the tier now, as flights and fetches see it; in words, what `zcache
status` says.

Counters say what has ever happened and stay (`statistics.py`); this is what is the matter still. A
failing write is over when one succeeds, or nothing is left to be written. A frame that could not be
had is over when it is read after all, or when nothing in it is alive any more: its pages were
written or trimmed. A slow disk is over when none of its transfers has been slow for a minute. What
`decode_errors` counts is never over: the memory of this machine changed by itself.

Locking: the store's lock, but for `begin_transfer` and `end_transfer`: each transfer has an entry
of its own there. Cost: nothing on the hot paths; two looks at the clock for each transfer.
"""

import errno
import itertools
from typing import Final

from zcache.clock import Clock
from zcache.pageframes import PageFrames, State
from zcache.pageframes.queues import Queue
from zcache.tiers.backoff import Backoff

#: A transfer is slow from here on: a hundred times what a busy disk takes for the largest one, and
#: long enough to be felt at a keyboard.
SLOW_SECONDS: Final = 1.0
#: How long a slow transfer is worth a line.
SLOW_MEMORY_SECONDS: Final = 60.0
#: Frames that could not be had are remembered by name up to here, because a dead disk may hold a
#: million.
REMEMBERED_FRAMES: Final = 4096

SEAL_BROKEN: Final = "failed their seal"
UNREADABLE: Final = "could not be read"


def describe(error: BaseException) -> str:
    """`EIO: Input/output error`, or whatever else it is, in one line."""
    if isinstance(error, OSError) and error.errno:
        return f"{errno.errorcode.get(error.errno, error.errno)}: {error.strerror}"
    return f"{type(error).__name__}: {error}"


class Health:
    """Of one store's tier."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.writing = Backoff(clock)
        self.reading = Backoff(clock)
        self.unforeseen = ""  # the last thing that background reclaim has met and should not have
        self.damaged: dict[int, tuple[int, str]] = {}  # frame to its birth, and what is wrong with it
        self._under_way: dict[int, float] = {}  # a transfer's number to when it began
        self._numbers = itertools.count()
        self._slow_last = -SLOW_MEMORY_SECONDS
        self._slow_longest = 0.0

    # -- called by flights and fetches
    # --------------------------------------------------------------------------------

    def begin_transfer(self) -> int:
        """A read or a write begins; returns its number."""
        number = next(self._numbers)
        self._under_way[number] = self.clock.now()
        return number

    def end_transfer(self, number: int) -> bool:
        """It has ended; whether it was slow."""
        now = self.clock.now()
        seconds = now - self._under_way.pop(number)
        if seconds < SLOW_SECONDS:
            return False
        if now - self._slow_last > SLOW_MEMORY_SECONDS:
            self._slow_longest = 0.0
        self._slow_last = now
        self._slow_longest = max(self._slow_longest, seconds)
        return True

    def mark(self, frame: int, birth: int, what: str) -> None:
        """A frame cannot be had: `SEAL_BROKEN` or `UNREADABLE`."""
        if len(self.damaged) < REMEMBERED_FRAMES or frame in self.damaged:
            self.damaged[frame] = birth, what

    def unmark(self, frame: int) -> None:
        """A frame was read as it was written."""
        self.damaged.pop(frame, None)

    # -- called by status
    # ---------------------------------------------------------------------------------------------

    def reasons(self, frames: PageFrames, lost_pages: int, decode_errors: int) -> list[str]:
        """What is the matter now, a line each; none: all is well.

        `lost_pages` are those that are lost for good: not those of a put that still waits for room.
        """
        found = []
        if self.writing.failures:
            found.append(
                f"writeback has been failing for {self.writing.trouble_seconds():.0f} s "
                f"({_count(self.writing.failures, 'try', 'tries')}, the last: {self.writing.last_error}); "
                f"{_count(frames.queue_length[Queue.PERSISTENT] + frames.in_flight, 'frame')} kept in RAM"
            )
        damaged = self._still_damaged(frames)
        for what in (SEAL_BROKEN, UNREADABLE):
            if count := sum(entry[1] == what for entry in damaged.values()):
                least = "at least " if len(damaged) == REMEMBERED_FRAMES else ""
                found.append(
                    f"{least}{_count(count, 'frame')} below {what}: reads of their pages fail"
                    + ("" if what == SEAL_BROKEN else f" (the last: {self.reading.last_error})")
                )
        if lost_pages:
            found.append(
                f"{_count(lost_pages, 'page')} lost, because the last write found no room: "
                "reads fail until they are written or trimmed"
            )
        if self.unforeseen:
            found.append(f"background reclaim met something that it did not foresee (the last: {self.unforeseen})")
        if decode_errors:
            found.append(
                f"{_count(decode_errors, 'read')} met a page that had changed in RAM: "
                "this machine's memory cannot be trusted"
            )
        return found + self._slowness()

    def _still_damaged(self, frames: PageFrames) -> dict[int, tuple[int, str]]:
        self.damaged = {
            frame: (birth, what)
            for frame, (birth, what) in self.damaged.items()
            if frames.birth[frame] == birth and frames.state[frame] != State.FREE
        }
        return self.damaged

    def _slowness(self) -> list[str]:
        now = self.clock.now()
        waiting = now - min(list(self._under_way.values()), default=now)
        if waiting >= SLOW_SECONDS:
            return [f"the disk is slow: a transfer has been under way for {waiting:.0f} s"]
        ago = now - self._slow_last
        if ago < SLOW_MEMORY_SECONDS:
            return [f"the disk is slow: a transfer took {self._slow_longest:.1f} s, {ago:.0f} s ago"]
        return []


def _count(number: int, one: str, more: str | None = None) -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"

"""Health: what is wrong with a tier now, as flights and fetches see it.

Counters say what has ever happened and stay (`statistics.py`); this is what is the matter still. A
failing write is over when one succeeds, or nothing is left to be written. A slow disk is over when
none of its transfers has been slow for a minute. `zcache.control.reasons` puts it in words.

Locking: the store's lock, but for `begin_transfer` and `end_transfer`: each transfer has an entry
of its own there. Cost: nothing on the hot paths; two looks at the clock for each transfer.
"""

import errno
import itertools
from typing import Final

from zcache.clock import Clock
from zcache.tiers.backoff import Backoff

#: A transfer is slow from here on: a hundred times what a busy disk takes for the largest one, and
#: long enough to be felt at a keyboard.
SLOW_SECONDS: Final = 1.0
#: How long a slow transfer is worth a line.
SLOW_MEMORY_SECONDS: Final = 60.0


def describe(error: BaseException) -> str:
    """`EIO: Input/output error`, or whatever else it is, in one line."""
    if isinstance(error, OSError) and error.errno:
        return f"{errno.errorcode.get(error.errno, error.errno)}: {error.strerror}"
    return f"{type(error).__name__}: {error}"


class Health:
    """Of one tier."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.writing = Backoff(clock)
        self.reading = Backoff(clock)
        self._under_way: dict[int, float] = {}  # a transfer's number to when it began
        self._numbers = itertools.count()
        self._slow_last = -SLOW_MEMORY_SECONDS
        self._slow_longest = 0.0

    def begin_transfer(self) -> int:
        """A read or a write begins; returns its number."""
        number = next(self._numbers)
        self._under_way[number] = self._clock.now()
        return number

    def end_transfer(self, number: int) -> bool:
        """It has ended; whether it was slow."""
        now = self._clock.now()
        seconds = now - self._under_way.pop(number)
        if seconds < SLOW_SECONDS:
            return False
        if now - self._slow_last > SLOW_MEMORY_SECONDS:
            self._slow_longest = 0.0
        self._slow_last = now
        self._slow_longest = max(self._slow_longest, seconds)
        return True

    def slowness(self) -> str:
        """How slow the tier is; "" if it is not."""
        now = self._clock.now()
        waiting = now - min(list(self._under_way.values()), default=now)
        if waiting >= SLOW_SECONDS:
            return f"a transfer has been under way for {waiting:.0f} s"
        ago = now - self._slow_last
        if ago < SLOW_MEMORY_SECONDS:
            return f"a transfer took {self._slow_longest:.1f} s, {ago:.0f} s ago"
        return ""

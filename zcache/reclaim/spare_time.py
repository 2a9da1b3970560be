"""Spare time: a share of one processor, for what can wait."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from zcache.clock import Clock

#: Of one processor. At a tenth, 1 GiB of heap pages takes a minute and a half to be compressed
#: again.
SHARE: Final = 0.1
#: What is saved up while there is nothing to do: as long as this, at most, one piece of work
#: follows another.
MOST_SECONDS: Final = 0.05


class SpareTime:
    """Processor time that comes in by the clock, and is spent by whoever works in `spending`."""

    def __init__(self, clock: Clock) -> None:
        self.share = SHARE
        self._clock = clock
        self._seconds = MOST_SECONDS
        self._last = clock.now()

    def has_some(self) -> bool:
        """Whether a piece of work may be begun."""
        now = self._clock.now()
        self._seconds = min(self._seconds + (now - self._last) * self.share, MOST_SECONDS)
        self._last = now
        return self._seconds > 0

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What this thread works within it is paid for."""
        begin = time.thread_time()
        try:
            yield
        finally:
            self._seconds -= time.thread_time() - begin

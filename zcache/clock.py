"""Time, from one place, so that tests need not wait for it."""

import threading
import time


class Clock:
    """Monotonic time in seconds, and the ways to let it pass."""

    def now(self) -> float:
        """Since some moment in the past."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Not under a lock."""
        if seconds:
            time.sleep(seconds)

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        """Until somebody notifies, `seconds` at the longest; the condition's lock is held."""
        condition.wait(seconds)

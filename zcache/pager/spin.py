"""How long to look for the next fault before going to sleep."""

import time
from typing import Final

MAX_SPIN_SECONDS: Final = 100e-6
MIN_SPIN_SECONDS: Final = 2e-6


class Spin:
    """Whether to look for the next fault before going to sleep: for a short time after one, as long
    as that pays. Waking up takes longer than most waits between two faults of a thread that goes
    through its memory."""

    def __init__(self) -> None:
        self._until = 0.0
        self._seconds = MAX_SPIN_SECONDS

    def goes_on(self) -> bool:
        """Look once more."""
        if time.monotonic() < self._until:
            return True
        if self._until:  # nothing came: for a shorter time after the next one
            self._seconds = max(self._seconds / 2, MIN_SPIN_SECONDS)
            self._until = 0.0
        return False

    def found(self, faults: int) -> None:
        """So many faults were served."""
        if faults:
            if self._until:
                self._seconds = min(self._seconds * 2, MAX_SPIN_SECONDS)
            self._until = time.monotonic() + self._seconds

"""How long to look for the next fault before going to sleep."""

from typing import Final

MAX_SPIN_SECONDS: Final = 100e-6
MIN_SPIN_SECONDS: Final = 2e-6


class Spin:
    """Looking pays after a fault, for a short time, and as long as something comes of it: waking up
    takes longer than most waits between two faults of a thread that goes through its memory."""

    def __init__(self) -> None:
        self._next_seconds = MAX_SPIN_SECONDS
        self.seconds = 0.0  # to look now

    def found(self, faults: int) -> None:
        """So many came, while it looked."""
        if faults:
            self._next_seconds = min(self._next_seconds * 2, MAX_SPIN_SECONDS) if self.seconds else self._next_seconds
            self.seconds = self._next_seconds
        else:
            self._next_seconds = max(self._next_seconds / 2, MIN_SPIN_SECONDS) if self.seconds else self._next_seconds
            self.seconds = 0.0

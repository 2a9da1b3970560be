"""Upkeep: keeps the store's tables populated ahead of use, from a thread that may wait for memory as long as it likes.

It is a thread of its own because populating can wait when memory is short, and background reclaim must not; and because
reclaim may be busy for as long as there is pressure, which is when tables grow.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Final

from zcache.hardening.threads import begin_own_thread

#: Tables are populated for 1 GiB of device and 256 MiB of frames beyond what is in use; no kernel swaps that out in
#: this time.
UPKEEP_SECONDS: Final = 0.25


class Upkeep:
    """Calls `first` once, then `beat` and `fault_ahead` now and then, from `start` to `stop`."""

    def __init__(
        self, fault_ahead: Callable[[], None], beat: Callable[[], None], first: Callable[[], None] = lambda: None
    ) -> None:
        self._first = first
        self._fault_ahead = fault_ahead
        self._beat = beat
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """From here on."""
        self._thread.start()

    def stop(self) -> None:
        """Not waited for: it may be waiting for memory."""
        self._stopped.set()

    def _run(self) -> None:
        begin_own_thread("zcache-upkeep")
        self._beat()
        with contextlib.suppress(OSError):
            self._first()
        while not self._stopped.wait(UPKEEP_SECONDS):
            self._beat()
            # No memory now, or a kernel that cannot: the tables are then touched as they are used.
            with contextlib.suppress(OSError):
                self._fault_ahead()

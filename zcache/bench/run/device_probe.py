"""How long swap stands still: one page of a device is read, past the page cache, several times a
second.

The first page of a swap area is never swapped to, and what it takes to read it is what it takes to
swap a page in. Run inside the guest; locked in memory, for a probe that is swapped out would
measure itself.
"""

import mmap
import os
import threading
import time
from typing import Final

from zcache.swap.swapoff import lock_memory

INTERVAL_SECONDS: Final = 0.1


class DeviceProbe:
    """Reads from `start` to `stop`."""

    def __init__(self, device: str) -> None:
        lock_memory()
        self.longest_seconds = 0.0
        self._device = device
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """From here on."""
        self._thread.start()

    def stop(self) -> float:
        """The longest read, in seconds."""
        self._stopped.set()
        self._thread.join()
        return self.longest_seconds

    def _run(self) -> None:
        page = mmap.mmap(-1, mmap.PAGESIZE)
        descriptor = os.open(self._device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            while not self._stopped.wait(INTERVAL_SECONDS):
                begin = time.monotonic()
                os.preadv(descriptor, [page], 0)
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - begin)
        finally:
            os.close(descriptor)

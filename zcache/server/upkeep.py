"""Upkeep: what a server does beside its requests, each in a thread of its own.

Tables are populated ahead of use by a thread that may wait for memory as long as it likes:
background reclaim must not, and may be busy for as long as there is pressure, which is when tables
grow. The heartbeat, by which the keeper knows that the server's threads run, comes from a thread
that waits for nothing.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Final

from zcache.hardening.own_thread import OwnThread

#: Tables are populated for 1 GiB of device and 256 MiB of frames beyond what is in use; no kernel
#: swaps that out in this time.
UPKEEP_SECONDS: Final = 0.25


class Upkeep:
    """Does `works` every so many seconds, one after the other, from `start` to `stop`, in a thread
    of that name. No memory now, or an `OSError` (a kernel that cannot), is no reason to end, nor to
    leave out what follows: tables are then touched as they are used."""

    def __init__(self, name: str, *works: Callable[[], None], seconds: float = UPKEEP_SECONDS) -> None:
        self._works = works
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = OwnThread(name, self._run, goes_on=True)

    def start(self) -> None:
        """From here on. Raises `EnvironmentProblem` if there can be no thread."""
        self._thread.start()

    def stop(self) -> None:
        """Not waited for: it may be waiting for memory."""
        self._stopped.set()

    def _run(self) -> None:
        while True:
            for work in self._works:
                with contextlib.suppress(OSError, MemoryError):
                    work()
            if self._stopped.wait(self._seconds):
                return

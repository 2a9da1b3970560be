"""What the keeper can see of a server without asking it: words at the end of an image's header."""

import mmap
import os
import threading
from typing import Final

HEADER_BYTES: Final = 4096
JSON_BYTES: Final = HEADER_BYTES - 128

#: The export name under which the kernel's device connects: connections by any other are not
#: counted.
DEVICE_EXPORT: Final = "swap"

#: What can be changed while a server runs (`zcache.control.settings`), and its successors go on
#: with. A word each; 0: as it was begun.
SETTINGS: Final = ("min_budget_frames", "max_budget_frames", "low_watermark", "high_watermark", "share", "admit")


class Signs:
    """What the keeper can see of a server without asking it, and swap-upgrade of the keeper, in the
    last words of an image's header.

    They are read while others write. Each is one word, and whole; but a CPU such as arm64's may
    show two words that were written one after the other in another order. Where that matters (a new
    server's pid, and whether it serves) there is a barrier between them, on both sides: `_fence`.
    """

    EPOCH: Final = HEADER_BYTES // 8 - 1
    CONNECTIONS: Final = EPOCH - 1
    HEARTBEATS: Final = EPOCH - 2
    PID: Final = EPOCH - 3
    UPGRADED: Final = EPOCH - 4
    REFUSALS: Final = EPOCH - 5
    SERVES: Final = EPOCH - 6
    BUDGET: Final = EPOCH - 7
    _SETTINGS: Final = BUDGET - len(SETTINGS)  # the first of them
    OVER: Final = _SETTINGS - 1

    def __init__(self, descriptor: int) -> None:
        self.words = memoryview(mmap.mmap(descriptor, HEADER_BYTES)).cast("Q")
        self._lock = threading.Lock()

    @property
    def epoch(self) -> int:
        """How many servers there were, this one included."""
        return self.words[self.EPOCH]

    @property
    def pid(self) -> int:
        """The server. What is read after this is what it had written before it, or later."""
        pid = self.words[self.PID]
        self._fence()
        return pid

    @property
    def connections(self) -> int:
        """Of the kernel's device: each is one until the last of its requests has been dealt
        with."""
        return self.words[self.CONNECTIONS]

    @property
    def heartbeats(self) -> int:
        """Goes up for as long as the server's threads run."""
        return self.words[self.HEARTBEATS]

    @property
    def serves(self) -> bool:
        """Whether the last server that began has come so far as to serve."""
        return self.words[self.SERVES] == self.words[self.EPOCH]

    @property
    def upgraded(self) -> int:
        """The epoch of the last server that swap-upgrade has brought."""
        return self.words[self.UPGRADED]

    @property
    def refusals(self) -> int:
        """How many times the code on disk was of no use to swap-upgrade."""
        return self.words[self.REFUSALS]

    @property
    def budget_frames(self) -> int:
        """What the budget was at its last change; 0: no server that knows of changes has begun."""
        return self.words[self.BUDGET] & 0xFFFFFFFF

    @property
    def budget_changes(self) -> int:
        """How often the budget has changed."""
        return self.words[self.BUDGET] >> 32

    def note_budget(self, frames: int) -> None:
        """From the server: the budget has changed."""
        self.words[self.BUDGET] = (self.budget_changes + 1 & 0xFFFFFFFF) << 32 | frames

    def setting(self, name: str) -> int:
        """One of `SETTINGS`."""
        return self.words[self._SETTINGS + SETTINGS.index(name)]

    def set(self, name: str, value: int) -> None:
        """From the server."""
        self.words[self._SETTINGS + SETTINGS.index(name)] = value

    def begin_epoch(self) -> None:
        """A new server: it has no connections."""
        self.words[self.CONNECTIONS] = self.words[self.HEARTBEATS] = 0
        self.words[self.EPOCH] += 1
        self._fence()
        self.words[self.PID] = os.getpid()  # last: whoever sees it sees an epoch that does not serve yet

    def count_connection(self, change: int) -> None:
        """One more (1) or one less (-1)."""
        with self._lock:
            self.words[self.CONNECTIONS] += change

    def beat(self) -> None:
        """From one thread of the server at a time."""
        self.words[self.HEARTBEATS] += 1

    def begin_to_serve(self) -> None:
        """From the server: it is ready for requests."""
        self.words[self.SERVES] = self.words[self.EPOCH]

    def is_served(self) -> bool:
        """Whether the server that began last serves, and is there."""
        pid = self.pid
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return bool(pid) and self.serves

    def begin_upgrade(self) -> None:
        """From the keeper: the next epoch is that of an upgrade."""
        self.words[self.UPGRADED] = self.words[self.EPOCH] + 1

    def refuse_upgrade(self) -> None:
        """From the keeper: there will be none."""
        self.words[self.REFUSALS] += 1

    @property
    def is_over(self) -> bool:
        """Whether the server that is told to end is the last one."""
        return bool(self.words[self.OVER])

    def end_swap(self) -> None:
        """From the keeper, before it tells the last server to end."""
        self.words[self.OVER] = 1

    def _fence(self) -> None:
        """A full memory barrier: Python has none, but what comes before a lock is let go (a
        release) comes before what follows when it is taken again (an acquisition)."""
        for _ in range(2):
            with self._lock:
                pass

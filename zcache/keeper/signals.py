"""What whoever is outside tells the keeper: signals, noted here and acted on at the next turn."""

import contextlib
import os
import select
import signal
from typing import Final

#: What else than SIGTERM may be sent to end a process that has lost its terminal, or whose user has
#: lost patience.
END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
#: Has the server replaced by the code on disk.
REPLACE_SIGNAL: Final = signal.SIGUSR1


class Signals:
    """Those that have come and were not dealt with yet. One that comes ends `wait`."""

    __slots__ = ("_signalled", "_wakeup", "is_ending", "is_to_be_replaced")

    def __init__(self) -> None:
        self.is_ending = self.is_to_be_replaced = False
        self._wakeup, self._signalled = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def catch(self) -> None:
        """From here on, in this process."""
        for number in (*END_SIGNALS, REPLACE_SIGNAL):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._signalled)

    def wait(self, pidfd: int | None, seconds: float) -> None:
        """For a signal, or the end of a process, for so long at most."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        if pidfd is not None:
            poll.register(pidfd, select.POLLIN)
        poll.poll(seconds * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 64)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == REPLACE_SIGNAL:
            self.is_to_be_replaced = True
        else:
            self.is_ending = True

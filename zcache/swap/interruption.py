"""Ctrl-C and SIGTERM as an exception that comes only where a step can be undone.

Between doing a step and registering its undo there must be no gap: `held` puts the exception off
until the pair is complete.  Only the first signal counts; while its undoing runs, later ones are
ignored, for a half-done undo is the worst outcome of all.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def is_ignored(signum: int) -> bool:
    """Whether our caller had it ignored, as nohup does: then it stays so."""
    return signal.getsignal(signum) is signal.SIG_IGN


# What a step that must not be torn apart is wrapped in.
Hold = Callable[[], AbstractContextManager[None]]


class Interrupted(BaseException):  # named, as KeyboardInterrupt is, for what happened
    """Not an Exception, so that no careless handler swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_status = 128 + signum


class Interruption:
    """Use as a context manager, in the main thread."""

    def __init__(self) -> None:
        self._hold_count = 0
        self._pending_signum: int | None = None
        self._raised = False

    def __enter__(self) -> "Interruption":
        self._before = {signum: signal.signal(signum, self._handle) for signum in SIGNALS if not is_ignored(signum)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self._pending_signum is None:
            self._pending_signum = signum
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self._pending_signum is not None and not self._hold_count and not self._raised:
            self._raised = True
            raise Interrupted(self._pending_signum)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The exception waits for the end of the outermost block, and never replaces another."""
        self._hold_count += 1
        try:
            yield
        finally:
            self._hold_count -= 1
        self._raise_if_due()

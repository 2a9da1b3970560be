"""Standard output and error of a command, whatever it was started with: closed (`>&-`, cron), a
full disk, a reader that has gone.

- A closed descriptor is opened again, as one that cannot be written to. Otherwise the next file or
  socket would get its number, and what is printed would go into that.
- A command that is run for what it prints (`lost_output` is its exit status then) says in one line
  that it could not. A reader that has gone has seen enough: 128+SIGPIPE, without a word.
- A command that is run for what it does (swap-up) goes on. Its exit status says what became of it.
- What cannot be written to stderr is dropped.
- A pipe or terminal that does not block (O_NONBLOCK, as Node and some ssh clients set it) and is
  full is waited for by the first kind; the second drops what does not go in.
"""

import contextlib
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

CLOSED: Final = "it is closed"
#: How a line says that it is one.
WARNING: Final = "WARNING"


class OutputLost(OSError):
    """What was printed could not be written. Not one of `OSError`'s other subclasses, whatever the
    errno is."""


def open_missing() -> None:
    """Give descriptors 0 to 2 that are closed something that can be read (it ends at once), and not
    written."""
    with contextlib.suppress(OSError):  # as many are open as may be: then these are, too
        while (descriptor := _open_nothing()) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)


def _open_nothing() -> int:
    """A pipe that nobody writes to: it is there without a /dev, too."""
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def run(name: str, main: Callable[[], int], lost_output: int | None = None) -> int:
    """`main`'s exit status, or the one for output that was lost, if there is one; for the whole of
    a process."""
    open_missing()
    output = _Stream(1, is_dropping=lost_output is None)
    sys.stdout, sys.stderr = _text(output, sys.stdout), _text(_Stream(2, is_dropping=True), sys.stderr)
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except OutputLost as error:
        output.is_dropping = True  # what is left of it, at the end of the process
        if error.errno == errno.EPIPE:
            return 128 + signal.SIGPIPE
        assert lost_output is not None  # or it would have been dropped
        reason = CLOSED if error.errno == errno.EBADF else error.strerror
        print(f"{name}: cannot write to standard output: {reason}", file=sys.stderr)
        return lost_output


def say(line: str) -> None:
    """Print what a command is about to do, or has done; a warning, on standard error. That nobody
    can be told never keeps it from going on."""
    with contextlib.suppress(Exception):  # whatever sys.stdout is by now
        print(line, file=sys.stderr if WARNING in line else sys.stdout, flush=True)


class _Stream(io.FileIO):
    """A descriptor that stays open. What cannot be written is dropped, or raises `OutputLost`."""

    def __init__(self, descriptor: int, is_dropping: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.is_dropping = is_dropping

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            while (written := super().write(data)) is None:  # it does not block, and is full
                if self.is_dropping:
                    return memoryview(data).nbytes
                poll = select.poll()
                poll.register(self.fileno(), select.POLLOUT)
                poll.poll()
            return written
        except OSError as error:
            if self.is_dropping:
                return memoryview(data).nbytes
            raise OutputLost(error.errno, error.strerror) from None


def _text(stream: _Stream, before: TextIO | None) -> TextIO:
    """In the encoding that Python has chosen; what that cannot say is escaped."""
    encoding = before.encoding if before else "utf-8"
    is_direct = stream.fileno() == 2 or stream.isatty()
    return io.TextIOWrapper(io.BufferedWriter(stream), encoding, "backslashreplace", line_buffering=is_direct)

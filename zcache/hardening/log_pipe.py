"""stderr that can neither block nor be swapped out: a pipe of one page that does not wait, and a thread that empties
it.

nbdkit prints to stderr whenever a callback fails, with the GIL held. If that write waits (a full pipe, a terminal
that is stopped, a tmpfs file whose page is out on the very device that we serve), the server waits with it. So file
descriptor 2 becomes a non-blocking pipe with room for one page: once its page has been used, the kernel keeps it with
the pipe, so writing needs no memory. What does not fit is dropped; a message is worth less than the machine. A thread
passes on what arrives to the original stderr, and may block there as it likes. If that is a regular file, it is let
grow to a size: a disk that fails all day must not fill memory with complaints, the counters have them.
"""

import contextlib
import fcntl
import os
import stat
import sys
from typing import Final

from zcache.hardening.limits import explain
from zcache.hardening.own_thread import OwnThread
from zcache.kernel_page import KERNEL_PAGE_BYTES
from zcache.steps import Steps

#: A page of the kernel's: it gives no pipe less.
PIPE_BYTES: Final = KERNEL_PAGE_BYTES
MAX_FILE_BYTES: Final = 1 << 20


class LogPipe:
    """Takes file descriptor 2 over; `close` gives it back after passing on what is left."""

    def __init__(self, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._max_file_bytes = max_file_bytes
        self._original = os.dup(2)
        self._reader = _divert()
        self._thread = OwnThread("zcache-log", self._pass_on)

    def renew(self) -> None:
        """In a copy made by fork(2), before `start`: a pipe of our own. The other is full when the original has died
        with much to say, and nobody else would empty it."""
        os.close(self._reader)
        self._reader = _divert()

    def start(self) -> None:
        """Start passing on. A thread, so it comes after everything that must be set before threads are. Raises
        `EnvironmentProblem` if there can be none."""
        self._thread.start()

    def close(self) -> None:
        """Give file descriptor 2 back."""
        os.dup2(self._original, 2)  # closes the last writer: the thread sees the end
        if not self._thread.is_alive():
            os.set_blocking(self._reader, False)
            with contextlib.suppress(OSError):  # nothing is left
                os.write(2, os.read(self._reader, PIPE_BYTES))
        self._thread.join(timeout=1)

    def _pass_on(self) -> None:
        while message := os.read(self._reader, PIPE_BYTES):
            with contextlib.suppress(OSError):  # nobody listens: that is theirs to decide
                output = os.fstat(self._original)
                if not stat.S_ISREG(output.st_mode) or output.st_size < self._max_file_bytes:
                    os.write(self._original, message)


def _divert() -> int:
    """Make file descriptor 2 a new pipe; the other end of it."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(writer, False)
    os.write(writer, b"\n")
    os.read(reader, PIPE_BYTES)  # the pipe has its page from here on
    os.dup2(writer, 2, inheritable=False)
    os.close(writer)
    return reader


def say(line: str) -> None:
    """Write a line to stderr, or drop it. Not by `sys.stderr`, which raises when the pipe is full, and again later."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def say_what_nobody_catches(who: str, steps: Steps) -> None:
    """In one line, from here on: what a thread ended by, or what could not be cleared away. Not while the process
    starts: a start that fails by it has a line of its own."""

    def hook(caught: "sys.UnraisableHookArgs") -> None:
        if caught.exc_value is not None and steps.have_ended:
            say(f"{who}: {explain('in a thread', caught.exc_value)}")

    sys.unraisablehook = hook


def is_log_pipe(descriptor: int) -> bool:
    """Whether a descriptor is a pipe of one page that does not block: read back from the kernel."""
    try:
        size_bytes = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
    except OSError:
        return False
    return size_bytes == PIPE_BYTES and not os.get_blocking(descriptor)

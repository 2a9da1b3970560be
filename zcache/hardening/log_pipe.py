"""stderr that can neither block nor be swapped out: a pipe of one page that does not wait, and a
thread that empties it.

nbdkit prints to stderr whenever a callback fails, with the GIL held. If that write waits (a full
pipe, a terminal that is stopped, a tmpfs file whose page is out on the very device that we serve),
the server waits with it. So file descriptor 2 becomes a non-blocking pipe with room for one page:
once its page has been used, the kernel keeps it with the pipe, so writing needs no memory. What
does not fit is dropped; a message is worth less than the machine. A thread passes on what arrives
to the original stderr, and may block there as it likes: line by line. What others (nbdkit, its
libraries) say again is counted instead (`repeats.py`); our own lines are counted where they come
from, or each is news. If that stderr is a regular file, it is let grow to a size: a disk that fails
all day must not fill memory with complaints, the counters have them.

When a server aborts, its last words (of a failed assertion, say) are in the pipe. Its heir has the
other end, too, and says them when it takes over. Where there is no keeper, `libc.put_off_abort`
gives the thread the time.
"""

import contextlib
import fcntl
import os
import re
import select
import stat
import sys
from typing import Final

from zcache.clock import Clock
from zcache.hardening.limits import explain
from zcache.hardening.own_thread import OwnThread
from zcache.hardening.repeats import Repeats
from zcache.linux.kernel_page import KERNEL_PAGE_BYTES
from zcache.steps import Steps

#: A page of the kernel's: it gives no pipe less.
PIPE_BYTES: Final = KERNEL_PAGE_BYTES
MAX_FILE_BYTES: Final = 1 << 20
#: What each server may say, whatever the file held when it began: others write there, too.
LEAST_BYTES: Final = 64 << 10

#: How a line ends that is not passed on: nbdkit prints one for each callback that fails, which has
#: said why itself.
SAID: Final = " (zcache says why)"
#: nbdkit writes such a line in pieces, and those that find no room in the pipe are missing. What is
#: left without the message is no line; without the newline, a line of ours may stand behind it.
_PIECES: Final = r"(?:[n@]bdkit|python|\[\d+\]|error|: ?)+"
_TORN: Final = re.compile(_PIECES)
_TORN_BEFORE_OURS: Final = re.compile(rf"(?:.*{re.escape(SAID)}|{_PIECES})(?=zcache(?: keeper)?: )")
#: nbdkit calls itself by the command line, whose first letter is changed (`protections.py`,
#: "shutdown").
_NAME, _MARKED_NAME = "nbdkit: ", "@bdkit: "
#: How our own lines begin.
_OURS: Final = ("zcache: ", "zcache keeper: ")
#: nbdkit's own, with -v, are for whoever wants each.
_DEBUG: Final = ": debug: "
#: And when there is no memory for a request's buffer.
_NO_BUFFER: Final = ": threadlocal_buffer: "
NO_BUFFER: Final = (
    "; a client's request failed by that, and nothing else: smaller requests need less, or raise the limit"
)

FULL: Final = "zcache: this log is full; `zcache status --json` has counters of all failures"


class LogPipe:
    """Takes file descriptor 2 over; `close` gives it back after passing on what is left."""

    def __init__(self, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._is_full = False
        self._repeats = Repeats(Clock())
        self._original = os.dup(2)
        self._max_file_bytes = max(max_file_bytes, os.fstat(self._original).st_size + LEAST_BYTES)
        self._before = -1  # whose heir we are, its pipe
        self._reader = _divert()
        self._thread = OwnThread("zcache-log", self._pass_on, goes_on=True)

    def renew(self) -> None:
        """In a copy made by fork(2), before `start`: a pipe of our own. The other is full when the
        original has died with much to say, and is emptied once it has."""
        if self._before >= 0:
            os.close(self._before)
        self._before = self._reader
        self._reader = _divert()

    def start(self) -> None:
        """Start passing on. A thread, so it comes after everything that must be set before threads
        are. Raises `EnvironmentProblem` if there can be none."""
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
        self._pass_on_before()
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        rest = b""
        while True:
            seconds = self._repeats.seconds_until_due()
            if poll.poll(None if seconds is None else seconds * 1000 + 1):
                message = os.read(self._reader, PIPE_BYTES)
                if not message:
                    break
                *lines, rest = (rest + message).split(b"\n")
                if len(rest) > PIPE_BYTES:
                    lines, rest = [*lines, rest], b""
                self._write([self._take(line) for line in lines])
            self._write(self._repeats.due())
        self._write([self._take(rest), *self._repeats.due(at_the_end=True)])

    def _pass_on_before(self) -> None:
        """What whose heir we are had no time to: it has ended, whether it was told to or not."""
        if self._before < 0:
            return
        os.set_blocking(self._before, False)
        with contextlib.suppress(OSError):  # it was all passed on, and a copy of it lives
            self._write([self._take(line) for line in os.read(self._before, PIPE_BYTES).split(b"\n")])
        os.close(self._before)
        self._before = -1

    def _take(self, words: bytes) -> str:
        """A line as it is to be written now; "" if it is not."""
        line = words.decode(errors="replace").rstrip()
        if torn := _TORN_BEFORE_OURS.match(line):
            line = line[torn.end() :]
        if not line or line.endswith(SAID) or _TORN.fullmatch(line):
            return ""
        if line.startswith(_MARKED_NAME):
            line = _NAME + line.removeprefix(_MARKED_NAME)
        if line.startswith(_OURS) or (line.startswith(_NAME) and _DEBUG in line):
            return line
        return self._repeats.add(line + NO_BUFFER if _NO_BUFFER in line else line)

    def _write(self, lines: list[str]) -> None:
        text = "".join(f"{line}\n" for line in lines if line)
        if not text:
            return
        with contextlib.suppress(OSError):  # nobody listens: that is theirs to decide
            output = os.fstat(self._original)
            was_full = self._is_full
            self._is_full = stat.S_ISREG(output.st_mode) and output.st_size >= self._max_file_bytes
            if self._is_full:
                text = "" if was_full else f"{FULL}\n"
            os.write(self._original, text.encode(errors="replace"))


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
    """Write a line to stderr, or drop it. Not by `sys.stderr`, which raises when the pipe is full,
    and again later."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def say_what_nobody_catches(who: str, steps: Steps) -> None:
    """In one line, from here on: what a thread ended by, or what could not be cleared away. Not
    while the process starts: a start that fails by it has a line of its own."""

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

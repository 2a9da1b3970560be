"""Ending on a signal, with clients connected.

nbdkit 1.32 answers requests with ESHUTDOWN once it has been told to end (to a kernel that swaps that is an I/O error),
and then waits until every client has gone; a client that is idle holds it up for ever. So its termination signals are
blocked in every thread but one of ours, which waits for them, tells each connection that no more requests will be read,
and tells nbdkit when none is left. Requests that the client has sent by then are answered first.

A server with a keeper just goes. The kernel takes the end of reading for the end of the connection, and sends
everything that was not answered again to the next server.
"""

import contextlib
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from zcache import libc
from zcache.hardening.threads import begin_own_thread

#: The signals by which nbdkit ends.
SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP})

#: A connection that was being accepted when the signal came is found at the next look.
LOOK_SECONDS: Final = 0.05

#: Of which standard error may be a socket: the journal's. (With `-s`, nbdkit has moved the connection elsewhere.)
_standard_streams: Final[set[tuple[int, int]]] = set()


def hold_signals() -> None:
    """Call in the process's only thread: threads made later inherit the blocked signals.

    nbdkit 1.32 asks for a SIGTERM when its parent ends, whether or not it was given --exit-with-parent. A swap server
    whose shell was closed would take the machine with it, so that is taken back unless it was asked for.
    """
    if b"--exit-with-parent" not in Path("/proc/self/cmdline").read_bytes().split(b"\0"):
        libc.prctl(libc.PR_SET_PDEATHSIG, 0)
    for descriptor in range(3):
        with contextlib.suppress(OSError):  # closed
            _standard_streams.add(_identity(descriptor))
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def end_on_signals(end: Callable[[], None], *, at_once: bool) -> None:
    """Call `end` when one comes, or came since `hold_signals`: `at_once`, or when all connections have ended."""
    threading.Thread(target=_wait_and_end, args=(end, at_once), daemon=True).start()


def _wait_and_end(end: Callable[[], None], at_once: bool) -> None:
    begin_own_thread("zcache-end")
    signal.sigwait(SIGNALS)
    while not at_once and _stop_reading():
        time.sleep(LOOK_SECONDS)
    end()
    while True:  # until the process has ended
        _stop_reading()
        time.sleep(LOOK_SECONDS)


def _stop_reading() -> int:
    """Of each connection: its reader sees the end, its writer may finish. How many there are."""
    return sum(_stop_reading_from(int(entry.name)) for entry in Path("/proc/self/fd").iterdir())


def _stop_reading_from(descriptor: int) -> bool:
    """If it is a connected socket."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode) or _identity(descriptor) in _standard_streams:
            return False
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return False
            connection.shutdown(socket.SHUT_RD)
            return True
    except OSError:
        return False  # gone


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino

"""Ending on a signal, with clients connected.

nbdkit 1.32 answers requests with ESHUTDOWN once it has been told to end (to a kernel that swaps
that is an I/O error), and then waits until every client has gone; a client that is idle holds it up
for ever. So its termination signals are blocked in every thread but one of ours, which waits for
them, tells each connection that no more requests will be read, and tells nbdkit when none is left.
Requests that the client has sent by then are answered first.

Whoever started us with SIGHUP, SIGINT or SIGQUIT ignored (nohup, a shell's `&`) wants us to outlive
them. nbdkit takes no notice of that, so it is looked at before nbdkit sets its handlers, and those
signals stay blocked for good.

A server with a keeper just goes. The kernel takes the end of reading for the end of the connection,
and sends everything that was not answered again to the next server.
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

from nbd_plugin.nbdkit_process import connections, has_option
from zcache.hardening.own_thread import OwnThread
from zcache.linux import libc

#: The signals by which nbdkit ends.
SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP})

#: Those that were ignored when the plugin was loaded; nbdkit sets its handlers after that.
_ignored: Final = frozenset(number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN)

#: A connection that was being accepted when the signal came is found at the next look.
LOOK_SECONDS: Final = 0.05
#: A server that cannot see its connections, for want of descriptors, ends all the same: after some
#: 5 s.
MAX_BLIND_LOOKS: Final = 100

#: Of which standard error may be a socket: the journal's. (With `-s`, nbdkit has moved the
#: connection elsewhere.)
_standard_streams: Final[set[tuple[int, int]]] = set()


def hold_signals() -> None:
    """Call in the process's only thread: threads made later inherit the blocked signals.

    nbdkit 1.32 asks for a SIGTERM when its parent ends, whether or not it was given
    --exit-with-parent. A swap server whose shell was closed would take the machine with it, so that
    is taken back unless it was asked for.
    """
    if not has_option("--exit-with-parent"):
        libc.prctl(libc.PR_SET_PDEATHSIG, 0)
    for descriptor in range(3):
        with contextlib.suppress(OSError):  # closed
            _standard_streams.add(_identity(descriptor))
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def end_on_signals(
    end: Callable[[], None], *, at_once: bool, is_own: Callable[[socket.socket], bool] = lambda _: False
) -> None:
    """Call `end` when one comes, or came since `hold_signals`: `at_once`, or when all connections
    have ended, but for those that are the server's own."""
    OwnThread("zcache-end", lambda: _wait_and_end(end, at_once, is_own)).start()


def _wait_and_end(end: Callable[[], None], at_once: bool, is_own: Callable[[socket.socket], bool]) -> None:
    signal.sigwait(SIGNALS - _ignored)
    blind = 0
    while not at_once and blind < MAX_BLIND_LOOKS:
        try:
            if not _stop_reading(is_own):
                break
        except OSError:  # no descriptor to look with
            blind += 1
        time.sleep(LOOK_SECONDS)
    end()
    while True:  # until the process has ended
        with contextlib.suppress(OSError):
            _stop_reading(is_own)
        time.sleep(LOOK_SECONDS)


def _stop_reading(is_own: Callable[[socket.socket], bool]) -> int:
    """Of each connection: its reader sees the end, its writer may finish. How many there are."""
    count = 0
    for connection in connections():
        with contextlib.suppress(OSError):  # its client has gone
            if _identity(connection.fileno()) not in _standard_streams and not is_own(connection):
                connection.shutdown(socket.SHUT_RD)
                count += 1
    return count


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino

"""The turn of a standby: waiting for it, and leaving an heir that waits in its place.

The words are those of `zcache.keeper.channel`. The standby says that it is ready, again and again
as it becomes the next one; it is told to begin, with the files that the first server has opened; it
names its heir by its pid, with the end of a channel of the heir's own.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

from zcache.hardening.log_pipe import say
from zcache.keeper.channel import BEGIN_ALONE, FILES, MAX_FILES, READY
from zcache.server.config import MAX_CLEAN
from zcache.steps import Steps

#: That a successor is given at most: the backing, and those of clean exports.
_MOST_FILES: Final = MAX_CLEAN + 1
assert _MOST_FILES <= MAX_FILES


def wait_for_turn(descriptor: int, steps: Steps, get_heir_ready: Callable[[], None]) -> tuple[socket.socket, list[int]]:
    """Return when the keeper, at the other end of the socket `descriptor`, says that this process
    is the server: the channel, and the descriptors of the files that it is given. Ends the process
    when the keeper has ended.

    Before that a copy of the process, its heir, is left in its place, unless it is not to be;
    `get_heir_ready` is called in each heir before it waits.
    """
    keeper = socket.socket(fileno=descriptor)
    steps.wait("waiting for its turn")
    while True:
        try:
            keeper.sendall(READY)
            word, files, _, _ = socket.recv_fds(keeper, 1, _MOST_FILES)
        except ConnectionError:
            word = b""
        if not word:
            os._exit(0)
        if word == BEGIN_ALONE:
            break
        steps.begin("leaving an heir")
        ends: tuple[socket.socket, ...] = ()
        try:
            ends = keepers, heirs = socket.socketpair()
            pid = os.fork()
            if pid:
                socket.send_fds(keeper, [str(pid).encode()], [keepers.fileno()])
        except (OSError, MemoryError) as error:
            with contextlib.suppress(MemoryError):  # the keeper starts one, when there is a server again
                say(f"zcache: no heir: {error}")
            pid = -1
        if pid:
            for end in ends:
                end.close()
            break
        keeper.close()
        keepers.close()
        keeper = heirs
        for file in files:  # it is given some itself
            os.close(file)
        get_heir_ready()
    return keeper, files


def hand_on(keeper: socket.socket, files: list[int]) -> None:
    """What the first server has opened, for the keeper to give to those after it."""
    with contextlib.suppress(OSError):
        socket.send_fds(keeper, [FILES], files)

"""Where the clients of a pager's service come in: a Unix socket, and whoever has connected to it
and has not said yet which region it brings."""

import json
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from zcache.errors import BadInput
from zcache.linux.sockets import listen_for_owner, peer_pid, remove_if_dead
from zcache.pager import messages

#: To have said it, from being accepted on; ours takes a millisecond.
DEADLINE_SECONDS: Final = 5.0
#: At a time that have not.
MAX_NEWCOMERS: Final = 16
#: What a client gives of its region: its userfaultfd, the memory's file, and the ends of two
#: sockets: where pages are forgotten, and the one that says whether anybody is there.
REGIONS_DESCRIPTORS: Final = 4


class Newcomer(NamedTuple):
    """Who it is (0: a process of another namespace's), what it says, and its descriptors, of which
    the first is its connection. They are whoever's that gets this."""

    pid: int
    words: Any
    descriptors: list[int]


class Entrance:
    """Listens at `path` (mode 0600: for those who could do to the pager whatever they liked)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            if remove_if_dead(path):
                raise BadInput(f"{path}: another pager answers there; give each a path of its own")
            if path.exists():
                raise BadInput(f"{path}: that is no socket; give the path of one that is to be made")
            self._listener = listen_for_owner(path, MAX_NEWCOMERS)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror or error}; give the path of a socket that can be made") from None
        self._waiting: dict[int, tuple[socket.socket, float]] = {}  # by descriptor, the oldest first

    def register(self, poll: "select.poll") -> float | None:
        """Wait for them, too; for how many seconds at most."""
        poll.register(self._listener, select.POLLIN)
        for descriptor in self._waiting:
            poll.register(descriptor, select.POLLIN)
        deadlines = [deadline for _, deadline in self._waiting.values()]
        return max(min(deadlines) - time.monotonic(), 0.0) if deadlines else None

    def newcomers(self, ready: set[int]) -> Iterator[Newcomer]:
        """Those who have said it, among the descriptors that are ready. Who takes too long is let
        go."""
        if self._listener.fileno() in ready:
            self._accept()
        for descriptor, (connected, deadline) in list(self._waiting.items()):
            if descriptor in ready:
                del self._waiting[descriptor]
                newcomer = _hear(connected)
                if newcomer:
                    yield newcomer
            elif deadline < time.monotonic():
                self._waiting.pop(descriptor)[0].close()

    def close(self) -> None:
        """Nobody comes in any more."""
        self._path.unlink(missing_ok=True)
        self._listener.close()
        for connected, _ in self._waiting.values():
            connected.close()
        self._waiting.clear()

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except OSError:  # it has gone again, or there are no descriptors
            time.sleep(0.01)
            return
        if len(self._waiting) == MAX_NEWCOMERS:
            self._waiting.pop(next(iter(self._waiting)))[0].close()
        self._waiting[connected.fileno()] = (connected, time.monotonic() + DEADLINE_SECONDS)


def _hear(connected: socket.socket) -> Newcomer | None:
    """What it says, all at once; None if that makes no sense, or it has gone."""
    descriptors: list[int] = []
    try:
        connected.setblocking(False)
        said, descriptors, _, _ = socket.recv_fds(
            connected, messages.MAX_PACKET_BYTES, messages.MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        pid = peer_pid(connected)
        words = json.loads(said)
    except (OSError, ValueError, RecursionError):  # the last of lists in lists in lists
        words = None
    if words is None or len(descriptors) != REGIONS_DESCRIPTORS:
        connected.close()
        for descriptor in descriptors:
            os.close(descriptor)
        return None
    connected.setblocking(True)
    return Newcomer(pid, words, [connected.detach(), *descriptors])

"""A wire with a delay: a process between client and engine that hands bytes on, each way, a fixed
time after they came. `engines.relay` starts it.

It stands for a network's round trip where the kernel has no netem. Bytes stay in order, and 4 MiB
may be under way each way on each connection: it adds time, and no limit to what is asked of it
here. It cannot stand for loss, nor for a link's own speed. What a real wire does not cost, it does:
two more copies and twice the system calls, on the processors that client and engine have. The
benchmark measures that, too.

One thread, and one `select`, whose timeout is in microseconds (`epoll`'s is in milliseconds), with
the timer's slack turned off. Nothing spins: that would take a processor from client and engine.
"""

import contextlib
import select
import socket
import sys
import time
from collections import deque
from typing import Final

from zcache.linux.libc import PR_SET_TIMERSLACK, prctl

#: Of each direction: what is under way when a link of 50 Gbit/s has 0.6 ms.
_RING_BYTES: Final = 4 << 20
#: What is taken from a socket at once, at most: a byte's time starts when it is.
_READ_BYTES: Final = 256 << 10


#: What a thread that sleeps may oversleep by: the least (0 would be the default again, 50 us).
_SLACK_NANOSECONDS: Final = 1


class _Direction:
    """Bytes from one socket to another, in a ring: chunks, each with the time when it is due."""

    def __init__(self, source: socket.socket, target: socket.socket, delay_seconds: float) -> None:
        self.source = source
        self.target = target
        self.is_blocked = False
        self._delay_seconds = delay_seconds
        self._ring = memoryview(bytearray(_RING_BYTES))
        self._chunks: deque[tuple[float, int]] = deque()
        self._head = self._tail = 0  # of the ring: what came up to here; what went up to here

    def has_room(self) -> bool:
        return self._head - self._tail < _RING_BYTES

    def due(self) -> float | None:
        """When there is something to hand on; None: nothing now."""
        return self._chunks[0][0] if self._chunks and not self.is_blocked else None

    def take(self) -> bool:
        """What has come; False: the source has ended."""
        start = self._head % _RING_BYTES
        stop = min(start + _READ_BYTES, _RING_BYTES, start + _RING_BYTES - (self._head - self._tail))
        count = self.source.recv_into(self._ring[start:stop])
        self._head += count
        self._chunks.append((time.monotonic() + self._delay_seconds, self._head))
        return count > 0

    def hand_on(self) -> None:
        """What is due."""
        self.is_blocked = False
        while self._chunks and self._chunks[0][0] <= time.monotonic():
            stop = self._chunks[0][1]
            start = self._tail % _RING_BYTES
            try:
                sent = self.target.send(self._ring[start : start + stop - self._tail])
            except BlockingIOError:
                self.is_blocked = True
                return
            self._tail += sent
            if self._tail == stop:
                self._chunks.popleft()


class _Relay:
    """All connections."""

    def __init__(self, listener: socket.socket, target: str, delay_seconds: float) -> None:
        self._listener = listener
        self._target = target
        self._delay_seconds = delay_seconds
        self._directions: list[_Direction] = []

    def run(self) -> None:
        """Until the process ends."""
        while True:
            dues = [due for direction in self._directions if (due := direction.due()) is not None]
            timeout = max(min(dues) - time.monotonic(), 0) if dues else None
            sources = [direction.source for direction in self._directions if direction.has_room()]
            targets = [direction.target for direction in self._directions if direction.is_blocked]
            readable, writable, _ = select.select([self._listener, *sources], targets, [], timeout)
            for direction in tuple(self._directions):
                try:
                    if direction.source in readable and not direction.take():
                        raise EOFError
                    if not direction.is_blocked or direction.target in writable:
                        direction.hand_on()
                except (OSError, EOFError):
                    self._drop(direction)
            if self._listener in readable:
                self._accept()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            engine = _connect(self._target)
        except OSError:
            client.close()
            return
        for end in (client, engine):
            end.setblocking(False)
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._directions += [
            _Direction(client, engine, self._delay_seconds),
            _Direction(engine, client, self._delay_seconds),
        ]

    def _drop(self, ended: _Direction) -> None:
        """A connection, both ways, with what was under way."""
        ends = {ended.source, ended.target}
        self._directions = [direction for direction in self._directions if direction.source not in ends]
        for end in ends:
            end.close()


def _connect(target: str) -> socket.socket:
    if not target.startswith("/"):
        return socket.create_connection(("127.0.0.1", int(target)))
    engine = socket.socket(socket.AF_UNIX)
    try:
        engine.connect(target)
    except OSError:
        engine.close()
        raise
    return engine


def main() -> int:
    """Words: the port to listen at, what to hand on to (a path, or a port), seconds each way."""
    port, target, delay_seconds = sys.argv[1:]
    prctl(PR_SET_TIMERSLACK, _SLACK_NANOSECONDS)
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=64)
    with contextlib.suppress(KeyboardInterrupt):
        _Relay(listener, target, float(delay_seconds)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

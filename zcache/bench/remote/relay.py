"""A wire with a delay: a process between client and engine that hands on what is asked a fixed time
after it came, and what is answered at once. `engines.relay` starts it.

It stands for a network's round trip where the kernel has no netem. To who waits for an answer it is
all the same on which way the time is spent; on the way there it is spent on a few bytes instead of
frames. Answers are moved from socket to socket by splice(2): they are not copied, and not looked
at.

Bytes stay in order, and 4 MiB may be under way to the engine on each connection, and 1 MiB back: it
adds time, and no limit to what is asked of it here. It cannot stand for loss, nor for a link's own
speed. What a real wire does not cost, it does: it takes turns with client and engine on the same
processors. The benchmark measures that, too.

One thread. It waits in `select`, whose timeout is in microseconds (`epoll`'s is in milliseconds),
for `epoll`, which knows the sockets; the timer's slack is turned off. Nothing spins: that would
take a processor from client and engine.
"""

import contextlib
import fcntl
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from zcache.linux.libc import PR_SET_TIMERSLACK, prctl

#: On the way to the engine: what is under way when a link of 50 Gbit/s has 0.6 ms.
_RING_BYTES: Final = 4 << 20
#: What is taken from a socket at once, at most: a byte's time starts when it is.
_READ_BYTES: Final = 256 << 10
#: On the way back: the largest pipe that anybody may have.
_PIPE_BYTES: Final = 1 << 20

#: What a thread that sleeps may oversleep by: the least (0 would be the default again, 50 us).
_SLACK_NANOSECONDS: Final = 1


class _Requests:
    """Bytes to the engine, in a ring: chunks, each with the time when it is due."""

    def __init__(self, source: socket.socket, target: socket.socket, delay_seconds: float) -> None:
        self.source = source
        self.target = target
        self.is_blocked = False  # the target takes nothing now
        self._delay_seconds = delay_seconds
        self._ring = memoryview(bytearray(_RING_BYTES))
        self._chunks: deque[tuple[float, int]] = deque()
        self._head = self._tail = 0  # of the ring: what came up to here; what went up to here

    def close(self) -> None:
        self._chunks.clear()

    def has_room(self) -> bool:
        return self._head - self._tail < _RING_BYTES

    def take(self) -> float:
        """What has come; returns when it is due. Raises `EOFError` at its end."""
        start = self._head % _RING_BYTES
        stop = min(start + _READ_BYTES, _RING_BYTES, start + _RING_BYTES - (self._head - self._tail))
        count = self.source.recv_into(self._ring[start:stop])
        if not count:
            raise EOFError
        self._head += count
        due = time.monotonic() + self._delay_seconds
        self._chunks.append((due, self._head))
        return due

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


class _Answers:
    """Bytes back, through a pipe, at once."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.is_blocked = False
        self._held_bytes = 0
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)

    def has_room(self) -> bool:
        return not self.is_blocked

    def take(self) -> float:
        """What has come, which is due. Raises `EOFError` at its end."""
        count = os.splice(self.source.fileno(), self._writer, _PIPE_BYTES, flags=os.SPLICE_F_NONBLOCK)
        if not count:
            raise EOFError
        self._held_bytes += count
        return 0.0

    def hand_on(self) -> None:
        """All of it, if the target takes it."""
        self.is_blocked = False
        while self._held_bytes:
            try:
                self._held_bytes -= os.splice(
                    self._reader, self.target.fileno(), self._held_bytes, flags=os.SPLICE_F_NONBLOCK
                )
            except BlockingIOError:
                self.is_blocked = True
                return


_Direction: TypeAlias = _Requests | _Answers


class _Relay:
    """All connections."""

    def __init__(self, listener: socket.socket, target: str, delay_seconds: float) -> None:
        self._listener = listener
        self._target = target
        self._delay_seconds = delay_seconds
        self._epoll = select.epoll()
        self._epoll.register(listener, select.EPOLLIN)
        self._from: dict[int, _Direction] = {}  # by the source's descriptor
        self._to: dict[int, _Direction] = {}  # by the target's
        self._events: dict[int, int] = {}  # what is waited for there
        self._due: deque[tuple[float, _Direction]] = deque()  # all wait equally long, so the first is due first

    def run(self) -> None:
        """Until the process ends."""
        while True:
            timeout = max(self._due[0][0] - time.monotonic(), 0) if self._due else None
            select.select([self._epoll], [], [], timeout)
            for descriptor, events in self._epoll.poll(0):
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._events:  # it has not been dropped in this round
                    self._pass(descriptor, events)
            while self._due and self._due[0][0] <= time.monotonic():
                _, direction = self._due.popleft()
                if self._from.get(direction.source.fileno()) is direction and not direction.is_blocked:
                    self._try(direction, direction.hand_on)

    def _pass(self, descriptor: int, events: int) -> None:
        """What can be done there: something came, or something that waits can go."""
        source, target = self._from[descriptor], self._to[descriptor]
        if events & select.EPOLLOUT and target.is_blocked:
            self._try(target, target.hand_on)
        if descriptor in self._events and events & ~select.EPOLLOUT:
            if source.has_room():
                self._try(source, lambda: self._take(source))
            elif events & (select.EPOLLHUP | select.EPOLLERR):  # which it would say for ever
                self._drop(source)

    def _take(self, direction: _Direction) -> None:
        due = direction.take()
        if due:
            self._due.append((due, direction))
        else:
            direction.hand_on()

    def _try(self, direction: _Direction, move: Callable[[], None]) -> None:
        """Let go of a connection that has ended."""
        try:
            move()
        except (OSError, EOFError):
            self._drop(direction)
        else:
            self._watch(direction.source)
            self._watch(direction.target)

    def _watch(self, end: socket.socket) -> None:
        """Have the kernel say when there is something to be done at that end."""
        descriptor = end.fileno()
        events = 0
        if self._from[descriptor].has_room():
            events |= select.EPOLLIN
        if self._to[descriptor].is_blocked:
            events |= select.EPOLLOUT
        if events != self._events[descriptor]:
            self._events[descriptor] = events
            self._epoll.modify(descriptor, events)

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
        for direction in (_Requests(client, engine, self._delay_seconds), _Answers(engine, client)):
            self._from[direction.source.fileno()] = self._to[direction.target.fileno()] = direction
        for end in (client, engine):
            self._events[end.fileno()] = select.EPOLLIN
            self._epoll.register(end, select.EPOLLIN)

    def _drop(self, ended: _Direction) -> None:
        """A connection, both ways, with what was under way."""
        for end in (ended.source, ended.target):
            descriptor = end.fileno()
            self._from.pop(descriptor).close()
            del self._to[descriptor], self._events[descriptor]
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
    """Words: the port to listen at, what to hand on to (a path, or a port), seconds there."""
    port, target, delay_seconds = sys.argv[1:]
    prctl(PR_SET_TIMERSLACK, _SLACK_NANOSECONDS)
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=64)
    with contextlib.suppress(KeyboardInterrupt):
        _Relay(listener, target, float(delay_seconds)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

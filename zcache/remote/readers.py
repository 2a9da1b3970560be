"""Readers: a peer's connections for reading, handed to whoever has waited longest.

Whoever gives one back does not take it again before those who wait: with a plain queue, the thread
that has just put a connection back is running, takes it again, and others starve. (Eight threads,
four connections in a `queue.SimpleQueue`: one of them waited 8 s.)

Locking: one lock, held for moments; who waits does so on a lock of their own, with their own
deadline.
"""

import _thread
import contextlib
import errno
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from zcache.remote.resp import Reply


class Connected(Protocol):
    """What is made of a connection; each of these as `Connection` has it."""

    @property
    def is_open(self) -> bool: ...
    def close(self) -> None: ...
    def get_all(self, keys: Sequence[bytes], buffers: Sequence[memoryview], seconds: float) -> list[bool]: ...
    def begin_set(self, keys: Sequence[bytes], values: Sequence[Sequence[memoryview]], seconds: float) -> None: ...
    def end_set(self, seconds: float) -> list[str]: ...
    def unlink_all(self, keys: Sequence[bytes], seconds: float) -> int: ...
    def exist_all(self, keys: Sequence[bytes], seconds: float) -> list[bool]: ...
    def call(self, *words: str | bytes | int, seconds: float) -> Reply: ...


class _Turn:
    """Somebody who waits."""

    __slots__ = ("connection", "is_given")

    def __init__(self) -> None:
        self.connection: Connected | None = None
        self.is_given = _thread.allocate_lock()
        self.is_given.acquire()


class Readers:
    """None at first; `name` is the peer's, for errors."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = _thread.allocate_lock()
        self._all: list[Connected] = []
        self._idle: list[Connected] = []
        self._waiting: deque[_Turn] = deque()

    def __len__(self) -> int:
        """How many there are, idle or not."""
        return len(self._all)

    def add(self, connection: Connected) -> None:
        """One more."""
        with self._lock:
            self._all.append(connection)
            self._hand_on(connection)

    @contextlib.contextmanager
    def reader(self, seconds: float) -> Iterator[Connected]:
        """One of them, for as long as the context is entered. One that is closed by then is not
        taken back. Raises `OSError` if there is none, or none is free within so many seconds."""
        connection = self._take(seconds)
        try:
            yield connection
        finally:
            with self._lock:
                if connection.is_open and connection in self._all:
                    self._hand_on(connection)
                else:
                    connection.close()
                    self._forget(connection)

    def close(self) -> None:
        """Let go of all of them. A read that is under way ends by itself."""
        with self._lock:
            for connection in self._idle:
                connection.close()
            self._all.clear()
            self._idle.clear()
            self._turn_away()

    def _take(self, seconds: float) -> Connected:
        with self._lock:
            if not self._all:
                raise OSError(errno.ENOTCONN, f"{self._name} is not connected")
            if self._idle:
                return self._idle.pop()
            turn = _Turn()
            self._waiting.append(turn)
        if not turn.is_given.acquire(timeout=max(seconds, 0)):
            with self._lock:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                    raise TimeoutError(errno.ETIMEDOUT, f"{self._name} is busy")
        if turn.connection is None:
            raise OSError(errno.ENOTCONN, f"{self._name} is not connected")
        return turn.connection

    def _hand_on(self, connection: Connected) -> None:
        """Under the lock."""
        if self._waiting:
            turn = self._waiting.popleft()
            turn.connection = connection
            turn.is_given.release()
        else:
            self._idle.append(connection)

    def _forget(self, connection: Connected) -> None:
        """Under the lock: one is gone; if it was the last, nobody's turn comes any more."""
        with contextlib.suppress(ValueError):
            self._all.remove(connection)
        if not self._all:
            self._turn_away()

    def _turn_away(self) -> None:
        while self._waiting:
            self._waiting.popleft().is_given.release()

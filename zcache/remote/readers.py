"""Readers: a peer's connections for reading, and who waits for one.

One of them reads at a time (`MAX_BUSY`). Whoever comes meanwhile waits; and whoever has waited
longest gets it next, and reads for those behind along with his own: one exchange, in which the
engine answers one key after the other, instead of one for each. Eight threads on two processors
read 7,500 frames a second so, and with four connections, each on its own, 5,300; p99 is 1.6 ms
instead of 2.9 (loopback, 2026-12-01). The others are spare: an error closes the one that it happens
on, and the mender makes new ones by and by.

Nobody who waits is passed over: with a plain queue, the thread that has just put a connection back
is running, takes it again, and others starve. (Eight threads, four connections in a
`queue.SimpleQueue`: one of them waited 8 s.)

Locking: one lock, held for moments; who waits does so on a lock of their own, with their own
deadline, or for as long as somebody reads for them.
"""

import _thread
import contextlib
import errno
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, Protocol, TypeAlias

from zcache.clock import Clock
from zcache.remote.resp import MAX_IN_FLIGHT, Reply

#: Connections that read at a time. With two, p99 is 2.6 ms: fewer wait, and more is asked alone.
MAX_BUSY: Final = 1


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


#: Connection, keys, buffers, when it has to be over.
Read: TypeAlias = Callable[[Connected, Sequence[bytes], Sequence[memoryview], float], list[bool]]


class _Wish:
    """Some keys that somebody wants read."""

    __slots__ = ("along", "buffers", "connection", "ends", "error", "found", "is_settled", "keys")

    def __init__(self, keys: Sequence[bytes], buffers: Sequence[memoryview], ends: float) -> None:
        self.keys = keys
        self.buffers = buffers
        self.ends = ends
        self.is_settled = _thread.allocate_lock()  # released once one of these is known:
        self.is_settled.acquire()
        self.connection: Connected | None = None  # to read with, and for whom else
        self.along: list[_Wish] = []
        self.found: list[bool] | None = None  # by somebody else
        self.error: OSError | None = None


class Readers:
    """None at first. `name` is the peer's, for errors; `read` is what it does with a connection,
    and may raise `OSError`."""

    max_busy = MAX_BUSY

    def __init__(self, name: str, clock: Clock, read: Read) -> None:
        self._name = name
        self._clock = clock
        self._read = read
        self._lock = _thread.allocate_lock()
        self._all: list[Connected] = []
        self._idle: list[Connected] = []
        self._waiting: deque[_Wish] = deque()

    def __len__(self) -> int:
        """How many there are, idle or not."""
        return len(self._all)

    @property
    def waiting(self) -> int:
        """How many have to wait for one."""
        return len(self._waiting)

    def add(self, connection: Connected) -> None:
        """One more."""
        with self._lock:
            self._all.append(connection)
            self._idle.append(connection)
            self._hand_on()

    def get_all(self, keys: Sequence[bytes], buffers: Sequence[memoryview], seconds: float) -> list[bool]:
        """Which of the keys are there. Raises `OSError` if there is no connection, if none is free
        within so many seconds, or what `read` does."""
        wish = _Wish(keys, buffers, self._clock.now() + seconds)
        connection = self._take(wish, seconds)
        if connection is None:
            assert wish.found is not None
            return wish.found
        wishes = [wish, *wish.along]
        if wish.along:
            keys = [key for each in wishes for key in each.keys]
            buffers = [buffer for each in wishes for buffer in each.buffers]
        failed: BaseException | None = None
        found: list[bool] = []
        try:
            found = self._read(connection, keys, buffers, wish.ends)
        except BaseException as error:
            failed = error
            raise
        finally:
            with self._lock:
                self._give_back(connection)
            start = len(wish.keys)
            for each in wish.along:
                if failed:
                    code = failed.errno if isinstance(failed, OSError) else None
                    each.error = OSError(code or errno.EIO, str(failed))
                else:
                    each.found = found[start : start + len(each.keys)]
                start += len(each.keys)
                each.is_settled.release()
        return found[: len(wish.keys)]

    def close(self) -> None:
        """Let go of all of them. A read that is under way ends by itself."""
        with self._lock:
            for connection in self._idle:
                connection.close()
            self._all.clear()
            self._idle.clear()
            self._turn_away()

    def _take(self, wish: _Wish, seconds: float) -> Connected | None:
        """A connection to read with; None: somebody else has read it. Raises `OSError`."""
        with self._lock:
            if not self._all:
                raise self._not_connected()
            self._waiting.append(wish)
            self._hand_on()
        if not wish.is_settled.acquire(timeout=max(seconds, 0)):
            with self._lock:
                if wish in self._waiting:
                    self._waiting.remove(wish)
                    raise TimeoutError(errno.ETIMEDOUT, f"{self._name} is busy")
            wish.is_settled.acquire()  # somebody reads into its buffers
        if wish.error:
            raise wish.error
        return wish.connection

    def _give_back(self, connection: Connected) -> None:
        """Under the lock. One that is closed by now is not taken back."""
        if connection.is_open and connection in self._all:
            self._idle.append(connection)
        else:
            connection.close()
            with contextlib.suppress(ValueError):
                self._all.remove(connection)
        if self._all:
            self._hand_on()
        else:
            self._turn_away()

    def _hand_on(self) -> None:
        """Under the lock: idle ones to those that wait, each with as many behind as may be in
        flight at once, and have time for as long as the first."""
        while self._waiting and self._idle and len(self._all) - len(self._idle) < self.max_busy:
            first = self._waiting.popleft()
            room = MAX_IN_FLIGHT - len(first.keys)
            for each in tuple(islice(self._waiting, MAX_IN_FLIGHT)):
                room -= len(each.keys)
                if room < 0 or each.ends < first.ends:
                    break
                first.along.append(self._waiting.popleft())
            first.connection = self._idle.pop()
            first.is_settled.release()

    def _turn_away(self) -> None:
        """Under the lock: nobody's turn comes any more."""
        while self._waiting:
            wish = self._waiting.popleft()
            wish.error = self._not_connected()
            wish.is_settled.release()

    def _not_connected(self) -> OSError:
        return OSError(errno.ENOTCONN, f"{self._name} is not connected")

"""Connections that are lent for reading: whoever waits is read for along with whoever waits longer.

Reads are held up by the test, so who waits is known.
"""

import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import pytest

from tests.support.clock import FakeClock
from zcache.remote.readers import MAX_BUSY, Connected, Readers
from zcache.remote.resp import MAX_IN_FLIGHT

LONG: Final = 60.0


class Bench:
    """Readers whose reads wait for `go`, and find the keys that begin with "there"."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.readers = Readers("engine", FakeClock(), self._read)
        self.reads: list[list[bytes]] = []
        self.go = threading.Semaphore(0)
        self.error: OSError | None = None

    def _read(
        self, connection: Connected, keys: Sequence[bytes], buffers: Sequence[memoryview], ends: float
    ) -> list[bool]:
        assert len(keys) == len(buffers) and ends > 0
        self.reads.append(list(keys))
        assert self.go.acquire(timeout=LONG)
        if self.error:
            connection.close()
            raise self.error
        for buffer, key in zip(buffers, keys, strict=True):
            buffer[:] = key[-1:]
        return [key.startswith(b"there") for key in keys]

    def ask(self, *keys: bytes, seconds: float = LONG) -> "Future[tuple[list[bool], bytes]]":
        """By a thread of its own, which has begun to read, or waits, when this returns."""
        readers, buffers = self.readers, [memoryview(bytearray(1)) for _ in keys]

        def ask() -> tuple[list[bool], bytes]:
            return readers.get_all(keys, buffers, seconds), b"".join(buffers)

        before = len(self.reads) + readers.waiting
        future = self.pool.submit(ask)
        until(lambda: len(self.reads) + readers.waiting > before or future.done())
        return future


class Idle:
    """A connection; what is done with it is the bench's."""

    def __init__(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False


def until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.001)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ThreadPoolExecutor(32) as pool:
        bench = Bench(pool)
        try:
            for _ in range(MAX_BUSY + 2):
                bench.readers.add(Idle())  # type: ignore[arg-type]
            yield bench
        finally:
            for _ in range(64):
                bench.go.release()


def test_who_waits_is_read_for_by_who_waits_longest(bench: Bench) -> None:
    busy = [bench.ask(b"there%d" % n) for n in range(MAX_BUSY)]
    waiting = [bench.ask(b"there3", b"gone4"), bench.ask(b"gone5"), bench.ask(b"there6")]
    assert bench.readers.waiting == 3, "there are idle ones, and they are spare"
    bench.go.release()
    until(lambda: len(bench.reads) == MAX_BUSY + 1)
    assert bench.reads[-1] == [b"there3", b"gone4", b"gone5", b"there6"]
    for _ in range(MAX_BUSY):
        bench.go.release()
    assert [future.result() for future in waiting] == [([True, False], b"34"), ([False], b"5"), ([True], b"6")]
    assert [future.result() for future in busy] == [([True], b"%d" % n) for n in range(MAX_BUSY)]
    assert len(bench.reads) == MAX_BUSY + 1


def test_no_more_is_asked_at_once_than_may_be_in_flight(bench: Bench) -> None:
    for _ in range(MAX_BUSY):
        bench.ask(b"there")
    waiting = [bench.ask(*[b"there"] * (MAX_IN_FLIGHT // 2)) for _ in range(3)]
    for _ in range(MAX_BUSY + 2):
        bench.go.release()
    for future in waiting:
        assert future.result()[0] == [True] * (MAX_IN_FLIGHT // 2)
    assert sorted(map(len, bench.reads[MAX_BUSY:])) == [MAX_IN_FLIGHT // 2, MAX_IN_FLIGHT]


def test_who_has_less_time_does_not_wait_for_one_who_has_more(bench: Bench) -> None:
    for _ in range(MAX_BUSY):
        bench.ask(b"there")
    bench.ask(b"long"), bench.ask(b"short", seconds=LONG / 2), bench.ask(b"longer", seconds=LONG * 2)
    for _ in range(MAX_BUSY + 2):
        bench.go.release()
    until(lambda: len(bench.reads) == MAX_BUSY + 2)
    assert sorted(bench.reads[MAX_BUSY:]) == [[b"long"], [b"short", b"longer"]]


def test_an_error_is_everybody_s_and_closes_one_connection(bench: Bench) -> None:
    futures = [bench.ask(b"there") for _ in range(MAX_BUSY)]
    futures += [bench.ask(b"there") for _ in range(3)]
    bench.error = OSError(errno.ECONNRESET, "the engine has closed the connection")
    before = len(bench.readers)
    for _ in range(MAX_BUSY + 1):
        bench.go.release()
    for future in futures:
        with pytest.raises(OSError, match="closed the connection") as failed:
            future.result()
        assert failed.value.errno == errno.ECONNRESET
    assert len(bench.readers) == before - MAX_BUSY - 1
    bench.error = None
    bench.go.release()
    assert bench.ask(b"there").result()[0] == [True]


def test_who_waits_in_vain_is_told_that_it_is_busy(bench: Bench) -> None:
    for _ in range(MAX_BUSY):
        bench.ask(b"there")
    with pytest.raises(TimeoutError, match="engine is busy"):
        bench.ask(b"there", seconds=0.01).result()
    assert bench.readers.waiting == 0


@pytest.mark.parametrize("how", ["closed", "the last ones break"])
def test_nobody_waits_for_connections_that_are_gone(bench: Bench, how: str) -> None:
    bench.readers.close()
    with pytest.raises(OSError, match="not connected"):
        bench.ask(b"there").result()
    bench.readers.add(Idle())  # type: ignore[arg-type]
    first, second = bench.ask(b"there"), bench.ask(b"there")
    if how == "closed":
        bench.readers.close()
    else:
        bench.error = OSError(errno.ECONNRESET, "gone")
        bench.go.release()
        with pytest.raises(OSError, match="gone"):
            first.result()
    with pytest.raises(OSError, match="not connected"):
        second.result()
    assert len(bench.readers) == 0


def test_a_connection_that_comes_is_one_for_who_waits(bench: Bench) -> None:
    bench.readers.close()
    bench.readers.add(Idle())  # type: ignore[arg-type]
    first, second = bench.ask(b"there"), bench.ask(b"there")
    assert bench.readers.waiting == 1
    bench.readers.add(Idle())  # type: ignore[arg-type]
    bench.error = OSError(errno.ECONNRESET, "gone")
    bench.go.release()
    with pytest.raises(OSError, match="gone"):
        first.result()
    bench.error = None
    bench.go.release()
    assert second.result()[0] == [True]

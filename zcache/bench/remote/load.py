"""A load on a server whose engines fail: one client writes pages at random, another reads them and
looks at what it gets, and each operation is timed.

A page names itself and its version, and the rest follows from both; so a page that is read is known
to be the last one written, or the one that is being written. After a write that failed it may be
either.

Two threads, each with a client of its own; each rests between two operations, so that their times
are the server's, not those of a queue before it. Of what one thread writes the other only reads.
"""

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from zcache.bench.served import Served

PAGE_BYTES: Final = 4096
#: Of each page; the rest is zeros, so that it compresses somewhat.
_NOISE_BYTES: Final = 3000
#: Between two operations.
_REST_SECONDS: Final = 0.001
#: Of one request, when all is filled or verified.
_BATCH_PAGES: Final = 16
#: Complaints that are kept.
_MOST: Final = 5


class Load:
    """On the first `page_count` pages of a server."""

    def __init__(self, served: Served, page_count: int, seed: int) -> None:
        import nbd

        self.read_seconds: list[float] = []
        self.write_seconds: list[float] = []
        self.wrong = self.failed_reads = self.failed_writes = 0
        self.complaints: list[str] = []
        self._served = served
        self._page_count = page_count
        self._seed = seed
        self._began = time.monotonic()
        self._error: type[Exception] = nbd.Error
        self._written = [0] * page_count  # the version that is there at least
        self._begun = [0] * page_count  # and at most

    def fill(self) -> None:
        """Write all pages."""
        client = self._served.connect()
        for first in range(0, self._page_count, _BATCH_PAGES):
            numbers = range(first, min(first + _BATCH_PAGES, self._page_count))
            data = b"".join(content(number, 0) for number in numbers)
            self._timed_write(client, first, data)
        client.shutdown()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Both clients, for as long as the context is entered."""
        is_over = threading.Event()
        threads = [threading.Thread(target=run, args=(is_over,)) for run in (self._write, self._read)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            is_over.set()
            for thread in threads:
                thread.join()

    def verify(self) -> None:
        """Read all pages once; nobody writes."""
        client = self._served.connect()
        for first in range(0, self._page_count, _BATCH_PAGES):
            count = min(_BATCH_PAGES, self._page_count - first)
            data = self._timed_read(client, first, count)
            if data is None:
                continue
            for number in range(first, first + count):
                start = (number - first) * PAGE_BYTES
                self._look_at(number, data[start : start + PAGE_BYTES], self._written[number], self._begun[number])
        client.shutdown()

    def _write(self, is_over: threading.Event) -> None:
        client, rng = self._served.connect(), random.Random(self._seed)
        while not is_over.wait(_REST_SECONDS) and not client.aio_is_dead():
            number = rng.randrange(self._page_count)
            version = self._begun[number] = self._begun[number] + 1
            if self._timed_write(client, number, content(number, version)):
                self._written[number] = version

    def _read(self, is_over: threading.Event) -> None:
        client, rng = self._served.connect(), random.Random(self._seed + 1)
        while not is_over.wait(_REST_SECONDS) and not client.aio_is_dead():
            number = rng.randrange(self._page_count)
            least = self._written[number]
            data = self._timed_read(client, number, 1)
            if data is not None:
                self._look_at(number, data, least, self._begun[number])

    def _timed_write(self, client: Any, first: int, data: bytes) -> bool:
        asked = time.monotonic()
        try:
            client.pwrite(data, first * PAGE_BYTES)
            return True
        except self._error as error:
            self.failed_writes += 1
            self._complain(f"write of {len(data) // PAGE_BYTES} pages from page {first} failed: {error}")
            return False
        finally:
            self.write_seconds.append(time.monotonic() - asked)

    def _timed_read(self, client: Any, first: int, count: int) -> bytes | None:
        """None: it failed."""
        asked = time.monotonic()
        try:
            return bytes(client.pread(count * PAGE_BYTES, first * PAGE_BYTES))
        except self._error as error:
            self.failed_reads += 1
            self._complain(f"read of {count} pages from page {first} failed: {error}")
            return None
        finally:
            self.read_seconds.append(time.monotonic() - asked)

    def _look_at(self, number: int, data: bytes, least: int, most: int) -> None:
        version = int.from_bytes(data[8:16], "little")
        if not least <= version <= most or data != content(number, version):
            self.wrong += 1
            what = int.from_bytes(data[:8], "little")
            self._complain(f"page {number} is not its version {least} to {most}; it says page {what}, {version}")

    def _complain(self, what: str) -> None:
        if len(self.complaints) < _MOST:
            self.complaints.append(f"after {time.monotonic() - self._began:.1f} s: {what}")


def content(number: int, version: int) -> bytes:
    """Of a page."""
    head = number.to_bytes(8, "little") + version.to_bytes(8, "little")
    noise = random.Random(number << 32 | version).randbytes(_NOISE_BYTES)
    return head + noise + bytes(PAGE_BYTES - len(head) - _NOISE_BYTES)

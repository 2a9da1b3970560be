"""Reads over NBD: a hot set at random, and a scan of the rest of the disk beside it, each page
verified.

The disk is the hot set, and behind it what is scanned. The work: the hot set is read `WARM_ROUNDS`
times, in random order; then the scan, in large requests, with hot pages between them; then the hot
set once more: what is still in RAM has outlived the scan. And the same with a scan that nothing is
read beside, as of a backup at night: no page of the hot set has a chance to show that it is in use.
"""

import random
import time
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PAGE_BYTES: Final = 4096
WARM_ROUNDS: Final = 3
#: Of a request of the scan.
SCAN_PAGES: Final = 32
#: Hot pages between two of them.
HOT_READS: Final = 4


@dataclass(frozen=True)
class Layout:
    """Pages of the disk."""

    hot_pages: int
    scan_pages: int


class Load:
    """By one libnbd client. `disk_reads` tells how often the disk has been read so far; `seals` are
    the CRCs of all pages."""

    def __init__(
        self, client: Any, layout: Layout, seals: "array[int]", disk_reads: Callable[[], int], seed: int
    ) -> None:
        self._client = client
        self._layout = layout
        self._seals = seals
        self._disk_reads = disk_reads
        self._rng = random.Random(seed)
        self.wrong_pages = 0

    def run(self) -> dict[str, float]:
        """Seconds and disk reads of each part, and the share of hot pages that were in RAM."""
        figures: dict[str, float] = {}
        for name, work in (
            ("warm", self._warm),
            ("scan", lambda: self._scan(HOT_READS)),
            ("after", self._read_hot_set),
            ("warm again", self._warm),
            ("scan alone", lambda: self._scan(0)),
            ("after it", self._read_hot_set),
        ):
            begin, reads = time.monotonic(), self._disk_reads()
            hot, hits = work()
            figures |= {
                f"{name}, s": time.monotonic() - begin,
                f"{name}, disk reads": self._disk_reads() - reads,
            }
            if hot:
                figures[f"{name}, hits"] = hits / hot
        return figures | {"wrong_pages": self.wrong_pages}

    def _warm(self) -> tuple[int, int]:
        """Hot pages read, and those that took no read of the disk; so with the other two."""
        for _ in range(WARM_ROUNDS - 1):
            self._read_hot_set()
        return self._read_hot_set()

    def _scan(self, hot_reads: int) -> tuple[int, int]:
        hot = hits = 0
        hot_pages, stop = self._layout.hot_pages, self._layout.hot_pages + self._layout.scan_pages
        for first in range(hot_pages, stop, SCAN_PAGES):
            self._read(first, min(SCAN_PAGES, stop - first))
            for _ in range(hot_reads):
                hits += self._is_hit(self._rng.randrange(hot_pages))
                hot += 1
        return hot, hits

    def _read_hot_set(self) -> tuple[int, int]:
        hot_pages = self._layout.hot_pages
        hits = sum([self._is_hit(page) for page in self._rng.sample(range(hot_pages), hot_pages)])
        return hot_pages, hits

    def _is_hit(self, page: int) -> bool:
        reads = self._disk_reads()
        self._read(page, 1)
        return self._disk_reads() == reads

    def _read(self, first: int, count: int) -> None:
        data = self._client.pread(count * PAGE_BYTES, first * PAGE_BYTES)
        for page in range(count):
            seal = zlib.crc32(data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
            self.wrong_pages += seal != self._seals[first + page]


def seals_of(path: Path, pages: int) -> "array[int]":
    """The CRC of each page of a disk."""
    with path.open("rb", buffering=0) as disk:
        return array("I", [zlib.crc32(disk.read(PAGE_BYTES)) for _ in range(pages)])

"""From a touch to the page that is resident, by where it was:
`python -m zcache.bench.pager.resident KIND THREADS PAGES FOLDER SEED` prints that as JSON.

KIND is `zero` (nobody has written there), `lz4` and `zstd` (in the store, in RAM), `disk` (in the
backing, which is dropped from the page cache), or `bare`: a server in Python that does nothing but
copy one page, again and again, and spins; all that is more is the pager's.
"""

import json
import mmap
import os
import random
import signal
import sys
import time
from array import array
from pathlib import Path
from typing import Any, Final

from zcache.bench.pager.touches import figures, fill, touch_by_threads
from zcache.linux import memory, userfaultfd
from zcache.pager.region import Region
from zcache.pager.region_file import new_memfd
from zcache.pages.entry import PAGE_BYTES

KINDS: Final = ("bare", "zero", "lz4", "zstd", "disk")
LIMIT_PAGES: Final = 4096
SECONDS: Final = 20.0


def main(kind: str, threads: str, pages: str, folder: str, seed: str) -> None:
    """Prints one line."""
    rng, count = random.Random(int(seed)), int(pages)
    measure = _bare if kind == "bare" else _region
    print(json.dumps(measure(kind, int(threads), count, Path(folder), rng)))


def _orders(first: int, count: int, threads: int, rng: random.Random) -> "list[array[int]]":
    """Each page once."""
    pages = list(range(first, first + count))
    rng.shuffle(pages)
    return [array("I", pages[number::threads]) for number in range(threads)]


def _region(kind: str, threads: int, count: int, folder: Path, rng: random.Random) -> dict[str, float]:
    """The first pages are cold: those behind them came later, and are as many as the limit."""
    words: dict[str, Any] = {"codec": kind} if kind in ("lz4", "zstd") else {}
    backing = folder / "backing"
    if kind == "disk":
        words = {"backing": str(backing), "budget": "4M", "overcommit": "yes"}
    with Region((count + 2 * LIMIT_PAGES) * PAGE_BYTES, LIMIT_PAGES * PAGE_BYTES, **words) as region:
        begin = count * PAGE_BYTES if kind == "zero" else 0
        fill(region.buffer[begin:], rng)
        if kind == "disk":
            time.sleep(0.5)
            _drop(backing)
        return figures(touch_by_threads(memory.address(region.buffer), _orders(0, count, threads, rng), SECONDS, rng))


def _drop(backing: Path) -> None:
    """From the page cache, if it is there."""
    with backing.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bare(_kind: str, threads: int, count: int, _folder: Path, rng: random.Random) -> dict[str, float]:
    size_bytes = count * PAGE_BYTES
    memfd, descriptor = new_memfd(size_bytes), userfaultfd.open_descriptor()
    userfaultfd.handshake(descriptor, userfaultfd.UFFD_FEATURE_MISSING_SHMEM)
    mapping = mmap.mmap(memfd, size_bytes)
    start = memory.address(mapping)
    userfaultfd.register(descriptor, start, size_bytes, userfaultfd.UFFDIO_REGISTER_MODE_MISSING)
    server = os.fork()
    if not server:
        _serve(descriptor, rng)
    try:
        return figures(touch_by_threads(start, _orders(0, count, threads, rng), SECONDS, rng))
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def _serve(descriptor: int, rng: random.Random) -> None:
    page = mmap.mmap(-1, PAGE_BYTES)
    page.write(rng.randbytes(PAGE_BYTES))
    at = memory.address(page)
    while True:
        try:
            messages = os.read(descriptor, 512)
        except BlockingIOError:
            continue
        for fault in userfaultfd.faults_in(messages):
            userfaultfd.copy(descriptor, fault.address & -PAGE_BYTES, at, PAGE_BYTES)


if __name__ == "__main__":
    main(*sys.argv[1:])

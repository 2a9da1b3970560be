"""What touches memory: `python job.py KIND SIZE_MIB RESIDENT_MIB BUDGET_MIB TOUCHES FOLDER SEED`.
It prints what that took, as JSON.

KIND is `region`, `memmap` (a file in FOLDER) or `memory`. The memory is filled, with pages of which
lz4 makes a third, and then touched in each of the `PATTERNS`, one after the other: 8 bytes of a
page, of which a third of the touches write, without Python's lock.
"""

import ctypes
import itertools
import json
import mmap
import os
import random
import statistics
import sys
import time
from array import array
from pathlib import Path
from typing import Any, Final

from zcache.linux import memory
from zcache.pager.region import Region

PATTERNS: Final = ("sequential", "uniform", "zipf")
PAGE_BYTES: Final = 4096
ZIPF_EXPONENT: Final = 1.0
#: A touch that takes longer has waited for a page.
FAULT_SECONDS: Final = 3e-6


def main(kind: str, size_mib: str, resident_mib: str, budget_mib: str, touches: str, folder: str, seed: str) -> None:
    """Prints one line."""
    size_bytes, rng = int(size_mib) << 20, random.Random(int(seed))
    place = Path(folder)
    region = None
    if kind == "region":
        backing: dict[str, Any] = {"backing": place / "backing", "overcommit": "yes"}
        region = Region(size_bytes, f"{resident_mib}M", budget=f"{budget_mib}M", **backing)
        view: Any = region.buffer
    elif kind == "memmap":
        with (place / "file").open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            view = memoryview(mmap.mmap(file.fileno(), size_bytes))
    else:
        view = memoryview(mmap.mmap(-1, size_bytes))
    begin = time.perf_counter()
    _fill(view, size_bytes, rng)
    found: dict[str, Any] = {"fill_seconds": time.perf_counter() - begin}
    for pattern in PATTERNS:
        pages = _pages(pattern, size_bytes // PAGE_BYTES, int(touches), rng)
        found[pattern] = _figures(_touch(memory.address(view), pages, rng))
    if region:
        found["status"] = region.status()
    print(json.dumps(found))


def _figures(times: "array[float]") -> dict[str, float]:
    """Seconds of all touches, how many waited for a page, and how long those did."""
    faults = sorted(seconds for seconds in times if seconds > FAULT_SECONDS)
    return {
        "touch_seconds": sum(times),
        "faults": len(faults),
        "p50_us": statistics.median(faults) * 1e6 if faults else 0.0,
        "p99_us": faults[len(faults) * 99 // 100] * 1e6 if faults else 0.0,
    }


def _fill(view: memoryview, size_bytes: int, rng: random.Random) -> None:
    pages = [rng.randbytes(1200) + rng.randbytes(16) * 181 for _ in range(64)]
    for start in range(0, size_bytes, 64 * PAGE_BYTES):
        rng.shuffle(pages)
        view[start : start + 64 * PAGE_BYTES] = b"".join(pages)


def _pages(pattern: str, count: int, touches: int, rng: random.Random) -> "array[int]":
    if pattern == "sequential":
        return array("I", itertools.islice(itertools.cycle(range(count)), touches))
    if pattern == "uniform":
        return array("I", [rng.randrange(count) for _ in range(touches)])
    order = list(range(count))
    rng.shuffle(order)
    weights = list(itertools.accumulate(1 / rank**ZIPF_EXPONENT for rank in range(1, count + 1)))
    return array("I", rng.choices(order, cum_weights=weights, k=touches))


def _touch(start: int, pages: "array[int]", rng: random.Random) -> "array[float]":
    """Seconds for each."""
    word = ctypes.create_string_buffer(8)
    at, move, clock = ctypes.addressof(word), ctypes.memmove, time.perf_counter
    times = array("d", bytes(8 * len(pages)))
    writes = bytes(rng.randrange(3) == 0 for _ in range(4099))
    for number, page in enumerate(pages):
        place = start + page * PAGE_BYTES + 64
        begin = clock()
        if writes[number % 4099]:
            move(place, at, 8)
        else:
            move(at, place, 8)
        times[number] = clock() - begin
    return times


if __name__ == "__main__":
    main(*sys.argv[1:])

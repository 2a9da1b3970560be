"""Pages that are touched, by one thread or several, and how long that took."""

import itertools
import random
import statistics
import threading
from array import array
from typing import Final

from zcache.errors import EnvironmentProblem
from zcache.pages.entry import PAGE_BYTES

#: A touch that takes longer has waited for a page.
FAULT_SECONDS: Final = 3e-6
#: A third of them write.
WRITES: Final = 3
PATTERNS: Final = ("sequential", "uniform", "zipf")
ZIPF_EXPONENT: Final = 1.0


def content(rng: random.Random) -> list[bytes]:
    """Pages of which lz4 makes a third."""
    return [rng.randbytes(1200) + rng.randbytes(16) * 181 for _ in range(64)]


def fill(view: memoryview, rng: random.Random) -> None:
    """All of it, with such pages."""
    pages = content(rng)
    for start in range(0, len(view), 64 * PAGE_BYTES):
        rng.shuffle(pages)
        part = view[start : start + 64 * PAGE_BYTES]
        part[:] = b"".join(pages)[: len(part)]


def order(pattern: str, count: int, touches: int, rng: random.Random) -> "array[int]":
    """Which of `count` pages are touched."""
    if pattern == "sequential":
        return array("I", itertools.islice(itertools.cycle(range(count)), touches))
    if pattern == "uniform":
        return array("I", [rng.randrange(count) for _ in range(touches)])
    pages = array("I", range(count))
    rng.shuffle(pages)
    weights = array("d", itertools.accumulate(1 / rank**ZIPF_EXPONENT for rank in range(1, count + 1)))
    return array("I", rng.choices(pages, cum_weights=weights, k=touches))


def touch(start: int, pages: "array[int]", seconds: float, rng: random.Random, *, are_written: bool) -> "array[float]":
    """Seconds of each, in that time: as many as could be. Raises `EnvironmentProblem` where that is
    not compiled."""
    try:
        from zcache.bench.pager._touch import touch as compiled
    except ImportError as error:
        raise EnvironmentProblem(f"scripts/bench pager needs compiled code ({error}): install gcc") from None
    writes = bytes(are_written and rng.randrange(WRITES) == 0 for _ in range(4099))
    times = array("d", bytes(8 * len(pages)))
    return times[: compiled(start, pages, writes, times, seconds)]


def touch_by_threads(start: int, orders: "list[array[int]]", seconds: float, rng: random.Random) -> "array[float]":
    """By as many threads as there are orders; only reads."""
    times: array[float] = array("d")
    seeds = [rng.random() for _ in orders]

    def work(pages: "array[int]", seed: float) -> None:
        times.extend(touch(start, pages, seconds, random.Random(seed), are_written=False))

    threads = [threading.Thread(target=work, args=each) for each in zip(orders, seeds, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def figures(times: "array[float]") -> dict[str, float]:
    """Touches a second, how many waited for a page, and how long those did."""
    faults = sorted(seconds for seconds in times if seconds > FAULT_SECONDS)
    return {
        "touches_per_second": len(times) / sum(times),
        "faults": len(faults),
        "p50_us": statistics.median(faults) * 1e6 if faults else 0.0,
        "p99_us": faults[len(faults) * 99 // 100] * 1e6 if faults else 0.0,
    }

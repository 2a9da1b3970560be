"""How long faults take: percentiles, from a histogram of fixed size."""

import math
from array import array
from typing import Final

#: So many buckets for each power of two: a figure is at most an eighth too high.
STEPS: Final = 8
BUCKETS: Final = 40 * STEPS


class Latencies:
    """Of durations from 1 ns to 18 minutes. Not thread-safe."""

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * BUCKETS))

    def add(self, seconds: float) -> None:
        """One more."""
        bucket = int(math.log2(max(seconds * 1e9, 1.0)) * STEPS)
        self._counts[min(bucket, BUCKETS - 1)] += 1

    def percentile_us(self, percent: float) -> float:
        """Microseconds within which so many of a hundred were done; 0 if there were none."""
        left = math.ceil(sum(self._counts) * percent / 100)
        if not left:
            return 0.0
        bucket = 0
        while (left := left - self._counts[bucket]) > 0:
            bucket += 1
        return round(math.exp2((bucket + 1) / STEPS) / 1e3, 1)

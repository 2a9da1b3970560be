"""Is a series of measurements flat? A straight line is laid through what comes after the warm-up.

The line goes through the means of BLOCKS stretches of equal length, so that its standard error is
one of values that hardly depend on each other, however the single measurements do. Twice that error
is the noise. The series is `flat` if slope and noise together are below the limit; it `grows` if
the slope is above it by more than the noise; otherwise nothing was shown, and it is `undecided`:
measure for longer.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WARM_UP: Final = 0.2
BLOCKS: Final = 10


@dataclass(frozen=True)
class Trend:
    """Units of the series an hour."""

    slope: float
    noise: float
    limit: float

    @property
    def verdict(self) -> str:
        if self.slope + self.noise < self.limit:
            return "flat"
        return "grows" if self.slope - self.noise > self.limit else "undecided"


def trend(seconds: Sequence[float], values: Sequence[float], limit: float) -> Trend:
    """`limit` is in units an hour; there must be three measurements a block after the warm-up."""
    first = next(index for index, at in enumerate(seconds) if at >= seconds[-1] * WARM_UP)
    hours = [_mean(seconds, first, block) / 3600 for block in range(BLOCKS)]
    means = [_mean(values, first, block) for block in range(BLOCKS)]
    slope, intercept = statistics.linear_regression(hours, means)
    residuals = [mean - (intercept + slope * hour) for hour, mean in zip(hours, means, strict=True)]
    spread = math.sqrt(sum((hour - statistics.fmean(hours)) ** 2 for hour in hours))
    error = math.sqrt(sum(residual**2 for residual in residuals) / (BLOCKS - 2)) / spread
    return Trend(slope, 2 * error, limit)


def _mean(series: Sequence[float], first: int, block: int) -> float:
    length = len(series) - first
    return statistics.fmean(series[first + block * length // BLOCKS : first + (block + 1) * length // BLOCKS])

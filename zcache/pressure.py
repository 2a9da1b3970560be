"""Pressure: is this machine short of memory? Asked of the kernel, for the budget that follows (`zcache.breathing`).

PSI, pressure stall information (Weiner, Linux 4.20; Documentation/accounting/psi.rst), says for how long some task
stood still because memory was short. Its running total, looked at twice, is exact for any time in between, where its
averages over 10 s and more are slow. A kernel without PSI has only its own estimate of what could be had without
swapping, MemAvailable: short is then when that is next to nothing. (psutil would give the same number, and is 5 MiB of
locked memory.)
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

from zcache import meminfo
from zcache.backoff import Clock

PSI: Final = Path("/proc/pressure/memory")


class Pressure(NamedTuple):
    """What was measured: the share of the time since the last look for which some task stood still (None: this kernel
    does not say), and bytes."""

    stalled_share: float | None
    available_bytes: int
    total_bytes: int


class PressureGauge:
    """Looks at the machine."""

    def __init__(self, clock: Clock, psi: Path = PSI, memory: Path = meminfo.MEMINFO) -> None:
        self._clock = clock
        self._psi = psi
        self._memory = memory
        self._stalled_seconds = self._read_stalled_seconds()
        self._last_seconds = clock.now()

    def look(self) -> Pressure:
        """Since the last look."""
        stalled, now = self._read_stalled_seconds(), self._clock.now()
        share = None
        if stalled is not None and self._stalled_seconds is not None and now > self._last_seconds:
            share = min((stalled - self._stalled_seconds) / (now - self._last_seconds), 1.0)
        self._stalled_seconds, self._last_seconds = stalled, now
        return Pressure(
            share, meminfo.read_bytes("MemAvailable", self._memory), meminfo.read_bytes("MemTotal", self._memory)
        )

    def _read_stalled_seconds(self) -> float | None:
        try:
            found = re.search(r"^some .*total=(\d+)", self._psi.read_text(), re.MULTILINE)
        except OSError:  # built without, or turned off (psi=0)
            return None
        return int(found[1]) / 1e6 if found else None

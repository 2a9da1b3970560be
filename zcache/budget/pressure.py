"""Pressure: is this machine short of memory? Asked of the kernel, for the budget that follows
(`zcache.budget.breathing`).

PSI, pressure stall information (Weiner, Linux 4.20; Documentation/accounting/psi.rst), says for how
long some task stood still because memory was short. Its running total, looked at twice, is exact
for any time in between, where its averages over 10 s and more are slow. A kernel without PSI has
only its own estimate of what could be had without swapping, MemAvailable: short is then when that
is next to nothing. (psutil would give the same number, and is 5 MiB of locked memory.)

A control group that the process is in may leave less than the machine does
(`zcache.linux.group_limits`): of each, what is asked for is the least of all.
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

from zcache.clock import Clock
from zcache.linux import meminfo
from zcache.linux.group_limits import GroupLimits, Room

PSI: Final = Path("/proc/pressure/memory")


class Pressure(NamedTuple):
    """What was measured: the share of the time since the last look for which some task stood still
    (None: this kernel does not say), bytes of the machine's, and what its control groups leave."""

    stalled_share: float | None
    available_bytes: int
    total_bytes: int
    groups: tuple[Room, ...] = ()

    def beyond(self, share: float) -> int:
        """Bytes that can be had beyond that share of all there are, in the machine and in each
        group."""
        spare = [room.available - int(room.limit * share) for room in self.groups]
        return min([self.available_bytes - int(self.total_bytes * share), *spare])

    def is_tight(self, reserve_bytes: int) -> bool:
        """Whether a group leaves less than that."""
        return any(room.available < reserve_bytes for room in self.groups)

    def tightest(self) -> Room | None:
        """Of the groups."""
        return min(self.groups, key=lambda room: room.available, default=None)


class PressureGauge:
    """Looks at the machine."""

    def __init__(
        self, clock: Clock, psi: Path = PSI, memory: Path = meminfo.MEMINFO, groups: GroupLimits | None = None
    ) -> None:
        self._clock = clock
        self._psi = psi
        self._memory = memory
        self._groups = groups
        self._stalled_seconds = self._read_stalled_seconds()
        self._last_seconds = clock.now()

    def look(self) -> Pressure:
        """Since the last look."""
        stalled, now = self._read_stalled_seconds(), self._clock.now()
        share = None
        if stalled is not None and self._stalled_seconds is not None and now > self._last_seconds:
            share = min((stalled - self._stalled_seconds) / (now - self._last_seconds), 1.0)
        self._stalled_seconds, self._last_seconds = stalled, now
        available_bytes, total_bytes = (meminfo.read_bytes(name, self._memory) for name in ("MemAvailable", "MemTotal"))
        return Pressure(share, available_bytes, total_bytes, self._groups.rooms() if self._groups else ())

    def _read_stalled_seconds(self) -> float | None:
        try:
            found = re.search(r"^some .*total=(\d+)", self._psi.read_text(), re.MULTILINE)
        except OSError:  # built without, or turned off (psi=0)
            return None
        return int(found[1]) / 1e6 if found else None

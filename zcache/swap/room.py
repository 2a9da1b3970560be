"""Is there memory to take a swap area's pages back into? Asked before swapoff(2), which does not
ask.

A swapoff that runs out of memory does not merely fail (seen in the test VM). The kernel kills it
first, and then, as it is dying, lets it have half of what lies below the min watermark, where no
server of the swap device can follow: a real-time task may have a quarter. The dying swapoff then
waits for a page that it has asked the server for, and the server for memory to answer with.
"""

from pathlib import Path

from zcache.linux import meminfo
from zcache.linux.proc_swaps import SwapEntry

# For everybody else while it runs, and for an estimate that is one: a share of all memory, up to a
# limit. MemAvailable leaves out what is below the high watermarks; so this is on top of those.
RESERVE_SHARE = 1 / 32
RESERVE_MOST_KIB = 32 << 10


def shortage_kib(device: str, entries: list[SwapEntry], file: Path = meminfo.MEMINFO) -> int:
    """How much more must be free before the device's pages can come back: to memory, or out to
    other swap areas."""
    used_kib = sum(entry.used_kib for entry in entries if entry.path == device)
    elsewhere_kib = sum(entry.size_kib - entry.used_kib for entry in entries if entry.path != device)
    if not used_kib:
        return 0
    available_kib = meminfo.read_bytes("MemAvailable", file) >> 10
    return max(used_kib + _reserve_kib(file) - available_kib - elsewhere_kib, 0)


def _reserve_kib(file: Path) -> int:
    return min(int((meminfo.read_bytes("MemTotal", file) >> 10) * RESERVE_SHARE), RESERVE_MOST_KIB)

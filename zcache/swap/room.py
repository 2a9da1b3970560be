"""Is there memory to take a swap area's pages back into? Asked before swapoff(2), which does not ask.

A swapoff that runs out of memory does not merely fail (seen in the test VM). The kernel kills it first, and then, as it
is dying, lets it have half of what lies below the min watermark, where no server of the swap device can follow: a
real-time task may have a quarter. The dying swapoff then waits for a page that it has asked the server for, and the
server for memory to answer with.
"""

from pathlib import Path

from zcache.meminfo import MEMINFO, memory_kib
from zcache.swap.proc_swaps import SwapEntry

# For everybody else while it runs, and for an estimate that is one.
RESERVE_KIB = 32 << 10


def shortage_kib(device: str, entries: list[SwapEntry], meminfo: Path = MEMINFO) -> int:
    """How much more must be free before the device's pages can come back: to memory, or out to other swap areas."""
    used_kib = sum(entry.used_kib for entry in entries if entry.path == device)
    elsewhere_kib = sum(entry.size_kib - entry.used_kib for entry in entries if entry.path != device)
    if not used_kib:
        return 0
    return max(used_kib + RESERVE_KIB - memory_kib("MemAvailable", meminfo) - elsewhere_kib, 0)

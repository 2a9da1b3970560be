"""Kernel settings that are held while the swap is on, and put back when it is off.

`vm.watermark_boost_factor=0`: after a fragmentation event the kernel raises ("boosts") the min watermark until kswapd
has reclaimed that much. While kswapd waits for the swap device that cannot happen, and the memory that the server
needs for its next reply lies below the raised mark: seen in the test VM, 4.9 MiB free of a min of 2.5 raised to 6.6,
and the server looping in the page allocator for ever.

`vm.min_free_kbytes` at least 16 MiB: each reply of the server needs a socket buffer from the kernel. A real-time task
may take a quarter of what lies below the min watermark (ALLOC_HARDER in mm/page_alloc.c of 6.1), and the server is
one; that quarter has to be worth something. Without it a worker looped in the page allocator, sending a reply (seen,
500 MiB guest).
"""

from pathlib import Path
from typing import Final

PROC: Final = Path("/proc/sys")
MIN_FREE: Final = "vm/min_free_kbytes"
MIN_FREE_KIB: Final = 16 << 10


def while_on(root: Path = PROC) -> dict[str, str]:
    """What to set: the reserve is only ever raised."""
    min_free_kib = max(int((root / MIN_FREE).read_text()), MIN_FREE_KIB)
    return {"vm/watermark_boost_factor": "0", MIN_FREE: str(min_free_kib)}


def hold(wanted: dict[str, str] | None = None, root: Path = PROC) -> dict[str, str]:
    """Write the settings; returns what they were before, for `put_back`. One that a kernel does not have is left
    out."""
    before = {}
    for name, value in (while_on(root) if wanted is None else wanted).items():
        path = root / name
        if path.exists():
            before[name] = path.read_text().strip()
            path.write_text(value)
    return before


def put_back(before: dict[str, str], root: Path = PROC) -> None:
    """Undo `hold`."""
    for name, value in before.items():
        (root / name).write_text(value)

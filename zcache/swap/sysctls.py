"""Kernel settings that are held while the swap is on, and put back when it is off.

`vm.watermark_boost_factor=0`: after a fragmentation event the kernel raises ("boosts") the min watermark until kswapd
has reclaimed that much. While kswapd waits for the swap device that cannot happen, and the memory that the server
needs for its next reply lies below the raised mark: seen in the test VM, 4.9 MiB free of a min of 2.5 raised to 6.6,
and the server looping in the page allocator for ever.
"""

from pathlib import Path
from typing import Final

WHILE_ON: Final = {"vm/watermark_boost_factor": "0"}
PROC: Final = Path("/proc/sys")


def hold(wanted: dict[str, str] | None = None, root: Path = PROC) -> dict[str, str]:
    """Write the settings; returns what they were before, for `put_back`. One that a kernel does not have is left
    out."""
    before = {}
    for name, value in (WHILE_ON if wanted is None else wanted).items():
        path = root / name
        if path.exists():
            before[name] = path.read_text().strip()
            path.write_text(value)
    return before


def put_back(before: dict[str, str], root: Path = PROC) -> None:
    """Undo `hold`."""
    for name, value in before.items():
        (root / name).write_text(value)

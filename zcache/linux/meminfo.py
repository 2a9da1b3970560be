"""/proc/meminfo and /proc/vmstat. Not psutil: that is 5 MiB of locked memory in the server, for a
few numbers."""

import re
from pathlib import Path
from typing import Final

MEMINFO: Final = Path("/proc/meminfo")
OVERCOMMIT: Final = Path("/proc/sys/vm/overcommit_memory")
VMSTAT: Final = Path("/proc/vmstat")


def read_bytes(name: str, meminfo: Path = MEMINFO) -> int:
    """`MemTotal`, or `MemAvailable`: the kernel's own estimate of what can be had without
    swapping."""
    found = re.search(rf"^{name}: +(\d+) kB", meminfo.read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def is_overcommit_strict(overcommit: Path = OVERCOMMIT) -> bool:
    """Whether the kernel promises no more memory than it has (`vm.overcommit_memory=2`): all
    private writable memory counts then, whether it is used or not, and `MAP_NORESERVE` says
    nothing."""
    try:
        return overcommit.read_text().strip() == "2"
    except OSError:  # no descriptor left, which others will say
        return False


def read_counter(name: str, vmstat: Path = VMSTAT) -> int:
    """A counter of /proc/vmstat since boot: `pswpout` is in pages of the kernel's
    (`zcache.linux.kernel_page`). 0 if this kernel has none (it cannot swap)."""
    try:
        found = re.search(rf"^{name} (\d+)", vmstat.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0

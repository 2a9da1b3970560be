"""What /proc/meminfo says. (A library for that one file is 1.5 MiB of locked memory in the server.)"""

import re
from pathlib import Path
from typing import Final, Literal

MEMINFO: Final = Path("/proc/meminfo")


def memory_kib(field: Literal["MemTotal", "MemAvailable"], meminfo: Path = MEMINFO) -> int:
    """All memory of this machine; or the kernel's own estimate of what can be had without swapping."""
    found = re.search(rf"^{field}: +(\d+) kB", meminfo.read_text(), re.MULTILINE)
    assert found
    return int(found[1])

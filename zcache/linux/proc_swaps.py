"""/proc/swaps, the kernel's own word on what is swapped to: this is believed, and no exit
status."""

import os
import re
from pathlib import Path
from typing import NamedTuple

_OCTAL = re.compile(r"\\([0-7]{3})")


class SwapEntry(NamedTuple):
    """A line of /proc/swaps."""

    path: str
    size_kib: int
    used_kib: int
    priority: int
    kind: str = "partition"  # or "file"


def parse_swaps(text: str) -> list[SwapEntry]:
    """The table without its heading; the kernel writes blanks in names as octal escapes."""
    entries = []
    for line in text.splitlines()[1:]:
        # From the right, for a deleted swap file's name is followed by a bare " (deleted)".
        path, kind, size_kib, used_kib, priority = line.rsplit(maxsplit=4)
        path = _OCTAL.sub(lambda match: chr(int(match[1], 8)), path).removesuffix(" (deleted)")
        entries.append(SwapEntry(path, int(size_kib), int(used_kib), int(priority), kind))
    return entries


class ProcSwaps:
    """The file held open, so that reading it again while memory is short costs no path look-up."""

    def __init__(self, path: Path = Path("/proc/swaps")) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def find(self, device: str | None) -> SwapEntry | None:
        return next((entry for entry in self.entries() if entry.path == device), None)

    def entries(self) -> list[SwapEntry]:
        """Every swap area there is."""
        read = b""
        while more := os.pread(self._fd, 4096, len(read)):  # the kernel gives at most a page at once
            read += more
        return parse_swaps(read.decode(errors="surrogateescape"))

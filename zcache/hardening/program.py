"""The program itself: code and data of the server and of the libraries that the I/O path runs through, faulted in.

Code is read from disk when it first runs, and a page of data is copied when it is first written: both ask for memory.
Which pages a request will touch cannot be known, so the whole of each object named here is populated, some 12 MiB.
What an object has beyond its file (.bss) is the anonymous mapping that follows it; nbdkit's own is 192 MiB of which
it uses little, and stays as it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zcache import libc

#: Objects by the start of their file's name. Not nbdkit's TLS library, nor what only the start-up runs through.
OBJECTS: Final = (
    "nbdkit",
    "libpython3",
    "libc.so",
    "libm.so",
    "ld-linux",
    "libz.so",
    "_block.",
    "_version.",
    "backend_c.",
)
MAX_BSS_BYTES: Final = 4 << 20


def populate_program() -> None:
    """Fault in every page of the objects; raises `OSError` when there is not that much memory."""
    for start, stop, writable in _mappings():
        libc.populate_range(start, stop, write=writable)


def is_populated() -> bool:
    """Whether every page is in memory, asked of the kernel."""
    return all(libc.resident_share_of_range(start, stop) == 1.0 for start, stop, _ in _mappings())


def _mappings() -> Iterator[tuple[int, int, bool]]:
    """Start, end and whether it can be written, of each mapping of the objects."""
    followed = 0  # the end of the last mapping of an object, where its .bss would begin
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, _, _, _, *path = line.split()
        start, stop = (int(end, 16) for end in span.split("-"))
        of_object = bool(path) and Path(path[0]).name.startswith(OBJECTS)
        is_bss = not path and start == followed and stop - start <= MAX_BSS_BYTES
        if (of_object or is_bss) and "r" in access:
            yield start, stop, "w" in access
        followed = stop if of_object else 0

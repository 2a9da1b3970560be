"""The program itself: code and data of the server and of the libraries that the I/O path runs through, faulted in.

Code is read from disk when it first runs, and a page of data is copied when it is first written: both ask for memory.
Which pages a request will touch cannot be known, so the whole of each object named here is populated, some 12 MiB.
Not so what only the start runs through, and the library that encrypts: that is 11 MiB, of which little is used. What
the start has left of these in memory is dropped before memory is locked, so that what is locked of them is what the
warm-up runs through, or anything after it (the kernel maps, and so locks, up to 64 KiB around each page).

What an object has beyond its file (.bss) is the anonymous mapping that follows it; nbdkit's own is 192 MiB of which
it uses little, and stays as it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zcache import libc

#: Objects by the start of their file's name.
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
#: `cryptography`'s two (7 MiB in memory after the start, 4 MiB after the warm-up); nbdkit's TLS library and what it was
#: made with, and libselinux (2 MiB, none of which is used again without TLS).
DROPPED_OBJECTS: Final = (
    "_rust.abi3.",
    "_cffi_backend.",
    "libgnutls.",
    "libgmp.",
    "libhogweed.",
    "libidn2.",
    "libnettle.",
    "libp11-kit.",
    "libpcre2",
    "libselinux.",
    "libtasn1.",
    "libunistring.",
)
MAX_BSS_BYTES: Final = 4 << 20


def populate_program() -> None:
    """Fault in every page of the objects; raises `OSError` when there is not that much memory."""
    for start, stop, writable in _mappings():
        libc.populate_range(start, stop, write=writable)


def map_program() -> None:
    """In a copy made by fork(2), which has no page of a file mapped, and so none locked: map those that are in memory.
    Its data stays the original's until somebody writes to it."""
    for start, stop, _ in _mappings():
        libc.populate_range(start, stop, write=False)


def unshare() -> None:
    """In a process that was copied by fork(2): have a copy of our own of the heap and the program's data, rather than
    make one of each page when it is first written, with a request in hand. Raises `OSError`."""
    populate_program()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            start, stop = (int(end, 16) for end in line.split()[0].split("-"))
            libc.populate_range(start, stop, write=True)


def drop_what_the_start_left() -> None:
    """Let go of those pages of the objects to be dropped that are as they are in their files."""
    span, is_dropped = "", False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, *rest = line.split(maxsplit=5)
        if not head.endswith(":"):  # START-STOP ACCESS OFFSET DEVICE INODE PATH
            span = head
            is_dropped = len(rest) > 4 and _file_name(rest[4]).startswith(DROPPED_OBJECTS)
        elif is_dropped and head == "Anonymous:" and rest[0] == "0":
            libc.drop_range(*(int(end, 16) for end in span.split("-")))


def is_populated() -> bool:
    """Whether every page is in memory, asked of the kernel."""
    return all(libc.resident_share_of_range(start, stop) == 1.0 for start, stop, _ in _mappings())


def _mappings() -> Iterator[tuple[int, int, bool]]:
    """Start, end and whether it can be written, of each mapping of the objects."""
    followed = 0  # the end of the last mapping of an object, where its .bss would begin
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, _, _, _, *path = line.split(maxsplit=5)
        start, stop = (int(end, 16) for end in span.split("-"))
        of_object = bool(path) and _file_name(path[0]).startswith(OBJECTS)
        is_bss = not path and start == followed and stop - start <= MAX_BSS_BYTES
        if (of_object or is_bss) and "r" in access:
            yield start, stop, "w" in access
        followed = stop if of_object else 0


def _file_name(path: str) -> str:
    """Not by pathlib, which interns names: that may move the table of interned strings, whose old place is then a
    mapping that is gone (seen: it lay behind an object like a .bss)."""
    return path.rpartition("/")[2]

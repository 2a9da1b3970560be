"""The program itself: code and data of the server and of the libraries that the I/O path runs
through, faulted in.

Code is read from disk when it first runs, and a page of data is copied when it is first written:
both ask for memory. Which pages a request will touch cannot be known, so the whole of each object
named here is populated, some 12 MiB. Not so what only the start runs through, and the library that
encrypts: that is 11 MiB, of which little is used. What the start has left of these in memory is
dropped before memory is locked, so that what is locked of them is what the warm-up runs through, or
anything after it (the kernel maps, and so locks, up to 64 KiB around each page).

What an object has beyond its file (.bss) is the beginning of the anonymous mapping that follows it:
as much as its program headers say, which are in memory. What lies behind that is another's, for the
kernel puts mappings side by side, and makes one of two that are alike (seen on arm64, where objects
lie 64 KiB apart and small arrays find room between them). nbdkit's own .bss is 192 MiB of which it
uses little, and stays as it is.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from zcache.linux import memory
from zcache.linux.kernel_page import page_end, page_start

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
    "_compiled.",
)
#: `cryptography`'s two (7 MiB in memory after the start, 4 MiB after the warm-up); nbdkit's TLS
#: library and what it was made with, and libselinux (2 MiB, none of which is used again without
#: TLS).
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

# elf(5), of 64 bits: what is read of the header, and of each program header.
_ELF: Final = struct.Struct("=32xQ14xHH")  # offset, size and number of the program headers
_MAGIC: Final = b"\x7fELF\x02"
_SEGMENT: Final = struct.Struct("=I4x8xQ8x8xQ8x")  # type, address, bytes in memory
_PT_LOAD: Final = 1


def populate_program() -> None:
    """Fault in every page of the objects; raises `OSError` when there is not that much memory."""
    for start, stop, writable in mappings():
        memory.populate_range(start, stop, write=writable)


def map_program() -> None:
    """In a copy made by fork(2), which has no page of a file mapped, and so none locked: map those
    that are in memory. Its data stays the original's until somebody writes to it."""
    for start, stop, _ in mappings():
        memory.populate_range(start, stop, write=False)


def unshare() -> None:
    """In a process that was copied by fork(2): have a copy of our own of the heap and the program's
    data, rather than make one of each page when it is first written, with a request in hand. Raises
    `OSError`."""
    populate_program()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[heap]"):
            start, stop = (int(end, 16) for end in line.split()[0].split("-"))
            memory.populate_range(start, stop, write=True)


def drop_what_the_start_left() -> None:
    """Let go of those pages of the objects to be dropped that are as they are in their files."""
    span, is_dropped = "", False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, *rest = line.split(maxsplit=5)
        if not head.endswith(":"):  # START-STOP ACCESS OFFSET DEVICE INODE PATH
            span = head
            is_dropped = len(rest) > 4 and _file_name(rest[4]).startswith(DROPPED_OBJECTS)
        elif is_dropped and head == "Anonymous:" and rest[0] == "0":
            memory.drop_range(*(int(end, 16) for end in span.split("-")))


def is_populated() -> bool:
    """Whether every page is in memory, asked of the kernel."""
    return all(memory.resident_share_of_range(start, stop) == 1.0 for start, stop, _ in mappings())


def end_of_object(start: int) -> int:
    """Where an object that is mapped from `start` on ends, .bss and all, in whole pages; `start` if
    that is not the beginning of one."""
    if memory.read(start, len(_MAGIC)) != _MAGIC:
        return start
    offset, size_bytes, count = _ELF.unpack(memory.read(start, _ELF.size))
    first, end = None, 0
    for number in range(count):
        kind, address, memory_bytes = _SEGMENT.unpack(memory.read(start + offset + number * size_bytes, _SEGMENT.size))
        if kind == _PT_LOAD:
            first = page_start(address) if first is None else first
            end = max(end, address + memory_bytes)
    return page_end(start - (first or 0) + end)


def mappings(find_end: Callable[[int], int] = end_of_object) -> Iterator[tuple[int, int, bool]]:
    """Start, end and whether it can be written, of each mapping of the objects."""
    name, end = "", 0  # the object that was last seen, and where all of it ends
    followed = 0  # the end of its last mapping, where its .bss would begin
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, _, _, _, *path = line.split(maxsplit=5)
        start, stop = (int(end, 16) for end in span.split("-"))
        if path and _file_name(path[0]).startswith(OBJECTS):
            if path[0] != name:
                name, end = path[0], find_end(start)
            followed = stop
        elif not path and start == followed:
            stop, followed = min(stop, end), 0
            if not 0 < stop - start <= MAX_BSS_BYTES:
                continue
        else:
            followed = 0
            continue
        if "r" in access:
            yield start, stop, "w" in access


def _file_name(path: str) -> str:
    """Not by pathlib, which interns names: that may move the table of interned strings, whose old
    place is then a mapping that is gone (seen: it lay behind an object like a .bss)."""
    return path.rpartition("/")[2]

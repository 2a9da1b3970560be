"""Bringing a program's pages in from swap while it goes on: for those who must not be frozen before
a suspend.

Private memory is read through /proc/PID/mem, page by page: that maps them, and the kernel then
knows them for used. Only what is in swap is read, as /proc/PID/pagemap says. Of shared memory
pagemap does not say that, and to read a page of it that never existed would make one; so of that
the kernel is asked to read ahead what is in swap (MADV_WILLNEED), and who touches it then waits for
nobody, unless it was dropped again.
"""

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcache.linux import memory

PROC: Final = Path("/proc")
PAGE_BYTES: Final = mmap.PAGESIZE
#: A bit of a word of pagemap (Documentation/admin-guide/mm/pagemap.rst).
_SWAPPED: Final = 1 << 62
_WORDS_AT_ONCE: Final = 4096


@dataclass(frozen=True)
class _Mapping:
    start: int
    stop: int
    is_shared: bool
    swapped_bytes: int


def bring_in(pid: int, most_bytes: int, proc: Path = PROC) -> int:
    """How many bytes came, or were asked for; not more than `most_bytes`. A process that ends
    meanwhile needs nothing, and what cannot be read is passed over. Waits for the swap's server."""
    brought_bytes = 0
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        mappings = list(_with_swap((proc / str(pid) / "smaps").read_text()))
        mem, pagemap = (_open(proc / str(pid) / name, opened) for name in ("mem", "pagemap"))
        for mapping in mappings:
            left_bytes = most_bytes - brought_bytes
            if mapping.is_shared and mapping.swapped_bytes <= left_bytes:
                _read_ahead(pid, mapping)
                brought_bytes += mapping.swapped_bytes
            elif not mapping.is_shared:
                brought_bytes += _touch(mem, pagemap, mapping, left_bytes)
    return brought_bytes


def _open(path: Path, opened: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor


def _touch(mem: int, pagemap: int, mapping: _Mapping, most_bytes: int) -> int:
    touched_bytes = 0
    for page in _swapped(pagemap, mapping):
        if touched_bytes + PAGE_BYTES > most_bytes:
            break
        with contextlib.suppress(OSError):
            os.pread(mem, 1, page * PAGE_BYTES)
            touched_bytes += PAGE_BYTES
    return touched_bytes


def _read_ahead(pid: int, mapping: _Mapping) -> None:
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            memory.process_madvise(pidfd, mapping.start, mapping.stop - mapping.start, memory.MADV_WILLNEED)
        finally:
            os.close(pidfd)


def _with_swap(smaps: str) -> Iterator[_Mapping]:
    """The mappings that have something in swap."""
    start = stop = 0
    is_shared = False
    for line in smaps.splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # the line of /proc/PID/maps: 7f00-7f10 rw-s offset device inode path
            start, stop = (int(address, 16) for address in words[0].split("-"))
            is_shared = words[1].endswith("s")
        elif words[0] == "Swap:" and int(words[1]):
            yield _Mapping(start, stop, is_shared, int(words[1]) << 10)


def _swapped(pagemap: int, mapping: _Mapping) -> Iterator[int]:
    """The numbers of its pages that are in swap."""
    first, last = mapping.start // PAGE_BYTES, mapping.stop // PAGE_BYTES
    for page in range(first, last, _WORDS_AT_ONCE):
        words = os.pread(pagemap, min(_WORDS_AT_ONCE, last - page) * 8, page * 8)
        for index, word in enumerate(memoryview(words).cast("Q")):
            if word & _SWAPPED:
                yield page + index

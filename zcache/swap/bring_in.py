"""Bringing a program's pages in from swap while it goes on: for those who must not be frozen before
a suspend.

Private memory is read through /proc/PID/mem, page by page: that maps them, and the kernel then
knows them for used. Only what is in swap is read, as /proc/PID/pagemap says. Of shared memory
pagemap does not say that, and to read a page of it that never existed would make one; so of that
the kernel is asked to read ahead what is in swap (MADV_WILLNEED), and who touches it then waits for
nobody, unless it was dropped again.

A file in tmpfs is more than what is mapped of it just now: journald maps parts of its journal as
it needs them. So of what a process has open there, all that the file holds is read (which makes no
page where there is none).
"""

import contextlib
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcache.linux import memory
from zcache.linux.files import data_extents

PROC: Final = Path("/proc")
PAGE_BYTES: Final = mmap.PAGESIZE
#: A bit of a word of pagemap (Documentation/admin-guide/mm/pagemap.rst).
_SWAPPED: Final = 1 << 62
_WORDS_AT_ONCE: Final = 4096
READ_BYTES: Final = 256 << 10
#: Of `st_blocks`, on all file systems.
_BLOCK_BYTES: Final = 512


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


def bring_in_open_files(pid: int, most_bytes: int, seen: set[tuple[int, int]], proc: Path = PROC) -> int:
    """Of the files in tmpfs that a process has open, and that are not in `seen` (device and inode;
    they are noted there): how many bytes were read, the smallest first. A file of more than what is
    left of `most_bytes` is passed over.

    Nothing else is asked of any file system: one whose program has been frozen (FUSE), or whose
    server is dead (NFS), would not answer.
    """
    read_bytes = 0
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        mounts = dict(_mounts((proc / str(pid) / "mountinfo").read_text(errors="surrogateescape")))
        found = []
        for path in (proc / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                descriptor = _open(path, opened, os.O_PATH)  # which opens nothing, and holds it
                if _is_in_memory(descriptor, mounts):
                    status = os.fstat(descriptor)
                    if stat.S_ISREG(status.st_mode):
                        found.append((status.st_blocks * _BLOCK_BYTES, status, descriptor))
        for held_bytes, status, descriptor in sorted(found, key=lambda each: each[0]):
            file = status.st_dev, status.st_ino
            if file not in seen and held_bytes <= most_bytes - read_bytes:
                seen.add(file)
                with contextlib.suppress(OSError):
                    _read_whole(Path(f"/proc/self/fd/{descriptor}"), status.st_size)
                    read_bytes += held_bytes
    return read_bytes


def _mounts(lines: str) -> Iterator[tuple[str, str]]:
    """The number and type of each, by a process's mountinfo: 25 1 0:23 / /run rw - tmpfs run rw"""
    for line in lines.splitlines():
        before, _, after = line.partition(" - ")
        yield before.partition(" ")[0], after.partition(" ")[0]


def _is_in_memory(descriptor: int, mounts: dict[str, str]) -> bool:
    """On tmpfs, or of memfd_create(2), whose mount nobody sees."""
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    number = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "")
    return mounts.get(number) == "tmpfs" or str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith("/memfd:")


def _read_whole(path: Path, size_bytes: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        for start, stop in data_extents(descriptor, 0, size_bytes):
            for offset in range(start, stop, READ_BYTES):
                os.pread(descriptor, min(READ_BYTES, stop - offset), offset)
    finally:
        os.close(descriptor)


def _open(path: Path, opened: contextlib.ExitStack, flags: int = os.O_RDONLY) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
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

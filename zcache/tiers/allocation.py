"""The blocks of a backing file: its own, and all of them allocated before the first page is
written.

So a full file system is an error at the start and not in the middle of a swap-out. That takes more
than room: where a file is copied on write, or shares blocks with another, each write takes new
ones. A file on btrfs is kept from that while it is empty (`zcache.beneath.own_blocks`); one that
holds something is emptied first, for what it holds is worthless, or its caller would have refused
it.

Where there is no fallocate(2) (ext2, exFAT, NFSv3), zeros are written, once: not where the file has
all its blocks.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from zcache.beneath.lookup import SECTOR_BYTES, mount_of
from zcache.beneath.own_blocks import copies_on_write, stop_copying, writes_to_new_blocks
from zcache.errors import BadInput
from zcache.hardening.limits import in_words
from zcache.image.image import ALLOCATED_BYTES
from zcache.linux import libc
from zcache.linux.memory import anonymous_memory

#: Zeros that are written at a time, and waited for: a card takes 10 MB/s.
_WRITTEN_BYTES: Final = 4 << 20

#: Told what is being done, how much of it has been, and of how much.
Progress = Callable[[str, int, int], None]


def make_own(descriptor: int, path: Path, go_on: Callable[[], None]) -> None:
    """See to it that writing the file takes no new blocks once it has been allocated: it may be
    empty after that. Raises `BadInput`, `OSError`."""
    if os.fstat(descriptor).st_size and writes_to_new_blocks(descriptor, go_on):
        os.ftruncate(descriptor, 0)
        libc.syncfs(descriptor)  # until then its blocks are not free
        go_on()
    if os.fstat(descriptor).st_size:
        return
    if mount_of(descriptor).file_system == "overlay":  # over what cannot be seen from here (a container); may be btrfs
        with contextlib.suppress(OSError):
            stop_copying(descriptor)
    if not copies_on_write(descriptor):
        return
    try:
        stop_copying(descriptor)
        reason = "it has no effect" if copies_on_write(descriptor) else ""
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    if reason:
        raise BadInput(
            f"backing={path}: on btrfs, and copy on write cannot be turned off for it ({reason}), so a full file "
            "system would fail its writes; give a block device, or a file on another file system"
        )


def allocate(descriptor: int, path: Path, size_bytes: int, progress: Progress) -> None:
    """Every block, now. Raises `BadInput`.

    What cannot work is not begun: a file system is never filled up just to find out that it is too
    small.
    """
    status = os.fstat(descriptor)
    file_system = os.fstatvfs(descriptor)
    allocated_bytes = status.st_blocks * SECTOR_BYTES
    try:
        if size_bytes - allocated_bytes > file_system.f_bavail * file_system.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if _can_allocate(descriptor):
            for start in range(0, size_bytes, ALLOCATED_BYTES):
                length = min(ALLOCATED_BYTES, size_bytes - start)
                libc.fallocate(descriptor, 0, start, length)
                progress("allocated", start + length, size_bytes)
        elif allocated_bytes < size_bytes or status.st_size < size_bytes:
            zeros = memoryview(anonymous_memory(_WRITTEN_BYTES))
            for start in range(0, size_bytes, len(zeros)):
                part = zeros[: size_bytes - start]
                _write(descriptor, part, start)
                progress("allocated", start + len(part), size_bytes)
    except OSError as error:
        os.ftruncate(descriptor, status.st_size)
        if error.errno == errno.EFBIG:
            raise BadInput(f"backing={path}: cannot have {size_bytes} bytes: {in_words(error)}") from None
        raise BadInput(
            f"backing={path}: no room for {size_bytes} bytes: {os.strerror(error.errno or 0)}; "
            "give a file system with that much free, or a smaller size="
        ) from None


def _can_allocate(descriptor: int) -> bool:
    """Tried on the first byte, which the header needs in any case."""
    try:
        libc.fallocate(descriptor, 0, 0, 1)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise
    return True


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    """All of it, and to the disk: where blocks are found only then, that is when there are none."""
    done = 0
    while done < len(data):
        done += os.pwritev(descriptor, [data[done:]], offset + done, os.RWF_DSYNC)

"""Whether writing a file again takes new blocks, though all are allocated: copy on write, and
blocks that are shared with another file (a reflink, a snapshot).

On btrfs a file can be kept from it (`chattr +C`, which takes its checksums and compression, too)
for as long as it is empty. A snapshot that is taken later shares its blocks all the same: each is
copied once more then.
"""

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final

from zcache.beneath.lookup import mount_of

#: ioctl(2)s and flags, the same on x86-64 and arm64: linux/fs.h, linux/fiemap.h.
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_COMPR_FL: Final = 0x4
_FS_NOCOW_FL: Final = 0x800000
_FS_IOC_FIEMAP: Final = 0xC020660B
_FIEMAP_FLAG_SYNC: Final = 0x1
_FIEMAP_EXTENT_LAST: Final = 0x1
_FIEMAP_EXTENT_SHARED: Final = 0x2000
_FIEMAP: Final = struct.Struct("=2Q4I")
_EXTENT: Final = struct.Struct("=5Q4I")

#: Extents that are asked for at once.
_EXTENTS: Final = 512


def writes_to_new_blocks(descriptor: int, go_on: Callable[[], None] = lambda: None) -> bool:
    """Whether writing what the file has takes blocks that it has not. `go_on` is called on the
    way."""
    return copies_on_write(descriptor) or _has_shared_blocks(descriptor, go_on)


def copies_on_write(descriptor: int) -> bool:
    """Of a file on btrfs: whether it is written to new blocks, by itself."""
    return mount_of(descriptor).file_system == "btrfs" and not _flags_of(descriptor) & _FS_NOCOW_FL


def stop_copying(descriptor: int) -> None:
    """Of an empty file on btrfs: have it written in place from now on. Raises `OSError`."""
    flags = _flags_of(descriptor) & ~_FS_COMPR_FL
    for wanted in (flags, flags | _FS_NOCOW_FL):  # one after the other, or it is refused where both were to change
        fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("@l", wanted))


def _flags_of(descriptor: int) -> int:
    """As lsattr(1) shows them. The kernel fills an int, whatever the name of the call says."""
    (flags,) = struct.unpack_from("@i", fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(8)))
    return int(flags)


def _has_shared_blocks(descriptor: int, go_on: Callable[[], None]) -> bool:
    """Not where the file system cannot tell: it has no such blocks."""
    try:
        for flags in _extents(descriptor, go_on):
            if flags & _FIEMAP_EXTENT_SHARED:
                return True
    except OSError:
        pass
    return False


def _extents(descriptor: int, go_on: Callable[[], None]) -> Iterator[int]:
    """The flags of each."""
    offset, size_bytes = 0, os.fstat(descriptor).st_size
    while offset < size_bytes:
        buffer = bytearray(_FIEMAP.size + _EXTENTS * _EXTENT.size)
        _FIEMAP.pack_into(buffer, 0, offset, size_bytes - offset, _FIEMAP_FLAG_SYNC, 0, _EXTENTS, 0)
        fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, buffer)
        count = _FIEMAP.unpack_from(buffer)[3]
        if not count:
            return
        for number in range(count):
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, _FIEMAP.size + number * _EXTENT.size)
            yield flags
            offset = logical + length
            if flags & _FIEMAP_EXTENT_LAST:
                return
        go_on()

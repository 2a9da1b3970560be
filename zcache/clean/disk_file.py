"""A disk image or block device whose contents are somebody else's: read, and written through, as it
is.

Through the page cache, and yet not kept there: what was read is dropped at once, what was written
when it is flushed (nbdkit's file plugin calls that `cache=none`), as far as the kernel follows: it
keeps a large folio until all of it is dropped. A second, uncompressed copy in RAM is what the store
is there to save. Not O_DIRECT, which would ask for aligned requests: file systems write single
sectors.

Under IO_FLUSHER (`zcache.hardening`) writing through the page cache waits for no other writer, as a
loop device does.

It is locked for as long as it is open (`flock`; a block device by `O_EXCL`, which the kernel
refuses while it is mounted), for nobody may write to it behind the cache; nor through a loop device
(`zcache.beneath`).
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from zcache.beneath.users import used_otherwise
from zcache.errors import BadInput
from zcache.linux import libc
from zcache.linux.files import data_extents, why_not_opened
from zcache.linux.kernel_page import KERNEL_PAGE_BYTES, page_end, page_start
from zcache.linux.memory import anonymous_memory

#: For a descriptor: each transfer is EBADF.
_NOWHERE: Final = -1

#: What a kernel or a file system says that has no such call, or not for such a range (a device: not
#: whole blocks).
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV, errno.EBADF})

#: Zeros that are written at a time, where they cannot be asked for: never touched, and so no
#: memory.
_ZEROS: Final = memoryview(anonymous_memory(1 << 20))


class DiskFile:
    """`size_bytes` of a file or device, fixed when it is opened. All methods but `extents` move
    everything or raise `OSError`; offsets and lengths are bytes."""

    def __init__(self, descriptor: int, size_bytes: int, is_device: bool, page_bytes: int = KERNEL_PAGE_BYTES) -> None:
        self._descriptor = descriptor
        self._page_bytes = page_bytes
        self.size_bytes = size_bytes
        self._is_device = is_device

    @classmethod
    def open(cls, path: Path, read_only: bool) -> "DiskFile":
        """Open and lock. Raises `BadInput` with what is wrong with the path."""
        flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if read_only else os.O_RDWR)
        try:
            is_device = path.is_block_device()
            descriptor = os.open(path, flags | (os.O_EXCL if is_device else 0))
        except OSError as error:
            raise BadInput(why_not_opened(error)) from None
        try:
            mode = os.fstat(descriptor).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise BadInput("neither a regular file nor a block device")
            if not is_device:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            user = used_otherwise(descriptor, read_only)
            if user:
                raise BadInput(user)
            return cls(descriptor, os.lseek(descriptor, 0, os.SEEK_END), is_device)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise BadInput("in use: held by another export, or another program") from None
            if isinstance(error, OSError):  # it has no size (a file of /proc)
                raise BadInput(why_not_opened(error)) from None
            raise

    @classmethod
    def adopt(cls, descriptor: int | None) -> "DiskFile":
        """Go on with what a predecessor has opened. All transfers fail without a descriptor."""
        if descriptor is None:
            return cls(_NOWHERE, 0, False)
        is_device = stat.S_ISBLK(os.fstat(descriptor).st_mode)
        return cls(descriptor, os.lseek(descriptor, 0, os.SEEK_END), is_device)

    def fileno(self) -> int:
        """The descriptor, for `adopt`."""
        return self._descriptor

    def read(self, offset: int, out: memoryview) -> None:
        """Fill `out`. The kernel keeps no copy."""
        self._move("read", os.preadv, offset, out)
        start = page_start(offset, self._page_bytes)  # a page that is not named whole would be kept
        length = page_end(offset + len(out), self._page_bytes) - start
        os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_DONTNEED)

    def write(self, offset: int, data: memoryview) -> None:
        """On its way to the disk; `flush` says when it is there."""
        self._move("write", os.pwritev, offset, data)

    def _move(self, what: str, call: Callable[..., int], offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            count = call(self._descriptor, [data[done:] if done else data], offset + done)
            if not count:
                raise OSError(errno.EIO, f"short {what}: nothing at byte {offset + done}")
            done += count

    def flush(self) -> None:
        """Return when everything that was written is on the disk. The kernel keeps no copy."""
        if self._descriptor == _NOWHERE:  # which Python would take for a wrong argument
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        os.fdatasync(self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def trim(self, offset: int, length: int) -> None:
        """A hole, where there can be one."""
        self._allocate(libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE, offset, length)

    def zero(self, offset: int, length: int, may_trim: bool, is_fast: bool) -> bool:
        """Make a range read as zeros. False, and nothing has been done, if it must be fast and
        cannot be."""
        ways = [libc.FALLOC_FL_ZERO_RANGE | libc.FALLOC_FL_KEEP_SIZE]
        if may_trim:
            ways.insert(0, libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE)
        if any(self._allocate(way, offset, length) for way in ways):
            return True
        if is_fast:
            return False
        for start in range(offset, offset + length, len(_ZEROS)):
            self.write(start, _ZEROS[: offset + length - start])
        return True

    def _allocate(self, mode: int, offset: int, length: int) -> bool:
        """fallocate(2), if it can be."""
        try:
            libc.fallocate(self._descriptor, mode, offset, length)
        except OSError as error:
            if error.errno not in _UNSUPPORTED or self._descriptor == _NOWHERE:
                raise
            return False
        return True

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Runs (offset, length, is a hole) that cover the range, as far as the file system
        tells."""
        stop = offset + length
        position = offset
        for start, end in data_extents(self._descriptor, offset, stop):
            if start > position:
                yield position, start - position, True
            yield start, end - start, False
            position = end
        if position < stop:
            yield position, stop - position, True

    def close(self) -> None:
        """And so give up its lock."""
        if self._descriptor != _NOWHERE:
            os.close(self._descriptor)

"""userfaultfd(2): page faults of a process, told to whoever holds a descriptor, and fills the
pages.

Names are those of the kernel's header (linux/userfaultfd.h), with the version that brought each.
Every call is an ioctl(2), without the GIL.
"""

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

from zcache.linux.libc import LIBC, raise_errno

# glibc has no function for it; arm64's number is asm-generic's.
_USERFAULTFD: Final = {"x86_64": 323, "aarch64": 282}.get(os.uname().machine, -1)  # Linux 4.3
DEVICE: Final = Path("/dev/userfaultfd")  # Linux 6.1
USERFAULTFD_IOC_NEW: Final = 0xAA00

UFFD_USER_MODE_ONLY: Final = 1  # Linux 5.11: no faults of the kernel's, which nobody needs a privilege for

UFFD_API: Final = 0xAA
UFFD_FEATURE_PAGEFAULT_FLAG_WP: Final = 1 << 0  # Linux 5.7
UFFD_FEATURE_MISSING_SHMEM: Final = 1 << 5  # Linux 4.11
UFFD_FEATURE_THREAD_ID: Final = 1 << 8  # Linux 4.14
UFFD_FEATURE_WP_HUGETLBFS_SHMEM: Final = 1 << 12  # Linux 5.19

UFFDIO_REGISTER_MODE_MISSING: Final = 1
UFFDIO_REGISTER_MODE_WP: Final = 2

UFFD_EVENT_PAGEFAULT: Final = 0x12
UFFD_PAGEFAULT_FLAG_WP: Final = 2

#: struct uffd_msg: event; flags, address, and the thread's id.
MESSAGE: Final = struct.Struct("=B7xQQI4x")

_API: Final = struct.Struct("=QQQ")  # api, features, ioctls
_RANGE: Final = struct.Struct("=QQ")  # start, length
_REGISTER: Final = struct.Struct("=QQQQ")  # range, mode, ioctls
_COPY: Final = struct.Struct("=QQQQq")  # destination, source, length, mode, bytes copied
_WRITEPROTECT: Final = struct.Struct("=QQQ")  # range, mode
_POISON: Final = struct.Struct("=QQQq")  # range, mode, bytes updated


def _iowr(number: int, size_bytes: int, direction: int = 3) -> int:
    """The number of an ioctl of userfaultfd's, as _IOWR() makes it (asm-generic/ioctl.h)."""
    return direction << 30 | size_bytes << 16 | UFFD_API << 8 | number


UFFDIO_API: Final = _iowr(0x3F, _API.size)
UFFDIO_REGISTER: Final = _iowr(0x00, _REGISTER.size)
UFFDIO_WAKE: Final = _iowr(0x02, _RANGE.size, 2)
UFFDIO_COPY: Final = _iowr(0x03, _COPY.size)
UFFDIO_WRITEPROTECT: Final = _iowr(0x06, _WRITEPROTECT.size)
UFFDIO_POISON: Final = _iowr(0x08, _POISON.size)


class Fault(NamedTuple):
    """A thread that waits: for which address, why (`UFFD_PAGEFAULT_FLAG_…`), and its id, if
    `UFFD_FEATURE_THREAD_ID` was asked for."""

    address: int
    flags: int
    thread_id: int


def open_descriptor(*, user_mode_only: bool = False) -> int:
    """A new descriptor, that does not block. Raises `OSError`: EPERM without the privilege, ENOSYS
    without userfaultfd."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    if not user_mode_only:
        try:
            device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            pass
        else:
            try:
                return fcntl.ioctl(device, USERFAULTFD_IOC_NEW, flags)
            finally:
                os.close(device)
    descriptor: int = LIBC.syscall(
        ctypes.c_long(_USERFAULTFD), ctypes.c_int(flags | (UFFD_USER_MODE_ONLY if user_mode_only else 0))
    )
    if descriptor < 0:
        raise_errno()
    return descriptor


def handshake(descriptor: int, wanted: int) -> int:
    """Once, before all else: the features that are wanted, of which each must be there (`OSError`,
    EINVAL). Returns all that there are."""
    request = bytearray(_API.pack(UFFD_API, wanted, 0))
    fcntl.ioctl(descriptor, UFFDIO_API, request)
    return int(_API.unpack(request)[1])


def register(descriptor: int, start: int, length: int, mode: int) -> None:
    """Faults of this process in whole pages from `start` on are told from now on."""
    fcntl.ioctl(descriptor, UFFDIO_REGISTER, bytearray(_REGISTER.pack(start, length, mode, 0)))


def copy(descriptor: int, to: int, source: int, length: int, mode: int = 0) -> int:
    """Fill missing pages with a copy of our memory at `source`, and wake who waits for them; how
    many bytes were. Raises `FileExistsError` if the first is there, and then wakes nobody."""
    request = bytearray(_COPY.pack(to, source, length, mode, 0))
    try:
        fcntl.ioctl(descriptor, UFFDIO_COPY, request)
    except OSError as error:
        copied = int(_COPY.unpack(request)[4])
        if copied > 0:
            return copied
        if error.errno == errno.EAGAIN:  # the mappings change
            return 0
        raise
    return length


def wake(descriptor: int, start: int, length: int) -> None:
    """Have who waits for these pages try again."""
    fcntl.ioctl(descriptor, UFFDIO_WAKE, _RANGE.pack(start, length))


def write_protect(descriptor: int, start: int, length: int) -> None:
    """From now on who writes to these pages waits, until `allow_writes`."""
    fcntl.ioctl(descriptor, UFFDIO_WRITEPROTECT, bytearray(_WRITEPROTECT.pack(start, length, 1)))


def allow_writes(descriptor: int, start: int, length: int) -> None:
    """Undo `write_protect`, and wake who waits."""
    fcntl.ioctl(descriptor, UFFDIO_WRITEPROTECT, bytearray(_WRITEPROTECT.pack(start, length, 0)))


def poison(descriptor: int, start: int, length: int) -> None:
    """Who touches these missing pages gets SIGBUS. Linux 6.6."""
    fcntl.ioctl(descriptor, UFFDIO_POISON, bytearray(_POISON.pack(start, length, 0, 0)))


def faults_in(messages: bytes) -> list[Fault]:
    """Those that read(2) has given."""
    return [
        Fault(address, flags, thread_id)
        for event, flags, address, thread_id in MESSAGE.iter_unpack(messages)
        if event == UFFD_EVENT_PAGEFAULT
    ]

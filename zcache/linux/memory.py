"""Mapped memory: populated, given back, looked at, by system calls that release the GIL.

That is why `populate` is here: `mmap.madvise` of Python keeps the GIL, and the populating of memory
waits for memory; under pressure the whole server then waits for what only the server could bring
about. (It did: the test VM wedged within 20 s.)
"""

import ctypes
import mmap
import struct
from typing import Final

from zcache.linux.kernel_page import KERNEL_PAGE_BYTES, page_end, page_start
from zcache.linux.libc import LIBC, raise_errno

MAP_FIXED: Final = 16
MADV_WILLNEED: Final = 3
MADV_DONTNEED: Final = 4
MADV_DONTNEED_LOCKED: Final = 24  # Linux 5.18
MADV_POPULATE_READ: Final = 22  # Linux 5.14, both
MADV_POPULATE_WRITE: Final = 23
#: `mmap(2)` flag: address space is not accounted as memory. Python names it from 3.13 on.
MAP_NORESERVE: Final = 0x4000
# glibc has no function for it; the number is the same for every architecture.
_PROCESS_MADVISE: Final = 440  # Linux 5.10
_PTHREAD_ATTR_BYTES: Final = 64  # pthread_attr_t is 56 bytes on x86-64, 64 on arm64

LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
LIBC.pthread_self.restype = ctypes.c_ulong
LIBC.pthread_getattr_np.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
LIBC.pthread_attr_getstack.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
LIBC.pthread_attr_destroy.argtypes = [ctypes.c_void_p]


def anonymous_memory(size_bytes: int) -> mmap.mmap:
    """Private zeroed memory that is not reserved until it is touched; under strict overcommit it is
    at once."""
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)


def populate(memory: memoryview) -> None:
    """Fault in page-aligned memory for writing, without changing what it holds; `OSError` if there
    is not enough."""
    if LIBC.madvise(address(memory), len(memory), MADV_POPULATE_WRITE) < 0:
        raise_errno()


def discard(memory: memoryview) -> None:
    """Give page-aligned private memory back to the system, locked or not; it is zero when it is
    touched again. Raises `OSError` before Linux 5.18."""
    if LIBC.madvise(address(memory), len(memory), MADV_DONTNEED_LOCKED) < 0:
        raise_errno()


def populate_range(start: int, stop: int, *, write: bool) -> None:
    """Fault in whole pages by address; writing breaks copy-on-write. Raises `OSError`."""
    if LIBC.madvise(start, stop - start, MADV_POPULATE_WRITE if write else MADV_POPULATE_READ) < 0:
        raise_errno()


def map_shared_over(start: int, stop: int, descriptor: int, offset: int) -> None:
    """Put a file of memory, from `offset` on, in the place of whole pages, by address. Raises
    `OSError`."""
    access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_FIXED
    if LIBC.mmap(start, stop - start, access, flags, descriptor, offset) != start:
        raise_errno()


def map_nothing_over(start: int, stop: int) -> None:
    """Whole pages that nobody can touch, in the place of whatever is there. Raises `OSError`."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
    if LIBC.mmap(start, stop - start, 0, flags, -1, 0) != start:
        raise_errno()


def drop_range(start: int, stop: int) -> None:
    """Let go of whole pages by address: what is a file's is read again when it is touched, all else
    is lost. Raises `OSError`, and lets go of nothing, if they are locked."""
    if LIBC.madvise(start, stop - start, MADV_DONTNEED) < 0:
        raise_errno()


def resident_share(memory: memoryview) -> float:
    """Which share of page-aligned memory is in RAM, by mincore(2)."""
    start = address(memory)
    return resident_share_of_range(start, start + len(memory))


def resident_share_of_range(start: int, stop: int) -> float:
    """Which share of whole pages, by address, is in RAM, by mincore(2)."""
    pages = page_end(stop - start) // KERNEL_PAGE_BYTES
    resident = ctypes.create_string_buffer(pages)
    if LIBC.mincore(start, stop - start, resident) < 0:
        raise_errno()
    return (pages - resident.raw[:pages].count(0)) / pages


def address(memory: memoryview | mmap.mmap) -> int:
    """Where writable memory lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def populate_stack(size_bytes: int) -> bool:
    """Fault in the calling thread's stack, from its top, for `size_bytes` or all that there is.
    False where that cannot be.

    It cannot for a process's first thread, whose stack grows as it is used.
    """
    attributes = ctypes.create_string_buffer(_PTHREAD_ATTR_BYTES)
    if LIBC.pthread_getattr_np(LIBC.pthread_self(), attributes):
        return False
    lowest, length = ctypes.c_size_t(), ctypes.c_size_t()
    LIBC.pthread_attr_getstack(attributes, ctypes.byref(lowest), ctypes.byref(length))
    LIBC.pthread_attr_destroy(attributes)
    top = lowest.value + length.value
    start = page_start(max(lowest.value, top - size_bytes))
    return not LIBC.madvise(start, top - start, MADV_POPULATE_WRITE)


def fill(address: int, size_bytes: int) -> None:
    """Touch memory by writing zeros."""
    ctypes.memset(address, 0, size_bytes)


def write_byte(address: int, value: int) -> None:
    """Write one byte of this process's memory."""
    ctypes.memset(address, value, 1)


def read(address: int, size_bytes: int) -> bytes:
    """A copy of this process's memory."""
    return ctypes.string_at(address, size_bytes)


def process_madvise(pidfd: int, start: int, length: int, advice: int) -> None:
    """process_madvise(2), for one range of another process's memory. Raises `OSError`."""
    vector = struct.pack("@PN", start, length)
    arguments = (ctypes.c_long(pidfd), vector, ctypes.c_size_t(1), ctypes.c_long(advice), ctypes.c_ulong(0))
    if LIBC.syscall(ctypes.c_long(_PROCESS_MADVISE), *arguments) < 0:
        raise_errno()

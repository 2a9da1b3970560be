"""A region's memory as the pager has hold of it: by its file, and by its userfaultfd. Pages are
numbers of the region's."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zcache.errors import BadInput
from zcache.linux import libc, userfaultfd
from zcache.linux.files import data_extents
from zcache.pages.entry import PAGE_BYTES, PAGE_SHIFT

#: How the kernel says that the client has ended, or its mapping.
CLIENT_HAS_ENDED: Final = (ProcessLookupError, FileNotFoundError)
#: What keeps a file as long as it is.
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class RegionMemory:
    """`page_count` pages that a client has mapped at `start`, of the file `memfd`; faults are told
    at `descriptor`. All methods raise `OSError`; one of `CLIENT_HAS_ENDED` if it has."""

    def __init__(self, descriptor: int, memfd: int, start: int, page_count: int) -> None:
        self._descriptor, self._memfd, self._start = descriptor, memfd, start
        self.page_count = page_count

    def fileno(self) -> int:
        """Of the userfaultfd: ready when there are faults."""
        return self._descriptor

    def faults(self) -> list[userfaultfd.Fault]:
        """Those that nobody has heard of yet; some of them."""
        return userfaultfd.read_faults(self._descriptor)

    def page_of(self, fault: userfaultfd.Fault) -> int:
        """Which page that is."""
        return fault.address - self._start >> PAGE_SHIFT

    def extents(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """The runs among these pages that the file has."""
        for start, end in data_extents(self._memfd, first << PAGE_SHIFT, stop << PAGE_SHIFT):
            yield start >> PAGE_SHIFT, end >> PAGE_SHIFT

    def fill(self, first: int, address: int, size_bytes: int) -> None:
        """Whole pages, of what is at that address of ours, and wake who waits. One that is there
        already stays as it is. Raises `MemoryError` as long as there is no memory."""
        done = 0
        while done < size_bytes:
            to = self._at(first) + done
            try:
                done += userfaultfd.copy(self._descriptor, to, address + done, size_bytes - done)
            except FileExistsError:  # it came by another way, such as a write to the file
                userfaultfd.wake(self._descriptor, to, PAGE_BYTES)
                done += PAGE_BYTES
            except OSError as error:
                if error.errno == errno.ENOMEM:
                    raise MemoryError from None
                raise

    def read(self, first: int, stop: int) -> bytes:
        """What the pages are now: by pread(2), which makes none where there is a hole."""
        length = stop - first << PAGE_SHIFT
        data = os.pread(self._memfd, length, first << PAGE_SHIFT)
        if len(data) != length:
            raise OSError(errno.EIO, f"pages {first} to {stop} of a region cannot be read")
        return data

    def punch(self, first: int, stop: int) -> None:
        """A hole, where these pages were."""
        if first < stop:
            mode = libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE
            libc.fallocate(self._memfd, mode, first << PAGE_SHIFT, stop - first << PAGE_SHIFT)

    def write_protect(self, first: int, stop: int) -> None:
        """Who writes to them waits."""
        userfaultfd.write_protect(self._descriptor, self._at(first), stop - first << PAGE_SHIFT)

    def allow_writes(self, first: int, stop: int) -> None:
        """And goes on."""
        userfaultfd.allow_writes(self._descriptor, self._at(first), stop - first << PAGE_SHIFT)

    def wake(self, first: int, stop: int) -> None:
        """Who waits for these tries again."""
        userfaultfd.wake(self._descriptor, self._at(first), stop - first << PAGE_SHIFT)

    def poison(self, page: int) -> None:
        """Who touches it gets SIGBUS. Linux 6.6."""
        userfaultfd.poison(self._descriptor, self._at(page), PAGE_BYTES)

    def _at(self, page: int) -> int:
        return self._start + (page << PAGE_SHIFT)


def new_memfd(size_bytes: int) -> int:
    """A file for a region's memory, that stays as long as it is."""
    descriptor = os.memfd_create("zcache-region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_descriptors(descriptor: int, memfd: int, size_bytes: int) -> None:
    """Raises `BadInput` if the first is no userfaultfd, or the second no file of that length, or
    one that might have another later."""
    seals = 0
    with contextlib.suppress(OSError):  # no memfd
        seals = fcntl.fcntl(memfd, fcntl.F_GET_SEALS)
    kind = str(Path(f"/proc/self/fd/{descriptor}").readlink())
    if kind != "anon_inode:[userfaultfd]" or seals & SEALS != SEALS or os.fstat(memfd).st_size != size_bytes:
        raise BadInput(f"a region is a userfaultfd, and a sealed memfd of its size, {size_bytes} bytes")

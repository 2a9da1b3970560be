"""A region's memory as the pager has hold of it: by its file, and by its userfaultfd. Pages are
numbers of the region's."""

from array import array
from collections.abc import Iterator
from typing import Final

from zcache.linux import libc, userfaultfd
from zcache.linux.files import data_extents
from zcache.pager.page_moves import MOVES
from zcache.pages.entry import PAGE_BYTES, PAGE_SHIFT

#: How the kernel says that the client has ended, or its mapping.
CLIENT_HAS_ENDED: Final = (ProcessLookupError, FileNotFoundError)


class RegionMemory:
    """`page_count` pages that a client has mapped at `start`, of the file `memfd`; faults are told
    at `descriptor`. All methods raise `OSError`; one of `CLIENT_HAS_ENDED` if it has."""

    def __init__(self, descriptor: int, memfd: int, start: int, page_count: int) -> None:
        self._descriptor, self._memfd, self._start = descriptor, memfd, start
        self.page_count = page_count

    def fileno(self) -> int:
        """Of the userfaultfd: ready when there are faults."""
        return self._descriptor

    def faults(self, spin_seconds: float = 0.0) -> list[userfaultfd.Fault]:
        """Those that nobody has heard of yet; some of them. If there are none, it looks for so
        long, actively."""
        return userfaultfd.faults_in(MOVES.read_faults(self._descriptor, spin_seconds))

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
        MOVES.fill(self._descriptor, self._at(first), address, size_bytes)

    def protect_and_read(self, pages: "array[int]", out: memoryview) -> None:
        """From now on who writes to these pages waits; and what they are now."""
        MOVES.protect_and_read(self._descriptor, self._memfd, self._start, pages, out)

    def punch(self, pages: "array[int]") -> None:
        """Holes, where these pages were."""
        MOVES.punch(self._memfd, pages)

    def punch_all(self, first: int, stop: int) -> None:
        """The same of all pages of a range."""
        if first < stop:
            mode = libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE
            libc.fallocate(self._memfd, mode, first << PAGE_SHIFT, stop - first << PAGE_SHIFT)

    def allow_writes(self, pages: "array[int]") -> None:
        """Who waits to write to these tries again."""
        MOVES.allow_writes(self._descriptor, self._start, pages)

    def let_all_go_on(self) -> None:
        """Protect nothing, and wake everybody."""
        length = self.page_count << PAGE_SHIFT
        userfaultfd.allow_writes(self._descriptor, self._start, length)
        userfaultfd.wake(self._descriptor, self._start, length)

    def wake(self, page: int) -> None:
        """Who waits for it tries again."""
        userfaultfd.wake(self._descriptor, self._at(page), PAGE_BYTES)

    def poison(self, page: int) -> None:
        """Who touches it gets SIGBUS. Linux 6.6."""
        userfaultfd.poison(self._descriptor, self._at(page), PAGE_BYTES)

    def _at(self, page: int) -> int:
        return self._start + (page << PAGE_SHIFT)

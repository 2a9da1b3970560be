"""What is done to pages of a region, a batch at a time: compiled where it can be, in Python
elsewhere, which takes more time, for then the threads of a pager wait for each other.

Pages are 32-bit numbers in ascending order (an `array("I")`); `start` is where the region lies in
its client. All raise `OSError`.
"""

import contextlib
import errno
import os
import select
import time
from array import array
from collections.abc import Iterator
from typing import Final, Protocol

from zcache.linux import libc, userfaultfd
from zcache.page_loop.choice import VARIABLE
from zcache.pages.entry import PAGE_BYTES, PAGE_SHIFT

#: So many messages are read at once.
MESSAGES: Final = 16


class PageMoves(Protocol):
    """The contract of both builds."""

    def protect_and_read(self, descriptor: int, memfd: int, start: int, pages: "array[int]", out: memoryview) -> None:
        """From now on who writes to them waits; and what they are, one behind the other. By
        pread(2), which makes no page where there is a hole."""

    def punch(self, memfd: int, pages: "array[int]") -> None:
        """Holes, where these pages were."""

    def allow_writes(self, descriptor: int, start: int, pages: "array[int]") -> None:
        """Who waits to write to them tries again."""

    def fill(self, descriptor: int, to: int, address: int, size_bytes: int) -> None:
        """Whole pages, at that address of the client, with what is at one of ours, and wake who
        waits. One that is there already stays as it is. Raises `MemoryError` as long as there is no
        memory."""

    def read_faults(self, descriptor: int, seconds: float) -> bytes:
        """Messages (`userfaultfd.MESSAGE`), waiting for them actively for so long at most."""
        ...


class PythonMoves:
    """The reference."""

    def protect_and_read(self, descriptor: int, memfd: int, start: int, pages: "array[int]", out: memoryview) -> None:
        """See `PageMoves`."""
        at = 0
        for first, count in runs(pages):
            length = count << PAGE_SHIFT
            userfaultfd.write_protect(descriptor, start + (first << PAGE_SHIFT), length)
            if os.preadv(memfd, [out[at : at + length]], first << PAGE_SHIFT) != length:
                raise OSError(errno.EIO, f"{count} pages of a region from {first} on cannot be read")
            at += length

    def punch(self, memfd: int, pages: "array[int]") -> None:
        """See `PageMoves`."""
        for first, count in runs(pages):
            mode = libc.FALLOC_FL_PUNCH_HOLE | libc.FALLOC_FL_KEEP_SIZE
            libc.fallocate(memfd, mode, first << PAGE_SHIFT, count << PAGE_SHIFT)

    def allow_writes(self, descriptor: int, start: int, pages: "array[int]") -> None:
        """See `PageMoves`."""
        for first, count in runs(pages):
            userfaultfd.allow_writes(descriptor, start + (first << PAGE_SHIFT), count << PAGE_SHIFT)

    def fill(self, descriptor: int, to: int, address: int, size_bytes: int) -> None:
        """See `PageMoves`."""
        done = 0
        while done < size_bytes:
            try:
                done += userfaultfd.copy(descriptor, to + done, address + done, size_bytes - done)
            except FileExistsError:  # by a write to the file, say
                userfaultfd.wake(descriptor, to + done, PAGE_BYTES)
                done += PAGE_BYTES
            except OSError as error:
                if error.errno == errno.ENOMEM:
                    raise MemoryError from None
                raise

    def read_faults(self, descriptor: int, seconds: float) -> bytes:
        """See `PageMoves`."""
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while True:
            for _, events in poll.poll(0):
                if events & (select.POLLERR | select.POLLNVAL):  # somebody has had it block, and would wait for good
                    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
                with contextlib.suppress(BlockingIOError):
                    return os.read(descriptor, MESSAGES * userfaultfd.MESSAGE.size)
            if time.monotonic() >= end:
                return b""


def runs(pages: "array[int]") -> Iterator[tuple[int, int]]:
    """Neighbours together: the first, and how many."""
    begin = 0
    for end in range(1, len(pages) + 1):
        if end == len(pages) or pages[end] != pages[end - 1] + 1:
            yield pages[begin], end - begin
            begin = end


def choose() -> PageMoves:
    """Python's, where they are asked for (`ZCACHE_PAGE_LOOP`) or there is nothing compiled."""
    if os.environ.get(VARIABLE) == "python":
        return PythonMoves()
    try:
        import zcache.pager._page_moves as compiled
    except Exception:  # whatever a damaged object, or one of other code, comes to
        return PythonMoves()
    if any(not hasattr(compiled, name) for name in vars(PythonMoves) if not name.startswith("_")):  # of before
        return PythonMoves()
    return compiled


MOVES: Final = choose()

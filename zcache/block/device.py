"""The block device: ranges of bytes to pages of a tmem object. A block device's rules about ranges,
which are NBD's, live here and nowhere else.

Whole pages go straight through. The unaligned ends of a write are read, modified and written,
atomically for each page; a trim keeps pages that it covers only in part, as a trim may; a zero
writes zeros there, as it must.
"""

from collections.abc import Callable, Iterator
from typing import Final

from zcache.pages.entry import PAGE_BYTES, PAGE_SHIFT
from zcache.pages.tmem import TmemObject
from zcache.server.config import DEVICE_NAME
from zcache.store.store import Store

_PAGE_MASK: Final = PAGE_BYTES - 1
_ZEROS: Final = memoryview(bytes(PAGE_BYTES))


class Device:
    """`size_bytes` (whole pages) of a persistent object; all offsets and lengths are bytes within
    it."""

    name = DEVICE_NAME
    read_only = False

    def __init__(self, store: Store, pages: TmemObject) -> None:
        self.store = store
        self.pages = pages
        self.size_bytes = pages.page_count << PAGE_SHIFT

    def read(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset`; what was never written reads as zeros."""
        if not (offset | len(out)) & _PAGE_MASK:
            self.store.get(self.pages, offset >> PAGE_SHIFT, out)
            return
        for start in range(0, len(out), 64 * PAGE_BYTES):
            part = out[start : start + 64 * PAGE_BYTES]
            first = (offset + start) >> PAGE_SHIFT
            count = ((offset + start + len(part) + _PAGE_MASK) >> PAGE_SHIFT) - first
            covering = bytearray(count << PAGE_SHIFT)
            with memoryview(covering) as view:
                self.store.get(self.pages, first, view)
                inside = (offset + start) & _PAGE_MASK
                part[:] = view[inside : inside + len(part)]

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`."""
        if not (offset | len(data)) & _PAGE_MASK:
            self.store.put(self.pages, offset >> PAGE_SHIFT, data)
            return
        head, body = _split(offset, len(data))
        start, stop = offset + head, offset + head + body
        _do_all(
            lambda: self._modify(offset, data[:head]),
            lambda: self._put(start, data[head : head + body]),
            lambda: self._modify(stop, data[head + body :]),
        )

    def trim(self, offset: int, length: int) -> None:
        """Drop the whole pages in a range; they read as zeros."""
        head, body = _split(offset, length)
        if body:
            self.store.flush(self.pages, (offset + head) >> PAGE_SHIFT, body >> PAGE_SHIFT)

    def flush(self) -> None:
        """Swap does not outlive the server, so there is nothing to make durable: what was written
        can be read."""

    def zero(self, offset: int, length: int, may_trim: bool = True, is_fast: bool = False) -> bool:  # noqa: ARG002
        """Make a range read as zeros; that is always fast."""
        head, body = _split(offset, length)
        start, stop = offset + head, offset + head + body
        _do_all(
            lambda: self._modify(offset, _ZEROS[:head]),
            lambda: self.trim(start, body),
            lambda: self._modify(stop, _ZEROS[: offset + length - stop]),
        )
        return True

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Runs (offset, length, reads as zeros) that cover the range, page by page; the first may
        begin before it."""
        first = offset >> PAGE_SHIFT
        count = ((offset + length + _PAGE_MASK) >> PAGE_SHIFT) - first
        for start, pages, zero in self.store.extents(self.pages, first, count):
            yield start << PAGE_SHIFT, pages << PAGE_SHIFT, zero

    def _put(self, offset: int, data: memoryview) -> None:
        """Whole pages, or nothing."""
        if data:
            self.store.put(self.pages, offset >> PAGE_SHIFT, data)

    def _modify(self, offset: int, data: memoryview) -> None:
        """A part of one page, or nothing."""
        if data:
            self.store.modify(self.pages, offset >> PAGE_SHIFT, offset & _PAGE_MASK, data)


def _do_all(*parts: Callable[[], None]) -> None:
    """The parts of one request, whatever becomes of those before: a page of a write that fails must
    not keep what it had. Raises the first failure."""
    failure: Exception | None = None
    for part in parts:
        try:
            part()
        except Exception as error:
            failure = failure or error
    if failure:
        raise failure


def _split(offset: int, length: int) -> tuple[int, int]:
    """The bytes before the first page boundary in a range, and those of the whole pages that
    follow."""
    head = min(-offset & _PAGE_MASK, length)
    return head, (length - head) & ~_PAGE_MASK

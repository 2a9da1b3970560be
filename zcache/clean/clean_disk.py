"""A clean disk: a disk file with a compressed cache of what is read from it, in an ephemeral pool.

A read is answered from the pool where it can be, and from the file otherwise; what was read there
is put. A write goes to the file before it is answered, and never to the pool. So the pool holds
nothing that the file does not, every page of it can be dropped at any time, and nothing is lost
with it.

No stale data, whatever fails. A change (a write, trim or zero) first flushes its pages from the
pool, and until it has ended none of them is put: neither by a read that begins meanwhile, nor by
one that was under way when it began, for that may have read what was there before. Only then is the
change answered. A change that fails leaves the pool without its pages, and reads go to the file,
whatever that holds. When the file cannot be flushed, the kernel may have dropped what it had taken:
all pages are flushed from the pool.

Locking: `_lock` is for the lists of what is under way. A read's pages are put under it, so that no
change can begin in between; it is held for as long as a request's pages take to be compressed, and
nobody waits for I/O with it. It comes before the store's lock.

The last part of a file that is no whole page is not cached, nor is what is read of a part of the
disk (1 GiB) for the first time: its part of the page table is given memory then, by the upkeep.
"""

import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from zcache.clean.disk_file import DiskFile
from zcache.pages.entry import PAGE_BYTES, PAGE_SHIFT
from zcache.pages.page_table import MAX_RUN_PAGES
from zcache.pages.tmem import Pool
from zcache.store.store import Store

_PAGE_MASK: Final = PAGE_BYTES - 1

#: Pages that were read in part, and are remembered: as many clients may read a disk piece by piece.
READ_IN_PART: Final = 16


class _Reading:
    """Pages that are being read from the file."""

    def __init__(self, pages: range, may_be_put: bool) -> None:
        self.pages = pages
        self.may_be_put = may_be_put


class CleanDisk:
    """Reads and writes of `file` through `store`, as a new object of an ephemeral pool. Offsets and
    lengths are bytes; all methods raise `OSError` as the file does."""

    def __init__(self, name: str, file: DiskFile, read_only: bool, store: Store, pool: Pool) -> None:
        self.name = name
        self.read_only = read_only
        self.size_bytes = file.size_bytes
        self._file = file
        self.store = store
        self._page_count = file.size_bytes >> PAGE_SHIFT
        with store.lock:
            self._pages = store.tmem.new_object(pool, len(pool.objects), self._page_count)
        self._pages.table.fault_ahead()
        self._lock = threading.Lock()
        self._readings: list[_Reading] = []
        self._changes: list[range] = []
        self._read_in_part: deque[int] = deque(maxlen=READ_IN_PART)
        self._gets = self._misses = self._reads = self._changed = 0  # pages, pages, requests, requests
        self._errors: dict[str, str] = {}  # what failed last, by what it was

    # -- requests
    # ----------------------------------------------------------------------------------------------

    def read(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset`."""
        stop = offset + len(out)
        cached_stop = min(stop, self._page_count << PAGE_SHIFT)
        if stop > cached_stop:
            start = max(offset, cached_stop)
            self._read_file(start, out[start - offset :])
            out = out[: start - offset]
        if not (offset | len(out)) & _PAGE_MASK:
            self._read_pages(offset >> PAGE_SHIFT, out)
            return
        for start in range(0, len(out), MAX_RUN_PAGES * PAGE_BYTES):
            part = out[start : start + MAX_RUN_PAGES * PAGE_BYTES]
            pages = self._pages_of(offset + start, len(part))
            covering = bytearray(len(pages) << PAGE_SHIFT)
            with memoryview(covering) as view:
                self._read_pages(pages.start, view, self._begun(offset + start, len(part)))
                inside = (offset + start) & _PAGE_MASK
                part[:] = view[inside : inside + len(part)]

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`."""
        with self._changing(offset, len(data)), self._noting("write"):
            self._file.write(offset, data)

    def trim(self, offset: int, length: int) -> None:
        """What is there is of no use: a hole, where the file can have one. It may read as
        anything."""
        with self._changing(offset, length), self._noting("trim"):
            self._file.trim(offset, length)

    def zero(self, offset: int, length: int, may_trim: bool = True, is_fast: bool = False) -> bool:
        """Make a range read as zeros. False, and nothing has changed, if it must be fast and cannot
        be."""
        with self._changing(offset, length), self._noting("zero"):
            return self._file.zero(offset, length, may_trim, is_fast)

    def flush(self) -> None:
        """Return when everything that was written is on the disk."""
        try:
            with self._noting("flush"):
                self._file.flush()
        except OSError:
            with self._changing(0, self.size_bytes):
                raise

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Runs (offset, length, reads as zeros) that cover the range."""
        return self._file.extents(offset, length)

    # -- what is under way
    # --------------------------------------------------------------------------------------------

    def _begun(self, offset: int, length: int) -> set[int]:
        """Pages of which a part was read not long ago, and now another part: that is one reading,
        not two."""
        ends = {byte >> PAGE_SHIFT for byte in (offset, offset + length) if byte & _PAGE_MASK}
        with self._lock:
            begun = ends.intersection(self._read_in_part)
            self._read_in_part.extend(ends - begun)
        return begun

    def _read_pages(self, first: int, out: memoryview, begun: Collection[int] = ()) -> None:
        """Whole pages, all of them in the table; those `begun` are not put. Where the table has no
        memory yet it is not looked at: nobody waits for memory with the store's lock."""
        count = len(out) >> PAGE_SHIFT
        if count and not self._pages.table.is_populated(first, first + count):
            with self._lock:
                self._gets += count
                self._misses += count
            self._read_file(first << PAGE_SHIFT, out)
            return
        missing = self.store.find(self._pages, first, out)
        with self._lock:
            self._gets += count
            self._misses += len(missing)
        for pages in _runs(missing, begun):
            part = out[pages.start - first << PAGE_SHIFT : pages.stop - first << PAGE_SHIFT]
            self._read_missing(pages, part, pages.start not in begun)

    def _read_missing(self, pages: range, out: memoryview, may_be_put: bool) -> None:
        with self._lock:
            may_be_put = may_be_put and not any(_overlap(pages, change) for change in self._changes)
            reading = _Reading(pages, may_be_put)
            self._readings.append(reading)
        has_read = False
        try:
            self._read_file(pages.start << PAGE_SHIFT, out)
            has_read = True
        finally:
            with self._lock:
                self._readings.remove(reading)
                if has_read and reading.may_be_put:
                    self._put(pages.start, out)

    def _put(self, first: int, data: memoryview) -> None:
        """Whatever becomes of it, the read has its data."""
        try:
            self.store.put(self._pages, first, data)
        except Exception as error:
            self._errors["put"] = f"{type(error).__name__}: {error}"
        else:
            self._errors.pop("put", None)

    @contextmanager
    def _changing(self, offset: int, length: int) -> Iterator[None]:
        """No page of the range is in the pool, nor comes into it, as long as the context is
        entered."""
        pages = self._pages_of(offset, length)
        with self._lock:
            self._changed += 1
            self._changes.append(pages)
            for reading in self._readings:
                reading.may_be_put &= not _overlap(pages, reading.pages)
        try:
            self.store.flush(self._pages, pages.start, len(pages))  # nothing can be put any more
            yield
        finally:
            with self._lock:
                self._changes.remove(pages)  # or an equal one

    def _pages_of(self, offset: int, length: int) -> range:
        """Those that a range of bytes touches, as far as they are cached."""
        stop = min(offset + length + _PAGE_MASK >> PAGE_SHIFT, self._page_count)
        return range(min(offset >> PAGE_SHIFT, stop), stop)

    def _read_file(self, offset: int, out: memoryview) -> None:
        with self._noting("read"):
            self._file.read(offset, out)
        with self._lock:
            self._reads += 1

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """Remember an error until the same goes well."""
        try:
            yield
        except OSError as error:
            self._errors[what] = error.strerror or str(error)
            raise
        if self._errors:
            self._errors.pop(what, None)

    # -- looking on, and the end
    # --------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Counters since the start: pages that were asked for, and missed; requests to the file."""
        with self._lock:
            return {
                "name": self.name,
                "size_bytes": self.size_bytes,
                "read_only": self.read_only,
                "gets": self._gets,
                "misses": self._misses,
                "file_reads": self._reads,
                "file_changes": self._changed,
            }

    def troubles(self) -> list[str]:
        """What went wrong, and has not gone well since."""
        return [f"clean export {self.name}: {what}: {why}" for what, why in list(self._errors.items())]

    def fileno(self) -> int:
        """The file's descriptor, which a successor is given."""
        return self._file.fileno()

    def close(self) -> None:
        """Flush the object, and let go of the file; no request is under way."""
        self.store.flush_object(self._pages)
        self._file.close()


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _runs(pages: Iterable[int], apart: Collection[int]) -> Iterator[range]:
    """Ascending page numbers as runs of at most `MAX_RUN_PAGES`, for what is compressed under one
    lock is bounded; those that stand `apart` as runs of their own."""
    start = stop = -1
    for page in pages:
        if page == stop and stop - start < MAX_RUN_PAGES and page not in apart and start not in apart:
            stop += 1
            continue
        if stop > start:
            yield range(start, stop)
        start, stop = page, page + 1
    if stop > start:
        yield range(start, stop)

"""`Region`: memory that is larger than the RAM it may take. The client's half of the pager."""

import contextlib
import math
import mmap
import operator
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from zcache.errors import BadInput, EnvironmentProblem, Imbalance
from zcache.linux import memory
from zcache.linux.libc import LIBC, raise_errno
from zcache.pager.link import Link
from zcache.pager.numpy_hook import allocate_in_for_good, allocating_in, new_arena
from zcache.pager.region_file import LEAST_LIMIT_BYTES
from zcache.pages.entry import PAGE_BYTES
from zcache.sizes import parse_size

MADV_DONTFORK: Final = 10
MADV_NOHUGEPAGE: Final = 15

#: Of each region that is there: where it lies, how long it is, and its link.
_LIVE: "weakref.WeakKeyDictionary[mmap.mmap, tuple[int, int, Link]]" = weakref.WeakKeyDictionary()


def _leave_nothing_to_a_child() -> None:
    """What lay there must be no memory at all: neither zeros, nor what the child maps next."""
    for start, size_bytes, link in list(_LIVE.values()):
        memory.map_nothing_over(start, start + size_bytes)
        link.abandon()


os.register_at_fork(after_in_child=_leave_nothing_to_a_child)


class Region:
    """`size` bytes (rounded up to whole pages) of which at most `resident_limit` are in RAM as they
    are; the rest is compressed, by `parameters` of the store (`budget`, `backing`, `codec`, …): in
    a pager of its own, or in the one that serves at the socket `pager` (`zcache pager`).

    `buffer` is the memory, as a memoryview; so are slices of it. Sizes are bytes, or words such as
    "2G". With `user_mode_only`, nobody's permission is needed, and a system call that reads or
    writes a page of it which is not resident fails (EFAULT). Raises `BadInput`, and
    `EnvironmentProblem` where the kernel refuses userfaultfd.

    The memory is there as long as anything refers to it: a slice, an array, or the region."""

    def __init__(
        self,
        size: int | str,
        resident_limit: int | str,
        *,
        pager: str | os.PathLike[str] | None = None,
        user_mode_only: bool = False,
        **parameters: object,
    ) -> None:
        if pager is not None and parameters:
            raise BadInput(f"{next(iter(parameters))}=: the store of pager={pager} is told that when it is started")
        size_bytes = -(-_bytes("size", size) // PAGE_BYTES) * PAGE_BYTES
        limit_bytes = _bytes("resident_limit", resident_limit) // PAGE_BYTES * PAGE_BYTES
        if size_bytes <= 0:
            raise BadInput(f"size={size}: give a size above 0")
        if limit_bytes < LEAST_LIMIT_BYTES:
            raise BadInput(f"resident_limit={resident_limit}: give at least {LEAST_LIMIT_BYTES >> 20}M")
        if limit_bytes >= size_bytes:
            raise BadInput(f"resident_limit={resident_limit}: the whole of size={size} fits; give less, or no region")
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes
        self._lock = threading.Lock()
        self._arena: Any = None
        self._arena_begin = self._threshold_bytes = 0
        self._array_bytes = 0  # where the next array begins
        self._link = Link(size_bytes, user_mode_only)
        try:
            self._memory = mmap.mmap(self._link.memfd, size_bytes)
            start = memory.address(self._memory)
            if LIBC.madvise(start, size_bytes, MADV_DONTFORK) < 0:
                raise_errno()
            LIBC.madvise(start, size_bytes, MADV_NOHUGEPAGE)  # refused by a kernel that has none
            words = {key: str(value) for key, value in parameters.items()}
            self._link.connect(start, limit_bytes, words, Path(pager) if pager is not None else None)
        except BaseException:
            self._link.close()
            raise
        self._end = weakref.finalize(self._memory, self._link.close)
        self._end.atexit = False  # the kernel does it, after all that may touch the memory
        _LIVE[self._memory] = (start, size_bytes, self._link)
        self.buffer = memoryview(self._memory)

    def __enter__(self) -> "Region":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What an exception's traceback refers to is no error of its own: it goes with that.
        with contextlib.suppress(*([BufferError] if kind else [])):
            self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a region is memory of this process, and cannot be pickled: pickle what is in it")

    def __len__(self) -> int:
        return self.size_bytes

    @property
    def resident_bytes(self) -> int:
        """What of it is in RAM as it is; of one that was closed, nothing."""
        return 0 if self._link.memfd < 0 else os.fstat(self._link.memfd).st_blocks * 512

    def array(self, shape: Any, dtype: Any = "float64") -> Any:
        """A NumPy array in the region, behind those that were made before, of what is there: zeros,
        if nobody wrote. Raises `BadInput` if it does not fit, or holds objects, which cannot be
        found there."""
        import numpy

        self._check_open()
        kind = numpy.dtype(dtype)
        if kind.hasobject:
            raise BadInput(f"dtype={dtype}: objects stay in ordinary memory; give a type of numbers")
        wanted = tuple(map(operator.index, [shape] if hasattr(shape, "__index__") else shape))
        if min(wanted, default=0) < 0:
            raise BadInput(f"shape={shape}: give no negative numbers")
        size_bytes = math.prod(wanted) * kind.itemsize
        with self._lock:
            begin = self._array_bytes
            if begin + size_bytes > self.size_bytes:
                left = self.size_bytes - begin
                raise BadInput(f"an array of {size_bytes} bytes does not fit in the {left} that are left of the region")
            array = numpy.frombuffer(self.buffer[begin : begin + size_bytes], dtype=kind).reshape(wanted)
            self._array_bytes = -(-(begin + size_bytes) // PAGE_BYTES) * PAGE_BYTES
        return array

    @contextlib.contextmanager
    def numpy(self, threshold: int | str = "1M") -> Iterator[None]:
        """Arrays of at least `threshold` bytes that anything makes meanwhile, in this thread, lie
        in what `array` has left of the region; what does not fit, and smaller ones, in ordinary
        memory. Raises `EnvironmentProblem` where that is not compiled."""
        with allocating_in(self._arena_for(threshold)):
            yield

    def numpy_for_good(self, threshold: int | str = "1M") -> None:
        """The same for all threads, and for as long as the process lives: the region cannot be
        closed any more. (`zcache run` does this.) Raises `EnvironmentProblem`, too, for a NumPy
        whose own handler was replaced by somebody else."""
        allocate_in_for_good(self._arena_for(threshold))

    def _arena_for(self, threshold: int | str) -> Any:
        self._check_open()
        least = max(_bytes("threshold", threshold), PAGE_BYTES)
        with self._lock:
            if self._arena is None:
                begin, left = self._array_bytes, self.size_bytes - self._array_bytes
                if not left:
                    raise BadInput("nothing is left of the region for region.numpy")
                arena = new_arena(self._memory, begin, left, least, self._link.forgetting)
                self._link.ask("forget", begin // PAGE_BYTES, self.size_bytes // PAGE_BYTES)  # it has to be zeros
                self._arena, self._arena_begin, self._array_bytes = arena, begin, self.size_bytes
                self._threshold_bytes = least
            if least != self._threshold_bytes:
                raise BadInput(f"threshold={threshold}: it was {self._threshold_bytes} bytes before; give the same")
        return self._arena

    def _check_open(self) -> None:
        if not self._end.alive:
            raise EnvironmentProblem("the region is closed")

    @property
    def numpy_bytes(self) -> tuple[int, int]:
        """What arrays by `numpy` take of the region now, and the most that they took."""
        figures: tuple[int, int] = self._arena.figures() if self._arena else (0, 0)
        return figures

    def advise(self, advice: int, start: int = 0, length: int | None = None) -> None:
        """As `mmap.madvise`, of bytes of the region: `mmap.MADV_WILLNEED` brings pages back, as far
        as there is room; `MADV_DONTNEED` forgets what is in all pages that lie within, which then
        read as zeros. Raises `BadInput` for other advice, and for bytes that there are not."""
        stop = self.size_bytes if length is None else start + length
        if not 0 <= start <= stop <= self.size_bytes:
            raise BadInput(f"bytes {start} to {stop}: not within the {self.size_bytes} of the region")
        if advice == mmap.MADV_WILLNEED:
            self._link.ask("will_need", start // PAGE_BYTES, -(-stop // PAGE_BYTES))
        elif advice == mmap.MADV_DONTNEED:
            self._link.ask("forget", -(-start // PAGE_BYTES), max(stop // PAGE_BYTES, -(-start // PAGE_BYTES)))
        else:
            raise BadInput(f"advice {advice}: give mmap.MADV_WILLNEED or mmap.MADV_DONTNEED")

    def status(self) -> dict[str, Any]:
        """The pager's figures, and who they are: `pid` and `keeper_pid`."""
        return self._link.ask("status") | {"keeper_pid": self._link.keeper_pid}

    def check(self) -> dict[str, int]:
        """Whether the books balance, of the region and of its pager's store, page by page: what was
        counted. Raises `Imbalance` with the first thing that is wrong."""
        found = self._link.ask("check")
        if not found.pop("balanced"):
            raise Imbalance(found["imbalance"])
        return found

    def close(self) -> None:
        """Give it all back. While there are slices of its buffer, arrays in it, or any that were
        made by `numpy`, that is a `BufferError`, and the region stays as it is."""
        self.buffer.release()
        had_arena = self._arena is not None
        arena = weakref.ref(self._arena) if had_arena else None
        self._arena = None  # which arrays keep
        try:
            self._memory.close()
        except BufferError:
            self.buffer, self._arena = memoryview(self._memory), arena and arena()
            if had_arena and self._arena is None:
                self._array_bytes = self._arena_begin
            raise BufferError("arrays in the region, or slices of its buffer, are left: del them first") from None
        self._end()


def _bytes(name: str, size: int | str) -> int:
    if isinstance(size, str):
        return parse_size(name, size)
    try:
        return operator.index(size)
    except TypeError:
        raise BadInput(f"{name}={size}: give whole bytes, or a text such as '512M'") from None

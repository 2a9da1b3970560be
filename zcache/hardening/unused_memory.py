"""Memory that nbdkit asks for and a zcache server never uses: not promised by the kernel for
nothing.

nbdkit's .bss is 192 MiB: buffers to emulate writing zeros and caching with, which the plugin does
itself. They cost nothing until they are touched, but for two things: under strict overcommit
(`vm.overcommit_memory=2`) the kernel sets 192 MiB aside for each server, and as much again for an
heir; and they count for `ulimit -d`. So what was never touched is mapped anew, as shared memory,
which counts where it is touched.

It reads as zeros, and can be written. But a process and its heir, a copy made by fork(2), then have
it together: what one writes the other reads. So only the insides of the buffers may be mapped anew,
which nobody uses, and no variable near them: a lock that both had would stop both.
"""

import array
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zcache.hardening.program import end_of_object
from zcache.linux import memory
from zcache.linux.kernel_page import KERNEL_PAGE_BYTES

#: Smaller stretches are left alone: a mapping each.
LEAST_BYTES: Final = 1 << 20

#: Of each of nbdkit's buffers: its largest request. All else in its .bss (784 bytes in 1.32.5) lies
#: before the first of them, between two or behind the last, and may share a page with one. That
#: page need not be touched yet.
BUFFER_BYTES: Final = 64 << 20
#: So this much stays as it is at both ends of each stretch: more than all those variables, and
#: whole pages anywhere.
MARGIN_BYTES: Final = 64 << 10

_PAGEMAP_WORD_BYTES: Final = 8
_READ_WORDS: Final = 1 << 13
#: In RAM, or in swap (Documentation/admin-guide/mm/pagemap.rst).
_TOUCHED: Final = 3 << 62


def release_unused_bss(program: str = "nbdkit") -> None:
    """Of the process's program, while it has one thread. Raises `OSError`."""
    spans = [*_releasable(program)]
    if not spans:
        return
    sizes = [stop - start for start, stop in spans]
    descriptor = os.memfd_create("zcache-unused", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, sum(sizes))
        for (start, stop), offset in zip(spans, itertools.accumulate(sizes, initial=0), strict=False):
            memory.map_shared_over(start, stop, descriptor, offset)
    finally:
        os.close(descriptor)


def _releasable(program: str) -> Iterator[tuple[int, int]]:
    """Stretches of the insides of the buffers."""
    for bss_start, bss_stop in bss_of(program):
        for buffer in range(bss_start, bss_stop, BUFFER_BYTES):
            for start, stop in _untouched(buffer, min(buffer + BUFFER_BYTES, bss_stop)):
                yield start + MARGIN_BYTES, stop - MARGIN_BYTES


def bss_of(program: str) -> Iterator[tuple[int, int]]:
    """What the program has beyond its file: at most the anonymous mapping that follows those of the
    file (`program.py` says why not all of it)."""
    followed = end = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, _, _, _, *path = line.split(maxsplit=5)
        start, stop = (int(end, 16) for end in span.split("-"))
        if path and path[0].rpartition("/")[2] == program:
            end = end or end_of_object(start)
            followed = stop
            continue
        if not path and start == followed < end and access == "rw-p":
            yield start, min(stop, end)
        followed = 0


def _untouched(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Stretches of whole pages that were never touched."""
    size = KERNEL_PAGE_BYTES
    begin = None
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(start // size * _PAGEMAP_WORD_BYTES)
        position = start
        while position < stop:
            words = array.array("Q", pagemap.read(min((stop - position) // size, _READ_WORDS) * _PAGEMAP_WORD_BYTES))
            if not words:
                break
            for word in words:
                is_touched = bool(word & _TOUCHED)
                if not is_touched and begin is None:
                    begin = position
                elif is_touched and begin is not None:
                    if position - begin >= LEAST_BYTES:
                        yield begin, position
                    begin = None
                position += size
    if begin is not None and position - begin >= LEAST_BYTES:
        yield begin, position

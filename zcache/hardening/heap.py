"""The heap: made large enough once, so that no request of the kernel's grows it, trims it, or maps
memory.

By default malloc maps each block of 128 KiB and more afresh (a request's buffer is one) and gives
the top of the heap back when it is free: system calls for memory on each request. Several arenas
would multiply all that by the threads. So: one arena, no trimming, a heap that has room for what
requests need before the first one comes, and mmap only for what is larger than any of them.

CPython's own allocator for small objects would take arenas of 1 MiB with mmap and touch them as
they fill. With PYTHONMALLOC=malloc in the environment (scripts/serve sets it) there is one heap for
all, and it is populated to its end.

nbdkit's buffer for a connection is as large as its largest request, which may be 64 MiB, and is
locked. Of a swap device requests are small. What larger ones of other clients find no room for in
the heap is mapped apart, and gone with its connection. In a heap that grew for it, any small block
that came to lie behind it would have kept it for good.
"""

import contextlib
from collections.abc import Iterator
from typing import Final

from zcache.linux import libc, memory
from zcache.linux.kernel_page import page_end, page_start

#: Room for requests of 128 KiB: nbdkit's buffers and our copies, of a few connections; measured use
#: is below 2 MiB.
HEAP_BYTES: Final = 4 << 20
#: Larger blocks, which do not fit in it, are mapped, each for itself. The largest that a request
#: makes in Python is of 260 KiB.
LARGEST_BYTES: Final = 512 << 10
#: As many of these (malloc's own default).
MOST_MAPPED: Final = 65536


def fix_heap() -> None:
    """Apply all of the above, in the process's only thread."""
    libc.mallopt(libc.M_ARENA_MAX, 1)
    libc.mallopt(libc.M_MMAP_THRESHOLD, LARGEST_BYTES)
    libc.mallopt(libc.M_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(libc.M_TOP_PAD, 1 << 20)
    with _reserve() as address:
        memory.fill(address, HEAP_BYTES)


def give_back_free_memory() -> None:
    """In a copy made by fork(2), which has nothing locked, and one thread: let go of what is free
    on the heap, whose end stays where it is. It comes back page by page as it is touched, or by
    `program.unshare`."""
    libc.malloc_trim(2 * HEAP_BYTES)
    with _reserve() as address:
        memory.drop_range(page_end(address), page_start(address + HEAP_BYTES))


@contextlib.contextmanager
def _reserve() -> Iterator[int]:
    """A block of `HEAP_BYTES` in the heap, which is made to hold one: where it is."""
    libc.mallopt(libc.M_MMAP_MAX, 0)
    address = libc.malloc(HEAP_BYTES)
    try:
        yield address
    finally:
        libc.free(address)
        libc.mallopt(libc.M_MMAP_MAX, MOST_MAPPED)


def heap_is_fixed() -> bool:
    """Whether the blocks of requests and small objects come from the heap as it stands, and giving
    them back leaves it as it is."""
    end = libc.program_break()
    address = libc.malloc(LARGEST_BYTES // 2)
    libc.free(address)
    small = id(object())
    return address < end and end - (256 << 20) < small < end and libc.program_break() == end

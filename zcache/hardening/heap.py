"""The heap: made large enough once, and then kept from growing, trimming, and using mmap.

By default malloc maps each block of 128 KiB and more afresh (a request's buffer is one) and gives
the top of the heap back when it is free: system calls for memory on each request. Several arenas
would multiply all that by the threads. So: one arena, no mmap, no trimming, and a heap that has
room for what requests need before the first one comes.

CPython's own allocator for small objects would take arenas of 1 MiB with mmap and touch them as
they fill. With PYTHONMALLOC=malloc in the environment (scripts/serve sets it) there is one heap for
all, and it is populated to its end.

nbdkit's buffer for a connection is as large as its largest request, which may be 64 MiB. Of a swap
device requests are small; what others made the heap grow by is given back when they have gone
(`GrownHeap`), for it is locked.
"""

import threading
import time
from typing import Final

from zcache.linux import libc, memory
from zcache.linux.kernel_page import page_end, page_start

#: Room for requests of 128 KiB: nbdkit's buffers and our copies, of a few connections; measured use
#: is below 2 MiB.
HEAP_BYTES: Final = 4 << 20
#: More than this beyond its end at the start is given back, if it is free; looked at so often.
GROWN_BYTES: Final = 16 << 20
LOOK_SECONDS: Final = 2.0


def fix_heap() -> None:
    """Apply all of the above, in the process's only thread."""
    libc.mallopt(libc.M_ARENA_MAX, 1)
    libc.mallopt(libc.M_MMAP_MAX, 0)
    libc.mallopt(libc.M_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(libc.M_TOP_PAD, 1 << 20)
    address = libc.malloc(HEAP_BYTES)
    memory.fill(address, HEAP_BYTES)
    libc.free(address)


def give_back_free_memory() -> None:
    """In a copy made by fork(2), which has nothing locked: let go of what is free on the heap,
    whose end stays where it is. It comes back page by page as it is touched, or by
    `program.unshare`."""
    libc.malloc_trim(2 * HEAP_BYTES)
    address = libc.malloc(HEAP_BYTES)
    memory.drop_range(page_end(address), page_start(address + HEAP_BYTES))
    libc.free(address)


class GrownHeap:
    """A heap that has grown since this was made. For one thread.

    Whoever waits for memory with the address space's lock (madvise(2), to populate) holds
    `populating` meanwhile: to give back is to wait for that lock with malloc's own, and so with all
    threads.
    """

    def __init__(self, populating: threading.Lock) -> None:
        self._populating = populating
        self._end = libc.program_break()
        self._looked_seconds = 0.0

    def give_back(self) -> None:
        """At its end, what is free. Costs nothing while the heap is as it was."""
        if libc.program_break() > self._end + GROWN_BYTES:
            now = time.monotonic()
            if now > self._looked_seconds + LOOK_SECONDS:
                self._looked_seconds = now
                if self._populating.acquire(blocking=False):
                    try:
                        libc.malloc_trim(2 * HEAP_BYTES)
                    finally:
                        self._populating.release()


def heap_is_fixed() -> bool:
    """Whether large blocks and small objects come from the heap as it stands, and giving them back
    leaves it as it is."""
    end = libc.program_break()
    address = libc.malloc(1 << 20)
    libc.free(address)
    small = id(object())
    return address < end and end - (256 << 20) < small < end and libc.program_break() == end

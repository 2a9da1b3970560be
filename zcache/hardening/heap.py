"""The heap: made large enough once, and then kept from growing, trimming, and using mmap.

By default malloc maps each block of 128 KiB and more afresh (a request's buffer is one) and gives the top of the heap
back when it is free: system calls for memory on each request. Several arenas would multiply all that by the threads.
So: one arena, no mmap, no trimming, and a heap that has room for what requests need before the first one comes.

CPython's own allocator for small objects takes arenas of 1 MiB with mmap and gives an arena back as soon as it is
empty. A small object kept alive in each of a few arenas ("ballast") keeps them all.
"""

from typing import Final

from zcache import libc

#: Room for requests: nbdkit's buffers and our copies for 16 threads of 128 KiB requests come to 8 MiB; measured use
#: is below 2 MiB.
HEAP_BYTES: Final = 3 << 20

#: Small objects of steady serving live in well under 1 MiB; twice that is kept.
PYTHON_ARENAS: Final = 2
_ARENA_BYTES: Final = 1 << 20
_SMALL_BYTES: Final = 480  # with its header the largest size that CPython's small-object allocator serves

_ballast: list[bytes] = []


def fix_heap() -> None:
    """Apply all of the above, in the process's only thread."""
    libc.mallopt(libc.M_ARENA_MAX, 1)
    libc.mallopt(libc.M_MMAP_MAX, 0)
    libc.mallopt(libc.M_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(libc.M_TOP_PAD, 1 << 20)
    address = libc.malloc(HEAP_BYTES)
    libc.fill(address, HEAP_BYTES)
    libc.free(address)
    small = [bytes(_SMALL_BYTES) for _ in range(PYTHON_ARENAS * _ARENA_BYTES // (_SMALL_BYTES + 32))]
    _ballast[:] = small[:: len(small) // (4 * PYTHON_ARENAS)]


def heap_is_fixed() -> bool:
    """Whether a large block comes from the heap as it stands, and giving it back leaves the heap as it is."""
    end = libc.program_break()
    address = libc.malloc(1 << 20)
    libc.free(address)
    return address < end and libc.program_break() == end

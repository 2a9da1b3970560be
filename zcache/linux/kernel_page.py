"""The kernel's page: what memory is mapped, locked, populated and given back in. 4 KiB on x86-64;
4, 16 or 64 KiB on arm64, as the kernel was built.

It is not the device's page (`entry.PAGE_BYTES`), which is 4 KiB everywhere: a kernel with larger
pages swaps with larger requests, and nothing else changes. Nor is it a pageframe: zbud's frames are
smaller than such a page, and then several share one.

What depends on it takes it as a parameter, `page_bytes`, so that a test can give another size than
this machine has.
"""

import mmap
from typing import Final

#: Of the kernel that runs: sysconf(_SC_PAGESIZE). A power of two.
KERNEL_PAGE_BYTES: Final = mmap.PAGESIZE


def page_start(offset: int, page_bytes: int = KERNEL_PAGE_BYTES) -> int:
    """Where the page begins that holds byte `offset`."""
    return offset & -page_bytes


def page_end(offset: int, page_bytes: int = KERNEL_PAGE_BYTES) -> int:
    """Where the page ends that holds the byte before `offset`: `offset` itself, if a page begins
    there."""
    return (offset + page_bytes - 1) & -page_bytes

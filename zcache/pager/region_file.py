"""The file of a region's memory: made by its client, looked at by whoever is given it."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import Final

from zcache.errors import BadInput

#: Of a limit: what a batch that leaves, and those that come meanwhile, need to get on.
LEAST_LIMIT_BYTES: Final = 1 << 20
#: What keeps a file as long as it is.
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def new_memfd(size_bytes: int) -> int:
    """A file for a region's memory, that stays as long as it is."""
    descriptor = os.memfd_create("zcache-region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_descriptors(descriptor: int, memfd: int, forgetting: int, size_bytes: int) -> None:
    """Raises `BadInput` if the first is no userfaultfd, the second no file of that length, or one
    that might have another later, or the third no socket that keeps messages apart."""
    seals = 0
    with contextlib.suppress(OSError):  # no memfd
        seals = fcntl.fcntl(memfd, fcntl.F_GET_SEALS)
    kind = str(Path(f"/proc/self/fd/{descriptor}").readlink())
    if kind != "anon_inode:[userfaultfd]" or seals & SEALS != SEALS or os.fstat(memfd).st_size != size_bytes:
        raise BadInput(f"a region is a userfaultfd, and a sealed memfd of its size, {size_bytes} bytes")
    kinds: tuple[int, int] | None = None
    with contextlib.suppress(OSError):
        end = socket.socket(fileno=forgetting)
        kinds = end.family, end.type
        end.detach()
    if kinds != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        raise BadInput("pages are forgotten at a Unix socket of sequenced packets")

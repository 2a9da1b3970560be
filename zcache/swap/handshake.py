"""The NBD handshake, by libnbd, and the connected socket that comes out of it for the kernel to go
on with.

The kernel speaks only the transmission phase, with simple replies, so structured ones must not be
negotiated. libnbd never says goodbye unless told to: closing its handle after the descriptor was
duplicated leaves the connection as it is.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbd

from zcache.errors import SwapError
from zcache.image.signs import DEVICE_EXPORT
from zcache.linux.kernel_page import KERNEL_PAGE_BYTES

# linux/nbd.h; the flags of the NBD protocol's transmission phase, of which the kernel uses these.
NBD_FLAG_HAS_FLAGS = 1 << 0
NBD_FLAG_READ_ONLY = 1 << 1
NBD_FLAG_SEND_FLUSH = 1 << 2
NBD_FLAG_SEND_FUA = 1 << 3
NBD_FLAG_SEND_TRIM = 1 << 5
NBD_FLAG_CAN_MULTI_CONN = 1 << 8

#: mkswap's MIN_GOODPAGES.
LEAST_PAGES = 10


@dataclass(frozen=True)
class Export:
    """What the server offers."""

    size_bytes: int
    flags: int

    @property
    def can_trim(self) -> bool:
        return bool(self.flags & NBD_FLAG_SEND_TRIM)

    def check(self, discard: bool, page_bytes: int = KERNEL_PAGE_BYTES) -> None:
        """Say now, in one line, what would otherwise fail later, or silently do nothing."""
        if self.flags & NBD_FLAG_READ_ONLY:
            raise SwapError("the server offers a read-only device, which cannot be swapped to")
        least_bytes = LEAST_PAGES * page_bytes
        if self.size_bytes < least_bytes:
            raise SwapError(
                f"a device of {self.size_bytes} bytes is too small: mkswap wants ten pages of the kernel's; give at "
                f"least size={least_bytes >> 10}K"
            )
        if discard and not self.can_trim:
            raise SwapError("--discard needs a server that takes trims, and this one does not")


def _read_export(handle: "nbd.NBD") -> Export:
    flags = NBD_FLAG_HAS_FLAGS
    for answer, flag in (
        (handle.is_read_only(), NBD_FLAG_READ_ONLY),
        (handle.can_flush(), NBD_FLAG_SEND_FLUSH),
        (handle.can_fua(), NBD_FLAG_SEND_FUA),
        (handle.can_trim(), NBD_FLAG_SEND_TRIM),
        (handle.can_multi_conn(), NBD_FLAG_CAN_MULTI_CONN),
    ):
        flags |= flag if answer else 0
    return Export(handle.get_size(), flags)


@contextlib.contextmanager
def connection(socket: Path, name: str = DEVICE_EXPORT) -> Iterator[tuple[Export, int]]:
    """The device's connection, or another export's, past its handshake; closed at the end, for the
    kernel holds its own."""
    handle = nbd.NBD()
    handle.set_request_structured_replies(False)
    handle.set_export_name(name)
    try:
        handle.connect_unix(str(socket))
    except nbd.Error as error:
        raise SwapError(f"the handshake with the server failed: {error.string}") from error
    export = _read_export(handle)
    fd = os.dup(handle.aio_get_fd())
    del handle
    try:
        yield export, fd
    finally:
        os.close(fd)

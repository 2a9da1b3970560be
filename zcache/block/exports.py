"""What a client can connect to, by name: the swap device, and clean exports.

The device has the names `device`, which is also what a client gets that asks for none, and `swap`,
under which the kernel's own connection is known and counted (`zcache.image.signs.DEVICE_EXPORT`).
Where there are no clean exports, any other name means the device as well; where there are, it is an
error: a slip of the pen must not lead to swap.
"""

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from zcache.errors import BadInput
from zcache.server.config import DEVICE_NAME, RESERVED

#: Of names in a message: of one that a client made up, and how many there are to choose from.
_SHOWN_LENGTH: Final = 64
_SHOWN_NAMES: Final = 10


class Disk(Protocol):
    """What an export does. Offsets and lengths are bytes within `size_bytes`."""

    name: str
    size_bytes: int
    read_only: bool

    def read(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset`."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`."""

    def trim(self, offset: int, length: int) -> None:
        """What is there is of no use any more."""

    def zero(self, offset: int, length: int, may_trim: bool, is_fast: bool) -> bool:
        """Make a range read as zeros. False, and nothing has changed, if it must be fast and cannot
        be."""

    def flush(self) -> None:
        """Return when everything that was written is as durable as it will be."""

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Runs (offset, length, reads as zeros) that cover the range; the first may begin before
        it."""


class Exports:
    """The disks of one server: the device, and clean ones by name."""

    def __init__(self, device: Disk, clean: Mapping[str, Disk]) -> None:
        self.device = device
        self.clean = clean

    def find(self, name: str) -> Disk:
        """Raises `BadInput` if there is no such export."""
        if name in self.clean:
            return self.clean[name]
        if self.clean and name not in RESERVED:
            names = [DEVICE_NAME, *self.clean]
            more = ["…"] * (len(names) > _SHOWN_NAMES)
            there = ", ".join([*names[:_SHOWN_NAMES], *more])
            raise BadInput(f"no export is called {name[:_SHOWN_LENGTH]!r}; there are {there}")
        return self.device

    def list(self) -> Iterator[tuple[str, str]]:
        """Names and what they are, for whoever looks round."""
        yield DEVICE_NAME, "compressed swap"
        for name, disk in self.clean.items():
            yield name, f"clean: a disk, {'read-only, ' if disk.read_only else ''}with a compressed cache"

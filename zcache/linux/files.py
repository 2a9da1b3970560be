"""What a file or device says of itself, and why it could not be opened."""

import errno
import os
from collections.abc import Iterator


def data_extents(descriptor: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The parts of a file, from `start` to `stop`, that are not holes; all of it where the file
    cannot tell (a block device)."""
    while start < stop:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            end = stop
        if start >= stop:
            return
        yield start, min(end, stop)
        start = end


def why_not_opened(error: OSError, missing: str = "does not exist") -> str:
    """In words that go on after its name and a colon; `missing` if it, or its folder, is."""
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return missing
        case errno.EISDIR:
            return "is a directory"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "cannot be opened (read-only, or no permission)"
        case errno.EBUSY:
            return "in use: mounted, swapped on, or held by another program"
        case _:
            return os.strerror(error.errno or 0)

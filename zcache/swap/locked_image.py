"""The image as its keeper holds it: a memfd, mapped, and locked as far as it is populated.

A memfd is swappable: a lock on it holds for pages that the locking process has mapped in. So the keeper maps the
whole of it and faults in, several times a second, what the server has populated since: the server is always well ahead
of what is in use. Every page is then locked twice, and still once when the server is gone.
"""

import mmap
import os

from zcache import image, libc


class LockedImage:
    """Locks nothing by itself: the process that has it does, on fault (`zcache.hardening`)."""

    def __init__(self) -> None:
        self.descriptor = image.new_descriptor()
        self.signs: image.Signs | None = None  # once a server has laid the image out
        self._memory: mmap.mmap | None = None
        self._blocks = 0

    def keep(self) -> None:
        """Fault in what has come since the last call; nothing is ever let go."""
        status = os.fstat(self.descriptor)
        if not status.st_size or status.st_blocks == self._blocks:
            return
        if self._memory is None:
            self._memory = mmap.mmap(self.descriptor, status.st_size)
            self.signs = image.Signs(self.descriptor)
        start = 0
        address = libc.address(self._memory)
        while True:
            try:
                start = os.lseek(self.descriptor, start, os.SEEK_DATA)
            except OSError:  # nothing but a hole from here on
                break
            stop = os.lseek(self.descriptor, start, os.SEEK_HOLE)
            libc.populate_range(address + start, address + stop, write=False)
            start = stop
        self._blocks = status.st_blocks

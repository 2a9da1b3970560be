"""The image as its keeper holds it: a memfd, mapped, and locked as far as it is populated.

A memfd is swappable: a lock on it holds for pages that the locking process has mapped in. So the
keeper maps the whole of it and faults in, several times a second, what the server has populated
since: the server is always well ahead of what is in use. Every page is then locked twice, and still
once when the server is gone. What the server gives back to the system (a hole, when its budget
shrinks) is gone here, too; when the budget has changed, all is looked at anew.
"""

import mmap
import os
import sys
from collections.abc import Iterator

from zcache.image import image
from zcache.image.signs import Signs
from zcache.linux import libc, memory
from zcache.linux.kernel_page import page_start


class LockedImage:
    """Locks nothing by itself: the process that has it does, on fault (`zcache.hardening`)."""

    def __init__(self) -> None:
        self.descriptor = image.new_descriptor()
        self.signs: Signs | None = None  # once a server has laid the image out
        self.memory: mmap.mmap | None = None
        self._blocks = 0
        self._kept: list[tuple[int, int]] = []  # runs of bytes that are faulted in, in order
        self._budget_changes = 0  # that have been seen

    def keep(self) -> None:
        """Fault in what has come since the last call; only the server lets anything go. Raises
        `OSError` if some of it cannot be had; the next call tries all of it again."""
        status = os.fstat(self.descriptor)
        if not status.st_size:
            return
        if self.memory is None or self.signs is None:
            self.memory = mmap.mmap(self.descriptor, status.st_size)
            self.signs = Signs(self.descriptor)
        changes = self.signs.budget_changes
        if changes != self._budget_changes:
            self._kept, self._blocks = [], -1
        if status.st_blocks == self._blocks:
            return
        address = memory.address(self.memory)
        populated = list(self._populated())
        failure = None
        for start, stop in _without(populated, self._kept):
            failure = _populate(address + start, address + stop) or failure
        if failure:
            raise failure
        self._kept = populated
        self._blocks = status.st_blocks
        self._budget_changes = changes

    def _populated(self) -> Iterator[tuple[int, int]]:
        stop = 0
        while True:
            try:
                start = os.lseek(self.descriptor, stop, os.SEEK_DATA)
            except OSError:  # nothing but a hole from here on
                return
            stop = os.lseek(self.descriptor, start, os.SEEK_HOLE)
            yield start, stop


def _populate(start: int, stop: int) -> OSError | None:
    """What went wrong, if something did. A page that is damaged keeps no other from being kept."""
    try:
        memory.populate_range(start, stop, write=False)
    except OSError as error:
        middle = page_start((start + stop) // 2)
        if error.errno == libc.EHWPOISON and middle > start:
            _populate(start, middle)
            _populate(middle, stop)
        return error
    return None


def _without(runs: list[tuple[int, int]], known: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of `runs` is not in `known`, each of which lies within one of them; both are in
    order."""
    left = iter([*known, (sys.maxsize, sys.maxsize)])
    known_start, known_stop = next(left)
    for start, stop in runs:
        while known_start < stop:
            if start < known_start:
                yield start, known_start
            start = known_stop
            known_start, known_stop = next(left)
        if start < stop:
            yield start, stop

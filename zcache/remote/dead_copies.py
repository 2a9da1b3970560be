"""Copies that nobody wants any more, until the mender has removed them: a ring of fixed size.

Locking: its owner's (`Copies.lock`). Cost: 9 bytes for each that it has room for.
"""

from typing import Final

from zcache.image.flat_array import FlatArray

#: Copies that wait to be removed.
DEAD_COPIES: Final = 1 << 16


class DeadCopies:
    """A ring of copies to be removed: slot, generation and incarnation."""

    def __init__(self, size: int = DEAD_COPIES) -> None:
        self._size = size
        self._slots = FlatArray("I", size)
        self._generations = FlatArray("I", size)
        self._numbers = FlatArray("B", size)
        self._next = 0
        self.count = 0

    def populate(self) -> None:
        """Fault the list in."""
        for table in (self._slots, self._generations, self._numbers):
            table.populate(0, self._size)

    def add(self, slot: int, generation: int, number: int) -> bool:
        """False: there is no room."""
        if self.count == self._size:
            return False
        at = (self._next + self.count) % self._size
        self._slots.view[at], self._generations.view[at], self._numbers.view[at] = slot, generation, number
        self.count += 1
        return True

    def take(self, limit: int) -> list[tuple[int, int, int]]:
        """The first of them, which are then off the list."""
        taken: list[tuple[int, int, int]] = []
        while self.count and len(taken) < limit:
            at = self._next
            taken.append((self._slots.view[at], self._generations.view[at], self._numbers.view[at]))
            self._next = (at + 1) % self._size
            self.count -= 1
        return taken

"""RAM slots that are nobody's home: those that are free, those that frames from below are read
into, and those that are absent, given back to the system.

Slots are numbered from 1; slot 0 is nobody's, ever. `FETCH_SLOTS` of them are beside the budget:
cold frames are read into those. Which ones they are changes: a slot that was read into becomes a
frame's home, and another takes its place (`zcache.pageframes.transitions.adopt`).

Three stacks, in flat arrays, with a count each: `free[:free_count]` and so on; the last one is
handed out first. Cost: 8 bytes a RAM slot.
"""

from array import array
from typing import Final

from zcache.pageframes.ram import Ram

#: RAM slots beside the budget that cold frames are read into: as many as reads of cold frames that
#: can run at once.
FETCH_SLOTS: Final = 32

#: No slot, and no frame.
NONE: Final = 0


def slots_of(budget_frames: int) -> int:
    """RAM slots for a budget: with those to read into, and slot 0, which is nobody's."""
    return budget_frames + FETCH_SLOTS + 1


def budget_of(slot_count: int) -> int:
    """The budget, in frames, that has so many RAM slots."""
    return slot_count - FETCH_SLOTS - 1


class Slots:
    """Of a budget of `budget_frames` at most, whose bytes are in `memory`; the caller holds the
    store's lock. All are free at first."""

    def __init__(self, budget_frames: int, memory: Ram) -> None:
        self._memory = memory
        self.free = array("I", range(budget_frames, 0, -1))
        self.free_count = budget_frames
        self.fetch = array("I", range(budget_frames + 1, slots_of(budget_frames)))
        self.fetch_count = FETCH_SLOTS
        self._absent = array("I", bytes(4 * budget_frames))
        self.absent_count = 0

    def give(self, slot: int) -> None:
        """A slot of the budget is free."""
        self.free[self.free_count] = slot
        self.free_count += 1

    # -- to read into
    # ----------------------------------------------------------------------------------------------

    def take_fetch(self) -> int:
        """A RAM slot beside the budget to read a cold frame into; 0 when all are in use."""
        if not self.fetch_count:
            return NONE
        self.fetch_count -= 1
        return self.fetch[self.fetch_count]

    def give_fetch(self, slot: int) -> None:
        """Take a slot back that is not (or no longer) a frame's home."""
        self.fetch[self.fetch_count] = slot
        self.fetch_count += 1

    # -- a budget that changes
    # ----------------------------------------------------------------------------------------------

    def withdraw(self, limit: int) -> "array[int]":
        """Up to `limit` free slots leave the budget."""
        count = min(limit, self.free_count)
        if not count:  # an array that somebody has a view of cannot even be given nothing
            return array("I")
        left = self.free_count - count
        slots = self.free[left : self.free_count]
        self.free_count = left
        self._absent[self.absent_count : self.absent_count + count] = slots
        self.absent_count += count
        self._memory.mark(slots, True)
        return slots

    def absent(self) -> memoryview:
        """Those that have left it, the last ones last."""
        return memoryview(self._absent)[: self.absent_count]

    def restore(self, count: int) -> None:
        """The last `count` of those, which have memory again, are in the budget, and free."""
        slots = self.absent()[-count:].tolist() if count else []
        self.absent_count -= count
        self._memory.mark(slots, False)
        for slot in slots:
            self.give(slot)

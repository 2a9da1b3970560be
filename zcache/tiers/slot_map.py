"""Which slots of a tier are in use: one byte each, handed out next-fit in runs.

A run of free slots is what makes writeback one large sequential write, so `reserve` looks for a whole run first, from
where the last one ended, then from the start, then for half of it, and so on down to a single slot. `bytearray.find`
does the looking in C. Cost: a byte a slot.
"""


class SlotMap:
    """Slots 1 to `slot_count`; the caller holds the store's lock."""

    def __init__(self, slot_count: int) -> None:
        self.slot_count = slot_count
        self.used_slots = 0
        self._used = bytearray(slot_count + 1)
        self._used[0] = 1
        self._next = 1

    def reserve(self, count: int) -> tuple[int, int]:
        """Up to `count` consecutive free slots: the first, and how many (0 when none is free)."""
        count = min(count, self.slot_count - self.used_slots)
        while count:
            run = bytes(count)
            first = self._used.find(run, self._next)
            if first < 0:
                first = self._used.find(run, 1)
            if first > 0:
                self._used[first : first + count] = b"\1" * count
                self.used_slots += count
                self._next = first + count
                return first, count
            count //= 2
        return 0, 0

    def release(self, slot: int) -> None:
        """Make one slot free again."""
        assert self._used[slot] and slot, f"slot {slot} is not in use"
        self._used[slot] = 0
        self.used_slots -= 1

    def is_used(self, slot: int) -> bool:
        """Whether a slot is reserved."""
        return bool(self._used[slot])

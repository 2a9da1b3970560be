"""The queues in which frames wait to leave RAM, by the RAM slots that they are in.

They are rings, one for each `Queue`: doubly-linked lists in two flat arrays, whose heads are beyond
the RAM slots, so that linking has no special cases. The oldest frame comes first. A get does not
move its frame (six array writes): it sets `referenced`, and whoever looks for a frame gives such a
one one more round: the second-chance approximation of LRU that the kernel uses for its own pages.

Cost: 10 bytes a RAM slot.
"""

from array import array
from collections.abc import Iterator
from enum import IntEnum

from zcache.pages.tmem import Kind


class Queue(IntEnum):
    """Where a frame in RAM waits. Frames in flight wait nowhere."""

    PERSISTENT = 0  # ACTIVE and DIRTY frames of persistent pools: to be written back
    EPHEMERAL = 1  # frames of ephemeral pools: can be eaten, and their pages are misses then
    CLEAN = 2  # CLEAN frames of persistent pools: can be dropped, their bytes are below


# A frame that is taken for pages of a kind waits in the queue of that number.
assert [kind.value for kind in Kind] == [Queue.PERSISTENT.value, Queue.EPHEMERAL.value]


class Queues:
    """Of `slot_count` RAM slots. Protected by the store's lock."""

    def __init__(self, slot_count: int) -> None:
        self.slot_count = slot_count
        self.referenced = bytearray(slot_count)
        self.queue_of = bytearray(slot_count)  # which queue the slot's frame is in, or was in before its flight
        heads = len(Queue)
        self.newer = array("I", bytes(4 * (slot_count + heads)))
        self.older = array("I", bytes(4 * (slot_count + heads)))
        for queue in Queue:
            self.newer[slot_count + queue] = self.older[slot_count + queue] = slot_count + queue
        self.queue_length = [0] * heads

    def slots_waiting(self, queue: Queue) -> Iterator[int]:
        """The RAM slots in a queue, oldest first."""
        head = self.slot_count + queue
        slot = self.newer[head]
        while slot != head:
            yield slot
            slot = self.newer[slot]

    def unlink(self, slot: int) -> None:
        """Take a slot out of the queue that it is in."""
        newer, older = self.newer, self.older
        after, before = newer[slot], older[slot]
        newer[before] = after
        older[after] = before
        self.queue_length[self.queue_of[slot]] -= 1

    def link_youngest(self, slot: int, queue: Queue | Kind) -> None:
        """Put a slot that is in no queue at the young end of one; it was not referenced."""
        head = self.slot_count + queue
        newer, older = self.newer, self.older
        before = older[head]
        newer[before] = slot
        older[slot] = before
        newer[slot] = head
        older[head] = slot
        self.queue_of[slot] = queue
        self.referenced[slot] = 0
        self.queue_length[queue] += 1

    def link_oldest(self, slot: int, queue: Queue) -> None:
        """Put a slot that is in no queue at the old end of one; whether it was referenced stays."""
        self.link_behind(slot, self.slot_count + queue, queue)

    def link_behind(self, slot: int, before: int, queue: Queue) -> None:
        """Put a slot that is in no queue just behind another, on its young side. `before` is a RAM
        slot in the queue, or the queue's head. Whether it was referenced stays."""
        newer, older = self.newer, self.older
        after = newer[before]
        older[after] = slot
        newer[slot] = after
        older[slot] = before
        newer[before] = slot
        self.queue_of[slot] = queue
        self.queue_length[queue] += 1

"""The tier that is other machines' memory: each frame is at two peers, and nowhere else.

Slots are ours to number; an engine knows keys (`zcache.remote.copies`). Two peers are chosen for
each flight, those with most room. A flight that finds fewer than two peers fails, and its frames go
to the next tier; if that has no room, or there is none, one copy is better than a write that is
refused: it is made twice as soon as a second peer is there (`zcache.remote.mender`).

Such a tier is not for a put that waits (`is_prompt`): background reclaim alone writes to it.
"""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from zcache.remote.copies import UNLIMITED, Copies
from zcache.tiers.slot_map import SlotMap

#: Copies of each frame.
COPIES: Final = 2


class RemoteTier(SlotMap):
    """A `Tier` over `copies`. `is_last_resort` tells whether what is not taken here can go nowhere
    else."""

    is_prompt = False

    def __init__(self, slot_count: int, copies: Copies, is_last_resort: Callable[[], bool] = lambda: True) -> None:
        super().__init__(slot_count)
        self.copies = copies
        self.limit_slots = slot_count  # how many there may be; less, while somebody wants memory back
        self._is_last_resort = is_last_resort
        self.was_read = bytearray(slot_count + 1)  # since the demoter has looked at it last

    @property
    def free_slots(self) -> int:
        """That two peers have room for; or one, if that is all that there is."""
        free = min(self.slot_count, self.limit_slots) - self.used_slots
        if free <= 0:
            return 0
        return max(min(free, self._room()), 0)

    def reserve(self, count: int) -> tuple[int, int]:
        """See `Tier.reserve`."""
        count = min(count, self.free_slots)
        return super().reserve(count) if count else (0, 0)

    def release(self, slot: int) -> None:
        """See `Tier.release`: its copies are removed in spare time."""
        super().release(slot)
        self.was_read[slot] = 0
        self.copies.drop(slot)

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """To two peers at once. Waits for them, for `copies.WRITE_SECONDS` each at most."""
        peers = self.copies.choose(len(frames), COPIES)
        least = COPIES if not self._is_last_resort() else 1
        if len(peers) < least:
            raise OSError(errno.ENOSPC, f"{len(peers)} of {COPIES} engines take frames")
        self.copies.send(first_slot, frames, peers, least)

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """From either. Waits for `copies.READ_SECONDS` at most."""
        slots = range(first_slot, first_slot + len(frames))
        for slot in slots:
            self.was_read[slot] = 1
        failed, why = self.copies.fetch(slots, frames)
        if failed:
            self.copies.counters.remote_failed_gets += len(failed)
            raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} ({why})")

    def fault_ahead(self) -> None:
        """See `Tier.fault_ahead`."""
        super().fault_ahead()
        self.copies.tables.fault_ahead(min(self.next_slot + 4096, self.slot_count + 1))

    def close(self) -> None:
        """Let go of all connections."""
        self.copies.close()

    def is_used(self, slot: int) -> bool:
        """Whether a frame is there."""
        return bool(self._used[slot])

    def _room(self) -> int:
        """In frames, as peers have it now."""
        rooms = sorted((self.copies.room_at(peer) for peer in self.copies.peers), reverse=True)
        if not rooms or not rooms[0]:
            return 0
        pairs = min(sum(rooms) // 2, sum(rooms[1:]))
        if not pairs and self._is_last_resort():
            return min(sum(rooms), UNLIMITED)
        return pairs

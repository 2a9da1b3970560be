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

from zcache.image.flat_array import FlatArray
from zcache.remote.copies import Copies
from zcache.remote.reading import Reading
from zcache.tiers.slot_map import SlotMap

#: Copies of each frame.
COPIES: Final = 2

#: How far tables are populated beyond the slots in use: 256 MiB of frames with `log`, a tenth of a
#: second's worth with `zbud`.
AHEAD_SLOTS: Final = 4096


class RemoteTier(SlotMap):
    """A `Tier` over `copies`. `is_last_resort` tells whether what is not taken here can go nowhere
    else."""

    is_prompt = False
    wanted_copies = COPIES

    def __init__(self, slot_count: int, copies: Copies, is_last_resort: Callable[[], bool] = lambda: True) -> None:
        super().__init__(slot_count)
        self.copies = copies
        self.reading = Reading(copies)
        self.limit_slots = slot_count
        self._is_last_resort = is_last_resort
        self._was_read_table = FlatArray("B", slot_count + 1)
        self.was_read = self._was_read_table.view  # since the demoter has looked at it last

    @property
    def free_slots(self) -> int:
        """That two peers have room for; or one, if that is all that there is."""
        free = self.slot_count - self.used_slots
        return min(free, self._room()) if free else 0

    @property
    def capacity_slots(self) -> int:
        """See `WarmTier.capacity_slots`: fewer while somebody wants memory back, and none while
        there are no two engines."""
        room = self.copies.room
        return min(self.slot_count, pairs_of(room.by_node(lambda peer: room.most(peer, self.slot_count))))

    @property
    def held_frames(self) -> int:
        """How many are at engines."""
        return self.used_slots

    def reserve(self, count: int) -> tuple[int, int]:
        """See `Tier.reserve`."""
        count = min(count, self.free_slots)
        rooms = sorted(self.copies.room.by_node(self.copies.room.of, max), reverse=True)
        count = min(count, next(filter(None, rooms[1::-1]), 0))  # a flight is at the same two, or at one
        return super().reserve(count) if count else (0, 0)

    def take_over(self, slot: int) -> None:
        """See `Tier.take_over`: one that no engine held any more is lost still."""
        super().take_over(slot)
        self.copies.take_over(slot)

    def release(self, slot: int) -> None:
        """See `Tier.release`: its copies are removed in spare time."""
        super().release(slot)
        self.was_read[slot] = 0
        self.copies.drop(slot)

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """To two peers at once. Waits for them, `copies.WRITE_SECONDS` in all at most, and then
        `copies.LEAST_SECONDS` for the answers of each."""
        peers = self.copies.room.choose(len(frames), COPIES)
        least = COPIES if not self._is_last_resort() else 1
        if len(peers) < least:
            raise OSError(errno.ENOSPC, f"{len(peers)} of {COPIES} engines take frames")
        self.copies.send(first_slot, frames, peers, least)

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """From either. Waits for `reading.READ_SECONDS` at most."""
        self.was_read[first_slot : first_slot + len(frames)] = b"\1" * len(frames)
        self.read_to_move(first_slot, frames)

    def is_within_reach(self, slot: int) -> bool:
        """See `WarmTier.is_within_reach`."""
        return self.copies.is_prompt(slot)

    def is_known_dead(self, slot: int) -> bool:
        """See `WarmTier.is_known_dead`."""
        return self.copies.is_known_dead(slot)

    def read_to_move(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """See `WarmTier.read_to_move`."""
        failed, why = self.reading.fetch(range(first_slot, first_slot + len(frames)), frames)
        if failed:
            self.copies.counters.remote_failed_gets += len(failed)
            raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} ({why})")

    def read_again(self, slot: int, frame: memoryview, is_right: Callable[[], bool]) -> None:
        """See `Tier.read_again`. A copy that is wrong while another is right is made anew."""
        if why := self.reading.fetch_right(slot, frame, is_right):
            raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} ({why})")

    def fault_ahead(self) -> None:
        """See `Tier.fault_ahead`."""
        super().fault_ahead()
        stop = min(self.next_slot + AHEAD_SLOTS, self.slot_count + 1)
        self.copies.tables.fault_ahead(stop)
        self._was_read_table.fault_ahead(stop)

    def close(self) -> None:
        """Let go of all connections."""
        self.copies.close()

    # What the mender asks (`Mended`).

    def is_used(self, slot: int) -> bool:
        """See `Mended`."""
        return bool(self._used[slot])

    def missing_copies(self) -> int:
        """See `Mended`. None are of frames that are lost, which nobody can copy."""
        copies = self.copies
        there = self.used_slots - len(copies.in_flight) - len(copies.lost)
        return COPIES * there - sum(copies.at) + copies.unproven()

    def promised_room(self) -> int:
        """See `Mended`: each frame twice."""
        room = self.copies.room
        return min(self.slot_count, pairs_of(room.by_node(lambda peer: room.limit(peer, self.slot_count))))

    def spare_work(self, _go_on: Callable[[], bool]) -> None:
        """See `Mended`: nothing."""

    def _room(self) -> int:
        """In frames, as peers have it now."""
        rooms = self.copies.room.by_node(self.copies.room.of)
        return pairs_of(rooms) or (sum(rooms) if self._is_last_resort() else 0)


def pairs_of(rooms: Sequence[int]) -> int:
    """How many frames fit twice, the two copies of each at two nodes."""
    return min(sum(rooms) // 2, sum(rooms) - max(rooms, default=0))

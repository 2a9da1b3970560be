"""The tier that is a backing with a warm copy in front of it: `remote_copies=1`.

Every frame is on the backing; the latest of them are at an engine, too, one copy each, up to
`limit_slots`. The oldest copies make room for new ones. A read asks the engine for
`HEDGE_SECONDS` at most, and then the disk: so an engine that is lost, slow or wrong costs time, and
no page. What was read from the disk is offered to an engine again.

A write waits for the disk alone. What it wrote is put into a small buffer (`STAGED_BYTES`) as it
is, sealed or encrypted, from which the mender's thread sends it; what finds the buffer full is on
the disk only.

Locking: `_lock` protects the buffer. Cost: the buffer, and a copy of each frame into it.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Final

from zcache.linux import memory
from zcache.linux.memory import anonymous_memory
from zcache.remote.copies import HEDGE_SECONDS, Copies
from zcache.tiers import Tier

#: Four background flights.
STAGED_BYTES: Final = 2 << 20


class RemoteFront:
    """A `Tier` over another, `backing`, with one copy of `limit_slots` frames at engines."""

    is_prompt = True

    def __init__(self, backing: Tier, copies: Copies, limit_slots: int) -> None:
        self.backing = backing
        self.copies = copies
        self.limit_slots = limit_slots
        self.slot_count = backing.slot_count
        frame_bytes = copies.frame_bytes
        self._lock = threading.Lock()
        self._buffer = memoryview(anonymous_memory(STAGED_BYTES))
        starts = range(0, STAGED_BYTES - frame_bytes + 1, frame_bytes)
        self._free = [self._buffer[start : start + frame_bytes] for start in starts]
        self._staged: list[tuple[int, memoryview]] = []  # slots, and their frames
        self._oldest = 1  # where to look for copies that make room
        self.passed_over = 0  # frames that found the buffer full

    # What a tier keeps account of is the backing's.

    @property
    def used_slots(self) -> int:
        return self.backing.used_slots

    @property
    def free_slots(self) -> int:
        return self.backing.free_slots

    def reserve(self, count: int) -> tuple[int, int]:
        """See `Tier`."""
        return self.backing.reserve(count)

    def take_over(self, slot: int) -> None:
        """See `Tier`."""
        self.backing.take_over(slot)

    def release(self, slot: int) -> None:
        """See `Tier`: its copy is removed in spare time."""
        self.backing.release(slot)
        self.copies.drop(slot)

    def used_map(self) -> memoryview:
        """See `Tier`."""
        return self.backing.used_map()

    def is_used(self, slot: int) -> bool:
        """Whether a frame is there."""
        with self.used_map() as used:
            return bool(used[slot])

    def fault_ahead(self) -> None:
        """See `Tier`."""
        self.backing.fault_ahead()
        self.copies.tables.fault_ahead(self.slot_count + 1)
        memory.populate(self._buffer)

    def close(self) -> None:
        """Let go of both."""
        self.copies.close()
        self.backing.close()

    # Frames.

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """To the backing; copies follow."""
        for slot in range(first_slot, first_slot + len(frames)):
            self.copies.drop(slot)
        self.backing.write(first_slot, frames)
        self._stage(first_slot, frames)

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """From an engine, or from the backing."""
        slots = range(first_slot, first_slot + len(frames))
        holders = self.copies.tables.holders
        failed: Sequence[int] = range(len(frames))
        if any(holders[slot] for slot in slots):
            failed, _ = self.copies.fetch(slots, frames, HEDGE_SECONDS)
        for index in failed:
            self.backing.read(slots[index], frames[index : index + 1])
            self._stage(slots[index], frames[index : index + 1])

    def read_again(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """What an engine gave was not what was written: from the backing."""
        for slot in range(first_slot, first_slot + len(frames)):
            self.copies.drop(slot)
        self.backing.read(first_slot, frames)

    # Copies, by the mender's thread.

    def send_staged(self, go_on: Callable[[], bool]) -> None:
        """Send what waits in the buffer, for as long as `go_on` says."""
        while self._staged and go_on():
            with self._lock:
                slot, frame = self._staged[0]
            try:
                self._send(slot, frame)
            except OSError:  # the peer's trouble, and no more than a copy
                pass
            finally:
                with self._lock:
                    del self._staged[0]
                    self._free.append(frame)

    def _send(self, slot: int, frame: memoryview) -> None:
        copies = self.copies
        peers = copies.choose(1, 1)
        if not peers or not self.is_used(slot):
            return
        self._make_room()
        copies.send(slot, [frame], peers, 1)
        if not self.is_used(slot):  # it died meanwhile
            copies.drop(slot)

    def _make_room(self) -> None:
        """The oldest copies go, in the order of their slots: those are handed out in turn."""
        copies = self.copies
        looked_at = 0
        while sum(copies.at) >= self.limit_slots and looked_at < self.slot_count:
            copies.drop(self._oldest)
            self._oldest = self._oldest % self.slot_count + 1
            looked_at += 1

    def _stage(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        with self._lock:
            for slot, frame in enumerate(frames, first_slot):
                if not self._free:
                    self.passed_over += 1
                    continue
                room = self._free.pop()
                room[:] = frame
                self._staged.append((slot, room))

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
from pathlib import Path
from typing import Final

from zcache.linux import memory
from zcache.linux.memory import anonymous_memory
from zcache.remote.copies import Copies
from zcache.remote.peer import Peer
from zcache.remote.reading import HEDGE_SECONDS, Reading
from zcache.tiers import Tier

#: Four background flights.
STAGED_BYTES: Final = 2 << 20


class RemoteFront:
    """A `Tier` over another, `backing`, with one copy of `limit_slots` frames at engines."""

    is_prompt = True
    wanted_copies = 1

    def __init__(self, backing: Tier, copies: Copies, limit_slots: int) -> None:
        self.backing = backing
        self.copies = copies
        self.reading = Reading(copies)
        self.limit_slots = limit_slots
        self.slot_count = backing.slot_count
        frame_bytes = copies.frame_bytes
        self._lock = threading.Lock()
        self._buffer = memoryview(anonymous_memory(STAGED_BYTES))
        starts = range(0, STAGED_BYTES - frame_bytes + 1, frame_bytes)
        self._free = [self._buffer[start : start + frame_bytes] for start in starts]
        self._staged: dict[int, tuple[int, memoryview]] = {}  # of slots: their generation then, and frame
        self._oldest = 1  # where to look for copies that make room
        self.passed_over = 0  # frames that found the buffer full

    # What a tier keeps account of is the backing's.

    @property
    def path(self) -> Path | None:
        """Of the backing."""
        return getattr(self.backing, "path", None)

    @property
    def direct(self) -> bool | None:
        """Whether it is written to directly."""
        return getattr(self.backing, "direct", None)

    @property
    def used_slots(self) -> int:
        return self.backing.used_slots

    @property
    def free_slots(self) -> int:
        return self.backing.free_slots

    @property
    def capacity_slots(self) -> int:
        """How many frames may have a copy."""
        return self.limit_slots

    @property
    def held_frames(self) -> int:
        """How many are at engines."""
        return sum(self.copies.at)

    def reserve(self, count: int) -> tuple[int, int]:
        """See `Tier`."""
        return self.backing.reserve(count)

    def take_over(self, slot: int) -> None:
        """See `Tier`."""
        self.backing.take_over(slot)

    def release(self, slot: int) -> None:
        """See `Tier`: its copy is removed in spare time."""
        self.backing.release(slot)
        self.copies.renew(slot)

    def used_map(self) -> memoryview:
        """See `Tier`."""
        return self.backing.used_map()

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
        generations = [self.copies.renew(slot) for slot in range(first_slot, first_slot + len(frames))]
        self.backing.write(first_slot, frames)
        self._stage(first_slot, generations, frames)

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """From an engine, or from the backing."""
        slots = range(first_slot, first_slot + len(frames))
        tables = self.copies.tables
        failed: Sequence[int] = range(len(frames))
        if any(tables.holders[slot] and self.copies.is_prompt(slot) for slot in slots):
            failed, _ = self.reading.fetch(slots, frames, HEDGE_SECONDS)
        if len(failed) == len(frames):  # all of them in one transfer
            generations = [tables.generation[slot] for slot in slots]
            self.backing.read(first_slot, frames)
            self._stage(first_slot, generations, frames)
            return
        for index in failed:
            generation = tables.generation[slots[index]]
            self.backing.read(slots[index], frames[index : index + 1])
            self._stage(slots[index], [generation], frames[index : index + 1])

    def read_again(self, slot: int, frame: memoryview, is_right: Callable[[], bool]) -> None:
        """See `Tier`: from the backing. If that is right, what an engine has is not."""
        generation = self.copies.tables.generation[slot]
        self.backing.read(slot, [frame])
        if is_right():
            self.copies.drop(slot, generation)

    # Copies, by the mender's thread (`Mended`).

    def is_used(self, slot: int) -> bool:
        """See `Mended`."""
        with self.used_map() as used:
            return bool(used[slot])

    def missing_copies(self) -> int:
        """See `Mended`: none, for the disk has them all."""
        return 0

    def promised_room(self) -> int:
        """See `Mended`: what there is no room for, goes."""
        return self.limit_slots

    def spare_work(self, go_on: Callable[[], bool]) -> None:
        """See `Mended`: send what waits in the buffer."""
        self._make_room(self.limit_slots)
        for peer in self.copies.peers:
            if peer.limit_bytes is not None:  # somebody may want memory back
                self._make_room(self.copies.room.limit(peer), peer)
        while self._staged and go_on():
            with self._lock:
                slot = next(iter(self._staged))
                generation, frame = self._staged.pop(slot)
            try:
                self._send(slot, generation, frame)
            except OSError:  # the peer's trouble, and no more than a copy
                pass
            finally:
                with self._lock:
                    self._free.append(frame)

    def _send(self, slot: int, generation: int, frame: memoryview) -> None:
        copies = self.copies
        self._make_room(self.limit_slots - 1)
        peers = copies.room.choose(1, 1)
        if not peers and any(peer.takes_frames() for peer in copies.peers):  # they are full of ours
            self._make_room(sum(copies.at) - 1)
            peers = copies.room.choose(1, 1)
        if peers and self.limit_slots > 0 and self.is_used(slot):
            copies.send(slot, [frame], peers, 1, expected=generation)

    def _make_room(self, limit_slots: int, peer: Peer | None = None) -> None:
        """The oldest copies go, of all peers or of one, in the order of their slots: those are
        handed out in turn."""
        looked_at = 0
        while self._held(peer) > max(limit_slots, 0) and looked_at < self.slot_count:
            if peer is None or self._is_at(self._oldest, peer):
                self.copies.drop(self._oldest)
            self._oldest = self._oldest % self.slot_count + 1
            looked_at += 1

    def _held(self, peer: Peer | None) -> int:
        return sum(self.copies.at) if peer is None else self.copies.at[peer.lane]

    def _is_at(self, slot: int, peer: Peer) -> bool:
        copies = self.copies
        return any(copies.holder(number) is peer for number in copies.tables.holders_of(slot))

    def _stage(self, first_slot: int, generations: Sequence[int], frames: Sequence[memoryview]) -> None:
        with self._lock:
            for slot, (generation, frame) in enumerate(zip(generations, frames, strict=True), first_slot):
                if slot in self._staged:
                    _, room = self._staged.pop(slot)
                elif self._free:
                    room = self._free.pop()
                else:
                    self.passed_over += 1
                    continue
                room[:] = frame
                self._staged[slot] = generation, room

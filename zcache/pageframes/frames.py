"""The frame table and the RAM slots: which frames there are, where each is, and in which order they
leave RAM.

A pageframe has an id that does not depend on where its bytes are. `home` names its RAM slot and
`below` its slot on the tier below; 0 means that it has none there, so RAM slot 0 and frame id 0 are
never handed out (the tier's slot 0 is its header). Everything about LRU belongs to a RAM slot, not
to a frame: only what is in RAM can leave it.

This module hands frames out and takes them back. It does not know what is in them, who reads a
tier, or why a frame must go.

A frame's `birth` is a word that nothing else ever had or will have: neither another frame, nor the
same frame id in an earlier life, nor a frame of another server of the same image (`EPOCH_SHIFT`).
It gets one when it is taken, and another for each attempt to write it below. So births are in the
order of age, two looks at a frame can tell whether it is still the same, and the birth of what is
below can be the nonce under which it was encrypted.

Locking: every method and every array is protected by the store's lock, which the caller holds.
Cost: 23 bytes and its seal (4 or 16) a frame id ever used, 23 a RAM slot. Nothing is allocated
after construction, but when the budget changes.
"""

import copy
import itertools
from array import array
from collections.abc import Callable, Iterator
from typing import Final

from zcache.errors import BadInput
from zcache.image.flat_array import FlatArray, Typecode
from zcache.image.image import EPOCH_SHIFT, Image
from zcache.pageframes.queues import Queue, Queues
from zcache.pageframes.ram import Ram
from zcache.pageframes.states import ALLOWED, State
from zcache.pages.entry import PAGE_BYTES

#: RAM slots beside the budget that cold frames are read into: as many as reads of cold frames that
#: can run at once.
FETCH_SLOTS: Final = 32

#: How far the tables are populated beyond the ids in use, in frames: of 4 KiB, 1.7 MiB of tables
#: (2.4 with encryption).
AHEAD_BYTES: Final = 256 << 20

NONE: Final = 0

#: Frames that are given one more round at a time, by whoever looks for one to eat: some 20 us.
SECOND_CHANCES: Final = 32


def slots_of(budget_frames: int) -> int:
    """RAM slots for a budget: with those to read into, and slot 0, which is nobody's."""
    return budget_frames + FETCH_SLOTS + 1


def budget_of(slot_count: int) -> int:
    """The budget, in frames, that has so many RAM slots."""
    return slot_count - FETCH_SLOTS - 1


def _no_image(_section: str) -> None:
    """Where the sections of a store without an image are."""


class PageFrames(Queues):
    """`budget_frames` RAM slots of `frame_bytes`, or fewer, as long as some are given back to the
    system (`withdraw_slots`); and the ids of all frames that can exist in RAM and below.

    `reserve_frames` of the slots are not for puts: what is packed into fewer frames is written
    there first. Of each frame that is below, `seal_bytes` are kept. With an image, frames have the
    homes, births and seals that are in it; the rest is for `rebuild` to find.
    """

    def __init__(
        self,
        budget_frames: int,
        below_frames: int,
        frame_bytes: int,
        seal_bytes: int,
        image: Image | None = None,
        reserve_frames: int = 0,
    ) -> None:
        if frame_bytes % PAGE_BYTES or frame_bytes & (frame_bytes - 1):
            raise BadInput(f"frame of {frame_bytes} bytes: give a power of two, and whole pages")
        self.max_budget_frames = budget_frames
        self.reserve_frames = reserve_frames
        self.frame_bytes = frame_bytes
        self.frame_shift = frame_bytes.bit_length() - 1
        self.seal_bytes = seal_bytes
        self.frame_count = budget_frames + below_frames

        ids = self.frame_count + 1
        section = image.section if image else _no_image
        self.home_table = FlatArray("I", ids, section("home"))
        self.below_table = FlatArray("I", ids, section("below"))
        self.seal_table = FlatArray("B", ids * seal_bytes, section("seal"))
        self.birth_table = FlatArray("Q", ids, section("birth"))
        self.state_table = FlatArray("B", ids)
        self.live_table = FlatArray("H", ids)
        self.state, self.live = self.state_table.view, self.live_table.view
        self.home, self.below = self.home_table.view, self.below_table.view
        self.seal, self.birth = self.seal_table.view, self.birth_table.view

        slots = slots_of(budget_frames)
        self.memory = Ram(slots, frame_bytes, section("ram"))
        self.ram, self.ram_view = self.memory.memory, self.memory.view
        self.frame_of = array("I", bytes(4 * slots))
        super().__init__(slots)

        self._free_slots = array("I", range(budget_frames, 0, -1))
        self.free_slot_count = budget_frames
        self._absent_slots = array("I", bytes(4 * budget_frames))
        self.absent_slot_count = 0
        self._fetch_slots = array("I", range(budget_frames + 1, slots))
        self.fetch_slot_count = FETCH_SLOTS
        self._free_ids_table = FlatArray("I", ids)
        self._free_ids = self._free_ids_table.view
        self._id_tables = [self.home_table, self.below_table, self.birth_table, self.state_table, self.live_table]
        self._id_tables.append(self._free_ids_table)
        self.free_id_count = 0
        self.fresh_id = 1  # the lowest id that was never used: ids stay dense, and tables are touched from the front
        self.sequence = image.epoch << EPOCH_SHIFT if image else 0  # the last birth that was given
        self.in_flight = 0  # frames in WRITEBACK
        self.cold = 0  # frames in COLD
        self.dropped_clean = 0  # CLEAN -> COLD, ever

    # -- handing out and taking back (hot)
    # --------------------------------------------------------------------------

    def take(self, queue: int) -> int:
        """A new ACTIVE frame with a RAM slot, youngest of its queue; 0 when no slot is free and no
        CLEAN frame is left.

        A persistent frame may take the slot of the oldest CLEAN frame, which costs nothing; an
        ephemeral one, if there are more CLEAN frames than ephemeral ones: both are copies that give
        way, and neither kind starves the other.
        """
        free, clean = self.free_slot_count, self.queue_length[Queue.CLEAN]
        if free + clean <= self.reserve_frames:
            return NONE
        if free:
            self.free_slot_count = free - 1
            slot = self._free_slots[free - 1]
        elif queue == Queue.PERSISTENT or clean > self.queue_length[Queue.EPHEMERAL]:
            slot = self._drop_oldest_clean()
        else:
            return NONE
        frame = self._begin_life(slot)
        self._link_youngest(slot, queue)
        return frame

    def take_reserved(self, behind: int) -> int:
        """The same for what is packed: from the reserve, too, and in the queue of persistent frames
        just behind the one in RAM slot `behind`, which is as old (0: the oldest of all)."""
        if self.free_slot_count:
            self.free_slot_count -= 1
            slot = self._free_slots[self.free_slot_count]
        elif self.queue_length[Queue.CLEAN]:
            slot = self._drop_oldest_clean()
        else:
            return NONE
        frame = self._begin_life(slot)
        self._link_behind(slot, behind or self.slot_count + Queue.PERSISTENT, Queue.PERSISTENT)
        self.referenced[slot] = 0
        return frame

    def _begin_life(self, slot: int) -> int:
        """An id for what is in a RAM slot from now on: ACTIVE."""
        if self.free_id_count:
            self.free_id_count = top = self.free_id_count - 1
            frame = self._free_ids[top]
        else:
            frame = self.fresh_id
            self.fresh_id = frame + 1
        self.sequence = sequence = self.sequence + 1
        self.birth[frame] = sequence
        self.state[frame] = 1  # ACTIVE
        self.home[frame] = slot
        self.frame_of[slot] = frame
        return frame

    def give(self, frame: int) -> int:
        """Take back a frame that has no live zpage and is not in flight; returns its slot below (0:
        none) to be freed."""
        slot = self.home[frame]
        if slot:
            self._unlink(slot)
            self.home[frame] = NONE
            self._put_free_slot(slot)
        else:
            self.cold -= 1
        below = self.below[frame]
        self.below[frame] = NONE
        self.state[frame] = 0  # FREE
        self._free_ids[self.free_id_count] = frame
        self.free_id_count += 1
        return below

    # -- leaving RAM and coming back
    # --------------------------------------------------------------------------------

    def isolate_oldest(self, limit: int, retire: Callable[[int], bool]) -> list[int]:
        """Take up to `limit` of the oldest persistent frames off their queue and mark them
        WRITEBACK.

        `retire(frame)` is called just before, and may keep the frame where it is. A frame
        referenced since it was last looked at goes to the young end instead; a call looks at `2 *
        limit` frames at most (and those that are kept), so that a queue of referenced frames costs
        bounded work and still yields.
        """
        chosen: list[int] = []
        kept: list[int] = []
        head = self.slot_count + Queue.PERSISTENT
        second_chances = limit
        while len(chosen) < limit:
            slot = self.newer[head]
            if slot == head:
                break
            self._unlink(slot)
            if self.referenced[slot] and second_chances:
                second_chances -= 1
                self._link_youngest(slot, Queue.PERSISTENT)
                continue
            frame = self.frame_of[slot]
            if not retire(frame):
                kept.append(slot)
                continue
            self.move(frame, State.WRITEBACK)
            chosen.append(frame)
        for slot in reversed(kept):
            self._link_oldest(slot, Queue.PERSISTENT)
        self.in_flight += len(chosen)
        return chosen

    def give_births(self, count: int) -> int:
        """The first of `count` births that follow one another."""
        first = self.sequence + 1
        self.sequence += count
        return first

    def land(self, frame: int, below: int, birth: int, seal: bytes) -> int:
        """End of a flight that arrived: CLEAN, or FREE if nothing in it is alive any more.

        Returns the slot below to be freed (0: none)."""
        self.in_flight -= 1
        self.birth[frame] = birth
        self.seal[frame * self.seal_bytes : (frame + 1) * self.seal_bytes] = seal
        self.below[frame] = below  # last: whoever finds a frame below finds its seal
        self.move(frame, State.CLEAN)
        slot = self.home[frame]
        self._link_youngest(slot, Queue.CLEAN)
        return self.give(frame) if not self.live[frame] else NONE

    def abort(self, frame: int, restore: Callable[[int], None]) -> None:
        """End of a flight that failed: the frame is the oldest of those that wait again (FREE if
        nothing in it is alive), and DIRTY when `restore(frame)` is called."""
        self.in_flight -= 1
        self.move(frame, State.DIRTY)
        slot = self.home[frame]
        self._link_oldest(slot, Queue.PERSISTENT)
        if self.live[frame]:
            restore(frame)
        else:
            self.give(frame)

    def seal_of(self, frame: int) -> bytes:
        """What a frame that is below was sealed with."""
        return bytes(self.seal[frame * self.seal_bytes : (frame + 1) * self.seal_bytes])

    def take_fetch_slot(self) -> int:
        """A RAM slot beside the budget to read a cold frame into; 0 when all are in use."""
        if not self.fetch_slot_count:
            return NONE
        self.fetch_slot_count -= 1
        return self._fetch_slots[self.fetch_slot_count]

    def give_fetch_slot(self, slot: int) -> None:
        """Take a slot back that is not (or no longer) a frame's home."""
        self._fetch_slots[self.fetch_slot_count] = slot
        self.fetch_slot_count += 1

    def adopt(self, frame: int, slot: int) -> int:
        """Make the fetch slot `slot`, filled with the COLD `frame`, its home: COLD -> CLEAN.

        Returns the slot that takes the other's place beside the budget: a free one or the oldest
        CLEAN frame's. Without either there is no room, nothing changes and `slot` itself is
        returned.
        """
        if self.free_slot_count:
            self.free_slot_count -= 1
            spare = self._free_slots[self.free_slot_count]
        elif self.queue_length[Queue.CLEAN]:
            spare = self._drop_oldest_clean()
        else:
            return slot
        self.move(frame, State.CLEAN)
        self.cold -= 1
        self.home[frame] = slot
        self.frame_of[slot] = frame
        self._link_youngest(slot, Queue.CLEAN)
        return spare

    def ephemeral_gives_way(self) -> bool:
        """Whether an ephemeral frame has to be eaten before a frame is adopted: no slot is free,
        and of what gives way there is more ephemeral than CLEAN."""
        return not self.free_slot_count and self.queue_length[Queue.EPHEMERAL] > self.queue_length[Queue.CLEAN]

    def has_room_for(self, window: int) -> bool:
        """Whether that many frames could be adopted without dropping one that was only just."""
        return self.free_slot_count + self.queue_length[Queue.CLEAN] > window + 1

    def oldest_ephemeral(self) -> int:
        """The ephemeral frame that has waited longest and was not referenced since it was last
        looked at; 0 if there is none. Those that were go to the young end; after `SECOND_CHANCES`
        of them, the oldest has had its chance."""
        head = self.slot_count + Queue.EPHEMERAL
        for _ in range(SECOND_CHANCES):
            slot = self.newer[head]
            if slot == head:
                return NONE
            if not self.referenced[slot]:
                break
            self._unlink(slot)
            self._link_youngest(slot, Queue.EPHEMERAL)
        return self.frame_of[self.newer[head]]

    def move(self, frame: int, state: State) -> None:
        """Change a frame's state; a transition that the table does not allow is our own bug."""
        old = State(self.state[frame])
        assert state in ALLOWED[old], f"frame {frame}: {old.name} -> {state.name}"
        self.state[frame] = state

    def new_table(self, typecode: Typecode) -> memoryview:
        """Something more to be known of each frame, by its id: all zero at first, and populated as
        the tables here."""
        table = FlatArray(typecode, self.frame_count + 1)
        self._id_tables.append(table)
        return table.view

    # -- a budget that changes
    # ----------------------------------------------------------------------------------------

    def withdraw_slots(self, limit: int) -> "array[int]":
        """Up to `limit` free slots leave the budget."""
        count = min(limit, self.free_slot_count)
        left = self.free_slot_count - count
        slots = self._free_slots[left : self.free_slot_count]
        self.free_slot_count = left
        self._absent_slots[self.absent_slot_count : self.absent_slot_count + count] = slots
        self.absent_slot_count += count
        self.memory.mark(slots, True)
        return slots

    def absent_slots(self) -> memoryview:
        """Those that have left it, the last ones last."""
        return memoryview(self._absent_slots)[: self.absent_slot_count]

    def restore_slots(self, count: int) -> None:
        """The last `count` of those, which have memory again, are in the budget, and free."""
        slots = self.absent_slots()[-count:].tolist() if count else []
        self.absent_slot_count -= count
        self.memory.mark(slots, False)
        for slot in slots:
            self._put_free_slot(slot)

    def drop_oldest_clean(self) -> bool:
        """CLEAN -> COLD for the frame that has been clean longest; its slot is free. False: there
        is none."""
        if not self.queue_length[Queue.CLEAN]:
            return False
        self._put_free_slot(self._drop_oldest_clean())
        return True

    # -- figures and upkeep
    # -----------------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """Frames that a persistent put can have at once, without waiting for anything."""
        return max(self.free_slot_count + self.queue_length[Queue.CLEAN] - self.reserve_frames, 0)

    @property
    def ready(self) -> int:
        """Frames that a persistent put can have without waiting for a tier: those, and ephemeral
        ones, which it eats one by one."""
        return self.available + self.queue_length[Queue.EPHEMERAL]

    @property
    def budget_frames(self) -> int:
        """RAM slots that there are now, beside those to read into."""
        return self.max_budget_frames - self.absent_slot_count

    @property
    def resident(self) -> int:
        """Frames that hold a RAM slot of the budget."""
        return self.budget_frames - self.free_slot_count

    def free_ids(self) -> memoryview:
        """The ids on the free stack (for `check`)."""
        return self._free_ids[: self.free_id_count]

    def free_slots(self) -> Iterator[int]:
        """Free RAM slots of the budget (for `check`)."""
        return itertools.islice(self._free_slots, self.free_slot_count)

    def fetch_slots(self) -> Iterator[int]:
        """RAM slots beside the budget that nothing is being read into (for `check`)."""
        return itertools.islice(self._fetch_slots, self.fetch_slot_count)

    def copied_to(self, copied: Callable[[memoryview], memoryview]) -> "PageFrames":
        """A twin whose books stay as they are now, each array `copied` as far as it is in use (for
        `check`).

        Frames' bytes, births and seals are not in it."""
        twin = copy.copy(self)
        del twin.ram, twin.ram_view, twin.memory, twin.birth, twin.seal
        for names, count in (
            (("state", "live", "home", "below"), self.fresh_id),
            (("frame_of", "queue_of"), self.slot_count),
            (("newer", "older"), self.slot_count + len(Queue)),
            (("_free_ids",), self.free_id_count),
            (("_free_slots",), self.free_slot_count),
            (("_absent_slots",), self.absent_slot_count),
            (("_fetch_slots",), self.fetch_slot_count),
        ):
            for name in names:
                setattr(twin, name, copied(memoryview(getattr(self, name))[:count]))
        twin.queue_length = list(self.queue_length)
        return twin

    def fault_ahead(self) -> None:
        """Keep the tables populated beyond the ids in use. Not for the I/O path."""
        stop = self.fresh_id + AHEAD_BYTES // self.frame_bytes
        for table in self._id_tables:
            table.fault_ahead(stop)
        self.seal_table.fault_ahead(stop * self.seal_bytes)

    # -- within
    # ----------------------------------------------------------------------------------------------

    def _put_free_slot(self, slot: int) -> None:
        self._free_slots[self.free_slot_count] = slot
        self.free_slot_count += 1

    def _drop_oldest_clean(self) -> int:
        """CLEAN -> COLD for the frame that has been clean longest; returns the RAM slot it
        leaves."""
        slot = self.newer[self.slot_count + Queue.CLEAN]
        self._unlink(slot)
        frame = self.frame_of[slot]
        self.move(frame, State.COLD)
        self.home[frame] = NONE
        self.cold += 1
        self.dropped_clean += 1
        return slot

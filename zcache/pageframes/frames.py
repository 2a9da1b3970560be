"""The frame table: which frames there are, and where each is.

A pageframe has an id that does not depend on where its bytes are. `home` names its RAM slot and
`below` its slot on the tier below; 0 means that it has none there, so RAM slot 0 and frame id 0 are
never handed out (the tier's slot 0 is its header). Everything about LRU belongs to a RAM slot, not
to a frame: only what is in RAM can leave it.

This module hands frames out and takes them back. In which order they wait to leave RAM,
`zcache.pageframes.queues` has; which RAM slots are nobody's home, `zcache.pageframes.slots`; how
frames leave RAM and come back, `zcache.pageframes.transitions`. None of them knows what is in a
frame, who reads a tier, or why a frame must go.

A frame's `birth` is a word that nothing else ever had or will have: neither another frame, nor the
same frame id in an earlier life, nor a frame of another server of the same image (`EPOCH_SHIFT`).
It gets one when it is taken, and another for each attempt to write it below. So births are in the
order of age, two looks at a frame can tell whether it is still the same, and the birth of what is
below can be the nonce under which it was encrypted.

Locking: every method and every array is protected by the store's lock, which the caller holds.
Cost: 23 bytes and its seal (4 or 16) a frame id ever used, 23 a RAM slot. Nothing is allocated
after construction, but when the budget changes.
"""

from array import array
from typing import Final

from zcache.errors import BadInput
from zcache.image.flat_array import FlatArray, Typecode
from zcache.image.image import EPOCH_SHIFT, Image
from zcache.pageframes.queues import Queue, Queues
from zcache.pageframes.ram import Ram
from zcache.pageframes.slots import NONE, Slots, slots_of
from zcache.pageframes.states import ACTIVE, ALLOWED, FREE, State
from zcache.pages.entry import PAGE_BYTES
from zcache.pages.tmem import Kind

#: How far the tables are populated beyond the ids in use, in frames: of 4 KiB, 1.7 MiB of tables
#: (2.4 with encryption).
AHEAD_BYTES: Final = 256 << 20


#: The queues, looked up once.
_PERSISTENT: Final = Queue.PERSISTENT
_EPHEMERAL: Final = Queue.EPHEMERAL
_CLEAN: Final = Queue.CLEAN


def _no_image(_section: str) -> None:
    """Where the sections of a store without an image are."""


class PageFrames:
    """`budget_frames` RAM slots of `frame_bytes`, or fewer, as long as some are given back to the
    system (`Slots.withdraw`); and the ids of all frames that can exist in RAM and below.

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

        self.slot_count = slots_of(budget_frames)
        self.memory = Ram(self.slot_count, frame_bytes, section("ram"))
        self.ram, self.ram_view = self.memory.memory, self.memory.view
        self.frame_of = array("I", bytes(4 * self.slot_count))
        self.slots = Slots(budget_frames, self.memory)
        self.queues = Queues(self.slot_count)
        # The queues' own, for those who look at them for each page or frame.
        self.referenced, self.queue_of = self.queues.referenced, self.queues.queue_of
        self.queue_length = self.queues.queue_length

        free_ids_table = FlatArray("I", ids)
        self.free_ids = free_ids_table.view
        self._id_tables = [self.home_table, self.below_table, self.birth_table, self.state_table, self.live_table]
        self._id_tables.append(free_ids_table)
        self.free_id_count = 0
        self.fresh_id = 1  # the lowest id that was never used: ids stay dense, and tables are touched from the front
        self.sequence = image.epoch << EPOCH_SHIFT if image else 0  # the last birth that was given
        self.in_flight = 0  # frames in WRITEBACK
        self.cold = 0  # frames in COLD
        self.dropped_clean = 0  # CLEAN -> COLD, ever

    # -- handing out and taking back (hot)
    # --------------------------------------------------------------------------

    def take(self, kind: Kind) -> int:
        """A new ACTIVE frame with a RAM slot, youngest of the kind's queue; 0 when no slot is free
        and no CLEAN frame is left.

        A persistent frame may take the slot of the oldest CLEAN frame, which costs nothing; an
        ephemeral one, if there are more CLEAN frames than ephemeral ones: both are copies that give
        way, and neither kind starves the other.
        """
        slots, length = self.slots, self.queue_length
        free, clean = slots.free_count, length[_CLEAN]
        if free + clean <= self.reserve_frames:
            return NONE
        if free:
            slots.free_count = free - 1
            slot = slots.free[free - 1]
        elif not kind or clean > length[_EPHEMERAL]:
            slot = self.vacate_oldest_clean()
        else:
            return NONE
        frame = self._begin_life(slot)
        self.queues.link_youngest(slot, kind)
        return frame

    def take_reserved(self, behind: int) -> int:
        """The same for what is packed: from the reserve, too, and in the queue of persistent frames
        just behind the one in RAM slot `behind`, which is as old (0: the oldest of all)."""
        slots = self.slots
        if slots.free_count:
            slots.free_count -= 1
            slot = slots.free[slots.free_count]
        elif self.queue_length[_CLEAN]:
            slot = self.vacate_oldest_clean()
        else:
            return NONE
        frame = self._begin_life(slot)
        self.queues.link_behind(slot, behind or self.slot_count + _PERSISTENT, _PERSISTENT)
        self.referenced[slot] = 0
        return frame

    def _begin_life(self, slot: int) -> int:
        """An id for what is in a RAM slot from now on: ACTIVE."""
        if self.free_id_count:
            self.free_id_count = top = self.free_id_count - 1
            frame = self.free_ids[top]
        else:
            frame = self.fresh_id
            self.fresh_id = frame + 1
        self.sequence = sequence = self.sequence + 1
        self.birth[frame] = sequence
        self.state[frame] = ACTIVE
        self.home[frame] = slot
        self.frame_of[slot] = frame
        return frame

    def give(self, frame: int) -> int:
        """Take back a frame that has no live zpage and is not in flight; returns its slot below (0:
        none) to be freed."""
        slot = self.home[frame]
        if slot:
            self.queues.unlink(slot)
            self.home[frame] = NONE
            self.slots.give(slot)
        else:
            self.cold -= 1
        below = self.below[frame]
        self.below[frame] = NONE
        self.state[frame] = FREE
        self.free_ids[self.free_id_count] = frame
        self.free_id_count += 1
        return below

    def give_births(self, count: int) -> int:
        """The first of `count` births that follow one another."""
        first = self.sequence + 1
        self.sequence += count
        return first

    def seal_of(self, frame: int) -> bytes:
        """What a frame that is below was sealed with."""
        return bytes(self.seal[frame * self.seal_bytes : (frame + 1) * self.seal_bytes])

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

    # -- figures and upkeep
    # -----------------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """Frames that a persistent put can have at once, without waiting for anything."""
        return max(self.slots.free_count + self.queue_length[_CLEAN] - self.reserve_frames, 0)

    @property
    def ready(self) -> int:
        """Frames that a persistent put can have without waiting for a tier: those, and ephemeral
        ones, which it eats one by one."""
        return self.available + self.queue_length[_EPHEMERAL]

    @property
    def free_slot_count(self) -> int:
        """RAM slots of the budget that are nobody's home."""
        return self.slots.free_count

    @property
    def budget_frames(self) -> int:
        """RAM slots that there are now, beside those to read into."""
        return self.max_budget_frames - self.slots.absent_count

    @property
    def resident(self) -> int:
        """Frames that hold a RAM slot of the budget."""
        return self.budget_frames - self.slots.free_count

    def fault_ahead(self) -> None:
        """Keep the tables populated beyond the ids in use. Not for the I/O path."""
        stop = self.fresh_id + AHEAD_BYTES // self.frame_bytes
        for table in self._id_tables:
            table.fault_ahead(stop)
        self.seal_table.fault_ahead(stop * self.seal_bytes)

    def vacate_oldest_clean(self) -> int:
        """CLEAN -> COLD for the frame that has been clean longest; returns the RAM slot it
        leaves."""
        queues = self.queues
        slot = queues.newer[self.slot_count + _CLEAN]
        queues.unlink(slot)
        frame = self.frame_of[slot]
        self.move(frame, State.COLD)
        self.home[frame] = NONE
        self.cold += 1
        self.dropped_clean += 1
        return slot

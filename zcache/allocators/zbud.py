"""zbud: at most two zpages in a pageframe, the "buddies", one justified to the left and one to the
right.

What it is: the allocator of the kernel's zcache (Dan Magenheimer, 2012; `mm/zbud.c` is its
descendant). Sizes are counted in chunks of 64 bytes, and a buddy of zero chunks is a free buddy, so
no flag says which is there. Frames with one buddy wait in "unbuddied" lists by how many chunks are
occupied; a new zpage goes to the fullest frame that still fits it (best fit), and to a frame of its
own if there is none.

What it is not: dense. No frame ever holds more than two zpages, so it stores at most 2.0 pages a
frame however well they compress. In return nothing is ever moved, holes never spread, and
reclaiming a whole frame touches two pages at most.

Guarantee: a frame holds zpages of one kind of pool only, because the unbuddied lists are kept by
kind. A put succeeds while a partly filled frame has room, even when no frame is free; but for those
in flight, whose bytes must not change.

The lists are rings by RAM slot, with heads beyond the slots, and one
64-bit word for each kind has a bit for each non-empty list: the best fit is a mask and a
`bit_length`.
Cost: 2 bytes a RAM slot for the sizes, 8 for the lists, 16 for the owners of ephemeral zpages
(untouched, and so free, while there are none).
"""

from array import array
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from zcache.allocators import EntriesOf, Found, ReleaseBelow
from zcache.errors import Imbalance
from zcache.image.flat_array import FlatArray, count_bytes
from zcache.pageframes import PageFrames, State
from zcache.pageframes.inheritance import beating
from zcache.pageframes.states import ACTIVE, DIRTY, WRITEBACK
from zcache.pageframes.view import Copied, FramesView
from zcache.pages.entry import (
    FRAME_MASK,
    LENGTH_MASK,
    LENGTH_SHIFT,
    OFFSET_MASK,
    OFFSET_SHIFT,
    PAGE_BYTES,
    PAGE_SHIFT,
    SAME_FILLED,
    zpage_bytes,
)
from zcache.pages.tmem import Kind

CHUNK_SHIFT: Final = 6
CHUNKS: Final = PAGE_BYTES >> CHUNK_SHIFT  # 64
FRAME_BYTES: Final = PAGE_BYTES

#: Of an entry: none is set for a left buddy.
_OFFSET_BITS: Final = OFFSET_MASK << OFFSET_SHIFT

#: For a zpage of n chunks: the unbuddied lists (bit m: m chunks occupied) whose frames have room
#: for it.
_LISTS_THAT_FIT: Final = [((1 << (CHUNKS - n + 1)) - 1) & ~1 for n in range(CHUNKS + 1)]


class Zbud:
    """An `Allocator`; all methods are called under the store's lock."""

    name = "zbud"
    frame_bytes = FRAME_BYTES
    reserve_frames = 0
    min_budget_frames = 64  # a request of 64 raw pages
    #: The original's limit: a zpage that leaves no chunk for a buddy gains nothing over the raw
    #: page.
    max_zpage_bytes = (CHUNKS - 1) << CHUNK_SHIFT

    def __init__(self, frames: PageFrames, release_below: ReleaseBelow, entries_of: EntriesOf) -> None:  # noqa: ARG002
        assert frames.frame_bytes == FRAME_BYTES
        self._frames = frames
        self._release_below = release_below
        slots = frames.slot_count
        self._left = bytearray(slots)  # chunks of the left buddy; 0: free
        self._right = bytearray(slots)
        self._heads = [slots, slots + CHUNKS]  # by kind; the list of frames with m chunks occupied is at head + m
        self._after = array("I", range(slots + 2 * CHUNKS))
        self._before = array("I", range(slots + 2 * CHUNKS))
        self._filled_lists = [0, 0]  # by kind: bit m is set while list m is not empty
        self._owners_array = FlatArray("Q", 2 * slots)
        self._owners = self._owners_array.view  # left, right
        self._inherited = FlatArray("B", 2 * (frames.frame_count + 1)).view  # chunks, left and right, while taking over

    @staticmethod
    def frames_for(page_count: int) -> int:
        """See `Allocator.frames_for`: at worst each page is alone in its frame."""
        return page_count

    def place(self, kind: Kind, data: bytes, tags: list[int], entries: list[int], owner: int) -> int:
        """See `Allocator.place`."""
        frames = self._frames
        ram, home, frame_of, state, live = frames.ram, frames.home, frames.frame_of, frames.state, frames.live
        left, right, after, before = self._left, self._right, self._after, self._before
        heads, filled = self._heads[kind], self._filled_lists[kind]
        offset_shift, length_shift, length_mask, same_filled, dirty = (
            OFFSET_SHIFT,
            LENGTH_SHIFT,
            LENGTH_MASK,
            SAME_FILLED,
            DIRTY,
        )
        begin = len(entries)
        at = sum(map(zpage_bytes, tags[:begin])) if begin else 0
        try:
            for index in range(begin, len(tags)):
                tag = tags[index]
                if not 0 < tag < same_filled:
                    entries.append(tag)
                    continue
                length = (tag >> length_shift & length_mask) + 1
                chunks = (length + 63) >> 6
                fitting = filled & _LISTS_THAT_FIT[chunks]
                if fitting:
                    occupied = fitting.bit_length() - 1
                    head = heads + occupied
                    slot = after[head]
                    follower = after[slot]
                    after[head] = follower
                    before[follower] = head
                    if follower == head:
                        filled &= ~(1 << occupied)
                    frame = frame_of[slot]
                    live[frame] = 2
                    state[frame] = dirty
                    if left[slot]:
                        right[slot] = chunks
                        offset = (CHUNKS - chunks) << 6
                    else:
                        left[slot] = chunks
                        offset = 0
                else:
                    frame = frames.take(kind)
                    if not frame:
                        return index
                    slot = home[frame]
                    left[slot], right[slot] = chunks, 0
                    offset = 0
                    live[frame] = 1
                    if chunks < CHUNKS:
                        head = heads + chunks
                        follower = after[head]
                        after[head] = slot
                        before[slot] = head
                        after[slot] = follower
                        before[follower] = slot
                        filled |= 1 << chunks
                    else:
                        state[frame] = dirty  # a raw page fills the frame
                start = (slot << PAGE_SHIFT) + offset
                ram[start : start + length] = data[at : at + length]
                at += length
                entries.append(tag | offset << offset_shift | frame)
                if kind:
                    self._owners[2 * slot + (offset != 0)] = owner + index
        finally:
            self._filled_lists[kind] = filled
        return len(tags)

    def place_one(self, kind: Kind, body: bytes, tag: int, owner: int) -> int:
        """See `Allocator.place_one`."""
        entries: list[int] = []
        return entries[0] if self.place(kind, body, [tag], entries, owner) else 0

    def release(self, entries: Sequence[int]) -> None:
        """See `Allocator.release`. A DIRTY frame that loses a buddy is ACTIVE again: its room is
        offered."""
        frames = self._frames
        state, live, home = frames.state, frames.live, frames.home
        active, dirty, frame_mask, offset_bits = ACTIVE, DIRTY, FRAME_MASK, _OFFSET_BITS
        for entry in entries:
            frame = entry & frame_mask
            remaining = live[frame] - 1
            live[frame] = remaining
            now = state[frame]
            if now <= dirty:
                slot = home[frame]
                if remaining:
                    if entry & offset_bits:
                        self._right[slot] = 0
                    else:
                        self._left[slot] = 0
                    state[frame] = active
                    self._offer(slot)
                else:
                    if now == active:
                        self._withdraw(slot)
                    frames.give(frame)
            elif now == WRITEBACK:  # freed, or offered again, when its flight has ended
                if entry & offset_bits:
                    self._right[home[frame]] = 0
                else:
                    self._left[home[frame]] = 0
            elif not remaining:  # CLEAN or COLD
                self._release_below(frames.give(frame))

    kept_frames = 0

    def retire(self, frame: int) -> bool:
        """See `Allocator.retire`. Called while the frame is still ACTIVE or DIRTY."""
        if self._frames.state[frame] == State.ACTIVE:
            self._withdraw(self._frames.home[frame])
        return True

    def restore(self, frame: int) -> None:
        """See `Allocator.restore`."""
        slot = self._frames.home[frame]
        if self._has_room(self._left[slot], self._right[slot]):
            self._frames.move(frame, State.ACTIVE)
            self._offer(slot)

    def evict(self, frame: int) -> list[int]:
        """See `Allocator.evict`."""
        frames = self._frames
        slot = frames.home[frame]
        owners = self._owners
        alive = []
        if self._left[slot]:
            alive.append(owners[2 * slot])
        if self._right[slot]:
            alive.append(owners[2 * slot + 1])
        self.retire(frame)
        frames.live[frame] = 0
        frames.give(frame)
        return alive

    def populate_for_ephemeral(self) -> None:
        """See `Allocator.populate_for_ephemeral`: whose they are."""
        self._owners_array.fault_ahead(self._owners_array.count)

    def inherit(self, entry: int) -> None:
        """See `Allocator.inherit`."""
        offset = entry >> OFFSET_SHIFT & OFFSET_MASK
        chunks = ((entry >> LENGTH_SHIFT & LENGTH_MASK) + 64) >> CHUNK_SHIFT
        is_right = offset != 0
        place = 2 * (entry & FRAME_MASK) + is_right
        if self._inherited[place] or (is_right and offset != (CHUNKS - chunks) << CHUNK_SHIFT):
            raise Imbalance(f"zbud: frame {entry & FRAME_MASK} holds a zpage of {chunks} chunks at {offset}")
        self._inherited[place] = chunks

    def inherited_state(self, frame: int) -> State:
        """See `Allocator.inherited_state`."""
        left, right = self._inherited[2 * frame], self._inherited[2 * frame + 1]
        if left + right > CHUNKS:
            raise Imbalance(f"zbud: the zpages of frame {frame} overlap")
        slot = self._frames.home[frame]
        self._left[slot], self._right[slot] = left, right
        return State.ACTIVE if self._has_room(left, right) else State.DIRTY

    def offer_inherited(self, beat: Callable[[], None]) -> None:
        """See `Allocator.offer_inherited`."""
        frames = self._frames
        for slot in beating(range(1, frames.slot_count), beat):
            if frames.state[frames.frame_of[slot]] == State.ACTIVE:
                self._offer(slot)
        self._inherited = FlatArray("B", 1).view  # it was for this

    def view(self, copied: Copied, frames: FramesView) -> "ZbudView":
        """See `Allocator.view`."""
        left, right, after = (copied(memoryview(each)) for each in (self._left, self._right, self._after))
        return ZbudView(frames, left, right, after, self._heads, list(self._filled_lists))

    @staticmethod
    def _has_room(left: int, right: int) -> bool:
        return not (left and right) and left + right < CHUNKS

    def _offer(self, slot: int) -> None:
        """Put a frame with one buddy at the front of the list that its occupied chunks name."""
        kind = self._frames.queue_of[slot]
        occupied = self._left[slot] + self._right[slot]
        head = self._heads[kind] + occupied
        after, before = self._after, self._before
        follower = after[head]
        after[head] = slot
        before[slot] = head
        after[slot] = follower
        before[follower] = slot
        self._filled_lists[kind] |= 1 << occupied

    def _withdraw(self, slot: int) -> None:
        """Take a frame out of its unbuddied list."""
        kind = self._frames.queue_of[slot]
        follower, predecessor = self._after[slot], self._before[slot]
        self._after[predecessor] = follower
        self._before[follower] = predecessor
        if follower == predecessor:  # only the head is left
            self._filled_lists[kind] &= ~(1 << (self._left[slot] + self._right[slot]))


class ZbudView(NamedTuple):
    """See `Allocator.view`: by RAM slot, the chunks of either buddy, and the lists that frames are
    in; these end with their heads."""

    frames: FramesView
    left: memoryview
    right: memoryview
    after: memoryview
    heads: list[int]  # by kind
    filled_lists: list[int]  # by kind

    def check(self, found: Found) -> None:
        """See `AllocatorView.check`."""
        frames, left, right, after = self.frames, self.left, self.right, self.after
        live, place = found.live, found.place
        offered = 0
        for kind in Kind:
            for occupied in range(1, CHUNKS):
                head = self.heads[kind] + occupied
                slot = after[head]
                if (slot != head) != bool(self.filled_lists[kind] >> occupied & 1):
                    raise Imbalance(f"zbud: list {occupied} of kind {kind.value} and its bit disagree")
                while slot != head:
                    offered += 1
                    frame = frames.frame_of[slot]
                    if frames.state[frame] != State.ACTIVE or frames.queue_of[slot] != kind:
                        raise Imbalance(f"zbud: frame {frame} is offered but not an ACTIVE one of kind {kind.value}")
                    if left[slot] + right[slot] != occupied:
                        raise Imbalance(f"zbud: frame {frame} is in the list of {occupied} occupied chunks")
                    sizes = left[slot], right[slot]
                    start, stop = place[frame] & 0xFFFF, place[frame] >> 16
                    chunks = (stop - start + 63) >> CHUNK_SHIFT
                    if live[frame] != 1 or sizes != ((0, chunks) if start else (chunks, 0)):
                        raise Imbalance(f"zbud: frame {frame} has buddies of {sizes} chunks, its zpage {chunks}")
                    if offered > frames.slot_count:
                        raise Imbalance(f"zbud: list {occupied} of kind {kind.value} is a circle without an end")
                    slot = after[slot]
        active = count_bytes(frames.state[1 : frames.fresh_id], State.ACTIVE)
        if active != offered:
            raise Imbalance(f"zbud: {active} frames are ACTIVE, {offered} are offered")
        fullest = max(live)
        if fullest > 2:
            raise Imbalance(f"zbud: a frame holds {fullest} zpages")

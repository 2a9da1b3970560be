"""log: zpages are appended to frames of 64 KiB, one behind the other, and holes are never filled.

What it is: the log-structured memory of RAMCloud ("Log-structured Memory for DRAM-based Storage",
Rumble, Kejriwal and Ousterhout, FAST 2014), which is a log-structured file system's. A put costs
one copy for each frame that it reaches, whatever its zpages' sizes; no space is searched for, and
none is lost but at the end of a frame, where the next zpage does not fit: the density of the codec.
What dies leaves a hole, so frames have to be *packed*: what is still alive in the emptiest is
copied together into fewer (`collect`, `append`; `zcache.reclaim.compaction` says which, and when).

A frame, from both ends:

    | zpage | zpage | zpage | ...        free         ... | record 1 | record 0 | how many records |
    0                                                                                          65 536

A record says, in 8 bytes, whose zpages were appended together: the owner of the first page (56
bits) and how many pages from there, less one (8 bits). It is how a frame's live zpages are found: a
page that a record names is in this frame if the page's entry says so. So records are hints and are
never wrong, only out of date; they go wherever the frame goes, and cost 8 bytes a request.

Four frames are open at a time, ACTIVE, each for zpages of its own: persistent pages, ephemeral
pages, what is packed, and what is packed after it was compressed once more. All others are DIRTY,
or on their way down.

Guarantee, with R for the open frames and the reserve: `pages / 14 + R` frames hold that many pages,
even if none of them compresses. A frame takes at least 15 raw pages. A frame's *weight* is what its
live zpages take, with a record for each: at most 4104 a page. While more than `pages / 14` frames
are in use, one of them weighs at most 57 456 (14 * 4104), and so does not fill a new frame when it
is packed (61 416 for sure, `WORST_WEIGHT`): space is always found by packing the lightest frames.
`RESERVE_FRAMES` RAM slots are kept from puts for that; each frame packed gives one back. So what is
promised is an eighth less than the frames' bytes.

Cost: 5 bytes a frame id.
"""

import copy
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from zcache.allocators import EntriesOf, Found, ReleaseBelow
from zcache.errors import Imbalance
from zcache.image.flat_array import count_bytes
from zcache.pageframes import PageFrames, State
from zcache.pages.codec import LZ4
from zcache.pages.entry import (
    CODEC_MASK,
    CODEC_SHIFT,
    FRAME_MASK,
    LENGTH_MASK,
    LENGTH_SHIFT,
    OFFSET_MASK,
    OFFSET_SHIFT,
    OWNER_INDEX_BITS,
    PAGE_BYTES,
    SAME_FILLED,
)

FRAME_SHIFT: Final = 16
FRAME_BYTES: Final = 1 << FRAME_SHIFT
RECORD_BYTES: Final = 8
#: In a frame: how many records there are, and the first of them; others follow before it.
COUNT_AT: Final = FRAME_BYTES - RECORD_BYTES
FIRST_RECORD: Final = COUNT_AT - RECORD_BYTES

_SPAN_SHIFT: Final = 56
_MAX_SPAN: Final = 1 << (64 - _SPAN_SHIFT)
_OWNER_MASK: Final = (1 << _SPAN_SHIFT) - 1
_INDEX_MASK: Final = (1 << OWNER_INDEX_BITS) - 1

PAGES_PROMISED: Final = 14  # a frame
RESERVE_FRAMES: Final = 4
#: Of frames that gain something when they are packed.
WORST_WEIGHT: Final = PAGES_PROMISED * (PAGE_BYTES + RECORD_BYTES)

#: The tag of an entry: all but its place.
_TAG_MASK: Final = ~(OFFSET_MASK << OFFSET_SHIFT | FRAME_MASK)


class Stream(IntEnum):
    """What has an open frame of its own."""

    PERSISTENT = 0  # the first two are the kinds of pools
    EPHEMERAL = 1
    PACKED = 2
    RECOMPRESSED = 3


_KEPT: Final = (Stream.PACKED, Stream.RECOMPRESSED)


class Live(NamedTuple):
    """A live zpage, out of its frame: whose it is, its entry there, its entry without a place, and
    its bytes."""

    owner: int
    entry: int
    tag: int
    body: bytes

    @property
    def saved_bytes(self) -> int:
        """What the body is shorter by than it was there."""
        return (self.entry >> LENGTH_SHIFT & LENGTH_MASK) + 1 - len(self.body)


class _Head:
    """An open frame: zpages go in at `fill`, and their record at `room`, both in bytes from its
    start; it begins at `base` in RAM. A zpage may not reach beyond `room`."""

    __slots__ = ("base", "fill", "frame", "room")

    def __init__(self) -> None:
        self.close()

    def open(self, frame: int, slot: int) -> None:
        """The frame, empty, in its RAM slot."""
        self.frame, self.base = frame, slot << FRAME_SHIFT
        self.fill, self.room = 0, FIRST_RECORD

    def close(self) -> None:
        """There is no frame, and no room."""
        self.frame = self.base = self.fill = 0
        self.room = -1


class Log:
    """An `Allocator`; all methods are called under the store's lock."""

    name = "log"
    frame_bytes = FRAME_BYTES
    reserve_frames = RESERVE_FRAMES
    min_budget_frames = 16  # a request of 64 raw pages takes five
    #: What a raw page takes, less what decompressing costs: the limit of the original.
    max_zpage_bytes = PAGE_BYTES - 64

    def __init__(self, frames: PageFrames, release_below: ReleaseBelow, entries_of: EntriesOf) -> None:
        assert frames.frame_bytes == FRAME_BYTES
        self._frames = frames
        self._release_below = release_below
        self._entries_of = entries_of
        self._ram = frames.ram
        self._words = frames.ram_view.cast("Q")
        self._live = frames.live
        self.weight = frames.new_table("I")
        self.is_tight = frames.new_table("B")  # there is nothing to gain by compressing it again
        self._heads = [_Head() for _ in Stream]
        self.released_zpages = 0  # ever

    @staticmethod
    def frames_for(page_count: int) -> int:
        """See `Allocator.frames_for`, and above."""
        return -(-page_count // PAGES_PROMISED) + len(Stream) + RESERVE_FRAMES

    # -- placing and releasing (hot)
    # --------------------------------------------------------------------------------

    def place(self, kind: int, bodies: Sequence[bytes], tags: Sequence[int], entries: list[int], owner: int) -> int:
        """See `Allocator.place`. What a request puts into one frame is joined, and copied there at
        once."""
        head = self._heads[kind]
        data = b"".join(bodies) if not entries else b""
        if entries or head.fill + len(data) > head.room:
            return self._place_apart(head, kind, bodies, tags, entries, owner)
        # Fast path: all into the open frame.
        place = head.fill << 31 | head.frame
        try:
            for tag, body in zip(tags, bodies, strict=True):
                if body:
                    entries.append(tag | place)
                    place += len(body) << 31
                else:
                    entries.append(tag)
            if data:
                self._write(head, data, len(bodies) - bodies.count(b""), len(bodies) - 1 << 56 | owner)
        except BaseException:
            entries.clear()  # they are nowhere
            raise
        return len(bodies)

    def place_one(self, kind: int, body: bytes, tag: int, owner: int) -> int:
        """See `Allocator.place_one`."""
        head = self._heads[kind]
        frame, fill, room, base = head.frame, head.fill, head.room, head.base
        size = len(body)
        stop = fill + size
        if stop > room:
            entries: list[int] = []
            return entries[0] if self._place_apart(head, kind, (body,), (tag,), entries, owner) else 0
        # As `_write`, without the call.
        self._ram[base + fill : base + stop] = body
        words = self._words
        words[base + room >> 3] = owner
        words[base + COUNT_AT >> 3] = COUNT_AT - room >> 3
        head.fill = stop
        head.room = room - 8
        self._live[frame] += 1
        self.weight[frame] += size + 8
        return tag | fill << 31 | frame

    def _write(self, head: _Head, data: bytes, count: int, record: int) -> None:
        """The bytes of `count` zpages, for which there is room, and their record: all before an
        entry names them."""
        frame, fill, room, base = head.frame, head.fill, head.room, head.base
        head.fill = stop = fill + len(data)
        self._ram[base + fill : base + stop] = data
        words = self._words
        words[base + room >> 3] = record
        words[base + COUNT_AT >> 3] = COUNT_AT - room >> 3
        head.room = room - 8
        self._live[frame] += count
        self.weight[frame] += len(data) + 8 * count

    def _place_apart(
        self, head: _Head, kind: int, bodies: Sequence[bytes], tags: Sequence[int], entries: list[int], owner: int
    ) -> int:
        """What does not fit into the open frame goes into one more, or several."""
        begin, fill = len(entries), head.fill  # of the run of pages for this frame
        try:
            for index in range(begin, len(bodies)):
                body = bodies[index]
                if body:
                    if fill + len(body) > head.room:
                        self._write_run(head, bodies[begin:index], owner + begin)
                        begin = index
                        frame = self._frames.take(kind)
                        if not frame:
                            return index
                        self._begin_frame(head, frame, False)
                        fill = 0
                    entries.append(tags[index] | fill << OFFSET_SHIFT | head.frame)
                    fill += len(body)
                else:
                    entries.append(tags[index])
            self._write_run(head, bodies[begin:], owner + begin)
        except BaseException:
            del entries[begin:]  # they are nowhere
            raise
        return len(bodies)

    def _write_run(self, head: _Head, bodies: Sequence[bytes], owner: int) -> None:
        count = len(bodies) - bodies.count(b"")
        if count:
            self._write(head, b"".join(bodies), count, len(bodies) - 1 << _SPAN_SHIFT | owner)

    def _begin_frame(self, head: _Head, frame: int, is_tight: bool) -> None:
        """A frame that was just taken is open, and the one before takes no more."""
        if head.frame:
            self._frames.state[head.frame] = 2  # DIRTY
        head.open(frame, self._frames.home[frame])
        self.is_tight[frame] = is_tight

    def release(self, entries: Sequence[int]) -> None:
        """See `Allocator.release`."""
        live, weight = self._live, self.weight
        self.released_zpages += len(entries)
        # Neighbours are often in one frame: its counts are changed once for them all.
        last = count = size = 0
        for entry in entries:
            frame = entry & 0x7FFFFFFF
            if frame != last:
                if count:
                    weight[last] -= size + 9 * count
                    live[last] -= count
                    if not live[last]:
                        self._died(last)
                last, count, size = frame, 0, 0
            count += 1
            size += entry >> 47 & 0xFFF
        if count:
            weight[last] -= size + 9 * count
            live[last] -= count
            if not live[last]:
                self._died(last)

    def _died(self, frame: int) -> None:
        """The last zpage of a frame is gone."""
        state = self._frames.state[frame]
        if state <= State.DIRTY:
            self._close(frame)
            self._frames.give(frame)
        elif state != State.WRITEBACK:  # its flight frees it
            self._release_below(self._frames.give(frame))

    @property
    def kept_frames(self) -> int:
        """See `Allocator.kept_frames`: those that are packed into. What room they have is what
        packing has gained so far, and each frame that is packed gains some more: so packing comes
        to an end, in one way or the other."""
        return sum(self._heads[stream].frame > 0 for stream in _KEPT)

    def retire(self, frame: int) -> bool:
        """See `Allocator.retire`."""
        if any(self._heads[stream].frame == frame for stream in _KEPT):
            return False
        self._close(frame)
        return True

    def _close(self, frame: int) -> None:
        """Append nothing more."""
        for head in self._heads:
            if head.frame == frame:
                head.close()

    def restore(self, frame: int) -> None:
        """See `Allocator.restore`: a frame that was closed stays so, and DIRTY."""

    def evict(self, frame: int) -> list[int]:
        """See `Allocator.evict`."""
        frames = self._frames
        owners = list(self._find_live(frame, frames.home[frame]))
        self._close(frame)
        frames.live[frame] = self.weight[frame] = 0
        frames.give(frame)
        return owners

    def populate_for_ephemeral(self) -> None:
        """See `Allocator.populate_for_ephemeral`: whose they are is in the frame."""

    # -- packing
    # ----------------------------------------------------------------------------------------------

    def collect(self, frame: int, slot: int) -> list[Live]:
        """All that is alive in a frame, whose bytes are in RAM slot `slot`, in the order in which
        it was appended."""
        ram, base = self._frames.ram, slot << FRAME_SHIFT
        zpages = []
        for owner, entry in self._find_live(frame, slot).items():
            start = base + (entry >> OFFSET_SHIFT & OFFSET_MASK)
            body = ram[start : start + (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1]
            zpages.append(Live(owner, entry, entry & _TAG_MASK, body))
        return zpages

    def is_in_place(self, zpage: Live) -> bool:
        """Whether the page is still what was collected, if its frame has the birth that it had."""
        table = self._entries_of(zpage.owner >> OWNER_INDEX_BITS)
        return table is not None and table[zpage.owner & _INDEX_MASK] == zpage.entry

    def append(self, zpages: Sequence[Live], stream: Stream, behind: int) -> int:
        """Give zpages that were collected a new place, and publish their entries, which are still
        what they were; their old places are released. `behind`: see `PageFrames.take_reserved`.
        Returns how many found room."""
        head = self._heads[stream]
        pending: list[Live] = []
        entries: list[int] = []
        records: list[int] = []  # those of `pending`
        fill, room = head.fill, head.room + RECORD_BYTES  # no record is needed for what extends the last
        first = last = -1  # of the record that is being made
        done = 0
        for zpage in zpages:
            owner = zpage.owner
            extends = records and last < owner < first + _MAX_SPAN
            if fill + len(zpage.body) > room - (0 if extends else RECORD_BYTES):
                done += self._write_packed(head, pending, entries, records)
                pending, entries, records = [], [], []
                frame = self._frames.take_reserved(behind)
                if not frame:
                    return done
                self._begin_frame(head, frame, stream is Stream.RECOMPRESSED)
                fill, room, extends = 0, head.room + RECORD_BYTES, False
            if extends:
                records[-1] = owner - first << _SPAN_SHIFT | first
            else:
                first = owner
                records.append(owner)
                room -= RECORD_BYTES
            last = owner
            pending.append(zpage)
            entries.append(zpage.tag | fill << OFFSET_SHIFT | head.frame)
            fill += len(zpage.body)
        return done + self._write_packed(head, pending, entries, records)

    def _write_packed(self, head: _Head, zpages: list[Live], entries: list[int], records: list[int]) -> int:
        """As `_write`, of pages here and there; and publish them. Returns how many."""
        if not zpages:
            return 0
        for record in records[:-1]:
            self._write(head, b"", 0, record)
        self._write(head, b"".join([zpage.body for zpage in zpages]), len(zpages), records[-1])
        handle, table = -1, None
        for zpage, entry in zip(zpages, entries, strict=True):
            if zpage.owner >> OWNER_INDEX_BITS != handle:
                handle = zpage.owner >> OWNER_INDEX_BITS
                table = self._entries_of(handle)
            assert table
            table[zpage.owner & _INDEX_MASK] = entry
        self.release([zpage.entry for zpage in zpages])
        return len(zpages)

    def _find_live(self, frame: int, slot: int) -> dict[int, int]:
        """Owners and entries of all that is alive in a frame whose bytes are in RAM slot `slot`."""
        found: dict[int, int] = {}
        top = (slot << FRAME_SHIFT) + COUNT_AT >> 3
        count = min(self._words[top], FIRST_RECORD // RECORD_BYTES)
        live = self._live[frame]
        handle, entries = -1, None
        for record in reversed(self._words[top - count : top].tolist()):
            first = record & _OWNER_MASK
            if first >> OWNER_INDEX_BITS != handle:
                handle = first >> OWNER_INDEX_BITS
                entries = self._entries_of(handle)
            if entries is None:
                continue
            index = first & _INDEX_MASK
            if first == record:
                entry = entries[index]
                if entry & FRAME_MASK == frame and entry < SAME_FILLED:
                    found[first] = entry
            else:
                for owner, entry in enumerate(entries[index : index + (record >> _SPAN_SHIFT) + 1].tolist(), first):
                    if entry & FRAME_MASK == frame and entry < SAME_FILLED:
                        found[owner] = entry
            if len(found) == live:
                break
        return found

    # -- taking over, and looking on
    # ----------------------------------------------------------------------------------

    def inherit(self, entry: int) -> None:
        """See `Allocator.inherit`."""
        frame = entry & FRAME_MASK
        length = (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1
        if (entry >> OFFSET_SHIFT & OFFSET_MASK) + length > FIRST_RECORD:
            raise Imbalance(f"log: frame {frame} holds a zpage of {length} bytes that overruns it")
        if not self._live[frame]:
            self.is_tight[frame] = True
        if entry >> CODEC_SHIFT & CODEC_MASK == LZ4:
            self.is_tight[frame] = False
        self.weight[frame] += length + RECORD_BYTES

    def inherited_state(self, frame: int) -> State:
        """See `Allocator.inherited_state`: no frame is open."""
        if self._live_bytes(frame) > FIRST_RECORD:
            raise Imbalance(f"log: the zpages of frame {frame} overlap")
        return State.DIRTY

    def offer_inherited(self, beat: Callable[[], None]) -> None:
        """See `Allocator.offer_inherited`: there are none."""

    def _live_bytes(self, frame: int) -> int:
        return int(self.weight[frame]) - int(self._frames.live[frame]) * RECORD_BYTES

    def copied_to(self, copied: Callable[[memoryview], memoryview], frames: PageFrames) -> "Log":
        """See `Allocator.copied_to`."""
        twin = copy.copy(self)
        twin._frames = frames
        twin.weight = copied(self.weight[: frames.fresh_id])
        twin._heads = list(map(copy.copy, self._heads))
        return twin

    def check(self, found: Found) -> None:
        """See `Allocator.check`."""
        frames = self._frames
        for frame in range(1, frames.fresh_id):
            if self.weight[frame] != found.live_bytes[frame] + found.live[frame] * RECORD_BYTES:
                raise Imbalance(
                    f"log: frame {frame} weighs {self.weight[frame]}, "
                    f"with {found.live[frame]} zpages of {found.live_bytes[frame]} bytes"
                )
        opened = [head.frame for head in self._heads if head.frame]
        for frame in opened:
            if frames.state[frame] != State.ACTIVE:
                raise Imbalance(f"log: frame {frame} is open, and {State(frames.state[frame]).name}")
        active = count_bytes(frames.state[1 : frames.fresh_id], State.ACTIVE)
        if active != len(opened):
            raise Imbalance(f"log: {active} frames are ACTIVE, those that are open are {opened}")

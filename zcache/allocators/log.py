"""log: zpages are appended to frames of 64 KiB, one behind the other, and holes are never filled.

What it is: the log-structured memory of RAMCloud ("Log-structured Memory for DRAM-based Storage",
Rumble, Kejriwal and Ousterhout, FAST 2014), which is a log-structured file system's. A put costs
one copy for each frame that it reaches, whatever its zpages' sizes; no space is searched for, and
none is lost but at the end of a frame, where the next zpage does not fit: the density of the codec.
What dies leaves a hole, so frames have to be *packed*: what is still alive in the emptiest is
copied together into fewer (`zcache.allocators.log_packing`; `zcache.reclaim.compaction` says which,
and when).

How a frame is laid out, and how what is alive in it is found, `zcache.allocators.log_frame` says.

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

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from zcache.allocators import EntriesOf, Found, ReleaseBelow
from zcache.allocators.log_append import Appender, PythonAppender
from zcache.allocators.log_frame import (
    FIRST_RECORD,
    FRAME_BYTES,
    RECORD_BYTES,
    Head,
    Stream,
    close_head,
    find_live,
    open_head,
)
from zcache.errors import Imbalance
from zcache.image.flat_array import count_bytes
from zcache.pageframes import PageFrames, State
from zcache.pageframes.states import DIRTY, WRITEBACK
from zcache.pageframes.view import Copied, FramesView
from zcache.pages.codec import LZ4
from zcache.pages.entry import (
    CODEC_MASK,
    CODEC_SHIFT,
    FRAME_MASK,
    LENGTH_MASK,
    LENGTH_SHIFT,
    OFFSET_MASK,
    OFFSET_SHIFT,
    PAGE_BYTES,
)
from zcache.pages.tmem import Kind

PAGES_PROMISED: Final = 14  # a frame
RESERVE_FRAMES: Final = 4
#: Of frames that gain something when they are packed.
WORST_WEIGHT: Final = PAGES_PROMISED * (PAGE_BYTES + RECORD_BYTES)

#: Of a zpage: its record, and what the length in its entry is less by.
_LEAST_WEIGHT: Final = RECORD_BYTES + 1

_KEPT: Final = (Stream.PACKED, Stream.RECOMPRESSED)


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
        self._words = frames.ram_view.cast("Q")
        self._live = frames.live
        self.weight = frames.new_table("I")
        self.is_tight = frames.new_table("B")  # there is nothing to gain by compressing it again
        python = PythonAppender(frames.ram, frames.live, self.weight)
        self.write = python.write  # for packing
        self.append_by(python)
        self.released_zpages = 0  # ever

    def append_by(self, appender: Appender) -> None:
        """Have puts append by this one, before there are any."""
        self._appender = appender
        self.heads = [appender.new_head() for _ in Stream]

    @staticmethod
    def frames_for(page_count: int) -> int:
        """See `Allocator.frames_for`, and above."""
        return -(-page_count // PAGES_PROMISED) + len(Stream) + RESERVE_FRAMES

    # -- placing and releasing (hot)
    # --------------------------------------------------------------------------------

    def place(self, kind: Kind, data: bytes, tags: list[int], entries: list[int], owner: int) -> int:
        """See `Allocator.place`. What a request puts into one frame is copied there at once, with
        one record."""
        head = self.heads[kind]
        append = self._appender.append
        count = len(tags)
        while (done := append(head, data, tags, entries, owner)) < count:
            frame = self._frames.take(kind)
            if not frame:
                break
            self.begin_frame(head, frame, False)
        return done

    def place_one(self, kind: Kind, body: bytes, tag: int, owner: int) -> int:
        """See `Allocator.place_one`."""
        entry = self._appender.append_one(self.heads[kind], body, tag, owner)
        if entry:
            return entry
        entries: list[int] = []
        return entries[0] if self.place(kind, body, [tag], entries, owner) else 0

    def begin_frame(self, head: Head, frame: int, is_tight: bool) -> None:
        """A frame that was just taken is open, and the one before takes no more."""
        if head.frame:
            self._frames.state[head.frame] = DIRTY
        open_head(head, frame, self._frames.home[frame])
        self.is_tight[frame] = is_tight

    def release(self, entries: Sequence[int]) -> None:
        """See `Allocator.release`."""
        live, weight = self._live, self.weight
        self.released_zpages += len(entries)
        frame_mask, length_shift, length_mask = FRAME_MASK, LENGTH_SHIFT, LENGTH_MASK
        # Neighbours are often in one frame: its counts are changed once for them all.
        last = count = size = 0
        for entry in entries:
            frame = entry & frame_mask
            if frame != last:
                if count:
                    weight[last] -= size + _LEAST_WEIGHT * count
                    live[last] -= count
                    if not live[last]:
                        self._died(last)
                last, count, size = frame, 0, 0
            count += 1
            size += entry >> length_shift & length_mask
        if count:
            weight[last] -= size + _LEAST_WEIGHT * count
            live[last] -= count
            if not live[last]:
                self._died(last)

    def _died(self, frame: int) -> None:
        """The last zpage of a frame is gone."""
        state = self._frames.state[frame]
        if state <= DIRTY:
            self._close(frame)
            self._frames.give(frame)
        elif state != WRITEBACK:  # its flight frees it
            self._release_below(self._frames.give(frame))

    @property
    def kept_frames(self) -> int:
        """See `Allocator.kept_frames`: those that are packed into. What room they have is what
        packing has gained so far, and each frame that is packed gains some more: so packing comes
        to an end, in one way or the other."""
        return sum(self.heads[stream].frame > 0 for stream in _KEPT)

    def retire(self, frame: int) -> bool:
        """See `Allocator.retire`."""
        if any(self.heads[stream].frame == frame for stream in _KEPT):
            return False
        self._close(frame)
        return True

    def _close(self, frame: int) -> None:
        """Append nothing more."""
        for head in self.heads:
            if head.frame == frame:
                close_head(head)

    def restore(self, frame: int) -> None:
        """See `Allocator.restore`: a frame that was closed stays so, and DIRTY."""

    def evict(self, frame: int) -> list[int]:
        """See `Allocator.evict`."""
        frames = self._frames
        owners = list(self.find_live(frame, frames.home[frame]))
        self._close(frame)
        frames.live[frame] = self.weight[frame] = 0
        frames.give(frame)
        return owners

    def populate_for_ephemeral(self) -> None:
        """See `Allocator.populate_for_ephemeral`: whose they are is in the frame."""

    def find_live(self, frame: int, slot: int) -> dict[int, int]:
        """Owners and entries of all that is alive in a frame whose bytes are in RAM slot `slot`."""
        return find_live(self._words, frame, slot, self._live[frame], self._entries_of)

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

    def view(self, copied: Copied, frames: FramesView) -> "LogView":
        """See `Allocator.view`."""
        opened = [head.frame for head in self.heads if head.frame]
        return LogView(frames, copied(self.weight[: frames.fresh_id]), opened)


class LogView(NamedTuple):
    """See `Allocator.view`: what each frame weighs, by its id, and which frames are open."""

    frames: FramesView
    weight: memoryview
    opened: list[int]

    def check(self, found: Found) -> None:
        """See `AllocatorView.check`."""
        frames, weight, opened = self
        for frame in range(1, frames.fresh_id):
            if weight[frame] != found.live_bytes[frame] + found.live[frame] * RECORD_BYTES:
                raise Imbalance(
                    f"log: frame {frame} weighs {weight[frame]}, "
                    f"with {found.live[frame]} zpages of {found.live_bytes[frame]} bytes"
                )
        for frame in opened:
            if frames.state[frame] != State.ACTIVE:
                raise Imbalance(f"log: frame {frame} is open, and {State(frames.state[frame]).name}")
        active = count_bytes(frames.state[1 : frames.fresh_id], State.ACTIVE)
        if active != len(opened):
            raise Imbalance(f"log: {active} frames are ACTIVE, those that are open are {opened}")

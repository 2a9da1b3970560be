"""Recompression: lz4 zpages that nobody has asked for in a while are compressed again, with zstd,
into fewer frames.

lz4 is quick to write and quick to read; zstd gets half as much again out of the same pages, for
five times the time of both. So what is cold is worth it: the oldest frames, before they are written
below, and, when there is nothing else to do, all that has rested for `REST_SECONDS`. A frame that
was read since gets one more round, as reclaim would give it.

One frame at a time: its zpages are copied out under the lock, compressed without it, and given
their new place under it again, those whose entries are still what they were (the frame's birth says
that it is the same frame). A zpage that does not become smaller is moved as it is. What is made of
it is *tight*: not looked at again.

What it may cost is `zcache.reclaim.spare_time`'s to say.
"""

from typing import Final

from zcache.allocators.log import Log
from zcache.allocators.log_frame import Stream
from zcache.allocators.log_packing import Live, LogPacking
from zcache.books import Books
from zcache.errors import PageDamaged
from zcache.pageframes import PageFrames, State
from zcache.pageframes.queues import Queue
from zcache.pages.codec import LZ4, Codec, decompress
from zcache.pages.entry import CODEC_MASK, CODEC_SHIFT, LENGTH_SHIFT

#: A frame that was begun so long ago is at rest; or up to twice as long.
REST_SECONDS: Final = 10.0
#: Frames that are looked at in one go, under the lock: 30 us.
LOOKED_AT: Final = 256
#: Of a frame's bytes: what must be gained, or it stays as it is.
WORTH_GAINING: Final = 0.1


class Recompressor:
    """Compresses what is at rest once more, with `codec`; called without the lock, by any
    thread."""

    def __init__(
        self,
        frames: PageFrames,
        log: Log,
        packing: LogPacking,
        codec: Codec,
        books: Books,
    ) -> None:
        self._frames = frames
        self._log = log
        self._packing = packing
        self.codec = codec
        self._lock, self._statistics, _, self._clock = books
        self._slot = 0  # where the last look ended
        # A birth, and when it was the last one; and the one before, which is `REST_SECONDS` older.
        self._noted = self._noted_before = (self._clock.now(), 0)

    def recompress_oldest(self) -> bool:
        """One of the oldest frames, which are the next to leave RAM. Whether there was one."""
        return self._recompress(0, self._frames.sequence, is_walk=False)[0]

    def recompress_rested(self) -> bool:
        """One frame that is at rest, anywhere in the queue; a second chance is used up by this.
        Whether there was one."""
        now = self._clock.now()
        if now - self._noted[0] >= REST_SECONDS:
            self._noted, self._noted_before = (now, self._frames.sequence), self._noted
        found, self._slot = self._recompress(self._slot, self._noted_before[1], is_walk=True)
        return found

    def _recompress(self, slot: int, last_birth: int, is_walk: bool) -> tuple[bool, int]:
        """The first frame from `slot` on that is no younger; whether there was one, and the slot
        after it."""
        frames, log, packing = self._frames, self._log, self._packing
        with self._lock:
            frame, after = self._find(slot, last_birth, is_walk)
            if not frame:
                return False, after
            birth = frames.birth[frame]
            zpages = packing.collect(frame, frames.home[frame])
        smaller = [self._smaller(zpage) for zpage in zpages]
        before, now = (sum([len(zpage.body) for zpage in some]) for some in (zpages, smaller))
        with self._lock:
            if frames.birth[frame] != birth or frames.state[frame] != State.DIRTY:
                return True, after
            if before - now < before * WORTH_GAINING:
                log.is_tight[frame] = True
                return True, after
            alive = [zpage for zpage in smaller if packing.is_in_place(zpage)]
            moved = packing.append(alive, Stream.RECOMPRESSED, frames.home[frame])
            saved = sum([zpage.saved_bytes for zpage in alive[:moved]])
            self._statistics.compressed_bytes -= saved
            self._statistics.recompressed_saved_bytes += saved
            self._statistics.recompressed_pages += moved
        return moved == len(alive), after

    def _smaller(self, zpage: Live) -> Live:
        """The same page, if lz4 was not all that could be done."""
        if zpage.entry >> CODEC_SHIFT & CODEC_MASK == LZ4:
            try:
                body = self.codec.compress(memoryview(decompress(LZ4, zpage.body)))
            except PageDamaged:  # whoever asks for it is told
                return zpage
            if len(body) < len(zpage.body):
                return Live(zpage.owner, zpage.entry, self.codec.tag_base + (len(body) << LENGTH_SHIFT), body)
        return zpage

    def _find(self, slot: int, last_birth: int, is_walk: bool) -> tuple[int, int]:
        """Under the lock: such a frame (0: there is none as far as this looks), and the slot to
        look on from (0: the oldest). What was read since it was last looked at is left alone; for a
        walk, not at the next look."""
        frames, is_tight = self._frames, self._log.is_tight
        state, newer, birth, referenced = frames.state, frames.queues.newer, frames.birth, frames.referenced
        head = frames.slot_count + Queue.PERSISTENT
        if not self._is_waiting(slot):
            slot = newer[head]
        for _ in range(LOOKED_AT):
            if slot == head:
                return 0, 0
            frame, slot_after = frames.frame_of[slot], newer[slot]
            if state[frame] == State.DIRTY and not is_tight[frame] and birth[frame] <= last_birth:
                if not referenced[slot]:
                    return frame, slot_after
                if is_walk:
                    referenced[slot] = 0
            slot = slot_after
        return 0, slot

    def _is_waiting(self, slot: int) -> bool:
        """Whether a RAM slot's frame is in the queue of persistent frames."""
        frames = self._frames
        if not 0 < slot < frames.slot_count:
            return False
        frame = frames.frame_of[slot]
        in_queue = frames.home[frame] == slot and frames.queue_of[slot] == Queue.PERSISTENT
        return in_queue and frames.state[frame] <= State.DIRTY

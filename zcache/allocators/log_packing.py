"""Packing: what is alive in a frame of the log is taken out, and appended elsewhere, with new
entries.

It is the half of the log that moves zpages: `collect` copies what is alive out of a frame, `append`
gives it a new place in the open frame of a stream, and publishes that. Which frames are packed, and
when, is for `zcache.reclaim` to say (compaction, recompression).
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from zcache.allocators import EntriesOf
from zcache.allocators.log import Log
from zcache.allocators.log_frame import FRAME_SHIFT, INDEX_MASK, MAX_SPAN, RECORD_BYTES, SPAN_SHIFT, Head, Stream
from zcache.pageframes import PageFrames
from zcache.pages.entry import (
    FRAME_MASK,
    LENGTH_MASK,
    LENGTH_SHIFT,
    OFFSET_MASK,
    OFFSET_SHIFT,
    OWNER_INDEX_BITS,
)

#: The tag of an entry: all but its place.
_TAG_MASK: Final = ~(OFFSET_MASK << OFFSET_SHIFT | FRAME_MASK)


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


class LogPacking:
    """Moves the zpages of a log; all methods are called under the store's lock."""

    def __init__(self, log: Log, frames: PageFrames, entries_of: EntriesOf) -> None:
        self._log = log
        self._frames = frames
        self._entries_of = entries_of

    def collect(self, frame: int, slot: int) -> list[Live]:
        """All that is alive in a frame, whose bytes are in RAM slot `slot`, in the order in which
        it was appended."""
        ram, base = self._frames.ram, slot << FRAME_SHIFT
        zpages = []
        for owner, entry in self._log.find_live(frame, slot).items():
            start = base + (entry >> OFFSET_SHIFT & OFFSET_MASK)
            body = ram[start : start + (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1]
            zpages.append(Live(owner, entry, entry & _TAG_MASK, body))
        return zpages

    def is_in_place(self, zpage: Live) -> bool:
        """Whether the page is still what was collected, if its frame has the birth that it had."""
        table = self._entries_of(zpage.owner >> OWNER_INDEX_BITS)
        return table is not None and table[zpage.owner & INDEX_MASK] == zpage.entry

    def append(self, zpages: Sequence[Live], stream: Stream, behind: int) -> int:
        """Give zpages that were collected a new place, and publish their entries, which are still
        what they were; their old places are released. `behind`: see `PageFrames.take_reserved`.
        Returns how many found room."""
        head = self._log.heads[stream]
        pending: list[Live] = []
        entries: list[int] = []
        records: list[int] = []  # those of `pending`
        fill, room = head.fill, head.room + RECORD_BYTES  # no record is needed for what extends the last
        first = last = -1  # of the record that is being made
        done = 0
        for zpage in zpages:
            owner = zpage.owner
            extends = records and last < owner < first + MAX_SPAN
            if fill + len(zpage.body) > room - (0 if extends else RECORD_BYTES):
                done += self._write_packed(head, pending, entries, records)
                pending, entries, records = [], [], []
                frame = self._frames.take_reserved(behind)
                if not frame:
                    return done
                self._log.begin_frame(head, frame, stream is Stream.RECOMPRESSED)
                fill, room, extends = 0, head.room + RECORD_BYTES, False
            if extends:
                records[-1] = owner - first << SPAN_SHIFT | first
            else:
                first = owner
                records.append(owner)
                room -= RECORD_BYTES
            last = owner
            pending.append(zpage)
            entries.append(zpage.tag | fill << OFFSET_SHIFT | head.frame)
            fill += len(zpage.body)
        return done + self._write_packed(head, pending, entries, records)

    def _write_packed(self, head: Head, zpages: list[Live], entries: list[int], records: list[int]) -> int:
        """As `Log.write`, of pages here and there; and publish them. Returns how many."""
        if not zpages:
            return 0
        for record in records[:-1]:
            self._log.write(head, b"", 0, record)
        self._log.write(head, b"".join([zpage.body for zpage in zpages]), len(zpages), records[-1])
        handle, table = -1, None
        for zpage, entry in zip(zpages, entries, strict=True):
            if zpage.owner >> OWNER_INDEX_BITS != handle:
                handle = zpage.owner >> OWNER_INDEX_BITS
                table = self._entries_of(handle)
            assert table
            table[zpage.owner & INDEX_MASK] = entry
        self._log.release([zpage.entry for zpage in zpages])
        return len(zpages)

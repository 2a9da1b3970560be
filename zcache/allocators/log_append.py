"""Appending to an open frame of the log: a run of zpages, one behind the other, and their record.

What is written is in the image, and may be cut short anywhere by the server's death: the zpages'
bytes first, then their record, then how many records there are. No entry names any of them before
all of that is there.
"""

import mmap
from typing import Protocol

from zcache.allocators.log_frame import COUNT_AT, RECORD_BYTES, SPAN_SHIFT, WORD_SHIFT, Head, PythonHead
from zcache.pages.entry import LENGTH_MASK, LENGTH_SHIFT, OFFSET_SHIFT, SAME_FILLED, zpage_bytes


class Appender(Protocol):
    """Over the RAM, and how many zpages and bytes are alive in each frame (`Log.weight`). The
    caller holds the store's lock."""

    def new_head(self) -> Head:
        """A head without a frame."""

    def append(self, head: Head, data: bytes, tags: list[int], entries: list[int], owner: int) -> int:
        """Append the zpages of `tags[len(entries):]`, as far as they find room in the head's frame,
        and to `entries` an entry for each; see `Allocator.place`. Returns how many entries there
        are now. After an exception there are those that there were, and nothing was appended."""

    def append_one(self, head: Head, body: bytes, tag: int, owner: int) -> int:
        """The same for one zpage: its entry, or 0 if it found no room."""


class PythonAppender:
    """An `Appender` in Python, the reference; and what packing writes by."""

    def __init__(self, ram: mmap.mmap, live: memoryview, weight: memoryview) -> None:
        self._ram = ram
        self._words = memoryview(ram).cast("Q")
        self._live = live
        self._weight = weight

    def new_head(self) -> Head:
        """See `Appender.new_head`."""
        return PythonHead()

    def append(self, head: Head, data: bytes, tags: list[int], entries: list[int], owner: int) -> int:
        """See `Appender.append`."""
        begin, stop = len(entries), len(tags)
        room = head.room - head.fill
        if begin or len(data) > room:  # not all that there is goes into this frame
            sizes = [zpage_bytes(tag) for tag in tags]
            start = end = sum(sizes[:begin])
            for stop in range(begin, len(tags)):
                if sizes[stop] and end + sizes[stop] - start > room:
                    break
                end += sizes[stop]
            else:
                stop = len(tags)
            data, tags = data[start:end], tags[begin:stop]
        place = head.fill << OFFSET_SHIFT | head.frame
        held = 0
        try:
            for tag in tags:
                if 0 < tag < SAME_FILLED:
                    entries.append(tag | place)
                    place += (tag >> LENGTH_SHIFT & LENGTH_MASK) + 1 << OFFSET_SHIFT
                    held += 1
                else:
                    entries.append(tag)
            if held:
                self.write(head, data, held, stop - begin - 1 << SPAN_SHIFT | owner + begin)
        except BaseException:
            del entries[begin:]  # they are nowhere
            raise
        return stop

    def append_one(self, head: Head, body: bytes, tag: int, owner: int) -> int:
        """See `Appender.append_one`."""
        if head.fill + len(body) > head.room:
            return 0
        entry = tag | head.fill << OFFSET_SHIFT | head.frame
        self.write(head, body, 1, owner)
        return entry

    def write(self, head: Head, data: bytes, count: int, record: int) -> None:
        """The bytes of `count` zpages, for which there is room, and their record: all before an
        entry names them.

        All numbers are made first: when there is no memory for one, nothing has been done."""
        frame, fill, room, base = head.frame, head.fill, head.room, head.base
        stop, next_room = fill + len(data), room - RECORD_BYTES
        place = slice(base + fill, base + stop)
        record_at, count_at, records = (
            base + room >> WORD_SHIFT,
            base + COUNT_AT >> WORD_SHIFT,
            COUNT_AT - room >> WORD_SHIFT,
        )
        live, weight = self._live[frame] + count, self._weight[frame] + len(data) + RECORD_BYTES * count
        words = self._words
        self._ram[place] = data
        words[record_at] = record
        words[count_at] = records
        head.fill, head.room = stop, next_room
        self._live[frame] = live
        self._weight[frame] = weight

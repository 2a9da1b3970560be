"""A frame of the log: how it is laid out, which are open, and what is alive in one.

A frame is used from both ends:

    | zpage | zpage | zpage | ...        free         ... | record 1 | record 0 | how many records |
    0                                                                                          65 536

A record says, in 8 bytes, whose zpages were appended together: the owner of the first page (56
bits) and how many pages from there, less one (8 bits). It is how a frame's live zpages are found: a
page that a record names is in this frame if the page's entry says so. So records are hints and are
never wrong, only out of date; they go wherever the frame goes, and cost 8 bytes a request.
"""

from enum import IntEnum
from typing import Final, Protocol

from zcache.allocators import EntriesOf
from zcache.pages.entry import FRAME_MASK, OWNER_INDEX_BITS, SAME_FILLED
from zcache.pages.tmem import Kind

FRAME_SHIFT: Final = 16
FRAME_BYTES: Final = 1 << FRAME_SHIFT
#: A record is a word, and so is the count of them: RAM is looked at as words for them.
WORD_SHIFT: Final = 3
RECORD_BYTES: Final = 1 << WORD_SHIFT
#: In a frame: how many records there are, and the first of them; others follow before it.
COUNT_AT: Final = FRAME_BYTES - RECORD_BYTES
FIRST_RECORD: Final = COUNT_AT - RECORD_BYTES

#: In a record: the owner of its first page, and above it how many pages there are, less one.
SPAN_SHIFT: Final = 56
MAX_SPAN: Final = 1 << (64 - SPAN_SHIFT)
OWNER_MASK: Final = (1 << SPAN_SHIFT) - 1
#: In an owner: the page's index in its object.
INDEX_MASK: Final = (1 << OWNER_INDEX_BITS) - 1


class Stream(IntEnum):
    """What has an open frame of its own."""

    PERSISTENT = 0  # what is put into a pool of this kind
    EPHEMERAL = 1
    PACKED = 2
    RECOMPRESSED = 3


# What is put is placed by its kind, in the stream of that number.
assert [kind.value for kind in Kind] == [Stream.PERSISTENT.value, Stream.EPHEMERAL.value]


class Head(Protocol):
    """An open frame: zpages go in at `fill`, and their record at `room`, both in bytes from its
    start; it begins at `base` in RAM. A zpage may not reach beyond `room`."""

    base: int
    fill: int
    frame: int
    room: int


class PythonHead:
    """A `Head`."""

    __slots__ = ("base", "fill", "frame", "room")

    def __init__(self) -> None:
        self.base = self.fill = self.frame = 0
        self.room = -1


def open_head(head: Head, frame: int, slot: int) -> None:
    """The frame, empty, in its RAM slot."""
    head.frame, head.base = frame, slot << FRAME_SHIFT
    head.fill, head.room = 0, FIRST_RECORD


def close_head(head: Head) -> None:
    """There is no frame, and no room."""
    head.frame = head.base = head.fill = 0
    head.room = -1


def find_live(words: memoryview, frame: int, slot: int, live: int, entries_of: EntriesOf) -> dict[int, int]:
    """Owners and entries of all that is alive in a frame: `live` zpages, whose bytes are in RAM slot
    `slot`. `words` is the RAM of all slots, as words of 64 bits."""
    found: dict[int, int] = {}
    top = (slot << FRAME_SHIFT) + COUNT_AT >> WORD_SHIFT
    count = min(words[top], FIRST_RECORD // RECORD_BYTES)
    handle, entries = -1, None
    for record in reversed(words[top - count : top].tolist()):
        first = record & OWNER_MASK
        if first >> OWNER_INDEX_BITS != handle:
            handle = first >> OWNER_INDEX_BITS
            entries = entries_of(handle)
        if entries is None:
            continue
        index = first & INDEX_MASK
        if first == record:
            entry = entries[index]
            if entry & FRAME_MASK == frame and entry < SAME_FILLED:
                found[first] = entry
        else:
            for owner, entry in enumerate(entries[index : index + (record >> SPAN_SHIFT) + 1].tolist(), first):
                if entry & FRAME_MASK == frame and entry < SAME_FILLED:
                    found[owner] = entry
        if len(found) == live:
            break
    return found

"""A page-table entry: one 64-bit word that says all there is to know about where a device page is.

    bit 63..62  kind      0 empty (the whole word is 0), 1 zpage, 2 same-filled, 3 lost
    zpage:
    bit 61..59  codec     the codec's id (`zcache.pages.codec`)
    bit 58..47  length    in bytes, less one: 1..4096
    bit 46..31  offset    in bytes from the start of the pageframe: 0..65535
    bit 30..0   frame     pageframe id, from 1: 2 147 483 647 frames
    same-filled:
    bit 31..0   the 32-bit word that the page repeats

Kinds are ordered so that comparisons do for a decoder: `not e` is empty, `e < SAME_FILLED` a zpage,
`e < LOST` same-filled. A page that repeats a 64-bit word whose halves differ does not fit here; the
word itself is then a zpage of 8 bytes. The hot paths of the store and the allocators take entries
apart in line, with these names: a call would cost as much again.
"""

from typing import Final, NamedTuple

PAGE_BYTES: Final = 4096
PAGE_SHIFT: Final = 12

FRAME_MASK: Final = (1 << 31) - 1
OFFSET_SHIFT: Final = 31
OFFSET_MASK: Final = 0xFFFF
LENGTH_SHIFT: Final = 47
LENGTH_MASK: Final = 0xFFF
CODEC_SHIFT: Final = 59
CODEC_MASK: Final = 7
#: Of a same-filled page: what it repeats, half a word.
PATTERN_MASK: Final = (1 << 32) - 1

#: An owner word names a page on the way back from its frame: its object's handle, and the page's
#: index in that.
OWNER_INDEX_BITS: Final = 40
OWNER_HANDLE_BITS: Final = 16

EMPTY: Final = 0
ZPAGE: Final = 1 << 62
SAME_FILLED: Final = 2 << 62
LOST: Final = 3 << 62


class Zpage(NamedTuple):
    """A decoded zpage entry: `offset` and `length` in bytes."""

    frame: int
    offset: int
    length: int
    codec: int


def zpage_tag(codec: int, length: int) -> int:
    """The part of a zpage's entry that is known before it has a place."""
    return ZPAGE | codec << CODEC_SHIFT | (length - 1) << LENGTH_SHIFT


def zpage_bytes(entry: int) -> int:
    """How long the zpage of an entry, or of a tag, is; 0: it has none."""
    return (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1 if 0 < entry < SAME_FILLED else 0


def decode_zpage(entry: int) -> Zpage:
    """What a zpage entry says; meaningless for the other kinds."""
    return Zpage(
        entry & FRAME_MASK,
        entry >> OFFSET_SHIFT & OFFSET_MASK,
        (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1,
        entry >> CODEC_SHIFT & CODEC_MASK,
    )

"""The header of a backing: by it a later start knows what zcache wrote, and may overwrite. It holds
no state.

It fills the first frame-sized block, which no frame is ever put into. Frames are of one size today
and another the next time (`allocator=log` and `zbud`), so a line of it says of which, and so how
far it goes. What lies behind it is anything. An older zcache did not say it: then the first 4 KiB,
which are in each header, have to do. Another's file system may begin behind those: a few leave the
first 4 KiB, or more, as they found them.
"""

import os
import re
from typing import Final

HEADER: Final = b"zcache backing file, format 1: compressed swap, worthless once its server has ended\n"

#: That each header has at least, and at most.
_LEAST_BYTES: Final = 4096
_MOST_BYTES: Final = 1 << 20

_FRAME_BYTES: Final = re.compile(rb"frames of ([0-9]{4,7}) bytes\n")

#: What begins behind the first 4 KiB, by what is where.
_OTHERS: Final = (
    (4096, b"\xfc\x4e\x2b\xa9", "an array of md's"),
    (4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a bcache or bcachefs device"),
    (32768, b"JFS1", "a JFS file system"),
    (32769, b"CD001", "an ISO 9660 file system"),
    (32769, b"BEA01", "a UDF file system"),
    (65536 + 52, b"ReIsEr", "a ReiserFS file system"),
    (65536 + 64, b"_BHRfS_M", "a btrfs file system"),
)


def header_of(frame_bytes: int) -> bytes:
    """The first block, for frames of that size."""
    return (HEADER + b"frames of %d bytes\n" % frame_bytes).ljust(frame_bytes, b"\0")


def is_ours(descriptor: int) -> bool:
    """Whether zcache wrote it last, with frames of whichever size."""
    begin = os.pread(descriptor, _LEAST_BYTES, 0)
    if not begin.startswith(HEADER):
        return False
    said = _FRAME_BYTES.match(begin, len(HEADER))
    header = HEADER.ljust(_LEAST_BYTES, b"\0")
    if said:
        header = header_of(min(int(said[1]), _MOST_BYTES))
    return os.pread(descriptor, len(header), 0) == header and not other_owner(descriptor)


def other_owner(descriptor: int) -> str:
    """What another has put behind a header of ours, as far as that is known; else ""."""
    for offset, magic, what in _OTHERS:
        if os.pread(descriptor, len(magic), offset) == magic:
            return what
    return ""

"""The page loop in Python: what is right."""

import mmap

from lz4.block import decompress as lz4_decompress

from zcache.allocators.log_append import Appender, PythonAppender
from zcache.image.whole_words import publish
from zcache.page_loop import Run
from zcache.pages.codec import Codec
from zcache.pages.entry import (
    FRAME_MASK,
    LENGTH_MASK,
    LENGTH_SHIFT,
    LOST,
    OFFSET_MASK,
    OFFSET_SHIFT,
    PAGE_BYTES,
    SAME_FILLED,
)
from zcache.pages.zpages import END_LZ4, FIRST_LZ4, Encoded, decode, decode_lz4, encode


class PythonEncoder:
    """See `Encoder`."""

    def __init__(self, codec: Codec, max_zpage_bytes: int) -> None:
        self.page = codec.compress
        self._codec = codec
        self._max_zpage_bytes = max_zpage_bytes

    def run(self, data: memoryview) -> Encoded:
        """See `Encoder.run`."""
        return encode(self._codec, self._max_zpage_bytes, data)


class PythonReader:
    """See `Reader`."""

    def __init__(self, home: memoryview, ram: mmap.mmap, referenced: bytearray, frame_shift: int) -> None:
        self._home, self._ram, self._referenced, self._frame_shift = home, ram, referenced, frame_shift

    def page(self, entries: memoryview, index: int) -> bytes | None:
        """See `Reader.page`."""
        entry = entries[index]
        if not FIRST_LZ4 <= entry < END_LZ4:
            return None
        slot = self._home[entry & FRAME_MASK]
        if not slot:
            return None
        start = (slot << self._frame_shift) + (entry >> OFFSET_SHIFT & OFFSET_MASK)
        self._referenced[slot] = 1
        return self._ram[start : start + (entry >> LENGTH_SHIFT & LENGTH_MASK) + 1]

    def lz4_run(self, entries: memoryview, first: int, count: int) -> list[bytes] | None:
        """See `Reader.lz4_run`."""
        found: list[int] = entries[first : first + count].tolist()
        home, ram, referenced, frame_shift = self._home, self._ram, self._referenced, self._frame_shift
        if min(found) >= FIRST_LZ4 and max(found) < END_LZ4:
            slots = [home[entry & FRAME_MASK] for entry in found]
            if all(slots):
                bodies = [
                    ram[
                        (start := (slot << frame_shift) + (entry >> OFFSET_SHIFT & OFFSET_MASK)) : start
                        + (entry >> LENGTH_SHIFT & LENGTH_MASK)
                        + 1
                    ]
                    for slot, entry in zip(slots, found, strict=False)
                ]
                for slot in set(slots):
                    referenced[slot] = 1
                return bodies
        return None

    def run(self, entries: memoryview, first: int, count: int) -> Run:
        """See `Reader.run`."""
        found: list[int] = entries[first : first + count].tolist()
        ram, home, referenced, frame_shift = self._ram, self._home, self._referenced, self._frame_shift
        offset_shift, offset_mask, length_shift, length_mask = OFFSET_SHIFT, OFFSET_MASK, LENGTH_SHIFT, LENGTH_MASK
        cold: list[int] = []
        bodies: list[bytes] = []
        for entry in found:
            if 0 < entry < SAME_FILLED:
                slot = home[entry & FRAME_MASK]
                if slot:
                    start = (slot << frame_shift) + (entry >> offset_shift & offset_mask)
                    bodies.append(ram[start : start + (entry >> length_shift & length_mask) + 1])
                    referenced[slot] = 1
                    continue
                cold.append(len(bodies))
            bodies.append(b"")
        misses = [index for index, entry in enumerate(found) if not entry] if 0 in found else None
        return found, bodies, cold or None, misses, max(found) >= LOST


class PythonLoop:
    """See `PageLoop`."""

    name = "python"

    # No function of ours between.
    publish = staticmethod(publish)
    decode_lz4 = staticmethod(decode_lz4)
    decode = staticmethod(decode)

    def encoder(self, codec: Codec, max_zpage_bytes: int) -> PythonEncoder:
        """See `PageLoop.encoder`."""
        return PythonEncoder(codec, max_zpage_bytes)

    def reader(self, home: memoryview, ram: mmap.mmap, referenced: bytearray, frame_shift: int) -> PythonReader:
        """See `PageLoop.reader`."""
        return PythonReader(home, ram, referenced, frame_shift)

    def appender(self, ram: mmap.mmap, live: memoryview, weight: memoryview) -> Appender:
        """See `PageLoop.appender`."""
        return PythonAppender(ram, live, weight)

    def held(self, words: memoryview, first: int, count: int) -> list[int] | None:
        """See `PageLoop.held`."""
        entries = words[first : first + count].tolist()
        return entries if any(entries) else None

    def decode_page(self, body: bytes, out: memoryview) -> bool:
        """See `PageLoop.decode_page`."""
        try:
            out[:] = lz4_decompress(body, PAGE_BYTES)
        except Exception:
            return False
        return True

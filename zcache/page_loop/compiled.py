"""The page loop in C: a run of pages in one call. What is C is only called here.

lz4 is that of the Python package `lz4`, whose library is in memory for the reference anyway, and
shows its functions. So both builds make the same zpages, and all that it takes to build this one is
a C compiler and Python's headers. Another codec, and a zpage that is damaged, are the reference's.

Raises `ImportError` when it is imported, if it cannot be used here.
"""

import mmap

from lz4.block import _block

import zcache.page_loop._compiled as _compiled  # noqa: PLR0402 (says whether it is there, or broken)
from zcache import __version__
from zcache.allocators.log_append import Appender
from zcache.page_loop import Encoder, Reader
from zcache.page_loop.reference import PythonEncoder
from zcache.pages.codec import Codec
from zcache.pages.entry import PAGE_BYTES, PAGE_SHIFT
from zcache.pages.zpages import decode, decode_lz4

if getattr(_compiled, "version", "") != __version__:  # left over in the build folder of an earlier one
    raise ImportError(f"what was compiled is of zcache {getattr(_compiled, 'version', 'before 0.2.0')}: build it anew")
_compiled.use_lz4(getattr(_block, "__file__", None) or "")


class CompiledLoop:
    """See `PageLoop`."""

    name = "compiled"

    def encoder(self, codec: Codec, max_zpage_bytes: int) -> Encoder:
        """See `PageLoop.encoder`."""
        if codec.acceleration is None:
            return PythonEncoder(codec, max_zpage_bytes)
        return _compiled.Encoder(codec.acceleration, max_zpage_bytes)

    def reader(self, home: memoryview, ram: mmap.mmap, referenced: bytearray, frame_shift: int) -> Reader:
        """See `PageLoop.reader`."""
        return _compiled.Reader(home, ram, referenced, frame_shift)

    def appender(self, ram: mmap.mmap, live: memoryview, weight: memoryview) -> Appender:
        """See `PageLoop.appender`."""
        return _compiled.Appender(ram, live, weight)

    # No function of ours between.
    held = staticmethod(_compiled.held)
    publish = staticmethod(_compiled.publish)
    decode_page = staticmethod(_compiled.decompress)

    def decode_lz4(self, zpages: list[bytes], out: memoryview) -> None:
        """See `PageLoop.decode_lz4`."""
        if not _compiled.decode_lz4(zpages, out):
            decode_lz4(zpages, out)  # says what is wrong

    def decode(self, entries: list[int], bodies: list[bytes], out: memoryview) -> None:
        """See `PageLoop.decode`."""
        for index in _compiled.decode(entries, bodies, out):
            page = out[index << PAGE_SHIFT : (index << PAGE_SHIFT) + PAGE_BYTES]
            decode(entries[index : index + 1], bodies[index : index + 1], page)

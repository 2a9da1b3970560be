"""Codecs: a 4096-byte page to fewer bytes and back.

An id is part of every page-table entry, so it never changes its meaning. Whatever codec puts are
made with, `decoders` can read all of them: an entry says by itself how to read it.

Guarantee: `compress` never asks the caller to hold a lock and may be called from several threads at
once (the lz4 and zstandard packages release the GIL while they work). `decompress` either returns
exactly one page or raises `PageDamaged`.
"""

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from lz4 import block as lz4_block

from zcache.errors import BadInput, PageDamaged
from zcache.pages.entry import LENGTH_SHIFT, PAGE_BYTES, zpage_tag

RAW: Final = 0
WORD: Final = 1  # the page repeats one 64-bit word, and the zpage is that word
LZ4: Final = 2
ZSTD: Final = 3

NAMES: Final = {RAW: "raw", WORD: "word", LZ4: "lz4", ZSTD: "zstd"}
CHOICES: Final = "lz4, lz4:ACCELERATION (1 to 65537) or zstd:LEVEL (-7 to 19)"

#: zstd contexts made ahead: a context must not be used by two threads at once, and each connection
#: has one. `list.pop` and `append` are atomic, so a list is all the locking that they need.
ZSTD_CONTEXTS: Final = 4

SUSPECT_BYTES: Final = 64

Compress = Callable[[memoryview], bytes]
Decompress = Callable[[bytes], bytes]


class Codec:
    """What puts are made with: `id`, `name`, and `compress(page) -> bytes`. A zpage of n bytes has
    the tag `tag_base + (n << LENGTH_SHIFT)`. With an `acceleration`, `compress` does nothing but
    lz4's `LZ4_compress_fast_continue` with a new stream, as the package does.

    A page that repeats a word has a zpage of less than `suspect_bytes`: some 35 bytes. But with
    an acceleration lz4 looks at every so many bytes only, and may see no word for a long way (1,370
    bytes with 20): then any page is suspect."""

    def __init__(self, codec_id: int, name: str, compress: Compress, acceleration: int | None = None) -> None:
        self.id = codec_id
        self.name = name
        self.compress = compress
        self.acceleration = acceleration
        self.suspect_bytes = SUSPECT_BYTES if acceleration in (None, 1) else PAGE_BYTES + 1
        self.tag_base = zpage_tag(codec_id, 1) - (1 << LENGTH_SHIFT)


def parse_codec(text: str) -> Codec:
    """`lz4`, `lz4:4`, `zstd`, `zstd:3` -> a codec; raises `BadInput`."""
    name, colon, argument = text.partition(":")
    try:
        number = int(argument) if colon else 1
        if colon and not re.fullmatch("-?[0-9]{1,5}", argument):
            raise ValueError
    except ValueError:
        raise BadInput(f"codec={text}: {argument!r} is not a number; give {CHOICES}") from None
    if name == "lz4" and 1 <= number <= 65537:
        return Codec(LZ4, f"lz4:{number}" if number > 1 else "lz4", _lz4_compress(number), number)
    if name == "zstd" and -7 <= number <= 19 and number != 0:
        return Codec(ZSTD, f"zstd:{number}", _zstd_compress(number))
    raise BadInput(f"codec={text}: no such codec; give {CHOICES}")


def _lz4_compress(acceleration: int) -> Compress:
    block_compress = lz4_block.compress

    def compress(page: memoryview) -> bytes:
        # Positional: mode, store_size, acceleration.
        return block_compress(page, "fast", False, acceleration)  # type: ignore[no-any-return]

    return compress


def _zstd_compress(level: int) -> Compress:
    zstandard = _ZSTD.module()
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=PAGE_BYTES,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    idle = [zstandard.ZstdCompressor(compression_params=parameters) for _ in range(ZSTD_CONTEXTS)]

    def compress(page: memoryview) -> bytes:
        try:
            context = idle.pop()
        except IndexError:
            context = zstandard.ZstdCompressor(compression_params=parameters)
        body: bytes = context.compress(page)
        idle.append(context)
        return body

    # A context takes its memory at its first use (72 KiB at level 1): now, and not when two puts
    # meet.
    page = memoryview(bytes(range(256)) * (PAGE_BYTES // 256))
    _ZSTD.make_ahead([context.compress(page) for context in idle])
    return compress


class _ZstdDecompressor:
    """Of the whole process: an entry says by itself that it is zstd's, whoever compressed it."""

    def __init__(self) -> None:
        self._idle: list[Any] = []
        self.errors: tuple[type[Exception], ...] = ()  # its own, once there are any

    def module(self) -> ModuleType:
        """zstandard, where it is to be used, and not before: it would be locked in the memory of a
        server that has no use for it."""
        import zstandard

        self.errors = (zstandard.ZstdError,)
        return zstandard

    def make_ahead(self, bodies: list[bytes]) -> None:
        """As many contexts, each used once."""
        contexts = [self._new_context() for _ in bodies]
        for context, body in zip(contexts, bodies, strict=True):
            context.decompress(body, PAGE_BYTES)
        self._idle += contexts

    def decompress(self, body: bytes) -> bytes:
        """One page; raises one of `errors`."""
        try:
            context = self._idle.pop()
        except IndexError:
            context = self._new_context()
        page: bytes = context.decompress(body, PAGE_BYTES)
        self._idle.append(context)
        return page

    def _new_context(self) -> Any:
        zstandard = self.module()
        return zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)


_ZSTD: Final = _ZstdDecompressor()


def _lz4_decompress(body: bytes) -> bytes:
    return lz4_block.decompress(body, PAGE_BYTES)  # type: ignore[no-any-return]


def _word_decompress(body: bytes) -> bytes:
    return body * (PAGE_BYTES // 8)


def _raw_decompress(body: bytes) -> bytes:
    return body


#: Indexed by codec id. Errors are the packages' own; `decompress` translates them.
decoders: Final[tuple[Decompress, ...]] = (_raw_decompress, _word_decompress, _lz4_decompress, _ZSTD.decompress)


def decompress(codec_id: int, body: bytes) -> bytes:
    """One page of 4096 bytes, or `PageDamaged`."""
    try:
        page = decoders[codec_id](body)
    except (lz4_block.LZ4BlockError, IndexError, *_ZSTD.errors) as error:
        raise PageDamaged(f"{NAMES.get(codec_id, codec_id)}: {error}") from None
    if len(page) != PAGE_BYTES:
        raise PageDamaged(f"{NAMES[codec_id]}: {len(page)} bytes instead of a page")
    return page

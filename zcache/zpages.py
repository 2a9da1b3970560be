"""Pages to zpages and back: the part of a put and of a get that needs no lock.

A request's pages are gone through in one flat loop, with everything bound to locals. A page whose first and last word
agree is tested for being same-filled; all others are compressed, and kept raw where that gains nothing.
"""

from typing import Final

from lz4.block import decompress as lz4_decompress

from zcache.codec import LZ4, RAW, WORD, Codec, decoders, decompress
from zcache.entry import CODEC_SHIFT, LENGTH_SHIFT, PAGE_BYTES, SAME_FILLED, zpage_tag
from zcache.errors import PageDamaged

_ZERO_PAGE: Final = bytes(PAGE_BYTES)

#: The top five bits of an lz4 zpage's entry: the decoder that is worth a branch of its own (0.1 us a page).
_LZ4_ZPAGE: Final = zpage_tag(LZ4, 1) >> CODEC_SHIFT

_RAW_TAG: Final = zpage_tag(RAW, PAGE_BYTES)
_WORD_TAG: Final = zpage_tag(WORD, 8)


#: For each page the zpage's bytes, none where the entry says it all; the entry without its place; and of all pages,
#: how many are same-filled, how many raw, and the bytes of their zpages. (A plain tuple: 0.2 us a request less.)
Encoded = tuple[list[bytes], list[int], int, int, int]


def encode(codec: Codec, max_zpage_bytes: int, data: memoryview) -> Encoded:
    """`data` is whole pages (format B). A zpage longer than the limit is not worth it: such a page stays raw."""
    bodies: list[bytes] = []
    tags: list[int] = []
    compress = codec.compress
    tag_base = zpage_tag(codec.id, 1) - (1 << LENGTH_SHIFT)
    words = data.cast("Q")
    same_filled = raw = compressed_bytes = word = 0
    for start in range(0, len(data), 4096):
        if words[word] == words[word + 511]:
            page = bytes(data[start : start + 4096])
            pattern = page[:8]
            if page == pattern * 512:
                if pattern[:4] == pattern[4:]:
                    bodies.append(b"")
                    tags.append(SAME_FILLED | int.from_bytes(pattern[:4], "little"))
                else:
                    bodies.append(pattern)
                    tags.append(_WORD_TAG)
                    compressed_bytes += 8
                same_filled += 1
                word += 512
                continue
        word += 512
        body = compress(data[start : start + 4096])
        length = len(body)
        if length <= max_zpage_bytes:
            tags.append(tag_base + (length << LENGTH_SHIFT))
            compressed_bytes += length
        else:
            body = bytes(data[start : start + 4096])
            tags.append(_RAW_TAG)
            compressed_bytes += 4096
            raw += 1
        bodies.append(body)
    return bodies, tags, same_filled, raw, compressed_bytes


def decode(entries: list[int], bodies: list[bytes], out: memoryview) -> None:
    """Fill `out` with the pages of these entries, none of which is LOST; raises `PageDamaged`."""
    start = 0
    for entry, body in zip(entries, bodies, strict=True):
        if body:
            try:
                if entry >> 59 == _LZ4_ZPAGE:
                    out[start : start + 4096] = lz4_decompress(body, 4096)
                else:
                    out[start : start + 4096] = decoders[entry >> 59 & 7](body)
            except Exception:
                decompress(entry >> 59 & 7, body)  # says what is wrong with it
                raise PageDamaged("a zpage's bytes are damaged") from None
        elif entry:
            out[start : start + 4096] = (entry & 0xFFFFFFFF).to_bytes(4, "little") * 1024
        else:
            out[start : start + 4096] = _ZERO_PAGE
        start += 4096

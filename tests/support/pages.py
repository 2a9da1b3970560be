"""Pages of every sort that the store tells apart."""

import random

PAGE_BYTES = 4096


def zero_page() -> bytes:
    return bytes(PAGE_BYTES)


def same_filled_page(word: int) -> bytes:
    """One 32-bit word, repeated."""
    return word.to_bytes(4, "little") * (PAGE_BYTES // 4)


def word_filled_page(word: int) -> bytes:
    """One 64-bit word, repeated; its halves should differ."""
    return word.to_bytes(8, "little") * (PAGE_BYTES // 8)


def raw_page(rng: random.Random) -> bytes:
    """Does not compress."""
    return rng.randbytes(PAGE_BYTES)


def page_with_zpage_of(rng: random.Random, size_bytes: int) -> bytes:
    """Compresses to roughly `size_bytes`."""
    return rng.randbytes(size_bytes) + bytes(PAGE_BYTES - size_bytes)


def any_page(rng: random.Random) -> bytes:
    match rng.randrange(8):
        case 0:
            return zero_page()
        case 1:
            return same_filled_page(rng.getrandbits(32))
        case 2:
            return word_filled_page(rng.getrandbits(64))
        case 3:
            return raw_page(rng)
        case _:
            return page_with_zpage_of(rng, rng.randrange(1, 4090))

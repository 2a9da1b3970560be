"""The ghost: which pages were missed not long ago, without the pages.

What it is for: a page that is missed twice within as many misses as a cache has room for would have
been a hit, had it been kept the first time; one that is missed once, by a scan, would not. 2Q
(Johnson and Shasha, VLDB 1994) keeps such a list of keys, its A1out; S3-FIFO (Yang et al., SOSP
2023) sizes it as we do, to as many pages as the cache itself can hold, and shows that a short
fingerprint of a key does.

How it is kept: rows of 16 fingerprints, of 16 bits each; a key's hash says which row, and its
fingerprint. A row is a queue: what is new comes in front, and the last one falls out. So about
`capacity` keys are remembered, 2 bytes each, and nothing has to be counted, linked or aged. A key
that was never there is found by chance once in 4096 times: 16 fingerprints are looked at, of 65,535
that there are.

The hash is Knuth's multiplicative one (TAOCP 3, 6.4), under which keys that follow one another
spread evenly over the rows; and that again, folded, for a fingerprint to which all bits of the key
have come.
"""

from typing import Final

from zcache.image.flat_array import FlatArray

ROW_FINGERPRINTS: Final = 16
_ROW_SHIFT: Final = 4
#: 2^64 divided by the golden ratio.
_MULTIPLIER: Final = 0x9E3779B97F4A7C15
_WORD_MASK: Final = (1 << 64) - 1


class Ghost:
    """Remembers the last `capacity` keys, or up to twice as many: rows come in powers of two. Keys
    are words of 64 bits. The caller holds the store's lock."""

    def __init__(self, capacity: int) -> None:
        row_bits = max((capacity - 1 >> _ROW_SHIFT).bit_length(), 1)
        self._row_shift = 64 - row_bits
        self.capacity = ROW_FINGERPRINTS << row_bits
        self._array = FlatArray("H", self.capacity)

    def saw(self, key: int) -> bool:
        """Whether the key was missed not long ago; it is remembered from now on."""
        mixed = key * _MULTIPLIER & _WORD_MASK
        start = mixed >> self._row_shift << _ROW_SHIFT
        fingerprint = (mixed ^ mixed >> 32) * _MULTIPLIER >> 40 & 0xFFFF or 1  # 0: nothing is there
        row = self._array.view[start : start + ROW_FINGERPRINTS]
        if fingerprint in row.tolist():
            return True
        row[1:] = row[:-1]
        row[0] = fingerprint
        return False

    def populate(self) -> None:
        """Fault it in. Not for the I/O path."""
        self._array.fault_ahead(self.capacity)

"""The page loop: what is done for each page of a request, in two builds with one behaviour.

A put compresses its pages and appends their zpages to a frame; a get copies zpages out of frames
and decompresses them. That is most of what a request costs, and in Python a third of it is the
interpreter between two pages. So there are two builds:

- `reference.py`, in Python. It says what is right, works everywhere, and is what the tests kill at
  every line.
- `compiled.py`, over a few functions in C: a run of pages in one call, without the GIL while the
  codec works. It does what the reference does, byte for byte.

`choice.py` says which is in use. What is locked and counted, and in which order entries change, is
the store's, and the same for both.

How it is built: by `pip install` and so by `scripts/setup`, with a C compiler and Python's headers
and nothing else. lz4 is the one of the Python package `lz4`, whose library is in memory for the
reference anyway and shows its functions: so both builds make the same zpages, no second lz4 is
locked in memory, and there is no library to be missing. Only CPython's stable ABI is used, so one
object does for every Python from 3.11 on. zstd stays with its package, which hides its library:
between two pages the interpreter takes 0.5 us, and zstd 13.

Contract (tests/unit/page_loop/test_page_loop_contract.py, for both):

- `Encoder.run` gives the zpages of a run's pages, and for each page its entry without a place.
- A `Reader` copies zpages, and marks their frames as referenced. They are what was there then: the
  caller holds the store's lock.
- `Appender.append` and `append_one` write to the image: bytes first, then their record, then how
  many records there are, each word whole (`zcache/image/whole_words.py`). The caller holds the
  store's lock, and publishes entries afterwards. After an exception nothing was appended.
- `decode` and its like fill every byte that they are given, or say that something is damaged; they
  never read or write beyond. A zpage is damaged if it does not become exactly one page.
- An entry that names a frame or bytes that there are not is `IndexError` at once, or damage later.
- Nothing takes memory but Python objects that are returned, and what a run's zpages take on their
  way into one; nor more than 32 KiB of stack.
"""

from typing import TYPE_CHECKING, Protocol

from zcache.allocators.log_append import Appender
from zcache.pages.codec import Codec, Compress
from zcache.pages.zpages import Encoded

if TYPE_CHECKING:
    import mmap

#: What a reader finds of a run: each page's entry; each page's zpage, empty where there is none in
#: RAM; which pages have one that is in no frame in RAM; which are EMPTY (both None if none are);
#: whether any is LOST.
Run = tuple[list[int], list[bytes], list[int] | None, list[int] | None, bool]


class Encoder(Protocol):
    """Of one codec, for one allocator; by several threads at once, without a lock."""

    @property
    def page(self) -> Compress:
        """One page's zpage by the codec, whatever is in it."""

    def run(self, data: memoryview) -> Encoded:
        """See `zpages.encode`."""


class Reader(Protocol):
    """Of the frames of one store; the caller holds its lock."""

    def page(self, entries: memoryview, index: int) -> bytes | None:
        """The zpage of one page, if it is one of lz4's in RAM."""

    def lz4_run(self, entries: memoryview, first: int, count: int) -> list[bytes] | None:
        """The zpages of a run, if all of them are lz4's in RAM; at most `MAX_RUN_PAGES`."""

    def run(self, entries: memoryview, first: int, count: int) -> Run:
        """All that there is of a run."""


class PageLoop(Protocol):
    """A build."""

    name: str

    def encoder(self, codec: Codec, max_zpage_bytes: int) -> Encoder:
        """For puts."""

    def reader(self, home: memoryview, ram: "mmap.mmap", referenced: bytearray, frame_shift: int) -> Reader:
        """For gets: over the frame table's homes (by frame), the RAM and the marks (by slot)."""

    def appender(self, ram: "mmap.mmap", live: memoryview, weight: memoryview) -> Appender:
        """For the log: over the RAM, and how many zpages and bytes are alive (by frame)."""

    def held(self, words: memoryview, first: int, count: int) -> list[int] | None:
        """The entries of a run; None if all are EMPTY."""

    def publish(self, words: memoryview, first: int, values: list[int]) -> None:
        """See `whole_words.Words.publish`; at most `MAX_RUN_PAGES`."""

    def decode_page(self, body: bytes, out: memoryview) -> bool:
        """Fill one page from a zpage of lz4's. False, and `out` undefined: it is damaged."""

    def decode_lz4(self, zpages: list[bytes], out: memoryview) -> None:
        """Fill `out` with the pages of lz4's zpages; raises `PageDamaged`."""

    def decode(self, entries: list[int], bodies: list[bytes], out: memoryview) -> None:
        """See `zpages.decode`."""

"""Requests of every kind against a device, whose content is known at any time by one seed a
page."""

import random
import struct
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

PAGE_BYTES: Final = 4096
PAGES_PER_REQUEST: Final = 32
#: Of 100 requests. Puts are mostly overwrites: the device is full from the start.
SHARES: Final = {"put": 44, "get": 42, "trim": 6, "zero": 4, "put_in_parts": 4}
_SEED: Final = struct.Struct("<Q")
_TEMPLATES: Final = 61


class WrongPage(Exception):
    """A page was read that is not what was last written to it."""


class Traffic:
    """One client at a time on `page_count` pages from `first_page` on; `seeds` says what is in
    them, 0 for zeros."""

    def __init__(self, connect: Callable[[], Any], first_page: int, page_count: int, rng: random.Random) -> None:
        self._connect = connect
        self._first_page = first_page
        self._rng = rng
        self._seeds = array("Q", bytes(8 * page_count))
        self._templates = [
            (rng.randbytes(64 * index + 200) + b"zcache " * 600)[: PAGE_BYTES - 8] for index in range(_TEMPLATES)
        ]
        self.requests: Counter[str] = Counter()

    def fill(self) -> None:
        """Write every page once."""
        client = self._connect()
        for start in range(0, len(self._seeds), PAGES_PER_REQUEST):
            self.put(client, start, min(PAGES_PER_REQUEST, len(self._seeds) - start))
        client.shutdown()

    def run(self, count: int) -> None:
        """One connection: `count` requests of random kinds, places and lengths."""
        client = self._connect()
        kinds = self._rng.choices(list(SHARES), list(SHARES.values()), k=count)
        for kind in kinds:
            pages = self._rng.randint(1, PAGES_PER_REQUEST)
            getattr(self, kind)(client, self._rng.randrange(len(self._seeds) - pages), pages)
        client.shutdown()
        self.requests.update(kinds)

    def put(self, client: Any, start: int, count: int) -> None:
        client.pwrite(self._renew(start, count), self._offset(start))

    def put_in_parts(self, client: Any, start: int, count: int) -> None:
        """Two writes that meet in the middle of a page."""
        data = self._renew(start, count)
        cut = self._rng.randrange(1, len(data))
        client.pwrite(data[:cut], self._offset(start))
        client.pwrite(data[cut:], self._offset(start) + cut)

    def get(self, client: Any, start: int, count: int) -> None:
        data = client.pread(count * PAGE_BYTES, self._offset(start))
        if data != self._content(start, count):
            raise WrongPage(f"{count} pages from page {self._first_page + start} on are not what was written to them")

    def trim(self, client: Any, start: int, count: int) -> None:
        self._forget(start, count)
        client.trim(count * PAGE_BYTES, self._offset(start))

    def zero(self, client: Any, start: int, count: int) -> None:
        self._forget(start, count)
        client.zero(count * PAGE_BYTES, self._offset(start))

    def _offset(self, start: int) -> int:
        return (self._first_page + start) * PAGE_BYTES

    def _renew(self, start: int, count: int) -> bytearray:
        for number in range(start, start + count):
            self._seeds[number] = self._rng.getrandbits(64) | 1
        return bytearray(self._content(start, count))

    def _forget(self, start: int, count: int) -> None:
        self._seeds[start : start + count] = array("Q", bytes(8 * count))

    def _content(self, start: int, count: int) -> bytes:
        return b"".join(map(self._page, self._seeds[start : start + count]))

    def _page(self, seed: int) -> bytes:
        """One in 32 is same-filled, one repeats a word of eight bytes; half do not compress to
        half."""
        if not seed:
            return bytes(PAGE_BYTES)
        match seed >> 1 & 31:
            case 0:
                return (seed & 0xFFFFFFFF).to_bytes(4, "little") * (PAGE_BYTES // 4)
            case 1:
                return _SEED.pack(seed) * (PAGE_BYTES // 8)
            case _:
                return _SEED.pack(seed) + self._templates[seed % _TEMPLATES]

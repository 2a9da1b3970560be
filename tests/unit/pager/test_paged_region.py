"""Faults that cannot be served at once: there is no memory for the page."""

import random
from collections.abc import Iterator

import pytest

from tests.support.stores import new_object, small_store
from zcache.linux.userfaultfd import Fault
from zcache.pager import paged_region
from zcache.pager.paged_region import PagedRegion
from zcache.pager.region_memory import RegionMemory
from zcache.pager.stored_pages import StoredPages

PAGES = 64
THREAD = 77


class _ShortOfMemory(RegionMemory):
    """`there` is what its file has; `room` is how many pages more it takes."""

    def __init__(self) -> None:
        super().__init__(-1, -1, 0, PAGES)
        self.there: set[int] = set()
        self.room = 0
        self.told: list[Fault] = []
        self.poisoned: list[int] = []

    def faults(self, spin_seconds: float = 0.0) -> list[Fault]:
        """Those that a test has made."""
        assert spin_seconds == 0.0
        told, self.told = self.told, []
        return told

    def extents(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Each page by itself."""
        return ((page, page + 1) for page in range(first, stop) if page in self.there)

    def fill(self, first: int, address: int, size_bytes: int) -> None:
        """As far as there is room."""
        assert address
        for page in range(first, first + size_bytes // 4096):
            if not self.room:
                raise MemoryError
            self.room -= 1
            self.there.add(page)

    def poison(self, page: int) -> None:
        """Is noted."""
        self.poisoned.append(page)


@pytest.fixture
def memory() -> _ShortOfMemory:
    return _ShortOfMemory()


@pytest.fixture
def region(memory: _ShortOfMemory, rng: random.Random) -> PagedRegion:
    """All of whose pages are in the store."""
    store = small_store(64)
    stored = StoredPages(store, new_object(store, PAGES), 0, PAGES)
    for page in range(PAGES):
        stored.put(page, rng.randbytes(4096))
    return PagedRegion(memory, stored, 0, 48, memory.poisoned.append, _fail)


def _fail(error: Exception) -> None:
    raise error


def touch(region: PagedRegion, memory: _ShortOfMemory, *pages: int) -> None:
    memory.told = [Fault(page << 12, 0, THREAD) for page in pages]
    region.serve_faults()


def test_it_is_tried_again_and_others_are_served(region: PagedRegion, memory: _ShortOfMemory) -> None:
    touch(region, memory, 7)
    assert region.has_waiting and region.resident.count == 0 and region.stored.holds(7)
    region.retry()
    assert region.has_waiting and not memory.poisoned
    region.stored.flush(40, 1)
    memory.room = 1
    touch(region, memory, 40)  # nobody wrote there
    assert memory.there == {40} and region.resident.is_staying(40)
    memory.room = 1
    region.retry()
    assert not region.has_waiting and memory.there == {7, 40} and not region.stored.holds(7)
    assert region.check() == 0


def test_after_ten_seconds_it_is_sigbus(
    region: PagedRegion, memory: _ShortOfMemory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    touch(region, memory, 7)
    monkeypatch.setattr(paged_region, "FULL_SECONDS", 0.0)
    region.retry()
    assert not region.has_waiting and memory.poisoned == [7, 7]  # the keeper, and the kernel
    assert "page 7 of a region cannot be had" in capfd.readouterr().err
    assert region.check() == 0


def test_of_a_row_what_has_come_has_come(region: PagedRegion, memory: _ShortOfMemory) -> None:
    memory.room = 3
    touch(region, memory, 0, 1)  # and 2
    assert memory.there == {0, 1, 2} and memory.room == 0
    memory.room = 2
    touch(region, memory, 3)  # of four
    assert memory.there == {0, 1, 2, 3, 4} and not region.has_waiting
    assert [region.stored.holds(page) for page in range(7)] == [False] * 5 + [True] * 2
    assert region.resident.count == 5 and region.check() == 0


def test_what_is_asked_for_ahead_comes_as_far_as_there_is_memory(region: PagedRegion, memory: _ShortOfMemory) -> None:
    memory.room = 5
    region.will_need(0, PAGES)
    assert memory.there == set(range(5)) and region.check() == 0

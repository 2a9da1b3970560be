"""What a request may wait for when reads fail: on a disk, and on engines, whose reads give up by
themselves after as long as there is patience.

Time is the test's own.
"""

import random
from typing import Final

import pytest

from tests.support.clock import FakeClock
from tests.support.pages import raw_page
from tests.support.stores import drop_clean_frames, frame_of, get, new_object, put, small_store
from tests.support.tiers import MemoryTier, WarmMemoryTier
from zcache.control.check import check
from zcache.errors import AT_ENGINES, PageDamaged
from zcache.tiers.backoff import PATIENCE_SECONDS

ALWAYS: Final = 1 << 30
PAGES: Final = 24


class Bench:
    """Raw pages, one a frame, all of them below, in neighbouring slots; nothing is read along.
    Reads begin at second 0; from then on none is answered, and each gives up after
    `PATIENCE_SECONDS`."""

    def __init__(self, rng: random.Random, tier: type[MemoryTier] = WarmMemoryTier) -> None:
        self.clock = FakeClock()
        self.tier = tier(PAGES, clock=self.clock)
        self.store = small_store(PAGES, tiers=[self.tier], allocator="zbud")
        self.thing = new_object(self.store, PAGES)
        self.pages = [raw_page(rng) for _ in range(PAGES)]
        for index, page in enumerate(self.pages):
            put(self.store, self.thing, index, page)
            assert self.store.reclaimer.clean_some()
        drop_clean_frames(self.store)
        assert [self.slot(index) for index in range(PAGES)] == [*range(1, PAGES + 1)]
        self.store.fetcher.readahead.window = 0  # type: ignore[union-attr]
        self.begins: list[float] = []  # of tries
        self.back_at = float("inf")
        self._zero = 0.0
        self.begin_again()
        self.tier.before_read = self._begin

    def slot(self, index: int) -> int:
        return self.store.frames.below[frame_of(self.thing, index)]

    def begin_again(self) -> None:
        """It is second 0 again."""
        self._zero = self.clock.seconds
        self.begins.clear()

    @property
    def seconds(self) -> float:
        return self.clock.seconds - self._zero

    def _begin(self) -> None:
        self.begins.append(self.seconds)
        is_back = self.seconds >= self.back_at
        self.tier.failing_reads = 0 if is_back else ALWAYS
        self.tier.transfer_seconds = 0.0 if is_back else PATIENCE_SECONDS

    def get(self, first: int, count: int = 1) -> bytes:
        return get(self.store, self.thing, first, count)

    def holds(self, first: int, count: int = 1) -> None:
        assert self.get(first, count) == b"".join(self.pages[first : first + count])
        check(self.store)

    def gives_up(self, first: int, count: int = 1) -> None:
        with pytest.raises(PageDamaged):
            self.get(first, count)
        check(self.store)


@pytest.fixture
def bench(rng: random.Random) -> Bench:
    return Bench(rng)


def put_holes(bench: Bench, *indexes: int) -> None:
    """These pages are in RAM, so what is around them is read in several transfers."""
    for index in indexes:
        put(bench.store, bench.thing, index, bench.pages[index])
    bench.begin_again()


@pytest.mark.parametrize("count", [1, 4])
def test_engines_that_do_not_answer_are_asked_twice(bench: Bench, count: int) -> None:
    """However many frames: the first of the second tries that fails is the last try."""
    bench.gives_up(0, count)
    assert bench.begins == [0.0, PATIENCE_SECONDS] and bench.seconds == 2 * PATIENCE_SECONDS
    assert bench.clock.waits == []


@pytest.mark.parametrize("count", [1, 4])
def test_engines_that_are_back_by_the_second_try_give_all_frames(bench: Bench, count: int) -> None:
    bench.back_at = PATIENCE_SECONDS
    bench.holds(0, count)
    assert bench.begins == [0.0] + [PATIENCE_SECONDS] * count


def test_a_second_try_that_is_answered_late_costs_the_others_none(bench: Bench) -> None:
    """They are tried after it, when patience was over long ago."""
    bench.back_at = PATIENCE_SECONDS
    read = bench.tier.read

    def read_slowly(first_slot: int, frames: list[memoryview]) -> None:
        read(first_slot, frames)
        bench.clock.seconds += 1.0

    bench.tier.read = read_slowly  # type: ignore[method-assign, assignment]
    bench.holds(0, 3)
    assert bench.begins == [0.0, 2.0, 3.0, 4.0]


def test_of_what_is_scattered_nothing_more_is_read_after_the_second_try(bench: Bench) -> None:
    put_holes(bench, 1, 3, 5)
    bench.gives_up(0, 7)
    assert bench.begins == [0.0, PATIENCE_SECONDS] and bench.seconds == 2 * PATIENCE_SECONDS


def test_of_what_is_scattered_all_is_read_if_the_second_try_is_answered(bench: Bench) -> None:
    put_holes(bench, 1, 3, 5)
    bench.back_at = PATIENCE_SECONDS
    bench.holds(0, 7)
    assert bench.begins == [0.0] + [PATIENCE_SECONDS] * 4


def test_one_try_more_is_owed_once_a_request(bench: Bench) -> None:
    """Engines are there for a moment, in the middle."""
    put_holes(bench, 1, 3, 5)
    begin = bench.tier.before_read

    def answer_the_second() -> None:
        bench.back_at = PATIENCE_SECONDS if len(bench.begins) == 1 else float("inf")
        begin()

    bench.tier.before_read = answer_the_second
    bench.gives_up(0, 7)
    assert bench.begins == [0.0, 2.0, 2.0] and bench.seconds == 2 * PATIENCE_SECONDS


@pytest.mark.parametrize("count", [1, 2])
def test_with_frames_that_were_read_along_the_others_by_themselves_are_the_second_try(bench: Bench, count: int) -> None:
    bench.store.fetcher.readahead.window = 2  # type: ignore[union-attr]
    sizes: list[int] = []
    read = bench.tier.read

    def note_size(first_slot: int, frames: list[memoryview]) -> None:
        sizes.append(len(frames))
        read(first_slot, frames)

    bench.tier.read = note_size  # type: ignore[method-assign, assignment]
    bench.gives_up(0, count)
    assert sizes == [count + 2, count]
    assert bench.begins == [0.0, PATIENCE_SECONDS] and bench.seconds == 2 * PATIENCE_SECONDS


def test_once_nothing_could_be_read_for_that_long_they_are_asked_once(bench: Bench) -> None:
    bench.gives_up(0)
    for _ in range(3):
        bench.begin_again()
        bench.gives_up(1)
        assert bench.begins == [0.0] and bench.seconds == PATIENCE_SECONDS
    bench.begin_again()
    bench.back_at = 0.0
    bench.holds(1)
    bench.begin_again()
    bench.back_at = float("inf")
    bench.gives_up(0)
    assert bench.begins == [0.0, PATIENCE_SECONDS], "that outage was over"


def at_engine_1(bench: Bench, index: int) -> None:
    assert isinstance(bench.tier, WarmMemoryTier)
    bench.tier.engine_of[bench.slot(index)] = 1


def test_what_a_dead_engine_has_costs_no_wait_though_others_are_read(bench: Bench) -> None:
    at_engine_1(bench, 0)
    bench.gives_up(0)
    bench.begin_again()
    bench.back_at = 0.0
    bench.holds(1)
    bench.begin_again()
    bench.back_at = float("inf")
    bench.gives_up(0)
    assert bench.begins == [0.0] and bench.seconds == PATIENCE_SECONDS


def test_that_one_engine_is_dead_says_nothing_of_the_others(bench: Bench) -> None:
    at_engine_1(bench, 0)
    bench.gives_up(0)
    bench.begin_again()
    bench.gives_up(1)
    assert bench.begins == [0.0, PATIENCE_SECONDS]


def test_engines_that_fail_at_once_are_tried_for_as_long_as_a_disk(bench: Bench) -> None:
    def fail() -> None:
        bench.begins.append(round(bench.seconds, 3))
        bench.tier.failing_reads = ALWAYS

    bench.tier.before_read = fail
    bench.gives_up(0)
    assert bench.begins == [0.0, 0.0, 0.1, 0.5, 1.5]


def test_a_disk_that_takes_as_long_is_not_asked_again(rng: random.Random) -> None:
    """Nobody knows how long it would take the next time."""
    bench = Bench(rng, MemoryTier)
    bench.gives_up(0, 4)
    assert bench.begins == [0.0] and bench.seconds == PATIENCE_SECONDS


@pytest.mark.parametrize(("tier", "where"), [(MemoryTier, "slot 1"), (WarmMemoryTier, f"slot 1 {AT_ENGINES}")])
def test_an_error_says_whether_engines_have_the_bytes(rng: random.Random, tier: type[MemoryTier], where: str) -> None:
    """For whoever is told where to look."""
    bench = Bench(rng, tier)
    with pytest.raises(PageDamaged, match=f"^reading {where}: injected read error$"):
        bench.get(0)
    bench.back_at = 0.0
    bench.tier.flip_bit(1)
    with pytest.raises(PageDamaged, match=f"^what is in {where} is not what was sealed$"):
        bench.get(0)

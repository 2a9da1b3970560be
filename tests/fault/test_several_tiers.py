"""A store over several tiers: where frames go when one is full, or fails; and that what is in one
has nothing to do with the health of another."""

import random
import threading

import pytest

from tests.support.clock import FakeClock
from tests.support.pages import raw_page
from tests.support.stores import get, new_object, once, put, small_store, wait_for_a_waiter
from tests.support.tiers import MemoryTier, WarmMemoryTier
from zcache.control.check import check
from zcache.control.reasons import reasons
from zcache.errors import PageDamaged, StoreFull
from zcache.pages.entry import decode_zpage
from zcache.pages.tmem import TmemObject
from zcache.store.store import Store
from zcache.tiers.backoff import LAST_REST_SECONDS, PATIENCE_SECONDS

BUDGET = 8
PAGES = 40


class Bench:
    """Raw pages over two tiers; `warm` has room for four frames."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        clock = FakeClock()
        self.warm, self.cold = MemoryTier(4, clock=clock), MemoryTier(30, clock=clock)
        self.store: Store = small_store(BUDGET, tiers=[self.warm, self.cold], allocator="zbud")
        self.thing: TmemObject = new_object(self.store, PAGES)
        self.pages: dict[int, bytes] = {}

    def put(self, *indexes: int) -> None:
        for index in indexes:
            self.pages[index] = raw_page(self.rng)
            put(self.store, self.thing, index, self.pages[index])

    def clean(self) -> bool | None:
        return self.store.reclaimer.clean_some()

    def used(self) -> tuple[int, int]:
        return self.warm.used_slots, self.cold.used_slots

    def slot_of(self, index: int) -> int:
        return self.store.frames.below[decode_zpage(self.thing.table.entries[index]).frame]

    def check(self) -> None:
        """Every page is what was put, and the books balance."""
        for index, page in self.pages.items():
            assert get(self.store, self.thing, index) == page
        check(self.store)


@pytest.fixture
def bench(rng: random.Random) -> Bench:
    return Bench(rng)


def test_the_warmest_is_filled_first_and_a_write_ends_where_it_ends(bench: Bench) -> None:
    bench.put(*range(BUDGET))
    assert bench.clean() is True and bench.used() == (4, 0)
    assert bench.clean() is True and bench.used() == (4, 4)
    assert (bench.warm.write_sizes, bench.cold.write_sizes) == ([4], [4])
    assert [bench.slot_of(index) for index in range(BUDGET)] == [*range(1, BUDGET + 1)]
    bench.put(*range(BUDGET, 30))
    bench.check()
    bench.store.flush(bench.thing, 0, PAGES)
    check(bench.store)
    assert bench.used() == (0, 0)


def test_neighbours_in_two_tiers_are_two_reads(bench: Bench) -> None:
    bench.put(*range(BUDGET))
    while bench.clean():
        pass
    bench.put(*range(BUDGET, 2 * BUDGET))  # and all those are below only
    bench.warm.tries = bench.cold.tries = 0
    assert get(bench.store, bench.thing, 2, 4) == b"".join(bench.pages[index] for index in range(2, 6))
    assert (bench.warm.tries, bench.cold.tries) == (1, 1)
    bench.check()


def test_one_that_fails_is_passed_over_and_tried_again(bench: Bench) -> None:
    bench.warm.failing_writes = 1
    bench.put(*range(BUDGET))
    assert bench.clean() is False and bench.used() == (0, 0)
    assert "writeback has been failing" in reasons(bench.store, 0)[0]
    assert bench.clean() is True and bench.used() == (0, 8)
    assert reasons(bench.store, 0), "that the other works says nothing of this one"
    bench.put(*range(BUDGET, 2 * BUDGET))
    bench.store.clock.sleep(LAST_REST_SECONDS)
    assert bench.clean() is True and bench.warm.used_slots
    assert not reasons(bench.store, 0)
    bench.check()


def test_a_put_waits_for_the_one_that_has_room_and_not_for_the_one_that_is_full(bench: Bench) -> None:
    bench.put(*range(BUDGET + 4))
    assert bench.warm.used_slots == 4
    bench.cold.failing_writes = 1 << 20
    began = bench.store.clock.now()
    with pytest.raises(StoreFull, match="the backing cannot be written"):
        while True:
            bench.put(len(bench.pages))
    lost = max(bench.pages)
    del bench.pages[lost]
    assert bench.store.clock.now() - began < 2 * PATIENCE_SECONDS
    bench.cold.failing_writes = 0
    bench.store.clock.sleep(LAST_REST_SECONDS)
    bench.put(lost)
    bench.check()


def test_a_put_waits_for_a_flight_to_one_that_is_well(bench: Bench) -> None:
    """Although there is room only in the one that has failed for long: what is in the air will make
    room."""
    bench.put(*range(BUDGET))
    bench.warm.failing_writes = 1 << 20
    bench.clean()
    bench.cold.reserve(22)
    late = bench.store.clock.now() + 2 * PATIENCE_SECONDS
    bench.store.clock.now = lambda: late  # type: ignore[method-assign]  # no rest ends any more
    assert bench.clean() is False
    writer = threading.Thread(target=bench.put, args=(BUDGET,), daemon=True)

    def start() -> None:
        writer.start()
        wait_for_a_waiter(bench.store, writer)

    bench.cold.before_write = once(start)
    assert bench.clean() is True and bench.cold.used_slots == bench.cold.slot_count
    writer.join(timeout=10)
    assert not writer.is_alive() and bench.store.statistics.failed_puts == 0
    assert get(bench.store, bench.thing, BUDGET) == bench.pages[BUDGET]


def test_a_put_writes_to_the_disk_while_a_flight_to_engines_hangs(rng: random.Random) -> None:
    """A flight of one frame, as small as the put's own, and no memory that both need."""
    clock = FakeClock()
    warm, cold = WarmMemoryTier(1, clock=clock), MemoryTier(30, clock=clock)
    store = small_store(BUDGET, tiers=[warm, cold], allocator="zbud")
    thing = new_object(store, PAGES)
    pages = [raw_page(rng) for _ in range(BUDGET + 1)]
    put(store, thing, 0, *pages[:BUDGET])
    writer = threading.Thread(target=put, args=(store, thing, BUDGET, pages[BUDGET]), daemon=True)
    was_done: list[bool] = []

    def hang() -> None:
        writer.start()
        writer.join(timeout=10)
        was_done.append(not writer.is_alive())

    warm.before_write = hang
    assert store.reclaimer.clean_some() and warm.write_sizes == [1]
    assert was_done == [True] and store.statistics.reclaim_sync and cold.write_sizes
    writer.join(timeout=10)
    assert [get(store, thing, index) for index in range(BUDGET + 1)] == pages
    check(store)


def test_one_that_fails_makes_background_reclaim_write_no_more_than_usual(bench: Bench) -> None:
    store = bench.store
    store.reclaimer.chosen_watermarks = (1, 2)
    store.reclaimer.set_watermarks(BUDGET)
    store.reclaimer.batch = 1
    bench.put(*range(BUDGET))
    bench.warm.failing_writes = 1 << 20
    rests: list[float] = []

    class Stopped(threading.Event):
        def is_set(self) -> bool:
            return len(rests) > 4

        def wait(self, timeout: float | None = None) -> bool:
            if timeout:  # or the other is tried at once
                rests.append(timeout)
                store.clock.sleep(timeout)
            return self.is_set()

    store.reclaimer.stopped = Stopped()
    store.reclaimer.wake.set()
    store.reclaimer.run()
    assert len(rests) == bench.warm.tries == 5, "a rest is over when the one that fails may be tried again"
    assert len(bench.cold.write_sizes) <= len(rests) + 2, "and one flight to the other"


def test_what_is_in_one_is_read_while_the_other_is_dead(bench: Bench) -> None:
    bench.put(*range(30))
    in_warm = [index for index in range(30) if 0 < bench.slot_of(index) <= 4]
    in_cold = [index for index in range(30) if bench.slot_of(index) > 4]
    assert in_warm and len(in_cold) > BUDGET
    bench.warm.failing_reads = 1 << 20
    for index in in_cold:
        assert get(bench.store, bench.thing, index) == bench.pages[index]
    with pytest.raises(PageDamaged, match="injected read error"):
        get(bench.store, bench.thing, in_warm[0])
    warm, cold = bench.store.below.places
    assert warm.health.reading.failures and not cold.health.reading.failures
    bench.warm.failing_reads = 0
    bench.check()
    assert not reasons(bench.store, 0)


@pytest.mark.parametrize("has_disk", [False, True])
def test_whoever_finds_no_room_is_told_of_the_engines_too(rng: random.Random, has_disk: bool) -> None:
    clock = FakeClock()
    tiers = [WarmMemoryTier(2, clock=clock), *[MemoryTier(2, clock=clock)][: int(has_disk)]]
    store = small_store(BUDGET, tiers=tiers, allocator="zbud")
    thing = new_object(store, PAGES)
    where = "RAM and the backing are full" if has_disk else "pages: RAM is full"
    with pytest.raises(StoreFull, match=f"{where}, and the engines take no more .*their maxmemory, quotas"):
        for index in range(PAGES):
            put(store, thing, index, raw_page(rng))


def test_whoever_finds_no_room_while_engines_fail_is_not_sent_to_a_disk(rng: random.Random) -> None:
    warm = WarmMemoryTier(PAGES, clock=FakeClock())
    store = small_store(BUDGET, tiers=[warm], allocator="zbud")
    thing = new_object(store, PAGES)
    warm.failing_writes = 1 << 20
    with pytest.raises(StoreFull, match=r"pages: frames cannot be sent to the engines \(EIO.*; look at the engines"):
        for index in range(PAGES):
            put(store, thing, index, raw_page(rng))

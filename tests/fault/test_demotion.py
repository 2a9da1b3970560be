"""Frames go on from a warm tier to the next one, the coldest first, and come back into RAM when it
has room; whatever happens in the middle."""

import errno
import random
from collections.abc import Sequence

import pytest

from tests.support.clock import FakeClock
from tests.support.pages import raw_page
from tests.support.stores import drop_clean_frames, frame_of, get, new_object, once, put, small_store
from tests.support.tiers import MemoryTier, WarmMemoryTier
from zcache.control.check import check
from zcache.control.reasons import reasons
from zcache.errors import PageDamaged
from zcache.pageframes import State
from zcache.pages.entry import decode_zpage
from zcache.reclaim.demotion import BATCH_FRAMES, QUIET_SECONDS, Demoter

WARM, COLD, PAGES = 32, 64, 96


class Bench:
    """One raw page a frame, over a warm tier and a disk."""

    def __init__(self, rng: random.Random, cold_slots: int = COLD, budget_frames: int = 8) -> None:
        self.rng = rng
        self.clock = FakeClock()
        self.warm, self.cold = WarmMemoryTier(WARM, clock=self.clock), MemoryTier(max(cold_slots, 1), clock=self.clock)
        tiers = [self.warm, self.cold] if cold_slots else [self.warm]
        self.store = small_store(budget_frames, tiers=tiers, allocator="zbud")
        self.thing = new_object(self.store, PAGES)
        self.pages: dict[int, bytes] = {}
        assert self.store.demoter
        self.demoter: Demoter = self.store.demoter

    def fill(self, count: int, first: int = 0) -> None:
        """Page by page, each written below at once, and only there."""
        for index in range(first, first + count):
            self.pages[index] = raw_page(self.rng)
            put(self.store, self.thing, index, self.pages[index])
            assert self.store.reclaimer.clean_some()
            drop_clean_frames(self.store)

    def below(self, index: int) -> int:
        return self.store.frames.below[decode_zpage(self.thing.table.entries[index]).frame]

    def is_warm(self, index: int) -> bool:
        return 0 < self.below(index) <= WARM

    def check(self) -> None:
        for index, page in self.pages.items():
            assert get(self.store, self.thing, index) == page
        check(self.store)


@pytest.fixture
def bench(rng: random.Random) -> Bench:
    return Bench(rng)


def test_nothing_moves_while_the_warm_tier_has_room(bench: Bench) -> None:
    bench.fill(WARM - BATCH_FRAMES)
    assert not bench.demoter.demote_some()
    assert bench.cold.used_slots == 0
    bench.check()


def test_the_coldest_move_on_when_it_runs_short(bench: Bench) -> None:
    bench.fill(WARM - 2)
    assert bench.demoter.demote_some()
    assert [bench.is_warm(index) for index in range(WARM - 2)] == [False] * BATCH_FRAMES + [True] * (
        WARM - 2 - BATCH_FRAMES
    )
    assert bench.store.statistics.demoted_frames == BATCH_FRAMES
    assert len(bench.cold.write_sizes) == 1, "in one write"
    bench.check()


def test_what_is_written_while_it_demotes_stays_in_order(bench: Bench) -> None:
    """All that fits is in the warm tier, and it is the youngest of all."""
    for first in range(0, PAGES - 16, 4):
        bench.fill(4, first)
        bench.demoter.work()
    warm = [index for index in bench.pages if bench.is_warm(index)]
    assert warm == list(range(PAGES - 16 - len(warm), PAGES - 16)) and len(warm) >= WARM - 2 * BATCH_FRAMES
    bench.check()


def test_what_was_read_is_passed_over_once(bench: Bench) -> None:
    bench.fill(WARM - 2)
    for index in (0, 1, 5):
        assert get(bench.store, bench.thing, index) == bench.pages[index]
    drop_clean_frames(bench.store)
    assert bench.demoter.demote_some()
    assert [index for index in range(6) if bench.is_warm(index)] == [0, 1, 5]
    bench.check()


def test_what_dies_on_its_way_is_not_kept(bench: Bench) -> None:
    bench.fill(WARM - 2)
    bench.cold.before_write = once(lambda: bench.store.flush(bench.thing, 2, 2))
    assert bench.demoter.demote_some()
    del bench.pages[2], bench.pages[3]
    assert bench.cold.used_slots == BATCH_FRAMES - 2
    bench.check()


def test_what_is_written_anew_on_its_way_is_what_is_read(bench: Bench) -> None:
    bench.fill(WARM - 2)

    def overwrite() -> None:
        bench.pages[4] = raw_page(bench.rng)
        put(bench.store, bench.thing, 4, bench.pages[4])

    bench.cold.before_write = once(overwrite)
    assert bench.demoter.demote_some()
    bench.check()


def test_a_read_that_meets_a_move_finds_the_frame_where_it_is_then(bench: Bench) -> None:
    """The frame's slot is given back between the look and the read; its bytes may be another's."""
    bench.fill(WARM - 2)

    def move() -> None:
        assert bench.demoter.demote_some()
        bench.warm.bad_slots = set(range(1, BATCH_FRAMES + 1))

    bench.warm.before_read = once(move)
    assert get(bench.store, bench.thing, 3) == bench.pages[3]
    assert not bench.is_warm(3) and bench.store.statistics.fetch_errors == 0
    bench.check()


def test_a_frame_that_is_read_wrong_once_moves_on_as_it_is_read_the_second_time(bench: Bench) -> None:
    bench.fill(WARM - 2)
    reads: list[int] = []

    def read_wrong(slot: int, frames: Sequence[memoryview]) -> None:
        frames[0][:] = bytes(len(frames[0]))
        reads.append(slot)

    bench.warm.read_to_move = read_wrong  # type: ignore[method-assign, assignment]
    assert bench.demoter.demote_some()
    assert reads == [*range(1, BATCH_FRAMES + 1)]
    assert [bench.is_warm(index) for index in range(BATCH_FRAMES)] == [False] * BATCH_FRAMES
    bench.check()


def test_a_read_that_fails_where_the_frame_has_gone_is_that_tier_s_failure(bench: Bench) -> None:
    bench.fill(WARM - 2)

    def move_and_fail() -> None:
        assert bench.demoter.demote_some()
        bench.warm.bad_slots = set(range(1, BATCH_FRAMES + 1))
        bench.cold.failing_reads = PAGES

    bench.warm.before_read = once(move_and_fail)
    with pytest.raises(PageDamaged):
        get(bench.store, bench.thing, 3)
    warm, cold = (place.health.reading.failures for place in bench.store.below.places)
    assert cold and not warm
    bench.cold.failing_reads = 0
    bench.check()


def test_a_disk_that_fails_leaves_them_where_they_are(bench: Bench) -> None:
    bench.fill(WARM - 2)
    bench.cold.failing_writes = 1
    assert not bench.demoter.demote_some()
    assert bench.cold.used_slots == 0 and bench.store.below.places[1].health.writing.failures == 1
    assert not bench.demoter.demote_some(), "it is given a rest"
    bench.clock.seconds += 1
    assert bench.demoter.demote_some()
    assert not bench.store.below.places[1].health.writing.failures
    bench.check()


@pytest.mark.parametrize("where", ["read", "write"])
def test_what_nobody_has_foreseen_leaves_no_slot_behind(bench: Bench, where: str) -> None:
    """No memory, for one."""

    def fail() -> None:
        raise MemoryError

    bench.fill(WARM - 2)
    place = bench.store.below.places[1]
    if where == "read":
        bench.warm.before_read = once(fail)
    else:
        bench.cold.before_write = once(fail)
    bench.demoter.work()
    assert bench.cold.used_slots == place.flights == bench.store.statistics.demoted_frames == 0
    assert place.health.writing.failures == (where == "write")
    assert bench.demoter.unforeseen == ("MemoryError: " if where == "read" else "")
    bench.clock.seconds += 1
    assert bench.demoter.demote_some() and not place.health.writing.failures
    bench.check()


def test_engines_that_hang_are_waited_for_once_and_not_for_each_frame(bench: Bench) -> None:
    bench.fill(WARM - 2)
    tries = []

    def hang() -> None:
        tries.append(bench.clock.now())
        bench.clock.seconds += 2
        raise TimeoutError(errno.ETIMEDOUT, "no answer in time")

    bench.warm.before_read = hang
    assert not bench.demoter.demote_some()
    assert len(tries) == 1 and bench.cold.used_slots == 0
    bench.warm.before_read = lambda: None
    assert bench.demoter.demote_some()
    bench.check()


def test_a_frame_that_cannot_be_read_holds_up_no_other(bench: Bench) -> None:
    bench.fill(WARM - 2)
    slot = bench.below(1)
    bench.warm.bad_slots = {slot}
    assert bench.demoter.demote_some()
    assert bench.is_warm(1) and not bench.is_warm(0) and not bench.is_warm(2)
    bench.warm.bad_slots = set()
    bench.check()


def test_a_spoiled_frame_is_not_made_two(bench: Bench) -> None:
    bench.fill(WARM - 2)
    bench.warm.flip_bit(bench.below(1))
    assert bench.demoter.demote_some()
    assert bench.is_warm(1)
    with pytest.raises(PageDamaged):
        get(bench.store, bench.thing, 1)
    del bench.pages[1]
    bench.store.flush(bench.thing, 1, 1)
    bench.check()


def test_what_is_over_a_limit_goes(bench: Bench) -> None:
    bench.fill(20)
    bench.warm.capacity_slots = 10
    bench.demoter.work()
    assert bench.warm.used_slots <= 10
    bench.check()


def test_a_full_disk_is_left_alone(rng: random.Random) -> None:
    bench = Bench(rng, cold_slots=4)
    bench.fill(WARM - 2)
    bench.demoter.work()
    assert bench.cold.used_slots == 4 and bench.warm.used_slots == WARM - 6
    bench.check()


def test_a_put_leaves_writing_to_a_warm_tier_to_background_reclaim(rng: random.Random) -> None:
    bench = Bench(rng, cold_slots=0)
    bench.store.reclaimer.start()
    try:
        for index in range(24):
            bench.pages[index] = raw_page(rng)
            put(bench.store, bench.thing, index, bench.pages[index])
    finally:
        bench.store.reclaimer.stop()
    assert bench.store.statistics.reclaim_sync == 0 and bench.store.statistics.reclaim_background > 0
    bench.check()


class FullTier(WarmMemoryTier):
    """One that has room until it is to make use of it, as an engine that others have filled."""

    is_full = False

    @property
    def free_slots(self) -> int:
        return 0 if self.is_full else super().free_slots

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        self.is_full = True
        raise OSError(errno.ENOSPC, f"OOM: {len(frames)} frames from slot {first_slot} on")


def test_a_warm_tier_that_turns_out_to_be_full_is_no_trouble(rng: random.Random) -> None:
    bench = Bench(rng)
    full = FullTier(WARM, clock=bench.clock)
    bench.store = small_store(8, tiers=[full, bench.cold], allocator="zbud")
    bench.thing = new_object(bench.store, PAGES)
    for index in range(20):
        bench.pages[index] = raw_page(rng)
        put(bench.store, bench.thing, index, bench.pages[index])
        bench.store.reclaimer.clean_some()
    assert full.is_full and not bench.store.below.in_trouble()
    assert bench.store.statistics.writeback_errors == 0 and bench.cold.used_slots > 0
    bench.check()


class Roomy(Bench):
    """The same with `log`, whose frames can be taken back."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        frame_bytes = 64 << 10
        self.warm = WarmMemoryTier(WARM, frame_bytes, clock=self.clock)
        self.store = small_store(32, tiers=[self.warm], allocator="log")
        self.thing = new_object(self.store, 800)
        assert self.store.demoter
        self.demoter = self.store.demoter

    def fill(self, count: int, first: int = 0) -> None:
        for index in range(first, first + count):
            self.pages[index] = raw_page(self.rng)
            put(self.store, self.thing, index, self.pages[index])
        while self.store.reclaimer.clean_some():
            pass
        drop_clean_frames(self.store)


def test_frames_come_back_once_there_has_been_room_for_a_while(rng: random.Random) -> None:
    bench = Roomy(rng)
    bench.fill(160)
    held = bench.warm.used_slots
    for _ in range(2):
        bench.demoter.work()
    assert bench.warm.used_slots == held, "not at once"
    bench.clock.seconds += QUIET_SECONDS
    bench.demoter.work()
    frames = bench.store.frames
    assert bench.warm.used_slots < held == bench.warm.used_slots + bench.store.statistics.pulled_back_frames
    states = [State(frames.state[frame]) for frame in range(1, frames.fresh_id)]
    assert states.count(State.CLEAN) == 0 and State.DIRTY in states
    bench.check()
    bench.fill(200, 200)  # and they leave again
    bench.check()


def test_frames_that_are_written_meanwhile_put_it_off(rng: random.Random) -> None:
    bench = Roomy(rng)
    bench.fill(160)
    for _ in range(2):
        bench.demoter.work()
    bench.clock.seconds += QUIET_SECONDS
    bench.fill(20, 160)
    for _ in range(2):
        bench.demoter.work()
    assert bench.store.statistics.pulled_back_frames == 0
    bench.check()


def test_a_frame_that_is_spoiled_stays_below(rng: random.Random) -> None:
    bench = Roomy(rng)
    bench.fill(160)
    for slot in range(1, WARM + 1):
        if slot in bench.warm.medium:
            bench.warm.flip_bit(slot)
    for _ in range(2):
        bench.demoter.work()
    bench.clock.seconds += QUIET_SECONDS
    bench.demoter.work()
    assert bench.store.statistics.pulled_back_frames == 0
    check(bench.store)


def test_what_could_not_be_read_and_has_moved_since_can_be_read(bench: Bench) -> None:
    """It was seen to be right on its way to the disk, of which nothing is forgotten by itself."""
    bench.fill(WARM - 2)
    bench.warm.failing_reads = 1 << 30
    with pytest.raises(PageDamaged):
        get(bench.store, bench.thing, 0)
    assert reasons(bench.store, 0)
    bench.warm.failing_reads = 0
    while bench.is_warm(0):  # it was read: it is passed over once
        bench.fill(1, len(bench.pages))
        bench.demoter.demote_some()
    assert not reasons(bench.store, 0)
    bench.check()


def test_what_could_not_be_read_and_has_come_back_into_ram_can_be_read(rng: random.Random) -> None:
    bench = Roomy(rng)
    bench.fill(160)
    assert not bench.store.frames.home[frame_of(bench.thing, 0)]
    bench.warm.failing_reads = 1 << 30
    with pytest.raises(PageDamaged):
        get(bench.store, bench.thing, 0)
    assert reasons(bench.store, 0)
    bench.warm.failing_reads = 0
    for _ in range(8):
        bench.demoter.work()
        bench.clock.seconds += QUIET_SECONDS
    assert bench.store.frames.home[frame_of(bench.thing, 0)]
    assert not reasons(bench.store, 0)

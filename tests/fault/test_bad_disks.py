"""What a bad disk does to the store, fault by fault, and then all faults together in a random
order.

Time is the test's own: nothing sleeps, and a disk that takes thirty seconds takes none.
"""

import errno
import itertools
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.pages import any_page, raw_page
from tests.support.stores import (
    PAGE_BYTES,
    get,
    health_of,
    new_object,
    once,
    put,
    small_store,
    tier_of,
    wait_for_a_waiter,
)
from tests.support.tiers import FaultyTier, MemoryTier
from zcache.control.check import check
from zcache.control.status import gather_status
from zcache.errors import PageDamaged, PageLost, StoreFull
from zcache.fetch.readback import RETRY_PAUSES_SECONDS
from zcache.pageframes import State
from zcache.pages.codec import parse_codec
from zcache.pages.entry import LOST, SAME_FILLED, decode_zpage
from zcache.pages.tmem import TmemObject
from zcache.seals.crc import CRC
from zcache.server.warm_up import warm_up
from zcache.store.store import Store
from zcache.tiers.backing_file import BackingFile
from zcache.tiers.backoff import LAST_REST_SECONDS, PATIENCE_SECONDS
from zcache.tiers.health import SLOW_MEMORY_SECONDS

ALWAYS = 1 << 30
BUDGET = 4


class Bench:
    """A store of four frames over a tier of sixteen, and time that stands still."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.clock = FakeClock()
        self.store = small_store(BUDGET, 16, clock=self.clock)
        self.tier = tier_of(self.store)
        self.thing = new_object(self.store, 20)
        self.model: dict[int, bytes] = {}

    def put(self, first: int, count: int = 1) -> None:
        """Pages that do not compress, a frame each."""
        for index in range(first, first + count):
            self.model[index] = raw_page(self.rng)
            put(self.store, self.thing, index, self.model[index])

    def make_cold(self, count: int) -> None:
        """Pages 0 to `count` - 1 are below only, in neighbouring slots; the RAM is full of
        others."""
        self.put(0, count)
        for _ in range(2):
            self.store.reclaimer.clean_some()
        self.put(20 - BUDGET, BUDGET)
        self.clock.waits.clear()
        assert all(self.store.frames.state[self.frame(index)] == State.COLD for index in range(count))

    def make_cold_apart(self, count: int) -> None:
        """The same, but no two of them are neighbours below: each is a read of its own."""
        for index in range(count):
            self.put(index)
            self.store.reclaimer.clean_some()
            self.put(19)
            self.store.reclaimer.clean_some()
        self.put(20 - BUDGET, BUDGET)
        self.clock.waits.clear()
        slots = sorted(self.slot(index) for index in range(count))
        assert all(after > slot + 1 for slot, after in itertools.pairwise(slots))
        assert all(self.store.frames.state[self.frame(index)] == State.COLD for index in range(count))

    def frame(self, index: int) -> int:
        return decode_zpage(self.thing.table.entries[index]).frame

    def slot(self, index: int) -> int:
        return self.store.frames.below[self.frame(index)]

    def get(self, index: int, count: int = 1) -> bytes:
        return get(self.store, self.thing, index, count)

    def holds(self, *indexes: int) -> None:
        for index in indexes:
            assert self.get(index) == self.model[index], index

    def reasons(self) -> list[str]:
        status = gather_status(self.store, self.thing, {})
        assert status["state"] == ("degraded" if status["reasons"] else "ok")
        return list(status["reasons"])

    def run_background_reclaim(self, seconds: float, every_rest: Callable[[], None] = lambda: None) -> None:
        """The thread's own loop, in this thread, for as long as that is on the clock."""
        end = self.clock.seconds + seconds

        class Stopped(threading.Event):
            def is_set(event) -> bool:  # noqa: N805
                return self.clock.seconds >= end

            def wait(event, timeout: float | None = None) -> bool:  # noqa: N805
                assert timeout, "background reclaim spins"
                self.clock.sleep(timeout)
                every_rest()
                return event.is_set()

        class Wake(threading.Event):
            def wait(event, timeout: float | None = None) -> bool:  # noqa: ARG002, N805
                if not event.is_set():
                    self.clock.seconds = max(self.clock.seconds, end)  # nobody wakes it any more
                return True

        reclaimer = self.store.reclaimer
        reclaimer.stopped, reclaimer.wake = Stopped(), Wake()
        reclaimer.wake.set()
        reclaimer.run()


@pytest.fixture
def bench(rng: random.Random) -> Bench:
    return Bench(rng)


# -- writes
# --------------------------------------------------------------------------------------------------


def test_background_reclaim_does_not_spin_on_a_dead_disk(bench: Bench) -> None:
    bench.put(0, BUDGET)
    bench.tier.failing_writes = ALWAYS
    bench.run_background_reclaim(60.0)
    assert bench.clock.waits[:6] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6])
    assert bench.tier.tries == len(bench.clock.waits) <= 6 + 60 / LAST_REST_SECONDS
    statistics = bench.store.statistics
    assert statistics.writeback_errors == bench.tier.tries
    assert statistics.writeback_kept_frames == BUDGET * bench.tier.tries
    assert bench.reasons() == [
        f"writeback has been failing for {health_of(bench.store).writing.trouble_seconds():.0f} s "
        f"({bench.tier.tries} tries, the last: EIO: injected write error); 4 frames kept in RAM"
    ]
    bench.holds(*range(BUDGET))
    check(bench.store)


def test_a_disk_that_healed_is_noticed_after_one_rest(bench: Bench) -> None:
    bench.put(0, BUDGET)
    bench.tier.failing_writes = ALWAYS
    healed_at = bench.clock.seconds + 31.0
    noticed_at: list[float] = []

    def heal_in_time() -> None:
        if bench.clock.seconds >= healed_at:
            bench.tier.failing_writes = 0

    bench.tier.before_write = lambda: noticed_at.append(bench.clock.seconds)
    bench.run_background_reclaim(60.0, heal_in_time)
    assert bench.tier.write_sizes == [BUDGET]
    assert healed_at <= noticed_at[-1] <= healed_at + LAST_REST_SECONDS
    assert bench.reasons() == []
    assert bench.store.frames.queue_length[2] == BUDGET
    check(bench.store)


def test_background_reclaim_goes_on_until_a_write_arrives_even_when_room_was_made_otherwise(bench: Bench) -> None:
    """Trims made room while the disk was bad: without another try, nobody would learn that it is
    well again."""
    bench.put(0, BUDGET)
    bench.tier.failing_writes = 1
    bench.store.reclaimer.clean_some()
    bench.store.flush(bench.thing, 0, BUDGET - 1)
    assert bench.store.frames.available >= bench.store.reclaimer.high_watermark and bench.reasons()
    bench.run_background_reclaim(10.0)
    assert bench.reasons() == []
    check(bench.store)


def test_a_trouble_is_forgotten_when_all_that_could_not_be_written_was_trimmed(bench: Bench) -> None:
    """No write can show any more that the disk is well. Who meets the first flight after that waits
    for it, as on any disk that has not failed yet."""
    bench.put(0, BUDGET)
    bench.tier.failing_writes = 1
    bench.store.reclaimer.clean_some()
    bench.store.flush(bench.thing, 0, BUDGET)
    assert bench.reasons()
    bench.run_background_reclaim(10.0)
    assert bench.reasons() == [] and bench.tier.tries == 1
    bench.clock.seconds += 3600
    bench.put(0, BUDGET)
    writer = threading.Thread(target=lambda: bench.put(BUDGET))

    def start() -> None:
        writer.start()
        wait_for_a_waiter(bench.store, writer)

    bench.tier.before_write = once(start)
    assert bench.store.reclaimer.clean_some() is True
    writer.join(timeout=10)
    bench.holds(*range(BUDGET + 1))
    assert bench.store.statistics.failed_puts == 0
    check(bench.store)


def test_background_reclaim_goes_on_in_a_trouble_although_there_is_no_room_below_for_now(bench: Bench) -> None:
    """It looks again after a rest, and is not woken for that: the trouble ends when there is
    room."""
    bench.put(0, BUDGET)
    bench.tier.failing_writes = 1
    bench.store.reclaimer.clean_some()
    slots = range(1, bench.tier.slot_count + 1)
    for slot in slots:
        bench.tier.take_over(slot)

    def make_room_below() -> None:
        for slot in slots:
            bench.tier.release(slot)

    bench.run_background_reclaim(10.0, once(make_room_below))
    assert bench.clock.waits == [LAST_REST_SECONDS] and bench.reasons() == []
    check(bench.store)


def test_a_put_waits_while_the_trouble_is_young_and_succeeds_when_it_ends(bench: Bench) -> None:
    bench.put(0, BUDGET)
    bench.tier.failing_writes = 4
    bench.put(4)
    assert bench.clock.waits == pytest.approx([0.05, 0.1, 0.2, 0.4])
    assert bench.store.statistics.failed_puts == 0 and bench.reasons() == []
    bench.holds(*range(5))
    check(bench.store)


def test_a_put_that_meets_a_dead_disk_fails_after_its_patience_and_the_next_ones_at_once(bench: Bench) -> None:
    bench.put(0, BUDGET)
    bench.tier.failing_writes = ALWAYS
    with pytest.raises(StoreFull):
        bench.put(4)
    assert sum(bench.clock.waits) == pytest.approx(PATIENCE_SECONDS)
    waits, tries = len(bench.clock.waits), bench.tier.tries
    for _ in range(10):
        with pytest.raises(StoreFull):
            bench.put(5)
    assert len(bench.clock.waits) == waits and bench.tier.tries == tries, "waited, or wrote, without hope"
    assert len(bench.reasons()) == 2 and "2 pages lost" in bench.reasons()[1]
    bench.holds(*range(BUDGET))
    check(bench.store)
    bench.clock.seconds += LAST_REST_SECONDS
    bench.tier.failing_writes = 0
    bench.put(4, 2)
    assert bench.reasons() == []
    bench.holds(*range(6))
    check(bench.store)


def test_a_put_that_only_finds_frames_in_flight_on_a_dead_disk_does_not_wait_for_them(bench: Bench) -> None:
    """Somebody else's try may hang, with all of RAM in it, and it began when patience was over."""
    bench.put(0, BUDGET)
    bench.tier.failing_writes = 1
    bench.store.reclaimer.clean_some()
    bench.clock.seconds += PATIENCE_SECONDS
    failed: list[bool] = []

    def put_meanwhile() -> None:
        with pytest.raises(StoreFull):
            bench.put(4)
        failed.append(True)

    bench.tier.before_write = put_meanwhile
    assert bench.store.reclaimer.clean_some() is True
    assert failed and bench.clock.waits == []
    check(bench.store)


def test_a_bad_spot_is_written_around(bench: Bench) -> None:
    bench.tier.bad_slots = {1, 2}
    bench.put(0, BUDGET)
    assert bench.store.reclaimer.clean_some() is False
    bench.clock.seconds += 1
    assert bench.store.reclaimer.clean_some() is True
    assert {bench.slot(index) for index in range(BUDGET)}.isdisjoint({1, 2})
    check(bench.store)


def test_a_write_that_takes_seconds_is_waited_for_counted_and_told(bench: Bench) -> None:
    bench.put(0, BUDGET)
    bench.tier.transfer_seconds = 3.0
    said: list[str] = []

    def look_meanwhile() -> None:
        bench.clock.seconds += 1.5
        said.extend(bench.reasons())

    bench.tier.before_write = look_meanwhile
    bench.put(4)
    assert said == ["the disk is slow: a transfer has been under way for 2 s"]
    assert bench.store.statistics.slow_writes == 1 and bench.store.statistics.failed_puts == 0
    assert bench.reasons() == ["the disk is slow: a transfer took 4.5 s, 0 s ago"]
    bench.clock.seconds += SLOW_MEMORY_SECONDS
    assert bench.reasons() == []
    bench.tier.transfer_seconds = 0.0
    bench.holds(*range(5))
    check(bench.store)


# -- reads
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failures", [1, 2, 3, 4])
def test_a_read_error_that_passes_is_not_seen(bench: Bench, failures: int) -> None:
    bench.make_cold(1)
    bench.tier.failing_reads = failures
    bench.holds(0)
    assert bench.clock.waits == list(RETRY_PAUSES_SECONDS[: failures - 1])
    assert bench.store.statistics.fetch_retries == failures and bench.store.statistics.fetch_errors == 0
    assert bench.reasons() == []
    check(bench.store)


def test_a_read_error_that_stays_is_an_error_told_and_over_when_the_read_succeeds(bench: Bench) -> None:
    bench.make_cold(2)
    bench.tier.bad_slots = {bench.slot(0)}
    for _ in range(2):
        with pytest.raises(PageDamaged):
            bench.get(0)
    assert bench.store.statistics.fetch_errors == 2
    assert bench.reasons() == [
        "1 frame below could not be read: reads of their pages fail (the last: EIO: injected read error: a bad spot)"
    ]
    bench.holds(1)
    bench.tier.bad_slots.clear()
    bench.holds(0)
    assert bench.reasons() == []
    check(bench.store)


@pytest.mark.parametrize("bad", [{2}, {0, 1}, {0, 1, 3}])
def test_a_bad_frame_in_a_run_does_not_spoil_its_neighbours(bench: Bench, bad: set[int]) -> None:
    """Frames are read in runs: those beside the bad ones are not given up with them, and nobody
    waits longer for several than for one."""
    bench.make_cold(5)
    bench.tier.bad_slots = {bench.slot(index) for index in bad}
    with pytest.raises(PageDamaged):
        bench.get(0, 5)
    statistics = bench.store.statistics
    assert statistics.fetch_errors == len(bad) and statistics.fetched_frames == 5 - len(bad)
    assert bench.clock.waits == list(RETRY_PAUSES_SECONDS)
    bench.holds(*sorted(set(range(5)) - bad))
    check(bench.store)


def test_on_a_dead_disk_reads_fail_without_pauses(bench: Bench) -> None:
    bench.make_cold(3)
    bench.tier.failing_reads = ALWAYS
    for _ in range(10):
        with pytest.raises(PageDamaged):
            bench.get(0)
    assert sum(bench.clock.waits) <= PATIENCE_SECONDS + sum(RETRY_PAUSES_SECONDS)
    bench.holds(*range(20 - BUDGET, 20))
    bench.tier.failing_reads = 0
    bench.holds(0)
    assert bench.reasons() == []
    bench.tier.failing_reads = 4
    bench.holds(1)  # patient again


def test_a_disk_whose_errors_take_half_a_minute_is_asked_once_a_request(bench: Bench) -> None:
    bench.make_cold(4)
    bench.tier.bad_slots = set(range(1, 17))
    bench.tier.transfer_seconds = 30.0
    tries = bench.tier.tries
    with pytest.raises(PageDamaged):
        bench.get(0, 4)
    assert bench.tier.tries == tries + 1 and bench.clock.waits == []
    assert bench.store.statistics.slow_reads == 1
    assert bench.store.statistics.fetch_errors == 4
    check(bench.store)


def test_a_disk_that_is_slow_and_sound_may_fail_once_at_the_end(bench: Bench) -> None:
    """Patience is for what fails: what the reads before it took does not count."""
    bench.make_cold_apart(6)
    bench.tier.transfer_seconds = 0.5
    reads = itertools.count(1)

    def fail_the_sixth() -> None:
        bench.tier.failing_reads = next(reads) == 6

    bench.tier.before_read = fail_the_sixth
    assert bench.get(0, 6) == b"".join(bench.model[index] for index in range(6))
    assert bench.store.statistics.fetch_retries == 1 and bench.store.statistics.fetch_errors == 0
    check(bench.store)


@pytest.mark.parametrize("fault", ["unreadable", "flipped"])
def test_what_is_scattered_on_a_dying_disk_holds_a_request_up_once(bench: Bench, fault: str) -> None:
    """Six reads of half a minute each, all in vain: after the first one the answer is known.
    Nothing is said of the frames that were not asked for."""
    bench.make_cold_apart(6)
    slots = [bench.slot(index) for index in range(6)]
    if fault == "unreadable":
        bench.tier.bad_slots = set(slots)
    else:
        for slot in slots:
            bench.tier.flip_bit(slot)
    bench.tier.transfer_seconds = 30.0
    tries = bench.tier.tries
    with pytest.raises(PageDamaged):
        bench.get(0, 6)
    assert bench.tier.tries == tries + 1 and bench.clock.waits == []
    assert bench.store.statistics.fetch_errors + bench.store.statistics.checksum_errors == 1
    assert bench.reasons()[0].startswith("1 frame below ")
    check(bench.store)


def test_what_was_not_read_for_lack_of_patience_is_read_if_the_bad_page_is_gone(bench: Bench) -> None:
    """The page that failed was overwritten meanwhile: the others are no error for its sake."""
    bench.make_cold_apart(3)
    bench.tier.bad_slots = {min(bench.slot(index) for index in range(3))}
    bench.tier.transfer_seconds = 30.0
    bad = next(index for index in range(3) if bench.slot(index) in bench.tier.bad_slots)
    new = bytes(PAGE_BYTES)
    bench.tier.before_read = once(lambda: put(bench.store, bench.thing, bad, new))
    bench.model[bad] = new
    assert bench.get(0, 3) == b"".join(bench.model[index] for index in range(3))
    assert bench.store.statistics.fetch_errors == 0 and bench.store.statistics.fetched_frames == 2
    check(bench.store)


def test_a_bit_that_flips_on_the_way_is_read_again(bench: Bench) -> None:
    bench.make_cold(1)
    slot = bench.slot(0)
    bench.tier.flip_bit(slot)

    def be_right_at_the_second_read() -> None:
        if bench.store.statistics.fetch_retries:
            bench.tier.flip_bit(slot)

    bench.tier.before_read = be_right_at_the_second_read
    bench.holds(0)
    assert bench.store.statistics.fetch_retries == 1 and bench.store.statistics.checksum_errors == 0
    assert bench.reasons() == []


@pytest.mark.parametrize("ending", ["trim", "overwrite", "mend"])
def test_a_broken_seal_is_told_until_its_pages_are_gone_or_right_again(bench: Bench, ending: str) -> None:
    bench.make_cold(2)
    bench.tier.flip_bit(bench.slot(0), 99)
    for _ in range(3):
        with pytest.raises(PageDamaged):
            bench.get(0)
    assert bench.reasons() == ["1 frame below failed their seal: reads of their pages fail"]
    bench.holds(1)
    match ending:
        case "trim":
            bench.store.flush(bench.thing, 0, 1)
        case "overwrite":
            bench.put(0)
        case _:
            bench.tier.flip_bit(bench.slot(0), 99)
            bench.holds(0)
    assert bench.reasons() == []
    assert bench.store.statistics.checksum_errors == 3
    check(bench.store)


def test_pages_of_a_put_that_still_waits_are_not_called_lost(bench: Bench) -> None:
    bench.put(0, BUDGET)
    said: list[list[str]] = []
    bench.tier.before_write = lambda: said.append(bench.reasons())
    put(bench.store, bench.thing, 4, *(raw_page(bench.rng) for _ in range(3)))
    assert said and not any(said)
    assert bench.store.waiting.page_count == 0


def test_a_trial_that_fails_leaves_no_slot_behind() -> None:
    """A server that goes on over an image goes on after it, with the same tier."""
    tier = MemoryTier(1024)
    count = itertools.count()

    def spoil_everything() -> None:
        for slot in tier.medium:
            tier.flip_bit(slot, next(count) % PAGE_BYTES)

    tier.before_read = spoil_everything
    with pytest.raises(PageDamaged):
        warm_up(parse_codec("lz4"), "zbud", None, tier, CRC)
    assert tier.used_slots == 0


# -- a real file
# --------------------------------------------------------------------------------------------------


def store_over_file(path: Path) -> tuple[Store, TmemObject]:
    tier = BackingFile.open(path, needed_bytes=0, new_bytes=32 * PAGE_BYTES, frame_bytes=PAGE_BYTES, force=False)
    store = Store(
        budget_bytes=BUDGET * PAGE_BYTES, codec=parse_codec("lz4"), allocator="zbud", tiers=[tier], clock=FakeClock()
    )
    return store, new_object(store, 20)


def test_a_backing_file_that_is_truncated_costs_the_frames_that_were_there(rng: random.Random, tmp_path: Path) -> None:
    path = tmp_path / "backing"
    store, thing = store_over_file(path)
    pages = [raw_page(rng) for _ in range(16)]
    for index, page in enumerate(pages):
        put(store, thing, index, page)
        store.reclaimer.clean_some()
    os.truncate(path, 8 * PAGE_BYTES)
    gone = 0
    for index, page in enumerate(pages):
        entry = decode_zpage(thing.table.entries[index])
        only_below = not store.frames.home[entry.frame]
        if only_below and store.frames.below[entry.frame] >= 8:
            gone += 1
            with pytest.raises(PageDamaged, match=r"short read: 0 bytes of slot [0-9]+; it is shorter than it was"):
                get(store, thing, index)
        else:
            assert get(store, thing, index) == page
    assert gone == store.statistics.fetch_errors > 0
    assert f"{gone} frames below could not be read" in gather_status(store, thing, {})["reasons"][0]
    check(store)
    pages = [raw_page(rng) for _ in range(16)]
    for index, page in enumerate(pages):  # the file grows again
        put(store, thing, index, page)
        store.reclaimer.clean_some()
    assert [get(store, thing, index) for index in range(16)] == pages
    assert gather_status(store, thing, {})["state"] == "ok"
    check(store)
    store.close()


@pytest.mark.parametrize(
    ("room_bytes", "why"),
    [
        (2 * PAGE_BYTES, "ENOSPC: No space left on device"),
        (0, "ENOSPC"),
        (512, "EIO: short write: 512 bytes"),
    ],
)
def test_after_a_short_write_the_rest_is_asked_for_and_says_why(
    rng: random.Random, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int, why: str
) -> None:
    """A file system that fills up in the middle of a write takes a part of it first."""
    store, thing = store_over_file(tmp_path / "backing")
    tier = store.below.places[0].tier
    assert isinstance(tier, BackingFile)
    room = [room_bytes]

    def write_what_fits(_descriptor: int, frames: list[memoryview], offset: int) -> int:
        data = b"".join(frames)[: room[0]]
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= len(data)
        return os.pwrite(aside, data, offset)

    pages = [raw_page(rng) for _ in range(BUDGET)]
    aside = os.open(tmp_path / "backing", os.O_RDWR)
    put(store, thing, 0, *pages)
    with monkeypatch.context() as patch:
        patch.setattr(tier, "_pwritev", write_what_fits)
        assert store.reclaimer.clean_some() is False
    reason = gather_status(store, thing, {})["reasons"][0]
    assert why in reason and "4 frames kept" in reason
    store.clock.sleep(LAST_REST_SECONDS)
    assert store.reclaimer.clean_some() is True
    put(store, thing, 8, *(raw_page(rng) for _ in range(BUDGET)))
    assert [get(store, thing, index) for index in range(BUDGET)] == pages
    check(store)
    os.close(aside)
    store.close()


# -- all of them
# --------------------------------------------------------------------------------------------------

PAGES = 60
OPERATIONS = 20_000
#: Operations until the disk changes its ways.
REGIME_OPERATIONS = 60


@pytest.mark.parametrize("below_frames", [PAGES, 24], ids=["fits", "overcommitted"])
def test_a_long_life_on_a_disk_that_has_every_fault(rng: random.Random, below_frames: int) -> None:
    """Every page is what was last written, or an error that is counted and has a reason: its put
    failed, or what was below is spoiled or cannot be read now. When the faults end, all that is not
    lost is there, and writeback goes on.
    """
    clock = FakeClock()
    tier = FaultyTier(below_frames, clock, rng)
    store = Store(budget_bytes=8 * PAGE_BYTES, codec=parse_codec("lz4"), allocator="zbud", tiers=[tier], clock=clock)
    thing = new_object(store, PAGES)
    model: dict[int, bytes | None] = {}  # None: its put failed

    def look(index: int, faults: bool) -> None:
        """One page: is it what it should be?"""
        damaged = store.statistics.checksum_errors + store.statistics.fetch_errors
        entry = thing.table.entries[index]
        try:
            page = get(store, thing, index)
        except PageLost:
            assert model[index] is None
        except PageDamaged:
            slot = store.frames.below[decode_zpage(entry).frame]
            assert 0 < entry < SAME_FILLED and slot
            assert tier.is_spoiled(slot) or (faults and tier.may_fail(slot)), f"page {index} is an error for no reason"
            assert store.statistics.checksum_errors + store.statistics.fetch_errors == damaged + 1
            assert gather_status(store, thing, {})["state"] == "degraded"
        else:
            assert page == model.get(index, bytes(PAGE_BYTES)), f"page {index} is wrong"

    def look_at_a_run(first: int, count: int) -> None:
        wanted = [model.get(index, bytes(PAGE_BYTES)) for index in range(first, first + count)]
        try:
            assert get(store, thing, first, count) == b"".join(page or b"(lost)" for page in wanted)
        except PageLost:
            assert None in wanted
        except PageDamaged:
            pass  # which page, `look` says

    def write(first: int, pages: list[bytes]) -> None:
        try:
            put(store, thing, first, *pages)
        except StoreFull:
            for index, page in enumerate(pages, first):
                model[index] = None if thing.table.entries[index] >= LOST else page
        else:
            model.update(enumerate(pages, first))

    for number in range(OPERATIONS):
        if number % REGIME_OPERATIONS == 0:
            tier.choose_regime()
            check(store)
            gather_status(store, thing, {})
        first = rng.randrange(PAGES)
        count = min(rng.choice((1, 1, 1, 2, 8)), PAGES - first)
        match rng.randrange(10):
            case 0 | 1 | 2:
                write(first, [any_page(rng) for _ in range(count)])
            case 3 | 4 | 5:
                look(first, True)
            case 6:
                look_at_a_run(first, count)
            case 7:
                store.flush(thing, first, count)
                for index in range(first, first + count):
                    model.pop(index, None)
            case 8:
                store.reclaimer.clean_some()
            case 9:
                clock.seconds += rng.choice((0.01, 0.3, 5.0))

    assert len(tier.faults) == 10, f"not every fault was met: {tier.faults}"
    tier.heal()
    clock.seconds += SLOW_MEMORY_SECONDS + LAST_REST_SECONDS
    check(store)
    for index in range(PAGES):
        look(index, False)
    store.flush(thing, 0, PAGES)
    model.clear()
    assert gather_status(store, thing, {})["reasons"] == [] or health_of(store).writing.failures
    written = store.statistics.reclaim_sync
    for index in range(24):
        write(index, [raw_page(rng)])
    assert store.statistics.reclaim_sync > written, "writeback did not go on"
    for index in range(PAGES):
        look(index, False)
    assert None not in model.values()
    assert gather_status(store, thing, {})["reasons"] == []
    check(store)

"""A tier that fails, and pages that change while their frame is in flight. Each race is made to happen, not waited
for."""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.stores import get, new_object, put, small_store
from tests.support.tiers import MemoryTier
from zcache.backoff import FIRST_REST_SECONDS, LAST_REST_SECONDS
from zcache.check import check
from zcache.entry import decode_zpage
from zcache.errors import PageDamaged, PageLost, StoreFull
from zcache.pageframes import State
from zcache.store import Store
from zcache.tmem import TmemObject


def store_with_tier(budget_frames: int = 4, below_frames: int = 8) -> tuple[Store, MemoryTier, TmemObject]:
    store = small_store(budget_frames, below_frames)
    assert isinstance(store.tier, MemoryTier)
    return store, store.tier, new_object(store, 16)


def once(action: Callable[[], None]) -> Callable[[], None]:
    """The action at the first call, nothing after that."""
    pending = [action]

    def act() -> None:
        if pending:
            pending.pop()()

    return act


def test_a_failed_writeback_keeps_the_frames_oldest_first(rng: random.Random) -> None:
    store, tier, thing = store_with_tier()
    pages = [raw_page(rng) for _ in range(4)]
    for index, page in enumerate(pages):
        put(store, thing, index, page)
    order = list(store.frames.slots_waiting(0))
    tier.failing_writes = 1
    assert store.reclaimer.clean_some() is False
    assert list(store.frames.slots_waiting(0)) == order and tier.used_slots == 0
    assert store.statistics.writeback_errors == 1
    assert get(store, thing, 0, 4) == b"".join(pages)
    check(store)
    assert store.reclaimer.clean_some() is False and tier.tries == 1, "it did not rest"
    tier.clock.sleep(FIRST_REST_SECONDS)
    assert store.reclaimer.clean_some() is True
    assert store.frames.queue_length[2] == 4
    check(store)


def test_a_put_that_needs_a_failing_tier_fails_and_costs_no_other_page(rng: random.Random) -> None:
    store, tier, thing = store_with_tier()
    pages = [raw_page(rng) for _ in range(4)]
    put(store, thing, 0, *pages)
    tier.failing_writes = 100
    with pytest.raises(StoreFull):
        put(store, thing, 4, raw_page(rng))
    tier.failing_writes = 0
    tier.clock.sleep(LAST_REST_SECONDS)
    assert get(store, thing, 0, 4) == b"".join(pages)
    again = raw_page(rng)
    put(store, thing, 4, again)
    assert get(store, thing, 4) == again and store.statistics.lost_pages == 0
    check(store)


def test_overwrite_while_the_frame_is_in_flight(rng: random.Random) -> None:
    store, tier, thing = store_with_tier()
    old, new = page_with_zpage_of(rng, 1000), page_with_zpage_of(rng, 1000)
    put(store, thing, 0, old, page_with_zpage_of(rng, 1000))
    tier.before_write = once(lambda: put(store, thing, 0, new))
    store.reclaimer.clean_some()
    assert get(store, thing, 0) == new
    check(store)


def test_trim_of_all_of_a_frame_in_flight_frees_it_when_it_lands(rng: random.Random) -> None:
    store, tier, thing = store_with_tier()
    put(store, thing, 0, page_with_zpage_of(rng, 1000), page_with_zpage_of(rng, 1000))

    def trim() -> None:
        store.flush(thing, 0, 2)
        assert store.frames.in_flight == 1 and store.frames.resident == 1  # not reused until the flight ends

    tier.before_write = once(trim)
    store.reclaimer.clean_some()
    assert store.frames.resident == 0 and tier.used_slots == 0
    check(store)


def test_trim_in_a_flight_that_fails(rng: random.Random) -> None:
    store, tier, thing = store_with_tier()
    kept = page_with_zpage_of(rng, 1000)
    put(store, thing, 0, kept, page_with_zpage_of(rng, 1000), raw_page(rng))

    def trim() -> None:
        store.flush(thing, 1, 2)
        tier.failing_writes = 1

    tier.before_write = once(trim)
    assert store.reclaimer.clean_some() is False
    assert get(store, thing, 0) == kept and store.frames.resident == 1
    check(store)
    store.flush(thing, 0, 1)
    assert store.frames.resident == 0
    check(store)


def test_get_while_the_frame_is_in_flight(rng: random.Random) -> None:
    store, tier, thing = store_with_tier()
    page = page_with_zpage_of(rng, 1000)
    put(store, thing, 0, page)
    seen: list[bytes] = []
    tier.before_write = once(lambda: seen.append(get(store, thing, 0)))
    store.reclaimer.clean_some()
    assert seen == [page]
    check(store)


def make_cold(store: Store, thing: TmemObject, rng: random.Random) -> bytes:
    """Page 0 is put and pushed below; returns it."""
    page = page_with_zpage_of(rng, 1000)
    put(store, thing, 0, page)
    store.reclaimer.clean_some()
    put(store, thing, 8, *(raw_page(rng) for _ in range(4)))
    assert store.frames.state[decode_zpage(thing.table.entries[0]).frame] == State.COLD
    return page


@pytest.mark.parametrize("byte", [0, 1234, 4095])
def test_a_flipped_bit_is_an_error_for_its_own_pages_only(rng: random.Random, byte: int) -> None:
    store, tier, thing = store_with_tier()
    make_cold(store, thing, rng)
    slot = store.frames.below[decode_zpage(thing.table.entries[0]).frame]
    tier.flip_bit(slot, byte)
    with pytest.raises(PageDamaged):
        get(store, thing, 0)
    assert store.statistics.checksum_errors == 1
    assert len(get(store, thing, 8, 4)) == 4 * 4096
    check(store)
    new = page_with_zpage_of(rng, 100)
    put(store, thing, 0, new)
    assert get(store, thing, 0) == new
    check(store)


def test_another_frames_bytes_do_not_pass_the_seal(rng: random.Random) -> None:
    store, tier, thing = store_with_tier(budget_frames=2, below_frames=8)
    for index in range(4):
        put(store, thing, index, raw_page(rng))
        store.reclaimer.clean_some()
    one, other = (store.frames.below[decode_zpage(thing.table.entries[index]).frame] for index in (0, 1))
    tier.medium[one], tier.medium[other] = tier.medium[other], tier.medium[one]
    for index in (0, 1):
        with pytest.raises(PageDamaged):
            get(store, thing, index)
    check(store)


def test_a_read_error_is_an_error_once_and_loses_nothing(rng: random.Random) -> None:
    store, tier, thing = store_with_tier()
    page = make_cold(store, thing, rng)
    tier.failing_reads = 5  # one read, tried again four times
    with pytest.raises(PageDamaged):
        get(store, thing, 0)
    assert store.statistics.fetch_errors == 1
    assert get(store, thing, 0) == page
    check(store)


def test_a_page_overwritten_while_it_is_fetched_reads_as_the_new_one(rng: random.Random) -> None:
    store, tier, thing = store_with_tier()
    make_cold(store, thing, rng)
    new = page_with_zpage_of(rng, 500)
    tier.before_read = once(lambda: put(store, thing, 0, new))
    assert get(store, thing, 0) == new
    check(store)


def test_a_page_trimmed_while_it_is_fetched_reads_as_zeros(rng: random.Random) -> None:
    store, tier, thing = store_with_tier()
    make_cold(store, thing, rng)
    tier.before_read = once(lambda: store.flush(thing, 0, 1))
    assert get(store, thing, 0) == bytes(4096)
    check(store)


def test_a_slot_reused_while_it_is_read_is_not_believed(rng: random.Random) -> None:
    """The page dies, its slot below is given to another frame and overwritten, and the page is put again: all during
    one read."""
    store, tier, thing = store_with_tier(budget_frames=4, below_frames=2)
    make_cold(store, thing, rng)
    new = page_with_zpage_of(rng, 1000)

    def replace() -> None:
        store.flush(thing, 0, 16)
        for index in range(1, 4):
            put(store, thing, index, raw_page(rng))
        store.reclaimer.clean_some()
        put(store, thing, 0, new)

    tier.before_read = once(replace)
    assert get(store, thing, 0) == new
    assert store.statistics.checksum_errors == 0
    check(store)


def test_a_frame_reborn_under_its_old_id_while_it_is_read_is_not_believed(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is overwritten, and its new frame gets the old one's id and goes below, too: its entry is what it was,
    and only the frame's birth tells that the bytes read are the old page's."""
    store, tier, thing = store_with_tier(budget_frames=2, below_frames=16)
    new = raw_page(rng)
    put(store, thing, 0, raw_page(rng))
    store.reclaimer.clean_some()
    put(store, thing, 8, raw_page(rng), raw_page(rng))
    entry = thing.table.entries[0]

    def overwrite_and_push_below() -> None:
        put(store, thing, 0, new)
        store.reclaimer.clean_some()
        put(store, thing, 10, raw_page(rng), raw_page(rng))

    def old_bytes_then(*arguments: Any) -> None:
        read(*arguments)
        meanwhile()

    read, meanwhile = tier.read, once(overwrite_and_push_below)
    monkeypatch.setattr(tier, "read", old_bytes_then)
    assert get(store, thing, 0) == new
    assert thing.table.entries[0] == entry, "the case was not made"
    check(store)


def test_a_rejected_overwrite_then_reclaim_of_the_old_copy(rng: random.Random) -> None:
    """The put over page 0 fails; whatever becomes of the frame with its old zpage, the old data never comes back."""
    store, _, thing = store_with_tier(budget_frames=2, below_frames=2)
    put(store, thing, 0, page_with_zpage_of(rng, 500), page_with_zpage_of(rng, 500))
    for index in range(2, 5):
        put(store, thing, index, raw_page(rng))
    with pytest.raises(StoreFull):
        put(store, thing, 0, raw_page(rng))
    store.reclaimer.clean_some()
    with pytest.raises(Exception, match="last write failed"):
        get(store, thing, 0)
    store.flush(thing, 0, 1)
    assert get(store, thing, 0) == bytes(4096)
    check(store)


def test_a_partial_write_that_meets_a_whole_one_starts_again(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, thing = store_with_tier()
    put(store, thing, 0, page_with_zpage_of(rng, 1000))
    other = page_with_zpage_of(rng, 2000)
    read, meanwhile = store.get, once(lambda: put(store, thing, 0, other))

    def read_then_lose_the_race(*arguments: Any) -> int:
        misses = read(*arguments)
        meanwhile()
        return misses

    with monkeypatch.context() as patch:
        patch.setattr(store, "get", read_then_lose_the_race)
        store.modify(thing, 0, 100, memoryview(b"mine"))
    assert get(store, thing, 0) == other[:100] + b"mine" + other[104:]
    check(store)


def test_no_memory_in_the_middle_of_a_flight_gives_the_frames_back(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, thing = store_with_tier()
    page = raw_page(rng)
    put(store, thing, 0, page)
    monkeypatch.setattr("zcache.reclaim.seal_of", raise_memory_error)
    assert store.reclaimer.clean_some() is False
    assert store.frames.in_flight == 0 and get(store, thing, 0) == page
    check(store)


def test_no_memory_in_the_middle_of_a_fetch_gives_the_slots_back(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, thing = store_with_tier()
    page = make_cold(store, thing, rng)
    with monkeypatch.context() as patch:
        patch.setattr("zcache.fetch.seal_of", raise_memory_error)
        for _ in range(100):
            with pytest.raises(MemoryError):
                get(store, thing, 0)
    assert get(store, thing, 0) == page
    check(store)


def test_no_memory_in_the_middle_of_a_put_loses_its_pages_and_no_others(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, thing = store_with_tier(budget_frames=8)
    kept = page_with_zpage_of(rng, 1000)
    put(store, thing, 0, kept)

    class NoRoomForThree(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if index == 2:
                raise MemoryError
            return super().__getitem__(index)

    place = store.allocator.place
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(store.allocator, "place", lambda kind, bodies, *rest: place(kind, NoRoomForThree(bodies), *rest))
        put(store, thing, 1, *(page_with_zpage_of(rng, 1000) for _ in range(5)))
    assert get(store, thing, 0) == kept and store.statistics.lost_pages == 5
    check(store)
    again = [page_with_zpage_of(rng, 1000) for _ in range(5)]
    put(store, thing, 1, *again)
    assert get(store, thing, 1, 5) == b"".join(again)
    check(store)


def test_a_get_of_a_page_whose_put_waits_for_room_waits_with_it(rng: random.Random) -> None:
    """Never an error, never the old page, never zeros: the page is only lost for the moment."""
    store, tier, thing = store_with_tier(budget_frames=2, below_frames=8)
    put(store, thing, 0, raw_page(rng), raw_page(rng))
    new = raw_page(rng)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(get(store, thing, 5)))

    def read_meanwhile() -> None:
        reader.start()
        while not store.reclaimer.landed._waiters:  # type: ignore[attr-defined]
            assert reader.is_alive(), "the get did not wait"
            time.sleep(0.001)

    tier.before_write = once(read_meanwhile)
    put(store, thing, 5, new)
    reader.join(timeout=10)
    assert got == [new]
    check(store)


def test_a_trim_of_the_whole_block_while_a_put_waits_for_room_hides_nothing(rng: random.Random) -> None:
    """The trim forgets that the block was ever written; the put that finishes after it must say so again."""
    store, tier, _ = store_with_tier(budget_frames=2, below_frames=8)
    thing = new_object(store, 512)
    put(store, thing, 0, raw_page(rng), raw_page(rng))
    page = raw_page(rng)
    tier.before_write = once(lambda: store.flush(thing, 0, 512))
    put(store, thing, 5, page)
    assert get(store, thing, 5) == page
    assert list(store.extents(thing, 0, 512)) == [(0, 5, True), (5, 1, False), (6, 506, True)]
    check(store)
    store.flush(thing, 0, 512)
    assert get(store, thing, 5) == bytes(4096) and store.frames.resident == 0


@pytest.mark.parametrize("trimmed", [True, False])
def test_what_a_get_saw_before_it_waited_for_a_fetch_slot_is_not_believed(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch, trimmed: bool
) -> None:
    """Of two cold pages the first comes back into RAM, is seen there, and dies while the get waits for a slot to read
    the second into."""
    store, tier, thing = store_with_tier(budget_frames=4, below_frames=16)
    pages = [raw_page(rng), raw_page(rng)]
    for index, page in enumerate(pages):
        put(store, thing, index, page)
        store.reclaimer.clean_some()
    put(store, thing, 8, *(raw_page(rng) for _ in range(4)))
    store.flush(thing, 8, 4)
    new = page_with_zpage_of(rng, 300)
    frames, fetcher = store.frames, store._fetcher
    assert fetcher
    slots = [frames.take_fetch_slot() for _ in range(frames.fetch_slot_count)]
    get_thread: list[bytes] = []
    look_up = fetcher._look_up

    def bring_the_first_back_then_look(*arguments: Any) -> Any:
        monkeypatch.setattr(fetcher, "_look_up", look_up)
        frame = decode_zpage(thing.table.entries[0]).frame
        spare = frames.adopt(frame, fill(frame))
        slots.append(spare)
        return look_up(*arguments)

    def fill(frame: int) -> int:
        slot = slots.pop()
        tier.read(frames.below[frame], [frames.ram_view[slot * 4096 : (slot + 1) * 4096]])
        return slot

    monkeypatch.setattr(fetcher, "_look_up", bring_the_first_back_then_look)
    reader = threading.Thread(target=lambda: get_thread.append(get(store, thing, 0, 2)))
    reader.start()
    while not fetcher._slot_returned._waiters:  # type: ignore[attr-defined]
        assert reader.is_alive(), "the get did not wait"
        time.sleep(0.001)
    if trimmed:
        store.flush(thing, 0, 1)
    else:
        put(store, thing, 0, new)
    with store.lock:
        for slot in slots:
            frames.give_fetch_slot(slot)
        fetcher._slot_returned.notify_all()
    reader.join(timeout=10)
    assert get_thread == [(bytes(4096) if trimmed else new) + pages[1]]
    assert store.statistics.decode_errors == 0
    check(store)


def test_a_get_that_waits_for_a_put_is_told_when_it_fails(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, thing = store_with_tier(budget_frames=2, below_frames=2)
    put(store, thing, 0, raw_page(rng), raw_page(rng))
    failures: list[BaseException] = []

    def read() -> None:
        with pytest.raises(PageLost) as caught:
            get(store, thing, 5)
        failures.append(caught.value)

    reader = threading.Thread(target=read, daemon=True)

    def no_room(_queue: int) -> bool:
        reader.start()
        while not store.reclaimer.landed._waiters:  # type: ignore[attr-defined]
            assert reader.is_alive(), "the get did not wait"
            time.sleep(0.001)
        return False

    monkeypatch.setattr(store.reclaimer, "make_room", no_room)
    with pytest.raises(StoreFull):
        put(store, thing, 5, raw_page(rng))
    reader.join(timeout=10)
    assert len(failures) == 1
    check(store)


def raise_memory_error(*_arguments: object) -> int:
    raise MemoryError

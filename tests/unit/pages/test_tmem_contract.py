"""tmem's coherency contract, for both kinds of pool, in RAM and below."""

import random

import pytest

from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.stores import drop_clean_frames, get, is_miss, new_object, put, small_store
from zcache.control.check import check
from zcache.errors import PageLost, StoreFull
from zcache.pageframes.queues import Queue
from zcache.pages.entry import decode_zpage
from zcache.pages.tmem import Kind
from zcache.store.ghost import Ghost

KINDS = [Kind.PERSISTENT, Kind.EPHEMERAL]


@pytest.mark.parametrize("kind", KINDS)
def test_put_get(kind: Kind, rng: random.Random) -> None:
    store = small_store()
    thing = new_object(store, 4, kind)
    page = page_with_zpage_of(rng, 1000)
    put(store, thing, 1, page)
    assert get(store, thing, 1) == page
    assert is_miss(store, thing, 0)
    check(store)


@pytest.mark.parametrize("kind", KINDS)
def test_put_put_get_never_returns_the_first_data(kind: Kind, rng: random.Random) -> None:
    store = small_store()
    thing = new_object(store, 1, kind)
    first, second = page_with_zpage_of(rng, 1000), page_with_zpage_of(rng, 1000)
    put(store, thing, 0, first)
    put(store, thing, 0, second)
    assert get(store, thing, 0) == second
    check(store)


def test_a_failed_duplicate_put_invalidates_a_persistent_page(rng: random.Random) -> None:
    store = small_store(budget_frames=2)
    thing = new_object(store, 4)
    small = page_with_zpage_of(rng, 100)
    put(store, thing, 0, small, small)  # buddies in one frame: dropping one frees no frame
    put(store, thing, 2, raw_page(rng))
    with pytest.raises(StoreFull):
        put(store, thing, 0, raw_page(rng))
    with pytest.raises(PageLost):
        get(store, thing, 0)
    assert get(store, thing, 1) == small
    assert store.statistics.failed_puts == store.statistics.lost_pages == store.statistics.reject_no_frame == 1
    check(store)


def test_a_failed_put_of_several_runs_leaves_none_of_its_pages_as_it_was(rng: random.Random) -> None:
    """It fails in its first run of 64 pages: the pages of the second are stored, or lost, but not
    what they were."""
    store = small_store(budget_frames=40)
    thing = new_object(store, 140)
    old = [page_with_zpage_of(rng, 1500) for _ in range(70)]
    put(store, thing, 0, *old)
    new = [raw_page(rng) for _ in range(66)] + [bytes(4096)] * 4
    with pytest.raises(StoreFull):
        put(store, thing, 0, *new)
    lost = 0
    for index in range(70):
        try:
            assert get(store, thing, index) == new[index]
        except PageLost:
            lost += 1
    assert 0 < lost == store.statistics.lost_pages < 66
    assert get(store, thing, 66, 4) == bytes(4 * 4096)  # needs no frame
    check(store)


def test_a_failed_duplicate_put_invalidates_an_ephemeral_page(rng: random.Random) -> None:
    store = small_store()
    thing = new_object(store, 1, Kind.EPHEMERAL)
    put(store, thing, 0, page_with_zpage_of(rng, 100))
    put(store, thing, 0, raw_page(rng))  # compresses poorly: not admitted
    assert is_miss(store, thing, 0)
    assert store.statistics.reject_compress_poor == store.statistics.ignored_puts == 1
    check(store)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_failed_get_gets_fail_until_the_next_put(kind: Kind, rng: random.Random) -> None:
    store = small_store()
    thing = new_object(store, 1, kind)
    assert is_miss(store, thing, 0) and is_miss(store, thing, 0)
    put(store, thing, 0, page_with_zpage_of(rng, 100))
    assert not is_miss(store, thing, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_flush_page_object_and_pool(kind: Kind, rng: random.Random) -> None:
    store = small_store(16)
    pool = store.tmem.new_pool(kind)
    one, other = store.tmem.new_object(pool, 1, 8), store.tmem.new_object(pool, 2, 8)
    pages = [page_with_zpage_of(rng, 1000) for _ in range(8)]
    put(store, one, 0, *pages)
    put(store, other, 0, *pages)
    store.flush(one, 3, 1)
    assert is_miss(store, one, 3) and get(store, one, 4) == pages[4]
    store.flush_object(one)
    assert get(store, other, 3) == pages[3]
    again = store.tmem.new_object(pool, 1, 8)
    assert all(is_miss(store, again, index) for index in range(8))
    check(store)
    store.flush_pool(pool)
    check(store)
    assert store.statistics.stored_pages == store.frames.resident == 0


def test_kinds_never_share_a_frame(rng: random.Random) -> None:
    store = small_store(8)
    persistent, ephemeral = new_object(store, 4), new_object(store, 4, Kind.EPHEMERAL)
    for index in range(3):
        put(store, persistent, index, page_with_zpage_of(rng, 500))
        put(store, ephemeral, index, page_with_zpage_of(rng, 500))
    assert store.frames.queue_length == [2, 2, 0]
    check(store)


def test_a_persistent_get_never_fails_however_often_its_frame_moves(rng: random.Random) -> None:
    store = small_store(budget_frames=4, below_frames=32)
    thing = new_object(store, 32)
    pages = [page_with_zpage_of(rng, 3000) for _ in range(32)]
    for index, page in enumerate(pages):
        put(store, thing, index, page)
    for _ in range(300):
        index = rng.randrange(32)
        assert get(store, thing, index) == pages[index]
        store.reclaimer.clean_some()
    check(store)


def test_ouroboros_a_persistent_put_eats_the_oldest_ephemeral_frame(rng: random.Random) -> None:
    store = small_store(budget_frames=4)
    clean, swap = new_object(store, 8, Kind.EPHEMERAL), new_object(store, 8)
    put(store, clean, 0, *(page_with_zpage_of(rng, 1500) for _ in range(8)))  # two to a frame
    put(store, swap, 0, raw_page(rng))
    assert [is_miss(store, clean, index) for index in range(8)] == [True, True] + 6 * [False]
    assert store.statistics.evicted_ephemeral_frames == 1 and store.statistics.evicted_ephemeral_pages == 2
    check(store)


def test_an_ephemeral_put_eats_its_own_tail_and_nothing_persistent(rng: random.Random) -> None:
    store = small_store(budget_frames=4, below_frames=8)
    clean, swap = new_object(store, 8, Kind.EPHEMERAL), new_object(store, 8)
    held = [raw_page(rng) for _ in range(3)]
    put(store, swap, 0, *held)
    for index in range(8):
        put(store, clean, index, page_with_zpage_of(rng, 2400))
    assert [index for index in range(8) if not is_miss(store, clean, index)] == [7]
    assert get(store, swap, 0, 3) == b"".join(held) and store.statistics.reclaim_sync == 0
    check(store)


def test_an_ephemeral_put_is_ignored_when_persistent_pages_hold_all_frames(rng: random.Random) -> None:
    store = small_store(budget_frames=4)
    clean, swap = new_object(store, 1, Kind.EPHEMERAL), new_object(store, 4)
    put(store, swap, 0, *(raw_page(rng) for _ in range(4)))
    put(store, clean, 0, page_with_zpage_of(rng, 100))
    assert is_miss(store, clean, 0) and store.statistics.ignored_puts == 1
    check(store)


def test_with_a_poor_mean_a_worse_ephemeral_page_is_not_admitted(rng: random.Random) -> None:
    store = small_store(budget_frames=16)
    thing = new_object(store, 8, Kind.EPHEMERAL)
    put(store, thing, 0, *(page_with_zpage_of(rng, 3000) for _ in range(4)))
    put(store, thing, 4, page_with_zpage_of(rng, 3800))
    put(store, thing, 5, page_with_zpage_of(rng, 1000))
    assert is_miss(store, thing, 4) and not is_miss(store, thing, 5)
    assert store.statistics.reject_mean_poor == 1
    check(store)


def test_a_page_enters_an_ephemeral_pool_when_it_was_missed_before(rng: random.Random) -> None:
    store = small_store(16, admit="reused")
    thing = new_object(store, 8, Kind.EPHEMERAL)
    pages = [page_with_zpage_of(rng, 1000) for _ in range(8)]
    put(store, thing, 2, *pages[2:4])
    assert is_miss(store, thing, 2) and is_miss(store, thing, 3)
    assert store.statistics.reject_not_reused == store.statistics.ignored_puts == 2
    put(store, thing, 0, *pages)  # two of them for the second time
    assert [index for index in range(8) if not is_miss(store, thing, index)] == [2, 3]
    assert get(store, thing, 2, 2) == pages[2] + pages[3]
    check(store)


def test_a_put_that_is_not_admitted_leaves_nothing_of_what_was_there(rng: random.Random) -> None:
    store = small_store(16)
    thing = new_object(store, 4, Kind.EPHEMERAL)
    put(store, thing, 0, *(page_with_zpage_of(rng, 1000) for _ in range(4)))
    store.admission.admit = "reused"
    store.admission.ghost = Ghost(16)  # which has seen nothing
    put(store, thing, 1, *(page_with_zpage_of(rng, 1000) for _ in range(2)))
    assert [is_miss(store, thing, index) for index in range(4)] == [False, True, True, False]
    check(store)


def test_what_was_read_is_eaten_last(rng: random.Random) -> None:
    store = small_store(budget_frames=4)
    clean = new_object(store, 8, Kind.EPHEMERAL)
    put(store, clean, 0, *(page_with_zpage_of(rng, 2400) for _ in range(4)))
    assert not is_miss(store, clean, 0)
    put(store, clean, 4, page_with_zpage_of(rng, 2400))
    assert [index for index in range(8) if not is_miss(store, clean, index)] == [0, 2, 3, 4]
    assert store.statistics.eph_ate_tail == 1
    check(store)


def test_a_damaged_ephemeral_page_is_a_miss(rng: random.Random) -> None:
    store = small_store()
    clean = new_object(store, 4, Kind.EPHEMERAL)
    pages = [page_with_zpage_of(rng, 1000) for _ in range(3)]
    put(store, clean, 0, *pages)
    start = store.frames.home[decode_zpage(clean.table.entries[1]).frame] * store.frames.frame_bytes
    store.frames.ram[start : start + store.frames.frame_bytes] = b"\xff" * store.frames.frame_bytes
    with memoryview(bytearray(4 * 4096)) as out:
        assert 1 in store.find(clean, 0, out)
    assert is_miss(store, clean, 1)
    assert store.statistics.ephemeral_gets == 0  # a get that failed is none
    check(store)


@pytest.mark.parametrize("allocator", ["zbud", "log"])
def test_swap_pushes_ephemeral_frames_out_one_for_one(allocator: str, rng: random.Random) -> None:
    """And nothing is written below, nor waited for, while there is one to eat."""
    frame_pages = {"zbud": 1, "log": 15}[allocator]
    store = small_store(budget_frames=40, below_frames=80, allocator=allocator)
    reserve = store.frames.reserve_frames
    clean, swap = new_object(store, 1200, Kind.EPHEMERAL), new_object(store, 1000)
    for index in range(1200):
        put(store, clean, index, page_with_zpage_of(rng, 2400))
    ephemeral = store.frames.queue_length[Queue.EPHEMERAL]
    assert ephemeral == 40 - reserve and store.frames.free_slot_count == reserve
    evicted = store.statistics.evicted_ephemeral_frames
    for count in range(1, ephemeral + 1):
        put(store, swap, (count - 1) * frame_pages, *(raw_page(rng) for _ in range(frame_pages)))
        assert store.frames.queue_length[Queue.PERSISTENT] == count
        assert store.frames.queue_length[Queue.EPHEMERAL] == ephemeral - count
        assert store.statistics.pers_ate_eph == store.statistics.evicted_ephemeral_frames - evicted == count
        assert store.frames.ready < store.reclaimer.high_watermark or not store.reclaimer.wants_to_clean()
    assert store.statistics.pers_ate_eph_failed == store.statistics.writeback_batches == 0
    put(store, swap, ephemeral * frame_pages, *(raw_page(rng) for _ in range(frame_pages)))
    statistics = store.statistics
    assert statistics.pers_ate_eph_failed == 1 and statistics.reclaim_sync and statistics.writeback_batches == 1
    check(store)


def test_clean_copies_and_ephemeral_frames_share_what_is_left(rng: random.Random) -> None:
    """A cold frame that is read takes the place of an ephemeral one while there are more of those;
    an ephemeral put that of a clean copy, while there are more of those. Neither kind starves the
    other."""
    store = small_store(budget_frames=16, below_frames=64)
    swap, clean = new_object(store, 40), new_object(store, 100, Kind.EPHEMERAL)
    pages = [page_with_zpage_of(rng, 3000) for _ in range(40)]
    for index, page in enumerate(pages):
        put(store, swap, index, page)
    while store.reclaimer.clean_some():
        pass
    assert store.frames.queue_length[Queue.CLEAN] == 16
    for index in range(100):
        put(store, clean, index, page_with_zpage_of(rng, 2400))
    assert store.frames.queue_length == [0, 8, 8]
    store.flush(clean, 0, 100)
    while store.frames.free_slot_count:
        put(store, clean, store.frames.free_slot_count, page_with_zpage_of(rng, 2400))
    drop_clean_frames(store)
    for index in range(100):
        put(store, clean, index, page_with_zpage_of(rng, 2400))
    assert store.frames.queue_length == [0, 16, 0]
    for _ in range(2):
        for index, page in enumerate(pages):
            assert get(store, swap, index) == page
    assert store.frames.queue_length == [0, 8, 8]
    check(store)

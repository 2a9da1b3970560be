"""When pages are compressed once more, and what that may cost."""

import random

import pytest

from tests.support.clock import FakeClock
from tests.support.stores import frame_of, get, new_object, put, small_store, store_with_image
from tests.support.tiers import MemoryTier
from zcache.control.check import check
from zcache.image.image import new_descriptor
from zcache.pageframes.queues import Queue
from zcache.pages.codec import ZSTD
from zcache.pages.entry import decode_zpage
from zcache.pages.tmem import TmemObject
from zcache.reclaim.recompression import REST_SECONDS
from zcache.reclaim.spare_time import MOST_SECONDS, SHARE, SpareTime
from zcache.store.store import Store

PAGES = 200


def text_page(rng: random.Random) -> bytes:
    return bytes(rng.choices(b"abcdefgh", k=4096))


def store_of_text(rng: random.Random) -> tuple[Store, TmemObject, dict[int, bytes]]:
    store = small_store(24, allocator="log", recompress="zstd:1")
    thing = new_object(store, PAGES)
    pages = {index: text_page(rng) for index in range(PAGES)}
    for index, page in pages.items():
        put(store, thing, index, page)
    return store, thing, pages


def rest(store: Store, seconds: float = REST_SECONDS) -> int:
    """How many frames are compressed once more when so much time has passed."""
    assert store.recompressor and isinstance(store.clock, FakeClock)
    store.clock.seconds += seconds
    count = 0
    while store.recompressor.recompress_rested():
        count += 1
    return count


def test_only_what_has_rested_is_compressed_once_more(rng: random.Random) -> None:
    """Age is noted every ten seconds, so it takes up to twenty."""
    store, thing, pages = store_of_text(rng)
    full = store.frames.resident
    assert rest(store, 0) == rest(store) == 0
    put(store, thing, 0, pages[0])  # young, in a frame that was begun before
    assert rest(store) == full - 1  # the open one is not full
    assert store.frames.resident < full * 0.8
    assert rest(store) == rest(store) == 0, "a frame was compressed twice"
    codecs = [decode_zpage(entry).codec for entry in thing.table.entries.tolist()]
    assert codecs.count(ZSTD) > PAGES * 0.8
    for index, page in pages.items():
        assert get(store, thing, index) == page
    check(store)


def test_what_was_read_meanwhile_gets_one_more_round(rng: random.Random) -> None:
    store, thing, pages = store_of_text(rng)
    rest(store, 0)
    rest(store)
    assert get(store, thing, 0) == pages[0]
    frame = frame_of(thing, 0)
    rest(store)
    assert frame_of(thing, 0) == frame
    rest(store)
    assert frame_of(thing, 0) != frame
    check(store)


def test_pages_that_zstd_makes_no_smaller_stay_where_they_are(rng: random.Random) -> None:
    store = small_store(24, allocator="log", recompress="zstd:1")
    thing = new_object(store, PAGES)
    for index in range(60):
        put(store, thing, index, rng.randbytes(3000) + bytes(1096))
    before = thing.table.entries.tolist()
    rest(store, 0)
    rest(store)
    assert rest(store) > 1
    assert thing.table.entries.tolist() == before and store.statistics.recompressed_pages == 0
    assert rest(store) == 0
    check(store)


def test_a_successor_does_not_compress_again_what_was(rng: random.Random) -> None:
    descriptor = new_descriptor()
    tier = MemoryTier(16, 1 << 16)
    place = (descriptor, PAGES, 24, tier)
    store, thing = store_with_image(*place, allocator="log", recompress="zstd:1")
    for index in range(100):
        put(store, thing, index, text_page(rng))
    assert store.recompressor
    while store.recompressor.recompress_oldest():
        pass
    store, thing = store_with_image(*place, allocator="log", recompress="zstd:1")
    assert store.recompressor
    found = 0
    while store.recompressor.recompress_oldest():
        found += 1
    assert found <= 1  # the frame that was open, and is not any more
    check(store)


def test_the_oldest_are_compressed_before_they_are_written_below(rng: random.Random) -> None:
    """As long as there is spare time."""
    store = small_store(16, 32, allocator="log", recompress="zstd:1")
    thing = new_object(store, 400)
    for index in range(260):
        put(store, thing, index, text_page(rng))
    assert store.frames.available < store.reclaimer.high_watermark
    assert store.reclaimer.clean_some() and store.statistics.recompressed_pages > 0
    assert store.statistics.writeback_batches == store.statistics.reclaim_sync // 2
    check(store)


def test_tidying_stops_while_a_put_waits(rng: random.Random) -> None:
    store, _, _ = store_of_text(rng)
    rest(store, 0)
    rest(store, REST_SECONDS - 1)
    assert isinstance(store.clock, FakeClock)
    store.clock.seconds += REST_SECONDS
    store.reclaimer.waiting_puts = 1
    assert not store.reclaimer.tidy()
    store.reclaimer.waiting_puts = 0
    assert store.recompressor and store.recompressor.recompress_rested() is False  # noted just now
    store.clock.seconds += REST_SECONDS
    assert store.reclaimer.tidy()


def test_spare_time_is_a_share_of_the_clock_and_not_saved_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    worked = [0.0]
    monkeypatch.setattr("time.thread_time", lambda: worked[0])
    spare = SpareTime(clock)
    clock.seconds += 1000
    assert spare.has_some()
    with spare.spending():
        worked[0] += MOST_SECONDS + 0.2
    assert not spare.has_some()
    clock.seconds += 0.19 / SHARE
    assert not spare.has_some()
    clock.seconds += 0.02 / SHARE
    assert spare.has_some()


def test_packing_in_ram_keeps_the_order_of_age(rng: random.Random) -> None:
    """What is alive in an old frame is not young because it was moved."""
    store = small_store(24, allocator="log")
    thing = new_object(store, 1000)
    for index in range(500):
        put(store, thing, index, rng.randbytes(1300) + bytes(2796))
    old = [frame_of(thing, 10), frame_of(thing, 60)]
    for page in [*range(40), *range(50, 90)]:
        store.flush(thing, page, 1)
    assert store.compactor and store.compactor.pack_ram(30_000)
    moved = {frame_of(thing, page) for page in (45, 95)}
    assert len(moved) == 1 and not moved & set(old)
    order = [store.frames.frame_of[slot] for slot in store.frames.queues.slots_waiting(Queue.PERSISTENT)]
    assert order.index(*moved) <= 1
    check(store)


def test_background_reclaim_packs_what_is_hardly_worth_it_where_nothing_can_be_written(rng: random.Random) -> None:
    """So that puts need not."""
    store = small_store(24, allocator="log")
    thing = new_object(store, 1000)
    for index in range(850):
        put(store, thing, index, rng.randbytes(1200) + bytes(2896))
    for index in range(0, 850, 6):
        store.flush(thing, index, 1)
    before = store.frames.resident
    while store.reclaimer.clean_some():
        pass
    assert store.frames.resident < before and store.statistics.packed_frames > 0
    check(store)

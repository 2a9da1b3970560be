"""Several puts at once, and puts that wait for room: what comes of their pages, and who waits with
them. Each race is made to happen, not waited for."""

import random
import threading
from typing import Any

import pytest

from tests.support.pages import page_with_zpage_of, raw_page, same_filled_page
from tests.support.stores import (
    drop_clean_frames,
    get,
    is_miss,
    new_object,
    once,
    put,
    small_store,
    store_with_tier,
    wait_for_a_waiter,
)
from zcache.control.check import check
from zcache.errors import PageLost, StoreFull
from zcache.pages.codec import Codec
from zcache.pages.tmem import Kind

# -- puts that wait, and puts that fail
# -------------------------------------------------------------------------------


def test_a_rejected_overwrite_then_eviction_of_the_old_copy(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old zpage's frame lives on by its buddy, goes below and comes back: the old page does
    not."""
    store, tier, thing = store_with_tier()
    buddy = page_with_zpage_of(rng, 500)
    put(store, thing, 0, page_with_zpage_of(rng, 500), buddy)
    put(store, thing, 8, *(raw_page(rng) for _ in range(3)))
    with monkeypatch.context() as patch, pytest.raises(StoreFull):
        patch.setattr(store.reclaimer, "make_room", lambda _queue: False)
        put(store, thing, 0, raw_page(rng))
    store.reclaimer.clean_some()
    drop_clean_frames(store)
    check(store)
    assert get(store, thing, 1) == buddy and store.statistics.fetched_frames == 1
    with pytest.raises(PageLost):
        get(store, thing, 0)
    store.flush(thing, 1, 1)
    with pytest.raises(PageLost):
        get(store, thing, 0)
    check(store)
    store.flush(thing, 0, 16)
    assert store.frames.resident == 0 and tier.used_slots == 0


def test_a_rejected_ephemeral_overwrite_then_eviction_of_the_old_copy(rng: random.Random) -> None:
    """The overwrite is not admitted, so the page is gone at once; when its old frame is eaten, only
    the buddy goes."""
    store = small_store(budget_frames=2)
    clean, device = new_object(store, 4, Kind.EPHEMERAL), new_object(store, 4)
    put(store, clean, 0, page_with_zpage_of(rng, 500), page_with_zpage_of(rng, 500))
    put(store, clean, 0, raw_page(rng))
    assert is_miss(store, clean, 0) and not is_miss(store, clean, 1)
    check(store)
    put(store, clean, 0, bytes(4096))  # same-filled: in no frame, and not to be eaten
    put(store, device, 0, raw_page(rng), raw_page(rng))
    assert not is_miss(store, clean, 0) and is_miss(store, clean, 1)
    assert store.statistics.evicted_ephemeral_pages == 1
    check(store)


def test_two_puts_to_one_page_at_once(rng: random.Random) -> None:
    """The second comes from another connection while the first still compresses: the one that is
    placed last stays."""
    store, _, thing = store_with_tier()
    first, second = page_with_zpage_of(rng, 1000), page_with_zpage_of(rng, 2000)
    put(store, thing, 0, raw_page(rng))
    codec, meanwhile = store.putter.codec, once(lambda: put(store, thing, 0, second))

    def compress(page: memoryview) -> bytes:
        body = codec.compress(page)
        meanwhile()
        return body

    store.putter.codec = Codec(codec.id, codec.name, compress)
    put(store, thing, 0, first)
    assert get(store, thing, 0) == first
    assert store.frames.resident == 1 and store.statistics.stored_pages == 1
    check(store)


@pytest.mark.parametrize("fails", [False, True])
def test_a_put_to_a_page_whose_put_waits_for_room(rng: random.Random, fails: bool) -> None:
    """The first put finds no frame; the second, which needs none, is done meanwhile. Then the first
    goes on and is the last, or it fails, and has no say in what came after it."""
    store, tier, thing = store_with_tier(budget_frames=2)
    put(store, thing, 0, raw_page(rng), raw_page(rng))
    first, second = raw_page(rng), bytes(4096)

    def put_second() -> None:
        put(store, thing, 5, second)
        assert get(store, thing, 5) == second
        tier.failing_writes = 100 * fails

    tier.before_write = once(put_second)
    if fails:
        with pytest.raises(StoreFull):
            put(store, thing, 5, first)
    else:
        put(store, thing, 5, first)
    assert get(store, thing, 5) == (second if fails else first)
    assert store.statistics.lost_pages == 0 and store.waiting.page_count == 0
    check(store)


def test_two_puts_of_the_same_pages_that_both_wait(rng: random.Random) -> None:
    """Neither finds a frame; whichever is done last has all pages, and nothing of the other is
    left."""
    store, tier, thing = store_with_tier(budget_frames=2, below_frames=14)
    put(store, thing, 0, raw_page(rng), raw_page(rng))
    sets = [[raw_page(rng) for _ in range(4)] for _ in range(2)]
    other = threading.Thread(target=lambda: put(store, thing, 4, *sets[1]))

    def start_the_other() -> None:
        other.start()
        wait_for_a_waiter(store, other)
        assert store.waiting.page_count == 4 and store.statistics.lost_pages == 4  # the same pages, once

    tier.before_write = once(start_the_other)
    put(store, thing, 4, *sets[0])
    other.join(timeout=10)
    for index in range(4):
        assert get(store, thing, 4 + index) in (sets[0][index], sets[1][index])
    assert store.statistics.stored_pages == 6
    check(store)


@pytest.mark.parametrize("fails", [False, True])
def test_a_put_waits_for_a_flight_of_others(rng: random.Random, fails: bool) -> None:
    """All frames are in flight, so that it has nothing to write itself; it goes on when they have
    landed, or, if they come back, writes them."""
    store, tier, thing = store_with_tier(budget_frames=2)
    old, page = [raw_page(rng), raw_page(rng)], raw_page(rng)
    put(store, thing, 0, *old)
    writer = threading.Thread(target=lambda: put(store, thing, 5, page))

    def start() -> None:
        writer.start()
        wait_for_a_waiter(store, writer)
        tier.failing_writes = fails

    tier.before_write = once(start)
    assert store.reclaimer.clean_some() is not fails
    writer.join(timeout=10)
    assert get(store, thing, 5) == page and get(store, thing, 0, 2) == b"".join(old)
    assert store.statistics.reclaim_sync == 2 * fails
    check(store)


def test_a_get_of_a_lost_page_does_not_wait_for_the_puts_of_others(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is lost for good: while a put of another page waits for a slow disk, the answer is there
    already."""
    store, tier, thing = store_with_tier(budget_frames=2)
    put(store, thing, 0, raw_page(rng), raw_page(rng))
    with monkeypatch.context() as patch, pytest.raises(StoreFull):
        patch.setattr(store.reclaimer, "make_room", lambda _queue: False)
        put(store, thing, 3, raw_page(rng))
    failures: list[BaseException] = []

    def read() -> None:
        with pytest.raises(PageLost) as caught:
            get(store, thing, 3)
        failures.append(caught.value)

    def read_meanwhile() -> None:
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(timeout=10)
        assert len(failures) == 1, "it waits"

    tier.before_write = once(read_meanwhile)
    put(store, thing, 5, raw_page(rng))
    assert failures
    check(store)


def test_a_rejected_overwrite_then_reclaim_of_the_old_copy(rng: random.Random) -> None:
    """The put over page 0 fails; whatever becomes of the frame with its old zpage, the old data
    never comes back."""
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


def test_a_get_of_a_page_whose_put_waits_for_room_waits_with_it(rng: random.Random) -> None:
    """Never an error, never the old page, never zeros: the page is only lost for the moment."""
    store, tier, thing = store_with_tier(budget_frames=2, below_frames=8)
    put(store, thing, 0, raw_page(rng), raw_page(rng))
    new = raw_page(rng)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(get(store, thing, 5)))

    def read_meanwhile() -> None:
        reader.start()
        wait_for_a_waiter(store, reader)

    tier.before_write = once(read_meanwhile)
    put(store, thing, 5, new)
    reader.join(timeout=10)
    assert got == [new]
    check(store)


def test_a_trim_of_the_whole_block_while_a_put_waits_for_room_hides_nothing(rng: random.Random) -> None:
    """The trim forgets that the block was ever written; the put that finishes after it must say so
    again."""
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
        wait_for_a_waiter(store, reader)
        return False

    monkeypatch.setattr(store.reclaimer, "make_room", no_room)
    with pytest.raises(StoreFull):
        put(store, thing, 5, raw_page(rng))
    reader.join(timeout=10)
    assert len(failures) == 1
    check(store)


# -- partial writes
# --------------------------------------------------------------------------------------------------


def test_a_partial_write_that_meets_a_whole_one_starts_again(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its read is of a page that is no more: what it changes is the one that came."""
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


def test_a_partial_write_that_waits_for_room_meets_a_whole_one(rng: random.Random) -> None:
    """The page that it read, and is about to put, was overwritten while it waited: it starts again
    with the new one."""
    store, tier, thing = store_with_tier(budget_frames=2)
    put(store, thing, 0, raw_page(rng), raw_page(rng))
    other = same_filled_page(1 << 31)
    tier.before_write = once(lambda: put(store, thing, 5, other))
    store.modify(thing, 5, 10, memoryview(raw_page(rng)[:4000]))  # a frame is needed, and none is free
    after = get(store, thing, 5)
    assert after[:10] == other[:10] and after[4010:] == other[4010:] and after != other
    assert store.statistics.partial_writes == 1 and store.putter.partial_write.page is None
    check(store)


def test_a_partial_write_that_meets_a_trim_starts_again(rng: random.Random) -> None:
    """The page is trimmed after it was read from below: what was in it is not brought back."""
    store, tier, thing = store_with_tier()
    put(store, thing, 0, page_with_zpage_of(rng, 1000))
    store.reclaimer.clean_some()
    drop_clean_frames(store)
    codec, meanwhile = store.putter.codec, once(lambda: store.flush(thing, 0, 1))

    def compress(page: memoryview) -> bytes:
        meanwhile()
        return codec.compress(page)

    store.putter.codec = Codec(codec.id, codec.name, compress)
    store.modify(thing, 0, 100, memoryview(b"mine"))
    assert get(store, thing, 0) == bytes(100) + b"mine" + bytes(3992)
    assert tier.used_slots == 0
    check(store)


@pytest.mark.parametrize("codec", ["lz4", "lz4:2", "zstd:1"])
def test_a_page_is_compressed_once(rng: random.Random, codec: str) -> None:
    """Unless it may be raw, or repeat a word, which the fast path leaves to the other."""
    store = small_store(16, codec=codec)
    thing = new_object(store, 20)
    compressed = 0
    compress = store.putter.codec.compress

    def counting(page: memoryview) -> bytes:
        nonlocal compressed
        compressed += 1
        return compress(page)

    counted = Codec(store.putter.codec.id, codec, counting)
    counted.suspect_bytes = store.putter.codec.suspect_bytes
    store.putter.codec = counted
    for index in range(10):
        put(store, thing, index, page_with_zpage_of(rng, 1000))
    assert compressed == 10
    check(store)

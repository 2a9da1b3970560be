"""A tier that fails, and memory that runs out in the middle of things."""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from tests.support.pages import page_with_zpage_of, raw_page, same_filled_page
from tests.support.stores import (
    drop_clean_frames,
    frame_of,
    get,
    make_cold,
    new_object,
    put,
    small_store,
    store_with_tier,
)
from zcache.block.device import Device
from zcache.control.check import check
from zcache.errors import PageDamaged, PageLost, StoreFull
from zcache.pageframes.queues import Queue
from zcache.pages.codec import Codec
from zcache.pages.tmem import Kind
from zcache.store.store import Store
from zcache.tiers.backoff import FIRST_REST_SECONDS, LAST_REST_SECONDS


def test_a_failed_writeback_keeps_the_frames_oldest_first(rng: random.Random) -> None:
    store, tier, thing = store_with_tier()
    pages = [raw_page(rng) for _ in range(4)]
    for index, page in enumerate(pages):
        put(store, thing, index, page)
    order = list(store.frames.queues.slots_waiting(Queue.PERSISTENT))
    tier.failing_writes = 1
    assert store.reclaimer.clean_some() is False
    assert list(store.frames.queues.slots_waiting(Queue.PERSISTENT)) == order and tier.used_slots == 0
    assert store.statistics.writeback_errors == 1
    assert get(store, thing, 0, 4) == b"".join(pages)
    check(store)
    assert store.reclaimer.clean_some() is False and tier.tries == 1, "it did not rest"
    tier.clock.sleep(FIRST_REST_SECONDS)
    assert store.reclaimer.clean_some() is True
    assert store.frames.queue_length[2] == 4
    check(store)


@pytest.mark.parametrize("buddies", [1, 2])
def test_a_failed_writeback_offers_what_room_its_frames_have(rng: random.Random, buddies: int) -> None:
    """A frame with one buddy, or one whose other buddy was trimmed during the flight, takes a zpage
    as it did before; one that is full does not."""
    store, tier, thing = store_with_tier(budget_frames=2)
    pages = [page_with_zpage_of(rng, 1000) for _ in range(3)]
    full = raw_page(rng)
    put(store, thing, 0, *pages[:buddies])
    put(store, thing, 8, full)
    tier.failing_writes = 1 << 30
    tier.before_write = lambda: store.flush(thing, 1, 1)
    assert store.reclaimer.clean_some() is False
    tier.before_write = lambda: None
    check(store)
    put(store, thing, 2, pages[2])
    assert frame_of(thing, 2) == frame_of(thing, 0)
    assert get(store, thing, 0) == pages[0] and get(store, thing, 2) == pages[2] and get(store, thing, 8) == full
    check(store)
    with pytest.raises(StoreFull):
        put(store, thing, 3, page_with_zpage_of(rng, 100))
    tier.failing_writes = 0
    tier.clock.sleep(LAST_REST_SECONDS)
    assert store.reclaimer.clean_some() is True
    drop_clean_frames(store)
    assert get(store, thing, 0) == pages[0] and get(store, thing, 2) == pages[2] and get(store, thing, 8) == full
    store.flush(thing, 0, 16)
    assert store.frames.resident == store.frames.cold == tier.used_slots == 0
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


@pytest.mark.parametrize("byte", [0, 1234, 4095])
def test_a_flipped_bit_is_an_error_for_its_own_pages_only(rng: random.Random, byte: int) -> None:
    store, tier, thing = store_with_tier()
    make_cold(store, thing, rng)
    slot = store.frames.below[frame_of(thing, 0)]
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
    one, other = (store.frames.below[frame_of(thing, index)] for index in (0, 1))
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


def test_no_memory_in_the_middle_of_a_flight_gives_the_frames_back(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, thing = store_with_tier()
    page = raw_page(rng)
    put(store, thing, 0, page)
    monkeypatch.setattr(store.seal, "sealed", raise_memory_error)
    assert store.reclaimer.clean_some() is False
    assert store.frames.in_flight == 0 and get(store, thing, 0) == page
    check(store)


def test_no_memory_in_the_middle_of_a_fetch_gives_the_slots_back(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, thing = store_with_tier()
    page = make_cold(store, thing, rng)
    with monkeypatch.context() as patch:
        patch.setattr(store.seal, "opens", raise_memory_error)
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

    place = store.allocator.place

    def no_memory_for_three(kind: Kind, data: bytes, tags: list[Any], entries: list[int], owner: int) -> int:
        return place(kind, data, [*tags[:2], cast(Any, "no tag"), *tags[3:]], entries, owner)

    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(store.allocator, "place", no_memory_for_three)
        put(store, thing, 1, *(page_with_zpage_of(rng, 1000) for _ in range(5)))
    assert get(store, thing, 0) == kept and store.statistics.lost_pages == 5
    check(store)
    again = [page_with_zpage_of(rng, 1000) for _ in range(5)]
    put(store, thing, 1, *again)
    assert get(store, thing, 1, 5) == b"".join(again)
    check(store)


@pytest.mark.parametrize("before", ["lost", "stored"])
def test_no_memory_before_a_put_has_begun_loses_what_was_there(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """The put has failed, so its pages are lost, never old; and what they had is given up, in the
    books too."""
    store, _, thing = store_with_tier(budget_frames=8)
    put(store, thing, 0, *(page_with_zpage_of(rng, 1000) for _ in range(3)))
    with monkeypatch.context() as patch:
        patch.setattr(store.putter.partial_write, "page", (thing, 9))
        patch.setattr(store.putter.partial_write, "agrees", raise_memory_error)
        for _ in range(2 if before == "lost" else 1):
            with pytest.raises(MemoryError):
                put(store, thing, 0, *(page_with_zpage_of(rng, 1000) for _ in range(3)))
    assert store.statistics.lost_pages == 3 and store.statistics.stored_pages == 0
    check(store)


def test_no_memory_to_compress_loses_the_pages_of_the_run_and_no_others(rng: random.Random) -> None:
    """The put has failed, so what was there is not to be read any more; the rest of the request is
    put all the same. A page in a block of the table that was never written is lost as well, and the
    books say so."""
    store = small_store(budget_frames=200)
    thing = new_object(store, 1024)
    old = [page_with_zpage_of(rng, 1000) for _ in range(100)]
    put(store, thing, 0, *old)
    new = [page_with_zpage_of(rng, 1000) for _ in range(70)]
    with failing_compression(store, at=3), pytest.raises(MemoryError):
        put(store, thing, 0, *new)
    for index in range(64):
        with pytest.raises(PageLost):
            get(store, thing, index)
    assert get(store, thing, 64, 6) == b"".join(new[64:]) and get(store, thing, 70, 30) == b"".join(old[70:])
    assert store.statistics.lost_pages == 64
    check(store)
    with failing_compression(store, at=1), pytest.raises(MemoryError):
        put(store, thing, 600, new[0])
    assert store.statistics.lost_pages == 65
    check(store)
    put(store, thing, 0, *new)
    store.flush(thing, 600, 1)
    assert store.statistics.lost_pages == 0 and get(store, thing, 0, 70) == b"".join(new)
    check(store)


def test_no_memory_to_compress_a_page_that_another_has_put_meanwhile_costs_nothing(rng: random.Random) -> None:
    """Of a partial write that fails, what it changed is lost; but not what came after it had read
    the page."""
    store, _, thing = store_with_tier(budget_frames=8)
    page, other = page_with_zpage_of(rng, 1000), page_with_zpage_of(rng, 1000)
    put(store, thing, 0, page)
    with failing_compression(store, at=1), pytest.raises(MemoryError):
        store.modify(thing, 0, 100, memoryview(b"mine"))
    with pytest.raises(PageLost):
        get(store, thing, 0)
    put(store, thing, 0, page)
    with failing_compression(store, at=1, before=lambda: put(store, thing, 0, other)), pytest.raises(MemoryError):
        store.modify(thing, 0, 100, memoryview(b"mine"))
    assert get(store, thing, 0) == other and store.statistics.lost_pages == 0
    check(store)


@pytest.mark.parametrize("zero", [False, True])
def test_an_unaligned_write_goes_on_after_its_head_has_failed(rng: random.Random, zero: bool) -> None:
    """No page in its middle keeps what it had."""
    store, _, thing = store_with_tier(budget_frames=8)
    device = Device(store, thing)
    old = [page_with_zpage_of(rng, 1000) for _ in range(4)]
    put(store, thing, 0, *old)
    data = bytes(3 * 4096) if zero else rng.randbytes(2) + b"".join(same_filled_page(n) for n in (1, 2)) + bytes(4094)
    with failing_compression(store, at=1), pytest.raises(MemoryError):
        if zero:
            device.zero(4094, len(data))
        else:
            device.write(4094, memoryview(data))
    with pytest.raises(PageLost):
        get(store, thing, 0)
    assert get(store, thing, 1, 2) == data[2 : 2 + 2 * 4096]
    assert get(store, thing, 3) == data[2 + 2 * 4096 :] + old[3][4094:]
    check(store)


@contextlib.contextmanager
def failing_compression(store: Store, at: int, before: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The compression of the page number `at` from here fails; `before` is called before it
    does."""
    codec, count = store.putter.codec, itertools.count(1)

    def compress(page: memoryview) -> bytes:
        if next(count) == at:
            before()
            raise MemoryError
        return codec.compress(page)

    store.putter.codec = Codec(codec.id, codec.name, compress)
    try:
        yield
    finally:
        store.putter.codec = codec


def test_no_memory_before_a_fetch_takes_no_slots(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, thing = store_with_tier()
    put(store, thing, 0, raw_page(rng), raw_page(rng))
    while store.reclaimer.clean_some():
        pass
    drop_clean_frames(store)
    slots = store.frames.slots.fetch_count
    seal_of, calls = store.frames.seal_of, []

    def fail_at_second(frame: int) -> bytes:
        calls.append(frame)
        if len(calls) == 2:
            raise MemoryError
        return seal_of(frame)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(store.frames, "seal_of", fail_at_second)
        get(store, thing, 0, 2)
    assert store.frames.slots.fetch_count == slots
    check(store)


def raise_memory_error(*_arguments: object) -> int:
    raise MemoryError

"""Packing and recompression copy zpages out, work without the lock, and put them somewhere else:
whatever else happens to the pages meanwhile, nobody sees anything but what was last put."""

import random
import time
from collections.abc import Callable

import pytest

from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.stores import (
    frame_of,
    get,
    health_of,
    make_frame_light,
    new_object,
    once,
    put,
    small_store,
    tier_of,
)
from tests.support.tiers import MemoryTier
from zcache.allocators.log import WORST_WEIGHT, Log
from zcache.control.check import check
from zcache.control.reasons import reasons
from zcache.errors import PageDamaged, PageLost
from zcache.pageframes import State
from zcache.pageframes.queues import Queue
from zcache.pages.codec import LZ4, Codec
from zcache.pages.entry import decode_zpage
from zcache.pages.tmem import Kind, TmemObject
from zcache.store.store import Store

#: Of a frame of 50, those that stay alive in it.
ALIVE = (3, 20, 41)


@pytest.fixture
def world(rng: random.Random) -> tuple[Store, MemoryTier, TmemObject, dict[int, bytes]]:
    """A store with a frame that is below only, and has three pages alive in it."""
    store = small_store(16, 16, allocator="log")
    thing = new_object(store, 400)
    pages = make_frame_light(store, thing, rng, ALIVE)
    assert store.frames.state[frame_of(thing, ALIVE[0])] == State.COLD
    return store, tier_of(store), thing, pages


def pack_below(store: Store) -> bool:
    assert store.compactor
    return store.compactor.pack_below(everywhere=True)


def are_right(store: Store, thing: TmemObject, pages: dict[int, bytes]) -> None:
    for index, page in pages.items():
        assert get(store, thing, index) == page
    check(store)


World = tuple[Store, MemoryTier, TmemObject, dict[int, bytes]]


def test_what_is_alive_below_moves_into_ram_and_its_slot_is_free(world: World) -> None:
    store, tier, thing, pages = world
    used, frame = tier.used_slots, frame_of(thing, ALIVE[0])
    assert pack_below(store)
    assert tier.used_slots == used - 1 and store.frames.state[frame] == State.FREE
    assert store.statistics.packed_pages == len(ALIVE) and store.statistics.packed_frames == 1
    assert {store.frames.state[frame_of(thing, index)] for index in ALIVE} == {State.ACTIVE}
    are_right(store, thing, pages)


@pytest.mark.parametrize("moment", ["before_read", "after_read"])
def test_a_page_is_overwritten_while_its_frame_is_read(world: World, rng: random.Random, moment: str) -> None:
    store, tier, thing, pages = world
    new = page_with_zpage_of(rng, 900)
    setattr(tier, moment, once(lambda: put(store, thing, ALIVE[1], new)))
    assert pack_below(store)
    assert store.statistics.packed_pages == len(ALIVE) - 1
    are_right(store, thing, pages | {ALIVE[1]: new})


@pytest.mark.parametrize("moment", ["before_read", "after_read"])
def test_all_pages_are_trimmed_while_their_frame_is_read(world: World, moment: str) -> None:
    store, tier, thing, _ = world
    setattr(tier, moment, once(lambda: store.flush(thing, 0, 50)))
    assert pack_below(store)  # which makes room, too
    assert store.statistics.packed_pages == 0
    are_right(store, thing, {index: bytes(4096) for index in range(50)})


def test_a_frame_dies_and_its_number_is_given_to_another_while_it_is_read(world: World, rng: random.Random) -> None:
    store, tier, thing, _ = world
    frame = frame_of(thing, ALIVE[0])
    new = {index: page_with_zpage_of(rng, 1200) for index in range(300, 360)}

    def reuse() -> None:
        store.flush(thing, 0, 50)
        for index, page in new.items():
            put(store, thing, index, page)
        assert frame in {frame_of(thing, index) for index in new}, "the case was not made"

    tier.after_read = once(reuse)
    pack_below(store)
    are_right(store, thing, new)


def test_a_get_brings_the_frame_back_while_it_is_read(world: World) -> None:
    store, tier, thing, pages = world

    def bring_back() -> None:
        assert get(store, thing, ALIVE[0]) == pages[ALIVE[0]]

    tier.after_read = once(bring_back)
    pack_below(store)
    are_right(store, thing, pages)


def test_a_frame_that_cannot_be_read_stays_where_it_is_and_is_not_tried_again(world: World) -> None:
    store, tier, thing, pages = world
    tier.failing_reads = 100
    pack_below(store)
    assert reasons(store, 0) and store.statistics.packed_pages == 0
    tries = tier.tries
    assert not pack_below(store) and tier.tries == tries
    tier.failing_reads = 0
    are_right(store, thing, pages)
    assert not reasons(store, 0)


def test_bytes_that_are_not_what_was_sealed_go_nowhere(world: World) -> None:
    store, tier, thing, pages = world
    slot = store.frames.below[frame_of(thing, ALIVE[0])]
    tier.flip_bit(slot, 10)
    pack_below(store)
    assert not pack_below(store) and store.statistics.packed_pages == 0
    for index in ALIVE:
        with pytest.raises(PageDamaged):
            get(store, thing, index)
        del pages[index]
    are_right(store, thing, pages)


# -- recompression
# --------------------------------------------------------------------------------------------------


def text_page(rng: random.Random) -> bytes:
    """zstd makes much less of it than lz4."""
    return bytes(rng.choices(b"abcdefgh", k=4096))


class Interrupted:
    """A store whose recompression calls `meanwhile` in the middle of a frame."""

    def __init__(self, rng: random.Random, meanwhile: Callable[["Interrupted"], None] = lambda _: None) -> None:
        self.store = small_store(16, 16, allocator="log", recompress="zstd:1")
        self.thing = new_object(self.store, 200)
        self.pages = {index: text_page(rng) for index in range(60)}
        for index, page in self.pages.items():
            put(self.store, self.thing, index, page)
        self.frame = frame_of(self.thing, 0)
        assert self.store.recompressor
        self.recompressor = self.store.recompressor
        codec, act = self.recompressor.codec, once(lambda: meanwhile(self))

        def compress(page: memoryview) -> bytes:
            act()
            return codec.compress(page)

        self.recompressor.codec = Codec(codec.id, codec.name, compress)

    def are_right(self) -> None:
        are_right(self.store, self.thing, self.pages)


def test_the_oldest_frame_takes_less_room_afterwards(rng: random.Random) -> None:
    here = Interrupted(rng)
    before = here.store.statistics.compressed_bytes
    assert here.recompressor.recompress_oldest()
    assert here.store.frames.state[here.frame] == State.FREE
    saved = here.store.statistics.recompressed_saved_bytes
    assert saved > 10_000 and here.store.statistics.compressed_bytes == before - saved
    here.are_right()


def test_pages_are_overwritten_and_trimmed_meanwhile(rng: random.Random) -> None:
    def meanwhile(here: Interrupted) -> None:
        here.pages[2] = page_with_zpage_of(rng, 2000)
        put(here.store, here.thing, 2, here.pages[2])
        here.store.flush(here.thing, 5, 3)
        here.pages |= dict.fromkeys(range(5, 8), bytes(4096))

    here = Interrupted(rng, meanwhile)
    assert here.recompressor.recompress_oldest()
    here.are_right()


def test_the_frame_is_written_below_meanwhile(rng: random.Random) -> None:
    """It stays as it was written."""

    def meanwhile(here: Interrupted) -> None:
        while here.store.frames.state[here.frame] != State.CLEAN:
            assert here.store.frames.queue_length[0]
            here.store.reclaimer.recompressor = None
            here.store.reclaimer.clean_some()

    here = Interrupted(rng, meanwhile)
    here.store.reclaimer.high_watermark = 100
    here.recompressor.recompress_oldest()
    assert here.store.frames.state[here.frame] == State.CLEAN and frame_of(here.thing, 0) == here.frame
    here.are_right()


def test_the_frame_dies_and_another_has_its_number_meanwhile(rng: random.Random) -> None:
    """And its pages are where the old ones were, and as long."""

    def meanwhile(here: Interrupted) -> None:
        here.store.flush(here.thing, 0, 60)
        for index in range(60):
            here.pages[index] = here.pages[index][::-1]
            put(here.store, here.thing, index, here.pages[index])

    here = Interrupted(rng, meanwhile)
    here.recompressor.recompress_oldest()
    here.are_right()


def test_a_zpage_that_has_changed_in_ram_stays_as_it_is(rng: random.Random) -> None:
    here = Interrupted(rng)
    entries = here.thing.table.entries[:10].tolist()
    index = next(n for n, entry in enumerate(entries) if decode_zpage(entry).codec == LZ4)  # a raw one says nothing
    start = (here.store.frames.home[here.frame] << 16) + decode_zpage(entries[index]).offset
    here.store.frames.ram[start : start + 40] = b"\xff" * 40
    assert here.recompressor.recompress_oldest()
    with pytest.raises(PageDamaged):
        get(here.store, here.thing, index)
    del here.pages[index]
    here.are_right()


# -- several at once
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before_read", "after_read"])
def test_background_reclaim_packs_what_a_put_is_reading_to_pack(rng: random.Random, moment: str) -> None:
    """There is room, by somebody else's doing: the put does not fail, and no frame is taken for
    damaged."""
    pages = 600
    tier = MemoryTier(Log.frames_for(pages) - 16, 1 << 16)
    store = small_store(16, tiers=[tier], allocator="log")
    thing = new_object(store, pages)
    some = [raw_page(rng) for _ in range(8)]
    hooks = 0

    def reclaim() -> None:
        nonlocal hooks
        if store.reclaimer.waiting_puts:
            hooks += 1
            setattr(tier, moment, lambda: None)
            store.reclaimer.clean_some()
            setattr(tier, moment, reclaim)

    setattr(tier, moment, reclaim)
    for turn in range(2000):
        put(store, thing, rng.randrange(pages), turn.to_bytes(4, "little") + some[turn % 8][4:])
    assert hooks > 20 and store.statistics.failed_puts == 0 and not store.damage.frames
    check(store)


def test_a_slot_is_another_frame_s_by_the_time_it_is_read(world: World) -> None:
    """Its seal does not fit, and nothing is damaged."""
    store, tier, thing, pages = world
    slot = store.frames.below[frame_of(thing, ALIVE[0])]

    def rewrite() -> None:
        for index in ALIVE:
            store.flush(thing, index, 1)
        tier.medium[slot] = bytes(1 << 16)

    tier.before_read = once(rewrite)
    pack_below(store)
    assert not store.damage.frames and store.statistics.checksum_errors == 0
    are_right(store, thing, pages | dict.fromkeys(ALIVE, bytes(4096)))


# -- what nobody foresaw
# ----------------------------------------------------------------------------------------------


def fail(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("count", [1, 2, 48])
def test_no_memory_to_place_a_put_loses_its_pages_and_no_others(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Neither are they what they were, nor does a frame go that has others in it. The last of these
    puts has filled a frame by then, and takes another."""
    store = small_store(16, allocator="log")
    thing = new_object(store, 100)
    pages = {index: page_with_zpage_of(rng, 1200) for index in range(50, 60)}
    for index, page in pages.items():
        put(store, thing, index, page)
    put(store, thing, 0, page_with_zpage_of(rng, 900))
    with monkeypatch.context() as patch:
        patch.setattr(*(store.frames, "take", fail) if count == 48 else (store.allocator, "place", fail))
        patch.setattr(store.allocator, "place_one", fail)
        with pytest.raises(MemoryError):
            put(store, thing, 0, *(page_with_zpage_of(rng, 1200) for _ in range(count)))
    for index in range(count):
        with pytest.raises(PageLost):
            get(store, thing, index)
    assert store.statistics.lost_pages == count
    are_right(store, thing, pages)
    store.flush(thing, 50, 9)
    assert get(store, thing, 59) == pages[59]
    check(store)


def test_an_error_that_nobody_foresaw_does_not_end_background_reclaim(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small_store(16, 32, allocator="log")
    thing = new_object(store, 400)
    monkeypatch.setattr("zcache.reclaim.reclaimer.LAST_REST_SECONDS", 0.001)
    assert store.compactor
    with monkeypatch.context() as patch:
        patch.setattr(store.compactor, "pack_ram", fail)
        store.reclaimer.tidy_up()
        store.reclaimer.start()
        for first in (0, 60, 120):  # twelve frames, which is all but the reserve
            put(store, thing, first, *(raw_page(rng) for _ in range(60)))
        while store.statistics.unforeseen_errors < 3:
            store.reclaimer.wake_if_low()
            time.sleep(0.001)
    assert any("did not foresee" in reason for reason in reasons(store, 0))
    while not store.statistics.reclaim_background:
        store.reclaimer.wake_if_low()
        time.sleep(0.001)
    store.close()
    check(store)


def test_trouble_is_forgotten_when_only_a_frame_that_is_packed_into_is_left(rng: random.Random) -> None:
    """It stays in RAM, so it cannot show whether writes work again."""
    store = small_store(16, 16, allocator="log")
    assert store.compactor
    thing = new_object(store, 400)
    for index in range(200):
        put(store, thing, index, page_with_zpage_of(rng, 1200))
    tier_of(store).failing_writes = 1
    assert not store.reclaimer.clean_some() and health_of(store).writing.failures
    for index in range(200):
        if index % 50 > 5:
            store.flush(thing, index, 1)
    with store.lock:
        assert store.compactor.pack_ram(WORST_WEIGHT, everywhere=True)
    packed = store.frames.frame_of[next(store.frames.queues.slots_waiting(Queue.PERSISTENT))]
    assert store.allocator.kept_frames == 1
    for index in range(200):
        entry = thing.table.entries[index]
        if entry and decode_zpage(entry).frame != packed:
            store.flush(thing, index, 1)
    assert store.reclaimer.clean_some() is None and not health_of(store).writing.failures
    check(store)


def test_ephemeral_puts_find_room_beside_clean_frames(rng: random.Random) -> None:
    """The reserve is there, as clean frames: what is free is for anybody."""
    store = small_store(16, 32, allocator="log")
    thing = new_object(store, 400)
    for index in range(250):
        put(store, thing, index, raw_page(rng))
    while store.reclaimer.clean_some():
        pass
    frame = frame_of(thing, 240)
    for index in range(250):
        if frame_of(thing, index) == frame:
            store.flush(thing, index, 1)
    free = store.frames.free_slot_count
    assert store.frames.queue_length[Queue.CLEAN] > 4 and 0 < free <= store.frames.reserve_frames
    ephemeral = new_object(store, 10, Kind.EPHEMERAL)
    put(store, ephemeral, 0, page_with_zpage_of(rng, 500))
    assert store.statistics.ignored_puts == 0 and store.frames.free_slot_count == free - 1
    check(store)


@pytest.mark.parametrize("budget_frames", [16, 64, 200])
def test_background_reclaim_is_woken_whatever_the_budget(rng: random.Random, budget_frames: int) -> None:
    store = small_store(budget_frames, 400, allocator="log")
    thing = new_object(store, 8000)
    index = 0
    while store.frames.available >= store.reclaimer.low_watermark:
        assert not store.reclaimer.wake.is_set()
        put(store, thing, index, raw_page(rng))
        index += 1
    put(store, thing, index, raw_page(rng))
    assert store.reclaimer.wake.is_set() and store.frames.available >= store.reclaimer.low_watermark - 1

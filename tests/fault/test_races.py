"""Puts, trims and the end of the server, while frames are on their way below. Each race is made to
happen, not waited for."""

import os
import random
import threading
import time

import pytest

from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.stores import (
    drop_clean_frames,
    frame_of,
    get,
    once,
    put,
    store_with_image,
    store_with_tier,
    tier_of,
    wait_for_a_waiter,
)
from tests.support.tiers import MemoryTier
from zcache.control.check import check
from zcache.errors import StoreFull
from zcache.image.image import new_descriptor
from zcache.pageframes import State

# -- a frame in flight
# ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def default_encrypt() -> None:
    """Without: a flight inside another, in one thread, would wait for ever for the other's
    buffer."""


def test_overwrite_while_the_frame_is_in_flight(rng: random.Random) -> None:
    """The old zpage lands with its frame, and stays dead; its buddy comes back from below as it
    was."""
    store, tier, thing = store_with_tier()
    old, new = page_with_zpage_of(rng, 1000), page_with_zpage_of(rng, 1000)
    buddy = page_with_zpage_of(rng, 1000)
    put(store, thing, 0, old, buddy)
    tier.before_write = once(lambda: put(store, thing, 0, new))
    store.reclaimer.clean_some()
    assert get(store, thing, 0) == new
    check(store)
    drop_clean_frames(store)
    assert get(store, thing, 0, 2) == new + buddy and store.statistics.fetched_frames == 1
    check(store)


def test_trim_of_all_of_a_frame_in_flight_frees_it_when_it_lands(rng: random.Random) -> None:
    """Nothing is alive in it any more, but its RAM and its slot are still being used."""
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
    """A frame that lost one page goes back; one that lost all is free."""
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
    """It is in RAM until it has landed, and after."""
    store, tier, thing = store_with_tier()
    page = page_with_zpage_of(rng, 1000)
    put(store, thing, 0, page)
    seen: list[bytes] = []
    tier.before_write = once(lambda: seen.append(get(store, thing, 0)))
    store.reclaimer.clean_some()
    assert seen == [page]
    check(store)


def test_a_put_while_a_frame_with_room_is_in_flight_stays_out_of_it(rng: random.Random) -> None:
    """The frame has room for a buddy, and its bytes must not change: they are sealed, and being
    written."""
    store, tier, thing = store_with_tier()
    first, second = page_with_zpage_of(rng, 1000), page_with_zpage_of(rng, 1000)
    put(store, thing, 0, first)
    tier.before_write = once(lambda: put(store, thing, 1, second))
    store.reclaimer.clean_some()
    assert frame_of(thing, 0) != frame_of(thing, 1)
    check(store)
    drop_clean_frames(store)
    assert get(store, thing, 0, 2) == first + second
    check(store)


@pytest.mark.parametrize("fails", [False, True])
def test_the_room_of_a_dead_frame_in_flight_is_not_reused_before_it_lands(rng: random.Random, fails: bool) -> None:
    """All of a full RAM is in flight and is trimmed: a put finds no frame, though nothing is alive
    in any of them."""
    store, tier, thing = store_with_tier(budget_frames=2)
    put(store, thing, 0, raw_page(rng), raw_page(rng))
    page = raw_page(rng)
    writer = threading.Thread(target=lambda: put(store, thing, 5, page))
    written: list[bytes] = []

    def trim_and_put() -> None:
        tier.failing_writes = fails
        before = [bytes(tier_view) for tier_view in slots()]
        store.flush(thing, 0, 2)
        writer.start()
        wait_for_a_waiter(store, writer)
        assert [bytes(tier_view) for tier_view in slots()] == before
        written.extend(before)

    def slots() -> list[memoryview]:
        ram = store.frames.ram_view
        return [ram[slot * 4096 : (slot + 1) * 4096] for slot in homes]

    homes = [store.frames.home[frame_of(thing, index)] for index in (0, 1)]
    tier.before_write = once(trim_and_put)
    assert store.reclaimer.clean_some() is not fails
    writer.join(timeout=10)
    assert written and get(store, thing, 5) == page
    assert store.frames.resident == 1 and tier.used_slots == 0
    check(store)


def test_reclaim_while_a_flight_is_in_the_air_takes_other_frames(rng: random.Random) -> None:
    """A put's own short flight, in the middle of a long one of the background."""
    store, tier, thing = store_with_tier(budget_frames=3, below_frames=8)
    pages = [raw_page(rng) for _ in range(3)]
    put(store, thing, 0, *pages[:2])

    def put_and_reclaim() -> None:
        put(store, thing, 2, pages[2])
        assert store.reclaimer.clean_some() is True
        assert store.frames.in_flight == 2

    tier.before_write = once(put_and_reclaim)
    assert store.reclaimer.clean_some() is True
    assert tier.write_sizes == [1, 2]
    drop_clean_frames(store)
    assert get(store, thing, 0, 3) == b"".join(pages)
    check(store)


def test_death_while_a_flight_is_in_the_air(rng: random.Random) -> None:
    """The slots below are half written, and nobody's: the next server has the frames in RAM, with
    room where they had."""
    tier = MemoryTier(8)
    descriptor = new_descriptor()
    store, thing = store_with_image(descriptor, 16, 4, tier)
    pages = [page_with_zpage_of(rng, 1000), raw_page(rng)]
    put(store, thing, 0, *pages)

    class Killed(BaseException):
        pass

    def die() -> None:
        assert store.frames.in_flight == 2
        raise Killed

    tier.before_write = die
    with pytest.raises(Killed):
        store.reclaimer.clean_some()
    successor = MemoryTier(8)
    successor.medium = {1: bytes(4096)}
    store, thing = store_with_image(descriptor, 16, 4, successor)
    check(store)
    assert [store.frames.state[frame_of(thing, index)] for index in (0, 1)] == [State.ACTIVE, State.DIRTY]
    assert tier_of(store).used_slots == 0
    assert get(store, thing, 0, 2) == b"".join(pages)
    os.close(descriptor)


# -- trims of a full store
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trimmed", ["in RAM", "below", "its own"])
def test_a_full_store_with_a_trim_while_a_put_waits(rng: random.Random, trimmed: str) -> None:
    """RAM and the tier are full when the put's write begins, or as good as; the trim makes the room
    that it needs, in RAM or below, or takes away what it is still to write."""
    store, tier, thing = store_with_tier(budget_frames=2, below_frames=3)
    pages = [raw_page(rng) for _ in range(16)]
    for index in range(4):
        put(store, thing, index, pages[index])
    assert store.frames.cold == 2 and store.frames.available == 0 and tier.used_slots == 2
    victim = {"in RAM": 3, "below": 0, "its own": 9}[trimmed]
    tier.before_write = once(lambda: store.flush(thing, victim, 1))
    if trimmed == "its own":
        put(store, thing, 9, pages[9])
        assert get(store, thing, 9) == pages[9]  # it was still under way: the put comes after the trim
    else:
        put(store, thing, 8, pages[8], pages[9])
        assert get(store, thing, victim) == bytes(4096)
        assert get(store, thing, 8, 2) == pages[8] + pages[9]
    for index in {0, 1, 2, 3} - {victim}:
        assert get(store, thing, index) == pages[index]
    check(store)


def test_trims_end_a_full_store(rng: random.Random) -> None:
    """Nothing fits any more; each trim of one page makes room for one, at once, wherever the
    trimmed one was."""
    store, _, thing = store_with_tier(budget_frames=2, below_frames=2)
    model = {index: raw_page(rng) for index in range(4)}
    for index, page in model.items():
        put(store, thing, index, page)
    for step in range(40):
        with pytest.raises(StoreFull):
            put(store, thing, 15, raw_page(rng))
        victim = rng.choice(list(model))
        store.flush(thing, victim, 1)
        del model[victim]
        fresh = rng.choice([index for index in range(15) if index not in model])
        model[fresh] = raw_page(rng)
        put(store, thing, fresh, model[fresh])
        for index, page in model.items():
            assert get(store, thing, index) == page, step
        check(store)


def test_a_trim_in_the_flight_that_was_a_puts_last_hope(rng: random.Random) -> None:
    """The flight fails, for good; but what was trimmed meanwhile is all the room that the put
    needs."""
    store, tier, thing = store_with_tier(budget_frames=2)
    kept, page = raw_page(rng), raw_page(rng)
    put(store, thing, 0, kept, raw_page(rng))
    tier.failing_writes = 100
    tier.before_write = once(lambda: store.flush(thing, 1, 1))
    put(store, thing, 5, page)
    assert get(store, thing, 5) == page and get(store, thing, 0) == kept
    check(store)


# -- the end
# --------------------------------------------------------------------------------------------------


def test_shutdown_in_the_middle_of_writeback(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Background reclaim is in the middle of a write: the tier is closed after that has landed, and
    nothing more is begun."""
    store, tier, thing = store_with_tier(budget_frames=4)
    begun, go_on = threading.Event(), threading.Event()
    said: list[str] = []

    def write_slowly() -> None:
        said.append("write")
        begun.set()
        assert go_on.wait(timeout=10)

    def close() -> None:
        assert store.frames.in_flight == 0, "closed under a flight"
        said.append("close")

    tier.before_write = write_slowly
    monkeypatch.setattr(tier, "close", close)
    store.reclaimer.start()
    pages = [raw_page(rng) for _ in range(4)]
    put(store, thing, 0, *pages)
    assert begun.wait(timeout=10)
    end = threading.Thread(target=store.close)
    end.start()
    while not store.reclaimer.stopped.is_set():
        time.sleep(0.001)
    assert said == ["write"] and end.is_alive()
    go_on.set()
    end.join(timeout=10)
    assert said == ["write", "close"]
    assert get(store, thing, 0, 4) == b"".join(pages)
    check(store)


def test_shutdown_while_background_reclaim_rests_after_a_failure(rng: random.Random) -> None:
    """The rest is cut short: nobody waits for a dead disk to come back."""
    store, tier, thing = store_with_tier(budget_frames=4)
    tier.failing_writes = 100
    store.clock.now = lambda: 0.0  # type: ignore[method-assign]  # the rest never ends by itself
    store.reclaimer.start()
    put(store, thing, 0, *(raw_page(rng) for _ in range(4)))
    while not store.statistics.writeback_errors:
        time.sleep(0.001)
    end = threading.Thread(target=store.close)
    end.start()
    end.join(timeout=1.0)
    assert not end.is_alive()
    check(store)

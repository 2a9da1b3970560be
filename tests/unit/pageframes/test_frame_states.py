"""Frames walk through their states, and no other way; queues are in LRU order."""

import random

import pytest

from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.stores import get, new_object, put, small_store, tier_of
from zcache.control.check import check
from zcache.pageframes import PageFrames, State
from zcache.pageframes.states import ALLOWED
from zcache.pages.entry import decode_zpage
from zcache.pages.tmem import TmemObject
from zcache.store.store import Store


def state_of(store: Store, thing: TmemObject, index: int) -> State:
    return State(store.frames.state[decode_zpage(thing.table.entries[index]).frame])


def test_the_life_of_a_frame(rng: random.Random) -> None:
    store = small_store(budget_frames=2, below_frames=8)
    thing = new_object(store, 10)
    pages = [page_with_zpage_of(rng, 1500) for _ in range(10)]
    put(store, thing, 0, pages[0])
    assert state_of(store, thing, 0) == State.ACTIVE
    put(store, thing, 1, pages[1])
    assert state_of(store, thing, 0) == state_of(store, thing, 1) == State.DIRTY
    store.flush(thing, 1, 1)
    assert state_of(store, thing, 0) == State.ACTIVE
    put(store, thing, 1, pages[1])
    assert store.reclaimer.clean_some()
    assert state_of(store, thing, 0) == State.CLEAN
    put(store, thing, 2, pages[2], pages[3], pages[4], pages[5])  # needs both frames
    assert state_of(store, thing, 0) == State.COLD
    assert store.reclaimer.clean_some()
    assert get(store, thing, 0) == pages[0]
    assert state_of(store, thing, 0) == State.CLEAN  # read back, in the place of another CLEAN one
    store.flush(thing, 0, 10)
    assert store.frames.resident == store.frames.cold == 0 and tier_of(store).used_slots == 0
    check(store)


@pytest.mark.parametrize("old", State)
@pytest.mark.parametrize("new", State)
def test_only_the_transitions_of_the_table(old: State, new: State) -> None:
    frames = PageFrames(1, 1, 4096, 4)
    frames.state[1] = old
    if new in ALLOWED[old]:
        frames.move(1, new)
    else:
        with pytest.raises(AssertionError):
            frames.move(1, new)


def test_the_oldest_frames_leave_first_and_in_one_write(rng: random.Random) -> None:
    store = small_store(budget_frames=8, below_frames=8)
    tier = tier_of(store)
    thing = new_object(store, 16)
    for index in range(8):
        put(store, thing, index, raw_page(rng))
    order = [decode_zpage(thing.table.entries[index]).frame for index in range(8)]
    with store.lock:
        flight = store.flights.start(store.below.places[0], 5)
    assert flight.frames == order[:5] and flight.first_slot == 1
    store.flights.fly(flight)
    assert tier.write_sizes == [5]
    assert [store.frames.below[frame] for frame in order[:5]] == [1, 2, 3, 4, 5]
    check(store)


def test_a_frame_that_was_read_gets_a_second_chance(rng: random.Random) -> None:
    store = small_store(budget_frames=4, below_frames=4)
    thing = new_object(store, 8)
    for index in range(4):
        put(store, thing, index, raw_page(rng))
    get(store, thing, 0)
    with store.lock:
        flight = store.flights.start(store.below.places[0], 2)
    store.flights.fly(flight)
    assert [state_of(store, thing, index) for index in range(4)] == [State.DIRTY, State.CLEAN, State.CLEAN, State.DIRTY]
    check(store)


def test_best_fit_takes_the_fullest_frame_that_fits(rng: random.Random) -> None:
    store = small_store(budget_frames=8)
    thing = new_object(store, 8)
    for index, size in enumerate((3000, 2600, 2200)):  # no two of them fit together
        put(store, thing, index, page_with_zpage_of(rng, size))
    put(store, thing, 3, page_with_zpage_of(rng, 1200))
    frames = [decode_zpage(thing.table.entries[index]).frame for index in range(4)]
    assert frames[3] == frames[1]
    put(store, thing, 4, page_with_zpage_of(rng, 800))
    assert decode_zpage(thing.table.entries[4]).frame == frames[0]
    check(store)


def test_a_put_succeeds_in_a_partly_filled_frame_when_no_frame_is_free(rng: random.Random) -> None:
    store = small_store(budget_frames=2)
    thing = new_object(store, 4)
    put(store, thing, 0, page_with_zpage_of(rng, 2500))
    put(store, thing, 1, page_with_zpage_of(rng, 2500))
    assert not store.frames.available
    put(store, thing, 2, page_with_zpage_of(rng, 1000), page_with_zpage_of(rng, 1000))
    assert store.frames.resident == 2 and store.statistics.stored_pages == 3 + 1
    check(store)


def test_the_capacity_that_is_promised_is_there_when_nothing_compresses(rng: random.Random) -> None:
    """size = budget + below: every page of the device can be written with noise, again and again,
    in any order."""
    store = small_store(budget_frames=6, below_frames=26)
    thing = new_object(store, 32)
    model = {}
    for _ in range(2000):
        index = rng.randrange(32)
        model[index] = raw_page(rng) if rng.random() < 0.8 else page_with_zpage_of(rng, rng.randrange(50, 4000))
        put(store, thing, index, model[index])
        if rng.random() < 0.3:
            get(store, thing, rng.randrange(32))
    for index, page in model.items():
        assert get(store, thing, index) == page
    check(store)

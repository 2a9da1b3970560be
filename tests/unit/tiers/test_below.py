"""The row of tiers: whose slot it is, where to write next, and when there is no hope."""

import pytest

from tests.support.clock import FakeClock
from tests.support.tiers import MemoryTier
from zcache.errors import Imbalance
from zcache.tiers.backoff import LAST_REST_SECONDS, PATIENCE_SECONDS
from zcache.tiers.below import Below, rest_seconds

COUNTS = (3, 2, 4)


def row(*counts: int) -> Below:
    clock = FakeClock()
    return Below([MemoryTier(count, clock=clock) for count in counts], clock)


def fail(below: Below, number: int, seconds: float = 0.0) -> None:
    """A write to it failed, and that is so long ago."""
    place = below.places[number]
    place.health.writing.failed("EIO")
    assert isinstance(place.tier, MemoryTier)
    place.tier.clock.seconds += seconds


def test_slots_are_numbered_through() -> None:
    below = row(*COUNTS)
    assert below.slot_count == 9 and below.firsts == {1, 4, 6}
    assert [below.places.index(below.place_of(slot)) for slot in range(1, 10)] == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    for slot in range(1, 10):
        below.take_over(slot, 1)
        assert below.used_slots == slot
        with pytest.raises(Imbalance):
            below.take_over(slot, 1)
    with pytest.raises(Imbalance):
        below.take_over(10, 1)
    for slot in range(1, 10):
        below.release(slot)
    below.release(0)
    assert below.used_slots == 0
    with pytest.raises(AssertionError):
        below.release(10)


def test_nothing_below() -> None:
    below = row()
    assert not (below.has_room() or below.begin_try() or below.failing() or below.in_trouble() or below.is_hopeless())
    assert below.used_slots == below.slot_count == rest_seconds(below.places) == 0 and not below.is_short(6)
    below.release(0)


def test_the_next_write_goes_to_the_first_with_room_that_may_be_tried() -> None:
    below = row(*COUNTS)
    first, second, third = below.places
    assert below.begin_try() is first
    fail(below, 0)
    assert below.begin_try() is second
    second.reserve(2)
    assert below.begin_try() is third
    first.health.writing.rest_seconds()
    assert isinstance(first.tier, MemoryTier)
    first.tier.clock.seconds += LAST_REST_SECONDS
    assert below.begin_try() is first, "its rest is over"
    assert below.begin_try() is third, "it is being tried"


def test_who_waits_waits_for_those_that_can_be_written_to() -> None:
    below = row(*COUNTS)
    fail(below, 0)
    assert below.failing() == [] and below.in_trouble() == below.places[:1] and rest_seconds(below.in_trouble()) > 0
    below.places[1].reserve(2)
    below.places[2].reserve(4)
    assert below.failing() == below.places[:1]
    below.places[1].flights = 1
    assert below.failing() == [], "what is in the air to a tier that is well is waited for"
    below.places[1].flights = 0
    assert not below.is_hopeless()
    fail(below, 0, PATIENCE_SECONDS)
    assert below.is_hopeless()
    for number in (1, 2):
        fail(below, number, PATIENCE_SECONDS)
    assert not below.is_hopeless(), "nowhere else can room be made"
    assert below.failing() == below.places[:1]


def test_room_in_a_tier_that_fails_is_none_while_another_works() -> None:
    below = row(64, 64)
    below.places[1].reserve(64)
    assert not below.is_short(6)
    fail(below, 0)
    assert below.is_short(6)
    fail(below, 1)
    assert not below.is_short(6)

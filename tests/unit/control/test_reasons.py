"""Frames below that could not be read: what a disk could not give is known until it does, what
engines could not, until these are within reach."""

import random

import pytest

from tests.support.clock import FakeClock
from tests.support.pages import raw_page
from tests.support.stores import drop_clean_frames, frame_of, get, new_object, put, small_store
from tests.support.tiers import MemoryTier, WarmMemoryTier
from zcache.control.reasons import reasons
from zcache.errors import PageDamaged

ALWAYS = 1 << 30


class Bench:
    """Four raw pages, one a frame, all below."""

    def __init__(self, tier: MemoryTier, rng: random.Random) -> None:
        self.tier = tier
        self.store = small_store(4, tiers=[tier], allocator="zbud")
        self.thing = new_object(self.store, 4)
        put(self.store, self.thing, 0, *(raw_page(rng) for _ in range(4)))
        while self.store.reclaimer.clean_some():
            pass
        drop_clean_frames(self.store)

    def fails(self, *indexes: int) -> None:
        for index in indexes:
            with pytest.raises(PageDamaged):
                get(self.store, self.thing, index)

    def said(self) -> list[str]:
        return reasons(self.store, 0)


def test_what_engines_could_not_give_is_forgotten_once_they_are_within_reach(rng: random.Random) -> None:
    """Nobody has to ask for it, which nobody does on an idle machine."""
    tier = WarmMemoryTier(8, clock=FakeClock())
    bench = Bench(tier, rng)
    tier.failing_reads = ALWAYS
    bench.fails(0, 1, 2)
    (reason,) = bench.said()
    assert reason.startswith("3 frames below could not be read: reads of their pages fail (the last: EIO")
    assert bench.said() == [reason], "for as long as they are not"
    tier.is_reachable = True
    assert bench.said() == []
    tier.is_reachable = False
    assert bench.said() == [], "and they are not known to be unreadable by that"
    bench.fails(1)
    assert bench.said()[0].startswith("1 frame below could not be read")


def test_what_engines_gave_and_was_wrong_is_known_until_it_is_right(rng: random.Random) -> None:
    tier = WarmMemoryTier(8, clock=FakeClock())
    bench = Bench(tier, rng)
    tier.is_reachable = True
    tier.flip_bit(bench.store.frames.below[frame_of(bench.thing, 0)])
    bench.fails(0)
    assert bench.said() == ["1 frame below failed their seal: reads of their pages fail"]


def test_a_bad_spot_of_a_disk_is_known_while_the_rest_is_read(rng: random.Random) -> None:
    tier = MemoryTier(8, clock=FakeClock())
    bench = Bench(tier, rng)
    tier.bad_slots = {bench.store.frames.below[frame_of(bench.thing, 0)]}
    bench.fails(0)
    get(bench.store, bench.thing, 1)
    assert bench.said()[0].startswith("1 frame below could not be read")
    tier.bad_slots.clear()
    get(bench.store, bench.thing, 0)
    assert bench.said() == []

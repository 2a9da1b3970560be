"""Frames are read along while that pays, and not when it does not."""

import errno
import random

import pytest

from tests.support.pages import page_with_zpage_of
from tests.support.stores import drop_clean_frames, get, new_object, put, small_store, tier_of
from tests.support.tiers import MemoryTier
from zcache.control.check import check
from zcache.fetch.readahead import MAX_WINDOW, PROBE_EVERY, WATCHED

PAGES = 1600


class ColdStore:
    """`PAGES` pages, all of them below, and a budget of a tenth; `transfers` counts reads of the
    tier."""

    def __init__(self, rng: random.Random, allocator: str) -> None:
        frame_pages = {"zbud": 1, "log": 27}[allocator]
        self.store = small_store(PAGES // frame_pages // 8 + 8, PAGES, allocator=allocator)
        self.thing = new_object(self.store, PAGES)
        self.pages = [page_with_zpage_of(rng, 2400) for _ in range(PAGES)]
        for index, page in enumerate(self.pages):
            put(self.store, self.thing, index, page)
        while self.store.reclaimer.clean_some():
            pass
        drop_clean_frames(self.store)
        assert self.store.frames.cold and not self.store.frames.resident
        self.transfers = 0
        tier_of(self.store).before_read = self._count

    def _count(self) -> None:
        self.transfers += 1

    def read(self, index: int) -> None:
        assert get(self.store, self.thing, index) == self.pages[index]


@pytest.mark.parametrize("allocator", ["zbud", "log"])
def test_who_reads_in_order_finds_the_next_frames_in_ram(rng: random.Random, allocator: str) -> None:
    cold = ColdStore(rng, allocator)
    frames = cold.store.frames.cold
    for index in range(PAGES):
        cold.read(index)
    statistics = cold.store.statistics
    assert statistics.fetched_frames + statistics.readahead_frames == frames
    assert statistics.readahead_hits > statistics.readahead_frames * 0.6
    assert cold.store.readahead_window >= (MAX_WINDOW if allocator == "zbud" else 2)
    assert cold.transfers == statistics.fetched_frames < frames * 0.6
    check(cold.store)


def test_who_reads_here_and_there_soon_reads_nothing_along(rng: random.Random) -> None:
    cold = ColdStore(rng, "zbud")
    order = rng.sample(range(0, PAGES, 2), PAGES // 2)
    for index in order:
        cold.read(index)
    statistics = cold.store.statistics
    assert cold.store.readahead_window == 0
    # One a fetch until the first 16 are known to be of no use, and then one in `PROBE_EVERY`.
    assert statistics.readahead_frames <= WATCHED + 16 + len(order) // PROBE_EVERY + 1
    check(cold.store)


def test_it_is_tried_again_when_reads_come_in_order(rng: random.Random) -> None:
    cold = ColdStore(rng, "zbud")
    cold.store.fetcher.readahead.window = 0  # type: ignore[union-attr]
    for _ in range(3):
        for index in range(PAGES):
            cold.read(index)
    assert cold.store.readahead_window == MAX_WINDOW


def test_a_frame_that_cannot_be_read_along_fails_nobody(rng: random.Random) -> None:
    cold = ColdStore(rng, "zbud")
    store, thing = cold.store, cold.thing
    tier = tier_of(store)
    assert isinstance(tier, MemoryTier)
    bad = store.frames.below[thing.table.entries[11] & 0x7FFFFFFF]
    read = tier.read

    def fails_at_one(first_slot: int, frames: list[memoryview]) -> None:
        if first_slot <= bad < first_slot + len(frames):
            raise OSError(errno.EIO, "Input/output error")
        read(first_slot, frames)

    tier_of(store).read = fails_at_one  # type: ignore[method-assign, assignment]
    cold.read(10)
    assert store.statistics.fetch_errors == 0 and not store.damage.frames
    assert store.statistics.fetch_retries == 0  # of what was asked for, it was the first
    check(store)


def test_nor_costs_it_patience(rng: random.Random) -> None:
    """A transfer that took long, and failed for the frame that nobody had asked for."""
    cold = ColdStore(rng, "zbud")
    store, thing = cold.store, cold.thing
    tier_of(store).bad_slots = {store.frames.below[thing.table.entries[11] & 0x7FFFFFFF]}
    tier_of(store).transfer_seconds = 10.0
    cold.read(10)
    assert cold.transfers == 2
    check(store)


def test_a_frame_that_was_changed_below_is_not_read_along(rng: random.Random) -> None:
    cold = ColdStore(rng, "zbud")
    store, thing = cold.store, cold.thing
    tier_of(store).flip_bit(store.frames.below[thing.table.entries[11] & 0x7FFFFFFF], 100)
    cold.read(10)
    assert store.statistics.checksum_errors == store.statistics.fetch_retries == store.statistics.readahead_frames == 0
    check(store)

"""An image that contradicts itself is believed in nothing: who would know which half is right?

The images are made by a store, and then changed by hand. That a whole image is gone on with,
wherever the last server died, is tests/property/test_death_and_rebuild.py.
"""

import os
import random
import tracemalloc
from collections.abc import Iterator

import pytest

from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.stores import get, parse, put, store_with_image
from tests.support.tiers import MemoryTier
from zcache.control.check import check
from zcache.errors import BadInput, Imbalance
from zcache.image.image import Geometry, Image, new_descriptor
from zcache.pageframes.queues import Queue
from zcache.pageframes.slots import slots_of
from zcache.pages.entry import CODEC_SHIFT, FRAME_MASK
from zcache.pages.tmem import Kind, TmemObject
from zcache.server.rebuild import rebuild
from zcache.store.store import Store

PAGES = 12
BUDGET_FRAMES = 4


class Left:
    """What a server left behind: raw pages, some of them below."""

    def __init__(self, rng: random.Random) -> None:
        self.descriptor = new_descriptor()
        self.tier = MemoryTier(16)
        self.store, thing = self.taken_over()
        put(self.store, thing, 0, *(raw_page(rng) for _ in range(PAGES)))
        self.entries = thing.table.entries
        self.below = self.store.frames.below

    def taken_over(self) -> tuple[Store, TmemObject]:
        return store_with_image(self.descriptor, PAGES, BUDGET_FRAMES, self.tier)

    def frames_below(self) -> list[int]:
        return [frame for frame in range(1, self.store.frames.frame_count + 1) if self.below[frame]]

    def is_refused(self, why: str) -> None:
        self.tier = MemoryTier(16)
        with pytest.raises(Imbalance, match=why):
            self.taken_over()


@pytest.fixture
def left(rng: random.Random) -> Iterator[Left]:
    left = Left(rng)
    assert len(left.frames_below()) > 2
    yield left
    os.close(left.descriptor)


def test_it_is_gone_on_with_as_it_was(left: Left) -> None:
    medium, left.tier = left.tier.medium, MemoryTier(16)
    left.tier.medium = medium
    store, thing = left.taken_over()
    check(store)
    assert len(get(store, thing, 0, PAGES)) == PAGES * 4096


def test_a_page_in_a_frame_that_is_none(left: Left) -> None:
    left.entries[3] = left.entries[3] & ~FRAME_MASK | left.store.frames.frame_count + 1
    left.is_refused("an entry names frame")


def test_a_page_in_frame_zero(left: Left) -> None:
    left.entries[3] &= ~FRAME_MASK
    left.is_refused("an entry names frame 0")


def test_a_page_of_a_codec_that_is_none(left: Left) -> None:
    left.entries[3] |= 7 << CODEC_SHIFT
    left.is_refused("a codec that is none")


def test_two_pages_in_one_place(left: Left) -> None:
    left.entries[3] = left.entries[4]
    left.is_refused("holds a zpage of")


def test_two_frames_in_one_slot_below(left: Left) -> None:
    one, other, *_ = left.frames_below()
    left.below[one] = left.below[other]
    left.is_refused("is another's")


def test_a_frame_in_a_slot_that_is_not_there(left: Left) -> None:
    left.below[left.frames_below()[0]] = left.tier.slot_count + 1
    left.is_refused("is not there")


def test_a_path_that_the_image_has_no_room_for() -> None:
    """Each é is six bytes there."""
    geometry = Geometry(PAGES, slots_of(PAGES), PAGES, 4096, "no", "zbud", "/é" * 600)
    with pytest.raises(BadInput, match="give a shorter path"):
        Image.open(new_descriptor(), geometry)


def test_a_frame_below_where_there_is_nothing_below(rng: random.Random) -> None:
    descriptor = new_descriptor()

    def taken_over() -> tuple[Store, TmemObject]:
        geometry = Geometry(PAGES, slots_of(PAGES), PAGES, 4096, "no", "zbud", None)
        image = Image.open(descriptor, geometry)
        store = Store(budget_bytes=PAGES * 4096, codec=parse("lz4"), allocator="zbud", image=image)
        entries = image.section("entries")
        return store, store.tmem.new_object(store.tmem.new_pool(Kind.PERSISTENT), 0, PAGES, entries)

    store, thing = taken_over()
    put(store, thing, 0, raw_page(rng))
    store.frames.below[thing.table.entries[0] & FRAME_MASK] = 1
    with pytest.raises(Imbalance, match="there is nothing below"):
        rebuild(*taken_over())
    os.close(descriptor)


def test_a_large_image_is_taken_over_in_little_memory(rng: random.Random) -> None:
    """A successor begins when memory is short: no list of all frames is made, in RAM or below."""
    pages = 30_000
    descriptor = new_descriptor()
    tier = MemoryTier(pages)
    left, thing = store_with_image(descriptor, pages, pages // 2, tier)
    one, other = page_with_zpage_of(rng, 3000), raw_page(rng)
    for first in range(0, pages, 64):
        put(left, thing, first, *([one, other] * 32)[: pages - first])
    successors_tier = MemoryTier(pages)
    successors_tier.medium = tier.medium
    tracemalloc.start()
    try:
        store, again = store_with_image(descriptor, pages, pages // 2, successors_tier)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    check(store)
    assert get(store, again, pages - 2, 2) == get(left, thing, pages - 2, 2)
    births = [store.frames.birth[frame] for frame in frames_waiting(store)]
    assert births == sorted(births) and len(births) > 10_000
    assert peak_bytes < 35 * pages, peak_bytes  # the store's own tables are 15 of them
    os.close(descriptor)


def frames_waiting(store: Store) -> list[int]:
    return [store.frames.frame_of[slot] for slot in store.frames.queues.slots_waiting(Queue.PERSISTENT)]

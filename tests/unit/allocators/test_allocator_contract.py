"""The contract of allocators (`zcache.allocators`), which each of them keeps."""

import itertools
import random
from collections.abc import Sequence

import pytest

from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.stores import get, new_object, put, small_store
from tests.support.tiers import MemoryTier
from zcache.allocators import Allocator
from zcache.allocators.choice import ALLOCATORS
from zcache.control.check import check
from zcache.errors import StoreFull
from zcache.pageframes import PageFrames, State
from zcache.pageframes.transitions import abort, isolate_oldest, land, oldest_ephemeral
from zcache.pages.codec import LZ4
from zcache.pages.entry import OWNER_INDEX_BITS, SAME_FILLED, decode_zpage, zpage_tag
from zcache.pages.tmem import Kind
from zcache.store.store import Store

PAGES = 400


class Bench:
    """An allocator over frames of its own, with a page table for each kind, and the bytes that
    ought to be in place."""

    def __init__(self, name: str, frame_count: int, rng: random.Random) -> None:
        chosen = ALLOCATORS[name]
        self.rng = rng
        self.frames = PageFrames(frame_count, 0, chosen.frame_bytes, 4, None, chosen.reserve_frames)
        self.tables = [memoryview(bytearray(8 * PAGES)).cast("Q") for _ in Kind]
        self.allocator: Allocator = chosen(self.frames, lambda _slot: None, lambda handle: self.tables[handle])
        self.bodies: list[dict[int, bytes]] = [{} for _ in Kind]

    def place(self, kind: Kind, first: int, sizes: Sequence[int]) -> int:
        """Zpages of pages that have none; how many found room."""
        bodies = [self.rng.randbytes(size) for size in sizes]
        tags = [zpage_tag(LZ4, len(body)) if body else SAME_FILLED | 7 for body in bodies]
        entries: list[int] = []
        done = self.allocator.place(kind, b"".join(bodies), tags, entries, (kind << OWNER_INDEX_BITS) + first)
        assert done == len(entries)
        for index, entry in enumerate(entries):
            self.tables[kind][first + index] = entry
            if bodies[index]:
                self.bodies[kind][first + index] = bodies[index]
        return done

    def release(self, kind: Kind, *pages: int) -> None:
        entries = [self.tables[kind][page] for page in pages]
        for page in pages:
            self.tables[kind][page] = 0
            del self.bodies[kind][page]
        self.allocator.release(entries)

    def frame_of(self, kind: Kind, page: int) -> int:
        return decode_zpage(self.tables[kind][page]).frame

    def frames_in_use(self, kind: Kind) -> set[int]:
        return {self.frame_of(kind, page) for page in self.bodies[kind]}

    def is_intact(self) -> None:
        """Every zpage is where its entry says, none overlaps another, and no frame has both
        kinds."""
        taken: dict[int, list[tuple[int, int]]] = {}
        for kind in Kind:
            for page, body in self.bodies[kind].items():
                zpage = decode_zpage(self.tables[kind][page])
                start = self.frames.home[zpage.frame] * self.frames.frame_bytes + zpage.offset
                assert self.frames.ram[start : start + zpage.length] == body
                assert zpage.offset + zpage.length <= self.frames.frame_bytes
                taken.setdefault(zpage.frame, []).append((zpage.offset, zpage.offset + zpage.length))
        for spans in taken.values():
            spans.sort()
            assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans))
        assert not self.frames_in_use(Kind.PERSISTENT) & self.frames_in_use(Kind.EPHEMERAL)
        assert self.frames.resident == len(taken), "frames are held for nobody"


@pytest.fixture(params=[*ALLOCATORS])
def bench(request: pytest.FixtureRequest, rng: random.Random) -> Bench:
    return Bench(request.param, 64, rng)


def test_zpages_are_where_their_entries_say_until_they_are_released(bench: Bench, rng: random.Random) -> None:
    for _ in range(400):
        kind = rng.choice([*Kind])
        held = bench.bodies[kind]
        if rng.random() < 0.5 and held:
            bench.release(kind, *rng.sample(sorted(held), rng.randrange(1, min(len(held), 9) + 1)))
        else:
            first, count = rng.randrange(PAGES - 8), rng.randrange(1, 9)
            if held.keys().isdisjoint(range(first, first + count)):
                bench.place(kind, first, [rng.choice([0, 8, 700, 1500, 4096]) for _ in range(count)])
        bench.is_intact()


def test_what_finds_no_room_is_placed_once_there_is_some(bench: Bench) -> None:
    """A request of raw pages that is larger than all frames stops where they end, and goes on from
    there."""
    data = bench.rng.randbytes(17 * 64 * 4096)
    tags, entries = [zpage_tag(0, 4096)] * (17 * 64), list[int]()
    done = bench.allocator.place(Kind.PERSISTENT, data, tags, entries, 0)
    assert 0 < done == len(entries) < len(tags)
    assert bench.allocator.place(Kind.PERSISTENT, data, tags, entries, 0) == done == len(entries)
    frame = decode_zpage(entries[0]).frame
    dying = [entry for entry in entries if decode_zpage(entry).frame == frame]
    bench.allocator.release(dying)
    assert done < bench.allocator.place(Kind.PERSISTENT, data, tags, entries, 0) <= done + len(dying)
    assert decode_zpage(entries[done]).frame != 0


def test_one_zpage_is_placed_like_many(bench: Bench) -> None:
    body = bench.rng.randbytes(1000)
    placed = 0
    while entry := bench.allocator.place_one(Kind.PERSISTENT, body, zpage_tag(LZ4, 1000), 0):
        zpage = decode_zpage(entry)
        start = bench.frames.home[zpage.frame] * bench.frames.frame_bytes + zpage.offset
        assert bench.frames.ram[start : start + 1000] == body and (zpage.length, zpage.codec) == (1000, LZ4)
        placed += 1
    assert placed >= 2 * (64 - bench.allocator.reserve_frames) and not bench.frames.available


def test_a_frame_goes_back_with_its_last_zpage(bench: Bench) -> None:
    assert bench.place(Kind.PERSISTENT, 0, [1500] * 100) == 100
    for page in range(100):
        bench.release(Kind.PERSISTENT, page)
        bench.is_intact()
    assert bench.frames.free_slot_count == 64 and bench.frames.queue_length == [0, 0, 0]


def test_a_frame_that_is_on_its_way_out_takes_no_more(bench: Bench) -> None:
    """And is free only when its flight has ended, whatever became of its zpages."""
    bench.place(Kind.PERSISTENT, 0, [1000])
    frame = bench.frame_of(Kind.PERSISTENT, 0)
    assert isolate_oldest(bench.frames, 1, bench.allocator.retire) == [frame]
    bench.place(Kind.PERSISTENT, 1, [1000])
    assert bench.frame_of(Kind.PERSISTENT, 1) != frame
    bench.release(Kind.PERSISTENT, 0)
    assert bench.frames.state[frame] == State.WRITEBACK
    land(bench.frames, frame, 0, 1, bytes(4))
    assert bench.frames.state[frame] == State.FREE
    bench.is_intact()


def test_a_frame_that_could_not_leave_is_as_it_was(bench: Bench) -> None:
    bench.place(Kind.PERSISTENT, 0, [1000, 900])
    frame = bench.frame_of(Kind.PERSISTENT, 0)
    isolate_oldest(bench.frames, 1, bench.allocator.retire)
    bench.release(Kind.PERSISTENT, 1)
    abort(bench.frames, frame, bench.allocator.restore)
    bench.place(Kind.PERSISTENT, 2, [1000] * 90)
    bench.is_intact()


def test_an_evicted_frame_says_whose_pages_it_had(bench: Bench, rng: random.Random) -> None:
    for first in (0, 40, 80, 120):
        bench.place(Kind.EPHEMERAL, first, [rng.choice([0, 1500]) for _ in range(30)])
    gone = rng.sample(sorted(bench.bodies[Kind.EPHEMERAL]), 20)
    bench.release(Kind.EPHEMERAL, *gone)
    while frame := oldest_ephemeral(bench.frames):
        there = {page for page in bench.bodies[Kind.EPHEMERAL] if bench.frame_of(Kind.EPHEMERAL, page) == frame}
        owners = bench.allocator.evict(frame)
        assert {owner - (Kind.EPHEMERAL << OWNER_INDEX_BITS) for owner in owners} == there
        for page in there:
            bench.tables[Kind.EPHEMERAL][page] = 0
            del bench.bodies[Kind.EPHEMERAL][page]
        bench.is_intact()
    assert not bench.bodies[Kind.EPHEMERAL]


# -- the promise
# --------------------------------------------------------------------------------------------------


def store_that_just_suffices(name: str, page_count: int, has_tier: bool) -> Store:
    chosen = ALLOCATORS[name]
    frames = chosen.frames_for(page_count)
    if not has_tier:
        return small_store(frames, allocator=name)
    budget_frames = chosen.min_budget_frames
    tier = MemoryTier(max(frames - budget_frames, 1), chosen.frame_bytes)
    return small_store(budget_frames, tiers=[tier], allocator=name)


@pytest.mark.parametrize("has_tier", [False, True])
@pytest.mark.parametrize("sizes", [[4096], [4096, 4000], [3280, 3300], [2750, 4032], [8, 4096], [1366, 2048, 4096]])
@pytest.mark.parametrize("name", [*ALLOCATORS])
def test_as_many_frames_as_are_promised_suffice(
    rng: random.Random, name: str, sizes: list[int], has_tier: bool
) -> None:
    """Pages of sizes that fill frames badly are overwritten and trimmed at random: no put fails,
    and none is wrong."""
    page_count = 600
    store = store_that_just_suffices(name, page_count, has_tier)
    thing = new_object(store, page_count)
    some = [raw_page(rng) if size >= 4000 else page_with_zpage_of(rng, size) for size in sizes for _ in range(8)]
    model: dict[int, bytes] = {}
    for turn in range(1500):
        first, count = rng.randrange(page_count), rng.choice([1, 1, 1, 2, 5, 30])
        count = min(count, page_count - first)
        if turn > 700 and rng.random() < 0.2:
            store.flush(thing, first, count)
            for page in range(first, first + count):
                model.pop(page, None)
            continue
        pages = [turn.to_bytes(4, "little") + rng.choice(some)[4:] for _ in range(count)]
        put(store, thing, first, *pages)
        model |= dict(enumerate(pages, first))
        if rng.random() < 0.05:
            store.reclaimer.clean_some()
    for page, wanted in model.items():
        assert get(store, thing, page) == wanted
    check(store)
    store.flush(thing, 0, page_count)
    assert not store.frames.resident and not store.frames.cold
    check(store)


@pytest.mark.parametrize("name", [*ALLOCATORS])
def test_a_store_that_is_too_small_says_so_and_comes_to_an_end(rng: random.Random, name: str) -> None:
    """Packing and writing back never go round in a circle."""
    chosen = ALLOCATORS[name]
    tier = MemoryTier(3, chosen.frame_bytes)
    store = small_store(chosen.min_budget_frames, tiers=[tier], allocator=name)
    thing = new_object(store, 1000)
    failed = 0
    for _ in range(1500):
        try:
            page = raw_page(rng) if rng.random() < 0.5 else page_with_zpage_of(rng, 3000)
            put(store, thing, rng.randrange(1000), page)
        except StoreFull:
            failed += 1
    assert failed
    check(store)

"""Stores for tests, and shorthands to talk to them in bytes."""

import functools
import os
import random
import threading
import time
from collections.abc import Callable, Sequence

from tests.support.clock import FakeClock
from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.seals import new_seal
from tests.support.tiers import MemoryTier
from zcache.allocators.choice import ALLOCATORS
from zcache.budget.budget import Budget
from zcache.control.settings import Settings
from zcache.image.image import Geometry, Image
from zcache.linux.kernel_page import KERNEL_PAGE_BYTES
from zcache.page_loop import PageLoop
from zcache.page_loop.choice import PAGE_LOOP
from zcache.pageframes import State
from zcache.pageframes.slots import slots_of
from zcache.pageframes.transitions import drop_oldest_clean
from zcache.pages.codec import parse_codec
from zcache.pages.entry import decode_zpage
from zcache.pages.tmem import Kind, TmemObject
from zcache.server.rebuild import rebuild
from zcache.store.store import Store
from zcache.tiers.health import Health

PAGE_BYTES = 4096

parse = functools.cache(parse_codec)  # a codec's contexts take memory: the same for all stores


#: What `encrypt=` is where a test does not say: tests/fault runs with either.
default_encrypt = "no"
#: The same for `allocator=`.
default_allocator = "zbud"


def small_store(
    budget_frames: int = 8,
    below_frames: int = 0,
    codec: str = "lz4",
    clock: FakeClock | None = None,
    tiers: Sequence[MemoryTier] = (),
    encrypt: str | None = None,
    allocator: str | None = None,
    recompress: str | None = None,
    admit: str = "always",
    loop: PageLoop = PAGE_LOOP,
) -> Store:
    """A store without threads: background reclaim happens when the test calls
    `store.reclaimer.clean_some()`, and time passes when somebody waits for it. Over `tiers`, or one
    that is made with `below_frames`."""
    clock = clock or (tiers[0].clock if tiers else FakeClock())
    allocator = allocator or default_allocator
    frame_bytes = ALLOCATORS[allocator].frame_bytes
    if below_frames:
        tiers = [MemoryTier(below_frames, frame_bytes, clock)]
    return Store(
        budget_bytes=budget_frames * frame_bytes,
        codec=parse(codec),
        allocator=allocator,
        recompress=parse(recompress) if recompress else None,
        admit=admit,
        loop=loop,
        tiers=tiers,
        seal=new_seal(encrypt or default_encrypt, frame_bytes=frame_bytes),
        clock=clock,
    )


def store_with_image(
    descriptor: int,
    page_count: int,
    budget_frames: int,
    tier: MemoryTier | Sequence[MemoryTier],
    encrypt: str = "no",
    codec: str = "lz4",
    allocator: str = "zbud",
    recompress: str | None = None,
    page_bytes: int = KERNEL_PAGE_BYTES,
    loop: PageLoop = PAGE_LOOP,
) -> tuple[Store, TmemObject]:
    """A store over an image, and its object: made in an empty memfd, or taken over from whoever had
    it before. `page_bytes`: as on a kernel with such pages."""
    tiers = [tier] if isinstance(tier, MemoryTier) else tier
    frame_count = budget_frames + sum(tier.slot_count for tier in tiers)
    frame_bytes = ALLOCATORS[allocator].frame_bytes
    geometry = Geometry(page_count, slots_of(budget_frames), frame_count, frame_bytes, encrypt, allocator, None)
    empty = not os.fstat(descriptor).st_size
    image = Image.open(descriptor, geometry, page_bytes)
    store = Store(
        budget_bytes=budget_frames * frame_bytes,
        codec=parse(codec),
        allocator=allocator,
        recompress=parse(recompress) if recompress else None,
        tiers=tiers,
        seal=new_seal(encrypt, image.secret, frame_bytes),
        image=image,
        loop=loop,
        clock=tiers[0].clock,
    )
    pool = store.tmem.new_pool(Kind.PERSISTENT)
    thing = store.tmem.new_object(pool, 0, page_count, image.section("entries"))
    if not empty:
        rebuild(store, thing)
    return store, thing


def new_object(store: Store, page_count: int, kind: Kind = Kind.PERSISTENT) -> TmemObject:
    """An object in a pool of its own."""
    return store.tmem.new_object(store.tmem.new_pool(kind), 0, page_count)


def put(store: Store, thing: TmemObject, first: int, *pages: bytes) -> None:
    store.put(thing, first, memoryview(b"".join(pages)))


def get(store: Store, thing: TmemObject, first: int, count: int = 1) -> bytes:
    out = bytearray(count * PAGE_BYTES)
    with memoryview(out) as view:
        store.get(thing, first, view)
    return bytes(out)


def is_miss(store: Store, thing: TmemObject, index: int) -> bool:
    with memoryview(bytearray(PAGE_BYTES)) as view:
        return store.get(thing, index, view) == 1


def store_with_tier(budget_frames: int = 4, below_frames: int = 8) -> tuple[Store, MemoryTier, TmemObject]:
    store = small_store(budget_frames, below_frames)
    return store, tier_of(store), new_object(store, 16)


def tier_of(store: Store) -> MemoryTier:
    """The only one."""
    (place,) = store.below.places
    assert isinstance(place.tier, MemoryTier)
    return place.tier


def health_of(store: Store) -> Health:
    """Of the only tier."""
    (place,) = store.below.places
    return place.health


def once(action: Callable[[], None]) -> Callable[[], None]:
    """The action at the first call, nothing after that."""
    pending = [action]

    def act() -> None:
        if pending:
            pending.pop()()

    return act


def make_cold(store: Store, thing: TmemObject, rng: random.Random) -> bytes:
    """Page 0 is put and pushed below; returns it."""
    page = page_with_zpage_of(rng, 1000)
    put(store, thing, 0, page)
    store.reclaimer.clean_some()
    put(store, thing, 8, *(raw_page(rng) for _ in range(4)))
    assert store.frames.state[decode_zpage(thing.table.entries[0]).frame] == State.COLD
    return page


def settings_of(store: Store, min_frames: int = 1) -> Settings:
    """What can be changed of it."""
    budget = Budget(store.frames, store.reclaimer, store.lock, store.statistics, min_frames)
    return Settings(store, budget, None)


def drop_clean_frames(store: Store) -> None:
    """All frames that are below are there only, from here on."""
    while drop_oldest_clean(store.frames):
        pass


def make_frame_light(store: Store, thing: TmemObject, rng: random.Random, alive: tuple[int, ...]) -> dict[int, bytes]:
    """With allocator=log: pages 0 to 49 are put into one frame, that is written below and leaves
    RAM, and all but those that stay alive in it are put again; returns what all of them are."""
    pages = {index: page_with_zpage_of(rng, 1200) for index in range(50)}
    for index, page in pages.items():
        put(store, thing, index, page)
    frame = frame_of(thing, 0)
    assert all(frame_of(thing, index) == frame for index in pages)
    put(store, thing, 100, *(page_with_zpage_of(rng, 1200) for _ in range(60)))
    while store.reclaimer.clean_some():
        pass
    drop_clean_frames(store)
    store.flush(thing, 100, 60)  # some were in that frame, too
    for index in pages.keys() - set(alive):
        pages[index] = page_with_zpage_of(rng, 1100)
        put(store, thing, index, pages[index])
    assert store.frames.live[frame] == len(alive)
    return pages


def frame_of(thing: TmemObject, index: int) -> int:
    """The frame that a page's zpage is in."""
    return decode_zpage(thing.table.entries[index]).frame


def wait_for_a_waiter(store: Store, thread: threading.Thread) -> None:
    """Until a thread waits for a flight to land."""
    while not store.reclaimer.landed._waiters:  # type: ignore[attr-defined]  # noqa: SLF001
        assert thread.is_alive(), "it did not wait"
        time.sleep(0.001)

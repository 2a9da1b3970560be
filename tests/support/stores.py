"""Stores for tests, and shorthands to talk to them in bytes."""

import os

from tests.support.clock import FakeClock
from tests.support.tiers import MemoryTier
from zcache.codec import parse_codec
from zcache.image import Geometry, Image
from zcache.pageframes.frames import slots_of
from zcache.rebuild import rebuild
from zcache.store import Store
from zcache.tmem import Kind, TmemObject

PAGE_BYTES = 4096


def small_store(
    budget_frames: int = 8, below_frames: int = 0, codec: str = "lz4", clock: FakeClock | None = None
) -> Store:
    """A store without threads: background reclaim happens when the test calls `store.reclaimer.clean_some()`, and time
    passes when somebody waits for it."""
    clock = clock or FakeClock()
    tier = MemoryTier(below_frames, clock=clock) if below_frames else None
    return Store(budget_bytes=budget_frames * PAGE_BYTES, codec=parse_codec(codec), tier=tier, clock=clock)


def store_with_image(
    descriptor: int, page_count: int, budget_frames: int, tier: MemoryTier, codec: str = "lz4"
) -> tuple[Store, TmemObject]:
    """A store over an image, and its object: made in an empty memfd, or taken over from whoever had it before."""
    geometry = Geometry(page_count, slots_of(budget_frames), budget_frames + tier.slot_count, PAGE_BYTES, "zbud", None)
    empty = not os.fstat(descriptor).st_size
    image = Image.open(descriptor, geometry)
    store = Store(budget_bytes=budget_frames * PAGE_BYTES, codec=parse_codec(codec), tier=tier, image=image)
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

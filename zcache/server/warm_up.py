"""Warm-up: runs every hot path of the store once, on a small store of its own, before the first
request.

What it is for: memory locked on fault is locked only once it was touched, and code is read from
disk the first time that it runs. When memory is short it is too late for either. The scratch store
shares nothing with the real one but code, codec and tier; its pages go through every state that a
frame can be in, and its books must balance at the end. Its seal has a key of its own: births start
anew in it.
"""

import contextlib
import os
from typing import Final

from zcache.allocators.choice import ALLOCATORS
from zcache.control.check import check
from zcache.errors import PageDamaged, PageLost, StoreFull
from zcache.hardening.own_thread import OwnThread
from zcache.pages.codec import Codec, parse_codec
from zcache.pages.entry import PAGE_BYTES
from zcache.pages.page_table import MAX_RUN_PAGES
from zcache.pages.tmem import Kind, TmemObject
from zcache.seals import Seal
from zcache.store.store import Store
from zcache.tiers import Tier

FRAMES: Final = 2 * MAX_RUN_PAGES
ROUNDS: Final = 8  # CPython specialises a function's byte code after eight calls


def warm_up(codec: Codec, allocator: str, recompress: Codec | None, tier: Tier | None, seal: Seal) -> None:
    """Leaves nothing behind but warm code; the tier's slots are free again, those that were.

    Raises `PageDamaged` if the tier does not give back what was written to it, or does not take it.
    """
    chosen = ALLOCATORS[allocator]
    budget_bytes = max(FRAMES * PAGE_BYTES, chosen.min_budget_frames * chosen.frame_bytes)
    store = Store(
        budget_bytes=budget_bytes,
        codec=codec,
        allocator=allocator,
        recompress=recompress,
        tiers=[tier] if tier else [],
        seal=seal,
    )
    pool = store.tmem.new_pool(Kind.PERSISTENT)
    pages = store.tmem.new_object(pool, 0, 4 * FRAMES)
    raw = os.urandom(MAX_RUN_PAGES * PAGE_BYTES)  # not `random`, which would be 150 KiB for this
    mixed = bytearray(raw)
    for index in range(MAX_RUN_PAGES):
        start = index * PAGE_BYTES
        mixed[start : start + 32 * (index + 32)] = bytes(32 * (index + 32))
    mixed[: 2 * PAGE_BYTES] = bytes(PAGE_BYTES) + b"zcache !" * (PAGE_BYTES // 8)
    out = memoryview(bytearray(MAX_RUN_PAGES * PAGE_BYTES))
    try:
        _run_all(store, pages, raw, mixed, out)
        try_seal(seal, chosen.frame_bytes)
        if store.statistics.writeback_errors:
            (place,) = store.below.places
            raise PageDamaged(f"a write failed: {place.health.writing.last_error}")
        check(store)
    finally:
        store.flush_pool(pool)
    check(store)


def scratch_store(allocator: str) -> tuple[Store, TmemObject]:
    """A small store of its own and an object of 64 pages in it, of no consequence: what is
    rehearsed on before there are others."""
    chosen = ALLOCATORS[allocator]
    budget_bytes = chosen.min_budget_frames * chosen.frame_bytes
    store = Store(budget_bytes=budget_bytes, codec=parse_codec("lz4"), allocator=allocator)
    return store, store.tmem.new_object(store.tmem.new_pool(Kind.PERSISTENT), 0, 64)


def _run_all(store: Store, pages: TmemObject, raw: bytes, mixed: bytearray, out: memoryview) -> None:
    for _ in range(ROUNDS):
        for number in range(4 * FRAMES // MAX_RUN_PAGES):
            first = number * MAX_RUN_PAGES
            data = memoryview(mixed if number % 4 else raw)
            try:
                store.put(pages, first, data)
                store.put(pages, first, data[: 4 * PAGE_BYTES])
                store.get(pages, first, out)
                store.modify(pages, first, 100, data[:100])
            except (StoreFull, PageLost):
                pass  # without a tier, or with a small one
            store.reclaimer.clean_some()
            if store.recompressor:
                store.recompressor.recompress_oldest()
            store.reclaimer.tidy()
        if store.compactor and store.below.places:
            store.compactor.pack_below(everywhere=True)
        for page in range(0, 4 * FRAMES, 8):
            with contextlib.suppress(PageLost):
                store.get(pages, page, out[: 8 * PAGE_BYTES])
        store.flush(pages, 1, FRAMES)


def try_seal(seal: Seal, frame_bytes: int) -> None:
    """What a seal does about a flipped bit is code, too; and so is what it does first in each
    thread. Raises `PageDamaged` if it does nothing."""
    refused = []
    frame = memoryview(bytes(frame_bytes))

    def refuse() -> None:
        with seal.sealed([1], 0, [frame]) as (bodies, seals):
            read = bytearray(bodies[0])
        read[0] ^= 1
        refused.append(not seal.opens(1, 0, seals[0], memoryview(read)))

    thread = OwnThread("zcache-seal", refuse)
    thread.start()
    thread.join()
    if refused != [True]:
        raise PageDamaged("a flipped bit was not noticed")

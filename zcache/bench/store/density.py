"""How dense the store is beside the codec's own ratio: fresh, after overwrites and trims, and when
it has had time to itself; and what it keeps beside its frames."""

import multiprocessing
import os
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from zcache.allocators.choice import ALLOCATORS
from zcache.bench.corpus import PAGE_BYTES, Corpus
from zcache.bench.report import Figure
from zcache.clock import Clock
from zcache.control.check import check
from zcache.linux import memory
from zcache.pages.codec import Codec, parse_codec
from zcache.pages.tmem import Kind, TmemObject
from zcache.reclaim.recompression import REST_SECONDS
from zcache.store.store import Store
from zcache.testvm.figures import status_kib

#: Of what puts may use of the budget, before the rounds of overwrites begin.
FULL: Final = 0.85
CHURN_ROUNDS: Final = 10
#: Of all pages, in each of those rounds.
OVERWRITTEN: Final = 0.5
TRIMMED: Final = 0.1
#: Written to see what the store keeps of them beside their frames.
METADATA_PAGES: Final = 1 << 17


class HurriedClock(Clock):
    """Goes on in leaps: what would wait for spare time does not."""

    def __init__(self) -> None:
        self._ahead_seconds = 0.0

    def now(self) -> float:
        return super().now() + self._ahead_seconds

    def leap(self, seconds: float) -> None:
        """So long has passed."""
        self._ahead_seconds += seconds


def budget_for(allocator: str, page_count: int) -> int:
    """Bytes for so many pages, whatever is in them."""
    chosen = ALLOCATORS[allocator]
    return max(chosen.frames_for(page_count), chosen.min_budget_frames) * chosen.frame_bytes


def new_device(
    budget_bytes: int,
    codec: Codec,
    allocator: str,
    page_count: int,
    recompress: Codec | None = None,
    clock: Clock | None = None,
) -> tuple[Store, TmemObject]:
    """A store, and an object of a persistent pool in it."""
    store = Store(budget_bytes=budget_bytes, codec=codec, allocator=allocator, recompress=recompress, clock=clock)
    return store, store.tmem.new_object(store.tmem.new_pool(Kind.PERSISTENT), 0, page_count)


def density_of(corpus: Corpus, codec: Codec, allocator: str, seed: int) -> dict[str, Figure]:
    """Of all pages but the same-filled, which take no room anywhere: stored fresh; in a budget that
    they fill to `FULL` after rounds in which some are trimmed, some overwritten, and all that are
    missing written again; and when nobody has asked for anything for as long as the store has
    something to tidy up."""
    rng = random.Random(seed)
    pages = [page for page in corpus.pages if page != page[:8] * (PAGE_BYTES // 8)]
    order = list(range(len(pages)))
    store, thing = new_device(budget_for(allocator, len(pages)), codec, allocator, len(pages))
    _put(store, thing, pages, order)
    needed_frames, fresh = store.frames.resident, _density(store)
    clock = HurriedClock()
    budget_bytes = (int(needed_frames / FULL) + store.frames.reserve_frames) * store.frames.frame_bytes
    store, thing = new_device(budget_bytes, codec, allocator, len(pages), clock=clock)
    _put(store, thing, pages, order)
    for _ in range(CHURN_ROUNDS):
        trimmed = rng.sample(order, int(len(pages) * TRIMMED))
        for index in trimmed:
            store.flush(thing, index, 1)
        _put(store, thing, pages, rng.sample(order, int(len(pages) * OVERWRITTEN)))
        _put(store, thing, pages, trimmed)
    after = _density(store)
    check(store)
    _rest(store, clock)
    alone = store.statistics.stored_pages * PAGE_BYTES / store.statistics.compressed_bytes
    return {
        "pages": corpus.name,
        "codec": codec.name,
        "allocator": allocator,
        "codec's ratio": alone,
        "fresh": fresh,
        "fresh/codec": fresh / alone,
        "after": after,
        "after/codec": after / alone,
        "at rest": _density(store),
        "at rest/codec": _density(store) / alone,
    }


def recompression_of(corpus: Corpus, codec: Codec, recompress: Codec) -> dict[str, Figure]:
    """What an idle store makes of its pages, and what that costs."""
    pages = [page for page in corpus.pages if page != page[:8] * (PAGE_BYTES // 8)]
    clock = HurriedClock()
    budget_bytes = budget_for("log", len(pages))
    store, thing = new_device(budget_bytes, codec, "log", len(pages), recompress, clock)
    _put(store, thing, pages, range(len(pages)))
    before = _density(store)
    seconds = _rest(store, clock)
    for index, page in enumerate(pages):
        out = bytearray(PAGE_BYTES)
        store.get(thing, index, memoryview(out))
        assert out == page, "the store gave back another page than was put"
    return {
        "pages": corpus.name,
        "codec": codec.name,
        "recompress": recompress.name,
        "density before": before,
        "after": _density(store),
        "times": _density(store) / before,
        "us a page": seconds / len(pages) * 1e6,
    }


def metadata_of(corpus: Corpus, codec: Codec, allocator: str) -> dict[str, Figure]:
    """Memory that a process takes beside the RAM slots, for each page that is written.

    In a process of its own: what others have left in this one may be given back in the middle, a
    MiB at a time.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        grown_bytes = pool.submit(_grown_bytes, b"".join(corpus.pages[:32]), codec.name, allocator).result()
    return {"allocator": allocator, "pages": METADATA_PAGES, "bytes a page": grown_bytes / METADATA_PAGES}


def _grown_bytes(data: bytes, codec: str, allocator: str) -> int:
    """By which this process grows when `data` is put until there are `METADATA_PAGES`."""
    store = Store(budget_bytes=budget_for(allocator, METADATA_PAGES), codec=parse_codec(codec), allocator=allocator)
    thing = store.tmem.new_object(store.tmem.new_pool(Kind.PERSISTENT), 0, 4 * METADATA_PAGES)
    memory.populate(store.frames.ram_view)
    store.put(thing, 0, memoryview(data))
    before_kib = status_kib(os.getpid(), "RssAnon")
    for first in range(0, METADATA_PAGES, 32):
        store.put(thing, first, memoryview(data))
    return (status_kib(os.getpid(), "RssAnon") - before_kib) << 10


def _put(store: Store, thing: TmemObject, pages: Sequence[bytes], indexes: Sequence[int]) -> None:
    for index in indexes:
        store.put(thing, index, memoryview(pages[index]))


def _density(store: Store) -> float:
    """Pages to frames that are in use."""
    return store.statistics.stored_pages * PAGE_BYTES / (store.frames.resident * store.frames.frame_bytes)


def _rest(store: Store, clock: HurriedClock) -> float:
    """Until nothing is left to tidy up; the seconds of work that it took."""
    begin = os.times()
    idle = 0
    while idle < 3:
        clock.leap(REST_SECONDS)
        before = store.statistics.packed_pages + store.statistics.recompressed_pages
        store.reclaimer.tidy_up()
        idle = idle + 1 if before == store.statistics.packed_pages + store.statistics.recompressed_pages else 0
    check(store)
    end = os.times()
    return end.user + end.system - begin.user - begin.system

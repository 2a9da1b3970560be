"""The store: put, get and flush of pages of tmem objects, over all that they take.

A request is the unit of work: put.py and get.py say how its pages become zpages and come back. Here
is what the store is made of, part by part, each given what it needs of those before it.

Locking: `lock` protects the page tables, frames, allocator, tier bookkeeping and statistics. It is
the only lock of the store; conditions (`Reclaimer.landed`, the fetcher's) are built on it. Nothing
under it waits, does I/O, or calls out: no codec, and not the tier. `PartialWrite.turn` and
`CleanDisk._lock` come before it.

Pages are 4096 bytes; indexes count pages of an object.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from zcache.allocators import Allocator
from zcache.allocators.choice import ALLOCATORS, DEFAULT_ALLOCATOR
from zcache.allocators.log import Log
from zcache.allocators.log_packing import LogPacking
from zcache.books import Books
from zcache.clock import Clock
from zcache.errors import PageDamaged
from zcache.fetch.fetch import Fetcher
from zcache.fetch.readback import Readback
from zcache.image.image import Image
from zcache.page_loop import PageLoop
from zcache.page_loop.choice import PAGE_LOOP
from zcache.pageframes import PageFrames
from zcache.pages.codec import Codec
from zcache.pages.entry import PAGE_BYTES, PAGE_SHIFT
from zcache.pages.page_table import MAX_RUN_PAGES
from zcache.pages.tmem import Pool, Tmem, TmemObject
from zcache.reclaim.compaction import Compactor
from zcache.reclaim.flight import Flights
from zcache.reclaim.ouroboros import Ouroboros
from zcache.reclaim.reclaimer import Reclaimer
from zcache.reclaim.recompression import Recompressor
from zcache.seals import Seal
from zcache.seals.crc import CRC
from zcache.statistics import Statistics
from zcache.store.admission import Admission
from zcache.store.get import Getter
from zcache.store.invalidation import Invalidation
from zcache.store.partial_write import PartialWrite
from zcache.store.put import Putter
from zcache.store.waiting import Waiting
from zcache.tiers import Tier, WarmTier
from zcache.tiers.below import Below
from zcache.tiers.damage import Damage

if TYPE_CHECKING:
    from zcache.reclaim.demotion import Demoter


class Store:
    """Compressed pages in at most `budget_bytes` of pageframes, and below them in `tiers`, of which
    the first is the warmest."""

    def __init__(
        self,
        *,
        budget_bytes: int,
        codec: Codec,
        allocator: str = DEFAULT_ALLOCATOR,
        recompress: Codec | None = None,
        admit: str = "always",
        tiers: Sequence[Tier] = (),
        seal: Seal = CRC,
        image: Image | None = None,
        clock: Clock | None = None,
        loop: PageLoop = PAGE_LOOP,
    ) -> None:
        self.loop = loop
        self.seal = seal
        self.lock = threading.Lock()
        self.statistics = Statistics()
        self.damage = Damage()
        self.clock = clock or Clock()
        books = Books(self.lock, self.statistics, self.damage, self.clock)
        below = self.below = Below(tiers, self.clock)
        # Which pages there are, which frames, and which page is where in which frame.
        self.tmem = Tmem()
        chosen = ALLOCATORS[allocator]
        frames = self.frames = PageFrames(
            budget_bytes // chosen.frame_bytes,
            below.slot_count,
            chosen.frame_bytes,
            seal.seal_bytes,
            image,
            chosen.reserve_frames,
        )
        self.allocator: Allocator = chosen(frames, below.release, self.tmem.entries_of)
        # How frames come back, and how they leave.
        ouroboros = Ouroboros(frames, self.allocator, self.tmem, self.statistics)
        readback = Readback(frames, below, seal, books) if tiers else None
        self.fetcher = Fetcher(frames, readback, books, ouroboros.eat) if readback else None
        self.compactor = self.recompressor = None
        if isinstance(self.allocator, Log):
            self.allocator.append_by(loop.appender(frames.ram, frames.live, self.allocator.weight))
            packing = LogPacking(self.allocator, frames, self.tmem.entries_of)
            self.compactor = Compactor(frames, self.allocator, packing, readback, books)
            if recompress:
                self.recompressor = Recompressor(frames, self.allocator, packing, recompress, books)
        self.demoter: Demoter | None = None
        if readback and isinstance(tiers[0], WarmTier):
            from zcache.reclaim import demotion  # locked in memory, where there is such a tier

            self.demoter = demotion.Demoter(frames, self.allocator, below, seal, readback, books)
        self.flights = Flights(frames, self.allocator, below, seal, books)
        reclaimer = self.reclaimer = Reclaimer(
            frames, self.allocator, below, self.flights, ouroboros, books, self.compactor, self.recompressor
        )
        # What is done with pages.
        admission = self.admission = Admission(admit, budget_bytes, self.statistics)
        partial_write = PartialWrite()
        invalidation = self._invalidation = Invalidation(self.allocator, partial_write, books)
        waiting = self.waiting = Waiting(self.allocator, reclaimer, invalidation, partial_write, books)
        self.putter = Putter(
            loop, codec, frames, self.allocator, reclaimer, admission, invalidation, waiting, partial_write, books
        )
        self._getter = Getter(loop, frames, self.fetcher, waiting, books)

    # -- put and get (hot)
    # ----------------------------------------------------------------------------------------------

    def put(self, thing: TmemObject, first: int, data: memoryview) -> None:
        """Store whole pages: `data` (format B, a multiple of 4096 bytes) becomes pages `first` and
        following.

        Raises `StoreFull` (persistent pools only); pages that found no room are then lost, all
        others are stored. So it is with any other exception: no page keeps what it had.
        """
        size_bytes = len(data)
        if size_bytes == PAGE_BYTES and self.putter.put_page(thing, first, data):
            return
        if thing.kind:
            self.putter.put_ephemeral(thing, first, data)
        elif size_bytes <= MAX_RUN_PAGES * PAGE_BYTES:
            self.putter.put_run(thing, first, data)
        else:
            self.putter.put_runs(thing, first, data)

    def get(self, thing: TmemObject, first: int, out: memoryview) -> int:
        """Fill `out` (format B, a multiple of 4096 bytes) with pages `first` and following; returns
        how many were misses.

        A miss reads as zeros. Raises `PageLost` or `PageDamaged` if any page cannot be had; `out`
        is then undefined.
        """
        size_bytes = len(out)
        if size_bytes == PAGE_BYTES and self._getter.get_page(thing, first, out):
            return 0
        if size_bytes <= MAX_RUN_PAGES * PAGE_BYTES:
            return len(self._getter.get_run(thing, first, out))
        return self._getter.get_runs(thing, first, out)

    def find(self, thing: TmemObject, first: int, out: memoryview) -> list[int]:
        """Fill `out` with pages of an ephemeral pool; returns which are misses, and have to be had
        elsewhere. Pages that are damaged are: they are flushed, with those beside them."""
        try:
            return self._getter.find(thing, first, out)
        except PageDamaged:
            count = len(out) >> PAGE_SHIFT
            self.flush(thing, first, count)
            return [*range(first, first + count)]

    # -- flush
    # ----------------------------------------------------------------------------------------------

    def flush(self, thing: TmemObject, first: int, count: int) -> None:
        """Drop pages: gets of them are misses from now on. Costs nothing for what was never
        written.

        The lock is given up after each block of 512 pages.
        """
        if count == 1:  # the pager's, for each fault
            with self.lock:
                self.statistics.flushes += self._invalidation.clear_page(thing, first)
                self.statistics.flush_requests += 1
            return
        flushed = 0
        for start, stop in thing.table.touched_runs(first, first + count):
            with self.lock:
                flushed += self._invalidation.clear(thing, start, stop)
        with self.lock:
            self.statistics.flush_requests += 1
            self.statistics.flushes += flushed

    def flush_object(self, thing: TmemObject) -> None:
        """Drop all pages of an object, and the object."""
        self.flush(thing, 0, thing.page_count)
        with self.lock:
            self.statistics.object_flushes += 1
            self.tmem.drop_object(thing)

    def flush_pool(self, pool: Pool) -> None:
        """Drop all objects of a pool, and the pool."""
        for thing in list(pool.objects.values()):
            self.flush_object(thing)
        with self.lock:
            self.tmem.drop_pool(pool)

    # -- parts of pages
    # ---------------------------------------------------------------------------------------------

    def modify(self, thing: TmemObject, index: int, offset: int, data: memoryview) -> None:
        """Change `len(data)` bytes from `offset` in one page, and no others, whoever else writes
        the page meanwhile.

        Reads, changes and puts the page; if somebody put or flushed it in between, that is done
        again with what they left.
        """
        partial = self.putter.partial_write
        page = bytearray(PAGE_BYTES)
        with partial.turn, memoryview(page) as view:
            while True:
                with self.lock:
                    partial.begin(thing, index)
                try:
                    self.get(thing, index, view)
                    view[offset : offset + len(data)] = data
                    is_done = self.putter.put_run(thing, index, view, modifier=True)
                finally:
                    with self.lock:
                        partial.end()
                if is_done:
                    with self.lock:
                        self.statistics.partial_writes += 1
                    return

    # -- what is where
    # ----------------------------------------------------------------------------------------------

    def extents(self, thing: TmemObject, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """Runs of pages from `first` as (first, count, reads as zeros), merged, in order, without
        gaps."""
        return thing.table.extents(first, count, self.lock)

    @property
    def readahead_window(self) -> int:
        """Frames that are read along with one from below, at most, as things stand."""
        return self.fetcher.readahead.window if self.fetcher else 0

    def fault_ahead(self) -> None:
        """Keep all tables populated beyond what is in use. Not for the I/O path."""
        self.frames.fault_ahead()
        for thing in self.tmem.objects():
            thing.table.fault_ahead()
        self.below.fault_ahead()

    def populate(self, beat: Callable[[], None] = lambda: None) -> None:
        """Fault in everything that puts and gets touch: the RAM slots, and the tables as far as
        `fault_ahead` goes. `beat` is called now and then."""
        self.frames.memory.populate(beat)
        self.seal.populate()
        if self.demoter:
            self.demoter.populate()
        if any(thing.kind for thing in self.tmem.objects()):
            self.admission.populate()
            self.allocator.populate_for_ephemeral()
        self.fault_ahead()

    def is_populated(self) -> bool:
        """Whether all RAM slots are in memory, asked of the kernel."""
        return self.frames.memory.is_populated()

    def close(self) -> None:
        """End background reclaim and let go of the tiers."""
        self.reclaimer.stop()
        self.below.close()

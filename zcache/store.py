"""The store: the policy of put, get and flush over pages of tmem objects.

A request is the unit of work. A put first tests all its pages for being same-filled and compresses the rest, without
the lock; then, under one lock, drops what the pages held, places all zpages and publishes all entries. A get copies
the zpages out under the lock and decompresses them without it. So the lock is never held while a codec or the tier
works, and the codec (which releases the GIL) can use a second core.

No stale data, by construction: a put clears its pages' entries (to LOST) before it stores, and publishes new ones
after, or goes from one to the other at once, where nothing can fail in between. A put that fails leaves its persistent
pages LOST (a get is an error until they are written or flushed), never old and never zeros.

Locking: `lock` protects the page tables, frames, allocator, tier bookkeeping and statistics. It is the only lock of
the store; conditions (`Reclaimer.landed`, the fetcher's) are built on it. Nothing under it waits, does I/O, or calls
out. `PartialWrite.turn` comes before it.

Pages are 4096 bytes; indexes count pages of an object.
"""

import threading
from array import array
from collections.abc import Callable, Iterator

from lz4.block import decompress as lz4_decompress

from zcache.admission import reject_poor
from zcache.allocators import Allocator
from zcache.allocators.choice import ALLOCATORS, DEFAULT_ALLOCATOR
from zcache.allocators.log import Log
from zcache.backoff import Clock
from zcache.codec import Codec
from zcache.compaction import Compactor
from zcache.entry import LOST, PAGE_BYTES, SAME_FILLED
from zcache.errors import PageDamaged, PageLost, StoreFull
from zcache.fetch import Fetcher
from zcache.health import Health
from zcache.image import Image
from zcache.page_table import LOST_RUN, MAX_RUN_PAGES
from zcache.pageframes import PageFrames
from zcache.partial_write import PartialWrite
from zcache.reclaim import Reclaimer
from zcache.recompression import Recompressor
from zcache.seals import Seal
from zcache.seals.crc import CRC
from zcache.statistics import Statistics
from zcache.tiers import Tier
from zcache.tmem import Kind, Pool, Tmem, TmemObject
from zcache.zpages import END_LZ4, FIRST_LZ4, SUSPECT_BYTES, decode, decode_lz4, encode


class Store:
    """Compressed pages in at most `budget_bytes` of pageframes, and below them in `tier`."""

    def __init__(
        self,
        *,
        budget_bytes: int,
        codec: Codec,
        allocator: str = DEFAULT_ALLOCATOR,
        recompress: Codec | None = None,
        tier: Tier | None = None,
        seal: Seal = CRC,
        image: Image | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.codec = codec
        self.tier = tier
        self.seal = seal
        self.lock = threading.Lock()
        self.statistics = Statistics()
        self.tmem = Tmem()
        chosen = ALLOCATORS[allocator]
        self.frames = PageFrames(
            budget_bytes // chosen.frame_bytes,
            tier.slot_count if tier else 0,
            chosen.frame_bytes,
            seal.seal_bytes,
            image,
            chosen.reserve_frames,
        )
        self.allocator: Allocator = chosen(self.frames, self._release_below, self.tmem.entries_of)
        self.health = Health(clock or Clock())
        books = (self.lock, self.statistics, self.health)
        self._fetcher = Fetcher(self.frames, tier, seal, *books) if tier else None
        self.compactor = self.recompressor = None
        if isinstance(self.allocator, Log):
            self.compactor = Compactor(self.frames, self.allocator, self._fetcher, *books)
            if recompress:
                clock = self.health.clock
                self.recompressor = Recompressor(
                    self.frames, self.allocator, recompress, self.lock, self.statistics, clock
                )
        self.reclaimer = Reclaimer(
            self.frames, self.allocator, tier, seal, *books, self._forget, self.compactor, self.recompressor
        )
        self._partial_write = PartialWrite()
        self._waiting: list[tuple[TmemObject, range]] = []  # puts that wait for room: LOST for the time being

    # -- put (hot) --------------------------------------------------------------------------------------------------

    def put(self, thing: TmemObject, first: int, data: memoryview) -> None:
        """Store whole pages: `data` (format B, a multiple of 4096 bytes) becomes pages `first` and following.

        Raises `StoreFull` (persistent pools only); pages that found no room are then lost, all others are stored. So it
        is with any other exception: no page keeps what it had.
        """
        size_bytes = len(data)
        if size_bytes == PAGE_BYTES and self._put_page(thing, first, data):
            return
        if size_bytes <= MAX_RUN_PAGES * PAGE_BYTES:
            self._put_run(thing, first, data)
            return
        failure: Exception | None = None
        for start in range(0, size_bytes, MAX_RUN_PAGES * PAGE_BYTES):
            run = data[start : start + MAX_RUN_PAGES * PAGE_BYTES]
            try:
                self._put_run(thing, first + (start >> 12), run)
            except Exception as error:  # the runs after it must not keep what they had
                failure = failure or error
        if failure:
            raise failure

    def _put_page(self, thing: TmemObject, first: int, data: memoryview) -> bool:
        """Fast path: one page, if it is persistent, compresses, and finds room at once. False: nothing has been done.

        Nothing can fail between the old entry and the new one, so the page is not LOST in between."""
        if thing.kind:
            return False
        codec = self.codec
        try:
            body = codec.compress(data)
        except BaseException:
            self._abandon_early(thing, first, 1, modifier=False)
            raise
        length = len(body)
        if not SUSPECT_BYTES <= length <= self.allocator.max_zpage_bytes:
            return False
        table = thing.table
        entries = table.entries
        entry = 0
        lock = self.lock
        lock.acquire()
        try:
            if self._partial_write.page:
                return False
            entry = self.allocator.place_one(0, body, codec.tag_base + (length << 47), thing.owner_base + first)
            if not entry:
                return False
            table.touched[first >> 9] = 1
            old = entries[first]
            entries[first] = entry
            if old:
                self._drop([old], Kind.PERSISTENT)
            statistics = self.statistics
            statistics.puts += 1
            statistics.stored_pages += 1
            statistics.compressed_bytes += length
        except BaseException:
            table.touched[first >> 9] = 1
            self._abandon(thing, first, 1, [entry] if entry else [], cleared=entry != 0 and entries[first] == entry)
            raise
        finally:
            lock.release()
        if self.frames.free_slot_count < self.reclaimer.wake_below_slots:
            self.reclaimer.wake_if_low()
        return True

    def _put_run(self, thing: TmemObject, first: int, data: memoryview, modifier: bool = False) -> bool:
        """One run. False, and nothing is done, if the caller is `modify` and its page was written meanwhile."""
        kind = thing.kind
        try:
            bodies, tags, same_filled, raw, compressed_bytes = encode(self.codec, self.allocator.max_zpage_bytes, data)
            if kind:
                with self.lock:
                    reject_poor(bodies, tags, self.statistics)
        except BaseException:
            self._abandon_early(thing, first, len(data) >> 12, modifier)
            raise

        count = len(bodies)
        last = first + count
        table = thing.table
        placed: list[int] = []
        cleared = False
        self.lock.acquire()
        try:
            if self._partial_write.page and not self._partial_write.agrees(thing, first, last, modifier):
                return False
            table.touched[first >> 9] = 1
            if first >> 9 != (last - 1) >> 9:
                table.touch(first, last - 1)
            entries = table.entries
            old = entries[first:last].tolist()
            if any(old):
                entries[first:last] = LOST_RUN[:count]
                cleared = True
                self._drop(old, kind)
            cleared = True
            done = self.allocator.place(kind, bodies, tags, placed, thing.owner_base + first)
            if count == 1 == done:
                entries[first] = placed[0]
            else:
                entries[first : first + done] = array("Q", placed)
            statistics = self.statistics
            statistics.puts += count
            if done == count and not kind:
                statistics.stored_pages += count
                statistics.compressed_bytes += compressed_bytes
                if raw or same_filled:
                    statistics.raw_pages += raw
                    statistics.reject_compress_poor += raw
                    statistics.same_filled_pages += same_filled
            else:
                entries[first + done : last] = LOST_RUN[: count - done]
                self._settle(thing, first, placed, 0, count)
                if done < count:
                    self._waiting.append((thing, range(first, last)))
        except BaseException:
            self._abandon(thing, first, count, placed, cleared)
            raise
        finally:
            self.lock.release()
        if done < count and not self._put_slowly(thing, first, bodies, tags, placed, modifier):
            return False
        if self.frames.free_slot_count < self.reclaimer.wake_below_slots:
            self.reclaimer.wake_if_low()
        return True

    # -- get (hot) --------------------------------------------------------------------------------------------------

    def get(self, thing: TmemObject, first: int, out: memoryview) -> int:
        """Fill `out` (format B, a multiple of 4096 bytes) with pages `first` and following; returns how many were
        misses.

        A miss reads as zeros. Raises `PageLost` or `PageDamaged` if any page cannot be had; `out` is then undefined.
        """
        size_bytes = len(out)
        if size_bytes == PAGE_BYTES and self._get_page(thing, first, out):
            return 0
        if size_bytes <= MAX_RUN_PAGES * PAGE_BYTES:
            return self._get_run(thing, first, out)
        misses = 0
        for start in range(0, size_bytes, MAX_RUN_PAGES * PAGE_BYTES):
            run = out[start : start + MAX_RUN_PAGES * PAGE_BYTES]
            misses += self._get_run(thing, first + (start >> 12), run)
        return misses

    def _get_page(self, thing: TmemObject, first: int, out: memoryview) -> bool:
        """Fast path: one page, if it is an lz4 zpage in RAM. False: nothing has been done."""
        frames = self.frames
        lock = self.lock
        lock.acquire()
        try:
            entry = thing.table.entries[first]
            if not FIRST_LZ4 <= entry < END_LZ4:
                return False
            slot = frames.home[entry & 0x7FFFFFFF]
            if not slot:
                return False
            start = (slot << frames.frame_shift) + (entry >> 31 & 0xFFFF)
            body = frames.ram[start : start + (entry >> 47 & 0xFFF) + 1]
            frames.referenced[slot] = 1
            self.statistics.gets += 1
        finally:
            lock.release()
        try:
            out[:] = lz4_decompress(body, 4096)
        except Exception:  # the slow path will say it
            with lock:
                self.statistics.gets -= 1
            return False
        return True

    def _get_run(self, thing: TmemObject, first: int, out: memoryview) -> int:
        """One run. Pages that are lost only while their put waits for room are waited for."""
        while (misses := self._try_get_run(thing, first, out)) < 0:
            self._wait_for_lost(thing, first, len(out) >> 12)
        return misses

    def _try_get_run(self, thing: TmemObject, first: int, out: memoryview) -> int:
        """One run; -1, and `out` undefined, if a page in it is lost."""
        frames = self.frames
        count = len(out) >> 12
        bodies: list[bytes] = []
        misses = 0
        self.lock.acquire()
        try:
            self.statistics.gets += count
            entries = thing.table.entries[first : first + count].tolist()
            if min(entries) >= FIRST_LZ4 and max(entries) < END_LZ4:
                home = frames.home
                slots = [home[entry & 0x7FFFFFFF] for entry in entries]
                if all(slots):  # fast path: all are lz4 zpages in RAM
                    ram, referenced, frame_shift = frames.ram, frames.referenced, frames.frame_shift
                    bodies = [
                        ram[
                            (start := (slot << frame_shift) + (entry >> 31 & 0xFFFF)) : start
                            + (entry >> 47 & 0xFFF)
                            + 1
                        ]
                        for slot, entry in zip(slots, entries, strict=False)
                    ]
                    for slot in set(slots):
                        referenced[slot] = 1
            is_fast = len(bodies) > 0
            if not is_fast:
                cold, bodies = self._collect(entries)
                misses = entries.count(0)
                self.statistics.get_misses += misses
        finally:
            self.lock.release()
        if not is_fast:
            if max(entries) >= LOST:
                return -1
            if cold:
                assert self._fetcher
                self._fetcher.fetch(thing.table.entries, first, cold, entries, bodies)
                if max(entries) >= LOST:
                    return -1
        try:
            if is_fast:
                decode_lz4(bodies, out)
            else:
                decode(entries, bodies, out)
        except PageDamaged:
            with self.lock:
                self.statistics.decode_errors += 1
            raise
        return misses

    def _collect(self, entries: list[int]) -> tuple[list[int], list[bytes]]:
        """Under the lock: which of the zpages are in no frame in RAM; and the bytes of all, empty where there are none,
        or not yet."""
        frames = self.frames
        ram, home, referenced, frame_shift = frames.ram, frames.home, frames.referenced, frames.frame_shift
        cold: list[int] = []
        bodies: list[bytes] = []
        for entry in entries:
            if 0 < entry < SAME_FILLED:
                slot = home[entry & 0x7FFFFFFF]
                if slot:
                    start = (slot << frame_shift) + (entry >> 31 & 0xFFFF)
                    bodies.append(ram[start : start + (entry >> 47 & 0xFFF) + 1])
                    referenced[slot] = 1
                    continue
                cold.append(len(bodies))
            bodies.append(b"")
        return cold, bodies

    # -- flush ------------------------------------------------------------------------------------------------------

    def flush(self, thing: TmemObject, first: int, count: int) -> None:
        """Drop pages: gets of them are misses from now on. Costs nothing for what was never written.

        The lock is given up after each block of 512 pages.
        """
        table = thing.table
        for start, stop in table.touched_runs(first, first + count):
            with self.lock:
                if self._partial_write.page:
                    self._partial_write.agrees(thing, start, stop, False)
                old = table.entries[start:stop].tolist()
                table.clear_block(start, stop)
                if any(old):
                    held = len(old) - old.count(0)
                    self._drop(old, thing.kind)
                    self.statistics.flushes += held

    def flush_object(self, thing: TmemObject) -> None:
        """Drop all pages of an object, and the object."""
        self.flush(thing, 0, thing.page_count)
        with self.lock:
            self.tmem.drop_object(thing)

    def flush_pool(self, pool: Pool) -> None:
        """Drop all objects of a pool, and the pool."""
        for thing in list(pool.objects.values()):
            self.flush_object(thing)
        with self.lock:
            self.tmem.drop_pool(pool)

    # -- parts of pages ---------------------------------------------------------------------------------------------

    def modify(self, thing: TmemObject, index: int, offset: int, data: memoryview) -> None:
        """Change `len(data)` bytes from `offset` in one page, and no others, whoever else writes the page meanwhile.

        Reads, changes and puts the page; if somebody put or flushed it in between, that is done again with what they
        left.
        """
        partial = self._partial_write
        page = bytearray(PAGE_BYTES)
        with partial.turn, memoryview(page) as view:
            while True:
                with self.lock:
                    partial.begin(thing, index)
                try:
                    self.get(thing, index, view)
                    view[offset : offset + len(data)] = data
                    is_done = self._put_run(thing, index, view, modifier=True)
                finally:
                    with self.lock:
                        partial.end()
                if is_done:
                    with self.lock:
                        self.statistics.partial_writes += 1
                    return

    # -- what is where ----------------------------------------------------------------------------------------------

    def extents(self, thing: TmemObject, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """Runs of pages from `first` as (first, count, reads as zeros), merged, in order, without gaps."""
        return thing.table.extents(first, count, self.lock)

    def fault_ahead(self) -> None:
        """Keep all tables populated beyond what is in use. Not for the I/O path."""
        self.frames.fault_ahead()
        for thing in self.tmem.objects():
            thing.table.fault_ahead()
        if self.tier:
            self.tier.fault_ahead()

    def populate(self, beat: Callable[[], None] = lambda: None) -> None:
        """Fault in everything that puts and gets touch: the RAM slots, and the tables as far as `fault_ahead` goes.
        `beat` is called now and then."""
        self.frames.populate(beat)
        self.seal.populate()
        self.fault_ahead()

    @property
    def waiting_pages(self) -> int:
        """Under the lock: how many pages are LOST for the time being only."""
        pages = {(thing, page) for thing, run in self._waiting for page in run}
        return sum(thing.table.entries[page] >= LOST for thing, page in pages)

    def is_populated(self) -> bool:
        """Whether all RAM slots are in memory, asked of the kernel."""
        return self.frames.is_populated()

    def close(self) -> None:
        """End background reclaim and let go of the tier."""
        self.reclaimer.stop()
        if self.tier:
            self.tier.close()

    # -- slow paths and bookkeeping ---------------------------------------------------------------------------------

    def _put_slowly(
        self,
        thing: TmemObject,
        first: int,
        bodies: list[bytes],
        tags: list[int],
        placed: list[int],
        modifier: bool,
    ) -> bool:
        """Finish a put whose frames ran out: make room and place, until all are placed or no room can be made."""
        table, count = thing.table, len(bodies)
        try:
            while len(placed) < count:
                room = self.reclaimer.make_room(thing.kind)
                with self.lock:
                    start, stop = first + len(placed), first + count
                    if self._partial_write.page and not self._partial_write.agrees(thing, start, stop, modifier):
                        return False
                    if not room:
                        self.statistics.reject_no_frame += count - len(placed)
                        if thing.kind is Kind.EPHEMERAL:
                            self.statistics.ignored_puts += count - len(placed)
                            return True
                        self.statistics.failed_puts += count - len(placed)
                        raise StoreFull(f"no frame for {count - len(placed)} of {count} pages")
                    table.touch(start, stop - 1)  # again: a flush of the whole block may have come meanwhile
                    old = table.entries[start:stop].tolist()
                    table.entries[start:stop] = LOST_RUN[: count - len(placed)]
                    self._drop(old, thing.kind)
                    before = len(placed)
                    try:
                        self.allocator.place(thing.kind, bodies, tags, placed, thing.owner_base + first)
                    except BaseException:
                        self._abandon(thing, start, count - before, placed[before:])
                        raise
                    table.entries[start : first + len(placed)] = array("Q", placed[before:])
                    self._settle(thing, first, placed, before, count)
            return True
        finally:
            with self.lock:
                self._waiting.remove((thing, range(first, first + count)))
                self.reclaimer.landed.notify_all()

    def _abandon(self, thing: TmemObject, first: int, count: int, placed: list[int], cleared: bool = True) -> None:
        """Under the lock, after an exception that nobody foresaw (no memory): a put's pages are absent; what was
        placed dies, and so does what the pages had, if that is still there (not `cleared`)."""
        self.allocator.release([entry for entry in placed if 0 < entry < SAME_FILLED])
        lost = thing.kind is Kind.PERSISTENT
        for index in range(first, first + count):
            old = thing.table.entries[index]
            thing.table.entries[index] = LOST if lost else 0
            if not cleared:
                self._drop([old], thing.kind)
        self.statistics.lost_pages += count * lost

    def _abandon_early(self, thing: TmemObject, first: int, count: int, modifier: bool) -> None:
        """After an exception before a put had changed anything: its pages are absent all the same, unless the caller is
        `modify` and its page is another's by now."""
        with self.lock:
            if self._partial_write.agrees(thing, first, first + count, modifier):
                thing.table.touch(first, first + count - 1)
                self._abandon(thing, first, count, [], cleared=False)

    def _settle(self, thing: TmemObject, first: int, placed: list[int], start: int, count: int) -> None:
        """Under the lock: account for what was placed from `start` on, and for the rest, which is absent now."""
        self.statistics.account(placed[start:], thing.kind, 1)
        missing = count - len(placed)
        if thing.kind is Kind.EPHEMERAL:
            for index in range(first + len(placed), first + count):
                thing.table.entries[index] = 0
        else:
            self.statistics.lost_pages += missing

    def _drop(self, old: list[int], kind: Kind) -> None:
        """Under the lock: pages' former entries, which no table holds any more, die."""
        if min(old) >= FIRST_LZ4 and max(old) < END_LZ4 and not kind:
            self.statistics.stored_pages -= len(old)
            self.statistics.compressed_bytes -= sum([entry >> 47 & 0xFFF for entry in old]) + len(old)
            self.allocator.release(old)
            return
        self.statistics.account(old, kind, -1)
        self.allocator.release([entry for entry in old if 0 < entry < SAME_FILLED])

    def _wait_for_lost(self, thing: TmemObject, first: int, count: int) -> None:
        """Return once none of the pages is lost only because its put still waits for room; `PageLost` if one is for
        good: no put that waits is for it."""
        with self.lock:
            while True:
                entries = thing.table.entries[first : first + count].tolist()
                lost = {page for page, entry in enumerate(entries, first) if entry >= LOST}
                if not lost:
                    return
                if lost.difference(*(pages for other, pages in self._waiting if other is thing)):
                    raise PageLost(f"page {first} or one of {count} from there: its last write failed")
                self.reclaimer.landed.wait()

    def _release_below(self, slot: int) -> None:
        self.reclaimer.release_below(slot)

    def _forget(self, owner: int) -> None:
        """Under the lock: an ephemeral page went with its frame."""
        self.statistics.account([self.tmem.forget(owner)], Kind.EPHEMERAL, -1)

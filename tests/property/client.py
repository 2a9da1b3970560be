"""A client of a store that knows what its pages should be: random operations on a range of pages,
and a plain dict.

The dict maps a page to its bytes, or to None when its put has failed (it is lost); what is not in
it reads as zeros. Where two requests for a page were under way at once, or the server died within
one, several answers are right: `unsure` has the others until a read tells. What was there before a
put is never right after it.

An operation may be done in the middle of another (`meanwhile`, called by the tier while it reads or
writes): that is what a second connection does to the store, and here it is exactly repeatable. Such
an operation is chosen so that it never has to wait, because whom it would wait for is waiting for
it.
"""

import random
from collections import deque
from typing import Final, Protocol, cast

from tests.support.pages import page_with_zpage_of, raw_page
from tests.support.stores import PAGE_BYTES
from zcache.errors import PageDamaged, PageLost, StoreFull
from zcache.pageframes import State
from zcache.pageframes.slots import FETCH_SLOTS
from zcache.pages.entry import FRAME_MASK, LOST, SAME_FILLED
from zcache.pages.tmem import Kind, TmemObject
from zcache.store.store import Store
from zcache.tiers.backoff import PATIENCE_SECONDS

ZEROS: Final = bytes(PAGE_BYTES)

#: Pages of a put, and a get. Mostly one, so that most operations are about something; 70 is more
#: than one run.
COUNTS: Final = [1] * 14 + [2, 2, 3, 4, 8, 24]

_rng: Final = random.Random(1)
#: All but the first 8 bytes of pages that compress to any size, on both sides of what is stored
#: raw.
_BODIES: Final = [page_with_zpage_of(_rng, _rng.randrange(8, 4000))[8:] for _ in range(160)] + [
    page_with_zpage_of(_rng, _rng.randrange(3950, 4096))[8:] for _ in range(32)
]
_BODIES.extend(raw_page(_rng)[8:] for _ in range(40))


class JudgedTier(Protocol):
    """What knows of itself whether an error is justified."""

    failed_reads: int
    faults: dict[str, int]

    def is_spoiled(self, slot: int) -> bool: ...
    def may_fail(self, slot: int) -> bool: ...


class Client:
    """Has pages `first` to `stop` (exclusive) of an object to itself. `spots` are where its
    operations begin."""

    def __init__(self, store: Store, thing: TmemObject, rng: random.Random, spots: list[int], stop: int) -> None:
        self.store = store
        self.thing = thing
        self.rng = rng
        self.spots = spots
        self.first, self.stop = min(spots), stop
        self.model: dict[int, bytes | None] = {}
        self.unsure: dict[int, list[bytes | None]] = {}
        self.operations = 0
        self.log: deque[tuple[object, ...]] = deque(maxlen=40)  # the last operations, for a failure's message
        self.max_count = 24
        self.may_lose = range(0)  # pages that are lost if the server dies within the operation
        self.may_be_full = False
        self.is_alone = True  # no other threads use the store
        self._stamp = rng.getrandbits(32) << 24
        self._depth = 0
        self._busy = range(0)  # pages of the put or modify that this one is in the middle of
        self._about = range(0)  # pages of the last operation that was not in the middle of another
        self.happened_meanwhile: dict[
            int, list[bytes | None]
        ] = {}  # what operations in the middle of this one made of pages

    # -- choosing
    # ----------------------------------------------------------------------------------------------

    def act(self) -> None:
        """One operation."""
        dice = self.rng.random()
        if dice < 0.46:
            self.put(*self._pages())
        elif dice < 0.80:
            self.get(*self._pages())
        elif dice < 0.92:
            self.flush(*self._range())
        elif self.thing.kind is Kind.PERSISTENT:
            self.modify(self._pages()[0])

    def meanwhile(self) -> None:
        """One operation in the middle of another, if one can be had that needs to wait for
        nothing."""
        self._depth = 1
        try:
            first, count = self._pages()
            if self.rng.random() < 0.6 and (touched := self._pages_on_their_way()):
                first, count = self.rng.choice(touched), 1
            dice = self.rng.random()
            frames = self.store.frames
            is_busy = first < self._busy.stop and self._busy.start < first + count
            if dice < 0.45:
                if self.store.allocator.frames_for(count) - self.store.allocator.frames_for(0) <= frames.available:
                    self.put(first, count)
            elif dice < 0.7:
                self.flush(*(self._range() if self.rng.random() < 0.3 else (first, count)))
            elif dice < 0.9:
                if not is_busy and count <= frames.slots.fetch_count:
                    self.get(first, count)
            elif not is_busy and self._can_modify_at_once():
                self.modify(first)
        finally:
            self._depth = 0

    def _pages_on_their_way(self) -> list[int]:
        """Those that the operation around this one is about, and those in frames in flight: where
        races are."""
        entries, state = self.thing.table.entries, self.store.frames.state
        flying = [
            index
            for index in self.model
            if 0 < entries[index] < SAME_FILLED and state[entries[index] & FRAME_MASK] == State.WRITEBACK
        ]
        return [*flying, *self._about]

    def _can_modify_at_once(self) -> bool:
        frames = self.store.frames
        has_room = frames.available and frames.slots.fetch_count and not self.store.putter.partial_write.turn.locked()
        return self.thing.kind is Kind.PERSISTENT and bool(has_room)

    def _pages(self) -> tuple[int, int]:
        rng = self.rng
        spots = self.spots
        first = spots[int(rng.random() * len(spots))]
        count = COUNTS[int(rng.random() * len(COUNTS))]
        if count == 24 and self.max_count > 24 and rng.random() < 0.3:
            count = self.max_count
        return first, min(count, self.stop - first)

    def _range(self) -> tuple[int, int]:
        """For a trim: mostly of a few pages, now and then of whole blocks."""
        first, count = self._pages()
        if self.rng.random() < 0.1:
            first = first & ~511 if first & ~511 >= self.first else self.first
            count = min(512 * self.rng.randrange(1, 3), self.stop - first)
        return first, count

    def _page(self) -> bytes:
        self._stamp = stamp = self._stamp + 1
        dice = self.rng.random()
        if dice < 0.8:
            return stamp.to_bytes(8, "little") + _BODIES[int(dice * 1.25 * len(_BODIES))]
        if dice < 0.86:
            return (stamp & 0xFFFFFFFF).to_bytes(4, "little") * 1024
        if dice < 0.92:
            return stamp.to_bytes(8, "little") * 512
        if dice < 0.96:  # looks as if it were same-filled, at first sight
            return stamp.to_bytes(8, "little") + _BODIES[stamp % len(_BODIES)][8:] + stamp.to_bytes(8, "little")
        return ZEROS

    # -- operations
    # ----------------------------------------------------------------------------------------------

    def put(self, first: int, count: int) -> None:
        """Pages are what was put last, or lost if it failed; of two at once, either."""
        self.operations += 1
        self.log.append(("put", first, count, self._depth))
        pages = [self._page() for _ in range(count)]
        outer, self._busy = self._busy, range(first, first + count)
        self._begin(first, count, True)
        full = False
        try:
            self.store.put(self.thing, first, memoryview(b"".join(pages)))
        except StoreFull:
            assert self.may_be_full, "there was room"
            full = True
        finally:
            self._busy = outer
        if full:
            entries = self.thing.table.entries[first : first + count].tolist()
            assert max(entries) >= LOST or self.happened_meanwhile, "a put failed, and lost nothing"
            made: list[bytes | None] = [None if e >= LOST else p for e, p in zip(entries, pages, strict=True)]
        else:
            made = [*pages]
        self._publish(first, made)

    def _begin(self, first: int, count: int, writes: bool) -> None:
        if not self._depth:
            self.happened_meanwhile.clear()
            self._about = range(first, first + count)
            self.may_lose = self._about if writes else range(0)

    def _publish(self, first: int, made: list[bytes | None]) -> None:
        meanwhile = self.happened_meanwhile
        for index, page in enumerate(made, first):
            if self._depth:
                meanwhile.setdefault(index, []).extend([page, *self.unsure.pop(index, ())])
            elif index in meanwhile:
                self.unsure[index] = [page, *meanwhile[index]]
            elif self.unsure:
                self.unsure.pop(index, None)
            self.model[index] = page

    def get(self, first: int, count: int) -> None:
        """What is read is what the dict says; an error has a reason."""
        self.operations += 1
        self.log.append(("get", first, count, self._depth))
        self._begin(first, count, False)
        model = self.model
        wanted = [model.get(index, ZEROS) for index in range(first, first + count)]
        out = bytearray(count * PAGE_BYTES)
        begin_seconds = self.store.clock.now()
        failed_reads = self._failed_reads()
        try:
            with memoryview(out) as view:
                misses = self.store.get(self.thing, first, view)
        except PageLost:
            self._check_lost(first, wanted)
            return
        except PageDamaged:
            self._check_damaged(first, count, self.store.clock.now() - begin_seconds, failed_reads)
            return
        if misses and self.thing.kind is Kind.EPHEMERAL:
            for index in range(first, first + count):
                if out[(index - first) * 4096 : (index - first + 1) * 4096] == ZEROS:
                    model.pop(index, None)  # gone, or zeros as they were put: the same to us
                    wanted[index - first] = ZEROS
        if None not in wanted and out == b"".join(wanted):  # type: ignore[arg-type]
            if self.unsure and not self.happened_meanwhile:
                for index in range(first, first + count):
                    self.unsure.pop(index, None)
            return
        for index, known in enumerate(wanted, first):
            page = bytes(out[(index - first) * 4096 : (index - first + 1) * 4096])
            if page != known:
                others = [model.get(index, ZEROS), *self.unsure.get(index, ()), *self.happened_meanwhile.get(index, ())]
                assert page in others, (
                    f"page {index} is neither {_show(known)} nor {[*map(_show, others)]}: {_show(page)}"
                )
            if index not in self.happened_meanwhile:
                self.unsure.pop(index, None)
                model[index] = page
                if self._depth:
                    self.happened_meanwhile[index] = [page]

    def flush(self, first: int, count: int) -> None:
        """Trimmed pages read as zeros."""
        self.operations += 1
        self.log.append(("flush", first, count, self._depth))
        self._begin(first, count, False)
        self.store.flush(self.thing, first, count)
        stop = first + count
        if self._depth:
            for index in range(max(first, self._busy.start), min(stop, self._busy.stop)):
                self.happened_meanwhile.setdefault(index, []).append(ZEROS)
        for index in [index for index in self.model if first <= index < stop]:
            del self.model[index]
            others = self.unsure.pop(index, ())
            if self._depth:
                self.happened_meanwhile.setdefault(index, []).extend([ZEROS, *others])

    def modify(self, index: int) -> None:
        """Bytes of a page change, and no others, whoever put or trimmed it meanwhile."""
        if index in self.unsure:
            self.get(index, 1)
            if index in self.unsure or index in self.happened_meanwhile:
                return
        self.operations += 1
        rng = self.rng
        offset = rng.randrange(PAGE_BYTES)
        data = self._stamp.to_bytes(8, "little")[: PAGE_BYTES - offset] * rng.choice([1, 1, 100])
        data = data[: PAGE_BYTES - offset]
        self.log.append(("modify", index, offset, len(data), self._depth))
        self._begin(index, 1, True)
        outer, self._busy = self._busy, range(index, index + 1)
        try:
            self.store.modify(self.thing, index, offset, memoryview(data))
        except StoreFull:
            assert self.may_be_full, "there was room"
            assert self.thing.table.entries[index] >= LOST
            self._set(index, None)
        except PageLost:
            assert self.model.get(index, ZEROS) is None
        except PageDamaged:
            self._check_damaged(index, 1)
        else:
            old = self.model.get(index, ZEROS)
            assert old is not None, "a lost page was modified"
            self._set(index, old[:offset] + data + old[offset + len(data) :])
        finally:
            self._busy = outer

    def _set(self, index: int, page: bytes | None) -> None:
        """What a modify made of a page is sure, whatever happened meanwhile: it was done last."""
        if self._depth:
            self._publish(index, [page])
        else:
            self.model[index] = page
            self.unsure.pop(index, None)

    # -- judging
    # ----------------------------------------------------------------------------------------------

    def check_extents(self) -> None:
        """They cover all pages in order; what they call zeros reads as zeros, and nothing else
        does."""
        position = self.first
        model = self.model
        for start, count, zero in self.store.extents(self.thing, self.first, self.stop - self.first):
            assert start == position and count > 0
            position += count
            for index in range(start, position) if zero else ():
                assert model.get(index, ZEROS) == ZEROS or index in self.unsure, f"page {index} is not zeros"
            if not zero:
                assert all(
                    model.get(index, ZEROS) != ZEROS or index in self.unsure for index in range(start, position)
                ), f"pages {start} to {position} are not all different from zeros"
        assert position == self.stop

    def check_all(self) -> None:
        """Reads every page that was ever put, one by one."""
        for index in sorted(self.model.keys() | self.unsure.keys()):
            self.get(index, 1)

    def _check_lost(self, first: int, wanted: list[bytes | None]) -> None:
        allowed = [
            index
            for index, page in enumerate(wanted, first)
            if page is None or None in self.unsure.get(index, ()) or None in self.happened_meanwhile.get(index, ())
        ]
        assert allowed, "a page is lost whose put did not fail"
        if len(wanted) == 1 and first not in self.happened_meanwhile:
            self.model[first] = None
            self.unsure.pop(first, None)

    def _tiers(self) -> list[JudgedTier]:
        return [cast(JudgedTier, place.tier) for place in self.store.below.places]

    def _failed_reads(self) -> int:
        return sum(tier.failed_reads for tier in self._tiers())

    def _check_damaged(self, first: int, count: int, seconds: float = 0.0, failed_reads: int = 0) -> None:
        """`failed_reads`: transfers that had failed before the operation, which took so many
        seconds."""
        store, frames = self.store, self.store.frames
        if not self.is_alone and any(tier.faults for tier in self._tiers()):  # they may be others now
            return
        # A read of several pages that took long, and of which a transfer failed (a bad spot, a
        # truncated file): no patience was left to read them apart. What goes on in the middle of it
        # takes time, too.
        if self._failed_reads() > failed_reads and count > 1 and seconds >= PATIENCE_SECONDS:
            return
        for entry in self.thing.table.entries[first : first + count].tolist():
            slot = frames.below[entry & FRAME_MASK] if 0 < entry < SAME_FILLED else 0
            if slot:
                place = store.below.place_of(slot)
                tier, slot = cast(JudgedTier, place.tier), slot - place.before
                if tier.is_spoiled(slot) or tier.may_fail(slot):
                    return
        raise AssertionError("a page is called damaged, and nothing happened to it")


def _show(page: bytes | None) -> str:
    return "lost" if page is None else f"{page[:8].hex()}..{page[-8:].hex()}"


assert max(COUNTS) <= FETCH_SLOTS

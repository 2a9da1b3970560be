"""The whole store against a plain dict, with budgets so small that every state of a frame is
visited.

Three objects share one budget: a persistent one that always fits (budget + below >= pages), and two
ephemeral ones that take what is left. Rules run in one thread, so a failure shrinks; background
reclaim is a rule like any other. `check` is an invariant.
"""

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.pages import any_page
from tests.support.stores import PAGE_BYTES, get, new_object, small_store, tier_of
from zcache.control.check import check
from zcache.errors import PageDamaged, PageLost, StoreFull
from zcache.pages.tmem import Kind

PAGES = 40
EPHEMERAL_PAGES = 12

lengths = st.sampled_from([1, 1, 1, 2, 3, 8, 24])
seeds = st.integers(0, 2**32 - 1)


class StoreAgainstADict(RuleBasedStateMachine):
    """`model` maps a page to its bytes, or to None once its put has failed (it is lost)."""

    faults = False
    fits = True

    @initialize(
        budget=st.integers(4, 16),
        codec=st.sampled_from(["lz4", "lz4:8", "zstd:1"]),
        encrypt=st.sampled_from(["no", "yes"]),
    )
    def build(self, budget: int, codec: str, encrypt: str) -> None:
        below = PAGES - budget if self.fits else 6
        self.store = small_store(budget, below, codec, encrypt=encrypt)
        self.tier = tier_of(self.store)
        self.device = new_object(self.store, PAGES)
        self.model: dict[int, bytes | None] = {}
        self.clean = [new_object(self.store, EPHEMERAL_PAGES, Kind.EPHEMERAL) for _ in range(2)]
        self.clean_models: list[dict[int, bytes]] = [{}, {}]

    # -- persistent
    # ----------------------------------------------------------------------------------------------

    @rule(first=st.integers(0, PAGES - 1), length=lengths, seed=seeds)
    def put(self, first: int, length: int, seed: int) -> None:
        rng = random.Random(seed)
        pages = [any_page(rng) for _ in range(min(length, PAGES - first))]
        try:
            self.store.put(self.device, first, memoryview(b"".join(pages)))
        except StoreFull:
            assert not self.fits or self.faults
            for index in range(first, first + len(pages)):
                try:
                    get(self.store, self.device, index)
                except PageLost:
                    self.model[index] = None
                else:
                    self.model[index] = pages[index - first]
            return
        self.model.update(enumerate(pages, first))

    @rule(index=st.integers(0, PAGES - 1), offset=st.integers(0, 4095), size=st.integers(1, 4096), seed=seeds)
    def modify(self, index: int, offset: int, size: int, seed: int) -> None:
        data = random.Random(seed).randbytes(min(size, PAGE_BYTES - offset))
        old = self.model.get(index, bytes(PAGE_BYTES))
        try:
            self.store.modify(self.device, index, offset, memoryview(data))
        except PageLost:
            assert old is None
        except StoreFull:
            assert not self.fits or self.faults
            self.model[index] = None
        except PageDamaged:
            assert self.faults
        else:
            assert old is not None
            self.model[index] = old[:offset] + data + old[offset + len(data) :]

    @rule(first=st.integers(0, PAGES - 1), length=lengths)
    def get(self, first: int, length: int) -> None:
        wanted = [self.model.get(index, bytes(PAGE_BYTES)) for index in range(first, min(first + length, PAGES))]
        try:
            got = get(self.store, self.device, first, len(wanted))
        except PageLost:
            assert None in wanted
        except PageDamaged:
            assert self.faults
        else:
            assert got == b"".join(page or b"(lost)" for page in wanted)

    @rule(first=st.integers(0, PAGES - 1), length=st.integers(1, PAGES))
    def flush(self, first: int, length: int) -> None:
        length = min(length, PAGES - first)
        self.store.flush(self.device, first, length)
        for index in range(first, first + length):
            self.model.pop(index, None)

    @rule()
    def extents_cover_exactly_what_is_not_zero(self) -> None:
        position = 0
        for start, count, zero in self.store.extents(self.device, 0, PAGES):
            assert start == position and count > 0
            position += count
            for index in range(start, start + count):
                page = self.model.get(index, bytes(PAGE_BYTES))
                assert zero == (page == bytes(PAGE_BYTES))
        assert position == PAGES

    # -- ephemeral: a get may miss at any time, but never lies
    # --------------------------------------------------------

    @rule(which=st.integers(0, 1), index=st.integers(0, EPHEMERAL_PAGES - 1), seed=seeds)
    def put_ephemeral(self, which: int, index: int, seed: int) -> None:
        page = any_page(random.Random(seed))
        self.store.put(self.clean[which], index, memoryview(page))
        self.clean_models[which][index] = page

    @rule(which=st.integers(0, 1), index=st.integers(0, EPHEMERAL_PAGES - 1))
    def get_ephemeral(self, which: int, index: int) -> None:
        out = bytearray(PAGE_BYTES)
        if self.store.get(self.clean[which], index, memoryview(out)):
            self.clean_models[which].pop(index, None)  # after a failed get, gets fail until the next put
        else:
            assert out == self.clean_models[which][index]

    @rule(which=st.integers(0, 1), first=st.integers(0, EPHEMERAL_PAGES - 1))
    def flush_ephemeral(self, which: int, first: int) -> None:
        self.store.flush(self.clean[which], first, EPHEMERAL_PAGES - first)
        for index in range(first, EPHEMERAL_PAGES):
            self.clean_models[which].pop(index, None)

    @rule(which=st.integers(0, 1))
    def flush_ephemeral_object(self, which: int) -> None:
        self.store.flush_object(self.clean[which])
        self.clean[which] = new_object(self.store, EPHEMERAL_PAGES, Kind.EPHEMERAL)
        self.clean_models[which].clear()

    # -- reclaim and damage
    # -------------------------------------------------------------------------------------------

    @rule()
    def reclaim_in_the_background(self) -> None:
        self.store.reclaimer.clean_some()

    @precondition(lambda self: self.faults)
    @rule()
    def next_write_fails(self) -> None:
        self.tier.failing_writes = 1

    @precondition(lambda self: self.faults)
    @rule()
    def next_read_fails(self) -> None:
        self.tier.failing_reads = 1

    @precondition(lambda self: self.faults and self.tier.medium)
    @rule(data=st.data(), byte=st.integers(0, PAGE_BYTES - 1))
    def a_bit_flips(self, data: st.DataObject, byte: int) -> None:
        self.tier.flip_bit(data.draw(st.sampled_from(sorted(self.tier.medium))), byte)

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "store"):
            check(self.store)


class FullStoreAgainstADict(StoreAgainstADict):
    """Overcommitted: puts fail, the pages they were for are lost, and all others stay."""

    fits = False


class FaultyTierAgainstADict(StoreAgainstADict):
    """The tier fails and flips bits: errors are allowed, wrong bytes are not."""

    faults = True


StoreAgainstADict.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
FullStoreAgainstADict.TestCase.settings = settings(max_examples=40, stateful_step_count=60)
FaultyTierAgainstADict.TestCase.settings = settings(max_examples=40, stateful_step_count=60)
TestStore = StoreAgainstADict.TestCase
TestFullStore = FullStoreAgainstADict.TestCase
TestFaultyTier = FaultyTierAgainstADict.TestCase

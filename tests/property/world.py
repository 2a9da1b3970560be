"""A small world: a store of a few frames, tiers that fail, servers that die, and clients who know
what is right.

Everything about a world comes from its seed: budget, room below, codec, layout of the pages,
faults, what else happens while the tier works, deaths. In most worlds one thread does it all, and
the seed repeats it exactly. In some, two to four threads have a range of pages each, and background
reclaim runs; what a seed repeats there is the set-up.

The books are checked every so often; at the end every page is read, all are trimmed, and nothing
may be left.
"""

import gc
import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from tests.property.client import Client
from tests.property.disk_client import DiskClient
from tests.property.test_death_and_rebuild import Death, copy_image
from tests.support.clock import FakeClock
from tests.support.stores import drop_clean_frames, new_object, small_store, store_with_image
from tests.support.tiers import FaultyTier
from zcache.allocators.choice import ALLOCATORS
from zcache.budget.budget import Budget
from zcache.control.check import check
from zcache.image.image import new_descriptor
from zcache.pages.tmem import Kind, TmemObject
from zcache.store.store import Store
from zcache.tiers.backoff import LAST_REST_SECONDS

CODECS: Final = ["lz4", "lz4", "lz4", "lz4:8", "zstd:1", "zstd:-5", "zstd:3"]

CHECK_EVERY: Final = 150  # operations
EPHEMERAL_PAGES: Final = 12

#: How often threads may change places: a hundred times as often as usual.
SWITCH_SECONDS: Final = 5e-5


class World:
    """`run` it; raises what is found. `operations` says how far it got, `describe` what it is."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.threads = rng.randrange(2, 5) if rng.random() < 0.15 else 1
        self.codec = rng.choice(CODECS)
        has_tier = self._chooses_tier()
        self.has_image = has_tier and rng.random() < 0.4
        is_tight = rng.random() < 0.25  # overcommitted: puts may fail
        self.has_faults = has_tier and rng.random() < 0.6
        self.busy_share = rng.choice([0.0, 0.3, 0.7]) if has_tier else 0.0  # of transfers with something meanwhile
        self.allocator = rng.choice([*ALLOCATORS])
        chosen = ALLOCATORS[self.allocator]
        self.recompress = rng.choice([None, "zstd:1"]) if self.allocator == "log" else None
        spots, stop, max_count = self._layout()
        pages = len({page for spot in spots for page in range(spot, min(spot + max_count, stop))})
        frames = chosen.frames_for(pages)
        budgets = {"zbud": [2, 3, 4, 6, 8, 12], "log": [7, 8, 9, 12]}[self.allocator]
        self.budget_frames = rng.choice(budgets) if has_tier or is_tight else frames
        self.admit = rng.choice(["always", "reused"])
        self._made_with: Any = {"codec": self.codec, "allocator": self.allocator, "recompress": self.recompress}
        self.reclaim_share = rng.choice([0.03, 0.1, 0.3])
        below = max(frames * (rng.random() if is_tight else 1.0) - self.budget_frames, 0)
        self.clock = clock = self._new_clock()
        slots = int(below) + rng.randrange(1, 9)
        #: What is done beside requests, by threads of their own in a real server.
        self.works: list[Callable[[], object]] = []
        self.work_share = 0.0  # of the turns of a world with one thread
        self.tiers: list[Any] = self._make_tiers(slots, clock, chosen.frame_bytes) if has_tier else []
        # The budget moves, down to what the pages were promised.
        promised = 0 if is_tight else frames - (slots if has_tier else 0)
        self.min_budget_frames = min(max(budgets[0], promised), self.budget_frames)
        self.moves_budget = self.threads == 1 and rng.random() < 0.4
        self.may_be_full = is_tight or self.has_faults
        self.death_every = rng.choice([0, 60, 400]) if self.has_image and self.threads == 1 else 0
        self.deaths = 0
        self._is_happening = False
        self.disks: list[DiskClient] = []
        self._found: Exception | None = None
        self.descriptor = new_descriptor() if self.has_image else -1
        self.page_count = stop
        store, thing = self._store()
        share = (len(spots) + self.threads - 1) // self.threads
        groups = [spots[start : start + share] for start in range(0, len(spots), share)]
        stops = [group[0] for group in groups[1:]] + [stop]
        self.clients = [
            Client(store, thing, random.Random(rng.random()), group, end)
            for group, end in zip(groups, stops, strict=True)
        ]
        for client in self.clients:
            client.may_be_full, client.max_count = self.may_be_full, max_count
            client.is_alone = self.threads == 1
        self._share_with_others()

    def _chooses_tier(self) -> bool:
        return self.rng.random() < 0.85

    def _new_clock(self) -> FakeClock:
        return FakeClock()

    def _make_tiers(self, slots: int, clock: FakeClock, frame_bytes: int) -> list[FaultyTier]:
        """One, or several with so many slots together."""
        rng = self.rng
        count = min(rng.choice([1, 1, 2, 3]), slots)
        cuts = [0, *sorted(rng.sample(range(1, slots), count - 1)), slots]
        return [FaultyTier(stop - start, clock, rng, frame_bytes) for start, stop in itertools.pairwise(cuts)]

    def _share_with_others(self) -> None:
        """What else lives from the budget: objects of ephemeral pools, and clean disks."""
        rng, store = self.rng, self.store
        spots = [*range(EPHEMERAL_PAGES)]
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            ephemeral = new_object(store, EPHEMERAL_PAGES, Kind.EPHEMERAL)
            self.clients.append(Client(store, ephemeral, random.Random(rng.random()), spots, EPHEMERAL_PAGES))
        pool = store.tmem.new_pool(Kind.EPHEMERAL)
        self.disks = [DiskClient(store, pool, random.Random(rng.random())) for _ in range(rng.choice([0, 0, 0, 1, 2]))]
        self._meet_in_disks()

    def _meet_in_disks(self) -> None:
        """Other requests in the middle of a disk's reads and writes, too."""
        happen = self._pause if self.threads > 1 else self._happen
        for disk in self.disks if self.busy_share else ():
            file = disk.file
            file.before_read = file.after_read = file.before_write = file.after_write = happen

    def _layout(self) -> tuple[list[int], int, int]:
        """Where operations may begin, how many pages there are, and how long the longest put is."""
        rng = self.rng
        if rng.random() < 0.75:
            stop = rng.randrange(12, 64)
            return [*range(stop)], stop, 24
        first, second = rng.randrange(480, 512), rng.randrange(1000, 1024)
        spots = [*range(rng.randrange(2, 20)), *range(first, first + 20), *range(second, second + 12)]
        return spots, rng.choice([1024 + 24, 1200, 1536]), rng.choice([24, 70])

    def _make_store(self) -> tuple[Store, TmemObject]:
        tiers = self.tiers
        if self.has_image:
            place = (self.descriptor, self.page_count, self.budget_frames, tiers)
            return store_with_image(*place, codec=self.codec, allocator=self.allocator, recompress=self.recompress)
        store = small_store(
            self.budget_frames, codec=self.codec, tiers=tiers, allocator=self.allocator, recompress=self.recompress
        )
        return store, new_object(store, self.page_count)

    def _store(self) -> tuple[Store, TmemObject]:
        store, thing = self._make_store()
        store.admission.admit = self.admit
        self.budget = Budget(store.frames, store.reclaimer, store.lock, store.statistics, self.min_budget_frames)
        if self.moves_budget:
            self.budget.begin(self.rng.randrange(self.min_budget_frames, self.budget_frames + 1))
        happen = self._pause if self.threads > 1 else self._happen
        for tier in self.tiers if self.busy_share else ():
            tier.before_write = tier.before_read = tier.after_read = happen
        return store, thing

    @property
    def operations(self) -> int:
        """Calls of put, get, flush and modify, and requests to disks, so far."""
        return sum(client.operations for client in self._everybody())

    def _everybody(self) -> "list[Client | DiskClient]":
        return [*self.clients, *self.disks]

    @property
    def store(self) -> Store:
        """That of the server that lives."""
        return self.clients[0].store

    def describe(self) -> str:
        """One line."""
        below = "; ".join(f"{tier.slot_count} frames below, faults {tier.faults}" for tier in self.tiers) or "no tier"
        return (
            f"world {self.seed}: {self.threads} threads, {self.page_count} pages, {self._made_with}, "
            f"{self.budget_frames} frames, {below}, image {self.has_image}, busy {self.busy_share}, "
            f"{len(self.clients)} clients, {len(self.disks)} disks, admit {self.admit}, "
            f"{self.deaths} deaths"
        )

    def log(self) -> str:
        """The last operations of each client, the latest last."""
        return "\n".join(f"client {n}: {list(client.log)}" for n, client in enumerate(self._everybody()))

    def close(self) -> None:
        """Give the image back."""
        if self.has_image:
            os.close(self.descriptor)
            gc.collect()  # stores are in cycles, with their images mapped

    # -- what happens while the tier works
    # --------------------------------------------------------------------------

    def _happen(self) -> None:
        """Other requests, in the middle of this one; nothing happens in the middle of those."""
        rng = self.rng
        if self._is_happening:
            return
        self._is_happening = True
        try:
            while rng.random() < self.busy_share:
                if rng.random() < 0.15:
                    self._reclaim_meanwhile()
                else:
                    rng.choice(self._everybody()).meanwhile()
        except Exception as error:  # which a flight takes for its tier's
            self._found = error
            raise
        finally:
            self._is_happening = False

    def _reclaim_meanwhile(self) -> None:
        self.store.reclaimer.clean_some()

    def _pause(self) -> None:
        if self.rng.random() < self.busy_share:
            time.sleep(self.rng.random() * 3e-4)

    # -- running
    # ----------------------------------------------------------------------------------------------

    def run(self, operations: int) -> None:
        """About so many operations, and the end of the world."""
        try:
            if self.threads > 1:
                self._run_threads(operations)
            else:
                self._run_one(operations)
            self._end()
        finally:
            self.store.reclaimer.stop()
            self.close()

    def _run_one(self, operations: int) -> None:
        rng, next_check = self.rng, CHECK_EVERY
        next_death = self.death_every
        while (done := self.operations) < operations:
            if next_death and done >= next_death:
                next_death += rng.randrange(1, 2 * self.death_every)
                self._die()
            if self.works and rng.random() < self.work_share:
                self._work()
            dice = rng.random()
            if dice < self.reclaim_share:
                self.store.reclaimer.clean_some()
                if rng.random() < 0.2:
                    drop_clean_frames(self.store)
                if recompressor := self.store.recompressor:
                    rng.choice([recompressor.recompress_oldest, recompressor.recompress_rested])()
                self.store.reclaimer.tidy()
            elif dice < self.reclaim_share + 0.02 and self.has_faults:
                self._change_faults()
            elif dice < self.reclaim_share + 0.04 and self.moves_budget:
                self._move_budget()
            else:
                rng.choice(self._everybody()).act()
            if self._found:
                raise self._found
            if done >= next_check:
                next_check = done + CHECK_EVERY
                check(self.store)
                self.clients[0].check_extents()

    def _work(self) -> None:
        """A turn of something that is done beside requests."""
        self.rng.choice(self.works)()

    def _move_budget(self) -> None:
        budget, count = self.budget, self.rng.randrange(1, 6)
        before = self.store.frames.budget_frames
        if self.rng.random() < 0.5:
            assert budget.grow(count) == min(count, self.budget_frames - before)
        else:
            assert budget.shrink(count, may_write=self.rng.random() < 0.5) <= count
            assert self.store.frames.budget_frames >= self.min_budget_frames
        budget.sweep()

    def _change_faults(self) -> None:
        """Time passes; now and then other faults begin."""
        self.store.clock.sleep(self.rng.choice((0.01, 0.3, 5.0)))
        if self.rng.random() < 0.4:
            self.rng.choice(self.tiers).choose_regime()

    def _run_threads(self, operations: int) -> None:
        found: list[BaseException] = []
        clients = self._everybody()
        share = operations // len(clients)

        def work(client: Client | DiskClient) -> None:
            try:
                while client.operations < share and not found:
                    client.act()
            except BaseException as error:
                found.append(error)

        def work_on(turn: Callable[[], object]) -> None:
            try:
                while not (is_over or found):
                    turn()
                    time.sleep(0.001)
            except BaseException as error:
                found.append(error)

        is_over: list[bool] = []
        workers = [threading.Thread(target=work, args=(client,), daemon=True) for client in clients]
        beside = [threading.Thread(target=work_on, args=(turn,), daemon=True) for turn in self.works]
        usual = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            self.store.reclaimer.start()
            for worker in (*workers, *beside):
                worker.start()
            while any(worker.is_alive() for worker in workers) and not found:
                time.sleep(0.005)
                check(self.store)
                if self.has_faults:
                    self._change_faults()
        finally:
            sys.setswitchinterval(usual)
            is_over.append(True)
            for worker in (*workers, *beside):
                worker.join()
            self.store.reclaimer.stop()
        if found:
            raise found[0]

    def _end(self) -> None:
        store = self.store
        for tier in self.tiers:
            tier.before_write = tier.before_read = tier.after_read = lambda: None
            tier.heal()
        store.clock.sleep(LAST_REST_SECONDS)
        for disk in self.disks:
            disk.file.before_read = disk.file.after_read = lambda: None
        for any_client in self._everybody():
            any_client.check_all()
        check(store)
        drop_clean_frames(store)  # and once more, from below
        for disk in self.disks:
            disk.check_all()
        for disk in self.disks:
            disk.close()
        for client in self.clients:
            client.check_all()
            client.flush(client.first, client.stop - client.first)
        check(store)
        assert not store.frames.resident and not store.frames.cold, "frames are held for nobody"
        assert not any(tier.used_slots for tier in self.tiers), "slots below are held for nobody"

    # -- deaths
    # ----------------------------------------------------------------------------------------------

    def _die(self) -> None:
        """The server is killed, between two operations or at some line of one, and the next one
        goes on."""
        self.deaths += 1
        client = self.clients[0]
        if self.rng.random() < 0.3:
            self._go_on(self.descriptor, self._successors())
            return
        before = {index: [page, *client.unsure.get(index, ())] for index, page in client.model.items()}
        left: list[tuple[int, Any]] = []
        line = self.rng.choice([self.rng.randrange(1, 40), self.rng.randrange(1, 400)])
        acts = [self.store.reclaimer.clean_some, *self.works]
        act: Callable[[], object] = client.act if self.rng.random() < 0.85 else self.rng.choice(acts)
        client.may_lose = range(0)
        with Death(line, lambda: left.append((copy_image(self.descriptor), self._successors()))):
            act()
        if not left:
            return
        zeros: list[bytes | None] = [bytes(4096)]
        changed = {*client.happened_meanwhile, *client.may_lose}
        changed.update(i for i in before.keys() | client.model.keys() if self._allowed(i) != before.get(i, zeros))
        for index in changed:
            possible = [
                *before.get(index, zeros),
                *self._allowed(index),
                *client.happened_meanwhile.get(index, ()),
                None,
            ]
            client.model[index], client.unsure[index] = possible[0], possible[1:]
        os.close(self.descriptor)
        self._go_on(*left[0])

    def _allowed(self, index: int) -> list[bytes | None]:
        client = self.clients[0]
        return [client.model.get(index, bytes(4096)), *client.unsure.get(index, ())]

    def _successors(self) -> Any:
        """What is below, as the next server will find it."""
        return [tier.successor() for tier in self.tiers]

    def _inherit(self, left: Any) -> None:
        self.tiers = left

    def _go_on(self, descriptor: int, left: Any) -> None:
        self.descriptor = descriptor
        self._inherit(left)
        store, thing = self._store()
        for client in self.clients:
            is_ephemeral = client.thing.kind is Kind.EPHEMERAL
            client.store = store
            client.thing = new_object(store, EPHEMERAL_PAGES, Kind.EPHEMERAL) if is_ephemeral else thing
            client.happened_meanwhile.clear()
            if is_ephemeral:
                client.model.clear()
        pool = store.tmem.new_pool(Kind.EPHEMERAL)
        for disk in self.disks:
            disk.go_on(store, pool)
        self._meet_in_disks()
        check(store)

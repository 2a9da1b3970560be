"""Worlds whose frames go to engines: each twice, before a disk or alone, or as copies of what is on
a disk. The engines are `tests.support.fake_engine`'s, and fail in every way that it knows.

In a *careful* world one engine at a time is in trouble, and the next one only when all is as it
should be again: then nothing may be lost, and no read may fail, whatever the one does. In others
anything happens at any time, and a page may fail if no engine has its frame any more, or those that
have it are in trouble, or were a moment ago. At no time does a page read as anything else than what
was written.

At the end all engines are well, and the mender has had its turns: then each frame has two copies,
where the tables say that they are, and nothing else is left at any engine. `works` are what is done
beside requests: a turn of each is an operation of the world, and happens while somebody waits.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from tests.property.world import World
from tests.support.clock import FakeClock
from tests.support.fake_engine import FakeEngine, FakeNetwork
from tests.support.seals import new_seal
from tests.support.stores import parse
from tests.support.tiers import FaultyTier
from zcache.allocators.choice import ALLOCATORS
from zcache.control.check import check
from zcache.image.image import Geometry, Image
from zcache.pageframes.slots import slots_of
from zcache.pages.tmem import Kind, TmemObject
from zcache.remote.accounts import name_of
from zcache.remote.copies import Copies
from zcache.remote.engines import Engines
from zcache.remote.mender import GONE_SECONDS, Mender
from zcache.remote.peer import READERS, Peer
from zcache.remote.readers import MAX_BUSY, Readers
from zcache.remote.remote_front import RemoteFront
from zcache.remote.remote_tier import COPIES, RemoteTier
from zcache.remote.sweeper import SWEEP_SECONDS
from zcache.remote.tables import Tables, no_image
from zcache.remote.url import parse_url
from zcache.server.rebuild import rebuild
from zcache.store.store import Store

#: What happens to engines; a world has some of these.
FAULTS: Final = ["pause", "cut", "kill", "restart", "snapshot", "failover", "split", "full", "slow", "reset", "forget"]
#: For how long after its trouble an engine may not be connected yet: a rest of two seconds, an
#: exchange that has begun, and some turns.
LATE_SECONDS: Final = 10.0
#: For how long a request tries, at most.
READ_SECONDS: Final = 4.5
#: One wait, where several threads share a clock.
SHARED_SECONDS: Final = 0.002
#: Until all is as it should be, once all engines are well.
MOST_TURNS: Final = 400
#: Until all engines were swept.
SWEEP_TURNS: Final = 25


class WorldClock(FakeClock):
    """While somebody sleeps, others work. It stands still for what is done then, and for what
    happens in the middle of an exchange: neither takes longer for that."""

    def __init__(self) -> None:
        self.is_still = False
        self.is_shared = False  # by several threads: who waits really does, or time would fly for others
        super().__init__()
        self.meanwhile: Callable[[], None] = lambda: None

    @property
    def seconds(self) -> float:
        return self._seconds

    @seconds.setter
    def seconds(self, seconds: float) -> None:
        if not self.is_still:
            self._seconds = seconds

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        with self.standing_still():
            self.meanwhile()

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        before, self.is_still = self.is_still, True
        try:
            yield
        finally:
            self.is_still = before

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        if self.is_shared:
            self.seconds += SHARED_SECONDS
            condition.wait(SHARED_SECONDS)
            return
        super().sleep(seconds)
        condition.release()
        try:
            with self.standing_still():
                self.meanwhile()
        finally:
            condition.acquire()


class _Judged:
    """What `World` and `Client` ask of a tier, of one that is at engines."""

    def __init__(self) -> None:
        self.before_write: Callable[[], None] = lambda: None
        self.before_read: Callable[[], None] = lambda: None
        self.after_read: Callable[[], None] = lambda: None
        self.faults: dict[str, int] = {}
        self.failed_reads = 0

    def heal(self) -> None:
        """The world does."""

    def transfer(self, before: Callable[[], None], act: Callable[[], None], after: Callable[[], None]) -> None:
        before()
        try:
            act()
        except OSError:
            self.failed_reads += 1
            raise
        after()


class JudgedRemoteTier(_Judged, RemoteTier):
    """Frames at two engines."""

    def __init__(self, world: "RemoteWorld", slot_count: int, copies: Copies, is_last: Callable[[], bool]) -> None:
        _Judged.__init__(self)
        RemoteTier.__init__(self, slot_count, copies, is_last)
        self._world, self.faults = world, world.troubles
        self._justified_at: dict[int, float] = {}  # slots whose read has failed, and may have

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        self.before_write()
        super().write(first_slot, frames)

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        try:
            self.transfer(self.before_read, lambda: RemoteTier.read(self, first_slot, frames), self.after_read)
        except OSError:  # by the time that it is judged, the mender may have set it right
            now = self._world.clock.now()
            for slot in filter(self._is_justified, range(first_slot, first_slot + len(frames))):
                self._justified_at[slot] = now
            raise

    def is_spoiled(self, slot: int) -> bool:
        return not self._world.is_careful and not self._world.engines_with(slot)

    def may_fail(self, slot: int) -> bool:
        was_lately = self._world.clock.now() - self._justified_at.get(slot, -READ_SECONDS)
        return was_lately < READ_SECONDS or self._is_justified(slot)

    def _is_justified(self, slot: int) -> bool:
        world, engines = self._world, self._world.engines_with(slot)
        if not world.is_careful:  # an engine whose answer was lost may have it, and nobody knows
            return all(world.was_in_trouble(engine) for engine in engines if world.is_named(engine, slot))
        # One is in trouble, and the other is being connected by who stands still for this read.
        return any(map(world.is_being_connected, engines)) and all(
            world.is_being_connected(engine) or engine.name == world.in_trouble for engine in engines
        )


class JudgedRemoteFront(_Judged, RemoteFront):
    """Copies of what is on a disk: an error is justified if it is the disk's."""

    def __init__(self, disk: FaultyTier, copies: Copies, limit_slots: int) -> None:
        _Judged.__init__(self)
        RemoteFront.__init__(self, disk, copies, limit_slots)
        self.is_spoiled, self.may_fail, self.faults = disk.is_spoiled, disk.may_fail, disk.faults

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        self.before_write()
        super().write(first_slot, frames)

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        self.transfer(self.before_read, lambda: RemoteFront.read(self, first_slot, frames), self.after_read)


class Left(NamedTuple):
    """What a server leaves behind, beside its image."""

    disks: list[FaultyTier]
    network: FakeNetwork
    old_engines: list[FakeEngine]


class RemoteWorld(World):
    """See there."""

    clock: WorldClock

    def _chooses_tier(self) -> bool:
        return True

    def _new_clock(self) -> WorldClock:
        clock = WorldClock()
        clock.meanwhile = self._work_meanwhile
        clock.is_shared = self.threads > 1
        return clock

    def _make_tiers(self, slots: int, clock: FakeClock, frame_bytes: int) -> list[FaultyTier]:
        """The disk, if there is one, and engines. The tiers themselves are each server's."""
        rng = self.rng
        self.layout = rng.choice(["remote", "remote", "remote and disk", "front"])
        self.is_careful = rng.random() < 0.5 and not (self.has_faults and self.threads > 1)
        self.kinds = rng.sample(FAULTS, rng.randrange(1, len(FAULTS) + 1)) if self.has_faults else []
        if self.is_careful:
            self.kinds = [kind for kind in self.kinds if kind != "full"] or ["kill"] * self.has_faults
        self.work_share = rng.choice([0.02, 0.1, 0.5])
        self.demotes = rng.random() < 0.5
        is_cluster = rng.random() < 0.25
        self.network = FakeNetwork(clock, rng, is_cluster=is_cluster)
        self.network.latency_seconds = rng.choice([1e-4, 1e-3, 5e-3])
        # A Cluster of two has no majority once one is gone: for two copies it is refused.
        count = rng.choice([3, 4] if is_cluster and self.layout != "front" else [2, 2, 3, 4])
        self.names = [f"127.0.0.{n + 1}:7000" if is_cluster else f"/engine{n}" for n in range(count)]
        for name in self.names:
            self.network.add(name)
        self.old_engines: list[FakeEngine] = []  # that somebody is connected to still
        self.turned_at = clock.now()  # when the mender has ended its last turn
        self.trouble_at = dict.fromkeys(self.names, 0.0)
        self.in_trouble = ""  # in a careful world: the one that is
        self.troubles: dict[str, int] = {}
        self._is_working = self._is_locked = False
        disk_slots = {"remote": 0, "front": slots}.get(self.layout, slots // 2)
        self.remote_slots = slots if self.layout == "front" else slots - disk_slots
        self.limit_slots = rng.randrange(1, slots + 1)
        if "full" in self.kinds and rng.random() < 0.5:
            frames = rng.randrange(1, 2 * self.remote_slots + 2)
            self.network.maxmemory = (frames * (frame_bytes + 500) + 20000) // len(self.names) * 32 // 31
        self.disks_below = [FaultyTier(disk_slots, clock, rng, frame_bytes)] if disk_slots else []
        return self.disks_below

    def _make_store(self) -> tuple[Store, TmemObject]:
        chosen = ALLOCATORS[self.allocator]
        disk = self.disks_below[0] if self.disks_below else None
        is_front = self.layout == "front"
        slots_below = self.remote_slots + (disk.slot_count if disk and not is_front else 0)
        image = None
        if self.has_image:
            budget = self.budget_frames
            geometry = Geometry(
                self.page_count, slots_of(budget), budget + slots_below, chosen.frame_bytes, "no", self.allocator, None
            )._replace(remote_slots=self.remote_slots)
            image = Image.open(self.descriptor, geometry)
        self.tables = Tables(self.remote_slots, image.section if image else no_image)
        if self.network.is_cluster:
            urls = [parse_url(f"redis://{name}?cluster=yes") for name in self.names]
        else:
            urls = [parse_url(f"unix://{name}") for name in self.names]
        engines = Engines(urls, 1 if is_front else COPIES, is_front, self.clock, self.network.connect)
        engines.resolve(True, lambda _: None)
        # With one thread, a read that comes in the middle of another cannot wait for it.
        Readers.max_busy = READERS if self.threads == 1 else MAX_BUSY
        is_new = image is None or image.epoch == 1
        if is_new:
            engines.check(lambda _: None)
        peers = engines.make_peers(name_of(image.secret if image else b""), self.tables, is_new)
        self.copies = Copies(self.tables, peers, chosen.frame_bytes, self.clock)
        if is_front:
            assert disk
            front = JudgedRemoteFront(disk, self.copies, self.limit_slots)
            self.mender = Mender(front, engines, self.clock, lambda _: None)
            self.tiers = [front]
            self.is_used = front.is_used
        else:
            tier = JudgedRemoteTier(self, self.remote_slots, self.copies, lambda: not (disk and disk.free_slots))
            self.mender = Mender(tier, engines, self.clock, lambda _: None)
            self.tiers = [tier, *self.disks_below]
            self.is_used = tier.is_used
        self.works = []  # until there is a store
        self.network.unlinked = self._see_unlink
        self.mender.connect_all()
        store = Store(
            budget_bytes=self.budget_frames * chosen.frame_bytes,
            codec=parse(self.codec),
            allocator=self.allocator,
            recompress=parse(self.recompress) if self.recompress else None,
            tiers=self.tiers,
            seal=new_seal("no", frame_bytes=chosen.frame_bytes),
            image=image,
            clock=self.clock,
        )
        self.works = [self._turn, *[self._demote] * (self.demotes and store.demoter is not None)]
        pool = store.tmem.new_pool(Kind.PERSISTENT)
        thing = store.tmem.new_object(pool, 0, self.page_count, image.section("entries") if image else None)
        if not is_new:
            rebuild(store, thing)
        if self.busy_share and self.threads == 1:
            self.network.in_exchange = self._happen_in_exchange
        return store, thing

    def describe(self) -> str:
        engines = ", ".join(f"{name} {engine.state}" for name, engine in self.network.at.items())
        return (
            f"remote {super().describe()}; {self.layout}, careful {self.is_careful}, {engines}, "
            f"maxmemory {self.network.maxmemory}, {self.kinds}, {self.troubles}, {self.copies.counters.as_dict()}"
        )

    # -- what is done beside requests
    # ---------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Of the mender."""
        if self._is_working or self._is_locked:
            return
        self._is_working = True
        try:
            self.mender.work()
            self.turned_at = self.clock.now()
        finally:
            self._is_working = False

    def _demote(self) -> None:
        """Whatever is due of that; not where it would have to wait for one who waits for it."""
        demoter = self.store.demoter
        if self._is_working or self._is_locked or not demoter or not self.store.frames.slots.fetch_count:
            return
        self._is_working = True
        try:
            demoter.work()
        finally:
            self._is_working = False
        assert not demoter.unforeseen, demoter.unforeseen

    def _work_meanwhile(self) -> None:
        """While somebody sleeps, each has a turn, in a world with one thread."""
        if self.threads == 1:
            for work in self.works:
                work()

    def _reclaim_meanwhile(self) -> None:
        if self._is_locked:
            return
        if self.rng.random() < 0.5:
            super()._reclaim_meanwhile()
        else:
            self._work()

    def _happen_in_exchange(self, is_write: bool) -> None:
        """Other requests; but while a connection for writing is in use, none that need it."""
        if self._is_happening or self._is_locked or not self.works:
            return
        self._is_locked = is_write
        try:
            with self.clock.standing_still():
                self._happen()
        finally:
            self._is_locked = False

    # -- trouble
    # ---------------------------------------------------------------------------------------------

    def _change_faults(self) -> None:
        rng = self.rng
        self.clock.sleep(rng.choice((0.01, 0.01, 0.3, 0.3, 5.0, GONE_SECONDS)))
        if self.disks_below and not self.is_careful and rng.random() < 0.2:
            self.disks_below[0].choose_regime()
        for old in [old for old in self.old_engines if rng.random() < 0.3]:
            old.end()
            self.old_engines.remove(old)
        if rng.random() < 0.3:
            self._mend(rng.choice(self.names))
        elif self.is_careful:
            self.in_trouble = self.in_trouble or rng.choice(self.names)
            self._trouble(self.in_trouble)
        else:
            self._trouble(rng.choice(self.names))

    def _trouble(self, name: str) -> None:
        rng, engine = self.rng, self.network.at[name]
        kind = rng.choice(self.kinds)
        self.troubles[kind] = self.troubles.get(kind, 0) + 1
        self.trouble_at[name] = self.clock.now()
        if rng.random() < 0.3:
            engine.save()
        if engine.state == "dead":
            kind = rng.choice(["restart", "snapshot"])
        if kind in ("pause", "cut"):
            engine.state = {"pause": "paused"}.get(kind, "cut")
        elif kind == "kill":
            engine.end()
        elif kind in ("restart", "snapshot"):
            self.network.restart(name, is_from_snapshot=kind == "snapshot")
            self.network.at[name].is_loading = rng.random() < 0.2
        elif kind in ("failover", "split"):
            if rng.random() < 0.3:
                engine.lag_all()
            if kind == "split" and engine.state == "up":
                self.old_engines.append(engine)
            self.network.fail_over(name, is_old_alive=kind == "split")
        elif kind == "full":
            engine.foreign_bytes = self.network.maxmemory
        elif kind == "slow":
            engine.delays, engine.longest_delay_seconds = rng.choice([0.1, 0.5, 1.0]), rng.choice([0.06, 0.5, 3.0])
        elif kind == "reset":
            engine.resets = rng.choice([0.05, 0.3, 1.0])
        elif kind == "forget":
            for key in [key for key in list(engine.data) if rng.random() < 0.2 and not key.endswith(b"account")]:
                engine.forget(key)

    def _mend(self, name: str) -> None:
        """An engine's trouble is over; what was sent to it late may be yet to come."""
        engine = self.network.at[name]
        if self.is_careful and name != self.in_trouble:
            return
        self.trouble_at[name] = self.clock.now()
        for old in [old for old in self.old_engines if old.name == name]:
            old.end()
            self.old_engines.remove(old)
        if engine.state == "dead":
            self.network.restart(name, is_from_snapshot=self.rng.random() < 0.5)
        engine.heal()
        engine.run_late(self.rng.choice([0.0, 0.5, 0.9]))
        if self.is_careful:
            self._settle_and_sweep()
            self.in_trouble = ""

    def was_in_trouble(self, engine: FakeEngine) -> bool:
        """Whether it is, or was a moment ago; or is being connected just now."""
        was_lately = self.turned_at - self.trouble_at[engine.name] < LATE_SECONDS
        return was_lately or self.is_being_connected(engine) or not engine.is_well

    def is_being_connected(self, engine: FakeEngine) -> bool:
        """Whether the mender is about to, and stands still for what happens in the middle of it. (A
        real one goes on, and a read tries again for two seconds.)"""
        peer = self.copies.peers[self.names.index(engine.name)]
        return self._is_working and self._is_happening and not peer.is_connected()

    def engines_with(self, slot: int) -> list[FakeEngine]:
        """Who has the slot's frame."""
        found = []
        for peer in self.copies.peers:
            engine = self._engine_of(peer)
            key = self.copies.key_of(peer, slot, self.tables.generation[slot])
            if key in engine.data and key not in engine.lost and engine.state != "dead":
                found.append(engine)
        return found

    def is_named(self, engine: FakeEngine, slot: int) -> bool:
        """Whether it is known to have the slot's frame."""
        holders = map(self.copies.holder, self.tables.holders_of(slot))
        return any(self._engine_of(peer) is engine for peer in holders if peer)

    def _engine_of(self, peer: Peer) -> FakeEngine:
        """That is to have a lane's keys. (Each node of a Cluster has one lane, in their order.)"""
        return self.network.at[self.names[peer.lane]]

    def _see_unlink(self, engine: FakeEngine, key: bytes, is_late: bool) -> None:
        """A key that a frame needs is not removed, unless by a command that comes late."""
        lane = self.names.index(engine.name)
        peer = self.copies.peers[lane]
        if is_late or not key.startswith(peer.prefix) or engine is not self.network.at[engine.name]:
            return
        slot_text, colon, generation = key[len(peer.prefix) :].partition(b":")
        assert colon, f"{key!r} is removed"
        slot = int(slot_text)
        if int(generation) == self.tables.generation[slot] and self.is_used(slot) and self.threads == 1:
            holders = [self.copies.holder(number) for number in self.tables.holders_of(slot)]
            assert peer not in holders, f"the copy of slot {slot} at {engine.name} is removed, and is needed"

    # -- all as it should be
    # ---------------------------------------------------------------------------------------------

    def _settle(self, least_turns: int = 1) -> None:
        """The mender works until nothing is to be done; raises if that never comes."""
        why = ""
        for turn in range(1, MOST_TURNS + 1):
            self.clock.seconds += 0.5
            self._turn()
            if not (why := self._why_unsettled()) and turn >= least_turns:
                return
        raise AssertionError(f"after {MOST_TURNS} turns of the mender: {why}")

    def _settle_and_sweep(self) -> None:
        """What came too late for a sweep, and what was lost without a word, the next one finds."""
        self._settle()
        self.clock.seconds += SWEEP_SECONDS + 1
        self._settle(SWEEP_TURNS)

    def _why_unsettled(self) -> str:
        copies = self.copies
        for peer in copies.peers:
            if not (peer.is_up and peer.is_connected()):
                return f"{peer.name} is not connected"
        if copies.dead.count or any(copies.unnamed):
            return "something is to be removed"
        if self.layout == "front":
            return ""
        for slot in range(1, self.remote_slots + 1):
            numbers = self.tables.holders_of(slot)
            holders = [copies.holder(number) for number in numbers]
            if any(peer and peer.number != number for peer, number in zip(holders, numbers, strict=True)):
                return f"slot {slot} has a copy that was not looked for"
            if not self.is_used(slot) and any(holders):
                return f"slot {slot} is free, and has copies"
            if self.is_used(slot) and (None in holders or holders[0] is holders[1]):
                if not any(holders) and not self.is_careful:
                    if self.engines_with(slot):
                        return f"slot {slot} has copies, and they are not known"
                    continue  # lost
                return f"slot {slot} has copies at {[peer and peer.name for peer in holders]}"
        return ""

    def _check_copies(self) -> None:
        """Each is where the tables say, and nothing else is anywhere."""
        copies = self.copies
        named: dict[int, set[bytes]] = {peer.lane: set() for peer in copies.peers}
        for slot in range(1, self.remote_slots + 1):
            for peer in map(copies.holder, self.tables.holders_of(slot)):
                if peer:
                    named[peer.lane].add(copies.key_of(peer, slot, self.tables.generation[slot]))
        for peer in copies.peers:
            data = self._engine_of(peer).data
            there = {k for k in data if k.startswith(peer.prefix) and k[-4:] not in (b"word", b"ount")}
            assert not named[peer.lane] - there, f"{peer.name} lacks {named[peer.lane] - there}"
            assert not there - named[peer.lane], f"{peer.name} has {there - named[peer.lane]}, and should not"
            assert copies.at[peer.lane] == len(there), f"{peer.name}: {copies.at[peer.lane]} copies, not {len(there)}"

    def _end(self) -> None:
        for old in self.old_engines:
            old.end()
        self.network.in_exchange = lambda _: None
        self.network.maxmemory = 0
        self.network.heal()
        for tier in self.disks_below:
            tier.heal()
        self._settle_and_sweep()
        check(self.store)
        self._check_copies()
        super()._end()
        self._settle()
        self._check_copies()
        assert not any(self.copies.at), "copies are held for nobody"

    # -- deaths
    # ---------------------------------------------------------------------------------------------

    def _successors(self) -> Left:
        network = self.network.copy()
        old = [engine.copy(network) for engine in self.old_engines]
        return Left([disk.successor() for disk in self.disks_below], network, old)

    def _inherit(self, left: Any) -> None:
        self.disks_below, self.network, self.old_engines = left
        # A server that starts among engines in trouble needs some turns to reach them all.
        self.trouble_at = dict.fromkeys(self.names, self.clock.now())
        self.tiers = []

"""The mender: all that is done for copies beside reading and writing them, in a thread of its own.

Each turn it looks after every peer: connects those that are not connected, greets those that are
new or have changed, and every `HEARTBEAT_SECONDS` asks each whether it still is what it was, how
much it may hold, and says there who we are. Then it does some of what is due, for a few
milliseconds:

- copies that nobody wants are removed;
- where an incarnation is gone, its copies are struck out, and made again at another peer from the
  copy that is left. Where only the process is another (a failover, a restart from a snapshot), each
  copy is looked for. A peer that is out of reach for `GONE_SECONDS` is taken for gone when a third
  can have the copies; what it held is still asked for if there is nothing else;
- where something may be held that is named nowhere, keys are listed (SCAN) and the rest removed.

It waits for engines, one after the other, `peer.ASK_SECONDS` at most each time. Locking: none of
its own; it takes `Copies.lock` for moments. Cost: one frame's memory.
"""

import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Final

from zcache.clock import Clock
from zcache.linux.memory import anonymous_memory
from zcache.remote.accounts import account_of, quota_key
from zcache.remote.copies import Copies
from zcache.remote.engines import Engines
from zcache.remote.peer import Changed, Peer, fields_of
from zcache.remote.resp import Refused
from zcache.remote.tables import TAIL_BYTES
from zcache.tiers.backoff import Backoff
from zcache.tiers.health import describe

#: Of each turn, for what can wait: half of the time between two.
WORK_SECONDS: Final = 0.025
HEARTBEAT_SECONDS: Final = 2.0
#: A peer that comes back has its copies still, and to make them again costs the others their size:
#: a restart or a short cut is waited for.
GONE_SECONDS: Final = 30.0
#: Slots that are looked at in one go, some 50 us.
WINDOW_SLOTS: Final = 1024
#: Keys removed in one go, and listed.
BATCH_KEYS: Final = 256
#: Of an engine's maxmemory, what it is left for itself: buffers, fragmentation.
SPARE_SHIFT: Final = 5


class Mender:
    """Of `copies`; of each slot in use (`is_used`) there are to be so many."""

    def __init__(
        self,
        copies: Copies,
        engines: Engines,
        is_used: Callable[[int], bool],
        wanted_copies: int,
        clock: Clock,
        report: Callable[[str], None],
    ) -> None:
        self._copies = copies
        self._engines = engines
        self._is_used = is_used
        self._wanted = wanted_copies
        self._clock = clock
        self._report = report
        self._host = socket.gethostname()
        count = len(copies.peers)
        self._connecting = [Backoff(clock) for _ in range(count)]
        self._heard = [0.0] * count  # when each was heard of last
        self._down_since: list[float | None] = [clock.now()] * count
        self._why_down = ["not connected yet"] * count
        self._cursors: list[int | None] = [None] * count  # of a sweep that is under way
        self._next_slot = 0  # of a pass that is under way; 0: none is
        self._is_fine: dict[int, bool] = {}  # what this pass has found of a pair of holders
        self._lost: dict[int, int] = {}  # slot to its generation
        self._frame = memoryview(anonymous_memory(copies.frame_bytes))
        self.also: Callable[[Callable[[], bool]], None] = lambda _go_on: None  # more to be done in each turn

    # -- a turn
    # ---------------------------------------------------------------------------------------------

    def work(self) -> None:
        """One turn. Called by one thread, again and again."""
        for peer in self._copies.peers:
            self._look_after(peer)
        ends = self._clock.now() + WORK_SECONDS
        self.also(lambda: self._clock.now() < ends)
        self._remove_dead()
        self._mend(ends)
        self._sweep(ends)

    def connect_all(self) -> None:
        """At the start: one try for each peer."""
        for peer in self._copies.peers:
            self._look_after(peer)

    def troubles(self) -> list[str]:
        """What is wrong with engines, in words."""
        found = []
        for peer in self._copies.peers:
            since = self._down_since[peer.lane]
            if since is not None:
                ago = self._clock.now() - since
                found.append(f"remote {peer.name}: out of reach for {ago:.0f} s ({self._why_down[peer.lane]})")
            elif peer.refusal:
                found.append(f"remote {peer.name}: takes no frames ({peer.refusal})")
        found += self._engines.troubles()
        if lost := self._copies.counters.remote_lost_frames:
            found.append(f"{lost} frames were at engines that have lost them: reads of their pages fail")
        return found

    def farewell(self, seconds: float) -> None:
        """The swap is over: nothing of it is to stay, as far as that can be had in so many
        seconds."""
        ends = self._clock.now() + seconds
        for peer in self._copies.peers:
            with contextlib.suppress(OSError):
                cursor: int | None = 0
                while cursor is not None and self._clock.now() < ends:
                    cursor, keys = self._scan(peer, cursor)
                    peer.unlink(keys)

    # -- each peer
    # ---------------------------------------------------------------------------------------------

    def _look_after(self, peer: Peer) -> None:
        lane = peer.lane
        connecting = self._connecting[lane]
        if peer.moved:
            peer.moved = False
            self._engines.refresh()
            peer.disconnect()
            peer.identity = None
        if peer.is_up and peer.is_connected() and self._clock.now() - self._heard[lane] < HEARTBEAT_SECONDS:
            return
        if not connecting.begin_try():
            return
        try:
            if peer.identity is None or not peer.is_up:
                self._greet(peer)
            if not peer.is_connected():
                self._connect(peer)
            self._hear(peer)
        except OSError as error:
            self._is_down(peer, error)
        else:
            connecting.succeeded()
            if not peer.is_up:
                peer.is_up = True
                self._down_since[lane] = None
                self._copies.is_mending_due = True
                peer.trouble.succeeded()

    def _greet(self, peer: Peer) -> None:
        identity = peer.greet()
        if why := self._engines.why_not(peer):
            raise OSError(errno.EPERM, why)
        peer.connect(identity)
        self._copies.settle(peer, identity)
        if not peer.number:
            raise OSError(errno.ENOSPC, "it has been restarted more often than can be told apart")

    def _connect(self, peer: Peer) -> None:
        """Those of its connections that are not there; if it is another engine by now, it has to be
        greeted."""
        assert peer.identity
        try:
            peer.connect(peer.identity)
        except Changed:
            self._greet(peer)

    def _hear(self, peer: Peer) -> None:
        """Is it there, and what it was; and how much may it hold?"""
        lane, copies = peer.lane, self._copies
        word = peer.ask("GET", peer.prefix + b"word")
        if not isinstance(word, bytes) or not peer.identity or int(word, 16) != peer.identity.word:
            peer.identity = None
            raise Changed(errno.ESTALE, "it has forgotten what it held")
        memory = fields_of(peer.ask("INFO", "memory"))
        own_bytes = copies.at[lane] * copies.paid_bytes
        used, most = (int(memory.get(name, "0")) for name in ("used_memory", "maxmemory"))
        peer.foreign_bytes = max(used - own_bytes, 0)
        limits = []
        if most:
            limits.append(max(own_bytes + most - (most >> SPARE_SHIFT) - used, 0))
        quota = self._engines.ask_where_it_is(peer, quota_key(peer.url.user))
        if isinstance(quota, bytes) and quota.isdigit():
            limits.append(int(quota) // self._engines.lanes_of(peer))
        peer.limit_bytes = min(limits, default=None)
        peer.refusal = ""
        peer.ask("HSET", peer.prefix + b"account", *account_of(self._host, copies, peer))
        self._heard[lane] = self._clock.now()

    def _is_down(self, peer: Peer, error: OSError) -> None:
        lane = peer.lane
        self._connecting[lane].failed(describe(error))
        self._why_down[lane] = error.text if isinstance(error, Refused) else describe(error)
        if peer.is_up or self._down_since[lane] is None:
            self._down_since[lane] = self._clock.now()
        peer.is_up = False
        peer.disconnect()
        self._engines.refresh()

    def _is_gone(self, peer: Peer) -> bool:
        """For so long that its copies are to be made again."""
        since = self._down_since[peer.lane]
        return since is not None and self._clock.now() - since >= GONE_SECONDS

    # -- what nobody wants
    # ---------------------------------------------------------------------------------------------

    def _remove_dead(self) -> None:
        copies = self._copies
        if not copies.dead.count:
            return
        with copies.lock:
            taken = copies.dead.take(BATCH_KEYS)
        by_lane: dict[int, list[bytes]] = {}
        for slot, generation, number in taken:
            if peer := copies.holder(number):
                by_lane.setdefault(peer.lane, []).append(copies.key_of(peer, slot, generation))
        for lane, keys in by_lane.items():
            try:
                copies.peers[lane].unlink(keys)
                copies.counters.remote_flushes += len(keys)
            except OSError:
                copies.unnamed[lane] = True

    def _sweep(self, ends: float) -> None:
        """List some keys of a lane that may hold what it should not, and remove those."""
        copies = self._copies
        for peer in copies.peers:
            lane = peer.lane
            if not peer.is_up:
                self._cursors[lane] = None
                continue
            if self._cursors[lane] is None and copies.unnamed[lane]:
                copies.unnamed[lane] = False
                self._cursors[lane] = 0
            try:
                while (cursor := self._cursors[lane]) is not None and self._clock.now() < ends:
                    self._cursors[lane], keys = self._scan(peer, cursor)
                    strays = [key for key in keys if self._is_stray(peer, key)]
                    peer.unlink(strays)
                    copies.counters.remote_flushes += len(strays)
            except OSError:
                self._cursors[lane] = None
                copies.unnamed[lane] = True

    @staticmethod
    def _scan(peer: Peer, cursor: int) -> tuple[int | None, list[bytes]]:
        """Some of our keys there, and where to go on; None: that was all."""
        reply = peer.ask("SCAN", cursor, "MATCH", peer.prefix + b"*", "COUNT", BATCH_KEYS)
        if not (isinstance(reply, list) and len(reply) == 2 and isinstance(reply[1], list)):
            raise OSError(errno.EPROTO, "SCAN was not answered with a list")
        after = int(reply[0]) if isinstance(reply[0], bytes) else 0
        return after or None, [key for key in reply[1] if isinstance(key, bytes)]

    def _is_stray(self, peer: Peer, key: bytes) -> bool:
        """Whether a key is of a frame that is not there any more. One that is being written is of
        the generation that its slot has."""
        slot_text, colon, generation_text = key[len(peer.prefix) :].partition(b":")
        if not colon or not slot_text.isdigit() or not generation_text.isdigit():
            return False  # the word, the account
        slot, tables = int(slot_text), self._copies.tables
        if not 0 < slot <= tables.slot_count or int(generation_text) != tables.generation[slot]:
            return True
        return not self._is_used(slot)

    # -- copies made again
    # ---------------------------------------------------------------------------------------------

    def _mend(self, ends: float) -> None:
        """A piece of a pass over all slots, if one is due."""
        copies = self._copies
        if not self._next_slot:
            self._count_lost()
            any_gone = any(self._is_gone(peer) for peer in copies.peers)
            if not (copies.is_mending_due or any_gone):
                return
            copies.is_mending_due = False
            self._is_fine = {}
            self._next_slot = 1
        stop = copies.tables.slot_count + 1
        while self._next_slot and self._clock.now() < ends:
            start = self._next_slot
            end = min(start + WINDOW_SLOTS, stop)
            for slot, both in enumerate(copies.tables.holders[start:end].tolist(), start):
                if not both or self._is_fine_pair(both):
                    continue
                try:
                    self._mend_slot(slot)
                except OSError:  # the peer's trouble; the next pass is due when it is over
                    copies.is_mending_due = True
                if self._clock.now() >= ends:
                    self._next_slot = slot + 1 if slot + 1 < stop else 0
                    return
            self._next_slot = end if end < stop else 0

    def _is_fine_pair(self, both: int) -> bool:
        known = self._is_fine.get(both)
        if known is None:
            numbers = [number for number in (both & 0xFF, both >> 8) if number]
            peers = [self._copies.holder(number) for number in numbers]
            settled = [p for p, n in zip(peers, numbers, strict=True) if p and p.number == n and not self._is_gone(p)]
            known = self._is_fine[both] = len(settled) == self._wanted
        return known

    def _mend_slot(self, slot: int) -> None:
        copies, tables = self._copies, self._copies.tables
        if not self._is_used(slot):
            copies.drop(slot)
            return
        generation = tables.generation[slot]
        there: list[Peer] = []
        gone: list[int] = []
        for number in filter(None, tables.holders_of(slot)):
            peer = copies.holder(number)
            if peer is None:
                copies.let_go(slot, number)
            elif not peer.is_up:
                gone.append(number)
            elif peer.number == number or self._still_has(peer, slot, generation, number):
                there.append(peer)
        if not there and not gone and not tables.holders[slot] and self._is_used(slot):
            self._lost[slot] = generation
        if len(there) != 1 or self._wanted < 2:
            return
        others = [p for p in copies.choose(1, len(copies.peers)) if p is not there[0]]
        held_elsewhere = {peer.lane for peer in map(copies.holder, gone) if peer}
        others = [p for p in others if p.lane not in held_elsewhere]
        if not others or not all(self._is_gone(peer) for peer in map(copies.holder, gone) if peer):
            return
        for number in gone:
            copies.let_go(slot, number)
        self._copy(slot, generation, there[0], others[0])

    def _still_has(self, peer: Peer, slot: int, generation: int, number: int) -> bool:
        """Whether a copy has survived its engine's other run."""
        if peer.ask("EXISTS", self._copies.key_of(peer, slot, generation)) == 1:
            self._copies.let_go(slot, number, successor=peer.number)
            return True
        self._copies.let_go(slot, number)
        self._copies.counters.remote_missing_copies += 1
        return False

    def _copy(self, slot: int, generation: int, source: Peer, target: Peer) -> None:
        """From one peer to another."""
        copies, value = self._copies, self._frame[:-TAIL_BYTES]
        key = copies.key_of(target, slot, generation)
        if not source.get_all([copies.key_of(source, slot, generation)], [value], 1.0)[0]:
            if copies.tables.generation[slot] == generation and self._is_used(slot):
                copies.let_go(slot, source.number)
                copies.counters.remote_missing_copies += 1
                copies.is_mending_due = True
            return
        with target.writing:
            number = target.number
            try:
                target.begin_set([key], [(value,)], 1.0)
                refusals = target.end_set(1.0)
            except OSError:
                copies.unnamed[target.lane] = True
                raise
        if refusals[0]:
            return
        if self._is_used(slot) and copies.hold(slot, number, generation):
            copies.counters.remirrored_frames += 1
        else:
            target.unlink([key])

    def _count_lost(self) -> None:
        if self._lost:
            generations = self._copies.tables.generation
            self._lost = {s: g for s, g in self._lost.items() if generations[s] == g and self._is_used(s)}
        self._copies.counters.remote_lost_frames = len(self._lost)

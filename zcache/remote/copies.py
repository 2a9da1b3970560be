"""Copies: frames sent to peers, and fetched from them.

A frame is one value at each engine that holds it, under a key of its own (`zcache.remote.tables`).
Nothing here decides how many copies there are to be, or which slots exist: that is the tiers'
(`remote_tier`, `remote_front`). What has to be set right when a peer is lost is the mender's.

**Reading is bounded.** The copy that promises most is asked for `HEDGE_SECONDS`; then the other
one for up to `LAST_SECONDS`, and then the first again, until `READ_SECONDS` are over. A peer that
was too slow once is asked last until it has had its rest. An engine that says that it has no such
key has lost the copy; it is not asked again.

**Writing** sends to all chosen peers before it waits for the first one's answers, so two copies
take little longer than one.

A copy that is not wanted any more goes onto a list, and the mender removes it. If the list is
full, or an engine may hold something that is named nowhere (a write that was cut short), the mender
sweeps.

Locking: `lock` protects holders, counts and the list; it is the innermost, and nothing waits under
it. Cost: `DEAD_COPIES` * 11 bytes for the list; small objects for each transfer.
"""

import contextlib
import errno
import threading
from collections.abc import Sequence
from typing import Final

from zcache.clock import Clock
from zcache.image.flat_array import FlatArray
from zcache.remote.peer import Identity, Peer
from zcache.remote.tables import NOBODY, TAIL_BYTES, Tables
from zcache.tiers.health import describe

#: For the copy that is asked first, if there is another. On loopback a frame takes 0.1 ms, and with
#: 1 ms of delay 1.3: who takes 50 ms has met with something else.
HEDGE_SECONDS: Final = 0.05
#: For the other one.
LAST_SECONDS: Final = 1.0
#: For all of them together.
READ_SECONDS: Final = 2.0
#: For a flight to have arrived at each of its peers.
WRITE_SECONDS: Final = 2.0

#: Copies that wait to be removed.
DEAD_COPIES: Final = 1 << 16

#: Room that nobody has set a limit to, in frames.
UNLIMITED: Final = 1 << 40

#: What an engine pays for a value beside its bytes: key, header and what its allocator rounds up
#: (MEMORY USAGE, Redis 7.0.15: 66,008 bytes for 65,520; 4,248 for 4,080).
OVERHEAD_BYTES: Final = 488


class Counters:
    """What was done, ever; `lost_frames` is how many there are now. The names of the original's
    (ramster's debugfs) are beside those that mirror them."""

    def __init__(self) -> None:
        self.remoted_frames = 0  # remote_pers_pages: written, however many copies
        self.remote_failed_frames = 0  # pers_pages_remote_failed: not taken by as many peers as had to
        self.remote_gets = 0  # frames fetched
        self.remote_hedged_gets = 0  # of these, not from the copy that was asked first
        self.remote_failed_gets = 0  # no copy could be had
        self.remote_missing_copies = 0  # an engine had lost one that we knew of
        self.remote_flushes = 0  # copies removed
        self.remirrored_frames = 0  # second copies made again
        self.remote_lost_frames = 0  # now: those of which no copy is left

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return dict(vars(self))


class DeadCopies:
    """A ring of copies to be removed: slot, generation and incarnation."""

    def __init__(self, size: int = DEAD_COPIES) -> None:
        self._size = size
        self._slots = FlatArray("I", size)
        self._generations = FlatArray("I", size)
        self._numbers = FlatArray("B", size)
        self._next = 0
        self.count = 0

    def populate(self) -> None:
        """Fault the list in."""
        for table in (self._slots, self._generations, self._numbers):
            table.populate(0, self._size)

    def add(self, slot: int, generation: int, number: int) -> bool:
        """False: there is no room."""
        if self.count == self._size:
            return False
        at = (self._next + self.count) % self._size
        self._slots.view[at], self._generations.view[at], self._numbers.view[at] = slot, generation, number
        self.count += 1
        return True

    def take(self, limit: int) -> list[tuple[int, int, int]]:
        """The first of them, which are then off the list."""
        taken: list[tuple[int, int, int]] = []
        while self.count and len(taken) < limit:
            at = self._next
            taken.append((self._slots.view[at], self._generations.view[at], self._numbers.view[at]))
            self._next = (at + 1) % self._size
            self.count -= 1
        return taken


class Copies:
    """Of frames of `frame_bytes`, at `peers` (lane n is the n-th)."""

    def __init__(self, tables: Tables, peers: Sequence[Peer], frame_bytes: int, clock: Clock) -> None:
        self.tables = tables
        self.peers = list(peers)
        self.frame_bytes = frame_bytes
        self.paid_bytes = frame_bytes - TAIL_BYTES + OVERHEAD_BYTES
        self.clock = clock
        self.lock = threading.Lock()
        self.counters = Counters()
        self.dead = DeadCopies()
        self.at = [0] * len(self.peers)  # how many copies each lane holds
        self.unnamed = [True] * len(self.peers)  # lanes that may hold what is named nowhere: to be swept
        self.is_mending_due = False
        self._alive: list[Peer | None] = [None] * 256
        for peer in self.peers:  # until they are greeted, what was there is hoped to be there
            for number in tables.numbers_of_lane(peer.lane):
                self._alive[number] = peer

    # -- frames
    # ---------------------------------------------------------------------------------------------

    def fetch(
        self, slots: Sequence[int], frames: Sequence[memoryview], bound_seconds: float = READ_SECONDS
    ) -> tuple[list[int], str]:
        """Fill the buffers from whatever copies there are; returns which of them could not be, and
        why."""
        clock, counters = self.clock, self.counters
        ends = clock.now() + bound_seconds
        candidates = [self._candidates(slot) for slot in slots]
        left = list(range(len(slots)))
        why = ""
        for turn in range(3):
            for peer, those in self._by_first(candidates, left):
                is_hedged = not turn and len(candidates[those[0]]) > 1
                seconds = min(HEDGE_SECONDS if is_hedged else LAST_SECONDS, ends - clock.now())
                if seconds <= 0:
                    return left, why
                keys = [self.key(peer, slots[index]) for index in those]
                try:
                    found = peer.get_all(keys, [frames[index][:-TAIL_BYTES] for index in those], seconds)
                except OSError as error:
                    why = describe(error)
                    for index in those:
                        candidates[index].append(candidates[index].pop(0))
                    continue
                for index, is_there in zip(those, found, strict=True):
                    if is_there:
                        self.tables.put_tail(slots[index], frames[index])
                        left.remove(index)
                        counters.remote_gets += 1
                        counters.remote_hedged_gets += turn > 0
                    else:
                        counters.remote_missing_copies += 1
                        candidates[index].pop(0)
                        why = f"{peer.name} does not have it any more"
                        self.is_mending_due = True
            if not left:
                break
        return left, why or "no engine is known to have it"

    def send(self, first_slot: int, frames: Sequence[memoryview], peers: Sequence[Peer], least: int) -> None:
        """Have each frame at these peers, and at `least` so many of them, or raise `OSError`."""
        if not frames:
            return
        tables, counters = self.tables, self.counters
        slots = range(first_slot, first_slot + len(frames))
        for slot, frame in zip(slots, frames, strict=True):
            self.drop(slot)  # what one that failed has left, or a predecessor
            with self.lock:
                tables.next_generation(slot)
            tables.keep_tail(slot, frame)
        values = [(frame[:-TAIL_BYTES],) for frame in frames]
        copies = [0] * len(frames)
        why = ""
        with contextlib.ExitStack() as turns:
            begun: list[tuple[Peer, int]] = []
            for peer in sorted(peers, key=lambda peer: peer.lane):
                turns.enter_context(peer.writing)
                try:
                    peer.begin_set([self.key(peer, slot) for slot in slots], values, WRITE_SECONDS)
                    begun.append((peer, peer.number))
                except OSError as error:
                    why = describe(error)
                    self.unnamed[peer.lane] = True
            for peer, number in begun:
                try:
                    refusals = peer.end_set(WRITE_SECONDS)
                except OSError as error:
                    why = describe(error)
                    self.unnamed[peer.lane] = True
                    continue
                for index, refusal in enumerate(refusals):
                    if refusal:
                        why = refusal
                    else:
                        copies[index] += self.hold(slots[index], number, tables.generation[slots[index]])
        counters.remoted_frames += len(frames)
        short = sum(count < least for count in copies)
        if short:
            counters.remote_failed_frames += short
            raise OSError(errno.EIO, f"{short} of {len(frames)} frames found fewer than {least} engines: {why}")
        if min(copies) < 2 <= len(self.peers):
            self.is_mending_due = True

    def key(self, peer: Peer, slot: int) -> bytes:
        """Of the slot's frame as it was last written."""
        return self.key_of(peer, slot, self.tables.generation[slot])

    @staticmethod
    def key_of(peer: Peer, slot: int, generation: int) -> bytes:
        """Of any version of it."""
        return b"%s%d:%d" % (peer.prefix, slot, generation)

    # -- who holds what
    # ---------------------------------------------------------------------------------------------

    def holder(self, number: int) -> Peer | None:
        """Who has what that incarnation had; None: nobody, it is gone."""
        return self._alive[number] if number else None

    def hold(self, slot: int, number: int, generation: int) -> bool:
        """An incarnation holds the slot's frame from now on. False: it was written again since, or
        two others hold it."""
        with self.lock:
            first, second = self.tables.holders_of(slot)
            if self.tables.generation[slot] != generation:
                return False
            if number in (first, second):
                return True
            if first == NOBODY:
                first = number
            elif second == NOBODY:
                second = number
            else:
                return False
            self.tables.holders[slot] = first | second << 8
            self._count(number, 1)
            return True

    def let_go(self, slot: int, number: int, successor: int = NOBODY) -> None:
        """An incarnation does not hold it any more; or another holds what that one did."""
        with self.lock:
            first, second = self.tables.holders_of(slot)
            if number not in (first, second):
                return
            first, second = (successor if each == number else each for each in (first, second))
            self.tables.holders[slot] = first | second << 8
            if not successor:
                self._count(number, -1)

    def drop(self, slot: int) -> None:
        """Nobody will ask for what is in the slot: it is to be removed wherever it is."""
        if not self.tables.holders[slot]:
            return
        with self.lock:
            generation = self.tables.generation[slot]
            for number in self.tables.holders_of(slot):
                if number:
                    self._count(number, -1)
                    peer = self._alive[number]
                    if peer and not self.dead.add(slot, generation, number):
                        self.unnamed[peer.lane] = True
            self.tables.holders[slot] = 0

    def settle(self, peer: Peer, identity: Identity) -> None:
        """A peer was greeted: which of its copies there can be, is known now."""
        tables = self.tables
        with self.lock:
            peer.number = tables.number_of(peer.lane, identity.word, identity.run)
            for number in tables.numbers_of_lane(peer.lane):
                self._alive[number] = peer if tables.words[number] == identity.word else None
            self.at[peer.lane] = 0
            for number in tables.numbers_of_lane(peer.lane):
                if self._alive[number]:
                    self.at[peer.lane] += tables.count_of(number)
            self.unnamed[peer.lane] = True
            self.is_mending_due = True

    def _count(self, number: int, change: int) -> None:
        """Under the lock. What is gone is nobody's."""
        peer = self._alive[number] if number else None
        if peer:
            self.at[peer.lane] += change

    def _candidates(self, slot: int) -> list[Peer]:
        """Who may have it, the one to be asked first before the other; those next to each other are
        asked for together."""
        found = [peer for peer in map(self.holder, self.tables.holders_of(slot)) if peer]
        if len(found) == 2 and slot >> 3 & 1:
            found.reverse()
        found.sort(key=lambda peer: (peer.trouble.failures > 0, not peer.is_up))
        return found

    @staticmethod
    def _by_first(candidates: Sequence[Sequence[Peer]], left: Sequence[int]) -> list[tuple[Peer, list[int]]]:
        groups: dict[int, tuple[Peer, list[int]]] = {}
        for index in left:
            if candidates[index]:
                peer = candidates[index][0]
                groups.setdefault(peer.lane, (peer, []))[1].append(index)
        return list(groups.values())

    # -- room
    # ---------------------------------------------------------------------------------------------

    def room_at(self, peer: Peer) -> int:
        """How many more frames a peer may be given; 0 when it takes none now."""
        if not peer.takes_frames():
            return 0
        if peer.limit_bytes is None:
            return UNLIMITED
        return max(peer.limit_bytes // self.paid_bytes - self.at[peer.lane], 0)

    def choose(self, frame_count: int, copies: int) -> list[Peer]:
        """As many peers as there are to be copies, or as can be had: those with most room, or which
        hold least."""
        able = [(self.room_at(peer), -self.at[peer.lane], -peer.lane, peer) for peer in self.peers]
        able = sorted((each for each in able if each[0] >= frame_count), reverse=True)
        return [peer for *_, peer in able[:copies]]

    def close(self) -> None:
        """Let go of all connections."""
        for peer in self.peers:
            peer.disconnect()

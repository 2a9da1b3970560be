"""Copies: frames sent to peers, and who holds which.

A frame is one value at each engine that holds it, under a key of its own (`zcache.remote.tables`).
Nothing here decides how many copies there are to be, or which slots exist: that is the tiers'
(`remote_tier`, `remote_front`). What has to be set right when a peer is lost is the mender's.

**Writing** sends to all chosen peers before it waits for the first one's answers, so two copies
take little longer than one.

A copy that is not wanted any more goes onto a list, and the mender removes it. If the list is
full, or an engine may hold something that is named nowhere (a write that was cut short), the mender
sweeps.

Locking: `lock` protects holders, counts and the list; it is the innermost, and nothing waits under
it. Cost: the list's; small objects for each transfer.
"""

import contextlib
import errno
import threading
from collections.abc import Sequence
from typing import Final

from zcache.clock import Clock
from zcache.remote.counters import Counters
from zcache.remote.dead_copies import DeadCopies
from zcache.remote.incarnations import Incarnations
from zcache.remote.peer import Identity, Peer
from zcache.remote.room import Room
from zcache.remote.tables import NOBODY, TAIL_BYTES, Tables
from zcache.tiers.health import describe

#: For a flight to have arrived at its peers.
WRITE_SECONDS: Final = 2.0
#: For the answers of one that was sent all of it in time.
LEAST_SECONDS: Final = 0.1

#: What an engine pays for a value beside its bytes: key, header and what its allocator rounds up
#: (used_memory, Redis 7.0.15: 65,756 bytes for 65,520; 4,204 for 4,080), and as much again for a
#: hash table that is doubled.
OVERHEAD_BYTES: Final = 488


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
        self._incarnations = Incarnations(tables, self.peers)
        self.at = self._incarnations.at  # how many copies each lane holds
        self.room = Room(self.peers, self.at, self.paid_bytes)
        self.unnamed = [True] * len(self.peers)  # lanes that may hold what is named nowhere: to be swept
        self.is_mending_due = False
        self.doubtful: set[int] = set()  # lanes of which it is yet to be seen what they still have
        self.doubts = 0  # how often that came up
        self.wanted = 2  # copies of each frame
        self.in_flight: set[int] = set()  # slots that are being written: what is there has no holder yet
        self.lost: dict[int, int] = {}  # slots whose copies are all lost, and their generations

    # -- frames
    # ---------------------------------------------------------------------------------------------

    def miss(self, slot: int, number: int, generation: int) -> None:
        """An engine has lost a copy that it had, or it is wrong. With that one it may have lost
        others, and something may be there in its place."""
        if not self.let_go(slot, number, generation):
            return
        if self.wanted > 1 and (peer := self.holder(number)):
            self.doubt(peer)
        self.counters.remote_missing_copies += 1
        self.is_mending_due = True
        with self.lock:
            if self.wanted > 1 and not self.tables.holders[slot] and self.tables.generation[slot] == generation:
                self.lost[slot] = generation

    def take_over(self, slot: int) -> None:
        """A predecessor's frame is there, and nowhere else. It may have seen all copies lost."""
        if not self.tables.holders[slot]:
            with self.lock:
                self.lost[slot] = self.tables.generation[slot]

    def send(
        self,
        first_slot: int,
        frames: Sequence[memoryview],
        peers: Sequence[Peer],
        least: int,
        expected: int | None = None,
    ) -> None:
        """Have each frame at these peers, and at `least` so many of them, or raise `OSError`.
        Nothing is done if the first slot's generation is not the `expected` one."""
        if not frames:
            return
        slots = range(first_slot, first_slot + len(frames))
        with self.lock:
            if expected not in (None, self.tables.generation[first_slot]):
                return
            self.in_flight.update(slots)
            generations = [self._renew(slot) for slot in slots]  # what one that failed has left goes, too
        try:
            for slot, frame in zip(slots, frames, strict=True):
                self.tables.keep_tail(slot, frame)
            copies, why = self._send(slots, generations, frames, peers)
        except BaseException:  # no memory: answers that were not waited for are not to meet others
            for peer in peers:
                peer.abandon()
                self.unnamed[peer.lane] = True
            raise
        finally:
            with self.lock:
                self.in_flight.difference_update(slots)
        self.counters.remoted_frames += len(frames)
        if min(copies) < min(self.wanted, len(self.peers)):
            self.is_mending_due = True
        if short := sum(count < least for count in copies):
            self.counters.remote_failed_frames += short
            what = f"{short} of {len(frames)} frames found fewer than {least} engines: {why}"
            raise OSError(errno.ENOSPC if why.startswith("OOM") else errno.EIO, what)

    def _send(
        self, slots: Sequence[int], generations: Sequence[int], frames: Sequence[memoryview], peers: Sequence[Peer]
    ) -> tuple[list[int], str]:
        """How many copies of each there are then; and why there are no more."""
        values = [(frame[:-TAIL_BYTES],) for frame in frames]
        copies = [0] * len(frames)
        why = ""
        ends = self.clock.now() + WRITE_SECONDS
        with contextlib.ExitStack() as turns:
            begun: dict[int, Peer] = {}  # by incarnation: what two peers are by mistake holds one copy
            for left, peer in zip(range(len(peers), 0, -1), sorted(peers, key=lambda peer: peer.lane), strict=True):
                turns.enter_context(peer.writing)
                keys = [self.key_of(peer, *version) for version in zip(slots, generations, strict=True)]
                if peer.number in begun:
                    continue
                try:
                    # One that takes nothing leaves the others their share of the time.
                    peer.begin_set(keys, values, max(ends - self.clock.now(), 0.0) / left)
                    begun[peer.number] = peer
                except OSError as error:
                    why = describe(error)
                    self.unnamed[peer.lane] = True
            for number, peer in begun.items():
                try:
                    refusals = peer.end_set(max(ends - self.clock.now(), LEAST_SECONDS))
                except OSError as error:
                    why = describe(error)
                    self.unnamed[peer.lane] = True
                    continue
                for index, refusal in enumerate(refusals):
                    if refusal:
                        why = refusal
                    elif self.hold(slots[index], number, generations[index]):
                        copies[index] += 1
                    else:  # it was given up meanwhile
                        self.bury(slots[index], generations[index], peer)
        return copies, why

    def bury(self, slot: int, generation: int, peer: Peer) -> None:
        """A peer has a copy that nobody names, and which is to be removed."""
        with self.lock:
            self.unnamed[peer.lane] |= not self.dead.add(slot, generation, peer.number)

    def remove(self, peer: Peer, keys: Sequence[bytes]) -> None:
        """What nobody names, at once. Raises `OSError`; what is left is swept up then."""
        try:
            peer.unlink(keys)
        except OSError:
            self.unnamed[peer.lane] = True
            raise
        self.counters.remote_flushes += len(keys)

    @staticmethod
    def key_of(peer: Peer, slot: int, generation: int) -> bytes:
        """Of a version of the slot."""
        return b"%s%d:%d" % (peer.prefix, slot, generation)

    # -- who holds what
    # ---------------------------------------------------------------------------------------------

    def holder(self, number: int) -> Peer | None:
        """Who has what that incarnation had; None: nobody, it is gone."""
        return self._incarnations.holder(number)

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
            self._incarnations.count(number, 1)
            return True

    def let_go(self, slot: int, number: int, generation: int, successor: int = NOBODY) -> bool:
        """An incarnation does not hold that version of the slot any more; or another does, in its
        place. False: it did not."""
        with self.lock:
            first, second = self.tables.holders_of(slot)
            if number not in (first, second) or self.tables.generation[slot] != generation:
                return False
            if successor in (first, second):  # which had it already
                successor = NOBODY
            first, second = (successor if each == number else each for each in (first, second))
            self.tables.holders[slot] = first | second << 8
            self._incarnations.count(number, -1)
            self._incarnations.count(successor, 1)
            return True

    def drop(self, slot: int, generation: int | None = None) -> None:
        """Nobody will ask for what is in the slot (or for that version of it): it is to be removed
        wherever it is."""
        if not self.tables.holders[slot]:
            return
        with self.lock:
            if generation in (None, self.tables.generation[slot]):
                self._drop(slot)

    def renew(self, slot: int) -> int:
        """Drop the slot's copies and count its generation up: a write under way finds that it came
        too late. Returns the new generation."""
        with self.lock:
            return self._renew(slot)

    def _renew(self, slot: int) -> int:
        self._drop(slot)
        return self.tables.next_generation(slot)

    def _drop(self, slot: int) -> None:
        generation = self.tables.generation[slot]
        for number in filter(None, self.tables.holders_of(slot)):
            self._incarnations.count(number, -1)
            peer = self.holder(number)
            if peer and not self.dead.add(slot, generation, number):
                self.unnamed[peer.lane] = True
        self.tables.holders[slot] = 0

    def settle(self, peer: Peer, identity: Identity) -> None:
        """A peer was greeted: which of its copies there can be, is known now."""
        with self.lock:
            before = peer.number
            self._incarnations.met(peer, identity)
            self.unnamed[peer.lane] = True
            self.is_mending_due = True
        is_heir = not before and self.wanted > 1 and self.at[peer.lane] > 0  # of what a predecessor may have doubted
        if is_heir or peer.has_lost_word or before not in (0, peer.number):
            self.doubt(peer)  # it may be a process that we know, and have another's memory by now

    def doubt(self, peer: Peer) -> None:
        """It may have lost copies without a word: all of its keys are to be looked through."""
        self.unnamed[peer.lane] = True
        self.doubtful.add(peer.lane)
        self.doubts += 1

    def unproven(self) -> int:
        """Copies that are counted as there, and whose engine has been another process since: they
        are being looked for."""
        return self._incarnations.unproven()

    def candidates(self, slot: int) -> list[tuple[Peer, int]]:
        """Who may have it, as which incarnation, the one to be asked first before the other; those
        next to each other are asked for together."""
        found = [(peer, number) for number in self.tables.holders_of(slot) if (peer := self.holder(number))]
        if len(found) == 2 and slot >> 3 & 1:
            found.reverse()
        found.sort(key=lambda each: (each[0].trouble.rest_seconds() > 0, not each[0].is_up))
        return found

    def is_prompt(self, slot: int) -> bool:
        """Whether an engine has it that is not known to be slow now."""
        return any(peer.is_up and not peer.trouble.rest_seconds() for peer, _ in self.candidates(slot))

    def is_known_dead(self, slot: int) -> bool:
        """Whether no engine that may have it is worth waiting for; or there is none."""
        return all(peer.is_known_dead() for peer, _ in self.candidates(slot))

    def close(self) -> None:
        """Let go of all connections."""
        for peer in self.peers:
            peer.disconnect()

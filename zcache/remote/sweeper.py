"""The sweeper: removes what engines hold of ours and nobody wants.

Most of it is on a list (`zcache.remote.dead_copies`). What may be named nowhere is looked for by
listing keys (SCAN): a write that was cut short may have left frames, a predecessor, or an engine
that has come back after others were given its copies. A key is a stray unless its slot's holders
name this engine; while the slot is being written (`Copies.in_flight`) they do not yet.

Each engine is swept every `SWEEP_SECONDS`, too: a command that was held back on its way may leave a
key after the sweep that was made for it. The same list shows what is *not* there: a copy that an
engine has lost without a word (somebody removed it, or had it evicted) is noticed before the other
one is needed. It is asked for by name before it is given up, as a list may be older than a write.

Locking: `Copies.lock`, for moments. The mender's thread alone. Cost: a list of `BATCH_KEYS` keys; a
byte for each slot.
"""

import contextlib
import errno
from collections.abc import Callable
from typing import Final

from zcache.clock import Clock
from zcache.linux.memory import anonymous_memory
from zcache.remote.copies import Copies
from zcache.remote.peer import Peer, number_of
from zcache.tiers.backoff import Backoff
from zcache.tiers.health import describe

#: Keys removed in one go, and listed.
BATCH_KEYS: Final = 256
#: Between two sweeps of an engine that nothing has called for. A million frames are 4,000 SCANs.
SWEEP_SECONDS: Final = 3600.0
#: Slots looked at in one go for copies that a sweep has not seen, some 50 us.
WINDOW_SLOTS: Final = 1024
#: An engine's cursor is a word of 64 bits.
_CURSOR_DIGITS: Final = 20


class Sweeper:
    """Of `copies`, of slots in use (`is_used`)."""

    def __init__(self, copies: Copies, is_used: Callable[[int], bool], clock: Clock) -> None:
        self._copies = copies
        self._is_used = is_used
        self._clock = clock
        self._lane: int | None = None  # that is being swept
        self._cursor: int | None = None  # of its keys; None: all were listed
        self._next_slot = 1  # of those whose copies there are compared with the list
        self._seen = anonymous_memory(copies.tables.slot_count + 1)  # slots that the list has shown
        self._swept_at = [clock.now()] * len(copies.peers)
        self._trouble = [Backoff(clock) for _ in copies.peers]

    def remove_dead(self, ends: float) -> None:
        """What is on the list."""
        copies = self._copies
        while copies.dead.count:
            with copies.lock:
                taken = copies.dead.take(BATCH_KEYS)
            by_lane: dict[int, list[bytes]] = {}
            for slot, generation, number in taken:
                if peer := copies.holder(number):
                    by_lane.setdefault(peer.lane, []).append(copies.key_of(peer, slot, generation))
            for lane, keys in by_lane.items():
                with contextlib.suppress(OSError):
                    copies.remove(copies.peers[lane], keys)
            if self._clock.now() >= ends:
                return

    def sweep(self, ends: float) -> None:
        """Look through some of what an engine has: one that may hold what it should not, or that
        was not looked at for long."""
        copies = self._copies
        while self._clock.now() < ends:
            if self._lane is None and not self._begin():
                return
            assert self._lane is not None
            peer, trouble = copies.peers[self._lane], self._trouble[self._lane]
            try:
                if self._cursor is not None:
                    self._cursor = self._sweep_some(peer, self._cursor)
                else:
                    self._look_for_some(peer)
                trouble.succeeded()
            except OSError as error:
                trouble.failed(describe(error))
                copies.unnamed[self._lane] = True
                self._lane = None

    def _begin(self) -> bool:
        """With an engine for which it is time, if there is one."""
        copies, now = self._copies, self._clock.now()
        for peer in copies.peers:
            lane = peer.lane
            if not peer.is_up:
                copies.unnamed[lane] = True
            elif (copies.unnamed[lane] or now - self._swept_at[lane] >= SWEEP_SECONDS) and self._trouble[
                lane
            ].begin_try():
                copies.unnamed[lane] = False
                self._lane, self._cursor, self._next_slot = lane, 0, 1
                self._swept_at[lane] = now
                for start in range(0, len(self._seen), 1 << 16):
                    stop = min(start + (1 << 16), len(self._seen))
                    self._seen[start:stop] = bytes(stop - start)
                return True
        return False

    def _look_for_some(self, peer: Peer) -> None:
        """Copies that an engine should have, and which the list has not shown."""
        copies, tables = self._copies, self._copies.tables
        unseen: list[tuple[int, int, int]] = []
        start = self._next_slot
        stop = min(start + WINDOW_SLOTS, tables.slot_count + 1)
        for slot in range(start, stop):
            if self._seen[slot] or not tables.holders[slot]:
                continue
            with copies.lock:
                generation, numbers = tables.generation[slot], tables.holders_of(slot)
            if number := next((number for number in numbers if copies.holder(number) is peer), 0):
                unseen.append((slot, generation, number))
        found = peer.exist([copies.key_of(peer, slot, generation) for slot, generation, _ in unseen])
        for (slot, generation, number), is_there in zip(unseen, found, strict=True):
            if not is_there:
                copies.miss(slot, number, generation)
        self._next_slot = stop
        if stop > tables.slot_count:
            self._lane = None
            if not copies.unnamed[peer.lane]:  # meanwhile
                copies.doubtful.discard(peer.lane)

    def remove_all(self, ends: float) -> None:
        """Nothing of the swap is to stay, as far as that can be had until then. No engine takes the
        others' time."""
        peers = self._copies.peers
        for left, peer in zip(range(len(peers), 0, -1), peers, strict=True):
            now = self._clock.now()
            until = now + (ends - now) / left
            with contextlib.suppress(OSError):
                cursor: int | None = 0
                while cursor is not None and self._clock.now() < until:
                    cursor, keys = self._scan(peer, cursor)
                    peer.unlink(keys)

    def _sweep_some(self, peer: Peer, cursor: int) -> int | None:
        after, keys = self._scan(peer, cursor)
        strays = [key for key in keys if self._is_stray(peer, key)]
        if strays:
            self._copies.remove(peer, strays)
        return after

    @staticmethod
    def _scan(peer: Peer, cursor: int) -> tuple[int | None, list[bytes]]:
        """Some of our keys there, and where to go on; None: that was all."""
        reply = peer.ask("SCAN", cursor, "MATCH", peer.prefix + b"*", "COUNT", BATCH_KEYS)
        if not (isinstance(reply, list) and len(reply) == 2 and isinstance(reply[1], list)):
            raise OSError(errno.EPROTO, "SCAN was not answered with a list")
        after = number_of(reply[0], _CURSOR_DIGITS)
        if after is None:
            raise OSError(errno.EPROTO, "SCAN was answered without a cursor")
        return after or None, [key for key in reply[1] if isinstance(key, bytes)]

    def _is_stray(self, peer: Peer, key: bytes) -> bool:
        """Whether a key is of a frame that is not there any more, or is held by others."""
        slot_text, colon, generation_text = key[len(peer.prefix) :].partition(b":")
        if not colon or not slot_text.isdigit() or not generation_text.isdigit():
            return False  # the word, the account
        copies = self._copies
        slot, tables = int(slot_text[:20]), copies.tables
        with copies.lock:  # a writer is in flight before it sends, and until its holders are named
            if not 0 < slot <= tables.slot_count or int(generation_text[:20]) != tables.generation[slot]:
                return True
            is_held = any(copies.holder(number) is peer for number in tables.holders_of(slot))
            self._seen[slot] = is_held
            return not (slot in copies.in_flight or (is_held and self._is_used(slot)))

"""The sweeper: removes what engines hold of ours and nobody wants.

Most of it is on a list (`zcache.remote.dead_copies`). What may be named nowhere is looked for by
listing keys (SCAN): a write that was cut short may have left frames, a predecessor, or an engine
that has come back after others were given its copies. A key is a stray unless its slot's holders
name this engine; while the slot is being written (`Copies.in_flight`) they do not yet.

Locking: `Copies.lock`, for moments. The mender's thread alone. Cost: a list of `BATCH_KEYS` keys.
"""

import contextlib
import errno
from collections.abc import Callable
from typing import Final

from zcache.clock import Clock
from zcache.remote.copies import Copies
from zcache.remote.peer import Peer
from zcache.tiers.backoff import Backoff
from zcache.tiers.health import describe

#: Keys removed in one go, and listed.
BATCH_KEYS: Final = 256


class Sweeper:
    """Of `copies`, of slots in use (`is_used`)."""

    def __init__(self, copies: Copies, is_used: Callable[[int], bool], clock: Clock) -> None:
        self._copies = copies
        self._is_used = is_used
        self._clock = clock
        self._cursors: list[int | None] = [None] * len(copies.peers)  # of a sweep that is under way
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
                try:
                    copies.peers[lane].unlink(keys)
                    copies.counters.remote_flushes += len(keys)
                except OSError:
                    copies.unnamed[lane] = True
            if self._clock.now() >= ends:
                return

    def sweep(self, ends: float) -> None:
        """List some keys of a lane that may hold what it should not, and remove those."""
        copies = self._copies
        for peer in copies.peers:
            lane, trouble = peer.lane, self._trouble[peer.lane]
            if not peer.is_up:
                self._cursors[lane] = None
                copies.unnamed[lane] = True
                continue
            if self._cursors[lane] is None and copies.unnamed[lane] and trouble.begin_try():
                copies.unnamed[lane] = False
                self._cursors[lane] = 0
            try:
                while (cursor := self._cursors[lane]) is not None and self._clock.now() < ends:
                    self._cursors[lane] = self._sweep_some(peer, cursor)
                    trouble.succeeded()
            except OSError as error:
                trouble.failed(describe(error))
                self._cursors[lane] = None
                copies.unnamed[lane] = True

    def remove_all(self, ends: float) -> None:
        """Nothing of the swap is to stay, as far as that can be had until then."""
        for peer in self._copies.peers:
            with contextlib.suppress(OSError):
                cursor: int | None = 0
                while cursor is not None and self._clock.now() < ends:
                    cursor, keys = self._scan(peer, cursor)
                    peer.unlink(keys)

    def _sweep_some(self, peer: Peer, cursor: int) -> int | None:
        after, keys = self._scan(peer, cursor)
        strays = [key for key in keys if self._is_stray(peer, key)]
        if strays:
            peer.unlink(strays)
            self._copies.counters.remote_flushes += len(strays)
        return after

    @staticmethod
    def _scan(peer: Peer, cursor: int) -> tuple[int | None, list[bytes]]:
        """Some of our keys there, and where to go on; None: that was all."""
        reply = peer.ask("SCAN", cursor, "MATCH", peer.prefix + b"*", "COUNT", BATCH_KEYS)
        if not (isinstance(reply, list) and len(reply) == 2 and isinstance(reply[1], list)):
            raise OSError(errno.EPROTO, "SCAN was not answered with a list")
        after = int(reply[0]) if isinstance(reply[0], bytes) and reply[0].isdigit() else 0
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
            return not (slot in copies.in_flight or (is_held and self._is_used(slot)))

"""Where a cold frame comes from: the remote tier, a connection alone, or a disk.

All are read as a `Tier` is: consecutive slots into buffers. `Bare` is what engine, kernel and the
connection cost without the tier's tables and peers: the floor for it.
"""

import contextlib
import itertools
import os
import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from zcache.bench.remote.engines import ANSWER_SECONDS
from zcache.clock import Clock
from zcache.remote.copies import Copies
from zcache.remote.peer import Peer
from zcache.remote.reach import Reach
from zcache.remote.remote_tier import RemoteTier
from zcache.remote.resp import Connection
from zcache.remote.tables import TAIL_BYTES, Tables
from zcache.remote.url import Address, Url
from zcache.tiers.backing_file import BackingFile

FRAME_BYTES: Final = 1 << 16
#: Each tier has a key space of its own.
_NAMES: Final = itertools.count(1)


class Source(Protocol):
    """Some of a `Tier`."""

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """Have frames in consecutive slots."""

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """Fill buffers from consecutive slots; from any number of threads."""


def keys_of(first_slot: int, count: int) -> list[bytes]:
    """As long as the tier's are."""
    return [b"zcache:default:000000000000:%d:1" % slot for slot in range(first_slot, first_slot + count)]


class Bare:
    """An engine's connections, one for each read that is under way."""

    def __init__(self, address: Address, count: int) -> None:
        self._connections = [Connection(address, seconds=ANSWER_SECONDS) for _ in range(count)]
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        for connection in self._connections:
            self._idle.put(connection)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def write(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """As one pipeline."""
        connection = self._idle.get()
        values = [(frame[:-TAIL_BYTES],) for frame in frames]
        refusals = connection.set_all(keys_of(first_slot, len(frames)), values, ANSWER_SECONDS)
        assert not any(refusals), refusals
        self._idle.put(connection)

    def read(self, first_slot: int, frames: Sequence[memoryview]) -> None:
        """As one pipeline."""
        connection = self._idle.get()
        buffers = [frame[:-TAIL_BYTES] for frame in frames]
        found = connection.get_all(keys_of(first_slot, len(frames)), buffers, ANSWER_SECONDS)
        assert all(found), "the engine has lost a frame"
        self._idle.put(connection)


def remote_tier(addresses: Sequence[Address], slot_count: int) -> RemoteTier:
    """A tier whose peers are those engines, all of them up; nobody mends it."""
    clock = Clock()
    prefix = b"zcache:default:%012x:" % next(_NAMES)
    reaches = [_reach(address, clock) for address in addresses]
    peers = [Peer(lane, reach, reach.known_addresses, prefix, clock) for lane, reach in enumerate(reaches)]
    copies = Copies(Tables(slot_count), peers, FRAME_BYTES, clock)
    for peer in peers:
        identity = peer.greet()
        peer.connect(identity)
        copies.settle(peer, identity)
        peer.is_up = True
    return RemoteTier(slot_count, copies)


def _reach(address: Address, clock: Clock) -> Reach:
    made = Reach(Url(), clock)
    made.addresses = [address]
    made.find(may_ask=False)
    return made


@contextlib.contextmanager
def backing_file(folder: Path, slot_count: int) -> Iterator[BackingFile]:
    """A new one, which goes again."""
    path = folder / f"backing-{os.getpid()}"
    size_bytes = slot_count * FRAME_BYTES
    tier = BackingFile.open(path, needed_bytes=0, new_bytes=size_bytes, frame_bytes=FRAME_BYTES, force=False)
    try:
        yield tier
    finally:
        tier.close()
        path.unlink()

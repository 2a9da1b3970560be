"""Tiers at real engines (engines.py), with a mender whose turns the test gives, one by one.

Its clock is a fake one: each turn does all of its work, however long that takes, and heartbeats,
rests and what is out of reach for long are there when the test says so. What an engine is waited
for is real.
"""

import mmap
import random
from collections.abc import Callable, Sequence
from typing import Final

from tests.support.clock import FakeClock
from tests.support.engines import Engine, Reply
from zcache.image.flat_array import sparse_section
from zcache.image.image import REMOTE_SECTIONS, Section
from zcache.remote.accounts import name_of
from zcache.remote.copies import Copies
from zcache.remote.engines import Engines
from zcache.remote.mender import HEARTBEAT_SECONDS, Mender
from zcache.remote.peer import Peer
from zcache.remote.remote_front import RemoteFront
from zcache.remote.remote_tier import RemoteTier
from zcache.remote.tables import Tables
from zcache.remote.url import parse_url
from zcache.tiers import Tier

FRAME_BYTES: Final = 4096
SECRET: Final = b"of a test"
#: Turns after which it is no use to go on.
MAX_TURNS: Final = 40


def sections(slot_count: int) -> Callable[[str], Section]:
    """Of an image, for `Tables`: two that are made with the same ones are a server and its
    successor."""
    ids = slot_count + 1
    sizes = dict(zip(REMOTE_SECTIONS, (4 * ids, 2 * ids, 16 * ids, 8192), strict=True))
    made = {name: sparse_section(size) for name, size in sizes.items()}
    return made.__getitem__


def frame_of(rng: random.Random, frame_bytes: int = FRAME_BYTES) -> memoryview:
    """One with a content of its own, page-aligned as RAM slots are."""
    memory = memoryview(mmap.mmap(-1, frame_bytes))
    memory[:] = rng.randbytes(frame_bytes)
    return memory


def empty_frames(count: int, frame_bytes: int = FRAME_BYTES) -> list[memoryview]:
    memory = memoryview(mmap.mmap(-1, count * frame_bytes))
    return [memory[start : start + frame_bytes] for start in range(0, len(memory), frame_bytes)]


class EverySlot(RemoteTier):
    """For frames that a test sends itself: each slot is in use."""

    def is_used(self, _slot: int) -> bool:
        return True

    def missing_copies(self) -> int:
        return 0  # who knows


class Far:
    """What one server has at engines: its copies, the tier and the mender."""

    tier: RemoteTier | RemoteFront

    def __init__(
        self,
        urls: Sequence[str],
        slot_count: int = 64,
        *,
        backing: Tier | None = None,
        limit_slots: int = 64,
        image: Callable[[str], Section] | None = None,
        is_successor: bool = False,
        is_last_resort: Callable[[], bool] = lambda: True,
        frame_bytes: int = FRAME_BYTES,
    ) -> None:
        """With a `backing` it is a copy in front of that one, of `limit_slots` frames."""
        if backing:
            slot_count = backing.slot_count
        self.clock = FakeClock()
        self.said: list[str] = []
        self.engines = Engines([parse_url(url) for url in urls], 1 if backing else 2, backing is not None, self.clock)
        self.engines.resolve(is_successor, self.said.append)
        if not is_successor:
            self.engines.check(self.said.append)
        self.name = name_of(SECRET)
        tables = Tables(slot_count, image or sections(slot_count))
        peers = self.engines.make_peers(self.name, tables, not is_successor)
        self.copies = copies = Copies(tables, peers, frame_bytes, self.clock)
        if backing:
            self.tier = RemoteFront(backing, copies, limit_slots)
        else:
            self.tier = RemoteTier(slot_count, copies, is_last_resort)
        self.mender = Mender(self.tier, self.engines, self.clock, self.said.append)
        self.mender.connect_all()
        self.held: dict[int, bytes] = {}  # by slot: what was written

    def close(self) -> None:
        self.tier.close()

    # -- frames
    # ---------------------------------------------------------------------------------------------

    def write(self, frames: Sequence[memoryview]) -> range:
        """To slots that are reserved for them; returns those."""
        first, count = self.tier.reserve(len(frames))
        assert count == len(frames), f"room for {count} of {len(frames)}"
        try:
            self.tier.write(first, frames)
        except BaseException:
            for slot in range(first, first + count):
                self.tier.release(slot)
            raise
        slots = range(first, first + count)
        self.held |= {slot: bytes(frame) for slot, frame in zip(slots, frames, strict=True)}
        return slots

    def fill(self, rng: random.Random, count: int, at_a_time: int = 8) -> None:
        for done in range(0, count, at_a_time):
            self.write([frame_of(rng) for _ in range(min(at_a_time, count - done))])

    def release(self, slot: int) -> None:
        self.tier.release(slot)
        del self.held[slot]

    def read(self, slot: int) -> bytes:
        (frame,) = empty_frames(1, self.copies.frame_bytes)
        self.tier.read(slot, [frame])
        return bytes(frame)

    def check(self) -> None:
        """Every frame is what was written."""
        for slot, frame in self.held.items():
            assert self.read(slot) == frame, f"slot {slot}"

    # -- time
    # ---------------------------------------------------------------------------------------------

    def turn(self, seconds: float = HEARTBEAT_SECONDS + 0.1) -> None:
        """The mender's, after so long."""
        self.clock.seconds += seconds
        self.mender.work()
        assert not any("unforeseen" in line for line in self.said), self.said

    def settle(self, until: Callable[[], bool] | None = None, seconds: float = HEARTBEAT_SECONDS + 0.1) -> None:
        """Turns, until that is so; or until all is connected, mended and swept."""
        for _ in range(MAX_TURNS):
            self.turn(seconds)
            if (until or self.is_settled)():
                return
        raise AssertionError(f"not settled: {self.copies.at}, {self.mender.troubles()}")

    def is_settled(self) -> bool:
        copies = self.copies
        return (
            all(peer.is_up and peer.is_connected() for peer in copies.peers)
            and not (copies.dead.count or any(copies.unnamed) or copies.is_mending_due)
            and all(self.copies_of(slot) == copies.wanted for slot in self.held)
        )

    # -- who holds what
    # ---------------------------------------------------------------------------------------------

    def copies_of(self, slot: int) -> int:
        """That are known to be at engines as they are."""
        numbers = self.copies.tables.holders_of(slot)
        peers = [(self.copies.holder(number), number) for number in numbers]
        return sum(peer is not None and peer.number == number for peer, number in peers)

    def key(self, peer: Peer, slot: int) -> bytes:
        """Of the slot's frame, as it was last written."""
        return self.copies.key_of(peer, slot, self.copies.tables.generation[slot])

    def frames_at(self, engine: Engine) -> set[bytes]:
        """Keys of frames there: of this server's, or those before it."""
        return {key for key in keys_at(engine) if key.rpartition(b":")[2].isdigit()}

    def expected_at(self, lane: int) -> set[bytes]:
        """Keys of frames that should be there."""
        peer, holders_of = self.copies.peers[lane], self.copies.tables.holders_of
        slots = [slot for slot in self.held if any(self.copies.holder(number) is peer for number in holders_of(slot))]
        return {self.key(peer, slot) for slot in slots}


def keys_at(engine: Engine) -> set[bytes]:
    reply: Reply = engine.call("KEYS", "zcache:*")
    assert isinstance(reply, list)
    return {key for key in reply if isinstance(key, bytes)}

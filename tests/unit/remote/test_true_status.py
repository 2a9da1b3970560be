"""Whoever stops an engine once status says that all is well loses nothing: of what engines have
lost, or may have, something is said until it is there twice again. Engines are dicts, and time is
the test's own."""

import itertools
import random
from collections.abc import Callable
from typing import Final

import pytest

from tests.support.clock import FakeClock
from tests.support.fake_engine import FakeEngine, FakeNetwork
from zcache.remote.copies import Copies
from zcache.remote.engines import Engines
from zcache.remote.mender import HEARTBEAT_SECONDS, Mender
from zcache.remote.remote_tier import RemoteTier
from zcache.remote.resp import MAX_REPLY_BYTES
from zcache.remote.sweeper import SWEEP_SECONDS
from zcache.remote.tables import Tables
from zcache.remote.url import parse_url

FRAME_BYTES: Final = 4096
SLOTS: Final = 400
FRAMES: Final = 300
TURN_SECONDS: Final = 0.05


class Bench:
    """Two engines, and a tier with `FRAMES` frames that are at both."""

    def __init__(self, rng: random.Random) -> None:
        self.clock = FakeClock()
        self.network = FakeNetwork(self.clock, rng)
        self.names = ["/engine1", "/engine2"]
        for name in self.names:
            self.network.add(name)
        self.tables = Tables(SLOTS)
        self.start(is_successor=False)
        self.held: dict[int, bytes] = {}
        for _ in range(FRAMES):
            slot, _ = self.tier.reserve(1)
            self.write(slot, rng)
        self.work_for(1.0)
        assert self.is_all_twice and not self.mender.troubles()

    def start(self, *, is_successor: bool) -> None:
        engines = Engines(
            [parse_url(f"unix://{name}") for name in self.names], 2, False, self.clock, self.network.connect
        )
        engines.resolve(is_successor, print)
        if not is_successor:
            engines.check(print)
        peers = engines.make_peers("name", self.tables, not is_successor)
        self.copies = Copies(self.tables, peers, FRAME_BYTES, self.clock)
        self.tier = RemoteTier(SLOTS, self.copies)
        self.mender = Mender(self.tier, engines, self.clock, print)
        self.mender.connect_all()
        if is_successor:
            for slot in self.held:
                self.tier.take_over(slot)

    def write(self, slot: int, rng: random.Random) -> None:
        frame = bytearray(rng.randbytes(FRAME_BYTES))
        self.tier.write(slot, [memoryview(frame)])
        self.held[slot] = bytes(frame)

    def read(self, slot: int) -> None:
        frame = bytearray(FRAME_BYTES)
        self.tier.read(slot, [memoryview(frame)])
        assert frame == self.held[slot]

    def engine(self, lane: int) -> FakeEngine:
        return self.network.at[self.names[lane]]

    def key(self, lane: int, slot: int) -> bytes:
        return self.copies.key_of(self.copies.peers[lane], slot, self.tables.generation[slot])

    def is_at(self, lane: int, slot: int) -> bool:
        value = self.engine(lane).data.get(self.key(lane, slot))
        return isinstance(value, bytes) and self.held[slot].startswith(value) and len(value) > FRAME_BYTES // 2

    @property
    def is_all_twice(self) -> bool:
        return all(self.is_at(lane, slot) for lane, slot in itertools.product(range(2), self.held))

    def work_for(self, seconds: float) -> None:
        ends = self.clock.now() + seconds
        while self.clock.now() < ends:
            self.clock.seconds += TURN_SECONDS
            self.mender.work()

    def never_says_that_all_is_well_too_soon(self, seconds: float) -> None:
        """And that it is in the end."""
        ends = self.clock.now() + seconds
        while not self.is_all_twice:
            assert self.mender.troubles(), "all is well, and some frames are at one engine"
            assert self.clock.now() < ends, self.mender.troubles()
            self.clock.seconds += TURN_SECONDS
            self.mender.work()
        self.work_for(5.0)
        assert not self.mender.troubles()


@pytest.fixture
def bench(rng: random.Random) -> Bench:
    return Bench(rng)


def test_what_an_engine_has_evicted_is_looked_for_and_made_again(bench: Bench) -> None:
    """Though whoever has set a `maxmemory-policy` has taken it back since."""
    for slot in range(1, FRAMES, 2):
        bench.engine(0).evict(bench.key(0, slot))
    bench.clock.seconds += HEARTBEAT_SECONDS
    bench.mender.work()  # which hears of it
    bench.never_says_that_all_is_well_too_soon(10.0)


def test_once_one_copy_is_found_missing_all_are_looked_for(bench: Bench) -> None:
    """An engine that has lost one without a word may have lost others."""
    for slot in range(1, FRAMES, 2):
        bench.engine(0).forget(bench.key(0, slot))
    asked = next(slot for slot in range(1, FRAMES, 2) if bench.copies.candidates(slot)[0][0].lane == 0)
    bench.read(asked)
    bench.never_says_that_all_is_well_too_soon(10.0)


def wrong_values(bench: Bench, slots: range, value: bytes) -> None:
    for slot in slots:
        bench.engine(0).take(bench.key(0, slot), value)


@pytest.mark.parametrize("value", [b"short", bytes(FRAME_BYTES * 2)], ids=["short", "long"])
def test_a_value_of_another_length_costs_no_other_frame_its_second_copy(bench: Bench, value: bytes) -> None:
    wrong_values(bench, range(1, 2), value)
    bench.network.restart(bench.names[1], is_from_snapshot=False)
    bench.work_for(5.0)
    assert [slot for slot in bench.held if not bench.is_at(1, slot)] == [1], "which is lost"
    assert bench.mender.troubles() == ["1 frames were at engines that have lost them: reads of their pages fail"]


def test_one_frame_that_cannot_be_copied_holds_up_no_others(bench: Bench) -> None:
    wrong_values(bench, range(1, 2), bytes(MAX_REPLY_BYTES + 1))
    bench.network.restart(bench.names[1], is_from_snapshot=False)
    bench.work_for(60.0)
    assert [slot for slot in bench.held if not bench.is_at(1, slot)] == [1]
    assert "1 second copies are missing at engines: stop no other engine yet" in bench.mender.troubles()


def test_what_was_put_in_a_copy_s_place_does_not_stay(bench: Bench, rng: random.Random) -> None:
    slots = range(1, 21)
    keys = [bench.key(0, slot) for slot in slots]
    wrong_values(bench, slots, b"short")
    for slot in slots:
        bench.read(slot)
        bench.write(slot, rng)  # anew: the other copy's key is known, and goes
    bench.work_for(5.0)
    assert not bench.engine(0).data.keys() & set(keys)


def restarted(bench: Bench) -> None:
    bench.network.restart(bench.names[1], is_from_snapshot=False)


def forgetful(bench: Bench) -> None:
    for key in list(bench.engine(1).data):
        bench.engine(1).forget(key)


@pytest.mark.parametrize("happen", [restarted, forgetful])
def test_an_engine_that_has_lost_all_is_said_until_all_is_there_again(
    bench: Bench, happen: Callable[[Bench], None]
) -> None:
    happen(bench)
    bench.clock.seconds += HEARTBEAT_SECONDS
    bench.mender.work()
    bench.never_says_that_all_is_well_too_soon(10.0)


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_successor_says_so_from_the_first(bench: Bench, is_empty: bool) -> None:
    """Of copies that are missing, as its predecessor knew; and of those that nobody has looked for
    yet."""
    if is_empty:
        restarted(bench)
        bench.clock.seconds += HEARTBEAT_SECONDS
        bench.mender.work()
    else:
        for slot in range(1, FRAMES, 2):
            bench.engine(0).forget(bench.key(0, slot))
    bench.start(is_successor=True)
    bench.never_says_that_all_is_well_too_soon(10.0)
    assert bench.clock.now() < SWEEP_SECONDS

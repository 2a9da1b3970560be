"""The mender among engines that are dicts: what takes an hour, and what one engine's trouble does
to the others."""

import random
from typing import Final

import pytest

from tests.support.clock import FakeClock
from tests.support.fake_engine import FakeEngine, FakeNetwork
from zcache.remote.copies import Copies
from zcache.remote.engines import Engines
from zcache.remote.mender import Mender
from zcache.remote.sweeper import SWEEP_SECONDS
from zcache.remote.tables import Tables
from zcache.remote.url import parse_url

FRAME_BYTES: Final = 4096
SLOTS: Final = 8


class Bench:
    """Three engines, and slots that are all in use."""

    def __init__(self, rng: random.Random, *, is_cluster: bool = False) -> None:
        self.clock = FakeClock()
        self.network = FakeNetwork(self.clock, rng, is_cluster=is_cluster)
        self.names = [f"127.0.0.{n}:7000" if is_cluster else f"/engine{n}" for n in range(1, 4)]
        for name in self.names:
            self.network.add(name)
        form = "redis://{}?cluster=yes" if is_cluster else "unix://{}"
        urls = [parse_url(form.format(name)) for name in self.names]
        engines = Engines(urls, 2, may_evict=False, clock=self.clock, connect_to=self.network.connect)
        engines.resolve(False, print)
        engines.check(lambda _: None)
        self.tables = Tables(SLOTS)
        self.copies = Copies(self.tables, engines.make_peers("name", self.tables, True), FRAME_BYTES, self.clock)
        self.mender = Mender(self.copies, engines, lambda _: True, 2, self.clock, lambda _: None)
        self.mender.connect_all()
        self.work()

    def write(self, slot: int, rng: random.Random) -> list[FakeEngine]:
        """A frame; returns who has it."""
        self.copies.send(slot, [memoryview(bytearray(rng.randbytes(FRAME_BYTES)))], self.copies.choose(1, 2), 2)
        return self.with_copy(slot)

    def with_copy(self, slot: int) -> list[FakeEngine]:
        found = []
        for peer, name in zip(self.copies.peers, self.names, strict=True):
            key = self.copies.key_of(peer, slot, self.tables.generation[slot])
            if key in self.network.at[name].data:
                found.append(self.network.at[name])
        return found

    def work(self, turns: int = 12) -> None:
        for _ in range(turns):
            self.clock.seconds += 0.5
            self.mender.work()


@pytest.fixture
def bench(rng: random.Random) -> Bench:
    return Bench(rng)


def test_a_copy_that_an_engine_has_lost_without_a_word_is_made_again(bench: Bench, rng: random.Random) -> None:
    first, _ = bench.write(1, rng)
    for key in [key for key in first.data if key.endswith(b":1:1")]:
        first.forget(key)
    bench.work()
    assert len(bench.with_copy(1)) == 1, "nobody has asked for it"
    bench.clock.seconds += SWEEP_SECONDS
    bench.work()
    assert len(bench.with_copy(1)) == 2
    assert bench.copies.counters.remote_missing_copies == bench.copies.counters.remirrored_frames == 1


def test_a_frame_that_comes_after_the_sweep_for_it_is_swept_up_within_an_hour(bench: Bench, rng: random.Random) -> None:
    bench.write(1, rng)
    stray = bench.copies.key_of(bench.copies.peers[0], 1, 77)
    engine = bench.network.at[bench.names[0]]
    engine.execute((b"SET", stray, bytes(FRAME_BYTES - 16)))
    bench.work()
    assert stray in engine.data
    bench.clock.seconds += SWEEP_SECONDS
    bench.work()
    assert stray not in engine.data and len(bench.with_copy(1)) == 2


def test_engines_that_answer_are_looked_after_before_those_that_do_not(bench: Bench) -> None:
    for name in bench.names[:2]:
        bench.network.at[name].state = "paused"
    bench.work(2)
    bench.network.restart(bench.names[2], is_from_snapshot=False)
    begin = bench.clock.now()
    while bench.network.at[bench.names[2]].connections == []:
        bench.mender.work()
        bench.clock.seconds += 0.05
        assert bench.clock.now() - begin < 20
    other = bench.copies.peers[2]
    assert other.is_up and other.is_connected()


def test_in_a_cluster_the_trouble_of_the_one_with_the_quota_is_no_others(rng: random.Random) -> None:
    """Each asks the same node how much its owner may hold."""
    bench = Bench(rng, is_cluster=True)
    holder = next(name for name in bench.names if bench.network.owns(bench.network.at[name], b"zcache:quota:default"))
    others = [peer for peer, name in zip(bench.copies.peers, bench.names, strict=True) if name != holder]
    before = [engine.connections[:] for name, engine in bench.network.at.items() if name != holder]
    bench.network.at[holder].state = "cut"
    bench.work()
    assert all(peer.is_up and peer.is_connected() for peer in others)
    assert before == [engine.connections for name, engine in bench.network.at.items() if name != holder]

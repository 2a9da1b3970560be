"""The mender among engines that are dicts: what takes an hour, and what one engine's trouble does
to the others."""

import errno
import random
from collections.abc import Sequence
from typing import Any, Final

import pytest

from tests.support.clock import FakeClock
from tests.support.fake_engine import FakeEngine, FakeNetwork
from tests.support.remote import EverySlot
from zcache.remote.cluster import Node
from zcache.remote.copies import Copies
from zcache.remote.engines import Engines
from zcache.remote.mender import Mender
from zcache.remote.peer import Identity, Peer
from zcache.remote.reading import Reading
from zcache.remote.remote_tier import RemoteTier
from zcache.remote.sweeper import SWEEP_SECONDS
from zcache.remote.tables import Tables
from zcache.remote.url import parse_url

FRAME_BYTES: Final = 4096
SLOTS: Final = 8


class Bench:
    """Engines, and slots that are all in use."""

    def __init__(self, rng: random.Random, *, is_cluster: bool = False, count: int = 3) -> None:
        self.clock = FakeClock()
        self.network = FakeNetwork(self.clock, rng, is_cluster=is_cluster)
        self.names = [f"127.0.0.{n}:7000" if is_cluster else f"/engine{n}" for n in range(1, count + 1)]
        for name in self.names:
            self.network.add(name)
        form = "redis://{}?cluster=yes" if is_cluster else "unix://{}"
        self.urls = [parse_url(form.format(name)) for name in self.names]
        self.tables = Tables(SLOTS)
        self.said: list[str] = []
        self.start(is_successor=False)
        self.work()

    def start(self, *, is_successor: bool) -> None:
        """A server."""
        engines = Engines(self.urls, 2, may_evict=False, clock=self.clock, connect_to=self.network.connect)
        engines.resolve(is_successor, print)
        if not is_successor:
            engines.check(lambda _: None)
        peers = engines.make_peers("name", self.tables, not is_successor)
        self.copies = Copies(self.tables, peers, FRAME_BYTES, self.clock)
        self.mender = Mender(EverySlot(SLOTS, self.copies), engines, self.clock, self.said.append)
        self.mender.connect_all()

    def write(self, slot: int, rng: random.Random, lanes: Sequence[int] = ()) -> list[FakeEngine]:
        """A frame; returns who has it."""
        peers = [self.copies.peers[lane] for lane in lanes] or self.copies.room.choose(1, 2)
        self.copies.send(slot, [memoryview(bytearray(rng.randbytes(FRAME_BYTES)))], peers, 2)
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


def test_a_copy_that_is_wrong_is_made_anew_from_the_right_one(bench: Bench, rng: random.Random) -> None:
    """Or it would be all that there is once the engine of the right one starts again."""
    tier = RemoteTier(SLOTS, bench.copies)
    frame, into = memoryview(bytearray(rng.randbytes(FRAME_BYTES))), memoryview(bytearray(FRAME_BYTES))
    slot, _ = tier.reserve(1)
    tier.write(slot, [frame])
    peer, _ = bench.copies.candidates(slot)[0]
    key = bench.copies.key_of(peer, slot, bench.tables.generation[slot])
    engine = bench.network.at[bench.names[peer.lane]]
    engine.data[key] = bytes(FRAME_BYTES - 16)
    tier.read(slot, [into])
    assert into != frame
    tier.read_again(slot, into, lambda: False)
    bench.work(40)
    assert engine.data[key] == bytes(FRAME_BYTES - 16), "nobody knows which one is wrong"
    tier.read_again(slot, into, lambda: into == frame)
    assert into == frame
    bench.work(40)
    holders = bench.with_copy(slot)
    assert [engine.data[key] == bytes(frame[:-16]) for engine in holders] == [True, True]
    assert sum(bench.copies.at) == 2 and bench.copies.counters.remote_missing_copies == 1


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


def test_when_slots_are_moved_to_one_node_the_copies_there_are_moved_apart(rng: random.Random) -> None:
    """Two lanes are at one node then, whose death would take both copies."""
    bench = Bench(rng, is_cluster=True)
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    bench.network.take_out(bench.names[2])
    said = set()
    for _ in range(36):
        bench.work(1)
        said.update(bench.mender.troubles())
    assert any("both copies at one node" in trouble for trouble in said)
    nodes = [peer.node for peer in bench.copies.peers]
    assert len(set(nodes)) == 2 and not bench.mender.troubles()
    for slot in range(1, SLOTS + 1):
        holders = [bench.copies.holder(number) for number in bench.tables.holders_of(slot)]
        assert len({holder.node for holder in holders if holder}) == 2
    bench.write(1, rng)
    dead = next(name for name in bench.names[:2] if bench.network.at[name].data)
    bench.network.restart(dead, is_from_snapshot=False)
    bench.work()
    into = memoryview(bytearray(FRAME_BYTES))
    for slot in range(1, SLOTS + 1):
        assert Reading(bench.copies).fetch([slot], [into])[0] == []


def test_lanes_at_one_node_do_not_promise_its_memory_twice(rng: random.Random) -> None:
    bench = Bench(rng, is_cluster=True)
    bench.network.maxmemory = 100 * bench.copies.paid_bytes
    bench.network.take_out(bench.names[2])
    bench.work(24)
    room = bench.copies.room
    each = sorted(room.by_node(lambda peer: room.most(peer, 0)))
    assert 90 <= each[0] <= each[1] <= 100


def test_a_url_that_leads_to_another_of_the_engines_is_not_taken_for_a_second_one(
    bench: Bench, rng: random.Random
) -> None:
    """A virtual address, say, that has moved."""
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    network = bench.network
    network.at[bench.names[0]].end()
    network.at[bench.names[0]] = network.at[bench.names[1]]
    bench.work()
    (trouble,) = [trouble for trouble in bench.mender.troubles() if "out of reach" in trouble]
    assert "is the same engine as /engine2, or a copy of it" in trouble
    assert [peer.is_up for peer in bench.copies.peers] == [False, True, True]


def test_an_engine_that_comes_back_with_another_s_memory_costs_that_one_nothing(
    bench: Bench, rng: random.Random
) -> None:
    """The wrong snapshot, or a clone of its machine."""
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    first, second, _ = (bench.network.at[name] for name in bench.names)
    before = dict(first.data)
    second.snapshot = dict(first.data)
    bench.network.restart(bench.names[1], is_from_snapshot=True)
    bench.clock.seconds += SWEEP_SECONDS
    bench.work(120)
    assert not bench.copies.peers[1].is_up
    assert {key for key in before if key.endswith(b":1")} <= set(first.data)
    assert any("or a copy of it" in trouble for trouble in bench.mender.troubles())


def test_nor_does_it_when_that_one_is_away_for_a_moment(bench: Bench, rng: random.Random) -> None:
    """The copies of the other one are gone, and it has the only ones."""
    bench.network.at[bench.names[2]].state = "cut"
    bench.work(20)
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    first, second = (bench.network.at[name] for name in bench.names[:2])
    second.snapshot = {key: value for key, value in first.data.items() if key.endswith(b"word")}  # an old one
    bench.network.restart(bench.names[1], is_from_snapshot=True)
    bench.work()
    first.state = "paused"
    bench.work(6)
    first.state = "up"
    bench.work(40)
    assert bench.copies.peers[0].is_up and not bench.copies.peers[1].is_up
    assert bench.copies.counters.remote_lost_frames == 0
    into = memoryview(bytearray(FRAME_BYTES))
    for slot in range(1, SLOTS + 1):
        assert Reading(bench.copies).fetch([slot], [into])[0] == []


def test_to_look_for_copies_needs_no_room(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failover among engines that are full, and the first question fails."""
    bench = Bench(rng, is_cluster=True)
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    bench.network.maxmemory = max(engine.used_bytes for engine in bench.network.at.values())
    bench.work()
    to_fail = [True]
    exist = Peer.exist

    def once(peer: Peer, keys: Sequence[bytes]) -> list[bool]:
        if keys and to_fail:
            to_fail.clear()
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        return exist(peer, keys)

    monkeypatch.setattr(Peer, "exist", once)
    bench.network.at[bench.names[0]].lag_all()
    bench.network.fail_over(bench.names[0], is_old_alive=False)
    bench.work(60)
    assert bench.copies.unproven() == 0 and not bench.mender.troubles()


def test_close_pairs_that_are_gone_are_no_trouble_though_there_is_no_room(rng: random.Random) -> None:
    bench = Bench(rng, is_cluster=True)
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    bench.network.take_out(bench.names[2])
    bench.work(1)
    nodes = [peer.node for peer in bench.copies.peers]
    lone = next(peer for peer in bench.copies.peers if nodes.count(peer.node) == 1)
    node = lone.node
    assert isinstance(node, Node)
    bench.network.at[f"{node.host}:{node.port}"].foreign_bytes = 10**9
    bench.network.maxmemory = 10**8
    bench.work(40)
    for slot in range(1, SLOTS + 1):
        bench.copies.drop(slot)
    bench.work(60)
    assert not any("one node" in trouble for trouble in bench.mender.troubles())


def test_a_doubt_outlives_a_greeting_that_comes_to_nothing(bench: Bench, rng: random.Random) -> None:
    """An engine was emptied while it was out of reach."""
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    engine, peer = bench.network.at[bench.names[0]], bench.copies.peers[0]
    engine.state = "cut"
    bench.work()
    for key in list(engine.data):
        engine.forget(key)
    engine.state = "up"
    peer.greet()  # which leaves the word again; and that is all
    peer.greet()
    assert peer.has_lost_word
    bench.work(60)
    assert not peer.has_lost_word and not bench.mender.troubles()
    assert bench.copies.counters.remote_missing_copies == bench.copies.counters.remirrored_frames > 0


def test_copies_that_are_yet_to_be_looked_for_are_counted_as_missing(rng: random.Random) -> None:
    """A replica takes over that lacks what was written last: status does not say that all is
    well before it is known."""
    bench = Bench(rng, is_cluster=True)
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    engine = bench.network.at[bench.names[0]]
    held = bench.copies.at[0]
    engine.lag_all()
    for key in [key for key in engine.replica if key.endswith(b":1")]:
        del engine.replica[key]
    bench.network.fail_over(bench.names[0], is_old_alive=False)
    peer, number = bench.copies.peers[0], bench.copies.peers[0].number
    bench.network.latency_seconds = 0.01  # so that a turn does one thing
    while peer.number == number or not peer.is_up:
        bench.work(1)
    assert bench.copies.unproven() + bench.copies.counters.remote_missing_copies == held
    assert bench.copies.counters.remote_missing_copies + bench.copies.unproven() > 0
    bench.work(60)
    assert bench.copies.unproven() == 0 and sum(bench.copies.at) == 2 * SLOTS
    assert bench.copies.counters.remote_missing_copies == held


def test_an_engine_over_its_quota_gives_copies_to_one_that_has_room(bench: Bench, rng: random.Random) -> None:
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    assert all(bench.copies.at)
    first = bench.network.at[bench.names[0]]
    first.execute((b"SET", b"zcache:quota:default", b"%d" % bench.copies.paid_bytes))
    bench.work(24)
    assert bench.copies.at[0] == 1 and sum(bench.copies.at) == 2 * SLOTS
    assert sum(key.endswith(b":1") for key in first.data) == 1, "nor is it there"
    into = memoryview(bytearray(FRAME_BYTES))
    for slot in range(1, SLOTS + 1):
        assert len(bench.with_copy(slot)) == 2 and Reading(bench.copies).fetch([slot], [into])[0] == []


def test_several_are_copied_in_one_go_and_one_that_is_gone_costs_the_others_nothing(
    bench: Bench, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    fetched, fetch = [], Peer.fetch

    def counted(peer: Peer, keys: Sequence[bytes], buffers: Sequence[memoryview], seconds: float) -> list[bool]:
        fetched.append(len(keys))
        return fetch(peer, keys, buffers, seconds)

    monkeypatch.setattr(Peer, "fetch", counted)
    gone = rng.choice(
        [slot for slot in range(1, SLOTS + 1) if bench.copies.peers[0].number in bench.tables.holders_of(slot)]
    )
    bench.network.restart(bench.names[0], is_from_snapshot=False)
    (left,) = bench.with_copy(gone)
    for key in [key for key in left.data if key.endswith(b":%d:1" % gone)]:
        left.forget(key)
    lacking = bench.copies.at[0]
    bench.work()
    assert sum(fetched) == lacking and len(fetched) == 2, "from each of the others"
    assert bench.copies.counters.remirrored_frames == lacking - 1
    assert list(bench.copies.lost) == [gone] and bench.with_copy(gone) == []
    assert all(len(bench.with_copy(slot)) == 2 for slot in range(1, SLOTS + 1) if slot != gone)


def test_no_more_is_copied_than_there_is_room_for(bench: Bench, rng: random.Random) -> None:
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    bench.network.restart(bench.names[0], is_from_snapshot=False)
    for lane, name in enumerate(bench.names):
        room = 1 if lane == 0 else bench.copies.at[lane]
        bench.network.at[name].execute((b"SET", b"zcache:quota:default", b"%d" % (room * bench.copies.paid_bytes)))
    bench.work(40)
    assert bench.copies.at[0] == bench.copies.counters.remirrored_frames == 1
    assert bench.copies.counters.remote_flushes == 0, "none was taken back"


def test_what_is_met_while_several_are_copied_names_no_copy_that_is_not_there(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that had not come to it are begun anew, and each once."""
    bench = Bench(rng, count=4)
    for slot in range(1, 7):
        bench.write(slot, rng, lanes=(0, 1 if slot < 4 else 2))
    bench.network.at[bench.names[0]].state = "cut"
    fetch, to_fail = Peer.fetch, [True]

    def once(peer: Peer, keys: Sequence[bytes], buffers: Sequence[memoryview], seconds: float) -> list[bool]:
        if to_fail:
            to_fail.clear()
            raise MemoryError
        return fetch(peer, keys, buffers, seconds)

    monkeypatch.setattr(Peer, "fetch", once)
    bench.work(160)
    assert not to_fail and bench.copies.counters.remirrored_frames == 6
    for slot in range(1, 7):
        there = {bench.names.index(engine.name) for engine in bench.with_copy(slot)} - {0}
        named = {peer.lane for peer, _ in bench.copies.candidates(slot)}
        assert there == named and len(there) == 2


def test_engines_that_hang_keep_the_mender_for_no_longer_than_one_does(rng: random.Random) -> None:
    """It has others to look after."""
    bench = Bench(rng, count=8)
    for lane in range(1, 7):
        bench.write(lane, rng, lanes=(0, lane))
    bench.network.restart(bench.names[0], is_from_snapshot=False)
    fetched = []

    def hang(peer: Peer, _keys: object, _buffers: object, seconds: float) -> list[bool]:
        fetched.append(peer)
        bench.clock.seconds += seconds
        raise TimeoutError(errno.ETIMEDOUT, "hangs")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Peer, "fetch", hang)
        for turn in range(8):
            bench.clock.seconds += 0.5
            before = bench.clock.seconds, len(fetched)
            bench.mender.work()
            assert len(fetched) <= before[1] + 1 and bench.clock.seconds < before[0] + 1.5, f"turn {turn}"
    assert fetched
    bench.work(80)
    assert all(len(bench.with_copy(slot)) == 2 for slot in range(1, 7))


def test_one_that_has_just_failed_is_sent_no_more_in_that_turn(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(rng, count=5)
    for slot in range(1, 4):
        bench.write(slot, rng, lanes=(0, slot))
    begin_set, begun = Peer.begin_set, []

    def fail(peer: Peer, *arguments: Any) -> None:
        if peer.lane != 4:  # which has nothing, and so is the target of all
            begin_set(peer, *arguments)
            return
        begun.append(turns)
        peer.failed(ConnectionResetError(errno.ECONNRESET, "reset"))
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setattr(Peer, "begin_set", fail)
    bench.network.at[bench.names[0]].state = "cut"
    for turns in range(160):  # noqa: B007 (`fail` looks at it)
        bench.work(1)
    assert begun and len(begun) == len(set(begun))
    assert all(len(set(bench.copies.candidates(slot))) == 2 for slot in range(1, 4))


def test_after_a_failure_fewer_are_copied_in_one_go(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that takes longer for eight than they are given would never be done."""
    bench = Bench(rng, count=2)
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    fetch = Peer.fetch

    def slow(peer: Peer, keys: Sequence[bytes], buffers: Sequence[memoryview], seconds: float) -> list[bool]:
        if len(keys) > 2:
            raise TimeoutError(errno.ETIMEDOUT, "too much for this link")
        return fetch(peer, keys, buffers, seconds)

    monkeypatch.setattr(Peer, "fetch", slow)
    bench.network.restart(bench.names[0], is_from_snapshot=False)
    bench.work(200)
    assert all(len(bench.with_copy(slot)) == 2 for slot in range(1, SLOTS + 1))


def test_a_second_holder_that_has_it_already_is_not_named_twice(bench: Bench, rng: random.Random) -> None:
    bench.write(1, rng)
    first, second = bench.tables.holders_of(1)
    assert bench.copies.let_go(1, first, 1, successor=second)
    assert sorted(bench.tables.holders_of(1)) == [0, second]
    assert sum(bench.copies.at) == 1


# -- an engine that says what none would
# -------------------------------------------------------------------------------------------------


def made_again_without(bench: Bench, silly: str, rng: random.Random) -> None:
    """One engine is no use: what it held is at both others in time, so that either may die; and
    another server starts in spite of it."""
    lane = bench.names.index(silly)
    bench.work(80)
    assert [peer.is_up for peer in bench.copies.peers] == [other != lane for other in range(3)]
    assert len([engine for engine in bench.with_copy(1) if engine.name != silly]) == 2
    bench.start(is_successor=True)
    assert [peer.is_up for peer in bench.copies.peers] == [other != lane for other in range(3)]
    bench.network.restart(bench.names[lane - 1], is_from_snapshot=False)
    bench.work(80)
    assert len([engine for engine in bench.with_copy(1) if engine.name != silly]) == 2
    assert len(bench.write(2, rng)) == 2


@pytest.mark.parametrize(
    "word",
    [b"-5", b"0x5", b" 5", b"1_2", b"", b"F" * 16, b"f" * 15, b"f" * 17, b"0" * 16, b"9" * 5000, b"\xb2", b"1\n"],
)
def test_a_word_that_is_none_of_ours_costs_nobody_but_its_engine(bench: Bench, rng: random.Random, word: bytes) -> None:
    engine = bench.write(1, rng)[0]
    bench.network.restart(engine.name, is_from_snapshot=False)
    peer = bench.copies.peers[bench.names.index(engine.name)]
    bench.network.at[engine.name].execute((b"SET", peer.prefix + b"word", word))
    made_again_without(bench, engine.name, rng)
    (trouble,) = bench.mender.troubles()
    assert "the word there is none of ours" in trouble


def test_an_engine_that_does_not_keep_its_word_is_not_taken_for_one_that_does(
    bench: Bench, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench.write(1, rng)[0]
    bench.network.restart(engine.name, is_from_snapshot=False)
    monkeypatch.setattr(bench.network.at[engine.name], "_do_set", lambda *_: b"OK")
    made_again_without(bench, engine.name, rng)
    (trouble,) = bench.mender.troubles()
    assert "does not keep the word" in trouble


def test_whatever_is_met_at_one_engine_the_others_are_looked_after(
    bench: Bench, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench.write(1, rng)[0]
    bench.network.restart(engine.name, is_from_snapshot=False)
    greet = Peer.greet

    def surprise(peer: Peer) -> Identity:
        if bench.names[peer.lane] == engine.name:
            raise ValueError("a surprise")
        return greet(peer)

    monkeypatch.setattr(Peer, "greet", surprise)
    made_again_without(bench, engine.name, rng)
    first, second = bench.mender.troubles()
    assert "out of reach" in first and "a surprise" in first and "did not foresee" in second
    said = [line for line in bench.said if "something unforeseen: ValueError: a surprise" in line]
    assert len(said) == 2, "by each server once"


def test_others_are_looked_after_in_the_turn_that_meets_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = Peer.connect

    def surprise(peer: Peer, identity: Identity) -> None:
        if not peer.lane:
            raise ValueError("a surprise")
        connect(peer, identity)

    monkeypatch.setattr(Peer, "connect", surprise)
    for peer in bench.copies.peers:
        peer.disconnect()
    bench.work(1)
    assert [peer.is_connected() for peer in bench.copies.peers] == [False, True, True]


@pytest.mark.parametrize("cursor", [b"9" * 5000, b"-1", b"x", 7, None])
def test_a_cursor_that_is_none_costs_nobody_but_its_engine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, cursor: bytes | int | None
) -> None:
    first, second, third = (bench.network.at[name] for name in bench.names)
    monkeypatch.setattr(first, "_do_scan", lambda *_: [cursor, []])
    stray = bench.copies.key_of(bench.copies.peers[2], 1, 77)
    for engine in (second, third):
        engine.execute((b"SET", stray, bytes(FRAME_BYTES - 16)))
    bench.clock.seconds += SWEEP_SECONDS
    bench.work()
    assert stray not in second.data and stray not in third.data
    assert all(peer.is_up for peer in bench.copies.peers) and not bench.mender.troubles()


def test_a_frame_that_is_not_removed_where_it_was_moved_from_is_swept_up_at_once(
    bench: Bench, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an engine that has to give memory back; nobody names it any more."""
    for slot in range(1, SLOTS + 1):
        bench.write(slot, rng)
    first = bench.network.at[bench.names[0]]
    unlink, to_fail = Peer.unlink, [True]

    def once(peer: Peer, keys: Sequence[bytes]) -> None:
        if keys and to_fail:
            to_fail.clear()
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        unlink(peer, keys)

    monkeypatch.setattr(Peer, "unlink", once)
    first.execute((b"SET", b"zcache:quota:default", b"%d" % bench.copies.paid_bytes))
    bench.work(60)
    assert not to_fail and bench.copies.at[0] == 1
    assert sum(key.endswith(b":1") for key in first.data) == 1
    assert bench.copies.counters.remote_flushes > 0


def test_where_all_lanes_are_at_one_node_there_is_room_for_no_frame_twice(bench: Bench) -> None:
    """However much of it there is."""
    tier = RemoteTier(SLOTS, bench.copies)
    assert tier.promised_room() == SLOTS
    for peer in bench.copies.peers[1:]:
        peer.node = bench.copies.peers[0].node
    assert tier.promised_room() == 0


def test_a_frame_is_within_reach_while_one_that_has_it_is(bench: Bench, rng: random.Random) -> None:
    """Whoever was told that it could not be read need not ask for it to know better."""
    tier = RemoteTier(SLOTS, bench.copies)
    slot, _ = tier.reserve(1)
    tier.write(slot, [memoryview(bytearray(rng.randbytes(FRAME_BYTES)))])
    first, second = bench.with_copy(slot)
    assert tier.is_within_reach(slot)
    first.state = second.state = "paused"
    with pytest.raises(OSError, match="Input/output error"):
        tier.read(slot, [memoryview(bytearray(FRAME_BYTES))])
    bench.work(40)
    assert not tier.is_within_reach(slot)
    second.state = "up"
    bench.work(40)
    assert tier.is_within_reach(slot)
    for engine in (second, next(each for each in bench.network.at.values() if each not in (first, second))):
        for key in [key for key in engine.data if key.endswith(b":%d:1" % slot)]:
            engine.forget(key)
    with pytest.raises(OSError, match="Input/output error"):
        tier.read(slot, [memoryview(bytearray(FRAME_BYTES))])
    assert not tier.is_within_reach(slot), "nobody has it but the one that is out of reach"


def test_a_frame_is_known_dead_once_all_that_have_it_have_failed_for_long(bench: Bench, rng: random.Random) -> None:
    """Which the mender sees, if nobody reads; that another engine fails says nothing."""
    tier = RemoteTier(SLOTS, bench.copies)
    slot, _ = tier.reserve(1)
    tier.write(slot, [memoryview(bytearray(rng.randbytes(FRAME_BYTES)))])
    first, second = bench.with_copy(slot)
    [third] = [engine for engine in bench.network.at.values() if engine not in (first, second)]
    assert not tier.is_known_dead(slot)
    first.state = third.state = "cut"
    bench.work()
    assert not tier.is_known_dead(slot)
    second.state = "cut"
    with pytest.raises(OSError, match="Input/output error"):
        tier.read(slot, [memoryview(bytearray(FRAME_BYTES))])
    assert not tier.is_known_dead(slot), "the second may be back in a moment"
    bench.work()
    assert tier.is_known_dead(slot)
    second.state = "up"
    bench.work()
    assert not tier.is_known_dead(slot)


def test_a_frame_that_is_lost_is_known_dead(bench: Bench, rng: random.Random) -> None:
    """To wait for it is no use."""
    tier = RemoteTier(SLOTS, bench.copies)
    slot, _ = tier.reserve(1)
    tier.write(slot, [memoryview(bytearray(rng.randbytes(FRAME_BYTES)))])
    for engine in bench.with_copy(slot):
        for key in [key for key in engine.data if key.endswith(b":%d:1" % slot)]:
            engine.forget(key)
    assert not tier.is_known_dead(slot)
    with pytest.raises(OSError, match="Input/output error"):
        tier.read(slot, [memoryview(bytearray(FRAME_BYTES))])
    assert tier.is_known_dead(slot)

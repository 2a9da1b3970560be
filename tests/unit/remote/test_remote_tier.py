"""The remote tier over real engines: two copies, and what a page's read and write meet with."""

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import Engine, engines
from tests.support.remote import FRAME_BYTES, Far, empty_frames, frame_of
from zcache.remote.room import UNLIMITED

#: Of a read, whatever one engine does: the hedge's 50 ms, and as much for a busy machine.
BOUND_SECONDS = 0.2


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Engine]]:
    with engines(tmp_path, 2) as made:
        yield made


@pytest.fixture
def far(pair: list[Engine]) -> Iterator[Far]:
    made = Far([engine.url() for engine in pair])
    yield made
    made.close()


def test_both_copies_are_there_under_keys_of_their_own(pair: list[Engine], far: Far, rng: random.Random) -> None:
    far.fill(rng, 20)
    far.check()
    for lane, engine in enumerate(pair):
        assert len(far.frames_at(engine)) == 20 and far.frames_at(engine) == far.expected_at(lane)
    slot, frame = next(iter(far.held.items()))
    for lane, engine in enumerate(pair):
        key = far.key(far.copies.peers[lane], slot)
        assert key == f"zcache:default:{far.name}:{slot}:1".encode()
        assert engine.call("GET", key) == frame[:-16], "the tail stays here"


def test_a_slot_that_is_written_again_has_a_new_key_and_the_old_one_goes(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    (slot,) = far.write([frame_of(rng)])
    old = far.key(far.copies.peers[0], slot)
    frame = frame_of(rng)
    far.tier.write(slot, [frame])
    far.held[slot] = bytes(frame)
    assert far.key(far.copies.peers[0], slot) != old
    assert all(len(far.frames_at(engine)) == 2 for engine in pair), "removed in spare time"
    far.settle()
    assert all(far.frames_at(engine) == {far.key(far.copies.peers[0], slot)} for engine in pair)
    far.check()


def test_what_is_released_is_removed_at_both(pair: list[Engine], far: Far, rng: random.Random) -> None:
    far.fill(rng, 10)
    for slot in list(far.held)[:9]:
        far.release(slot)
    far.settle()
    assert [len(far.frames_at(engine)) for engine in pair] == [1, 1]
    assert far.copies.at == [1, 1] and far.tier.used_slots == 1
    far.check()


def test_a_paused_engine_costs_a_read_one_hedge_and_is_asked_last(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    far.fill(rng, 16)
    pair[0].pause()
    slowest = []
    for _ in range(2):
        for slot in far.held:
            began = time.monotonic()
            assert far.read(slot) == far.held[slot]
            slowest.append(time.monotonic() - began)
    assert max(slowest) < BOUND_SECONDS
    assert far.copies.peers[0].trouble.failures == 1, "once slow, it is asked last for a while"
    assert far.copies.counters.remote_hedged_gets >= 1


def test_a_paused_engine_that_goes_on_is_asked_again_by_itself(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    far.fill(rng, 16)
    pair[0].pause()
    far.check()
    pair[0].resume()
    far.settle()
    before = pair[0].info()["total_commands_processed"]
    far.check()
    assert int(pair[0].info()["total_commands_processed"]) > int(before) + 4, "half of the reads are its"
    assert all(not peer.trouble.failures for peer in far.copies.peers)


def test_an_engine_that_is_killed_costs_no_read_anything(pair: list[Engine], far: Far, rng: random.Random) -> None:
    far.fill(rng, 24)
    pair[1].kill()
    began = time.monotonic()
    far.check()
    assert time.monotonic() - began < 1
    far.write([frame_of(rng)])  # one copy is better than none
    far.check()


def test_a_flight_waits_no_longer_than_for_the_slower_of_two(pair: list[Engine], far: Far, rng: random.Random) -> None:
    pair[0].pause()
    timer = threading.Timer(0.3, pair[0].resume)
    timer.start()
    began = time.monotonic()
    far.write([frame_of(rng) for _ in range(8)])
    assert 0.2 < time.monotonic() - began < 1.5
    timer.join()
    far.check()
    assert far.copies.at == [8, 8]


@pytest.mark.slow
def test_a_late_write_neither_overwrites_nor_removes_a_newer_one(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    """What a paused engine is sent it does when it goes on, though nobody waits any more."""
    (slot,) = far.write([frame_of(rng)])
    key = far.key(far.copies.peers[0], slot)
    pair[0].pause()
    late = frame_of(rng)
    far.tier.write(slot, [late])  # 2 s, and one copy
    newest = frame_of(rng)
    far.clock.seconds += 10
    far.tier.write(slot, [newest])
    far.held[slot] = bytes(newest)
    newest_key = far.key(far.copies.peers[0], slot)
    pair[0].resume()
    far.settle()
    assert far.frames_at(pair[0]) == far.frames_at(pair[1]) == {newest_key}
    assert newest_key != key and pair[0].call("GET", newest_key) == bytes(newest)[:-16]
    far.check()


def test_of_a_frame_that_both_have_lost_the_read_fails_and_it_is_counted_until_it_is_written_anew(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    far.fill(rng, 8)
    slot = next(iter(far.held))
    for peer, engine in zip(far.copies.peers, pair, strict=True):
        engine.call("DEL", far.key(peer, slot))
    with pytest.raises(OSError, match="does not have it any more"):
        far.read(slot)
    far.settle(lambda: far.copies.counters.remote_lost_frames == 1)
    assert far.copies.counters.remote_missing_copies == 2 and far.copies.counters.remote_failed_gets == 1
    assert any("1 frames" in trouble for trouble in far.mender.troubles())
    with pytest.raises(OSError, match="no engine is known to have it"):
        far.read(slot)
    frame = frame_of(rng)
    far.tier.write(slot, [frame])
    far.held[slot] = bytes(frame)
    far.settle()
    assert far.copies.counters.remote_lost_frames == 0 and not far.mender.troubles()
    far.check()


def test_a_lost_frame_that_is_released_is_lost_no_more(pair: list[Engine], far: Far, rng: random.Random) -> None:
    far.fill(rng, 2)
    for engine in pair:
        engine.kill()
        engine.start()
    far.settle(lambda: far.copies.counters.remote_lost_frames == 2)
    for slot in list(far.held):
        with pytest.raises(OSError, match="Input/output error"):
            far.read(slot)
        far.release(slot)
    far.settle()
    assert far.copies.counters.remote_lost_frames == 0


@pytest.mark.slow
def test_a_read_that_fails_leaves_nobody_waiting_for_long(pair: list[Engine], far: Far, rng: random.Random) -> None:
    far.fill(rng, 1)
    for engine in pair:
        engine.pause()
    began = time.monotonic()
    with pytest.raises(OSError, match="Input/output error"):
        far.read(1)
    assert time.monotonic() - began < 2.5


def test_many_read_at_a_time(far: Far, rng: random.Random) -> None:
    far.fill(rng, 64)
    wrong: list[int] = []

    def read_all() -> None:
        wrong.extend(slot for slot, frame in far.held.items() if far.read(slot) != frame)

    threads = [threading.Thread(target=read_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_flight_is_no_longer_than_what_two_have_room_for(tmp_path: Path, rng: random.Random) -> None:
    with engines(tmp_path, 3) as three:
        far = Far([engine.url() for engine in three])
        paid = far.copies.paid_bytes
        for peer in far.copies.peers:
            peer.limit_bytes = 5 * paid
        assert far.tier.free_slots == 7
        slots = far.tier.reserve(7)
        assert slots == (1, 5)
        far.tier.write(1, [frame_of(rng) for _ in range(5)])
        assert sorted(far.copies.at) == [0, 5, 5]
        far.close()


def test_with_a_next_tier_one_engine_is_not_enough(pair: list[Engine], rng: random.Random) -> None:
    far = Far([engine.url() for engine in pair], is_last_resort=lambda: False)
    far.fill(rng, 4)
    pair[0].kill()
    with pytest.raises(OSError, match="fewer than 2 engines"):
        far.write([frame_of(rng)])
    far.turn()
    assert far.tier.free_slots == 0 and far.tier.reserve(4) == (0, 0)
    far.check()
    pair[0].start()
    far.settle()
    assert far.tier.free_slots == 60
    far.close()


def test_a_flight_that_is_broken_off_by_an_error_of_ours_leaves_the_connections_usable(
    pair: list[Engine], far: Far, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_seconds: float) -> list[str]:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(far.copies.peers[0], "end_set", no_memory)
        with pytest.raises(MemoryError):
            far.write([frame_of(rng)])
    far.settle()
    far.fill(rng, 8, at_a_time=1)
    far.check()
    far.settle()
    assert [far.frames_at(engine) for engine in pair] == [far.expected_at(0), far.expected_at(1)]
    assert all(far.copies_of(slot) == 2 for slot in far.held)


def test_what_no_limit_is_set_to_is_without_limit(far: Far) -> None:
    assert far.copies.room.of(far.copies.peers[0]) == UNLIMITED
    assert far.tier.free_slots == 64


def test_frames_of_64_kib_are_read_in_runs(pair: list[Engine], rng: random.Random) -> None:
    far = Far([engine.url() for engine in pair], frame_bytes=1 << 16)
    slots = far.write([frame_of(rng, 1 << 16) for _ in range(32)])
    into = empty_frames(32, 1 << 16)
    far.tier.read(slots[0], into)
    assert [bytes(frame) for frame in into] == [far.held[slot] for slot in slots]
    assert all(len(far.held[slot]) == 16 * FRAME_BYTES for slot in slots)
    far.close()

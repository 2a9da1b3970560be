"""A backing with a warm copy in front of it: whatever the engine does, the backing serves, and
soon."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import Engine, engines
from tests.support.remote import FRAME_BYTES, Far, empty_frames, frame_of
from tests.support.tiers import MemoryTier
from zcache.remote.mender import HEARTBEAT_SECONDS
from zcache.remote.remote_front import STAGED_BYTES, RemoteFront

#: The hedge, 50 ms, three times (the clock of a test stands still), and as much for a busy machine.
BOUND_SECONDS = 0.25


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with engines(tmp_path) as (made,):
        yield made


@pytest.fixture
def backing() -> MemoryTier:
    return MemoryTier(64)


@pytest.fixture
def far(engine: Engine, backing: MemoryTier) -> Iterator[Far]:
    made = Far([engine.url()], backing=backing)
    yield made
    made.close()


def front_of(far: Far) -> RemoteFront:
    assert isinstance(far.tier, RemoteFront)
    return far.tier


def agree(far: Far, engine: Engine) -> None:
    """What is read is right, and the engine has no key that nobody knows of."""
    far.settle(lambda: not (far.copies.dead.count or any(far.copies.unnamed) or far.copies.is_mending_due))
    assert far.frames_at(engine) == far.expected_at(0) and far.copies.at == [len(far.expected_at(0))]
    far.check()
    assert far.copies.counters.remote_lost_frames == 0 and not far.mender.troubles()


def test_what_is_written_is_on_both_and_read_from_the_engine(
    engine: Engine, backing: MemoryTier, far: Far, rng: random.Random
) -> None:
    far.fill(rng, 16)
    assert not far.frames_at(engine) and set(backing.medium) == set(far.held), "the engine is not waited for"
    far.settle()
    assert len(far.frames_at(engine)) == 16
    backing.tries = 0
    agree(far, engine)
    assert backing.tries == 0 and far.copies.counters.remote_gets == 16


@pytest.mark.parametrize("what", ["killed", "paused", "emptied"])
def test_an_engine_that_is_lost_costs_no_page_and_no_time(
    engine: Engine, far: Far, rng: random.Random, what: str
) -> None:
    far.fill(rng, 16)
    far.settle()
    match what:
        case "killed":
            engine.kill()
        case "paused":
            engine.pause()
        case "emptied":
            engine.call("FLUSHALL")
    took = []
    for slot in far.held:
        began = time.monotonic()
        assert far.read(slot) == far.held[slot]
        took.append(time.monotonic() - began)
    assert max(took) < BOUND_SECONDS
    assert far.copies.peers[0].trouble.failures <= 3, "in one read, for this clock stands still"
    if what == "killed":
        engine.start()
    if what == "paused":
        engine.resume()
    far.settle(lambda: far.copies.peers[0].is_up and not far.mender.troubles())
    far.check()  # each is offered to the engine again
    far.settle(lambda: far.copies.at == [16])
    agree(far, engine)


def test_a_write_does_not_wait_for_a_paused_engine(engine: Engine, far: Far, rng: random.Random) -> None:
    engine.pause()
    began = time.monotonic()
    far.fill(rng, 16)
    assert time.monotonic() - began < BOUND_SECONDS
    far.check()


def test_wrong_bytes_are_given_up_and_read_again_from_the_backing(engine: Engine, far: Far, rng: random.Random) -> None:
    """It is the seal that sees them, and says so by reading again."""
    far.fill(rng, 4)
    far.settle()
    engine.call("SET", far.key(far.copies.peers[0], 2), bytes(FRAME_BYTES - 16))
    engine.call("SET", far.key(far.copies.peers[0], 3), b"short")
    assert far.read(2) != far.held[2]
    [into] = empty_frames(1)
    far.tier.read_again(2, into, lambda: False)
    assert into == far.held[2] and far.read(2) != far.held[2], "neither is right, so neither is given up"
    far.tier.read_again(2, into, lambda: into == far.held[2])
    assert into == far.held[2] and far.read(2) == far.held[2]
    assert far.read(3) == far.held[3], "a value of another length is no answer"
    far.settle()
    assert far.read(2) == far.held[2]


def test_what_is_released_or_written_again_before_it_was_sent_is_not_sent(
    engine: Engine, far: Far, rng: random.Random
) -> None:
    far.fill(rng, 8)
    far.release(1)
    frame = frame_of(rng)
    far.tier.write(2, [frame])
    far.held[2] = bytes(frame)
    far.settle()
    agree(far, engine)
    assert len(far.frames_at(engine)) == 7
    assert far.copies.counters.remoted_frames == 7


def test_an_old_frame_is_not_sent_though_the_buffer_had_no_room_for_the_new_one(
    engine: Engine, backing: MemoryTier, far: Far, rng: random.Random
) -> None:
    front = front_of(far)
    far.fill(rng, 1)
    front._free.clear()  # noqa: SLF001 (as 512 other frames would have it)
    far.release(1)
    for slot in range(2, 65):  # the next one that is free is the first again
        backing.take_over(slot)
    far.fill(rng, 1)
    assert list(far.held) == [1]
    far.settle()
    agree(far, engine)


def test_a_frame_that_is_written_again_while_its_old_version_is_being_sent_is_never_the_old_one(
    engine: Engine, far: Far, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.fill(rng, 1)
    peer = far.copies.peers[0]
    whole = peer.end_set

    def end_set(seconds: float) -> list[str]:
        monkeypatch.undo()
        said = whole(seconds)
        frame = frame_of(rng)
        far.tier.write(1, [frame])
        far.held[1] = bytes(frame)
        return said

    monkeypatch.setattr(peer, "end_set", end_set)
    far.turn()
    far.check()
    agree(far, engine)


def test_there_are_no_more_copies_than_the_limit_and_the_oldest_go(
    engine: Engine, backing: MemoryTier, rng: random.Random
) -> None:
    far = Far([engine.url()], backing=backing, limit_slots=10)
    for _ in range(6):
        far.fill(rng, 4, at_a_time=4)
        far.settle(lambda: True)
        assert sum(far.copies.at) <= 10
    agree(far, engine)
    assert [slot for slot in far.held if far.copies.tables.holders[slot]] == list(range(15, 25))
    front_of(far).limit_slots = 3
    far.turn()
    assert far.copies.at == [3]
    front_of(far).limit_slots = 0
    far.fill(rng, 1)
    far.turn()
    assert far.copies.at == [0]
    agree(far, engine)
    far.close()


def test_an_engine_that_is_full_of_ours_is_given_the_newest(engine: Engine, far: Far, rng: random.Random) -> None:
    engine.call("SET", "zcache:quota:default", 8 * far.copies.paid_bytes)
    far.turn()
    for _ in range(5):
        far.fill(rng, 4, at_a_time=4)
        far.turn()
    assert far.copies.at == [8]
    assert [slot for slot in far.held if far.copies.tables.holders[slot]] == list(range(13, 21))
    agree(far, engine)


def test_a_quota_that_is_made_smaller_is_kept_to_though_nothing_is_written(
    tmp_path: Path, backing: MemoryTier, rng: random.Random
) -> None:
    with engines(tmp_path, 2) as two:
        far = Far([engine.url() for engine in two], backing=backing)
        far.fill(rng, 20)
        far.settle(lambda: sum(far.copies.at) == 20)
        assert far.copies.at[1] > 4
        before = far.copies.at[0]
        two[1].call("SET", "zcache:quota:default", 4 * far.copies.paid_bytes)
        far.clock.seconds += HEARTBEAT_SECONDS
        far.turn()
        far.turn()
        assert far.copies.at == [before, 4]
        assert len(far.frames_at(two[1])) == 4
        far.check()
        far.close()


def test_what_finds_the_buffer_full_is_on_the_backing_alone(engine: Engine, rng: random.Random) -> None:
    count = STAGED_BYTES // FRAME_BYTES
    far = Far([engine.url()], backing=MemoryTier(count + 20), limit_slots=count + 20)
    far.fill(rng, count + 20, at_a_time=1)
    assert front_of(far).passed_over == 20
    far.settle(lambda: far.copies.at == [count])
    agree(far, engine)
    far.settle(lambda: far.copies.at == [count + 20])  # for they were read
    far.close()


def test_copies_that_are_lost_are_no_lost_frames(engine: Engine, far: Far, rng: random.Random) -> None:
    far.fill(rng, 8)
    far.settle()
    engine.kill()
    engine.start()
    far.settle(lambda: far.copies.peers[0].is_up)
    assert far.copies.counters.remote_lost_frames == 0 and not far.mender.troubles()
    far.check()
    agree(far, engine)


def test_no_pass_over_all_slots_is_due_for_every_frame_that_is_sent(
    tmp_path: Path, backing: MemoryTier, rng: random.Random
) -> None:
    with engines(tmp_path, 2) as two:
        far = Far([engine.url() for engine in two], backing=backing)
        far.settle()
        far.fill(rng, 8)
        far.turn()
        assert sum(far.copies.at) == 8 and not far.copies.is_mending_due
        far.close()


def test_a_failing_backing_is_not_hidden_by_the_engine(
    engine: Engine, backing: MemoryTier, far: Far, rng: random.Random
) -> None:
    backing.failing_writes = 1
    with pytest.raises(OSError, match="injected"):
        far.fill(rng, 1)
    far.turn()
    assert not far.frames_at(engine) and far.copies.at == [0]

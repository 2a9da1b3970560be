"""The mender over real engines: what is lost is noticed and made again, and what is left over goes.

An engine's death, restart or loss is real; the mender's turns and its clock are the test's.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.engines import Engine, Refused, engines, wait_until
from tests.support.remote import Far, frame_of, keys_at, sections
from zcache.remote.mender import GONE_SECONDS
from zcache.remote.peer import Identity
from zcache.remote.tables import INCARNATIONS, Tables


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[list[Engine]]:
    with engines(tmp_path, 3) as made:
        yield made


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Engine]]:
    with engines(tmp_path, 2) as made:
        yield made


@pytest.fixture
def far(pair: list[Engine]) -> Iterator[Far]:
    made = Far([engine.url() for engine in pair])
    yield made
    made.close()


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is paused takes no 2 s of each turn."""
    for name in ("CONNECT_SECONDS", "ASK_SECONDS"):
        monkeypatch.setattr(f"zcache.remote.peer.{name}", 0.1)


def agree(far: Far, made: Sequence[Engine]) -> None:
    """Every frame is right and is held twice, and no engine has a key that nobody knows of."""
    far.check()
    for lane, engine in enumerate(made):
        assert far.frames_at(engine) == far.expected_at(lane)
        assert far.copies.at[lane] == len(far.expected_at(lane))
    assert all(far.copies_of(slot) == 2 for slot in far.held)
    assert far.copies.counters.remote_lost_frames == 0


def restart(engine: Engine) -> None:
    engine.kill()
    engine.start()


# -- an engine that dies
# -------------------------------------------------------------------------------------------------


def test_one_that_was_restarted_empty_is_given_its_copies_again_and_then_the_other_may_die(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    far.fill(rng, 30)
    restart(pair[0])
    far.check()
    far.settle()
    assert far.copies.counters.remirrored_frames == 30
    agree(far, pair)
    restart(pair[1])
    far.check()
    far.settle()
    agree(far, pair)
    assert far.copies.counters.remirrored_frames == 60


def test_what_a_restarted_engine_does_not_have_is_never_zeros(pair: list[Engine], far: Far, rng: random.Random) -> None:
    """Before the mender has seen it, and although the engine answers."""
    far.fill(rng, 10)
    for engine in pair:
        restart(engine)
    for slot in far.held:
        with pytest.raises(OSError, match="Input/output error"):
            far.read(slot)
    far.turn()
    for slot in far.held:
        with pytest.raises(OSError, match="Input/output error"):
            far.read(slot)
    assert far.copies.counters.remote_failed_gets == 20


def test_frames_written_while_one_is_dead_are_there_twice_when_it_is_back(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    pair[0].kill()
    far.turn()
    far.fill(rng, 10)
    assert far.copies.at == [0, 10]
    assert any("out of reach" in trouble for trouble in far.mender.troubles())
    pair[0].start()
    far.settle()
    assert not far.mender.troubles()
    agree(far, pair)


@pytest.mark.usefixtures("impatience")
def test_what_was_dropped_while_one_was_out_of_reach_is_swept_when_it_is_back(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    far.fill(rng, 20)
    pair[0].pause()
    for slot in list(far.held)[:10]:
        far.release(slot)
    far.turn()
    far.turn()
    pair[0].resume()
    far.settle()
    agree(far, pair)
    assert len(far.frames_at(pair[0])) == 10


@pytest.mark.slow
def test_a_write_that_is_cut_short_leaves_nothing(pair: list[Engine], far: Far, rng: random.Random) -> None:
    pair[0].pause()
    far.write([frame_of(rng) for _ in range(8)])  # held by the other one
    pair[0].resume()
    wait_until(lambda: bool(far.frames_at(pair[0])), "it does some of what it was sent")
    for slot in list(far.held)[:4]:
        far.release(slot)
    far.settle()
    agree(far, pair)


def test_writes_go_on_while_engines_come_and_go(pair: list[Engine], far: Far, rng: random.Random) -> None:
    for _ in range(6):
        restart(rng.choice(pair))
        for slot in rng.sample(sorted(far.held), len(far.held) // 3):
            far.release(slot)
        far.settle()
        far.fill(rng, 12, at_a_time=1)
    far.settle()
    agree(far, pair)


# -- an engine that forgets
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_noticed_by", ["a heartbeat", "a read"])
def test_an_engine_that_is_flushed_is_given_its_copies_again(
    pair: list[Engine], far: Far, rng: random.Random, is_noticed_by: str
) -> None:
    far.fill(rng, 16)
    pair[0].call("FLUSHALL")
    if is_noticed_by == "a read":
        far.check()
        assert far.copies.counters.remote_missing_copies
    far.fill(rng, 4, at_a_time=1)  # between the flush and the next heartbeat
    far.check()
    far.settle()
    agree(far, pair)


def test_a_single_key_that_somebody_removes_is_made_again_when_it_is_missed(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    far.fill(rng, 4)
    pair[0].call("DEL", far.key(far.copies.peers[0], 2))
    far.check()
    far.settle()
    agree(far, pair)
    assert far.copies.counters.remirrored_frames == far.copies.counters.remote_missing_copies == 1


def test_a_word_that_somebody_removes_from_a_full_engine_costs_no_copy(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    """It cannot be put back, and what the engine has can still be read."""
    far.fill(rng, 8)
    pair[0].call("DEL", far.copies.peers[0].prefix + b"word")
    pair[0].call("CONFIG", "SET", "maxmemory", 1 << 20)
    for _ in range(3):
        far.turn()
    assert [peer.is_up for peer in far.copies.peers] == [True, True]
    pair[1].kill()
    far.check()
    pair[1].start()
    pair[0].call("CONFIG", "SET", "maxmemory", 0)
    far.settle()
    agree(far, pair)


def test_a_word_that_is_nonsense_takes_the_engine_out_and_not_the_mender(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    far.fill(rng, 4)
    pair[0].call("SET", far.copies.peers[0].prefix + b"word", "nonsense")
    far.turn()
    far.turn()
    assert [peer.is_up for peer in far.copies.peers] == [False, True]
    assert any("none of ours" in trouble for trouble in far.mender.troubles())
    far.check()
    pair[0].call("DEL", far.copies.peers[0].prefix + b"word")
    far.settle()
    agree(far, pair)


def test_one_that_is_restarted_from_a_snapshot_keeps_what_it_still_has(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    """Its run is another and its word the same: each copy is looked for, and what is old there is
    never served."""
    far.fill(rng, 24)
    pair[0].call("SAVE")
    old = dict(far.held)
    for slot in (1, 2, 3):  # newer than the snapshot
        frame = frame_of(rng)
        far.tier.write(slot, [frame])
        far.held[slot] = bytes(frame)
    for slot in (4, 5):
        far.release(slot)
    far.settle()
    restart(pair[0])
    assert old.keys() != far.held.keys() and len(far.frames_at(pair[0])) == 24
    far.check()
    far.settle()
    assert far.copies.counters.remirrored_frames == 3, "the others have survived"
    agree(far, pair)


# -- a third engine
# -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("impatience")
def test_a_third_is_given_the_copies_of_one_that_is_gone_for_long_and_leftovers_are_swept(
    trio: list[Engine], rng: random.Random
) -> None:
    far = Far([engine.url() for engine in trio])
    far.fill(rng, 48)
    assert far.copies.at == [32, 32, 32]
    trio[0].pause()
    while far.copies.peers[0].is_up:
        far.turn()
    began = far.clock.now()
    while not far.copies.counters.remirrored_frames:
        far.turn(1.0)
    assert 0.8 * GONE_SECONDS < far.clock.now() - began < 1.5 * GONE_SECONDS
    far.settle(lambda: far.copies.at == [0, 48, 48])
    far.check()
    trio[0].resume()
    assert len(far.frames_at(trio[0])) == 32
    far.settle()
    agree(far, trio)
    assert not far.frames_at(trio[0])
    far.close()


@pytest.mark.slow
@pytest.mark.usefixtures("impatience")
def test_copies_that_cannot_be_made_elsewhere_are_not_given_up(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    far.fill(rng, 10)
    pair[0].pause()
    for _ in range(20):
        far.turn(5.0)
    assert far.copies.at == [10, 10], "it may come back with all of them"
    pair[0].resume()
    far.settle()
    agree(far, pair)
    assert far.copies.counters.remirrored_frames == 0


def test_a_release_in_the_middle_of_a_copy_leaves_nothing(
    pair: list[Engine], far: Far, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.fill(rng, 6)
    target = far.copies.peers[0]
    whole = target.end_set

    def meanwhile(then: Callable[[int], None]) -> None:
        restart(pair[0])

        def end_set(seconds: float) -> list[str]:
            monkeypatch.setattr(target, "end_set", whole)
            said = whole(seconds)
            then(min(int(key.split(b":")[-2]) for key in far.frames_at(pair[0])))
            return said

        monkeypatch.setattr(target, "end_set", end_set)
        far.settle()
        agree(far, pair)

    def release_and_use_again(slot: int) -> None:
        far.release(slot)
        assert far.tier.used_map()[slot] == 0
        far.tier.take_over(slot)  # which makes it used again, without a word to anybody
        frame = frame_of(rng)
        monkeypatch.setattr(far.copies.room, "choose", lambda *_: [far.copies.peers[1]])
        far.tier.write(slot, [frame])
        monkeypatch.undo()
        far.held[slot] = bytes(frame)

    meanwhile(far.release)
    meanwhile(release_and_use_again)


# -- the sweep
# -------------------------------------------------------------------------------------------------


def test_the_sweep_leaves_what_is_being_written(
    pair: list[Engine], far: Far, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between an engine's having a frame and its being named."""
    looked_at = 0
    peer = far.copies.peers[0]
    whole = peer.end_set

    def end_set(seconds: float) -> list[str]:
        nonlocal looked_at
        said = whole(seconds)
        looked_at += len(far.frames_at(pair[0]))
        far.copies.unnamed[0] = True
        sweeper = threading.Thread(target=far.turn)
        sweeper.start()
        sweeper.join()
        assert not far.copies.unnamed[0]
        return said

    monkeypatch.setattr(peer, "end_set", end_set)
    far.write([frame_of(rng) for _ in range(5)])
    assert looked_at == 5
    agree(far, pair)


def test_the_sweep_removes_what_is_ours_and_nobody_names_and_nothing_else(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    far.fill(rng, 3)
    prefix = far.copies.peers[0].prefix
    ours = [b"1:77", b"60:1", b"9999999:1", b"99999999999999999999999999:1", b"1:99999999999999999999999"]
    others = [prefix + b"mine", b"zcache:default:0123456789ab:1:1", b"else"]
    for key in [*(prefix + end for end in ours), *others]:
        pair[0].call("SET", key, "x")
    far.copies.unnamed[0] = True
    far.settle()
    found = keys_at(pair[0]) - far.expected_at(0)
    assert found == {*others[:2], prefix + b"word", prefix + b"account"}
    assert pair[0].call("GET", "else") == b"x"


def test_a_list_that_is_full_is_made_good_by_a_sweep(pair: list[Engine], far: Far, rng: random.Random) -> None:
    far.fill(rng, 20)
    far.copies.dead._size = 3  # noqa: SLF001 (of 65,536)
    for slot in list(far.held)[:15]:
        far.release(slot)
    far.settle()
    agree(far, pair)


def test_a_farewell_leaves_no_key_and_nothing_comes_after_it(pair: list[Engine], far: Far, rng: random.Random) -> None:
    far.fill(rng, 40)
    pair[0].call("SET", "zcache:quota:default", 1 << 30)
    far.mender.farewell(5.0)
    far.turn()
    assert keys_at(pair[0]) == {b"zcache:quota:default"} and not keys_at(pair[1])


# -- room
# -------------------------------------------------------------------------------------------------


def test_a_quota_is_heeded_within_a_heartbeat(pair: list[Engine], far: Far, rng: random.Random) -> None:
    far.fill(rng, 8)
    paid = far.copies.paid_bytes
    pair[0].call("SET", "zcache:quota:default", 10 * paid)
    far.turn()
    assert far.copies.peers[0].limit_bytes == 10 * paid and far.tier.free_slots == 2
    far.fill(rng, 2, at_a_time=1)
    assert far.copies.at == [10, 10]
    far.fill(rng, 1)
    assert far.copies.at == [10, 11], "there is nowhere else to go: one copy"
    pair[0].call("DEL", "zcache:quota:default")
    far.settle()
    agree(far, pair)


def test_an_engine_that_is_told_to_evict_is_given_nothing_more(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    far.fill(rng, 4)
    pair[0].call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    far.turn()
    (trouble,) = [trouble for trouble in far.mender.troubles() if "maxmemory-policy" in trouble]
    assert "takes no frames (may throw frames out (maxmemory-policy allkeys-lru)" in trouble
    far.fill(rng, 4)
    assert far.copies.at == [4, 8]
    pair[0].call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    far.settle()
    assert not far.mender.troubles()
    agree(far, pair)


@pytest.mark.parametrize("nonsense", [b"a lot", b"-1", b"9" * 5000, b"\xc2\xb2", b""])
def test_a_quota_that_is_no_number_is_none(pair: list[Engine], far: Far, nonsense: bytes) -> None:
    pair[0].call("SET", "zcache:quota:default", nonsense)
    pair[1].call("HSET", "zcache:quota:default", "bytes", "1")
    far.turn()
    assert all(peer.is_up and peer.limit_bytes is None for peer in far.copies.peers)


def test_an_engine_that_is_full_is_full_and_no_more_than_that(
    tmp_path: Path, pair: list[Engine], rng: random.Random
) -> None:
    """What it has is read, and what it lacks is made up for when there is room."""
    with Engine(tmp_path / "small", maxmemory=8 << 20) as small:
        far = Far([small.url(), pair[0].url()])
        far.fill(rng, 16)
        assert 0 < (far.copies.peers[0].limit_bytes or 0) < 8 << 20
        with pytest.raises(Refused, match="OOM"):
            while True:
                small.call("APPEND", "another's", bytes(64 << 10))
        far.fill(rng, 8)  # nothing is known of it yet: refused, and held by the other one
        assert far.copies.peers[0].refusal.startswith("OOM")
        far.turn()
        assert far.copies.room.of(far.copies.peers[0]) == 0 and far.copies.peers[0].foreign_bytes > 6 << 20
        assert not far.mender.troubles() and all(peer.is_up for peer in far.copies.peers)
        far.check()
        assert far.copies.at == [16, 24]
        small.call("DEL", "another's")
        far.settle()
        agree(far, [small, pair[0]])
        far.close()


def test_with_a_next_tier_an_engine_that_is_full_leaves_no_room(
    tmp_path: Path, pair: list[Engine], rng: random.Random
) -> None:
    with Engine(tmp_path / "small", maxmemory=4 << 20) as small:
        far = Far([small.url(), pair[0].url()], slot_count=2000, is_last_resort=lambda: False)
        while far.tier.free_slots:
            first, count = far.tier.reserve(16)
            far.tier.write(first, [frame_of(rng) for _ in range(count)])
            far.turn()
        assert 100 < far.tier.used_slots < 1000 and far.copies.at[0] == far.copies.at[1]
        assert small.memory_bytes() < 4 << 20 and not far.mender.troubles()
        far.close()


def test_the_account_says_whose_and_how_much(pair: list[Engine], far: Far, rng: random.Random) -> None:
    far.fill(rng, 5)
    far.turn()
    flat = pair[0].call("HGETALL", far.copies.peers[0].prefix + b"account")
    assert isinstance(flat, list)
    account = dict(zip(flat[::2], flat[1::2], strict=True))
    assert set(account) == {b"host", b"version", b"seen", b"frames", b"bytes", b"limit_bytes"}
    assert account[b"frames"] == b"5" and account[b"limit_bytes"] == b"-1"
    assert int(account[b"bytes"]) == 5 * far.copies.paid_bytes


def test_an_account_that_cannot_be_written_is_no_trouble(pair: list[Engine], far: Far, rng: random.Random) -> None:
    far.fill(rng, 5)
    key = far.copies.peers[0].prefix + b"account"
    pair[0].call("SET", key, "a string")
    far.turn()
    assert all(peer.is_up for peer in far.copies.peers)
    far.check()


# -- successors
# -------------------------------------------------------------------------------------------------


def succeed(far: Far, made: Sequence[Engine], image: object) -> Far:
    """A server over the same image; its predecessor was killed."""
    assert callable(image)
    far.close()
    urls = [engine.url() for engine in made]
    successor = Far(urls, far.tier.slot_count, image=image, is_successor=True)
    for slot in far.held:
        successor.tier.take_over(slot)
    successor.held = dict(far.held)
    return successor


@pytest.mark.usefixtures("impatience")
@pytest.mark.parametrize("meanwhile", ["nothing", "one was restarted", "one is paused", "one is dead"])
def test_a_successor_finds_all_copies_by_its_tables(pair: list[Engine], rng: random.Random, meanwhile: str) -> None:
    image = sections(64)
    far = Far([engine.url() for engine in pair], image=image)
    far.fill(rng, 20)
    match meanwhile:
        case "one was restarted":
            restart(pair[0])
        case "one is paused":
            pair[0].pause()
        case "one is dead":
            pair[0].kill()
    far = succeed(far, pair, image)
    far.check()
    if meanwhile == "one is paused":
        pair[0].resume()
    elif meanwhile == "one is dead":
        far.turn()
        far.check()
        pair[0].start()
    far.settle()
    agree(far, pair)
    assert far.copies.counters.remirrored_frames == (20 if meanwhile in ("one was restarted", "one is dead") else 0)
    far.close()


def test_a_successor_knows_which_frames_are_lost(pair: list[Engine], rng: random.Random) -> None:
    """As its predecessor did; and of those no second copy is missing."""
    image = sections(64)
    far = Far([engine.url() for engine in pair], image=image)
    far.fill(rng, 6)
    (lost,) = far.write([frame_of(rng)])
    for engine, peer in zip(pair, far.copies.peers, strict=True):
        engine.call("DEL", far.key(peer, lost))
    with pytest.raises(OSError, match="Input/output error"):
        far.read(lost)
    far = succeed(far, pair, image)
    frame = far.held.pop(lost)
    far.settle()
    assert far.mender.troubles() == ["1 frames were at engines that have lost them: reads of their pages fail"]
    assert far.tier.missing_copies() == 0
    far.tier.write(lost, [memoryview(frame)])
    far.held[lost] = frame
    far.settle()
    assert not far.mender.troubles()
    agree(far, pair)
    far.close()


def test_a_successor_removes_what_its_predecessor_had_not_named(pair: list[Engine], rng: random.Random) -> None:
    """Killed between an engine's having a frame and its being named; and a slot that no frame of
    the image's is in."""
    image = sections(64)
    far = Far([engine.url() for engine in pair], image=image)
    far.fill(rng, 6)
    pair[0].call("SET", far.copies.peers[0].prefix + b"40:1", "x")
    del far.held[3]
    far = succeed(far, pair, image)
    far.settle()
    agree(far, pair)
    far.close()


@pytest.mark.usefixtures("impatience")
@pytest.mark.parametrize("meanwhile", ["nothing", "the first is paused", "the last is paused"])
def test_a_successor_may_be_given_its_engines_in_another_order(
    pair: list[Engine], rng: random.Random, meanwhile: str
) -> None:
    image = sections(64)
    far = Far([engine.url() for engine in pair], image=image)
    far.fill(rng, 20)
    swapped = pair[::-1]
    paused = {"nothing": [], "the first is paused": swapped[:1], "the last is paused": swapped[1:]}[meanwhile]
    for engine in paused:
        engine.pause()
    far = succeed(far, swapped, image)
    for _ in range(3):
        far.turn()
    if not paused:
        far.check()
    for engine in paused:
        engine.resume()
    far.settle()
    agree(far, swapped)
    assert far.copies.counters.remirrored_frames == far.copies.counters.remote_missing_copies == 0
    far.close()


def test_a_successor_may_be_given_another_engine_in_the_place_of_one(
    tmp_path: Path, pair: list[Engine], rng: random.Random
) -> None:
    image = sections(64)
    far = Far([engine.url() for engine in pair], image=image)
    far.fill(rng, 20)
    with Engine(tmp_path / "new") as new:
        others = [pair[1], new]
        far = succeed(far, others, image)
        far.check()
        far.settle()
        agree(far, others)
        assert far.copies.counters.remirrored_frames == 20
        far.close()


def test_incarnations_that_hold_nothing_are_used_again() -> None:
    tables = Tables(16)
    numbers = [tables.number_of(0, word, 1) for word in range(1, INCARNATIONS)]
    assert numbers == list(range(1, INCARNATIONS))
    assert tables.number_of(1, 1000, 1, set(numbers[:16])) == 17, "the first that holds nothing"
    assert tables.number_of(1, 1000, 1) == 17, "known now"
    assert tables.number_of(0, 3, 1) == 3


def test_when_all_incarnations_hold_something_the_engine_waits_until_one_is_given_up(
    pair: list[Engine], rng: random.Random
) -> None:
    image = sections(300)
    far = Far([engine.url() for engine in pair], slot_count=300, image=image)
    far.fill(rng, 280, at_a_time=8)
    tables, copies = far.copies.tables, far.copies
    live = {peer.number for peer in copies.peers}
    spare = (number for number in range(1, INCARNATIONS) if number not in live)
    for slot, number in zip(range(1, 280), spare, strict=False):  # as 253 restarts would leave them
        tables.words[number], tables.lanes[number] = 1 << 40 | number, 1
        tables.holders[slot] = copies.peers[0].number | number << 8
    far = succeed(far, pair, image)
    assert {peer.number for peer in far.copies.peers} == live
    restart(pair[1])
    far.copies.settle(far.copies.peers[1], Identity(7, 7))
    assert far.copies.peers[1].number == 0, "until the copies of others are struck out"
    far.settle()
    agree(far, pair)
    far.close()
    far.close()


def test_the_number_of_an_engine_that_holds_nothing_now_is_not_given_to_another(
    pair: list[Engine], far: Far, rng: random.Random
) -> None:
    tables, copies = far.copies.tables, far.copies
    for number in range(3, INCARNATIONS):  # as many restarts would leave them; none holds anything
        tables.words[number], tables.lanes[number] = 1 << 40 | number, 0
    restart(pair[1])
    far.settle()
    assert copies.peers[0].number == 1 and copies.peers[1].number != 1
    far.fill(rng, 8)
    agree(far, pair)

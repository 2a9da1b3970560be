"""A server's remote place as a whole: what it says of its engines. Its clock is a fake one."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.clock import FakeClock
from tests.support.engines import Engine, engines
from tests.support.remote import FRAME_BYTES, SECRET, frame_of
from zcache.remote import remote as remote_module
from zcache.remote.engines import Engines
from zcache.remote.mender import GONE_SECONDS, HEARTBEAT_SECONDS, MISSING_SECONDS, SHORT_SECONDS
from zcache.remote.remote import Remote
from zcache.remote.url import parse_url

FRAMES: Final = 512  # 2 MiB


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Engine]]:
    with engines(tmp_path, 2) as made:
        yield made


class Place:
    """With a mender whose turns the test gives."""

    def __init__(self, pair: list[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        monkeypatch.setattr(remote_module, "Clock", lambda: self.clock)
        found = Engines([parse_url(engine.url()) for engine in pair], 2, may_evict=False, clock=self.clock)
        found.resolve(False, print)
        found.check(print)
        self.remote = Remote(found, FRAMES, FRAME_BYTES, None, None, SECRET, is_front=False, report=print)
        self.work()

    def work(self, seconds: float = 0.0) -> None:
        """So long, and then until nothing is looked for or made any more."""
        self.clock.seconds += seconds
        for _ in range(8):
            self.clock.seconds += HEARTBEAT_SECONDS / 4
            self.remote.mender.work()

    def write(self, rng: random.Random, count: int) -> range:
        first, got = self.remote.tier.reserve(count)
        assert got == count
        self.remote.tier.write(first, [frame_of(rng) for _ in range(count)])
        return range(first, first + count)


@pytest.fixture
def place(pair: list[Engine], monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(pair, monkeypatch)
    yield made
    made.remote.tier.close()


def test_of_frames_that_are_lost_no_second_copy_is_missing(
    pair: list[Engine], place: Place, rng: random.Random
) -> None:
    """There is nothing to make one of, so whoever stops another engine loses no more by it."""
    remote = place.remote
    place.write(rng, 8)
    for engine in pair:
        engine.call("FLUSHALL")
    place.work(MISSING_SECONDS)
    assert remote.mender.troubles() == ["8 frames were at engines that have lost them: reads of their pages fail"]
    assert remote.tier.missing_copies() == 0
    place.write(rng, 1)
    place.work(MISSING_SECONDS)
    assert remote.tier.missing_copies() == 0
    for lost in range(1, 10):
        remote.tier.release(lost)
    place.write(rng, 1)
    place.work()
    assert remote.tier.missing_copies() == 0 and not remote.mender.troubles()


def test_what_one_of_two_has_lost_is_missing_until_it_is_there_again(
    pair: list[Engine], place: Place, rng: random.Random
) -> None:
    place.write(rng, 8)
    pair[1].kill()
    pair[1].start()
    pair[1].call("CONFIG", "SET", "maxmemory", "1mb")  # too little for anything
    place.work()
    assert place.remote.tier.missing_copies() == 8
    assert "8 second copies are missing at engines: stop no other engine yet" in place.remote.mender.troubles()


def test_engines_that_take_less_than_was_promised_are_short_once_that_lasts(pair: list[Engine], place: Place) -> None:
    remote = place.remote
    assert not remote.mender.is_short and remote.tier.promised_room() == FRAMES
    for engine in pair:
        engine.call("CONFIG", "SET", "maxmemory", "1mb")
    place.work()
    assert remote.tier.promised_room() == 0 and not remote.mender.is_short, "it may be over at once"
    place.work(SHORT_SECONDS)
    assert remote.mender.is_short
    for engine in pair:
        engine.call("CONFIG", "SET", "maxmemory", str(engine.memory_bytes() + (8 << 20)))
    place.work()
    assert not remote.mender.is_short and remote.tier.promised_room() == FRAMES


def test_one_engine_that_takes_less_is_enough_to_be_short(pair: list[Engine], place: Place) -> None:
    """Of two: each frame is to be at both."""
    pair[1].call("SET", "zcache:quota:default", str(FRAMES // 4 * place.remote.copies.paid_bytes))
    place.work()
    place.work(SHORT_SECONDS)
    assert place.remote.mender.is_short and place.remote.tier.promised_room() == FRAMES // 4


def test_an_engine_that_is_out_of_reach_makes_the_others_not_short(pair: list[Engine], place: Place) -> None:
    """It has a reason of its own."""
    pair[0].call("CONFIG", "SET", "maxmemory", str(pair[0].memory_bytes() + (8 << 20)))
    place.work()
    pair[0].kill()
    place.work()
    place.work(GONE_SECONDS)
    place.work(SHORT_SECONDS)
    assert place.remote.copies.peers[0].is_gone and place.remote.tier.capacity_slots == 0
    assert not place.remote.mender.is_short
    assert len(place.remote.mender.troubles()) == 1


def test_a_little_too_little_is_not_short(pair: list[Engine], place: Place) -> None:
    """Copies that are yet to be removed take as much at times."""
    pair[0].call("SET", "zcache:quota:default", str((FRAMES - FRAMES // 64) * place.remote.copies.paid_bytes))
    place.work()
    place.work(SHORT_SECONDS)
    assert place.remote.tier.promised_room() == FRAMES - FRAMES // 64 and not place.remote.mender.is_short

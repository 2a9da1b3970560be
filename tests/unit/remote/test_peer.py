"""A peer's reads, at connections that are none: what is said of an engine that is only busy."""

import errno
from collections.abc import Callable, Sequence
from typing import Final

import pytest

from tests.support.clock import FakeClock
from zcache.remote.peer import READERS, TURN_SECONDS, Peer
from zcache.remote.reach import Reach
from zcache.remote.readers import Connected
from zcache.remote.reading import HEDGE_SECONDS
from zcache.remote.resp import Reply
from zcache.remote.url import Address, parse_url

#: For an answer of the engine.
ANSWER_SECONDS: Final = 0.03


class Slow:
    """A connection to an engine that answers in `ANSWER_SECONDS`; a read that has less for it
    fails. `meanwhile` is called in the middle of each read."""

    def __init__(self) -> None:
        self.is_open = True
        self.given: list[float] = []  # to each read
        self.meanwhile: Callable[[], None] = lambda: None

    def close(self) -> None:
        self.is_open = False

    def get_all(self, keys: Sequence[bytes], buffers: Sequence[memoryview], seconds: float) -> list[bool]:  # noqa: ARG002
        self.given.append(seconds)
        self.meanwhile()
        if seconds < ANSWER_SECONDS:
            self.close()
            raise TimeoutError(errno.ETIMEDOUT, "no answer in time")
        return [True] * len(keys)

    def begin_set(self, keys: Sequence[bytes], values: Sequence[Sequence[memoryview]], seconds: float) -> None:
        raise NotImplementedError

    def end_set(self, seconds: float) -> list[str]:
        raise NotImplementedError

    def unlink_all(self, keys: Sequence[bytes], seconds: float) -> int:
        raise NotImplementedError

    def exist_all(self, keys: Sequence[bytes], seconds: float) -> list[bool]:
        raise NotImplementedError

    def call(self, *words: str | bytes | int, seconds: float) -> Reply:  # noqa: ARG002
        return b"run_id:1\r\n" if words[0] == "INFO" else b"%016x" % 1


class LateClock(FakeClock):
    """Some time passes after each look at it: a turn has to be waited for, say."""

    late_seconds = 0.0

    def now(self) -> float:
        now = self.seconds
        self.seconds += self.late_seconds
        return now


@pytest.fixture
def clock() -> LateClock:
    return LateClock()


@pytest.fixture
def made() -> list[Slow]:
    """Its connections."""
    return []


@pytest.fixture
def peer(clock: LateClock, made: list[Slow]) -> Peer:
    """One that is connected."""

    def connect(_address: Address, **_login: object) -> Connected:
        made.append(Slow())
        return made[-1]

    reach = Reach(parse_url("unix:///engine"), clock, connect)
    reach.find(may_ask=False)
    peer = Peer(0, reach, lambda: [Address(1, "/engine")], b"zcache:", clock)
    peer.connect(peer.greet())
    peer.is_up = True
    return peer


def read(peer: Peer, seconds: float) -> list[bool]:
    return peer.get_all([b"key"], [memoryview(bytearray(1))], seconds)


def given(made: Sequence[Slow]) -> list[float]:
    """How long each read was given."""
    return [seconds for connection in made for seconds in connection.given]


@pytest.mark.parametrize("waited", [0.0, 0.4, 0.8, 1.0])
def test_a_read_that_had_to_wait_for_its_turn_is_not_the_engine_s_fault(
    peer: Peer, clock: LateClock, made: list[Slow], waited: float
) -> None:
    """It is answered, as long as it was waited: so no other copy is needed for that."""
    clock.late_seconds = waited * TURN_SECONDS
    for _ in range(2 * READERS):
        assert read(peer, TURN_SECONDS) == [True]
    assert peer.is_connected() and all(connection.is_open for connection in made)
    assert not peer.trouble.failures and peer.takes_frames()
    assert given(made) == pytest.approx([TURN_SECONDS] * (2 * READERS))


def test_an_engine_is_as_slow_for_one_who_has_waited_as_for_others() -> None:
    assert TURN_SECONDS == HEDGE_SECONDS


def test_a_read_that_did_not_have_to_wait_has_all_of_its_time(peer: Peer, made: list[Slow]) -> None:
    read(peer, 1.0)
    assert given(made) == pytest.approx([1.0])


def test_who_finds_no_connection_free_has_nothing_to_say_against_the_engine(peer: Peer, made: list[Slow]) -> None:
    """All are lent: each read is in the middle of another one."""
    busy: list[str] = []

    def read_one_more() -> None:
        try:
            read(peer, 0.0)
        except TimeoutError as error:
            busy.append(str(error))

    for connection in made:
        connection.meanwhile = read_one_more
    assert read(peer, 1.0) == [True]
    assert len(busy) == 1 and "is busy" in busy[0]
    assert peer.is_connected() and not peer.trouble.failures and peer.takes_frames()


def test_an_engine_that_takes_longer_is_in_trouble_and_its_connection_is_closed(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.unit.remote.test_peer.ANSWER_SECONDS", 2 * TURN_SECONDS)
    with pytest.raises(TimeoutError):
        read(peer, TURN_SECONDS)
    assert peer.trouble.failures == 1 and not peer.takes_frames() and not peer.is_connected()

"""What is asked of an engine, and what is answered: by a real one, and by the one that worlds of
the property test have (`tests/support/fake_engine.py`). They are to be alike."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.clock import FakeClock
from tests.support.engines import Engine
from tests.support.fake_engine import FakeNetwork
from zcache.remote.peer import fields_of
from zcache.remote.readers import Connected
from zcache.remote.resp import MAX_REPLY_BYTES, Connection, ProtocolError, Refused
from zcache.remote.url import parse_url, resolve

SECONDS: Final = 5.0
FRAME_BYTES: Final = 4080

Open = Callable[[], Connected]


@pytest.fixture(params=["fake", "real"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, rng: random.Random) -> Iterator[Open]:
    """Makes connections to one engine, which is empty."""
    if request.param == "fake":
        network = FakeNetwork(FakeClock(), rng)
        network.add("/engine")
        (address,) = resolve(parse_url("unix:///engine"))
        yield lambda: network.connect(address, seconds=SECONDS)
        return
    with Engine(tmp_path / "engine") as engine:
        (where,) = resolve(parse_url(engine.url()))
        connections: list[Connection] = []

        def connect() -> Connection:
            connections.append(Connection(where, seconds=SECONDS))
            return connections[-1]

        yield connect
        for connection in connections:
            connection.close()


@pytest.fixture
def connection(opened: Open) -> Connected:
    return opened()


def frame(rng: random.Random) -> memoryview:
    return memoryview(rng.randbytes(FRAME_BYTES))


def buffers(count: int) -> list[memoryview]:
    return [memoryview(bytearray(FRAME_BYTES)) for _ in range(count)]


def test_what_was_set_is_got(connection: Connected, rng: random.Random) -> None:
    keys = [b"key:%d" % n for n in range(40)]
    frames = [frame(rng) for _ in keys]
    connection.begin_set(keys, [(each[:100], each[100:]) for each in frames], SECONDS)
    assert connection.end_set(SECONDS) == [""] * 40
    into = buffers(41)
    assert connection.get_all([b"none", *keys], into, SECONDS) == [False, *[True] * 40]
    assert into[1:] == frames and not any(into[0])


def test_what_was_unlinked_is_not_there(connection: Connected, rng: random.Random) -> None:
    keys = [b"key:%d" % n for n in range(40)]
    connection.begin_set(keys, [(frame(rng),) for _ in keys], SECONDS)
    connection.end_set(SECONDS)
    assert connection.unlink_all([*keys[:20], b"none"], SECONDS) == 20
    assert connection.get_all(keys, buffers(40), SECONDS) == [False] * 20 + [True] * 20
    assert connection.exist_all(keys * 20, SECONDS) == ([False] * 20 + [True] * 20) * 20


def test_what_is_under_a_key_and_is_none_of_ours_is_not_there(connection: Connected, rng: random.Random) -> None:
    connection.call("SET", b"short", b"short", seconds=SECONDS)
    connection.call("SET", b"long", bytes(len(buffers(1)[0]) * 3 + 1), seconds=SECONDS)
    connection.call("HSET", b"hash", "field", 1, seconds=SECONDS)
    wanted, into = frame(rng), buffers(4)
    connection.begin_set([b"key"], [(wanted,)], SECONDS)
    connection.end_set(SECONDS)
    assert connection.get_all([b"short", b"long", b"hash", b"key"], into, SECONDS) == [False, False, False, True]
    assert into[3] == wanted


def test_a_value_of_far_too_many_bytes_ends_the_connection(connection: Connected) -> None:
    connection.call("SET", b"key", bytes(MAX_REPLY_BYTES + 1), seconds=SECONDS)
    with pytest.raises(ProtocolError):
        connection.get_all([b"key"], buffers(1), SECONDS)
    assert not connection.is_open
    with pytest.raises(OSError, match="closed"):
        connection.call("PING", seconds=SECONDS)


def test_a_refusal_leaves_the_connection_as_it_is(connection: Connected) -> None:
    with pytest.raises(Refused, match="ERR unknown command"):
        connection.call("NOSUCH", seconds=SECONDS)
    assert connection.is_open and connection.call("PING", seconds=SECONDS) == b"PONG"


def test_words_and_accounts(connection: Connected) -> None:
    assert connection.call("GET", b"word", seconds=SECONDS) is None
    assert connection.call("SET", b"word", "one", "NX", seconds=SECONDS) == b"OK"
    assert connection.call("SET", b"word", "two", "NX", seconds=SECONDS) is None
    assert connection.call("GET", b"word", seconds=SECONDS) == b"one"
    assert connection.call("HSET", b"account", "seen", 1, "frames", 2, seconds=SECONDS) == 2
    assert connection.call("HSET", b"account", "seen", 3, seconds=SECONDS) == 0


def test_a_scan_lists_what_is_there_all_the_while(connection: Connected, rng: random.Random) -> None:
    keys = {b"zcache:%d" % n for n in range(60)}
    for key in (*keys, b"other:1", b"other:2"):
        connection.call("SET", key, "x", seconds=SECONDS)
    found: set[bytes] = set()
    gone: set[bytes] = set()
    cursor = b"0"
    while True:
        reply = connection.call("SCAN", cursor, "MATCH", b"zcache:*", "COUNT", 7, seconds=SECONDS)
        assert isinstance(reply, list) and isinstance(reply[0], bytes) and isinstance(reply[1], list)
        cursor = reply[0]
        found |= {key for key in reply[1] if isinstance(key, bytes)}
        if cursor == b"0":
            break
        some = {key for key in found if rng.random() < 0.3}
        connection.unlink_all(sorted(some - gone), SECONDS)
        gone |= some
    assert found <= keys and found >= keys - gone


def test_an_engine_says_who_it_is(opened: Open) -> None:
    first, second = opened(), opened()
    one, other = (fields_of(each.call("INFO", seconds=SECONDS)) for each in (first, second))
    assert one["run_id"] == other["run_id"] == fields_of(first.call("INFO", "server", seconds=SECONDS))["run_id"]
    assert one["role"] == "master" and one["loading"] == "0"
    assert int((one.get("valkey_version") or one["redis_version"]).partition(".")[0]) >= 7
    memory = fields_of(first.call("INFO", "memory", seconds=SECONDS))
    assert int(memory["used_memory"]) >= 0 and memory["maxmemory"] == "0"
    assert memory["maxmemory_policy"] == "noeviction"
    assert first.call("CONFIG", "GET", "save", seconds=SECONDS) == [b"save", b""]
    with pytest.raises(Refused, match="cluster support disabled"):
        first.call("CLUSTER", "SLOTS", seconds=SECONDS)


def test_closing_twice_is_closing(connection: Connected) -> None:
    connection.close()
    connection.close()
    assert not connection.is_open
    with pytest.raises(OSError, match="closed"):
        connection.get_all([b"key"], buffers(1), SECONDS)
    with pytest.raises(OSError, match="closed"):
        connection.begin_set([b"key"], [buffers(1)], SECONDS)

"""Starts with engines that are not as they should be: refused in one clear line, by a server of
its own and by a keeper's first. And what a start leaves there: nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.nbd.conftest import Serve
from tests.nbd.test_keeper import DEADLINE_SECONDS, Keeper, servers_of
from tests.support.engines import Engine, cluster, engines
from zcache.remote.accounts import quota_key
from zcache.server.config import refusal as refusal_of_words

REPOSITORY: Final = Path(__file__).resolve().parents[2]
WORDS: Final = ("size=32M", "budget=4M", "remote_budget=64M")
USERS: Final = ("default off", "alice on >word-of-alice ~zcache:alice:* %R~zcache:quota:alice +@all")

Words = Callable[[list[Engine]], tuple[str, ...]]


@pytest.fixture
def both(tmp_path: Path) -> Iterator[list[Engine]]:
    with engines(tmp_path / "engines", 2, port=0, users=USERS, maxmemory=256 << 20) as found:
        yield found


def good(at: list[Engine]) -> tuple[str, ...]:
    return (*WORDS, *(f"remote={engine.url('alice', 'word-of-alice')}" for engine in at))


def wrong_password(at: list[Engine]) -> tuple[str, ...]:
    return (*good(at)[:-1], f"remote={at[1].url('alice', 'another-word')}")


def nobody_there(at: list[Engine]) -> tuple[str, ...]:
    words = good(at)
    at[1].kill()
    return words


def one_engine_only(at: list[Engine]) -> tuple[str, ...]:
    return good(at)[:-1]


def the_same_twice(at: list[Engine]) -> tuple[str, ...]:
    return (*good(at)[:-1], f"remote={at[0].url('alice', 'word-of-alice').replace('127.0.0.1', 'localhost')}")


def too_little_room(at: list[Engine]) -> tuple[str, ...]:
    for engine in at:
        engine.call("SET", quota_key("alice"), 8 << 20)
    return good(at)


def silent(at: list[Engine]) -> tuple[str, ...]:
    """The kernel accepts connections for it, and it answers nothing."""
    words = good(at)
    at[1].pause()
    return words


REFUSED: Final = [
    (wrong_password, "WRONGPASS", "give the user and the password"),
    (nobody_there, "does not answer (ECONNREFUSED: Connection refused)", "give the URL of a Redis or Valkey that runs"),
    (one_engine_only, "two copies of each frame need two engines", "give another remote="),
    (the_same_twice, "the same engine as", "give another"),
    (too_little_room, "remote_budget=67108864: the engines have room for", "give less"),
    (silent, "does not answer (ETIMEDOUT: ", "give the URL of a Redis or Valkey that runs"),
]


def reason_in(said: str, reason: str, advice: str) -> None:
    """One line says it, beside warnings; no password is in any of them."""
    lines = [line for line in said.splitlines() if "WARNING" not in line and not line.startswith("zcache keeper:")]
    assert len(lines) == 1 and "Traceback" not in said, said
    assert lines[0].startswith("zcache: remote") and reason in lines[0] and advice in lines[0]
    assert "word-of-alice" not in said and "another-word" not in said, said


@pytest.mark.parametrize(("words_of", "reason", "advice"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_server_refuses_in_one_line(
    tmp_path: Path, both: list[Engine], words_of: Words, reason: str, advice: str
) -> None:
    path = tmp_path / "nbd.sock"
    command = [str(REPOSITORY / "scripts/serve"), "-U", str(path), *words_of(both)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert done.returncode != 0 and done.stdout == "" and not path.exists()
    reason_in(done.stderr, reason, advice)


@pytest.mark.parametrize(
    ("words_of", "reason", "advice"),
    [*REFUSED[:-1], pytest.param(*REFUSED[-1], marks=pytest.mark.thorough)],  # which waits twice
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_keeper_s_first_server_refuses_in_the_same_line(
    tmp_path: Path, both: list[Engine], words_of: Words, reason: str, advice: str
) -> None:
    """With all that it has read by then, and tried: it is a standby until it is told to begin."""
    keeper = Keeper(tmp_path / "state", words_of(both))
    assert keeper.process.wait(DEADLINE_SECONDS) == 1
    keeper.close()
    reason_in(keeper.log(), reason, advice)
    assert not servers_of(keeper.folder)
    for engine in both:
        if engine.is_running:
            os.kill(engine.pid, signal.SIGCONT)  # if it was paused
            assert engine.call("KEYS", "zcache:*:*:*") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("remote=http://host",), ["remote=", "redis://"]),
        (("remote=redis://host:99999", "remote=redis://other"), ["remote=redis://host", "no such port"]),
        (("remote=redis://:secret@host", "remote=redis://:secret@host"), ["given twice"]),
        (("remote=redis://host", "remote_copies=1"), ["remote_copies=1", "give backing=PATH"]),
        (("remote=redis://host", "remote_copies=3"), ["remote_copies=3", "1 or 2"]),
        (("remote_budget=64M",), ["remote_budget=64M", "give remote=URL"]),
    ],
)
def test_swap_up_says_what_is_wrong_with_the_words_before_anything_is_started(
    words: tuple[str, ...], said: list[str]
) -> None:
    more = () if any(word.startswith("remote_budget") for word in words) else ("remote_budget=64M",)
    command = [sys.executable, "-I", "-m", "zcache.server.config", "size=32M", "budget=4M", *words, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(text in done.stderr for text in said) and "secret" not in done.stderr, done.stderr


def test_swap_up_asks_no_engine(both: list[Engine]) -> None:
    """Words alone say nothing of them: what is wrong there is its first server's to say."""
    before = [int(engine.info()["total_connections_received"]) for engine in both]
    for words_of in (good, wrong_password, one_engine_only):
        assert refusal_of_words(words_of(both)) == ""
    assert [int(engine.info()["total_connections_received"]) for engine in both] == [count + 1 for count in before]


def test_a_start_leaves_nothing_of_its_trial(serve: Serve, tmp_path: Path) -> None:
    """At engines that stand alone, and in a Cluster."""
    with engines(tmp_path / "alone", 2, port=0) as alone, cluster(tmp_path / "cluster") as nodes:
        for at, where in (
            (alone, [f"remote={engine.url()}" for engine in alone]),
            (nodes, [f"remote={nodes[0].url(cluster='yes')}"]),
        ):
            server = serve(*WORDS, *where)
            name = server.status()["remote_name"].encode()
            keys = [key for engine in at for key in keys_of(engine)]
            assert {key.split(b":")[2] for key in keys} == {name}
            assert sum(key.endswith(b"word") for key in keys) == len(at)
            assert not [key for key in keys if key[-1:].isdigit()]
            writes = [engine.info()["cmdstat_set"].partition(",")[0] for engine in at]
            assert all(int(each.removeprefix("calls=")) > 10 for each in writes), "frames were there, and are gone"
            server.check()
            assert server.stop() == 0
            assert [keys_of(engine) for engine in at] == [[]] * len(at)


def keys_of(engine: Engine) -> list[bytes]:
    keys = engine.call("KEYS", "*")
    assert isinstance(keys, list)
    return keys

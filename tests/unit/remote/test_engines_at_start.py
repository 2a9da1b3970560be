"""What a start refuses, over real engines: each with one clear line, and no password in it."""

import contextlib
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.engines import Engine, Refused, cluster, engines, wait_until
from tests.support.fake_engine import FakeNetwork
from zcache.errors import BadInput
from zcache.remote.engines import Engines
from zcache.remote.tables import Tables
from zcache.remote.url import parse_url

WORD = "open-sesame"


def start(*urls: str, copies: int = 2, is_successor: bool = False) -> list[str]:
    """What is said of them; raises what a start does."""
    said: list[str] = []
    found = Engines([parse_url(url) for url in urls], copies, copies == 1, FakeClock())
    found.resolve(is_successor, said.append)
    if not is_successor:
        found.check(said.append)
    return said


def refusal(*urls: str, copies: int = 2) -> str:
    with pytest.raises(BadInput) as caught:
        start(*urls, copies=copies)
    line = str(caught.value)
    assert "\n" not in line and WORD not in line and re.match(r"remote=.+: .+; .+", line), line
    return line


@pytest.fixture
def good(tmp_path: Path) -> Iterator[list[Engine]]:
    with engines(tmp_path, 2, maxmemory=64 << 20, port=0) as made:
        yield made


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Engine]]:
    with cluster(tmp_path_factory.mktemp("cluster"), maxmemory=64 << 20) as made:
        yield made


def url_of(node: Engine, **options: str) -> str:
    return node.url(scheme="redis", **options)


def test_two_that_are_as_they_should_be_are_taken_without_a_word(good: list[Engine]) -> None:
    assert start(*(engine.url() for engine in good)) == []
    assert all(engine.call("KEYS", "*") == [] for engine in good), "nothing is left of the trial"


def test_a_wrong_password_is_refused(tmp_path: Path, good: list[Engine]) -> None:
    with Engine(tmp_path / "own", users=[f"alice on >{WORD} ~zcache:alice:* +@all", "default off"]) as engine:
        assert "WRONGPASS" in refusal(engine.url("alice", WORD + "x"), good[0].url())
        assert "WRONGPASS" in refusal(engine.url("bob", WORD), good[0].url())
        assert "NOAUTH" in refusal(engine.url(), good[0].url())
        assert start(engine.url("alice", WORD), good[0].url())[:-1] == [
            f"WARNING: remote=alice@{engine.socket}: a password in a URL is seen in lists of processes; "
            "give password_file=PATH"
        ]


def test_a_password_that_an_engine_without_one_does_not_know_is_refused(good: list[Engine]) -> None:
    assert "give the user and the password" in refusal(good[0].url("alice", WORD), good[1].url())


@pytest.mark.parametrize(
    "rules",
    [
        "+@all -set ~zcache:alice:*",
        "+@all -unlink ~zcache:alice:*",
        "+@all -scan ~zcache:alice:*",
        "+@all -info ~zcache:alice:*",
        "+@all ~zcache:bob:*",
        "+@read %R~zcache:alice:*",
    ],
)
def test_an_account_that_may_not_do_what_has_to_be_done_is_refused(
    tmp_path: Path, good: list[Engine], rules: str
) -> None:
    with Engine(tmp_path / "own", users=[f"alice on >{WORD} {rules}"]) as engine:
        line = refusal(engine.url("alice", WORD), good[0].url())
        assert "NOPERM" in line and "ACL" in line


def test_an_account_that_may_do_that_and_no_more_is_enough(tmp_path: Path, good: list[Engine]) -> None:
    rules = "~zcache:alice:* %R~zcache:quota:alice +get +set +exists +unlink +scan +info +hset"
    with Engine(tmp_path / "own", maxmemory=64 << 20, users=[f"alice on nopass {rules}"]) as engine:
        assert start(engine.url("alice"), good[0].url()) == []


def test_nobody_there_is_said_and_an_unknown_host(good: list[Engine]) -> None:
    good[1].kill()
    assert "does not answer (ECONNREFUSED" in refusal(good[0].url(), good[1].url())
    assert "does not answer (ENOENT" in refusal(good[0].url(), "unix:///nowhere/at/all")
    assert "unknown host" in refusal(good[0].url(), f"redis://alice:{WORD}@nowhere.invalid")


def test_a_successor_is_not_refused_for_a_host_that_is_unknown_now(good: list[Engine]) -> None:
    (line,) = start(good[0].url(), "redis://nowhere.invalid", is_successor=True)
    assert line.startswith("WARNING: remote=nowhere.invalid:6379: unknown host")


def test_one_that_does_not_answer_is_not_waited_for_for_ever(
    good: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zcache.remote.engines.START_SECONDS", 0.2)
    good[0].pause()
    assert "no answer in time" in refusal(good[0].url(), good[1].url())


def test_a_replica_is_refused(tmp_path: Path, good: list[Engine]) -> None:
    with Engine(tmp_path / "own") as replica:
        replica.call("REPLICAOF", good[0].address, good[0].port or 0)
        assert "read-only replica of 127.0.0.1" in refusal(replica.url(), good[1].url())


def test_one_that_may_throw_frames_out_is_for_one_copy_alone(tmp_path: Path, good: list[Engine]) -> None:
    with Engine(tmp_path / "own", maxmemory=8 << 20, maxmemory_policy="allkeys-lru") as engine:
        assert "maxmemory-policy allkeys-lru" in refusal(engine.url(), good[0].url())
        assert start(engine.url(), copies=1) == []


def test_the_same_engine_twice_is_refused(good: list[Engine]) -> None:
    engine = good[0]
    assert "the same engine as" in refusal(engine.url(scheme="redis"), engine.url(scheme="unix"))
    port = str(engine.port)
    assert "the same engine as" in refusal(f"redis://127.0.0.1:{port}", f"redis://localhost:{port}")


def test_one_engine_is_not_enough_for_two_copies(good: list[Engine]) -> None:
    assert "two engines, and this is one" in refusal(good[0].url())
    assert start(good[0].url(), copies=1) == []


def test_one_that_is_loading_is_refused(tmp_path: Path, good: list[Engine]) -> None:
    settings = {"key-load-delay": 2000, "loading-process-events-interval-bytes": 1024, "rdbcompression": "no"}
    with Engine(tmp_path / "own", settings=settings) as engine:
        engine.call("DEBUG", "POPULATE", 3000, "key", 64)
        engine.call("SAVE")
        engine.kill()
        url = engine.url()
        with contextlib.suppress(Refused):  # it loads
            engine.start()
        wait_until(lambda: engine.info()["loading"] == "1", "it loads")
        assert "still loading" in refusal(url, good[0].url())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"save": "3600 1"}, "writes what it holds to its disk"),
        ({"appendonly": "yes"}, "writes what it holds to its disk"),
        ({"maxmemory": 0}, "has no maxmemory"),
    ],
)
def test_what_is_to_be_known_is_said(
    tmp_path: Path, good: list[Engine], settings: dict[str, object], expected: str
) -> None:
    with Engine(tmp_path / "own", settings={"maxmemory": 64 << 20, **settings}) as engine:
        (line,) = start(engine.url(), good[0].url())
        assert line.startswith(f"WARNING: remote={engine.socket}: ") and expected in line


def test_an_engine_that_is_full_is_no_reason_to_refuse_it(tmp_path: Path, good: list[Engine]) -> None:
    with Engine(tmp_path / "own", maxmemory=1 << 20) as engine:
        with pytest.raises(Refused, match="OOM"):
            engine.call("SET", "key", bytes(4 << 20))
            engine.call("SET", "key", "x")
        assert start(engine.url(), good[0].url()) == []


# -- a Cluster
# -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cluster_is_taken_by_one_of_its_nodes(nodes: list[Engine]) -> None:
    for url in (url_of(nodes[0], cluster="yes"), url_of(nodes[2], cluster="yes")):
        (line,) = start(url)
        assert "without a replica" in line


@pytest.mark.slow
def test_cluster_yes_is_for_a_cluster_and_has_to_be_given(nodes: list[Engine], good: list[Engine]) -> None:
    assert "give ?cluster=yes" in refusal(url_of(nodes[0]), good[0].url())
    assert "leave cluster=yes away" in refusal(url_of(good[0], cluster="yes"))


def test_a_cluster_that_is_down_is_refused(tmp_path: Path) -> None:
    with Engine(tmp_path, port=0, cluster=True) as node:
        assert "the Cluster is down" in refusal(url_of(node, cluster="yes"))


@pytest.mark.slow
def test_two_nodes_of_one_cluster_are_one_cluster(nodes: list[Engine]) -> None:
    urls = [url_of(node, cluster="yes") for node in nodes[:2]]
    found = Engines([parse_url(url) for url in urls], 2, False, FakeClock())
    found.resolve(False, lambda _: None)
    found.check(lambda _: None)
    assert len(found.make_peers("name", Tables(4), True)) == 3


@pytest.mark.slow
def test_a_cluster_of_one_primary_is_one_engine_and_another_cluster_is_refused(
    tmp_path: Path, nodes: list[Engine]
) -> None:
    with cluster(tmp_path, 1) as (node,):
        assert "two engines, and this is one" in refusal(url_of(node, cluster="yes"))
        assert "is of another Cluster" in refusal(url_of(nodes[0], cluster="yes"), url_of(node, cluster="yes"))


@pytest.mark.slow
def test_full_coverage_is_warned_of(nodes: list[Engine]) -> None:
    try:
        nodes[0].call("CONFIG", "SET", "cluster-require-full-coverage", "yes")
        said = start(url_of(nodes[0], cluster="yes"))
    finally:
        nodes[0].call("CONFIG", "SET", "cluster-require-full-coverage", "no")
    assert any("cluster-require-full-coverage yes; set no" in line for line in said)


@pytest.mark.parametrize("primaries", [2, 3])
def test_a_cluster_without_a_majority_after_a_death_is_refused_for_two_copies(
    rng: random.Random, primaries: int
) -> None:
    """It stops then, whole: the one that is left is not more than half."""
    clock = FakeClock()
    network = FakeNetwork(clock, rng, is_cluster=True)
    for n in range(primaries):
        network.add(f"127.0.0.{n + 1}:7000")
    url = parse_url("redis://127.0.0.1:7000?cluster=yes")
    for copies in (1, 2):
        engines = Engines([url], copies, may_evict=copies == 1, clock=clock, connect_to=network.connect)
        engines.resolve(False, print)
        if primaries == 2 == copies:
            with pytest.raises(BadInput, match="no majority; give one of three, or two engines that stand alone"):
                engines.check(lambda _: None)
        else:
            engines.check(lambda _: None)

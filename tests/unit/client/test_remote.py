"""`zcache remote`: who has how much at engines, what the dead have left, and limits."""

import contextlib
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.engines import Engine, Refused, cluster, engines, wait_until
from zcache.client import remote
from zcache.client.command import main
from zcache.clock import Clock
from zcache.errors import BadInput
from zcache.remote.accounts import name_of, prefix_of
from zcache.remote.engines import Engines
from zcache.remote.remote import Remote
from zcache.remote.remote_tier import RemoteTier
from zcache.remote.url import parse_url

REPOSITORY: Final = Path(__file__).resolve().parents[3]

OWNERS: Final = ("alice", "bob", "carol.c", "dave-2")
ALICES: Final = "0123456789ab"
BOBS: Final = "aaaaaaaaaaaa"
STRANGER: Final = "ffffffffffff"
FRAME_BYTES: Final = 64 << 10

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`zcache remote` with some words and URLs: exit status, and what it said."""

    def run(*words: str, at: Sequence[str] = (), typed: str = "") -> tuple[int, str, str]:
        words = (*words, *(word for url in at for word in ("--remote", url)))
        monkeypatch.setattr(sys, "argv", ["zcache", "remote", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        capsys.readouterr()
        status = main()
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Engine]]:
    """Two engines, with an account for each owner."""
    with engines(tmp_path, 2, maxmemory=64 << 20, users=[user(owner) for owner in OWNERS]) as pair:
        yield pair


@pytest.fixture
def quick_gc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WATCH_SECONDS", 0.05)


def user(owner: str, without: str = "") -> str:
    """As a line of an engine's configuration."""
    rule = remote.acl_rule(owner).removeprefix("ACL SETUSER ").replace("PASSWORD", f"word-of-{owner}")
    assert f"+{without}" in rule
    return " ".join(word for word in rule.split() if not without or word != f"+{without}")


def url_of(engine: Engine, owner: str, **options: str) -> str:
    file = engine.folder / f"password-of-{owner}"
    file.touch(0o600)
    file.write_text(f"word-of-{owner}")
    return engine.url(owner, None, None, password_file=file, **options)


def put(
    engine: Engine, owner: str, name: str, *, frames: int, seen: float | None, tag: bytes = b"", limit: int = -1
) -> None:
    """An instance: what a machine leaves at an engine."""
    prefix = prefix_of(owner, name, tag)
    for slot in range(frames):
        engine.call("SET", prefix + b"%d:1" % slot, bytes(1000))
    engine.call("SET", prefix + b"word", "0123")
    if seen is not None:
        fields: dict[str, str | int] = {"host": f"host-of-{owner}", "version": "0.2.0", "seen": int(seen)}
        fields |= {"frames": frames, "bytes": frames * 1500, "limit_bytes": limit}
        for field, value in fields.items():
            engine.call("HSET", prefix + b"account", field, value)


def keys(engine: Engine, pattern: str = "zcache:*") -> list[bytes]:
    found = engine.call("KEYS", pattern)
    assert isinstance(found, list)
    return sorted(found)


def status(run: Run, *urls: str) -> dict[str, Any]:
    code, said, errors = run("status", "--json", at=urls)
    assert (code, errors) == (0, ""), errors
    answer: dict[str, Any] = json.loads(said)
    return answer


# -- status
# -------------------------------------------------------------------------------------------------


def test_status_says_who_has_how_much_and_when_it_was_seen(pair: list[Engine], run: Run) -> None:
    first, second = pair
    now = time.time()
    put(first, "alice", ALICES, frames=3, seen=now, limit=1 << 20)
    put(second, "alice", ALICES, frames=2, seen=now)
    put(second, "bob", BOBS, frames=5, seen=now - 7200)
    put(second, "bob", STRANGER, frames=4, seen=None)
    first.call("SET", "zcache:quota:alice", 8 << 20)
    first.call("SET", "zcache:quota:carol.c", 4 << 20)
    second.call("SET", "zcache:quota:alice", 1 << 20)
    second.call("SET", "somebody's own", "and no frame")
    answer = status(run, first.url(), second.url())
    assert [row["engine"] for row in answer["engines"]] == [str(first.socket), str(second.socket)]
    assert all(row["max_bytes"] == 64 << 20 and row["policy"] == "noeviction" for row in answer["engines"])
    assert all(0 < row["used_bytes"] < 64 << 20 for row in answer["engines"])
    shown = [
        tuple(row[field] for field in ("owner", "name", "host", "state", "frames", "limit_bytes", "quota_bytes"))
        for row in answer["instances"]
    ]
    assert shown == [
        ("alice", ALICES, "host-of-alice", "live", 3, 1 << 20, 8 << 20),
        ("alice", ALICES, "host-of-alice", "live", 2, None, 1 << 20),
        ("bob", STRANGER, None, "no account", 4, None, None),
        ("bob", BOBS, "host-of-bob", "silent", 5, None, None),
    ]
    sizes = [row["size_bytes"] for row in answer["instances"]]
    assert sizes[:2] + sizes[3:] == [4500, 3000, 7500]
    assert 4000 < sizes[2] < 8000, "what the engine itself says of one"
    assert 7200 <= answer["instances"][3]["seen_seconds_ago"] < 7300
    assert [(row["owner"], row["instances"], row["frames"], row["quota_bytes"]) for row in answer["owners"]] == [
        ("alice", 1, 5, 9 << 20),
        ("bob", 2, 9, None),
        ("carol.c", 0, 0, None),
    ]


def test_status_is_three_tables(pair: list[Engine], run: Run) -> None:
    put(pair[0], "alice", ALICES, frames=3, seen=time.time() - 3 * 86400, limit=1 << 20)
    code, said, errors = run("status", at=[pair[0].url()])
    assert (code, errors) == (0, "")
    tables = [line.split() for line in said.splitlines()]
    assert tables[0] == ["ENGINE", "VERSION", "USED", "MAXMEMORY", "POLICY"]
    assert tables[1][-2:] == ["64.0M", "noeviction"]
    row = dict(zip(tables[3], said.splitlines()[4].replace("3 days", "3-days").split(), strict=True))
    assert row["OWNER"] == "alice" and row["STATE"] == "silent" and row["SEEN"] == "3-days"
    assert (row["FRAMES"], row["SIZE"], row["LIMIT"], row["QUOTA"]) == ("3", "4.4K", "1.0M", "-")
    assert tables[-1] == ["alice", "1", "3", "4.4K", "-"]


def test_status_of_empty_engines_shows_those(pair: list[Engine], run: Run) -> None:
    code, said, _ = run("status", at=[pair[0].url()])
    assert code == 0 and said.count("\n") == 2


def test_an_engine_that_is_given_twice_counts_once(tmp_path: Path, run: Run) -> None:
    with Engine(tmp_path, port=0) as engine:
        put(engine, "alice", ALICES, frames=3, seen=time.time())
        answer = status(run, engine.url(), engine.url(scheme="unix"))
        assert len(answer["engines"]) == 1 and [row["frames"] for row in answer["owners"]] == [3]


def test_an_engine_that_is_gone_is_one_line_and_the_others_are_shown(pair: list[Engine], run: Run) -> None:
    first, second = pair
    put(second, "bob", BOBS, frames=5, seen=time.time())
    first.kill()
    code, said, errors = run("status", at=[first.url(), second.url()])
    assert code == 2 and BOBS in said
    assert errors == f"zcache: remote={first.socket}: Connection refused\n"


def test_an_engine_that_is_paused_is_one_line(pair: list[Engine], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zcache.client.remote_engines.ANSWER_SECONDS", 0.2)
    pair[0].pause()
    code, said, errors = run("status", at=[pair[0].url()])
    pair[0].resume()
    assert (code, said) == (2, "") and "does not answer within" in errors and errors.count("\n") == 1


def test_a_cluster_is_all_of_its_primaries_and_has_one_quota(tmp_path: Path, run: Run) -> None:
    with cluster(tmp_path, primaries=3) as nodes:
        now = time.time()
        tags = [next(str(n).encode() for n in range(99) if takes(node, b"{%d}" % n)) for node in nodes]
        for node, tag in zip(nodes, tags, strict=True):
            put(node, "alice", ALICES, frames=2, seen=now, tag=tag, limit=1 << 20)
        seeds = [node.url(cluster="yes") for node in nodes[:2]]
        assert run("quota", "alice", "9M", at=seeds)[:2] == (0, f"alice at 127.0.0.1:{nodes[0].port}: 9.0M\n")
        answer = status(run, *seeds)
        assert len(answer["engines"]) == 3
        assert [(row["frames"], row["quota_bytes"]) for row in answer["instances"]] == [(2, 9 << 20)] * 3
        expected = {"owner": "alice", "instances": 1, "frames": 6, "size_bytes": 9000, "quota_bytes": 9 << 20}
        assert answer["owners"] == [expected]
        assert sum(bool(keys(node, "zcache:quota:*")) for node in nodes) == 1
        assert run("quota", "alice", "none", at=seeds)[0] == 0
        assert not any(keys(node, "zcache:quota:*") for node in nodes)
        assert run("gc", ALICES, "--yes", "--force", at=seeds)[:2] == (0, f"removed {ALICES}: 6 copies\n")
        assert not any(keys(node) for node in nodes)
        code, _, errors = run("status", at=[nodes[0].url()])
        assert code == 2 and "is a node of a Cluster; give ?cluster=yes" in errors


def takes(node: Engine, key: bytes) -> bool:
    try:
        node.call("GET", key)
    except Refused:
        return False
    return True


# -- gc
# -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_gc")
def test_gc_removes_all_that_one_instance_has_everywhere(pair: list[Engine], run: Run) -> None:
    for engine in pair:
        put(engine, "alice", ALICES, frames=2500, seen=time.time() - 100)  # several batches
        put(engine, "alice", STRANGER, frames=1, seen=time.time() - 100)
    before = [[key for key in keys(engine) if ALICES.encode() not in key] for engine in pair]
    urls = [engine.url() for engine in pair]
    code, said, errors = run("gc", ALICES, at=urls, typed="y\n")
    assert (code, errors) == (0, "")
    assert f"{ALICES} (alice, host host-of-alice): 5000 copies, 7.2M, at {pair[0].socket}, {pair[1].socket}" in said
    assert re.search("; last seen 10[0-9] s ago", said)
    assert said.endswith(f"removed {ALICES}: 5000 copies\n")
    assert [keys(engine) for engine in pair] == before


@pytest.mark.parametrize("typed", ["n\n", "\n", "", "yess\n"])
def test_gc_that_is_not_confirmed_removes_nothing(pair: list[Engine], run: Run, typed: str) -> None:
    put(pair[0], "alice", ALICES, frames=2, seen=time.time() - 100)
    code, said, _ = run("gc", ALICES, at=[pair[0].url()], typed=typed)
    assert code == 1 and said.endswith("nothing was removed\n") and len(keys(pair[0])) == 4


@pytest.mark.usefixtures("quick_gc")
def test_gc_of_what_has_no_account_removes_it(pair: list[Engine], run: Run) -> None:
    put(pair[0], "bob", STRANGER, frames=2, seen=None)
    code, said, _ = run("gc", STRANGER, at=[pair[0].url()], typed="yes\n")
    assert code == 0 and "host unknown" in said and "never seen" in said and not keys(pair[0])


def test_gc_refuses_who_was_seen_within_the_last_minute_at_any_engine(pair: list[Engine], run: Run) -> None:
    put(pair[0], "alice", ALICES, frames=2, seen=time.time() - 100)
    put(pair[1], "alice", ALICES, frames=2, seen=time.time() - 50)
    urls = [engine.url() for engine in pair]
    code, said, errors = run("gc", ALICES, "--yes", at=urls)
    assert (code, said) == (2, "") and "is alive" in errors and errors.count("\n") == 1
    assert len(keys(pair[0])) == len(keys(pair[1])) == 4
    assert run("gc", ALICES, "--yes", "--force", at=urls)[0] == 0
    assert not keys(pair[0]) and not keys(pair[1])


def test_gc_sees_that_one_whose_clock_is_wrong_is_alive(
    pair: list[Engine], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose clock is a day behind says that it is there, as all do."""
    yesterday = time.time() - 86400
    put(pair[0], "alice", ALICES, frames=2, seen=yesterday)
    heartbeat = prefix_of("alice", ALICES) + b"account"
    monkeypatch.setattr(time, "sleep", lambda _: pair[0].call("HSET", heartbeat, "seen", int(yesterday + 2)))
    code, _, errors = run("gc", ALICES, "--yes", at=[pair[0].url()])
    assert code == 2 and "changed just now" in errors and len(keys(pair[0])) == 4


def test_gc_does_nothing_unless_all_engines_answer(pair: list[Engine], run: Run) -> None:
    put(pair[0], "alice", ALICES, frames=2, seen=time.time() - 100)
    pair[1].kill()
    code, _, errors = run("gc", ALICES, "--yes", at=[engine.url() for engine in pair])
    assert code == 2 and errors.endswith("Connection refused; nothing was changed\n") and len(keys(pair[0])) == 4


@pytest.mark.parametrize(("name", "said"), [(ALICES, "nothing of that name"), ("*", "not a name"), ("alice", "not a")])
def test_gc_of_a_name_that_is_none_says_so(pair: list[Engine], run: Run, name: str, said: str) -> None:
    code, _, errors = run("gc", name, "--yes", at=[pair[0].url()])
    assert code == 2 and said in errors and errors.count("\n") == 1


SILLY: Final = ("--5", "-", "²", "٣", "9" * 5000, "5\n", "", "\x1b[2J\x1b]0;gone\x07", "[red]x[/red]", "\udcff", "-3")


@pytest.mark.usefixtures("quick_gc")
@pytest.mark.parametrize("value", SILLY)
def test_whatever_a_machine_writes_of_itself_hides_no_other(pair: list[Engine], run: Run, value: str) -> None:
    put(pair[0], "alice", ALICES, frames=2, seen=time.time() - 100)
    put(pair[0], "bob", BOBS, frames=3, seen=time.time() - 100)
    account = prefix_of("alice", ALICES) + b"account"
    said = value.encode(errors="surrogateescape")
    for field in ("host", "version", "seen", "frames", "bytes", "limit_bytes", b"\xff"):
        pair[0].call("HSET", account, field, said)
    pair[0].call("SET", "zcache:quota:alice", said)
    pair[0].call("SET", "zcache:quota:bob", 1 << 20)
    first, second = status(run, pair[0].url())["instances"]
    assert (first["owner"], first["frames"], first["quota_bytes"]) == ("alice", 2, None)
    assert first["size_bytes"] > 2000, "what the engine itself says of one"
    assert first["host"].isprintable() and first["version"].isprintable()
    assert (second["host"], second["size_bytes"], second["quota_bytes"]) == ("host-of-bob", 4500, 1 << 20)
    code, table, errors = run("status", at=[pair[0].url()])
    assert (code, errors) == (0, "") and table.replace("\n", "").isprintable()
    assert first["host"] in table or len(value) == 5000
    assert re.search(rf"^ *bob +{BOBS} +host-of-bob +0\.2\.0 +silent", table, re.MULTILINE)
    code, asked, errors = run("gc", ALICES, at=[pair[0].url()], typed="yes\n")
    assert (code, errors) == (0, "") and asked.replace("\n", "").isprintable()
    assert f"host {first['host'] or 'unknown'})" in asked
    assert not keys(pair[0], f"zcache:alice:{ALICES}:*") and len(keys(pair[0])) == 7


@pytest.mark.usefixtures("quick_gc")
def test_what_is_no_account_hides_no_other_and_can_be_removed(pair: list[Engine], run: Run) -> None:
    put(pair[0], "alice", ALICES, frames=2, seen=None)
    put(pair[0], "bob", BOBS, frames=3, seen=time.time() - 100)
    pair[0].call("SET", prefix_of("alice", ALICES) + b"account", "x")
    pair[0].call("HSET", "zcache:quota:alice", "x", "y")
    rows = status(run, pair[0].url())["instances"]
    assert [(row["owner"], row["state"], row["frames"]) for row in rows] == [
        ("alice", "no account", 2),
        ("bob", "silent", 3),
    ]
    assert run("gc", ALICES, "--yes", at=[pair[0].url()])[0] == 0
    assert len(keys(pair[0])) == 6 and not keys(pair[0], f"zcache:alice:{ALICES}:*")


# -- quotas
# -------------------------------------------------------------------------------------------------


def test_a_quota_is_set_at_each_engine_and_taken_away(pair: list[Engine], run: Run) -> None:
    urls = [engine.url() for engine in pair]
    code, said, _ = run("quota", "alice", "1.5G", at=urls)
    assert (code, said) == (0, f"alice at {pair[0].socket}: 1.5G\nalice at {pair[1].socket}: 1.5G\n")
    assert [engine.call("GET", "zcache:quota:alice") for engine in pair] == [b"%d" % (3 << 29)] * 2
    assert run("quota", "alice", "none", at=urls)[1].count("no quota") == 2
    assert not keys(pair[0])


@pytest.mark.parametrize(
    ("owner", "size", "said"),
    [("alice", "lots", "not a number"), ("a:b", "1G", "no owner"), ("*", "none", "no owner"), ("quota", "1G", "no")],
)
def test_a_quota_that_is_none_is_refused(pair: list[Engine], run: Run, owner: str, size: str, said: str) -> None:
    code, _, errors = run("quota", owner, size, at=[pair[0].url()])
    assert code == 2 and said in errors and not keys(pair[0])


# -- accounts
# -------------------------------------------------------------------------------------------------


def test_none_of_four_owners_sees_or_touches_what_is_anothers(pair: list[Engine], run: Run) -> None:
    engine = pair[0]
    for owner, name in zip(OWNERS, (ALICES, BOBS, STRANGER, "0" * 12), strict=True):
        put(engine, owner, name, frames=2, seen=time.time() - 100)
        engine.call("SET", f"zcache:quota:{owner}", 1 << 20)
    before = {key: engine.call("DUMP", key) for key in keys(engine)}
    for owner in OWNERS:
        answer = status(run, url_of(engine, owner))
        assert [(row["owner"], row["frames"], row["quota_bytes"]) for row in answer["owners"]] == [(owner, 2, 1 << 20)]
        assert {row["owner"] for row in answer["instances"]} == {owner} and answer["hidden_instances"] == 3
        code, _, errors = run("quota", owner, "1G", at=[url_of(engine, owner)])
        assert code == 2 and "no permissions" in errors.lower() and f"word-of-{owner}" not in errors
        for other in before:
            if f":{owner}" in other.decode():
                continue
            for command in ("GET", "SET", "UNLINK", "HGETALL", "EXISTS"):
                assert is_refused(engine, owner, command, other, *["x"] * (command == "SET")), (owner, command)
        assert is_refused(engine, owner, "SET", f"zcache:quota:{owner}", "1")
        for words in (("CONFIG", "GET", "requirepass"), ("ACL", "LIST"), ("KEYS", "*"), ("MONITOR",), ("FLUSHALL",)):
            assert is_refused(engine, owner, *words), words
    assert run("gc", BOBS, "--yes", at=[url_of(engine, "alice")])[0] == 2
    assert {key: engine.call("DUMP", key) for key in keys(engine)} == before


def is_refused(engine: Engine, owner: str, *words: str | bytes) -> bool:
    """By its account, whatever it would say of the value."""
    reply = engine.call("ACL", "DRYRUN", owner, *words)
    return isinstance(reply, bytes) and b"permissions" in reply


def test_the_rule_of_an_account_is_whole(tmp_path: Path, run: Run) -> None:
    with engines(tmp_path, 2, users=[user("alice")], settings={"save": "3600 1"}) as pair:
        live_under_the_rule(pair, run, seconds=30)


@pytest.mark.parametrize("command", [name for name in remote.COMMANDS if not name.startswith("cluster")])
def test_the_rule_of_an_account_has_nothing_that_is_not_needed(tmp_path: Path, run: Run, command: str) -> None:
    with (
        engines(tmp_path, 2, users=[user("alice", without=command)], settings={"save": "3600 1"}) as pair,
        pytest.raises((AssertionError, BadInput), match=WITHOUT[command]),
    ):
        live_under_the_rule(pair, run, seconds=1)


def test_the_rule_is_whole_for_a_cluster_and_has_nothing_that_is_not_needed(tmp_path: Path, run: Run) -> None:
    with cluster(tmp_path, primaries=3, users=[user("alice")]) as nodes:
        seeds = [url_of(nodes[0], "alice", cluster="yes")]
        with machine(seeds) as swap:
            wait_until(lambda: is_up(swap), "it is known at all")
            assert [row["state"] for row in status(run, *seeds)["instances"]] == ["live"] * 3
        for command in ("cluster|info", "cluster|slots"):
            for node in nodes:
                node.call("ACL", "SETUSER", *user("alice", without=command).split())
            with pytest.raises(BadInput, match="permissions"), machine(seeds):
                pass


#: What does not come about without a command; most are asked for at the start.
WITHOUT: Final = {
    "exists": "permissions to run the 'exists' command",
    "get": "permissions to run the 'get' command",
    "hgetall": "it is shown",
    "hset": "it is shown",
    "info": "permissions to run the 'info' command",
    "scan": "permissions to run the 'scan' command",
    "set": "permissions to run the 'set' command",
    "unlink": "permissions to run the 'unlink' command",
}


@contextlib.contextmanager
def machine(urls: Sequence[str]) -> Iterator[Remote]:
    """What a server has, with two copies of each frame."""
    found = Engines([parse_url(url) for url in urls], 2, False, Clock())
    found.resolve(False, lambda _: None)
    found.check(lambda _: None)
    swap = Remote(found, 16, FRAME_BYTES, None, None, b"secret", is_front=False, report=lambda _: None)
    try:
        yield swap
    finally:
        swap.tier.close()


def is_up(swap: Remote) -> bool:
    swap.mender.work()
    return all(peer.is_up for peer in swap.copies.peers)


def live_under_the_rule(pair: list[Engine], run: Run, seconds: float) -> None:
    """All that a swap does at engines, by an account that has the rule: be known, write, read,
    remove, sweep, find what a restarted engine has kept, be shown, and leave nothing."""
    with machine([url_of(engine, "alice") for engine in pair]) as swap:
        tier, copies = swap.tier, swap.copies
        assert isinstance(tier, RemoteTier)
        wait_until(lambda: is_up(swap), "it is known at both", seconds)
        assert tier.reserve(2) == (1, 2)
        frames = [memoryview(bytes([n]) * FRAME_BYTES) for n in (1, 2)]
        tier.write(1, frames)
        found = [memoryview(bytearray(FRAME_BYTES)) for _ in frames]
        tier.read(1, found)
        assert found == frames
        mine = f"zcache:alice:{name_of(b'secret')}:"
        tier.release(2)
        wait_until(lambda: worked(swap) and not keys(pair[0], f"{mine}2:*"), "a dead frame is removed", seconds)
        pair[0].call("SET", f"{mine}9:9", "left behind")
        copies.unnamed[0] = True
        wait_until(lambda: worked(swap) and not keys(pair[0], f"{mine}9:*"), "a stray is removed", seconds)
        pair[0].call("SAVE")
        pair[0].kill()
        pair[0].start()
        copies.peers[0].disconnect()
        wait_until(lambda: is_up(swap) and is_settled(swap), "what it has kept is known", seconds + 3)
        assert copies.counters.remote_missing_copies == 0
        shown = status(run, *(url_of(engine, "alice") for engine in pair))
        assert [(row["state"], row["frames"]) for row in shown["instances"]] == [("live", 1)] * 2, "it is shown"
        swap.mender.farewell(5)
        assert not keys(pair[0]) and not keys(pair[1])


def worked(swap: Remote) -> bool:
    swap.mender.work()
    return True


def is_settled(swap: Remote) -> bool:
    """Both copies of frame 1 are of incarnations that live."""
    holders = swap.copies.tables.holders_of(1)
    return sorted(holders) == sorted(peer.number for peer in swap.copies.peers)


@pytest.mark.usefixtures("quick_gc")
def test_an_operator_s_account_may_do_all_that_the_command_does_and_nothing_else(tmp_path: Path, run: Run) -> None:
    """With the rule as it is printed, which has no password in it."""
    with cluster(tmp_path, primaries=2) as nodes:
        file = tmp_path / "password"
        file.write_bytes(b"it's a \xff word\n")
        file.chmod(0o600)
        code, rule, _ = run("acl", "ops", "--operator", "--password-file", str(file))
        assert code == 0 and "word" not in rule
        for node in nodes:
            assert node.call(*rule.split()) == b"OK"
        put_at = next(node for node in nodes if _has_slot_of(node, b"{a}"))
        put(put_at, "alice", "0123456789ab", frames=3, seen=None, tag=b"a")
        url = nodes[0].url("ops", None, None, password_file=file, cluster="yes")
        (row,) = status(run, url)["instances"]
        assert (row["owner"], row["frames"]) == ("alice", 3) and row["size_bytes"] > 3000, "what one takes is asked"
        assert run("quota", "alice", "1G", at=[url])[0] == 0
        assert status(run, url)["owners"][0]["quota_bytes"] == 1 << 30
        assert run("quota", "alice", "none", at=[url])[0] == 0
        assert run("gc", "0123456789ab", "--yes", at=[url])[0] == 0
        assert not any(keys(node) for node in nodes)
        for words in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("GET", "another:key")):
            said = put_at.call("ACL", "DRYRUN", "ops", *words)
            assert isinstance(said, bytes) and b"permissions" in said


def _has_slot_of(node: Engine, key: bytes) -> bool:
    with contextlib.suppress(Refused):
        node.call("GET", key)
        return True
    return False


# -- errors, and what is loaded
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redis://127.0.0.1:1", "remote=127.0.0.1:1: Connection refused"),
        ("redis://nobody.invalid", "remote=nobody.invalid:6379: "),
        ("unix:///nowhere", "remote=/nowhere: No such file or directory"),
        ("http://x", "remote=…: not the URL of an engine"),
    ],
)
def test_an_engine_that_is_not_there_is_one_line(run: Run, text: str, said: str) -> None:
    code, out, errors = run("status", at=[text])
    assert (code, out, errors.count("\n")) == (2, "", 1) and said in errors


def test_a_wrong_password_is_one_line_and_not_in_it(pair: list[Engine], run: Run) -> None:
    code, _, errors = run("status", at=[pair[0].url("alice", "nonsense")])
    first, second = errors.splitlines()
    assert code == 2 and "a password in a URL" in first and "nonsense" not in errors
    assert second.startswith(f"zcache: remote=alice@{pair[0].socket}: ") and "invalid username-password" in second


def test_over_tls_the_certificate_is_looked_at(tmp_path: Path, run: Run) -> None:
    with Engine(tmp_path, tls_port=0) as engine:
        authority = str(engine.certificate)
        assert len(status(run, engine.url(ca=authority, server_name="localhost"))["engines"]) == 1
        for options in ({}, {"ca": authority, "server_name": "another"}):
            code, _, errors = run("status", at=[engine.url(**options)])
            assert code == 2 and "certificate" in errors.lower() and errors.count("\n") == 1


def test_without_redis_py_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    said = f"zcache: redis-py is missing: {sys.executable} -m pip install redis\n"
    assert run("status", at=["redis://127.0.0.1:1"]) == (2, "", said)
    assert run("acl", "alice")[0] == 0


def test_the_other_commands_do_not_load_it() -> None:
    ask = "import sys; sys.argv = ['zcache', *sys.argv[1:]]; from zcache.client.command import main; main();"
    ask += "print([name for name in ('redis', 'zcache.client.remote', 'ssl') if name in sys.modules])"
    for words in (["systemd-unit"], ["status", "--control", "/nonexistent/control"]):
        done = subprocess.run(
            [sys.executable, "-c", ask, *words], capture_output=True, text=True, check=True, cwd=REPOSITORY
        )
        assert done.stdout.splitlines()[-1] == "[]", words


def test_the_rule_of_an_owner_is_one_line(run: Run) -> None:
    code, said, _ = run("acl", "alice")
    assert code == 0 and said.count("\n") == 1
    assert said.startswith("ACL SETUSER alice reset on >PASSWORD ~zcache:alice:* %R~zcache:quota:alice +")
    assert run("acl", "alice", "--password-file", "/nowhere/p")[2] == (
        "zcache: password_file=/nowhere/p: No such file or directory; give a file that can be read\n"
    )
    assert run("acl", "quota")[0] == 2, "whose keys would be all quotas"
    assert run("acl", "a b")[0] == 2

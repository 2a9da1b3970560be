"""Whether an engine may hold our frames, by what it says: of what no engine here would say."""

import pytest

from zcache.remote.checks import Said, cluster_warnings, warnings, why_not

GOOD = {
    "redis_version": "7.0.15",
    "run_id": "a" * 40,
    "loading": "0",
    "role": "master",
    "cluster_enabled": "0",
    "maxmemory": "1000000",
    "maxmemory_policy": "noeviction",
    "aof_enabled": "0",
}


def said(settings: dict[str, str] | None = None, **changes: str) -> Said:
    return Said({**GOOD, **changes}, settings or {})


def test_one_that_is_as_it_should_be_may_hold_frames_and_nothing_is_said() -> None:
    assert why_not(said().info, False, False) == "" and warnings(said()) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"redis_version": "6.2.14"}, "version 6.2.14 is too old"),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.0"}, ""),
        ({"redis_version": "255.255.255"}, ""),
        ({"redis_version": ""}, "does not say what it is"),
        ({"redis_version": "new"}, "does not say what it is"),
        ({"redis_version": "9" * 5000}, "does not say what it is"),
        ({"redis_version": "²"}, "does not say what it is"),
        ({"loading": "1"}, "still loading"),
        ({"role": "slave", "master_host": "10.0.0.1"}, "read-only replica of 10.0.0.1"),
        ({"role": ""}, "read-only replica of another"),
        ({"cluster_enabled": "1"}, "give ?cluster=yes"),
        ({"maxmemory_policy": "allkeys-lru"}, "maxmemory-policy allkeys-lru"),
        ({"maxmemory_policy": "volatile-ttl"}, "remote_copies=1 and a backing"),
    ],
)
def test_each_reason_is_one_line_that_says_what_to_do(changes: dict[str, str], expected: str) -> None:
    why = why_not(said(None, **changes).info, False, False)
    assert expected in why and bool(why) == bool(expected) and "\n" not in why


def test_what_may_be_thrown_out_is_allowed_where_it_is_on_the_backing_too() -> None:
    assert why_not(said(maxmemory_policy="allkeys-lru").info, False, True) == ""


def test_a_node_of_a_cluster_may_be_a_replica_and_one_that_stands_alone_is_no_node() -> None:
    assert why_not(said(cluster_enabled="1", role="slave").info, True, False) == ""
    assert "leave cluster=yes away" in why_not(said().info, True, False)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (said({"save": "3600 1"}), "writes what it holds to its disk"),
        (said(aof_enabled="1"), "writes what it holds to its disk"),
        (said(maxmemory="0"), "has no maxmemory"),
        (said({"save": ""}), ""),
    ],
)
def test_what_is_to_be_known_is_said(found: Said, expected: str) -> None:
    assert len(warnings(found)) == bool(expected) and expected in "".join(warnings(found))


def test_a_cluster_that_refuses_everything_or_has_no_replica_is_spoken_of() -> None:
    assert cluster_warnings(said({"cluster-require-full-coverage": "no"}), True) == []
    (line,) = cluster_warnings(said({"cluster-require-full-coverage": "yes"}), True)
    assert "cluster-require-full-coverage yes; set no" in line
    (line,) = cluster_warnings(said(), True)
    assert "it may not be asked" in line, "CONFIG is not everybody's"
    (line,) = cluster_warnings(said({"cluster-require-full-coverage": "no"}), False)
    assert "without a replica" in line

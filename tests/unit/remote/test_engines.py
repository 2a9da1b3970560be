"""The engines that the tests of the remote tier start: each does what those tests rely on."""

import contextlib
import os
import socket
import ssl
import time
from pathlib import Path

import pytest

from tests.support.engines import Engine, Refused, cluster, cluster_info, engines, wait_until
from tests.support.far_engines import cut_off


def links() -> list[str]:
    return sorted(link.name for link in Path("/sys/class/net").iterdir())


def ping(end: socket.socket) -> bytes:
    end.sendall(b"*1\r\n$4\r\nPING\r\n")
    return end.recv(100)


def test_an_engine_answers_at_its_socket_its_port_and_by_tls(tmp_path: Path) -> None:
    with Engine(tmp_path, port=0, tls_port=0, maxmemory=64 << 20, maxmemory_policy="allkeys-lru") as engine:
        assert engine.port and engine.tls_port and engine.port != engine.tls_port
        with socket.create_connection((engine.address, engine.port), 5) as end:
            assert ping(end) == b"+PONG\r\n"
        context = ssl.create_default_context(cafile=engine.certificate)
        plain = socket.create_connection((engine.address, engine.tls_port), 5)
        with context.wrap_socket(plain, server_hostname=engine.address) as end:
            assert ping(end) == b"+PONG\r\n"
        assert engine.call("CONFIG", "GET", "maxmemory") == [b"maxmemory", str(64 << 20).encode()]
        assert engine.info()["maxmemory_policy"] == "allkeys-lru"
        assert engine.url() == f"rediss://127.0.0.1:{engine.tls_port}"
        assert engine.url("a", "b@c", "redis", ca="x/y") == f"redis://a:b%40c@127.0.0.1:{engine.port}?ca=x%2Fy"
        assert engine.url(None, "b", "unix") == f"unix://:b@{engine.socket}"


def test_an_engine_keeps_values_and_counts_its_memory(tmp_path: Path) -> None:
    with Engine(tmp_path) as engine:
        before = engine.memory_bytes()
        assert engine.call("SET", b"key", bytes(1 << 20)) == b"OK"
        assert engine.call("GET", "key") == bytes(1 << 20) and engine.call("GET", "none") is None
        assert engine.call("UNLINK", "key", "none") == 1
        assert engine.call("SET", "key", bytes(1 << 20)) == b"OK"
        assert engine.memory_bytes() >= before + (1 << 20)
        with pytest.raises(Refused, match="unknown command"):
            engine.call("NONSENSE")


def test_users_have_their_rules_and_the_test_has_its_own(tmp_path: Path) -> None:
    users = ["default off", "alice on >secret ~zcache:alice:* +@all"]
    with Engine(tmp_path, users=users) as engine:
        assert engine.call("ACL", "WHOAMI") == b"tests"
        assert engine.call("AUTH", "alice", "secret") == b"OK"
        with pytest.raises(Refused, match="WRONGPASS"):
            engine.call("AUTH", "alice", "wrong")
        assert engine.url("alice", "secret") == f"unix://alice:secret@{engine.socket}"
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(str(engine.socket))
            assert ping(end).startswith(b"-NOAUTH")


def test_a_paused_engine_answers_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    with Engine(tmp_path) as engine:
        engine.pause()
        with pytest.raises(TimeoutError):
            engine.call("PING", timeout_seconds=0.1)
        engine.resume()
        assert engine.call("PING") == b"PONG"
        engine.pause()  # and is closed all the same


def test_an_engine_that_was_killed_starts_again_at_its_address_and_is_empty(tmp_path: Path) -> None:
    with Engine(tmp_path, port=0) as engine:
        engine.call("SET", "key", "value")
        port, pid = engine.port, engine.pid
        engine.kill()
        assert not engine.is_running
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((engine.address, port or 0), 5)
        engine.start()
        assert engine.call("DBSIZE") == 0
        assert engine.port == port and engine.pid != pid


def test_what_an_engine_says_as_it_ends_at_the_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nonsense"):
        Engine(tmp_path, settings={"nonsense": 1})


def test_engines_are_ended_whatever_happens(tmp_path: Path) -> None:
    started: list[Engine] = []
    with pytest.raises(KeyError), engines(tmp_path, 3, port=0) as all_three:
        started += all_three
        assert len({engine.port for engine in started}) == 3
        raise KeyError
    assert not any(engine.is_running for engine in started)
    for engine in started:
        with pytest.raises(ProcessLookupError):
            os.kill(engine.pid, 0)


def test_a_cluster_serves_and_goes_on_without_a_primary(tmp_path: Path) -> None:
    with cluster(tmp_path, node_timeout_ms=500) as nodes:
        assert [cluster_info(node)["cluster_size"] for node in nodes] == ["3"] * 3
        assert nodes[1].call("CLUSTER", "KEYSLOT", "{a}b") == 15495
        with pytest.raises(Refused, match=f"MOVED 15495 127.0.0.1:{nodes[2].port}"):
            nodes[0].call("SET", "{a}b", "value")
        assert nodes[2].call("SET", "{a}b", "value") == b"OK"
        nodes[0].kill()
        wait_until(lambda: cluster_info(nodes[2])["cluster_slots_fail"] != "0", "the others know that it is gone")
        assert nodes[2].call("GET", "{a}b") == b"value"


@pytest.mark.thorough
def test_a_replica_takes_over_from_its_primary(tmp_path: Path) -> None:
    with cluster(tmp_path, replicas=1, node_timeout_ms=500) as nodes:
        assert [node.info()["role"] for node in nodes] == ["master"] * 3 + ["slave"] * 3
        assert nodes[5].info()["master_port"] == str(nodes[2].port)
        nodes[2].kill()
        wait_until(lambda: nodes[5].info()["role"] == "master", "the replica takes over")
        nodes[2].start()
        wait_until(lambda: nodes[2].info()["role"] == "slave", "whoever comes back follows")


def test_an_engine_that_is_cut_off_is_silent_until_the_network_is_mended(tmp_path: Path) -> None:
    with cut_off(tmp_path) as engine:
        name = engine.namespace
        with socket.create_connection((engine.address, engine.port or 0), 5) as end:
            assert ping(end) == b"+PONG\r\n"
            engine.cut()
            end.settimeout(0.3)
            with pytest.raises(TimeoutError):
                ping(end)
            start = time.monotonic()
            with pytest.raises(TimeoutError):  # no word of an unreachable host
                socket.create_connection((engine.address, engine.port or 0), 0.5)
            assert time.monotonic() - start > 0.4
            assert engine.call("PING") == b"PONG"  # past the network
            engine.mend()
            end.settimeout(20)
            assert end.recv(100) == b"+PONG\r\n"
        with contextlib.closing(socket.create_connection((engine.address, engine.port or 0), 5)) as end:
            assert ping(end) == b"+PONG\r\n"
    assert not Path("/run/netns", name).exists() and not [link for link in links() if link.startswith(name)]


def test_no_network_is_left_of_an_engine_that_did_not_start(tmp_path: Path) -> None:
    before = links()
    with pytest.raises(OSError, match="nonsense"), cut_off(tmp_path, settings={"nonsense": 1}):
        pass
    assert links() == before

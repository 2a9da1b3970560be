"""A Cluster as a place for copies: lanes at different primaries, failover and failback, and slots
that go to other nodes."""

import contextlib
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import Engine, Refused, cluster, cluster_info, wait_until
from tests.support.remote import Far, frame_of, keys_at, sections
from zcache.remote.cluster import (
    SLOTS,
    Node,
    Shard,
    choose_tags,
    crc16,
    has_replicas,
    parse_shards,
    primary_of,
    slot_of_tag,
)

pytestmark = pytest.mark.slow  # a Cluster takes 2 s to come together


def url_of(node: Engine) -> str:
    return node.url(scheme="redis", cluster="yes")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Engine]]:
    with cluster(tmp_path_factory.mktemp("cluster"), 3, node_timeout_ms=500) as made:
        yield made


@pytest.fixture
def nodes(running: list[Engine]) -> list[Engine]:
    """All of them run, and are empty; slots are where the last test has left them."""
    for node in running:
        if not node.is_running:
            node.start()
    for node in running:
        wait_until(lambda node=node: is_whole(node), "all are seen by all")  # type: ignore[misc]
        node.call("FLUSHALL")
    return running


@pytest.fixture
def doubled(tmp_path: Path) -> Iterator[list[Engine]]:
    """Three primaries and a replica of each."""
    with cluster(tmp_path, 3, replicas=1, node_timeout_ms=500) as made:
        yield made


def is_whole(node: Engine) -> bool:
    found = cluster_info(node)
    return found["cluster_state"] == "ok" and found["cluster_slots_ok"] == str(SLOTS)


def node_of(far: Far, lane: int, nodes: list[Engine]) -> Engine:
    node = far.engines.node_of(far.copies.peers[lane])
    assert node
    return next(engine for engine in nodes if engine.port == node.port)


def all_keys(far: Far, nodes: list[Engine]) -> set[bytes]:
    """Of frames, at primaries."""
    return {
        key
        for engine in nodes
        if engine.is_running and engine.info()["role"] == "master"
        for key in far.frames_at(engine)
    }


def agree(far: Far, nodes: list[Engine]) -> None:
    far.check()
    assert all(far.copies_of(slot) == 2 for slot in far.held)
    assert all_keys(far, nodes) == set.union(*(far.expected_at(peer.lane) for peer in far.copies.peers))
    assert far.copies.counters.remote_lost_frames == 0


# -- the map
# -------------------------------------------------------------------------------------------------


def test_the_hash_is_the_clusters() -> None:
    """The check value of CRC-16/XMODEM, and what the specification's own example says."""
    assert crc16(b"123456789") == 0x31C3
    assert slot_of_tag(b"user1000") == crc16(b"user1000") % SLOTS == 3443


def test_what_is_not_understood_of_a_map_is_left_out() -> None:
    good = [0, 100, [b"10.0.0.1", 7000, b"id", []]]
    assert parse_shards([good]) == [Shard(0, 100, (Node("10.0.0.1", 7000, "id"),))]
    assert parse_shards(None) == parse_shards([]) == parse_shards([[1], 7, [0, 1], [b"0", 1, []]]) == []
    for port in (-1, 0, 65536, 70000, 1 << 62):
        assert parse_shards([[0, 100, [b"10.0.0.1", port, b"id"], [b"10.0.0.2", 7000, b"replica"]]]) == []
    assert parse_shards([[0, 1, [b"", 7000, b"id"]], [0, 1, [None, 7000, b"id"]], good]) == parse_shards([good])


def test_a_node_is_where_its_address_is_and_no_name_is_looked_up() -> None:
    """Answers of Redis 7.0.15, by its cluster-preferred-endpoint-type."""
    ip, name = [b"ip", b"10.0.0.1"], [b"hostname", b"node.example"]
    expected = [Shard(0, 100, (Node("10.0.0.1", 7000, "id"),))]
    assert parse_shards([[0, 100, [b"10.0.0.1", 7000, b"id", name]]]) == expected
    assert parse_shards([[0, 100, [b"node.example", 7000, b"id", ip]]]) == expected
    assert parse_shards([[0, 100, [None, 7000, b"id", [*name, *ip]]]]) == expected
    assert parse_shards([[0, 100, [b"10.0.0.1", 7000, b"id", []], [b"node.example", 7001, b"b", name]]]) == expected
    assert parse_shards([[0, 100, [b"::1", 7000, b"id", name]]])[0].nodes[0].host == "::1"
    for endpoint in (b"node.example", b"?", b"", None, b"10.0.0.1 ", b"\xff", b"10.0.0.1\0"):
        row = [0, 100, [endpoint, 7000, b"id", [b"hostname", b"10.0.0.1"]], [b"10.0.0.2", 7001, b"replica", []]]
        assert parse_shards([row]) == [], "a replica is no primary"


def test_each_primary_has_a_tag(nodes: list[Engine]) -> None:
    shards = parse_shards(nodes[0].call("CLUSTER", "SLOTS"))
    tags = choose_tags(shards)
    assert len(tags) == 3
    for tag, engine in zip(tags, nodes, strict=True):
        found = primary_of(shards, tag)
        assert found and found.port == engine.port
        assert nodes[1].call("CLUSTER", "KEYSLOT", b"x{" + tag + b"}y") == slot_of_tag(tag)


# -- primaries alone
# -------------------------------------------------------------------------------------------------


def test_the_two_copies_are_at_two_primaries(nodes: list[Engine], rng: random.Random) -> None:
    far = Far([url_of(nodes[1])])
    far.fill(rng, 48)
    assert far.copies.at == [32, 32, 32]
    assert [len(far.frames_at(node)) for node in nodes] == [32, 32, 32]
    assert all(b"{" in key for key in all_keys(far, nodes))
    far.settle()
    agree(far, nodes)
    far.mender.farewell(5.0)
    assert not any(map(keys_at, nodes))
    far.close()


def test_a_primary_that_is_killed_costs_no_page_and_is_given_its_copies_again(
    nodes: list[Engine], rng: random.Random
) -> None:
    far = Far([url_of(nodes[0])])
    far.fill(rng, 24)
    nodes[0].kill()  # whose URL was given
    far.check()
    far.turn()
    far.write([frame_of(rng) for _ in range(4)])
    far.check()
    nodes[0].start()
    wait_until(lambda: is_whole(nodes[0]) and is_whole(nodes[1]), "it is back, and seen by the others")
    far.settle()
    agree(far, nodes)
    far.close()


def test_a_quota_is_divided_among_the_lanes(nodes: list[Engine], rng: random.Random) -> None:
    far = Far([url_of(nodes[0])])
    far.fill(rng, 8)
    for node in nodes:
        with contextlib.suppress(Refused):  # the one that has the key
            node.call("SET", "zcache:quota:default", 3 << 20)
    far.turn()
    far.turn()
    assert [peer.limit_bytes for peer in far.copies.peers] == [1 << 20] * 3
    far.close()


def test_a_slot_that_is_moved_by_hand_is_followed(nodes: list[Engine], rng: random.Random) -> None:
    """With its keys: the word is there, the run is another, so each copy is looked for."""
    far = Far([url_of(nodes[0])])
    far.fill(rng, 24)
    lane = next(peer.lane for peer in far.copies.peers if node_of(far, peer.lane, nodes) is nodes[0])
    tag = far.copies.peers[lane].prefix.partition(b"{")[2].partition(b"}")[0]
    slot, (source, target) = slot_of_tag(tag), nodes[:2]
    move_slot(slot, source, target, nodes)
    far.check()
    far.settle()
    agree(far, nodes)
    assert node_of(far, lane, nodes) is target and not far.frames_at(source)
    assert far.copies.counters.remirrored_frames == 0, "all have arrived"
    far.fill(rng, 8)
    agree(far, nodes)
    third = next(peer.lane for peer in far.copies.peers if node_of(far, peer.lane, nodes) is nodes[2])
    tag = far.copies.peers[third].prefix.partition(b"{")[2].partition(b"}")[0]
    move_slot(slot_of_tag(tag), nodes[2], target, nodes)
    far.check()
    far.settle()
    assert any("one node of the Cluster" in trouble for trouble in far.mender.troubles())
    far.close()


def move_slot(slot: int, source: Engine, target: Engine, nodes: list[Engine]) -> None:
    """As an operator's tool does."""
    names = {node.socket: node.call("CLUSTER", "MYID") for node in (source, target)}
    from_name, to_name = names[source.socket], names[target.socket]
    assert isinstance(from_name, bytes) and isinstance(to_name, bytes)
    target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", from_name)
    source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", to_name)
    keys = source.call("CLUSTER", "GETKEYSINSLOT", slot, 10000)
    assert isinstance(keys, list)
    for key in keys:
        assert isinstance(key, bytes)
        assert source.call("MIGRATE", target.address, target.port or 0, key, 0, 5000) == b"OK"
    for node in (target, source, *nodes):
        node.call("CLUSTER", "SETSLOT", slot, "NODE", to_name)


def test_what_is_asked_while_a_slot_is_on_its_way_comes_from_the_other_copy(
    nodes: list[Engine], rng: random.Random
) -> None:
    far = Far([url_of(nodes[0])])
    far.fill(rng, 24)
    tag = far.copies.peers[0].prefix.partition(b"{")[2].partition(b"}")[0]
    slot, source = slot_of_tag(tag), node_of(far, 0, nodes)
    target = next(node for node in nodes if node is not source)
    from_name, to_name = source.call("CLUSTER", "MYID"), target.call("CLUSTER", "MYID")
    assert isinstance(from_name, bytes) and isinstance(to_name, bytes)
    target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", from_name)
    source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", to_name)
    keys = source.call("CLUSTER", "GETKEYSINSLOT", slot, 5)
    assert isinstance(keys, list)
    for key in keys:
        assert isinstance(key, bytes)
        source.call("MIGRATE", target.address, target.port or 0, key, 0, 5000)
    for _ in range(4):
        far.check()
        far.turn()
    assert far.copies.counters.remote_lost_frames == 0
    move_slot(slot, source, target, nodes)
    far.settle()
    agree(far, nodes)
    far.close()


# -- with replicas
# -------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_replica_takes_its_primarys_place_and_gives_it_back(doubled: list[Engine], rng: random.Random) -> None:
    """The word is the same and the run another: copies are looked for, one by one, and those that
    the replica did not have are made again."""
    wait_until(lambda: has_replicas(parse_shards(doubled[0].call("CLUSTER", "SLOTS"))), "all know of the replicas")
    far = Far([url_of(doubled[0])])
    assert not any("without a replica" in line for line in far.said)
    far.fill(rng, 24)
    primary, replica = doubled[0], doubled[3]
    wait_until(lambda: len(keys_at(replica)) == len(keys_at(primary)), "all are replicated")
    replica.pause()
    primary.call("CLIENT", "KILL", "TYPE", "replica")
    with contextlib.ExitStack() as stack:
        stack.callback(replica.resume)
        for slot in list(far.held)[:8]:  # which the replica will never hear of
            frame = frame_of(rng)
            far.tier.write(slot, [frame])
            far.held[slot] = bytes(frame)
        primary.kill()
    far.check()
    wait_until(lambda: replica.info()["role"] == "master", "it takes over")
    far.check()
    far.settle()
    agree(far, doubled)
    assert 0 < far.copies.counters.remirrored_frames <= 8
    before = far.copies.counters.remirrored_frames
    primary.start()
    wait_until(lambda: primary.info().get("master_link_status") == "up", "it is the other one's replica")
    primary.call("CLUSTER", "FAILOVER", "TAKEOVER")
    wait_until(lambda: primary.info()["role"] == "master", "and takes its place back")
    far.check()
    far.settle()
    agree(far, doubled)
    assert far.copies.counters.remirrored_frames == before, "nothing was lost on the way back"
    far.close()


def test_a_successor_goes_on_with_the_tags_that_there_were(nodes: list[Engine], rng: random.Random) -> None:
    image = sections(64)
    far = Far([url_of(nodes[0])], image=image)
    far.fill(rng, 24)
    far.close()
    held = far.held
    nodes[0].kill()
    far = Far([url_of(nodes[0]), url_of(nodes[1])], image=image, is_successor=True)
    for slot in held:
        far.tier.take_over(slot)
    far.held = held
    far.turn()
    far.check()
    assert re.search(rb"\{\d+\}", far.copies.peers[0].prefix)
    far.close()

"""A Cluster: which primary has which of the 16,384 slots, and tags whose keys go to each.

The engine's own sharding and failover are used as they are. What is ours is where the two copies
of a frame go: to two *lanes*, each a hash tag, which at the start are at different primaries. A
lane keeps its tag for as long as the swap lives, and goes where its slot goes; that all of them
have come to one primary is seen, and said.

Source of the hash: the Cluster specification (CRC-16/XMODEM of what is between the braces, modulo
16,384).
"""

import contextlib
import itertools
import socket
from typing import Final, NamedTuple

from zcache.remote.url import Address

SLOTS: Final = 16384


class Node(NamedTuple):
    """A primary, or a replica of one."""

    host: str  # an address, never a name
    port: int
    id: str


class Shard(NamedTuple):
    """A run of slots, and who has them, the primary first."""

    first: int
    last: int
    nodes: tuple[Node, ...]


def crc16(data: bytes) -> int:
    """CRC-16/XMODEM."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def slot_of_tag(tag: bytes) -> int:
    """Of all keys with this tag in braces."""
    return crc16(tag) % SLOTS


def parse_shards(reply: object) -> list[Shard]:
    """An answer to CLUSTER SLOTS; what is not understood is left out, and so is who has no address:
    the name service is not asked here. A run of slots goes with its primary."""
    shards = []
    for row in reply if isinstance(reply, list) else ():
        if not (isinstance(row, list) and len(row) >= 3 and isinstance(row[0], int) and isinstance(row[1], int)):
            continue
        primary, *replicas = map(_parse_node, row[2:])
        if primary:
            shards.append(Shard(row[0], row[1], (primary, *filter(None, replicas))))
    return shards


def _parse_node(node: object) -> Node | None:
    """By the endpoint that the Cluster prefers, if that is an address; or by its `ip`, which
    follows (Redis 7: names and values in turn)."""
    if not (isinstance(node, list) and len(node) >= 3 and isinstance(node[1], int) and isinstance(node[2], bytes)):
        return None
    if not 0 < node[1] < 65536:
        return None
    more = node[3] if len(node) > 3 and isinstance(node[3], list) else []
    ips = [value for name, value in zip(more[::2], more[1::2], strict=False) if name == b"ip"]
    host = next((each.decode() for each in (node[0], *ips) if _is_address(each)), "")
    return Node(host, node[1], node[2].decode("ascii", "replace")) if host else None


def _is_address(host: object) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            return isinstance(host, bytes) and bool(socket.inet_pton(family, host.decode()))
    return False


def primaries(shards: list[Shard]) -> list[Node]:
    """Each once, in the order of the first slot that it has."""
    return list(dict.fromkeys(shard.nodes[0] for shard in sorted(shards)))


def primary_of(shards: list[Shard], tag: bytes) -> Node | None:
    """Who has a tag's keys; None: nobody does, or it is not known."""
    slot = slot_of_tag(tag)
    return next((shard.nodes[0] for shard in shards if shard.first <= slot <= shard.last), None)


def choose_tags(shards: list[Shard]) -> list[bytes]:
    """For each primary a tag whose keys it has: the smallest number that does."""
    tags = []
    for node in primaries(shards):
        for number in itertools.count():
            tag = str(number).encode()
            if primary_of(shards, tag) == node:
                tags.append(tag)
                break
            if number > 64 * SLOTS:  # a primary without slots is in no shard, so this is not reached
                break
    return tags


def has_replicas(shards: list[Shard]) -> bool:
    """Whether each primary has one that could take its place."""
    return all(len(shard.nodes) > 1 for shard in shards)


def address_of(node: Node) -> Address:
    """Where it is, by the address that the Cluster itself gives."""
    family = socket.AF_INET6 if ":" in node.host else socket.AF_INET
    return Address(family, (node.host, node.port))

"""What client, keeper and pager say to each other.

To a client, each pager begins with its *era*, the count of pagers before it: on its socket
`{"number": 0, "era": 3}`, and where pages are forgotten (3, 0). A request names the era and a
number of its own; its answer repeats both. A pager does nothing that is asked in another era:
whoever waits for an answer when a new era is said asks again, and nobody else does. So a request is
done once for whoever waits, and never later: pages that somebody has written to since are not
forgotten.

Keeper and pager send each other packets of JSON with descriptors: `Packet`.
"""

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

#: A request to forget pages: era, number, the first page, the one behind the last.
FORGET: Final = struct.Struct("=QQQQ")
#: Its answer: era, number; 0 says the era.
FORGOTTEN: Final = struct.Struct("=QQ")

MAX_PACKET_BYTES: Final = 1 << 16
MAX_DESCRIPTORS: Final = 64


class Packet(NamedTuple):
    """Of what kind it is, and what belongs to that."""

    kind: str
    words: dict[str, Any]
    descriptors: Sequence[int] = ()


def send(channel: socket.socket, packet: Packet) -> None:
    """Whole, or not at all. Raises `OSError` if nobody is there to hear it."""
    socket.send_fds(channel, [json.dumps([packet.kind, packet.words]).encode()], packet.descriptors)


def receive(channel: socket.socket) -> Packet | None:
    """The next one; None if the other end is closed."""
    try:
        data, descriptors, _, _ = socket.recv_fds(channel, MAX_PACKET_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:  # it had not read all; what it has said comes after that
        data, descriptors, _, _ = socket.recv_fds(channel, MAX_PACKET_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    kind, words = json.loads(data)
    return Packet(kind, words, descriptors)

"""What keeper and pager say to each other arrives, whenever one of them ends."""

import os
import socket

import pytest

from zcache.pager import messages
from zcache.pager.messages import Packet


@pytest.fixture
def ends() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_words_and_descriptors(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    with ours, theirs, open("/dev/zero", "rb") as file:  # noqa: PTH123
        messages.send(ours, Packet("region", {"number": 3}, [file.fileno(), ours.fileno()]))
        packet = messages.receive(theirs)
        assert packet and (packet.kind, packet.words) == ("region", {"number": 3})
        assert os.read(packet.descriptors[0], 2) == bytes(2)
        for descriptor in packet.descriptors:
            os.close(descriptor)


def test_the_last_words_of_one_that_did_not_listen(ends: tuple[socket.socket, socket.socket]) -> None:
    """The kernel says first that the connection was reset."""
    ours, theirs = ends
    with ours:
        messages.send(ours, Packet("region", {}))
        messages.send(theirs, Packet("refused", {"why": "no such codec"}))
        messages.send(theirs, Packet("more", {}))
        theirs.close()
        assert messages.receive(ours) == Packet("refused", {"why": "no such codec"}, [])
        assert messages.receive(ours) == Packet("more", {}, [])
        assert messages.receive(ours) is None

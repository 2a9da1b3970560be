"""What a pager says to a client, and what it does not do: wait for it."""

import contextlib
import json
import socket

from zcache.pager.messages import FORGOTTEN
from zcache.pager.serving import Client, Request


def arrived(end: socket.socket) -> bytes:
    heard = b""
    with contextlib.suppress(BlockingIOError):
        while part := end.recv(1 << 20, socket.MSG_DONTWAIT):
            heard += part
    return heard


def words_in(heard: bytes) -> list[dict[str, int]]:
    return [json.loads(line) for line in heard.split(b"\n") if line]


def test_a_client_that_never_listens_holds_no_pager_up() -> None:
    """Each of some thousand pagers has greeted it; the last one says its era when it is asked."""
    ours, its = socket.socketpair()
    our_forgetting, its_forgetting = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    eras = 3000
    with ours, its, our_forgetting, its_forgetting:
        for era in range(eras):
            client = Client(its, its_forgetting, era)
            client.greet()
        assert client.unsent
        said = words_in(arrived(ours))
        assert [words["era"] for words in said] == list(range(len(said))) and 50 < len(said) < eras
        client.unsent = b""  # as of one that was killed
        ours.sendall(b"7 1 status\n7 2 status\n")
        assert client.asked() == []
        assert words_in(arrived(ours)) == [{"era": eras - 1, "number": 0}]
        ours.sendall(b"%d 3 for" % (eras - 1))
        assert client.asked() == []
        ours.sendall(b"get 5 6\n")
        assert client.asked() == [Request(3, "forget", 5, 6)]
        assert FORGOTTEN.unpack(our_forgetting.recv(FORGOTTEN.size)) == (0, 0)
        ours.shutdown(socket.SHUT_WR)
        assert client.asked() is None


def test_answers_that_nobody_reads_arrive_once_somebody_does() -> None:
    ours, its = socket.socketpair()
    with ours, its:
        client = Client(its, its, 0)
        its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for number in range(100):
            client.answer({"number": number, "words": "x" * 1000})
        assert client.unsent
        heard = b""
        while client.unsent:
            heard += arrived(ours)
            client.send()
        heard += arrived(ours)
        assert [words["number"] for words in words_in(heard)] == list(range(100))


def test_what_a_pager_was_saying_when_it_died_is_no_part_of_what_the_next_one_says() -> None:
    ours, its = socket.socketpair()
    with ours, its:
        its.sendall(b'{"era": 0, "numb')
        Client(its, its, 1).greet()
        assert arrived(ours).startswith(b'{"era": 0, "numb\n{"era": 1, "number": 0}\n')

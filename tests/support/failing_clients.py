"""Clients of an NBD server that get nowhere, one function for each way: called with the server's
Unix socket and a number, it has connected and gone when it returns, whatever the server said.

The protocol as its specification has it (doc/proto.md of the NBD project), by hand: a library does
not do such things.
"""

import contextlib
import random
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

Client = Callable[[Path, int], None]

_HELLO_BYTES: Final = 18
_FLAGS: Final = 3  # fixed newstyle, no zeroes
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_LIST, _OPT_STARTTLS, _OPT_GO = 1, 2, 3, 5, 7
_REPLY: Final = struct.Struct(">QIII")
_REQUEST: Final = struct.Struct(">IHHQQI")
_REQUEST_MAGIC: Final = 0x25609513
_CMD_READ, _CMD_WRITE = 0, 1
_ACK: Final = 1
_IS_ERROR: Final = 1 << 31
_SECONDS: Final = 20


class _Connection:
    """The client's end, in which anything may be sent."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(_SECONDS)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise

    def take(self, count: int) -> bytes:
        """So many bytes, or as many as came before the end."""
        taken = b""
        while len(taken) < count:
            more = self.socket.recv(count - len(taken))
            if not more:
                break
            taken += more
        return taken

    def greet(self, flags: int = _FLAGS) -> None:
        assert len(self.take(_HELLO_BYTES)) == _HELLO_BYTES
        self.socket.sendall(struct.pack(">I", flags))

    def option(self, number: int, data: bytes = b"", length: int | None = None) -> None:
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data) if length is None else length) + data)

    def reply(self) -> int:
        """The type of one reply to an option; 0 if the connection has ended."""
        head = self.take(_REPLY.size)
        if len(head) < _REPLY.size:
            return 0
        _, _, kind, length = _REPLY.unpack(head)
        self.take(length)
        return int(kind)

    def agrees(self) -> bool:
        """Whether the server's last reply to an option is that it does."""
        while (kind := self.reply()) != _ACK:
            if kind == 0 or kind & _IS_ERROR:
                return False
        return True

    def go(self, name: bytes = b"") -> bool:
        """Whether there is such an export."""
        self.option(_OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        return self.agrees()

    def request(self, command: int, offset: int = 0, length: int = 4096, magic: int = _REQUEST_MAGIC) -> None:
        self.socket.sendall(_REQUEST.pack(magic, 0, command, 1, offset, length))

    def wait_for_end(self) -> None:
        with contextlib.suppress(ConnectionError):
            while self.socket.recv(1 << 16):
                pass


@contextlib.contextmanager
def _connection(path: Path) -> Iterator[_Connection]:
    """Closed at the end, by which the server sees it too; that it has hung up before is no
    failure."""
    connection = _Connection(path)
    with connection.socket, contextlib.suppress(ConnectionError):
        yield connection


@contextlib.contextmanager
def _served(path: Path) -> Iterator[_Connection]:
    """Past the handshake."""
    with _connection(path) as connection:
        try:
            connection.greet()
            is_served = connection.go()
        except ConnectionError as error:
            raise AssertionError("the server has hung up in the handshake") from error
        assert is_served
        yield connection


def leaves_at_once(path: Path, number: int) -> None:  # noqa: ARG001
    with _connection(path):
        pass


def leaves_in_the_greeting(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.take(number % _HELLO_BYTES)
        connection.socket.sendall(b"\0" * (number % 4))


def has_unknown_flags(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.greet(0xFFFF0000 | number & 0xFFFF)
        connection.wait_for_end()


def sends_garbage(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.greet()
        connection.socket.sendall(random.Random(number).randbytes(64))
        connection.wait_for_end()


def asks_for_an_unknown_export(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.greet()
        assert not connection.go(f"nosuch{number}".encode())


def asks_for_an_unknown_export_the_old_way(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.greet()
        connection.option(_OPT_EXPORT_NAME, f"nosuch{number}".encode())
        connection.wait_for_end()


def asks_for_a_name_that_is_not_utf8(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.greet()
        assert not connection.go(b"\xff%d" % number)


def asks_for_a_name_with_a_nul(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.greet()
        connection.go(b"\0%d" % number)


def asks_for_too_long_a_name(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.greet()
        connection.go(b"n" * (4097 + number % 1000))


def asks_for_one_unknown_export_after_another(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.greet()
        for turn in range(1 + number % 8):
            assert not connection.go(b"nosuch%d" % turn)


def sends_an_unknown_option(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.greet()
        connection.option(1000 + number)
        connection.reply()
        connection.option(_OPT_ABORT)
        connection.reply()


def sends_half_an_option(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.greet()
        connection.option(_OPT_GO, b"x" * (number % 100), length=1000)


def sends_too_long_an_option(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.greet()
        connection.option(_OPT_GO, b"x" * (number % 100), length=1 << 30)
        connection.wait_for_end()


def never_chooses(path: Path, number: int) -> None:  # noqa: ARG001
    with _connection(path) as connection:
        connection.greet()
        for _ in range(40):
            connection.option(_OPT_LIST)
            connection.agrees()


def wants_tls_where_there_is_none(path: Path, number: int) -> None:  # noqa: ARG001
    with _connection(path) as connection:
        connection.greet()
        connection.option(_OPT_STARTTLS)
        assert connection.reply() != _ACK


def sends_half_a_request(path: Path, number: int) -> None:
    with _served(path) as connection:
        connection.socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, 0, 1, 0, 4096)[: number % _REQUEST.size])


def sends_no_request(path: Path, number: int) -> None:
    with _served(path) as connection:
        connection.request(_CMD_READ, magic=number)
        connection.wait_for_end()


def sends_an_unknown_command(path: Path, number: int) -> None:
    with _served(path) as connection:
        connection.request(100 + number % 60_000)
        connection.take(16)


def reads_out_of_range(path: Path, number: int) -> None:
    with _served(path) as connection:
        connection.request(_CMD_READ, 1 << 50 | number)
        connection.take(16)


def reads_too_much(path: Path, number: int) -> None:
    with _served(path) as connection:
        connection.request(_CMD_READ, 0, 0xFFFFFFFF - number)
        connection.take(16)


def writes_too_much(path: Path, number: int) -> None:
    with _served(path) as connection:
        connection.request(_CMD_WRITE, 0, 0xFFFFFFFF - number)
        connection.wait_for_end()


def sends_half_of_what_it_writes(path: Path, number: int) -> None:
    with _served(path) as connection:
        connection.request(_CMD_WRITE)
        connection.socket.sendall(b"x" * (number % 4096))


def does_not_wait_for_replies(path: Path, number: int) -> None:
    with _served(path) as connection:
        for _ in range(1 + number % 8):
            connection.request(_CMD_READ, 0, 1 << 18)


#: Of a server without TLS, with clean exports.
PLAIN: Final[tuple[Client, ...]] = (
    leaves_at_once,
    leaves_in_the_greeting,
    has_unknown_flags,
    sends_garbage,
    asks_for_an_unknown_export,
    asks_for_an_unknown_export_the_old_way,
    asks_for_a_name_that_is_not_utf8,
    asks_for_a_name_with_a_nul,
    asks_for_too_long_a_name,
    asks_for_one_unknown_export_after_another,
    sends_an_unknown_option,
    sends_half_an_option,
    sends_too_long_an_option,
    never_chooses,
    wants_tls_where_there_is_none,
    sends_half_a_request,
    sends_no_request,
    sends_an_unknown_command,
    reads_out_of_range,
    reads_too_much,
    writes_too_much,
    sends_half_of_what_it_writes,
    does_not_wait_for_replies,
)


def has_no_tls(path: Path, number: int) -> None:  # noqa: ARG001
    with _connection(path) as connection:
        connection.greet()
        assert not connection.go()


def leaves_when_tls_begins(path: Path, number: int) -> None:  # noqa: ARG001
    with _connection(path) as connection:
        connection.greet()
        connection.option(_OPT_STARTTLS)
        assert connection.reply() == _ACK


def sends_garbage_for_tls(path: Path, number: int) -> None:
    with _connection(path) as connection:
        connection.greet()
        connection.option(_OPT_STARTTLS)
        assert connection.reply() == _ACK
        connection.socket.sendall(random.Random(number).randbytes(300))
        connection.socket.shutdown(socket.SHUT_WR)  # for it may begin like a message that is longer
        connection.wait_for_end()


def tears_the_handshake(path: Path, number: int) -> None:
    """After a share of its first message; after that; when the server has answered; when its own
    answer is sent."""
    _shake_hands(path, trusting=False, stop_at=number % 4, share=number)


def does_not_trust_the_server(path: Path, number: int) -> None:  # noqa: ARG001
    with contextlib.suppress(ssl.SSLError):
        _shake_hands(path, trusting=True)


def leaves_after_the_handshake(path: Path, number: int) -> None:  # noqa: ARG001
    _shake_hands(path, trusting=False)


#: Of a server that requires TLS, with a certificate.
TLS: Final[tuple[Client, ...]] = (
    has_no_tls,
    leaves_when_tls_begins,
    sends_garbage_for_tls,
    tears_the_handshake,
    does_not_trust_the_server,
    leaves_after_the_handshake,
)


def _shake_hands(path: Path, *, trusting: bool, stop_at: int = 100, share: int = 0) -> None:
    """A TLS handshake, torn before one of its messages. `trusting` only whom it knows, which is
    nobody here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not trusting:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with _connection(path) as connection:
        connection.greet()
        connection.option(_OPT_STARTTLS)
        assert connection.reply() == _ACK
        for turn in range(100):
            try:
                tls.do_handshake()
                is_over = True
            except ssl.SSLWantReadError:
                is_over = False
            finally:
                words = outgoing.read()
                if turn == stop_at // 2:
                    words = words[: share % (len(words) + 1)] if stop_at % 2 == 0 else words
                connection.socket.sendall(words)
            if is_over or turn == stop_at // 2:
                return
            more = connection.socket.recv(1 << 16)
            if not more:
                return
            incoming.write(more)

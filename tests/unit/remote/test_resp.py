"""Frames to and from an engine, the real one, and one that breaks the protocol."""

import contextlib
import errno
import os
import random
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from zcache.remote.resp import MAX_IN_FLIGHT, Connection, ProtocolError, Refused
from zcache.remote.url import Address, parse_url, resolve, tls_context

PROGRAM = next((p for p in ("/usr/bin/redis-check-rdb", "/usr/bin/valkey-check-rdb") if Path(p).exists()), "")
needs_engine = pytest.mark.skipif(not PROGRAM, reason="no redis-check-rdb or valkey-check-rdb")
SECONDS = 20.0
RIGHT, WRONG = "right-one", "other-one"
FRAME_BYTES = 65_520


@dataclass(frozen=True)
class Running:
    path: Path
    pid: int

    @property
    def address(self) -> Address:
        return Address(socket.AF_UNIX, str(self.path))

    def connect(self, user: str = "default", password: str = "", seconds: float = SECONDS) -> Connection:
        return Connection(self.address, user=user, password=password, seconds=seconds)


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return not probe.connect_ex(str(path))


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[Running]:
    path = folder / "engine.sock"
    words = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder), *options]
    with subprocess.Popen(words, executable=PROGRAM, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + SECONDS
            while not listens(path):
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            yield Running(path, server.pid)
        finally:
            server.kill()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as found:
        yield found


@pytest.fixture
def connection(engine: Running) -> Iterator[Connection]:
    with contextlib.closing(engine.connect()) as found:
        yield found


def keys_of(count: int) -> list[bytes]:
    return [b"zcache:default:0123:%d:1" % number for number in range(count)]


def in_parts(value: bytes, rng: random.Random) -> list[memoryview]:
    cuts = sorted(rng.randrange(len(value) + 1) for _ in range(rng.randrange(4)))
    return [memoryview(value)[a:b] for a, b in zip([0, *cuts], [*cuts, len(value)], strict=True)]


def buffers_of(count: int, length: int = FRAME_BYTES) -> list[memoryview]:
    return [memoryview(bytearray(length)) for _ in range(count)]


# The real one.


@needs_engine
@pytest.mark.parametrize("length", [FRAME_BYTES, 4096, 1, 300_000])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 40])
def test_what_was_set_is_got(connection: Connection, rng: random.Random, length: int, count: int) -> None:
    values = [rng.randbytes(length) for _ in range(count)]
    assert connection.set_all(keys_of(count), [in_parts(value, rng) for value in values], SECONDS) == [""] * count
    buffers = buffers_of(count, length)
    assert connection.get_all(keys_of(count), buffers, SECONDS) == [True] * count
    assert list(map(bytes, buffers)) == values
    assert connection.unlink_all(keys_of(count), SECONDS) == count
    assert connection.call("DBSIZE", seconds=SECONDS) == 0


@needs_engine
def test_a_batch_of_none_is_nothing(connection: Connection) -> None:
    assert not connection.set_all([], [], SECONDS) and not connection.get_all([], [], SECONDS)
    assert connection.unlink_all([], SECONDS) == 0


@needs_engine
def test_what_is_not_there_leaves_its_buffer_alone(connection: Connection) -> None:
    value = memoryview(b"x" * FRAME_BYTES)
    connection.set_all(keys_of(40)[::2], [[value]] * 20, SECONDS)
    buffers = buffers_of(40)
    assert connection.get_all(keys_of(40), buffers, SECONDS) == [True, False] * 20
    assert all(bytes(buffer) == (value if n % 2 == 0 else bytes(FRAME_BYTES)) for n, buffer in enumerate(buffers))
    assert connection.unlink_all(keys_of(40), SECONDS) == 20


@needs_engine
def test_two_engines_are_sent_to_before_either_has_answered(tmp_path: Path) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    with contextlib.ExitStack() as stack:
        connections = []
        for folder in folders:
            folder.mkdir()
            connections.append(stack.enter_context(contextlib.closing(stack.enter_context(running(folder)).connect())))
        values = [[memoryview(bytes([n]) * FRAME_BYTES)] for n in range(20)]
        for connection in connections:
            connection.begin_set(keys_of(20), values, SECONDS)
        for connection in connections:
            assert connection.end_set(SECONDS) == [""] * 20
            assert connection.call("DBSIZE", seconds=SECONDS) == 20


@needs_engine
def test_any_command_is_answered(connection: Connection) -> None:
    assert connection.call("PING", seconds=SECONDS) == b"PONG"
    assert connection.call("GET", b"none", seconds=SECONDS) is None
    assert connection.call("HSET", "account", "frames", 12, "host", "ä", seconds=SECONDS) == 2
    assert connection.call("HGETALL", "account", seconds=SECONDS) == [b"frames", b"12", b"host", "ä".encode()]
    assert connection.call("EVAL", "return {1, {'a', {}}, false}", 0, seconds=SECONDS) == [1, [b"a", []], None]
    information = connection.call("INFO", seconds=SECONDS)
    assert isinstance(information, bytes) and b"run_id:" in information


@needs_engine
def test_a_refusal_leaves_the_connection_open(connection: Connection) -> None:
    with pytest.raises(Refused) as refused:
        connection.call("NONSENSE", seconds=SECONDS)
    assert (refused.value.word, refused.value.errno) == ("ERR", errno.EIO) and "NONSENSE" in refused.value.text
    with pytest.raises(Refused, match="b"):
        connection.call("EVAL", "return {1, {err='ERR b'}, 2}", 0, seconds=SECONDS)
    assert connection.is_open and connection.call("PING", seconds=SECONDS) == b"PONG"


@needs_engine
def test_one_key_that_is_refused_does_not_shift_the_others(connection: Connection) -> None:
    keys, values = keys_of(9), [[memoryview(bytes([n]) * 4096)] for n in range(9)]
    connection.set_all(keys, values, SECONDS)
    connection.call("UNLINK", keys[4], seconds=SECONDS)
    connection.call("LPUSH", keys[4], "no string", seconds=SECONDS)
    buffers = buffers_of(9, 4096)
    assert connection.get_all(keys, buffers, SECONDS) == [True] * 4 + [False] + [True] * 4
    assert [buffer[0] for buffer in buffers] == [0, 1, 2, 3, 0, 5, 6, 7, 8]
    assert connection.get_all(keys[5:], buffers[:4], SECONDS) == [True] * 4
    assert [buffer[0] for buffer in buffers[:4]] == [5, 6, 7, 8]


@needs_engine
def test_a_wrong_password_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, "--requirepass", RIGHT) as engine:
        with pytest.raises(Refused) as refused:
            engine.connect(password=WRONG)
        assert refused.value.word == "WRONGPASS" and WRONG not in refused.value.text
        with contextlib.closing(engine.connect()) as stranger, pytest.raises(Refused, match="Authentication required"):
            stranger.call("PING", seconds=SECONDS)
        with contextlib.closing(engine.connect(password=RIGHT)) as connection:
            assert connection.call("PING", seconds=SECONDS) == b"PONG"


@needs_engine
def test_a_user_does_what_it_may_and_no_more(connection: Connection, engine: Running) -> None:
    connection.call("ACL", "SETUSER", "bob", "on", ">pw", "~zcache:bob:*", "+get", "+set", seconds=SECONDS)
    mine, others = [b"zcache:bob:1"], [b"zcache:eve:1"]
    value = [[memoryview(b"x" * 4096)]]
    with contextlib.closing(engine.connect("bob", "pw")) as bob:
        assert bob.set_all(mine + others, value * 2, SECONDS)[0] == ""
        (said,) = bob.set_all(others, value, SECONDS)
        assert said.startswith("NOPERM")
        with pytest.raises(Refused) as refused:
            bob.get_all(mine + others, buffers_of(2, 4096), SECONDS)
        assert refused.value.word == "NOPERM"
        with pytest.raises(Refused, match="NOPERM"):
            bob.unlink_all(mine, SECONDS)
        assert bob.get_all(mine, buffers_of(1, 4096), SECONDS) == [True]


@needs_engine
def test_a_user_without_a_password_logs_in(connection: Connection, engine: Running) -> None:
    connection.call("ACL", "SETUSER", "bob", "on", "nopass", "+acl|whoami", seconds=SECONDS)
    with contextlib.closing(engine.connect("bob")) as bob:
        assert bob.call("ACL", "WHOAMI", seconds=SECONDS) == b"bob"


@needs_engine
def test_an_engine_that_is_full_says_so_for_each_frame(connection: Connection) -> None:
    connection.call("CONFIG", "SET", "maxmemory", "4mb", seconds=SECONDS)
    values = [[memoryview(b"x" * FRAME_BYTES)]] * 100
    said = connection.set_all(keys_of(100), values, SECONDS)
    stored = [not text for text in said]
    assert stored[0] and not stored[-1] and said[-1].startswith("OOM ")
    assert connection.get_all(keys_of(100), buffers_of(100), SECONDS) == stored
    with pytest.raises(Refused) as refused:
        connection.call("SET", "a", b"x" * FRAME_BYTES, seconds=SECONDS)
    assert (refused.value.word, refused.value.errno) == ("OOM", errno.ENOSPC)


def ask_set(connection: Connection, seconds: float) -> object:
    return connection.set_all(keys_of(40), [[memoryview(b"x" * FRAME_BYTES)]] * 40, seconds)


def ask_get(connection: Connection, seconds: float) -> object:
    return connection.get_all(keys_of(2), buffers_of(2), seconds)


def ask_unlink(connection: Connection, seconds: float) -> object:
    return connection.unlink_all(keys_of(2), seconds)


def ask_ping(connection: Connection, seconds: float) -> object:
    return connection.call("PING", seconds=seconds)


ASK = [ask_set, ask_get, ask_unlink, ask_ping]


@needs_engine
@pytest.mark.parametrize("ask", ASK)
def test_an_engine_that_is_paused_is_given_up_in_time(
    engine: Running, connection: Connection, ask: Callable[[Connection, float], object]
) -> None:
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(TimeoutError) as late:
            ask(connection, 0.1)
        assert 0.1 <= time.monotonic() - began < 2 and late.value.errno == errno.ETIMEDOUT
        with pytest.raises(TimeoutError):
            engine.connect("bob", "pw", seconds=0.1)
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    assert not connection.is_open and connection.fileno() == -1
    with pytest.raises(OSError, match="closed"):
        ask(connection, SECONDS)


@needs_engine
@pytest.mark.parametrize("ask", ASK)
def test_an_engine_that_dies_is_an_error(
    engine: Running, connection: Connection, ask: Callable[[Connection, float], object]
) -> None:
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(ConnectionError):
        ask(connection, SECONDS)
    assert not connection.is_open


@pytest.mark.parametrize("port", [-1, 65536, 1 << 70])
def test_an_address_that_is_none_is_an_error(port: int) -> None:
    with pytest.raises(ProtocolError, match="no address"):
        Connection(Address(socket.AF_INET, ("127.0.0.1", port)), seconds=SECONDS)


def test_where_nobody_listens_there_is_no_connection(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Connection(Address(socket.AF_UNIX, str(tmp_path / "none")), seconds=SECONDS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            Connection(Address(socket.AF_INET, free.getsockname()), seconds=SECONDS)


# One that breaks the protocol.


@contextlib.contextmanager
def fake(folder: Path, *said: bytes, stays: bool = False) -> Iterator[Connection]:
    """Connected to one that says that, a chunk at a time, once it was asked something, and then
    hangs up, or says nothing more."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "fake.sock"))
        listener.listen()
        done = threading.Event()

        def serve() -> None:
            theirs, _ = listener.accept()
            with theirs, contextlib.suppress(OSError):
                theirs.recv(1 << 20)
                for chunk in said:
                    theirs.sendall(chunk)
                    if len(said) > 1:
                        time.sleep(0.0002)
                if stays:
                    done.wait(SECONDS)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            address = Address(socket.AF_UNIX, str(folder / "fake.sock"))
            with contextlib.closing(Connection(address, seconds=SECONDS)) as connection:
                yield connection
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\r\n",
        b"\x16\x03\x01\r\n",
        b"x" * 100_000,
        b"+" + b"x" * 100_000 + b"\r\n",
        b"$\r\n",
        b"$-2\r\n",
        b"$1_0\r\n",
        b"$ 1\r\n",
        b":+1\r\n",
        b"*-2\r\n",
        b"$9999999999999999999\r\n",
        b"$99999999999999999999999\r\n",
        b"*4294967296\r\n",
        b"*1\r\n" * 100,
        b"$5000000\r\n",
    ],
)
def test_garbage_closes_the_connection(tmp_path: Path, said: bytes, ask: Callable[[Connection, float], object]) -> None:
    with fake(tmp_path, said, stays=True) as connection:
        with pytest.raises(ProtocolError) as refused:
            ask(connection, SECONDS)
        assert refused.value.errno == errno.EPROTO and not connection.is_open


@pytest.mark.parametrize("said", [b"", b"$", b"$4\r\nab", b"$4\r\nabcd", b"$4\r\nabcd\r", b"$4\r\nabcd\r\n$4\r\n"])
def test_an_answer_that_breaks_off_is_an_error(tmp_path: Path, said: bytes) -> None:
    with fake(tmp_path, said) as connection:
        with pytest.raises(ConnectionResetError):
            connection.get_all(keys_of(2), buffers_of(2, 4), SECONDS)
        assert not connection.is_open


@pytest.mark.parametrize(
    "said", [b"$4\r\nabcdXY", b"$4\r\nabcde\r\n", b"$5\r\nabcd\r\n\n", b"+abcd\r\n", b"$4194305\r\n", b"$-2\r\n"]
)
def test_what_is_no_value_closes_the_connection(tmp_path: Path, said: bytes) -> None:
    with fake(tmp_path, said, stays=True) as connection:
        with pytest.raises(ProtocolError):
            connection.get_all(keys_of(1), buffers_of(1, 4), SECONDS)
        assert not connection.is_open


@pytest.mark.parametrize("said", [b"$4\r\nabcd\r\n+OK\r\n", b"$-1\r\n$", b"-ERR a\r\n-ERR b\r\n"])
def test_more_than_was_asked_for_closes_the_connection(tmp_path: Path, said: bytes) -> None:
    with fake(tmp_path, said, stays=True) as connection:
        with pytest.raises(ProtocolError, match="more came"):
            connection.get_all(keys_of(1), buffers_of(1, 4), SECONDS)
        assert not connection.is_open


def test_an_answer_that_comes_byte_by_byte_is_put_together(tmp_path: Path) -> None:
    said = b"$4\r\nabcd\r\n$-1\r\n-ERR a\r\n$4\r\nefgh\r\n"
    with fake(tmp_path, *(said[n : n + 1] for n in range(len(said))), stays=True) as connection:
        buffers = buffers_of(4, 4)
        with pytest.raises(Refused, match="ERR a"):
            connection.get_all(keys_of(4), buffers, SECONDS)
        assert list(map(bytes, buffers)) == [b"abcd", bytes(4), bytes(4), b"efgh"] and connection.is_open


def test_an_answer_that_comes_in_any_pieces_is_put_together(tmp_path: Path, rng: random.Random) -> None:
    values = [rng.randbytes(FRAME_BYTES) for _ in range(MAX_IN_FLIGHT)]
    said = b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in values)
    cuts = sorted(rng.randrange(len(said)) for _ in range(60))
    pieces = [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]
    with fake(tmp_path, *pieces, stays=True) as connection:
        buffers = buffers_of(MAX_IN_FLIGHT)
        assert connection.get_all(keys_of(MAX_IN_FLIGHT), buffers, SECONDS) == [True] * MAX_IN_FLIGHT
        assert list(map(bytes, buffers)) == values


def test_an_answer_that_drips_is_given_up_in_time(tmp_path: Path) -> None:
    with fake(tmp_path, *[b"x"] * 5000, stays=True) as connection:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.call("PING", seconds=0.2)
        assert time.monotonic() - began < 2 and not connection.is_open


def test_a_set_that_is_refused_in_the_middle_is_told_key_by_key(tmp_path: Path) -> None:
    with fake(tmp_path, b"+OK\r\n-OOM full\r\n-READONLY \x1b[31m\r\n+OK\r\n-\r\n", stays=True) as connection:
        said = connection.set_all(keys_of(5), [[memoryview(b"x")]] * 5, SECONDS)
        assert said == ["", "OOM full", "'READONLY \\x1b[31m'", "", "an error without a word"] and connection.is_open


def test_an_error_that_repeats_the_password_is_shown_without_it(tmp_path: Path) -> None:
    path = tmp_path / "fake.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            theirs, _ = listener.accept()
            with theirs:
                theirs.recv(4096)
                theirs.sendall(f"-ERR unknown command 'AUTH', with args beginning with: 'bob' '{RIGHT}'\r\n".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(Refused) as refused:
            Connection(Address(socket.AF_UNIX, str(path)), user="bob", password=RIGHT, seconds=SECONDS)
        thread.join()
        assert RIGHT not in str(refused.value) and "'bob' '…'" in str(refused.value)


# TLS.


@dataclass(frozen=True)
class Authority:
    """One that signs certificates: `folder` has ca.pem, cert.pem and key.pem, for 127.0.0.1."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, name: str) -> "Authority":
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        ca = cls._certificate(name, name, key, key, is_authority=True)
        own = ec.generate_private_key(ec.SECP256R1())
        (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        cert = cls._certificate("engine", name, own, key, is_authority=False)
        (folder / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        form = serialization.PrivateFormat.PKCS8
        pem = own.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        (folder / "key.pem").write_bytes(pem)
        return cls(folder)

    @staticmethod
    def _certificate(
        name: str, by: str, key: ec.EllipticCurvePrivateKey, by_key: ec.EllipticCurvePrivateKey, is_authority: bool
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        signs = is_authority
        usage = x509.KeyUsage(not signs, False, False, False, False, signs, signs, False, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, by)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by_key.public_key()), critical=False)
        )
        if not is_authority:
            names = x509.SubjectAlternativeName([x509.DNSName("engine"), x509.IPAddress(IPv4Address("127.0.0.1"))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(by_key, hashes.SHA256())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "authority", "ours")


@pytest.fixture
def tls_port(tmp_path: Path, authority: Authority) -> Iterator[int]:
    """Of an engine with TLS, which asks for a certificate, too."""
    folder = authority.folder
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    files = ["--tls-ca-cert-file", f"{folder}/ca.pem", "--tls-cert-file", f"{folder}/cert.pem"]
    files += ["--tls-key-file", f"{folder}/key.pem"]
    with running(tmp_path, "--tls-port", str(port), "--bind", "127.0.0.1", *files):
        yield port


def connect_tls(text: str) -> Connection:
    url = parse_url(text)
    return Connection(resolve(url)[0], tls=tls_context(url), server_name=url.server_name, seconds=SECONDS)


@needs_engine
def test_frames_go_over_tls(tls_port: int, authority: Authority, rng: random.Random) -> None:
    own = f"cert={authority.folder}/cert.pem&key={authority.folder}/key.pem"
    for name in ("", "&server_name=engine"):
        text = f"rediss://127.0.0.1:{tls_port}?ca={authority.folder}/ca.pem&{own}{name}"
        with contextlib.closing(connect_tls(text)) as connection:
            values = [rng.randbytes(FRAME_BYTES) for _ in range(40)]
            said = connection.set_all(keys_of(40), [in_parts(value, rng) for value in values], SECONDS)
            assert said == [""] * 40
            buffers = buffers_of(40)
            assert connection.get_all(keys_of(40), buffers, SECONDS) == [True] * 40
            assert list(map(bytes, buffers)) == values


@needs_engine
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("", "certificate refused: unable to get local issuer|certificate refused: self.signed"),
        ("ca={other}/ca.pem", "certificate refused"),
        ("ca={ours}/ca.pem&server_name=another", "certificate refused: Hostname mismatch"),
    ],
)
def test_an_engine_that_is_not_the_one_is_refused(
    tls_port: int, authority: Authority, tmp_path: Path, options: str, what: str
) -> None:
    other = Authority.make(tmp_path / "other", "another")
    chosen = options.format(ours=authority.folder, other=other.folder)
    with pytest.raises(ProtocolError, match=what) as refused:
        connect_tls(f"rediss://127.0.0.1:{tls_port}" + (f"?{chosen}" if chosen else ""))
    assert refused.value.errno == errno.EPROTO


@needs_engine
def test_a_client_without_a_certificate_is_refused(tls_port: int, authority: Authority) -> None:
    def ask() -> None:  # with TLS 1.3, the client learns of it from the first answer
        with contextlib.closing(connect_tls(f"rediss://127.0.0.1:{tls_port}?ca={authority.folder}/ca.pem")) as found:
            found.call("PING", seconds=SECONDS)

    with pytest.raises(OSError, match=r"TLS|closed|reset|pipe"):
        ask()


@needs_engine
def test_a_name_that_is_none_is_an_error(engine: Running) -> None:
    with pytest.raises(ProtocolError, match=r"TLS: server_name=\.foo: "):
        Connection(engine.address, tls=ssl.create_default_context(), server_name=".foo", seconds=SECONDS)


def test_an_engine_without_tls_is_given_up_in_time(engine: Running) -> None:
    url = parse_url("rediss://127.0.0.1")
    with pytest.raises(TimeoutError, match="no TLS handshake in time") as late:
        Connection(engine.address, tls=tls_context(url), server_name=url.server_name, seconds=0.2)
    assert late.value.errno == errno.ETIMEDOUT


@needs_engine
def test_an_engine_with_tls_that_is_asked_without_is_an_error(tls_port: int) -> None:
    connection = Connection(resolve(parse_url(f"redis://127.0.0.1:{tls_port}"))[0], seconds=SECONDS)
    with pytest.raises(ConnectionError):
        connection.call("PING", seconds=SECONDS)
    assert not connection.is_open

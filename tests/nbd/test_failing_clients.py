"""What clients that get nowhere can cost: nothing that lasts, however many come, and no more than
some lines of log.

Of each kind `MANY` here, and 20,000 with `-m thorough`.
"""

import contextlib
import datetime
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nbd
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.nbd.conftest import REPOSITORY, START_DEADLINE_SECONDS, RunningServer
from tests.support.failing_clients import PLAIN, TLS, Client
from zcache.control.ask import ask
from zcache.hardening.repeats import AGAIN, REST_SECONDS
from zcache.keeper import launch as keeper_process

ROUNDS = 4
CROWD = 64
MANY = 1000
VERY_MANY = 20_000

#: Less than an exception takes that nobody gives back, with what hangs on it.
LEAK_BYTES = sys.getsizeof(Exception())
#: What GnuTLS keeps for each thread that has ever asked it for random bytes (lib/random.c), and
#: nbdkit has a thread for each connection: as for every client of an nbdkit with TLS, whether it
#: gets anywhere or not (measured: 230 to 270).
RANDOM_STATE_BYTES = 320
#: What a client can bring nbdkit to say, in as many ways.
WORDS = 4

WORDS_OF_DEVICE = ("size=16M", "budget=4M", "overcommit=yes")
USER, KEY = "alice", "0123456789abcdef0123456789abcdef"


class Cost(NamedTuple):
    """Of a server, now."""

    locked_kib: int
    resident_kib: int
    malloc_bytes: int
    threads: int
    descriptors: int
    lines: int  # of its log, but for
    counts: int  # those that say how often others would have come


def cost_of(server: RunningServer) -> Cost:
    process = Path(f"/proc/{server.process.pid}")
    lines = server.log.read_text().splitlines()
    counts = sum(line.startswith(AGAIN) for line in lines)
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Cost(
        locked_kib=int(status["VmLck"].split()[0]),
        resident_kib=int(status["VmRSS"].split()[0]),
        malloc_bytes=ask(server.control, "objects")["malloc_bytes"],
        threads=int(status["Threads"]),
        descriptors=len(list((process / "fd").iterdir())),
        lines=len(lines) - counts,
        counts=counts,
    )


def settled_cost_of(server: RunningServer, least: Cost | None = None) -> Cost:
    """When the threads of all clients have ended."""
    deadline = time.monotonic() + START_DEADLINE_SECONDS
    while True:
        cost = cost_of(server)
        time.sleep(0.1)
        if (cost.threads, cost.descriptors) == (cost_of(server).threads, cost_of(server).descriptors) and (
            least is None or (cost.threads <= least.threads and cost.descriptors <= least.descriptors)
        ):
            return cost
        assert time.monotonic() < deadline, (least, cost)


def settle(server: RunningServer, clients: Sequence[Client]) -> None:
    """What stays of threads (glibc keeps stacks) and lies about in malloc's bins comes with the
    first clients, with as many at once as may ever be, and with whoever asks how much it is."""
    crowd = [connect(server) for _ in range(CROWD)]
    for client in crowd:
        client.shutdown()
    for number in range(MANY):
        clients[number % len(clients)](server.socket, number)
    for _ in range(MANY // 10):
        cost_of(server)


def bear(server: RunningServer, client: Client, count: int, each_bytes: int = LEAK_BYTES) -> None:
    """Have so many clients come, in rounds, and assert that none has cost `each_bytes`. What leaks
    does so in each round; malloc's own chips do not."""
    first = settled_cost_of(server)
    begin = time.monotonic()
    costs = [first]
    for turn in range(ROUNDS):
        for number in range(count // ROUNDS):
            client(server.socket, turn * count + number)
        costs.append(settled_cost_of(server, first))
    seconds = time.monotonic() - begin
    may_grow_bytes = count // ROUNDS * each_bytes
    pairs = list(itertools.pairwise(costs))
    assert min(after.malloc_bytes - before.malloc_bytes for before, after in pairs) < may_grow_bytes, costs
    assert min(after.resident_kib - before.resident_kib for before, after in pairs) < may_grow_bytes >> 10, costs
    assert min(after.locked_kib - before.locked_kib for before, after in pairs) < may_grow_bytes >> 10, costs
    last = costs[-1]
    assert last.lines - first.lines <= WORDS, server.log.read_text()
    may_count = last.lines * (len(REST_SECONDS) + seconds / REST_SECONDS[-1])
    assert last.counts - first.counts <= may_count, server.log.read_text()
    assert "Traceback" not in server.log.read_text()
    assert_serves(server)


def connect(server: RunningServer) -> Any:
    """A client as it should be."""
    client = nbd.NBD()
    client.set_export_name("device")
    client.set_tls(nbd.TLS_ALLOW)
    client.set_tls_verify_peer(False)
    if (server.socket.parent / "keys").exists():
        _use_key(client, server.socket.parent / "keys", USER)
    client.connect_unix(str(server.socket))
    return client


def _use_key(client: Any, keys: Path, user: str) -> None:
    client.set_tls(nbd.TLS_REQUIRE)
    client.set_tls_psk_file(str(keys))
    client.set_tls_username(user)


def assert_serves(server: RunningServer) -> None:
    """Other clients notice nothing."""
    client = connect(server)
    page = random.randbytes(4096)
    client.pwrite(page, 0)
    assert client.pread(4096, 0) == page
    client.shutdown()


#: A test with few clients of each kind, and once more with very many.
counts = pytest.mark.parametrize(
    "count", [pytest.param(MANY, id="many"), pytest.param(VERY_MANY, id="very-many", marks=pytest.mark.thorough)]
)


class WatchedServer(RunningServer):
    """That any client may be kept from."""

    def _answers(self) -> bool:
        return keeper_process.is_answering(self.control)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all kinds, with clean exports."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "disk").write_bytes(bytes(1 << 20))
    with running(folder, (*WORDS_OF_DEVICE, f"clean=data:{folder}/disk")) as server:
        settle(server, PLAIN)
        yield server


@contextlib.contextmanager
def running(folder: Path, words: tuple[str, ...], options: tuple[str, ...] = ()) -> Iterator[RunningServer]:
    server = WatchedServer(folder, words, options)
    try:
        yield server
        server.check()
    finally:
        assert server.stop() == 0, server.log.read_text()


@counts
@pytest.mark.parametrize("client", PLAIN, ids=lambda client: client.__name__)
def test_clients_that_get_nowhere_cost_nothing(plain: RunningServer, client: Client, count: int) -> None:
    bear(plain, client, count)


@pytest.fixture(scope="module")
def with_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One that requires TLS."""
    folder = tmp_path_factory.mktemp("certificate")
    make_certificate(folder)
    with running(folder, WORDS_OF_DEVICE, ("--tls=require", f"--tls-certificates={folder}")) as server:
        settle(server, TLS)
        yield server


@counts
@pytest.mark.parametrize("client", TLS, ids=lambda client: client.__name__)
def test_clients_that_come_to_nothing_with_tls_cost_nothing(
    with_certificate: RunningServer, client: Client, count: int
) -> None:
    bear(with_certificate, client, count, RANDOM_STATE_BYTES + LEAK_BYTES)


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One that requires TLS with pre-shared keys."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "keys").write_text(f"{USER}:{KEY}\n")
    (folder / "wrong-keys").write_text(f"{USER}:{KEY[::-1]}\nmallory:{KEY}\n")
    with running(folder, WORDS_OF_DEVICE, ("--tls=require", f"--tls-psk={folder}/keys")) as server:
        settle(server, [has_the_wrong_key, is_an_unknown_user])
        yield server


def has_the_wrong_key(path: Path, number: int) -> None:  # noqa: ARG001
    _is_refused(path, USER)


def is_an_unknown_user(path: Path, number: int) -> None:  # noqa: ARG001
    _is_refused(path, "mallory")


def _is_refused(path: Path, user: str) -> None:
    client = nbd.NBD()
    _use_key(client, path.parent / "wrong-keys", user)
    with pytest.raises(nbd.Error):
        client.connect_unix(str(path))


@counts
@pytest.mark.parametrize("client", [has_the_wrong_key, is_an_unknown_user], ids=lambda client: client.__name__)
def test_clients_without_the_key_cost_nothing(with_keys: RunningServer, client: Client, count: int) -> None:
    """And those who have it are served, by a server that has given up the file system."""
    assert with_keys.status()["hardening"]["least_privilege"]
    bear(with_keys, client, count, RANDOM_STATE_BYTES + LEAK_BYTES)


def test_keys_that_the_server_could_not_read_later_are_refused_at_the_start(tmp_path: Path) -> None:
    """Root reads everybody's files, until it gives up its privileges."""
    if os.geteuid():
        pytest.skip("only root has that to give up")
    keys = tmp_path / "keys"
    keys.write_text(f"{USER}:{KEY}\n")
    keys.chmod(0o600)
    os.chown(keys, 65534, 65534)
    command = [str(REPOSITORY / "scripts/serve"), "-U", str(tmp_path / "s"), "--tls=require", f"--tls-psk={keys}"]
    done = subprocess.run(
        [*command, *WORDS_OF_DEVICE], capture_output=True, text=True, timeout=START_DEADLINE_SECONDS, check=False
    )
    assert done.returncode == 1 and not (tmp_path / "s").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"zcache: --tls-psk={keys}: Permission denied") and "give a file that belongs to" in line


def make_certificate(folder: Path) -> None:
    """One that has signed itself, as nbdkit looks for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    for file in ("ca-cert.pem", "server-cert.pem"):
        (folder / file).write_bytes(pem)
    (folder / "server-key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )

"""Real engines (Redis, Valkey) to keep pages in: one, several, or a Cluster. One that the network
is cut off from is in far_engines.py.

A test asks an engine what it has by `call`, over its Unix socket and as a user of its own: neither
a network that is cut nor the test's rules for users are in the way. Nothing is written to a disk
unless `settings` say so, so whoever is killed and started again is empty, at the same address.
"""

import atexit
import contextlib
import datetime
import ipaddress
import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

#: redis-tools (Debian 12 and 13) and valkey-tools (13) have the server's program under this name:
#: it is told apart by how it is called.
_NAMES: Final = ("redis-check-rdb", "valkey-check-rdb", "redis-server", "valkey-server")
ENGINE: Final = Path(next(filter(None, map(shutil.which, _NAMES)), f"/usr/bin/{_NAMES[0]}"))
#: What a start takes on a machine that is busy, and a Cluster's.
START_SECONDS: Final = 30
#: The user that `call` is.
_USER: Final = "tests"
_SLOTS: Final = 16384

Reply = bytes | int | None | list[Any]


class Refused(RuntimeError):
    """What an engine says instead of a reply."""


class Engine:
    """One server that runs, in a folder that is made for it; `with` it, or `close` it.

    `port` and `tls_port` are 0 for one that is free; without them it has the Unix socket alone.
    `users` are rules: "alice on >word ~zcache:alice:* +@all".
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        tls_port: int | None = None,
        address: str = "127.0.0.1",
        maxmemory: int = 0,
        maxmemory_policy: str = "noeviction",
        users: Sequence[str] = (),
        cluster: bool = False,
        settings: Mapping[str, object] = {},
        prefix: Sequence[str] = (),
    ) -> None:
        """`settings` are any others that it has; `prefix` is a command that becomes it."""
        self.folder, self.address = folder, address
        self.socket = folder / "engine.sock"
        self.certificate = folder / "certificate.pem"  # its own, and the authority to trust
        self.port, self.tls_port = port, tls_port
        self._wanted = (port, tls_port)
        self.bus_port = 0  # of a node of a Cluster
        self._is_node, self._users, self._prefix = cluster, users, prefix
        self._settings = {"maxmemory": maxmemory, "maxmemory-policy": maxmemory_policy, **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        folder.mkdir(parents=True, exist_ok=True)
        self._program = folder / ENGINE.name.replace("check-rdb", "server")
        self._program.unlink(missing_ok=True)
        self._program.symlink_to(ENGINE)
        if tls_port is not None:
            _certify(address, self.certificate, folder / "key.pem")
        atexit.register(self.close)
        try:
            self._start_at_free_ports()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def url(
        self, user: str | None = None, password: str | None = None, scheme: str | None = None, **options: object
    ) -> str:
        """For `remote=`: by TLS if it has that, else by TCP, else by its Unix socket, unless a
        scheme is named."""
        scheme = scheme or ("rediss" if self.tls_port else "redis" if self.port else "unix")
        words = "" if password is None else f":{quote(password, safe='')}"
        words = f"{quote(user or '', safe='')}{words}"
        host = f"[{self.address}]" if ":" in self.address else self.address
        port = self.tls_port if scheme == "rediss" else self.port
        where = str(self.socket) if scheme == "unix" else f"{host}:{port}"
        return f"{scheme}://{words}{'@' * bool(words)}{where}{'?' * bool(options)}{urlencode(options)}"

    def call(self, *words: str | bytes | int, timeout_seconds: float = 10) -> Reply:
        """One command, over a connection of its own; raises `Refused`."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_seconds)
            connection.connect(str(self.socket))
            with connection.makefile("rb") as replies:
                # Not in one go: behind another AUTH, Redis 8.0.2 says nothing of one that fails.
                connection.sendall(_request("AUTH", _USER, ""))
                _reply(replies)
                connection.sendall(_request(*words))
                return _reply(replies)

    def info(self) -> dict[str, str]:
        reply = self.call("INFO", "everything")
        assert isinstance(reply, bytes)
        return dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)

    def memory_bytes(self) -> int:
        return int(self.info()["used_memory"])

    def pause(self) -> None:
        """It answers nothing, and the kernel accepts connections for it."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        os.waitid(os.P_PID, self.pid, os.WCONTINUED)

    def kill(self) -> None:
        """Paused or not; what it had is gone."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def start(self) -> None:
        """Again, once it was killed: at the same address, and empty."""
        assert not self.is_running, "it runs already"
        settings: dict[str, object] = {
            "bind": self.address,
            "protected-mode": "no",
            "port": self.port or 0,
            "unixsocket": self.socket,
            "unixsocketperm": 700,
            "dir": self.folder,
            "logfile": self.folder / "log",
            "save": '""',
            "appendonly": "no",
            "enable-debug-command": "yes",
            "repl-diskless-sync-delay": 0,
        }
        if self.tls_port is not None:
            settings |= {"tls-port": self.tls_port, "tls-auth-clients": "no", "tls-key-file": self.folder / "key.pem"}
            settings |= {"tls-cert-file": self.certificate, "tls-ca-cert-file": self.certificate}
        if self._is_node:
            settings |= {"cluster-enabled": "yes", "cluster-port": self.bus_port, "cluster-announce-ip": self.address}
        lines = [f"{name} {value}" for name, value in {**settings, **self._settings}.items()]
        lines += [f"user {rule}" for rule in (*self._users, f"{_USER} on nopass ~* &* +@all")]
        (self.folder / "engine.conf").write_text("\n".join(lines) + "\n")
        self.socket.unlink(missing_ok=True)
        command = [*self._prefix, str(self._program), str(self.folder / "engine.conf")]
        with (self.folder / "output").open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        wait_until(lambda: not self.is_running or self._answers(), "an engine answers")
        if not self.is_running:
            raise OSError(f"{ENGINE} ended: {self._last_words()}")

    def close(self) -> None:
        """It is ended, and waited for; in a copy of the process nothing happens."""
        if os.getpid() == self._owner:
            atexit.unregister(self.close)
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_at_free_ports(self) -> None:
        """Between being found free and being bound a port may become somebody's, so once more."""
        for has_another_try in (True, True, False):
            self.port, self.tls_port = (_free_port(self.address) if port == 0 else port for port in self._wanted)
            self.bus_port = _free_port(self.address) if self._is_node else 0
            try:
                return self.start()
            except OSError as error:
                if not has_another_try or "in use" not in str(error):
                    raise
        return None

    def _answers(self) -> bool:
        try:
            return self.call("PING") == b"PONG"
        except (OSError, EOFError):
            return False

    def _last_words(self) -> str:
        texts = [(self.folder / name).read_text() for name in ("output", "log") if (self.folder / name).exists()]
        return "\n".join("".join(texts).splitlines()[-5:])


@contextlib.contextmanager
def engines(folder: Path, count: int = 1, **options: Any) -> Iterator[list[Engine]]:
    """Independent ones; `options` are each one's."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Engine(folder / f"engine{n}", **options)) for n in range(count)]


@contextlib.contextmanager
def cluster(folder: Path, primaries: int = 3, **options: Any) -> Iterator[list[Engine]]:
    """`start_cluster`, and its end."""
    nodes = start_cluster(folder, primaries, **options)
    try:
        yield nodes
    finally:
        for node in nodes:
            node.close()


def start_cluster(
    folder: Path,
    primaries: int = 3,
    replicas: int = 0,
    node_timeout_ms: int = 1500,
    require_full_coverage: bool = False,
    allow_reads_when_down: bool = True,
    **options: Any,
) -> list[Engine]:
    """A Cluster that serves: its primaries with equal shares of the slots, in their order, then
    the first replica of each, and so on. Whoever calls closes them."""
    settings = {
        "cluster-node-timeout": node_timeout_ms,
        "cluster-require-full-coverage": "yes" if require_full_coverage else "no",
        "cluster-allow-reads-when-down": "yes" if allow_reads_when_down else "no",
        **options.pop("settings", {}),
    }
    with contextlib.ExitStack() as stack:
        nodes: list[Engine] = []
        for n in range(primaries * (1 + replicas)):
            node = Engine(folder / f"node{n}", port=0, cluster=True, settings=settings, **options)
            nodes.append(stack.enter_context(node))
            node.call("CLUSTER", "SET-CONFIG-EPOCH", n + 1)  # else they agree on that by and by
            if n < primaries:
                first, end = (_SLOTS * edge // primaries for edge in (n, n + 1))
                node.call("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for one, other in itertools.combinations(nodes, 2):
            one.call("CLUSTER", "MEET", other.address, other.port or 0, other.bus_port)
        wait_until(lambda: all(_knows(node, len(nodes)) for node in nodes), "all nodes know each other")
        for n, node in enumerate(nodes[primaries:]):
            primary = nodes[n % primaries].call("CLUSTER", "MYID")
            assert isinstance(primary, bytes)
            node.call("CLUSTER", "REPLICATE", primary)
        wait_until(lambda: all(_serves(node) for node in nodes), "the Cluster serves")
        stack.pop_all()
    return nodes


def cluster_info(node: Engine) -> dict[str, str]:
    reply = node.call("CLUSTER", "INFO")
    assert isinstance(reply, bytes)
    return dict(line.split(":", 1) for line in reply.decode().splitlines())


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def _knows(node: Engine, count: int) -> bool:
    """It has shaken hands with all."""
    reply = node.call("CLUSTER", "NODES")
    assert isinstance(reply, bytes)
    return reply.count(b" connected") == count and b"handshake" not in reply


def _serves(node: Engine) -> bool:
    found, info = cluster_info(node), node.info()
    is_whole = found["cluster_state"] == "ok" and found["cluster_slots_ok"] == str(_SLOTS)
    return is_whole and info.get("master_link_status", "up") == "up"


def _free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as end:
        end.bind((address, 0))
        port: int = end.getsockname()[1]
        return port


def _request(*words: str | bytes | int) -> bytes:
    texts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(texts) + b"".join(b"$%d\r\n%b\r\n" % (len(text), text) for text in texts)


def _reply(replies: Any) -> Reply:
    line: bytes = replies.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError("the engine hung up")
    kind, rest = line[:1], line[1:-2]
    match kind:
        case b"-":
            raise Refused(rest.decode())
        case b":":
            return int(rest)
        case b"$":
            return None if rest == b"-1" else bytes(replies.read(int(rest) + 2)[:-2])
        case b"*":
            return None if rest == b"-1" else [_reply(replies) for _ in range(int(rest))]
    return rest


def _certify(address: str, certificate: Path, key_file: Path) -> None:
    """A certificate for an address that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an engine of a test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=2))
    names = [x509.IPAddress(ipaddress.ip_address(address)), x509.DNSName("localhost")]
    # To sign, as a server and as an authority.
    uses = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(uses, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = builder.sign(key, hashes.SHA256())
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    unlocked = serialization.NoEncryption()
    pkcs8 = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, unlocked))

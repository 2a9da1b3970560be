"""Engines that fail: each can be killed, paused, cut off, slowed down or full, and be mended.

Each is in a folder of its own, and keeps its address; who was killed comes back empty. Those that
are to be cut off are in network namespaces, on one bridge: a link that is down drops what is sent,
and nobody is told. That takes root. Those that are to be slow have a relay before them, and what
goes through it breaks off when its delay is changed.

A Cluster is formed of them as an operator would form it.
"""

import contextlib
import itertools
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from zcache.bench.remote.engines import ANSWER_SECONDS, REPOSITORY, SETTINGS, START_SECONDS, at_path, program
from zcache.bench.remote.far_network import FarNetwork
from zcache.errors import EnvironmentProblem
from zcache.remote.cluster import SLOTS
from zcache.remote.peer import fields_of
from zcache.remote.resp import Connection, Reply

#: For a Cluster to see that a node is gone: short, so that a fault is longer.
NODE_TIMEOUT_MS: Final = 1000


class FailingEngine:
    """Number `number` of its folder's; `close` it."""

    def __init__(
        self,
        folder: Path,
        number: int,
        network: FarNetwork | None = None,
        *,
        has_relay: bool = False,
        is_node: bool = False,
    ) -> None:
        self._folder = folder / f"engine{number}"
        self._folder.mkdir()
        name, path = program()
        self._program = self._folder / name  # told apart by how it is called
        self._program.symlink_to(path)
        self._socket = self._folder / "engine.sock"
        self._network = network
        self._number = number
        self.host = network.join(number) if network else "127.0.0.1"
        self.port, self.bus_port, self._relay_port = _free_ports(3)
        self._has_relay = has_relay
        self._is_node = is_node
        self._process: subprocess.Popen[bytes] | None = None
        self._relay: subprocess.Popen[bytes] | None = None
        try:
            self.start()
            if has_relay:
                self.delay(0.0)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """For `remote=`."""
        port = self._relay_port if self._has_relay else self.port
        return f"redis://{self.host}:{port}{'?cluster=yes' * self._is_node}"

    def call(self, *words: str | bytes | int) -> Reply:
        """One command, over its Unix socket: no network is in the way."""
        with contextlib.closing(Connection(at_path(self._socket), seconds=ANSWER_SECONDS)) as connection:
            return connection.call(*words, seconds=ANSWER_SECONDS)

    def start(self) -> None:
        """As it was at first: empty. A node of a Cluster knows its slots still."""
        if self._process and self._process.poll() is None:
            return
        log = self._folder / "engine.log"
        around = self._network.around(self._number) if self._network else []
        command = [
            *around,
            str(self._program),
            "--port",
            str(self.port),
            "--bind",
            self.host,
            "--unixsocket",
            str(self._socket),
        ]
        command += ["--dir", str(self._folder), "--protected-mode", "no", *SETTINGS]
        if self._is_node:
            command += ["--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)]
            command += ["--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-require-full-coverage", "no"]
            command += ["--cluster-allow-reads-when-down", "yes", "--repl-diskless-sync-delay", "0"]
        self._socket.unlink(missing_ok=True)
        with log.open("ab") as file:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        if not wait_until(lambda: self._has_ended() or self._answers()) or self._has_ended():
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise EnvironmentProblem(f"{self._program.name} does not start: {' '.join(last)}")

    def kill(self) -> None:
        """What it had is gone."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """It is empty, and answers at once."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """It answers nothing, and the kernel accepts connections for it."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Goes on where it was."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def cut(self) -> None:
        """What is sent to it, or by it, is dropped."""
        assert self._network
        self._network.cut(self._number)

    def join(self) -> None:
        """The network is there again."""
        assert self._network
        self._network.mend(self._number)

    def silence(self) -> None:
        """Its relay hands nothing on, and the kernel takes what is sent."""
        assert self._relay
        self._relay.send_signal(signal.SIGSTOP)

    def speak(self) -> None:
        """Its relay goes on."""
        assert self._relay
        self._relay.send_signal(signal.SIGCONT)

    def delay(self, seconds: float) -> None:
        """Its relay waits so long with what is asked."""
        self._end_relay()
        command = [sys.executable, "-m", "zcache.bench.remote.relay"]
        command += [str(self._relay_port), str(self.port), str(seconds)]
        with (self._folder / "relay.log").open("ab") as file:
            self._relay = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file)
        if not wait_until(self._relay_listens):
            raise EnvironmentProblem(f"the relay does not start: {self._folder / 'relay.log'}")

    def fill_up(self) -> None:
        """It takes nothing more."""
        used = fields_of(self.call("INFO", "memory"))["used_memory"]
        self.call("CONFIG", "SET", "maxmemory", int(used) - 1)

    def make_room(self) -> None:
        """It takes as much as it likes."""
        self.call("CONFIG", "SET", "maxmemory", 0)

    def start_as_replica(self) -> None:
        """It was a primary, and its replica has taken its place."""
        self.start()
        if not wait_until(lambda: self._has_role("slave")):
            raise EnvironmentProblem("no replica has taken a primary's place")

    def fail_back(self) -> None:
        """A replica, which it has become, is the primary again."""
        self.call("CLUSTER", "FAILOVER")
        if not wait_until(lambda: self._has_role("master")):
            raise EnvironmentProblem("a replica has not taken its primary's place")

    def close(self) -> None:
        """Ended, whatever it was."""
        self.kill()
        self._end_relay()

    def _end_relay(self) -> None:
        if self._relay:
            self._relay.kill()
            self._relay.wait()

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _has_role(self, role: str) -> bool:
        replication = fields_of(self.call("INFO", "replication"))
        return replication["role"] == role and replication.get("master_link_status", "up") == "up"

    def _answers(self) -> bool:
        try:
            return self.call("PING") == b"PONG"
        except OSError:
            return False

    def _relay_listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._relay_port), timeout=1).close()
        except OSError:
            return False
        return True


@contextlib.contextmanager
def failing_engines(
    folder: Path, count: int, *, is_far: bool = False, has_relay: bool = False, is_cluster: bool = False
) -> Iterator[list[FailingEngine]]:
    """So many, each alone, or as nodes that are no Cluster yet."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(contextlib.closing(FarNetwork())) if is_far else None
        engines = []
        for number in range(count):
            engine = FailingEngine(folder, number, network, has_relay=has_relay, is_node=is_cluster)
            engines.append(stack.enter_context(contextlib.closing(engine)))
        yield engines


def form_cluster(nodes: Sequence[FailingEngine], primaries: int) -> None:
    """Equal shares of the slots for the first ones, and each of the others is a replica of one of
    them, in their order."""
    for number, node in enumerate(nodes):
        node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)  # else they agree on that by and by
        if number < primaries:
            first, end = (SLOTS * edge // primaries for edge in (number, number + 1))
            node.call("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
    for one, other in itertools.combinations(nodes, 2):
        one.call("CLUSTER", "MEET", other.host, other.port, other.bus_port)
    _wait_for(lambda: all(_knows(node, len(nodes)) for node in nodes))
    for number, node in enumerate(nodes[primaries:]):
        primary = nodes[number % primaries].call("CLUSTER", "MYID")
        assert isinstance(primary, bytes)
        node.call("CLUSTER", "REPLICATE", primary)
    _wait_for(lambda: all(_serves(node, len(nodes) - primaries) for node in nodes))


def wait_until(condition: Callable[[], bool], seconds: float = START_SECONDS) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _free_ports(count: int) -> list[int]:
    """That nobody has now."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            ports.append(int(taken.getsockname()[1]))
        return ports


def _wait_for(condition: Callable[[], bool]) -> None:
    if not wait_until(condition):
        raise EnvironmentProblem(f"the Cluster is not formed within {START_SECONDS:g} s")


def _knows(node: FailingEngine, count: int) -> bool:
    """It has shaken hands with all."""
    reply = node.call("CLUSTER", "NODES")
    return isinstance(reply, bytes) and reply.count(b" connected") == count and b"handshake" not in reply


def _serves(node: FailingEngine, replicas: int) -> bool:
    """It has all slots, and knows all replicas; if it is one, it has its primary's keys."""
    cluster = fields_of(node.call("CLUSTER", "INFO"))
    is_whole = cluster.get("cluster_state") == "ok" and cluster.get("cluster_slots_ok") == str(SLOTS)
    known = node.call("CLUSTER", "NODES")
    own = fields_of(node.call("INFO", "replication"))
    knows_all = isinstance(known, bytes) and known.count(b"slave ") == replicas
    return is_whole and knows_all and own.get("master_link_status", "up") == "up"

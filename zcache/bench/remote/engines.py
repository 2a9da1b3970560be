"""An engine for the length of a measurement, and a relay before it: processes of their own, ended
by their own handle."""

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from zcache.errors import EnvironmentProblem
from zcache.remote.resp import Connection
from zcache.remote.url import Address

REPOSITORY: Final = Path(__file__).resolve().parents[3]
#: The server itself, under the names that the packages without a service have it (valkey-tools of
#: Debian 13, redis-tools of 12), and what it is to be called for it: it is told apart by that.
PROGRAMS: Final = (
    ("valkey-server", "/usr/bin/valkey-check-rdb"),
    ("redis-server", "/usr/bin/redis-check-rdb"),
)
#: Nothing is written to a disk, and nothing is thrown out: what the tier asks for.
SETTINGS: Final = ("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction")
START_SECONDS: Final = 20.0
ANSWER_SECONDS: Final = 5.0
#: One after the other, for a round trip.
PINGS: Final = 1000
#: Of them, those that nothing came between: on a machine that is busy the median is anything.
_UNDISTURBED: Final = 0.1
#: A relay's delay is set so many times at most, until what it adds is as near as this to what it
#: should add. (What it takes itself, 0.1 ms and more where processors sleep, is in it.)
_TRIES: Final = 6
_NEAR: Final = 0.05


class Server(NamedTuple):
    """A process that answers at those places."""

    pid: int
    addresses: Sequence[Address]

    def connect(self) -> Connection:
        """To the first of them."""
        return Connection(self.addresses[0], seconds=ANSWER_SECONDS)

    def cpu_seconds(self) -> float:
        """Of all its threads so far, in its own code and in the kernel's; in ticks of 10 ms."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Relay(NamedTuple):
    """A relay, what it waits with each byte, and what that came to for a PING: for those that
    nothing came between, and at the median."""

    server: Server
    delay_seconds: float
    least_added_seconds: float
    added_seconds: float


def program() -> tuple[str, str]:
    """What an engine is called, and the file that it is."""
    for name, path in PROGRAMS:
        if Path(path).exists():
            return name, path
    raise EnvironmentProblem("there is no Redis or Valkey here: apt-get install redis-tools (Debian 13: valkey-tools)")


def at_path(path: Path) -> Address:
    return Address(socket.AF_UNIX, str(path))


def at_port(port: int) -> Address:
    """On loopback."""
    return Address(socket.AF_INET, ("127.0.0.1", port))


def free_port() -> int:
    """On loopback; nobody has it now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextlib.contextmanager
def engine(folder: Path, *words: str) -> Iterator[Server]:
    """At a Unix socket in the folder, and at a port on loopback: `addresses`, in that order.
    `words` are more settings."""
    name, path = program()
    socket_path, port = folder / "engine.sock", free_port()
    command = [name, "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(socket_path)]
    command += ["--dir", str(folder), *SETTINGS, *words]
    with _started(command, path, folder / "engine.log", [at_path(socket_path), at_port(port)]) as server:
        yield server


@contextlib.contextmanager
def relay(folder: Path, port: int, delay_seconds: float) -> Iterator[Server]:
    """A port on loopback that leads to another one, with so much delay for what is asked."""
    own = free_port()
    command = [sys.executable, "-m", "zcache.bench.remote.relay", str(own), str(port), str(delay_seconds)]
    with _started(command, sys.executable, folder / f"relay-{own}.log", [at_port(own)]) as server:
        yield server


@contextlib.contextmanager
def relay_adding(folder: Path, port: int, round_trip_seconds: float, pings: int = PINGS) -> Iterator[Relay]:
    """A relay whose delay is such that a PING's round trip takes so much longer, or as little more
    as can be had, if nothing comes between; so most take more."""
    least, median = ping_seconds(at_port(port), pings)
    delay_seconds = round_trip_seconds
    tried: list[tuple[bool, float, float]] = []  # too short? by how much? with which delay?
    for _ in range(_TRIES):
        with relay(folder, port, delay_seconds) as server:
            excess = ping_seconds(server.addresses[0], pings)[0] - least - round_trip_seconds
        tried.append((excess < 0, abs(excess), delay_seconds))
        if abs(excess) < _NEAR * round_trip_seconds:
            break
        delay_seconds = max(delay_seconds - excess / 2, 0.0)
    delay_seconds = min(tried)[2]
    with relay(folder, port, delay_seconds) as server:
        through_least, through = ping_seconds(server.addresses[0], pings)
        yield Relay(server, delay_seconds, through_least - least, through - median)


def ping_seconds(address: Address, count: int) -> tuple[float, float]:
    """Round trips, one after the other: an undisturbed one, and the median."""
    times = []
    connection = Connection(address, seconds=ANSWER_SECONDS)
    with contextlib.closing(connection):
        for _ in range(count):
            begin = time.perf_counter()
            connection.call("PING", seconds=ANSWER_SECONDS)
            times.append(time.perf_counter() - begin)
    return sorted(times)[int(count * _UNDISTURBED)], statistics.median(times)


@contextlib.contextmanager
def _started(command: Sequence[str], path: str, log: Path, addresses: Sequence[Address]) -> Iterator[Server]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, executable=path, cwd=REPOSITORY, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not all(map(_answers, addresses)):
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise EnvironmentProblem(f"{command[0]} does not start: {' '.join(last)}")
            time.sleep(0.02)
        yield Server(process.pid, addresses)
    finally:
        process.kill()
        process.wait()


def _answers(address: Address) -> bool:
    try:
        ping_seconds(address, count=1)
    except OSError:
        return False
    return True

"""A server for the length of a measurement, and clients for it."""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nbd

from zcache.control.ask import ask
from zcache.errors import EnvironmentProblem

REPOSITORY: Final = Path(__file__).resolve().parents[2]
#: An emulated guest that shares its processors takes most of a minute.
START_SECONDS: Final = 120


@dataclass(frozen=True)
class Served:
    """Where a server is."""

    socket: Path
    control: Path
    pid: int

    def connect(self) -> Any:
        """A libnbd handle."""
        client = nbd.NBD()
        client.connect_unix(str(self.socket))
        return client

    def ask(self, command: str) -> dict[str, Any]:
        """At the control socket."""
        return ask(self.control, command)


@contextlib.contextmanager
def serve(log: Path, *words: str) -> Iterator[Served]:
    """nbdkit with `words` as its parameters. Its sockets are not beside its log: not every file
    system has any (9p)."""
    with tempfile.TemporaryDirectory(prefix="zcache-bench-") as folder:
        socket, control = Path(folder) / "nbd.sock", Path(folder) / "control"
        command = [sys.executable, "-m", "nbd_plugin.serve", "-U", str(socket), *words, f"control={control}"]
        with running(command, log, lambda: _answers(control)) as pid:
            yield Served(socket, control, pid)


@contextlib.contextmanager
def running(command: list[str], log: Path, is_up: Callable[[], bool]) -> Iterator[int]:
    """A server from when it is up until SIGTERM has ended it; its pid. Raises `EnvironmentProblem`
    if it does not come up."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                raise EnvironmentProblem(f"the server does not start; {log}: {log.read_text(errors='replace').strip()}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_SECONDS)


def speaks_nbd(socket: Path) -> bool:
    """Whether a server accepts connections there."""
    client = nbd.NBD()
    try:
        client.connect_unix(str(socket))
    except nbd.Error:
        return False
    client.shutdown()
    return True


def _answers(control: Path) -> bool:
    try:
        ask(control, "status")
    except EnvironmentProblem:
        return False
    return True

"""A server for the length of a measurement, and clients for it."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nbd

from zcache.control_client import ask
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
def serve(folder: Path, *words: str) -> Iterator[Served]:
    """nbdkit with `words` as its parameters; its files, `server.log` among them, in `folder`."""
    socket, control = folder / "nbd.sock", folder / "control"
    command = [sys.executable, "-m", "nbd_plugin.serve", "-U", str(socket), *words, f"control={control}"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(control):
            if process.poll() is not None or time.monotonic() > deadline:
                raise EnvironmentProblem(f"the server does not start; see {folder / 'server.log'}")
            time.sleep(0.05)
        yield Served(socket, control, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_SECONDS)


def _answers(control: Path) -> bool:
    try:
        ask(control, "status")
    except EnvironmentProblem:
        return False
    return True

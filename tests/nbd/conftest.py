"""A real nbdkit with the plugin, started for a test and ended with SIGTERM; its books must balance
before it goes."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from zcache.control.ask import ask

REPOSITORY = Path(__file__).resolve().parents[2]
START_DEADLINE_SECONDS = 30


class RunningServer:
    """One nbdkit process: `uri` for clients, `status()`, `check()`, `stop()`."""

    program: tuple[str, ...] = (str(REPOSITORY / "scripts/serve"),)
    start_seconds = START_DEADLINE_SECONDS

    def __init__(
        self, folder: Path, words: tuple[str, ...], options: tuple[str, ...] = (), descriptors: tuple[int, ...] = ()
    ) -> None:
        self.socket = folder / "nbd.sock"
        self.control = folder / "control"
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self.log = folder / "server.log"
        command = [*self.program, "-U", str(self.socket), "-P", str(folder / "pid"), *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *words, f"control={self.control}"], stderr=log, stdout=log, pass_fds=descriptors
            )
        deadline = time.monotonic() + self.start_seconds
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        client = nbd.NBD()
        try:
            client.connect_unix(str(self.socket))
        except nbd.Error:
            return False
        client.shutdown()
        return True

    def connect(self) -> Any:
        """A libnbd handle."""
        client = nbd.NBD()
        client.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        client.connect_unix(str(self.socket))
        return client

    def status(self) -> dict[str, Any]:
        return ask(self.control, "status")

    def check(self) -> dict[str, Any]:
        answer = ask(self.control, "check")
        assert answer["balanced"], answer
        return answer

    def stop(self) -> int:
        """SIGTERM; nbdkit's exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


Serve = Callable[..., RunningServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve("size=64M", "budget=16M", …)`; each server ends with the test, by SIGTERM, with status
    0 and balanced books."""
    servers: list[RunningServer] = []

    def start(*words: str, options: tuple[str, ...] = (), descriptors: tuple[int, ...] = ()) -> RunningServer:
        folder = tmp_path / f"server{len(servers)}"
        folder.mkdir()
        servers.append(RunningServer(folder, words, options, descriptors))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            try:
                server.check()
            finally:
                assert server.stop() == 0, server.log.read_text()
            assert "Traceback" not in server.log.read_text()

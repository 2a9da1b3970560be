"""A keeper whose servers are sleeping programs."""

import socket
import subprocess
from pathlib import Path

import pytest

from zcache.keeper import voice
from zcache.keeper.channel import READY
from zcache.keeper.keeper import Keeper
from zcache.keeper.server_process import ServerProcess
from zcache.keeper.state import StateFolder


class Servers:
    """Programs that say that they are ready, and sleep."""

    def __init__(self) -> None:
        self.started: list[tuple[ServerProcess, socket.socket]] = []
        self.failure: OSError | None = None

    def start(self, *_arguments: object) -> ServerProcess:
        if self.failure:
            raise self.failure
        ours, theirs = socket.socketpair()
        program = subprocess.Popen(["sleep", "60"])
        program.returncode = 0  # it is waited for by its pidfd
        server = ServerProcess(program.pid, ours)
        theirs.send(READY)
        self.started.append((server, theirs))
        return server


class Looked:
    """A keeper whose device is connected, with a server that serves and a standby that is ready."""

    def __init__(self, folder: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        monkeypatch.setattr(voice, "say", self.said.append)
        self.keeper = Keeper(StateFolder(folder), folder / "nbd.sock", [], 2)
        self.keeper.device.reconnection = object()  # type: ignore[assignment]
        monkeypatch.setattr(self.keeper.succession, "serves", lambda: True)
        self.turns(2)
        self.first, self.standby = (server for server, _ in servers.started)
        self.standby.is_heir = True
        assert (self.keeper.succession.server, self.keeper.succession.standby) == (self.first, self.standby)

    def turns(self, count: int) -> None:
        for _ in range(count):
            assert self.keeper.turn() is None

    def replaces_a_server_that_dies(self) -> bool:
        self.keeper.succession.server.kill()
        assert self.keeper.succession.server.wait(10)
        self.turns(3)
        return self.keeper.succession.server is self.standby

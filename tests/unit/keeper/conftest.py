"""The fixtures of tests that turn a keeper by hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.keepers import Looked, Servers
from zcache.keeper.server_process import ServerProcess


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    servers = Servers()
    monkeypatch.setattr(ServerProcess, "start", servers.start)
    yield servers
    for server, channel in servers.started:
        channel.close()
        if server.channel.fileno() >= 0:  # it was not closed
            server.discard()


@pytest.fixture
def looked(tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Looked:
    return Looked(tmp_path, servers, monkeypatch)

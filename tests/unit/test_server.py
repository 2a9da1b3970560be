"""The server's refusals that need no nbdkit (the others are in tests/nbd/test_bad_input.py)."""

import errno
import os
import re
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nbd_plugin.config import parse_config
from nbd_plugin.server import Server
from zcache.errors import EnvironmentProblem
from zcache.steps import Steps
from zcache.tiers.backing_file import BackingFile


@pytest.fixture(autouse=True)
def own_process() -> Iterator[None]:
    """A server sets its process's mask for files, and does not care for its children; here the process is ours."""
    mask = os.umask(0o022)
    on_child = signal.getsignal(signal.SIGCHLD)
    yield
    os.umask(mask)
    signal.signal(signal.SIGCHLD, on_child)


@pytest.mark.parametrize("encrypt", ["yes", "no"])
def test_a_disk_that_does_not_give_back_what_was_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypt: str
) -> None:
    path = tmp_path / "backing"
    words = {"size": "32M", "budget": "16M", "backing": str(path), "encrypt": encrypt, "hardening": "off"}
    server = Server(parse_config(words.items()), Steps())
    server.get_ready()
    read = BackingFile.read

    def read_stale(tier: BackingFile, first_slot: int, frames: Sequence[memoryview]) -> None:
        read(tier, first_slot, frames)
        for frame in frames:
            frame[100] ^= 1

    monkeypatch.setattr(BackingFile, "read", read_stale)
    with pytest.raises(EnvironmentProblem, match=f"backing={re.escape(str(path))}: .*; give another disk"):
        server.make_safe()
    server.abandon()
    assert not path.exists(), "what was made for a refused server is removed"


def test_a_standby_that_cannot_leave_an_heir_takes_over_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    keepers, ours = socket.socketpair()
    words = {"size": "32M", "budget": "16M", "overcommit": "yes", "hardening": "off", "standby": str(ours.detach())}
    server = Server(parse_config(words.items()), Steps())
    keepers.sendall(b"!")

    def fork() -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(os, "fork", fork)
    with keepers:
        server.wait_for_turn()
        assert keepers.recv(16) == b"r"
        assert keepers.recv(16) == b"", "the channel is closed, and names no heir"
    server.start()
    server.stop()

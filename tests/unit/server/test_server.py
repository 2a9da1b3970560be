"""The server's refusals that need no nbdkit (the others are in tests/nbd/test_bad_input.py)."""

import errno
import os
import re
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from zcache.errors import EnvironmentProblem
from zcache.hardening import limits
from zcache.image.image import new_descriptor
from zcache.server.assembly import geometry_of
from zcache.server.config import parse_config
from zcache.server.front_end import FrontEnd
from zcache.server.needs import PROMISED_BYTES, check_limits
from zcache.server.server import Server
from zcache.steps import Steps
from zcache.tiers.backing_file import BackingFile


@pytest.fixture(autouse=True)
def own_process() -> Iterator[None]:
    """A server sets its process's mask for files, and does not care for its children; here the
    process is ours."""
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
    server = Server(parse_config(words.items()), Steps(), FrontEnd())
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


@pytest.mark.parametrize("error", [OSError(errno.EAGAIN, "no more processes"), MemoryError()])
@pytest.mark.parametrize("can_say_why", [True, False])
def test_a_standby_that_cannot_leave_an_heir_takes_over_all_the_same(
    error: Exception, can_say_why: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keepers, ours = socket.socketpair()
    words = {"size": "32M", "budget": "16M", "overcommit": "yes", "hardening": "off", "standby": str(ours.detach())}
    server = Server(parse_config(words.items()), Steps(), FrontEnd())
    keepers.sendall(b"!")

    def fork() -> int:
        raise error

    def in_words(_error: BaseException) -> str:
        raise MemoryError

    monkeypatch.setattr(os, "fork", fork)
    if not can_say_why:
        monkeypatch.setattr(limits, "in_words", in_words)
    with keepers:
        server.wait_for_turn()
        assert keepers.recv(16) == b"r"
        assert keepers.recv(16) == b"", "the channel is closed, and names no heir"
    server.start()
    server.stop()


@pytest.mark.parametrize("is_kept", [True, False])
def test_one_heir_is_all_that_a_server_asks_for_beside_its_store(
    is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own memory is promised to it by then."""
    asked: list[int] = []
    monkeypatch.setattr(limits, "check_promise", lambda needed_bytes, _advice: asked.append(needed_bytes))
    words = {"size": "64M", "budget": "32M", "overcommit": "yes"}
    image = new_descriptor()
    config = parse_config(({**words, "image": str(image)} if is_kept else words).items())
    check_limits(config, is_successor=False, client_threads=2)
    os.close(image)
    sections = geometry_of(config, config.below_bytes // config.frame_bytes).sections()
    (needed_bytes,) = asked
    assert needed_bytes == (32 << 20) + sum(sections.values()) - sections["ram"] + PROMISED_BYTES
    assert PROMISED_BYTES == 25 << 20, "zcache/server and hardening README.md say so"

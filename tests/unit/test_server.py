"""The server's refusals that need no nbdkit (the others are in tests/nbd/test_bad_input.py)."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nbd_plugin.config import parse_config
from nbd_plugin.server import Server
from zcache.errors import EnvironmentProblem
from zcache.tiers.backing_file import BackingFile


@pytest.fixture(autouse=True)
def own_mask() -> Iterator[None]:
    """A server sets its process's mask for files, which is ours here."""
    mask = os.umask(0o022)
    yield
    os.umask(mask)


@pytest.mark.parametrize("encrypt", ["yes", "no"])
def test_a_disk_that_does_not_give_back_what_was_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypt: str
) -> None:
    path = tmp_path / "backing"
    words = {"size": "32M", "budget": "16M", "backing": str(path), "encrypt": encrypt, "hardening": "off"}
    server = Server(parse_config(words.items()))
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

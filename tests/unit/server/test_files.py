"""What a server looks up and opens, by whether there was one before it, and whether that serves."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from zcache.image.signs import Signs
from zcache.remote.engines import Engines
from zcache.remote.tables import Tables
from zcache.server.files import Files
from zcache.steps import Steps


def files_of(*urls: str, image: int | None = None) -> tuple[Files, list[str]]:
    said: list[str] = []
    config = SimpleNamespace(
        remote=urls, remote_copies=2, is_succession=image is not None, image=image, backing=None, clean=()
    )
    return Files(cast(Any, config), Steps(), said.append), said


def engines_of(files: Files) -> Engines:
    assert files.engines
    return files.engines


def test_names_are_not_looked_up_by_a_successor_that_starts_while_nobody_serves(
    image: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name service may wait for a page, and that for us."""
    asked: list[str] = []
    ask_system = socket.getaddrinfo

    def ask(host: str, port: int, *, type: int, flags: int = 0) -> Any:
        if not flags & socket.AI_NUMERICHOST:
            asked.append(host)
        return ask_system(host, port, type=type, flags=flags)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    urls = ("redis://localhost", "redis://127.0.0.2")
    files, said = files_of(*urls, image=image)
    files.look_up()
    assert (asked, said) == ([], [])
    assert engines_of(files).is_at(("127.0.0.2", 6379)), "an address is known all the same"
    assert not engines_of(files).is_at(("127.0.0.1", 6379))
    signs = Signs(image)
    signs.begin_epoch()
    signs.begin_to_serve()  # which is another server
    files, said = files_of(*urls, image=image)
    files.look_up()
    assert "localhost" in asked and said == [] and engines_of(files).is_at(("127.0.0.1", 6379))


def test_a_successor_whose_turn_it_is_reads_what_it_could_not_read_when_it_was_started(
    image: int, tmp_path: Path
) -> None:
    path = tmp_path / "password"
    files, said = files_of(f"redis://alice@127.0.0.1?password_file={path}", image=image)
    files.look_up()
    (line,) = said
    assert line.startswith("WARNING: remote=alice@127.0.0.1:6379: password_file=")
    path.write_text("open-sesame")
    files.adopt(image, [])
    (peer,) = engines_of(files).make_peers("name", Tables(8), True)
    assert peer.url.password == path.read_text()

"""A socket that a server has left behind goes; nothing else does."""

import os
import socket
from pathlib import Path

import pytest

from zcache.linux.sockets import remove_if_dead


def test_one_on_which_nobody_listens_any_more_goes(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
    assert not remove_if_dead(path) and not os.path.lexists(path)
    assert not remove_if_dead(path)


def test_one_on_which_somebody_listens_stays(tmp_path: Path) -> None:
    """However busy he is."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(0)
        for _ in range(4):  # each asks to be accepted; the first fills the queue
            assert remove_if_dead(path) and path.is_socket()


def test_one_of_another_kind_stays(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        with pytest.raises(OSError, match="wrong type"):
            remove_if_dead(tmp_path / "log")
    assert (tmp_path / "log").is_socket()


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "link", "loop"])
def test_what_is_no_socket_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    match kind:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link":
            (tmp_path / "precious").write_text("precious")
            path.symlink_to(tmp_path / "precious")
        case "loop":
            path.symlink_to(path)
    assert not remove_if_dead(path) and os.path.lexists(path)


def test_a_folder_that_may_not_be_entered_is_for_others_to_complain_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr(Path, "is_socket", refuse)
    assert not remove_if_dead(tmp_path / "socket")


def test_another_users_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_socket: socket.socket, _path: str) -> None:
        raise PermissionError

    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(tmp_path / "socket"))
        monkeypatch.setattr(socket.socket, "connect", refuse)
        with pytest.raises(PermissionError):
            remove_if_dead(tmp_path / "socket")
    assert (tmp_path / "socket").is_socket()

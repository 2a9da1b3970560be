"""The state file and its folder."""

from pathlib import Path

import pytest

from zcache.swap.error import SwapError
from zcache.swap.process import ProcessIdentity
from zcache.swap.state import StateFolder, SwapState, decode, encode

STATE = SwapState(ProcessIdentity(7, 22), "/run/zcache/nbd.sock", "/run/zcache/control", ("size=1G",))


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "zcache")
    folder.create()
    return folder


@pytest.mark.parametrize("state", [STATE, STATE.with_device("/dev/nbd3", 99)])
def test_round_trip(state: SwapState, folder: StateFolder) -> None:
    assert decode(encode(state)) == state
    folder.save(state)
    assert folder.load() == state


def test_only_root_can_look_inside(folder: StateFolder) -> None:
    folder.save(STATE)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.state.stat().st_mode & 0o777 == 0o600


def test_no_folder_is_no_state(tmp_path: Path) -> None:
    assert StateFolder(tmp_path / "absent").load() is None


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"server": {"pid": 1}}'])
def test_a_damaged_state_is_one_line(folder: StateFolder, text: str) -> None:
    folder.state.write_text(text)
    with pytest.raises(SwapError, match=r"swap\.json is damaged"):
        folder.load()


def test_remove_leaves_what_is_not_ours(folder: StateFolder) -> None:
    folder.save(STATE)
    (folder.path / "letter").touch()
    folder.remove()
    assert [path.name for path in folder.path.iterdir()] == ["letter"]
    (folder.path / "letter").unlink()
    folder.remove()
    assert not folder.path.exists()


def test_one_at_a_time(folder: StateFolder) -> None:
    with folder.locked(), pytest.raises(SwapError, match="another swap-up or swap-down"), folder.locked():
        pass
    with folder.locked():
        pass

"""The state file and its folder."""

import json
import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from zcache.errors import SwapError
from zcache.keeper.state import Backing, StateFolder, SwapState, decode, encode
from zcache.linux.process import ProcessIdentity
from zcache.swap import down, up, upgrade

STATE = SwapState(ProcessIdentity(7, 22))
BACKED = SwapState(ProcessIdentity(7, 22), backing=Backing("/var/swap", 2049, 131, True))


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "zcache")
    folder.create()
    return folder


@pytest.mark.parametrize("state", [STATE, STATE.attached_by(99).with_device("/dev/nbd3"), BACKED])
def test_round_trip(state: SwapState, folder: StateFolder) -> None:
    assert decode(encode(state)) == state
    folder.save(state)
    assert folder.load() == state


def test_a_state_from_before_backings_were_noted(folder: StateFolder) -> None:
    """A swap that an older version turned on."""
    fields = json.loads(encode(STATE))
    del fields["backing"]
    folder.state.write_text(json.dumps(fields))
    assert folder.load() == STATE


def test_only_root_can_look_inside(folder: StateFolder) -> None:
    folder.save(STATE)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.state.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701])
def test_a_folder_that_is_everybodys_is_refused(tmp_path: Path, mode: int) -> None:
    """Such as /etc, where other programs have files of such names."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc").chmod(mode)
    with pytest.raises(SwapError, match="a folder of its own"):
        StateFolder(tmp_path / "etc").create()
    assert not list((tmp_path / "etc").iterdir())


def test_no_folder_is_no_state(tmp_path: Path) -> None:
    assert StateFolder(tmp_path / "absent").load() is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "{}", "[]", "null", '"text"', "1" * 5000, "[" * 100_000, "\0", '{"server": {"pid": 1}}'),
        encode(STATE).replace("22", "-22"),
        encode(STATE).replace(": 7", ": 0"),
        encode(STATE).replace(": 7", ": true"),
        encode(STATE).replace(": 7", ': "7"'),
        encode(STATE).replace(": 7", ": 99999999999"),
        encode(STATE).replace('"device": null', '"device": "/dev/sda"'),
        encode(STATE).replace('"device": null', '"device": "/dev/nbd/../sda"'),
        encode(STATE).replace('"attached_by_pid": null', '"attached_by_pid": -1'),
        encode(STATE).replace('"keeper"', '"sock"'),
        encode(BACKED).replace("/var", "var"),
        encode(BACKED).replace("131", "-131"),
        encode(BACKED).replace("131", "null"),
        encode(BACKED).replace("2049", "true"),
        encode(BACKED).replace("true", "1"),
        encode(BACKED).replace('"inode"', '"node"'),
    ],
)
def test_a_damaged_state_is_one_line(folder: StateFolder, text: str) -> None:
    folder.state.write_text(text)
    with pytest.raises(SwapError, match=r"swap\.json is damaged") as caught:
        folder.load()
    assert str(caught.value).isprintable()


def test_any_damage_to_a_state_is_a_state_or_one_line(folder: StateFolder, rng: random.Random) -> None:
    good = encode(BACKED.attached_by(99).with_device("/dev/nbd3")).encode()
    for _ in range(1000):
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            spot = rng.randrange(len(bad))
            bad[spot : spot + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        folder.state.write_bytes(bad)
        try:
            state = folder.load()
        except SwapError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert state and decode(encode(state)) == state


def test_remove_leaves_what_is_not_ours(folder: StateFolder) -> None:
    folder.save(STATE)
    (folder.path / "letter").touch()
    folder.remove()
    assert [path.name for path in folder.path.iterdir()] == ["letter"]
    (folder.path / "letter").unlink()
    folder.remove()
    assert not folder.path.exists()


def test_one_at_a_time(folder: StateFolder) -> None:
    with folder.locked(), pytest.raises(SwapError, match="another swap-up, swap-upgrade or swap-down"), folder.locked():
        pass
    with folder.locked():
        pass


def test_a_folder_that_others_may_write_to_is_not_believed(folder: StateFolder) -> None:
    folder.save(STATE)
    folder.path.chmod(0o770)
    for act in (folder.create, folder.load):
        with pytest.raises(SwapError, match="others may write"):
            act()


def test_who_waits_for_the_lock_gets_it(folder: StateFolder) -> None:
    asked: list[int] = []
    first = ExitStack()
    first.enter_context(folder.locked())

    def is_worth_waiting() -> bool:
        asked.append(len(asked))
        if len(asked) == 2:
            first.close()
        return True

    with folder.locked(is_worth_waiting):
        assert asked == [0, 1]


@pytest.mark.parametrize("name", ["reconnection", "control", "server.log", "nbd.sock", "armed"])
def test_what_lies_in_a_folder_without_a_state_is_left_alone(folder: StateFolder, name: str) -> None:
    (folder.path / name).write_text("precious")
    said: list[str] = []
    with pytest.raises(SwapError, match=rf"{name} is there, but no swap\.json"):
        down.run(folder, said.append, interval_seconds=1)
    with pytest.raises(SwapError, match=rf"{name} is there, but no swap\.json"):
        up.refuse_if_up(folder, said.append)
    assert (folder.path / name).read_text() == "precious" and not said


def test_what_a_swap_up_leaves_that_was_killed_at_once(folder: StateFolder) -> None:
    """It had an empty log, and no state yet, or was about to write the first."""
    folder.log.touch()
    folder.state.with_suffix(".part").write_text("{")
    up.refuse_if_up(folder, lambda _line: None)
    folder.log.touch()
    folder.state.with_suffix(".part").touch()
    down.run(folder, lambda _line: None, interval_seconds=1)
    assert not folder.path.exists()


def test_a_backing_file_is_where_its_caller_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server starts in /."""
    monkeypatch.chdir(tmp_path)
    parameters = up.parse(["size=1G", "backing=swap.img", "--priority", "3", "control=x"]).parameters
    assert parameters == ("size=1G", f"backing={tmp_path}/swap.img", "control=x")


def test_ctrl_c_in_swap_upgrade_is_one_line(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(upgrade, "upgrade", interrupted)
    assert upgrade.main([str(folder.path)]) == 130
    assert capsys.readouterr().err == "swap-upgrade: not waited for: the keeper may replace the server yet\n"

"""A backing file that swap-up made goes with the swap; any other stays."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.stores import new_object, small_store
from tests.support.swap_machine import DOWN_STEPS, FakeMachine
from zcache.beneath import troubles
from zcache.beneath.lookup import Mount
from zcache.client import command as cli
from zcache.control.status import gather_status
from zcache.errors import SwapError
from zcache.keeper import launch as keeper_process
from zcache.keeper.state import Backing, StateFolder, SwapState
from zcache.linux.process import ProcessIdentity
from zcache.swap import backing, up
from zcache.swap.buildup import Buildup, Options
from zcache.swap.teardown import Teardown
from zcache.tiers.backing_file import BackingFile
from zcache.tiers.header import HEADER


def serve(path: Path) -> None:
    """As a server does that starts on it, and has ended."""
    tier = BackingFile.open(path, needed_bytes=65536, new_bytes=65536, frame_bytes=4096, force=False)
    tier.close()
    assert path.read_bytes().startswith(HEADER) and path.stat().st_size >= 65536


def made(path: Path, is_kept: bool = False) -> Backing:
    below = backing.make(["size=1G", f"backing={path}"], is_kept)
    assert below and below.is_made and below.path == str(path) and path.stat().st_size == 0
    assert path.stat().st_mode & 0o777 == 0o600
    return below


def test_what_swap_up_made_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    below = made(path)
    serve(path)
    assert backing.remove(below) == f"backing {path}: removed"
    assert not path.exists()
    assert backing.remove(below) == f"backing {path}: was removed before"


def test_it_is_kept_on_request_but_for_a_swap_up_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    below = made(path, is_kept=True)
    serve(path)
    assert backing.remove(below) == f"backing {path}: kept" and path.exists()
    assert backing.remove(below, even_if_kept=True).endswith("removed") and not path.exists()


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    """Whatever it is: a leftover of zcache's own, too, which it takes."""
    path = tmp_path / "swap"
    made(path)
    serve(path)
    below = backing.make([f"backing={path}"], False)
    assert below == Backing(str(path))
    serve(path)
    assert "was there before" in backing.remove(below, even_if_kept=True)
    assert path.exists()


def replaced(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.write_bytes(HEADER)


def rewritten(path: Path) -> None:
    path.write_bytes(b"precious" * 4096)


def a_link(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.symlink_to(path.with_suffix(".old"))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [replaced, rewritten, a_link, a_folder])
def test_what_has_taken_its_place_stays(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """A file may even be given the number of one that is gone."""
    path = tmp_path / "swap"
    below = made(path)
    serve(path)
    change(path)
    said = backing.remove(below)
    assert "left as it is" in said or said.startswith("warning: "), said
    assert os.path.lexists(path)


def test_what_another_server_uses_by_now_stays(tmp_path: Path) -> None:
    """Of a swap that died whole: somebody serves its file by hand, or from another state folder."""
    path = tmp_path / "swap"
    below = made(path)
    serve(path)
    tier = BackingFile.open(path, needed_bytes=65536, new_bytes=65536, frame_bytes=4096, force=False)
    for even_if_kept in (False, True):
        said = backing.remove(below, even_if_kept)
        assert said == f"backing {path}: left as it is, for another server uses it" and path.exists()
    tier.close()
    assert backing.remove(below) == f"backing {path}: removed" and not path.exists()


def test_what_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "swap"
    below = made(path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "unlink", refuse)
    assert backing.remove(below) == f"warning: backing {path}: is not removed: Read-only file system"


def test_through_a_link_it_is_what_the_link_leads_to(tmp_path: Path) -> None:
    link, path = tmp_path / "link", tmp_path / "swap"
    link.symlink_to(path)
    below = backing.make([f"backing={link}"], False)
    assert below and below.is_made and below.path == str(path)
    serve(link)
    assert backing.remove(below).endswith("removed")
    assert link.is_symlink() and not path.exists()


@pytest.mark.parametrize("words", [["backing=/dev/sdz9"], ["backing=/nowhere/swap"], ["backing=/dev/null"]])
def test_what_the_server_will_refuse_is_not_made(words: list[str]) -> None:
    below = backing.make(words, False)
    assert below and not below.is_made and not os.path.lexists("/dev/sdz9")


def test_none_or_two() -> None:
    assert backing.make(["size=1G"], False) is None
    assert backing.make(["backing=/a", "backing=/b"], False) is None


def test_what_a_program_has_to_write_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine stood still: the server waited in the file system for a program that waited for
    its own page."""
    monkeypatch.setattr(troubles, "mount_of", lambda _descriptor: Mount("fuseblk", None))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    words = ("size=1G", "budget=64M", f"backing={tmp_path}/swap")
    with pytest.raises(SwapError, match=r"is on FUSE \(fuseblk\).*force=yes") as caught:
        up.check(Options(words))
    assert "\n" not in str(caught.value) and not (tmp_path / "swap").exists()
    up.check(Options((*words, "force=yes")))
    monkeypatch.setattr(troubles, "mount_of", lambda _descriptor: Mount("nfs4", None))
    up.check(Options(words))
    up.check(Options((*words[:2], "backing=/not/there/at/all")))  # which the server will refuse


class Machine(FakeMachine):
    def remove_backing(self, below: Backing) -> str:
        super().remove_backing(below)
        return backing.remove(below)


def test_it_goes_last_of_all(tmp_path: Path) -> None:
    """When the swap is off, and the keeper and its servers have ended."""
    folder, machine = StateFolder(tmp_path / "zcache"), Machine()
    folder.create()
    machine.backing = made(tmp_path / "swap")
    state = machine.bring_up(folder)
    assert folder.load() == state and state.backing == machine.backing
    machine.calls.clear()
    machine.take_down(state, folder)
    assert machine.calls == [*DOWN_STEPS, f"remove {tmp_path}/swap"]
    assert not (tmp_path / "swap").exists()


def test_a_swap_down_that_fails_leaves_it_for_the_next(tmp_path: Path) -> None:
    folder, machine = StateFolder(tmp_path / "zcache"), Machine()
    folder.create()
    machine.backing = made(tmp_path / "swap")
    state = machine.bring_up(folder)
    machine.failing = "detach"
    with pytest.raises(Exception, match="no such luck"):
        machine.take_down(state, folder)
    assert (tmp_path / "swap").exists()
    machine.failing = ""
    machine.take_down(state, folder)
    assert not (tmp_path / "swap").exists()


def test_the_next_swap_up_removes_what_one_left_that_is_gone(tmp_path: Path) -> None:
    """Keeper, servers and device are gone, and nobody has run swap-down. It would be taken for one
    that was there."""
    folder = StateFolder(tmp_path / "zcache")
    folder.create()
    below = made(tmp_path / "swap")
    folder.save(SwapState(ProcessIdentity(1 << 22, 1), backing=below))
    said: list[str] = []
    up.refuse_if_up(folder, said.append)
    assert said[-1] == f"backing {tmp_path}/swap: removed" and not (tmp_path / "swap").exists()


@pytest.mark.parametrize("keep", [False, True])
def test_a_server_that_does_not_start_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    path, folder = tmp_path / "swap", StateFolder(tmp_path / "zcache")
    folder.create()
    noted: list[Backing | None] = []
    machine = Buildup(Options((f"backing={path}",), keep_backing=keep), folder, lambda _line: None)
    monkeypatch.setattr(keeper_process, "command", lambda *_: ["false"])
    machine.start_server(lambda _keeper, below: noted.append(below))
    assert noted[0] and noted[0].is_made and path.exists()
    machine.stop_server()
    assert not path.exists()

    def fail(_keeper: ProcessIdentity, _below: Backing | None) -> None:
        assert path.exists()
        raise OSError("no room for the state")

    with pytest.raises(OSError, match="no room for the state"):
        machine.start_server(fail)
    assert not path.exists()


def test_teardown_removes_what_its_state_says(tmp_path: Path) -> None:
    below = made(tmp_path / "swap")
    machine = Teardown(lambda _line: None)
    assert machine.remove_backing(below).endswith("removed")
    machine.close()


def test_the_option() -> None:
    assert up.parse(["size=1G", "--keep-backing"]).keep_backing
    assert not up.parse(["size=1G"]).keep_backing


@pytest.mark.parametrize("is_kept", [False, True])
def test_status_says_where_it_is_and_what_becomes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_kept: bool
) -> None:
    store = small_store(budget_frames=16, below_frames=16)
    status = gather_status(store, new_object(store, 16), {}) | {"backing": f"{tmp_path}/swap"}
    folder = StateFolder(tmp_path / "zcache")
    folder.create()
    folder.save(SwapState(ProcessIdentity(7, 22), backing=made(tmp_path / "swap", is_kept)))
    monkeypatch.setattr(cli, "ask", lambda _path, _command: status)
    monkeypatch.setattr(sys, "argv", ["zcache", "status", "--control", str(folder.control)])
    assert cli.main() == 0
    goes = "" if is_kept else " (swap-up has made it, swap-down removes it)"
    assert f"backing: {tmp_path}/swap{goes}" in capsys.readouterr().out.splitlines()
    folder.state.write_text("damaged")
    assert cli.main() == 0
    assert f"backing: {tmp_path}/swap" in capsys.readouterr().out.splitlines()

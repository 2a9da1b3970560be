"""The keeper's control group, where there is none to be had, and its marks. (What a real one does
is for the VM.)"""

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from zcache.client import command as cli
from zcache.errors import SwapError
from zcache.keeper import __main__ as keeper
from zcache.keeper.state import StateFolder, SwapState
from zcache.linux import cgroup
from zcache.linux.cgroup import SwaplessGroup
from zcache.linux.process import identify
from zcache.swap import area, buildup, outside, sleep_units
from zcache.swap.buildup import Buildup, Options


def test_where_there_is_no_cgroup_v2_nothing_is_made_and_it_says_so(tmp_path: Path) -> None:
    """A tmpfs with the folders of version 1 takes any file, and keeps nobody from being swapped
    out."""
    (tmp_path / "memory").mkdir()
    problem = cgroup.enter_swapless("run-zcache", tmp_path)
    assert problem == f"{tmp_path} is not cgroup v2"
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


def test_a_group_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory")
    (tmp_path / "run-zcache").write_text("in the way")
    problem = cgroup.enter_swapless("run-zcache", tmp_path)
    assert problem and problem.startswith(f"{tmp_path}/run-zcache: ")


@pytest.fixture
def bare_root(tmp_path: Path) -> Path:
    """As far as files can be one."""
    (tmp_path / "cgroup.controllers").write_text("memory")
    return tmp_path


def test_the_group_is_marked_for_those_who_kill_by_groups(bare_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks: dict[tuple[Path, str], bytes] = {}
    monkeypatch.setattr(os, "setxattr", lambda path, name, value: marks.update({(path, name): value}))
    assert cgroup.enter_swapless("run-zcache", bare_root) is None
    group = bare_root / "run-zcache"
    assert marks == {(group, "user.oomd_omit"): b"1", (group, "user.survive_final_kill_signal"): b"1"}


def test_a_kernel_without_such_marks_has_the_group_all_the_same(
    bare_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "setxattr", refuse)
    assert cgroup.enter_swapless("run-zcache", bare_root) is None
    assert (bare_root / "run-zcache/cgroup.procs").read_text() == str(os.getpid())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The tree of a machine with systemd, as files; this process is in
    `system.slice/zcache.service`."""
    group = tmp_path / "system.slice/zcache.service"
    group.mkdir(parents=True)
    for folder in (tmp_path, group.parent):
        (folder / "cgroup.subtree_control").write_text("cpu\n")
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (group / "memory.swap.max").write_text("0\n")
    (tmp_path / "own").write_text("1:name=systemd:/x\n0::/system.slice/zcache.service\n")
    return tmp_path


def test_a_group_that_keeps_its_limit(root: Path) -> None:
    group = SwaplessGroup(root, root / "own")
    assert group.holds() and group.holds()
    assert (root / "cgroup.subtree_control").read_text() == "cpu\n"


def test_a_limit_that_another_has_written_is_put_back(root: Path) -> None:
    group = SwaplessGroup(root, root / "own")
    limit = root / "system.slice/zcache.service/memory.swap.max"
    limit.write_text("max\n")
    assert not group.holds() and not cgroup.is_swapless(root, root / "own")
    group.put_back()
    assert limit.read_text() == "0"
    limit.write_text("0\n")  # as the kernel shows it
    assert group.holds()


def test_a_controller_that_was_switched_off_is_switched_on_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the root on; the limit's file is a new one then."""
    group = SwaplessGroup(root, root / "own")
    limit = root / "system.slice/zcache.service/memory.swap.max"
    limit.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refuse)
        assert not group.holds()
    group.put_back()
    assert [(root / each / "cgroup.subtree_control").read_text() for each in (".", "system.slice")] == ["+memory"] * 2
    limit.write_text("0\n")
    assert group.holds()
    limit.write_text("max\n")
    assert not group.holds()


def refuse(*_: object) -> bytes:
    raise OSError(errno.ENODEV, "No such device")


def test_the_keeper_says_in_these_words_that_it_has_no_limit() -> None:
    """Status looks for them in its log; older keepers, which are running, have used the same."""
    assert outside.NO_LIMIT in Path(keeper.__file__).read_text()


def test_a_group_without_a_limit_is_none_to_watch(root: Path) -> None:
    (root / "own").write_text("0::/\n")
    with pytest.raises(FileNotFoundError):
        SwaplessGroup(root, root / "own")


def test_a_scope_is_wanted_where_systemd_runs_and_has_made_no_group_for_us(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert not cgroup.needs_scope(root, run)
    (run / "systemd/system").mkdir(parents=True)
    assert cgroup.needs_scope(root, run)  # this process is in no such group
    command = cgroup.scope("srv-my swap@1")
    assert command[:2] == ["systemd-run", "--scope"] and "--unit=srv-my_swap_1.scope" in command and command[-1] == "--"
    assert {"MemorySwapMax=0", "SendSIGKILL=no", "OOMPolicy=continue"} <= set(command)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Buildup, list[str]]:
    """One with systemd, and what it reports."""
    said: list[str] = []
    monkeypatch.setattr(cgroup, "needs_scope", lambda: True)
    monkeypatch.setattr(area, "run", lambda _command: None)
    return Buildup(Options(), StateFolder(tmp_path / "zcache"), said.append), said


@pytest.mark.parametrize("looks", [0, 3, 1 << 30])
def test_a_scope_whose_name_is_still_taken_is_waited_for_and_then_has_another_name(
    machine: tuple[Buildup, list[str]], monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """swap-down has ended, and PID 1 has not seen it yet; or something is left in it. systemd-run
    would fail."""
    asked: list[str] = []

    def show(words: Sequence[str]) -> str:
        assert words[:3] == ["show", "--property=LoadState", "--value"]
        asked.append(words[3])
        return "loaded\n" if len(asked) <= looks else "not-found\n"

    monkeypatch.setattr(buildup, "SCOPE_SECONDS", 0.0 if looks > 3 else 60.0)
    monkeypatch.setattr(sleep_units.is_free, "__defaults__", (show,))
    [unit] = [word.removeprefix("--unit=") for word in machine[0].scope() if word.startswith("--unit=")]
    name = machine[0].folder.cgroup
    assert set(asked) == {cgroup.scope_unit(name)} and (len(asked) == looks + 1 or looks > 3)
    assert unit == cgroup.scope_unit(f"{name}-{os.getpid()}" if looks > 3 else name)
    assert machine[1] == []


def test_a_keeper_without_a_scope_is_explained(
    machine: tuple[Buildup, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(command: Sequence[str]) -> None:
        assert any(word.endswith(f"-trial-{os.getpid()}.scope") for word in command)  # of no other swap-up
        raise SwapError("systemd-run failed: Access denied")

    monkeypatch.setattr(area, "run", refuse)
    assert machine[0].scope() == []
    assert "Access denied" in machine[1][0] and "the keeper puts it back" in machine[1][0]


def test_status_is_degraded_when_the_limit_is_gone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = StateFolder(tmp_path / "zcache")
    folder.create()
    own = identify(os.getpid())
    assert own
    folder.save(SwapState(own))
    shown: dict[str, object] = {"state": "ok", "reasons": [], "pid": os.getpid(), "backing": None}

    monkeypatch.setattr(outside.troubles, "__defaults__", (root, Path("/proc")))
    monkeypatch.setattr(cli, "ask", lambda _path, _command: dict(shown))
    monkeypatch.setattr(sys, "argv", ["zcache", "status", "--json", "--control", str(folder.control)])
    for is_set, state, count in ((True, "ok", 0), (False, "degraded", 1)):
        monkeypatch.setattr(cgroup, "is_swapless", lambda _root, _own, is_set=is_set: is_set)
        assert cli.main() == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["state"], len(said["reasons"])) == (state, count)
    both = f"the control group of the keeper (pid {os.getpid()}) and the server (pid {os.getpid()}) has lost"
    assert both in said["reasons"][0] and "memory.swap.max=0" in said["reasons"][0]
    folder.log.write_text(f"zcache keeper: {outside.NO_LIMIT}/sys/fs/cgroup/run-zcache: Read-only file system\n")
    assert cli.main() == 0
    assert json.loads(capsys.readouterr().out)["state"] == "ok"  # and the keeper puts nothing back
    folder.log.write_text("zcache keeper: all is well\n")
    assert cli.main() == 0
    assert json.loads(capsys.readouterr().out)["state"] == "degraded"
    folder.remove()  # a server that is not swap-up's
    assert cli.main() == 0
    assert json.loads(capsys.readouterr().out)["state"] == "ok"

"""The keeper's control group, where there is none to be had, and its marks. (What a real one does is for the VM.)"""

import os
from pathlib import Path

import pytest

from zcache.swap import cgroup


def test_where_there_is_no_cgroup_v2_nothing_is_made_and_it_says_so(tmp_path: Path) -> None:
    """A tmpfs with the folders of version 1 takes any file, and keeps nobody from being swapped out."""
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
def root(tmp_path: Path) -> Path:
    """As far as files can be one."""
    (tmp_path / "cgroup.controllers").write_text("memory")
    return tmp_path


def test_the_group_is_marked_for_those_who_kill_by_groups(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks: dict[tuple[Path, str], bytes] = {}
    monkeypatch.setattr(os, "setxattr", lambda path, name, value: marks.update({(path, name): value}))
    assert cgroup.enter_swapless("run-zcache", root) is None
    group = root / "run-zcache"
    assert marks == {(group, "user.oomd_omit"): b"1", (group, "user.survive_final_kill_signal"): b"1"}


def test_a_kernel_without_such_marks_has_the_group_all_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "setxattr", refuse)
    assert cgroup.enter_swapless("run-zcache", root) is None
    assert (root / "run-zcache/cgroup.procs").read_text() == str(os.getpid())

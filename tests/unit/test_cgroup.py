"""The keeper's control group, where there is none to be had. (What a real one does is for the VM to see.)"""

from pathlib import Path

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

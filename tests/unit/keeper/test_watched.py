"""What is set outside of keeper and servers, and put back when others have changed it: files
here."""

import errno
import os
from pathlib import Path

import pytest

from tests.unit.keeper.test_reserve import USUAL_KIB, Machine
from zcache.keeper import reserve as reserve_module
from zcache.keeper import watched
from zcache.keeper.reserve import Reserve
from zcache.keeper.state import StateFolder, SwapState
from zcache.keeper.watched import Watched
from zcache.linux.process import identify
from zcache.swap import outside, sysctls

SERVER = 4711


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a keeper (this process), a server, and what swap-up has set."""
    monkeypatch.setattr(reserve_module, "_is_real_time", lambda: True)
    Machine(tmp_path)
    (tmp_path / "sys/vm/watermark_boost_factor").write_text("0\n")
    for pid in (os.getpid(), SERVER):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / f"{pid}/oom_score_adj").write_text("-1000\n")
    return tmp_path


def watch(proc: Path) -> Watched:
    reserve = Reserve(proc)
    reserve.remember()
    return Watched(reserve, proc)


def put_back(kept: Watched, *pids: int) -> list[str]:
    """At two looks: who has lowered the watermark is waited for."""
    return [*kept.put_back(pids), *kept.put_back(pids)]


def test_what_is_as_it_should_be_is_left_alone(proc: Path) -> None:
    (proc / "sys/vm/min_free_kbytes").write_text(f"{USUAL_KIB}\n")
    kept = watch(proc)
    (proc / "sys/vm/min_free_kbytes").write_text(f"{2 * USUAL_KIB}\n")  # more is no harm
    assert put_back(kept, SERVER) == []
    assert (proc / "sys/vm/min_free_kbytes").read_text() == f"{2 * USUAL_KIB}\n"


@pytest.mark.parametrize(
    ("name", "changed", "held"),
    [
        ("sys/vm/watermark_boost_factor", "15000", "0"),
        ("sys/vm/min_free_kbytes", "2000", str(USUAL_KIB)),
        (f"{os.getpid()}/oom_score_adj", "0", "-1000"),
        (f"{SERVER}/oom_score_adj", "-500", "-1000"),
    ],
)
def test_what_another_has_changed_is_put_back_and_told(proc: Path, name: str, changed: str, held: str) -> None:
    kept = watch(proc)
    (proc / name).write_text(f"{changed}\n")
    [line, *again] = put_back(kept, SERVER)
    assert again in ([], [line])  # a file here keeps what was behind, as none of the kernel's does
    assert f"has to be {held} while the swap is on: put back" in line
    (proc / name).write_text((proc / name).read_text()[: len(held)] + "\n")  # a file of the kernel's is written whole
    assert (proc / name).read_text().strip() == held
    assert kept.put_back([SERVER]) == []


def test_what_cannot_be_put_back_is_told_and_keeps_nothing_else_from_it(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = watch(proc)
    (proc / f"{SERVER}/oom_score_adj").write_text("7\n")
    (proc / "sys/vm/min_free_kbytes").write_text("2000\n")

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    kept.put_back([SERVER + 1, SERVER])  # one has ended; the watermark is looked at once more
    monkeypatch.setattr(os, "pwrite", refuse)
    monkeypatch.setattr(Reserve, "write", lambda _self, _kib: None)
    (proc / f"{SERVER}/oom_score_adj").write_text("7\n")
    said = kept.put_back([SERVER + 1, SERVER])
    assert len(said) == 2 and said[0].startswith("WARNING: ") and "Permission denied" in said[0]
    assert "min_free_kbytes" in said[1]


def test_a_keeper_that_could_not_be_spared_spares_no_servers(proc: Path) -> None:
    (proc / f"{os.getpid()}/oom_score_adj").write_text("0\n")
    assert watch(proc).put_back([SERVER]) == []


def test_a_watermark_that_another_keeper_moves_is_left_to_it(proc: Path) -> None:
    """Its server has died, and it lends what is free to the next one."""
    kept = watch(proc)
    for kib in (9000, 8000, 7000, 9500):
        (proc / "sys/vm/min_free_kbytes").write_text(f"{kib}\n")
        assert kept.put_back([SERVER]) == []


def test_servers_that_come_and_go_leave_nothing_open(proc: Path) -> None:
    kept = watch(proc)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for pid in range(5000, 5020):
        (proc / str(pid)).mkdir()
        (proc / f"{pid}/oom_score_adj").write_text("-1000\n")
        assert kept.put_back([pid]) == []
    kept.put_back([])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_reserve_is_not_touched_while_it_is_lent(proc: Path) -> None:
    reserve = Reserve(proc)
    reserve.remember()
    (proc / "sys/vm/min_free_kbytes").write_text("2000\n")
    reserve.is_lent = True
    assert reserve.raise_again() == 0
    reserve.is_lent = False
    assert [reserve.raise_again(), reserve.raise_again()] == [0, USUAL_KIB]


def test_it_watches_what_swap_up_sets() -> None:
    assert watched.BOOST_FACTOR == sysctls.BOOST_FACTOR


def test_status_says_whose_score_is_another_one_if_it_could_be_set(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "zcache")
    folder.create()
    own = identify(os.getpid())  # the keeper, and the server
    assert own
    folder.save(SwapState(own))
    score = Path("/proc/self/oom_score_adj").read_text().strip()
    assert outside.troubles(folder, own.pid, tmp_path) == []
    for line in outside.troubles(folder, own.pid, tmp_path, is_exempt=True):
        assert line.startswith(f"the OOM score of process {own.pid} is {score}, and has to be -1000 ")
    assert len(outside.troubles(folder, own.pid, tmp_path, is_exempt=True)) == 2

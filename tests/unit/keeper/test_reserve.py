"""The kernel's reserve, lent and taken back: the files of /proc are ordinary ones here.

On a real kernel: tests/vm/swap_commands.py, `double_death`.
"""

import os
import time
from pathlib import Path

import pytest

from zcache.keeper.reserve import FLOOR_KIB, LENT_KIB, MAX_PROGRAMS, Reserve

ZONEINFO = """\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 449
  pages free     694
        boost    0
        min      187
        managed  3840
        cma      0
        protection: (0, 612, 612, 612, 612)
Node 0, zone    DMA32
  pages free     3861
        min      7780
        managed  159606
        cma      0
        protection: (0, 0, 0, 0, 0)
Node 0, zone  Movable
  pages free     0
        managed  999999
        protection: (0, 0, 0, 0, 0)
"""
PAGE_KIB = 4
SHARE = (3840 + 159606) / 159606
USUAL_KIB = 31_868


class Machine:
    """What the kernel says, and what is asked of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "sys/vm").mkdir(parents=True)
        (root / "zoneinfo").write_text(ZONEINFO)
        (root / "sysrq-trigger").touch()
        self._min_free = root / "sys/vm/min_free_kbytes"
        self._min_free.write_text(f"{USUAL_KIB}\n")
        self._free_kib = 0
        self.dma_pages = 612
        self.free_kib = 100_000

    @property
    def free_kib(self) -> int:
        """Of the largest zone."""
        return self._free_kib

    @free_kib.setter
    def free_kib(self, kib: int) -> None:
        self._free_kib = kib
        self._write_buddyinfo()

    @property
    def dma_pages(self) -> int:
        """Free in the smallest zone, all protected at first."""
        return self._dma_pages

    @dma_pages.setter
    def dma_pages(self, count: int) -> None:
        self._dma_pages = count
        self._write_buddyinfo()

    def _write_buddyinfo(self) -> None:
        pairs, single = divmod(self._free_kib // PAGE_KIB, 2)
        dma = f"Node 0, zone      DMA {self._dma_pages:6}      0"
        (self.root / "buddyinfo").write_text(f"{dma}\nNode 0, zone    DMA32 {single:6} {pairs:6}\n")

    @property
    def min_kib(self) -> int:
        """A shorter number leaves the end of a longer one, which is no digit of it in the kernel's
        file."""
        return int(self._min_free.read_text().split()[0])

    @property
    def asked_for(self) -> str:
        return (self.root / "sysrq-trigger").read_text()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    write = Reserve.write
    monkeypatch.setattr(os, "sched_getscheduler", lambda _pid: os.SCHED_RR)
    monkeypatch.setattr(Reserve, "write", lambda self, kib: write(self, f"{kib} "))  # type: ignore[arg-type]
    return Machine(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_what_is_free_is_nobody_else_s_and_comes_back(machine: Machine) -> None:
    """The watermark, as the kernel shares it out, is where the free memory of the largest zone
    ends."""
    reserve = Reserve(machine.root)
    for free_kib in (70_000, 50_000, 20_000, 30_000):
        machine.free_kib = free_kib
        reserve.lend(is_all=True)
        assert machine.min_kib / SHARE == pytest.approx(free_kib, abs=PAGE_KIB)
    machine.free_kib = 20_000
    reserve.take_back()
    assert machine.min_kib / SHARE == pytest.approx(20_000, abs=PAGE_KIB)
    machine.free_kib = 100_000
    reserve.take_back()
    assert machine.min_kib == USUAL_KIB
    machine.free_kib = 20_000
    reserve.take_back()
    assert machine.min_kib == USUAL_KIB


def test_with_memory_to_spare_not_much_is_asked_for(machine: Machine) -> None:
    machine.free_kib = 1 << 22
    reserve = Reserve(machine.root)
    reserve.lend(is_all=True)
    assert machine.min_kib == USUAL_KIB + LENT_KIB
    reserve.put_back()
    assert machine.min_kib == USUAL_KIB


def test_a_standby_that_takes_over_is_lent_only_what_is_below_the_watermark(machine: Machine) -> None:
    reserve = Reserve(machine.root)
    reserve.lend(is_all=False)
    assert machine.min_kib == USUAL_KIB
    machine.free_kib = 10_000
    reserve.lend(is_all=False)
    assert machine.min_kib / SHARE == pytest.approx(10_000, abs=PAGE_KIB)


def test_a_reserve_that_is_used_up(machine: Machine, clock: list[float]) -> None:
    reserve = Reserve(machine.root)
    assert not reserve.is_used_up()
    machine.free_kib = FLOOR_KIB // 2
    for _ in range(3):
        reserve.lend(is_all=True)
        assert machine.min_kib == FLOOR_KIB
        assert not reserve.is_used_up()
        clock[0] += 2
    assert reserve.is_used_up()
    reserve.kill_a_program()
    assert machine.asked_for == "f" and not reserve.is_used_up()
    for _ in range(3):
        clock[0] += 2
        reserve.lend(is_all=True)
    assert reserve.is_used_up()
    machine.free_kib = 2 * FLOOR_KIB
    reserve.lend(is_all=True)
    assert not reserve.is_used_up()


def used_up(reserve: Reserve, clock: list[float]) -> bool:
    for _ in range(4):
        reserve.lend(is_all=True)
        clock[0] += 2
    return reserve.is_used_up()


def test_not_all_programs_are_ended_for_a_server_that_never_serves(machine: Machine, clock: list[float]) -> None:
    reserve = Reserve(machine.root)
    machine.free_kib = 0
    for _ in range(MAX_PROGRAMS):
        assert used_up(reserve, clock)
        reserve.kill_a_program()
    assert not used_up(reserve, clock)
    machine.free_kib = 100_000
    reserve.take_back()
    machine.free_kib = 0
    assert used_up(reserve, clock), "the next time that there is no server"


def test_a_keeper_that_has_not_looked_for_a_while_looks_again_first(machine: Machine, clock: list[float]) -> None:
    reserve = Reserve(machine.root)
    machine.free_kib = 0
    reserve.lend(is_all=True)
    clock[0] += 60
    reserve.lend(is_all=True)
    assert not reserve.is_used_up()


def test_the_watermark_comes_back_to_what_it_was_when_the_swap_came_on(machine: Machine) -> None:
    (machine.root / "sys/vm/min_free_kbytes").write_text("4000\n")
    reserve = Reserve(machine.root)
    (machine.root / "sys/vm/min_free_kbytes").write_text("16384\n")
    reserve.remember()
    machine.free_kib = 70_000
    reserve.lend(is_all=True)
    reserve.put_back()
    assert machine.min_kib == 16_384


def test_without_real_time_the_server_would_be_kept_out_like_everybody(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getscheduler", lambda _pid: os.SCHED_OTHER)
    reserve = Reserve(machine.root)
    reserve.lend(is_all=True)
    assert machine.min_kib == USUAL_KIB and not reserve.is_used_up()


def test_a_machine_with_less_in_reserve_than_the_least(machine: Machine) -> None:
    (machine.root / "sys/vm/min_free_kbytes").write_text("1000\n")
    machine.free_kib = 500
    reserve = Reserve(machine.root)
    reserve.lend(is_all=False)
    assert machine.min_kib == 1000


def test_a_full_zone_is_not_a_full_machine(machine: Machine, clock: list[float]) -> None:
    """Nobody dies for it: a server takes what it needs from another zone."""
    reserve = Reserve(machine.root)
    machine.free_kib = 0
    machine.dma_pages = 612 + FLOOR_KIB
    for _ in range(3):
        reserve.lend(is_all=True)
        clock[0] += 4
    reserve.lend(is_all=True)
    assert not reserve.is_used_up()


def test_memory_that_is_kept_for_others_is_not_free(machine: Machine) -> None:
    """As on a machine most of whose memory is in DMA32, and some above it."""
    zoneinfo = machine.root / "zoneinfo"
    zoneinfo.write_text(zoneinfo.read_text().replace("(0, 0, 0, 0, 0)", "(0, 0, 1000, 1000, 1000)", 1))
    machine.free_kib = 24_000
    reserve = Reserve(machine.root)
    reserve.lend(is_all=True)
    assert machine.min_kib / SHARE == pytest.approx(20_000, abs=PAGE_KIB)


@pytest.mark.parametrize("missing", ["sys/vm/min_free_kbytes", "buddyinfo", "zoneinfo"])
def test_a_kernel_that_has_no_such_files(machine: Machine, missing: str) -> None:
    (machine.root / missing).unlink()
    reserve = Reserve(machine.root)
    reserve.lend(is_all=True)
    reserve.take_back()
    reserve.put_back()
    assert not reserve.is_used_up()
    assert machine.asked_for == ""


def test_this_machine_s_own_files() -> None:
    """Only read."""
    reserve = Reserve()
    largest = reserve.zones[0]
    assert largest.managed == max(zone.managed for zone in reserve.zones)
    assert largest.free_kib(Path("/proc/buddyinfo").read_text()) > 0

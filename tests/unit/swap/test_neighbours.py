"""What is said of other swap: by swap-up, and in `zcache status`."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.stores import new_object, small_store
from tests.unit.swap.test_area import HEADING, NBD
from zcache.client import command as cli
from zcache.control.status import gather_status
from zcache.linux.proc_swaps import ProcSwaps, SwapEntry, parse_swaps
from zcache.swap import neighbours

ZRAM = "/dev/zram0                              partition\t524284\t\t1024\t\t{}\n"
DISK = "/dev/vda2                               partition\t1000000\t\t0\t\t-2\n"


def said(others: str, priority: int = 100, has_zswap: bool = False) -> list[str]:
    areas = parse_swaps(HEADING + others + NBD.replace("\t100\n", f"\t{priority}\n"))
    return list(neighbours.remarks("/dev/nbd0", priority, areas, has_zswap))


def test_alone_or_first_nothing_is_said() -> None:
    assert said("") == said(DISK) == said(ZRAM.format(99) + DISK) == []


def test_the_same_priority() -> None:
    """zram-generator's is 100, and so is ours."""
    (line,) = said(ZRAM.format(100) + DISK)
    assert line.startswith("/dev/zram0: the same priority as /dev/nbd0 (100)") and line.endswith("give --priority 101")


def test_a_higher_priority() -> None:
    (line,) = said(ZRAM.format(150))
    assert line.startswith("/dev/zram0 (150): a higher priority than /dev/nbd0 (100)")
    assert line.endswith("give --priority 151")


def test_what_is_given_is_above_all_of_them_or_cannot_be() -> None:
    both = said(ZRAM.format(100) + ZRAM.replace("zram0", "zram1").format(200))
    assert len(both) == 2 and all(line.endswith("give --priority 201") for line in both)
    (line,) = said(ZRAM.format(32767))
    assert line.endswith("give that one a lower priority")


def test_two_of_ours_may_share() -> None:
    assert said(NBD.replace("nbd0", "nbd1")) == []


def test_zswap(tmp_path: Path) -> None:
    (line,) = said("", has_zswap=True)
    assert "echo N > /sys/module/zswap/parameters/enabled" in line and "zswap.enabled=0" in line
    switch = tmp_path / "enabled"
    assert not neighbours.is_zswap_on(switch)
    for text, is_on in (("Y\n", True), ("N\n", False)):
        switch.write_text(text)
        assert neighbours.is_zswap_on(switch) is is_on


def test_the_order_is_the_kernels() -> None:
    """Of the same priority, as they were turned on, which is how /proc/swaps has them."""
    areas = [SwapEntry(name, 1, 0, priority) for name, priority in (("a", -2), ("b", 5), ("c", 100), ("d", 5))]
    assert [area.path for area in neighbours.in_order(areas)] == ["c", "b", "d", "a"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose swap is that, and where a server answers."""
    swaps = tmp_path / "swaps"
    swaps.write_text(HEADING + DISK + NBD + ZRAM.format(200))
    monkeypatch.setattr(cli, "ProcSwaps", lambda: ProcSwaps(swaps))
    monkeypatch.setattr(neighbours, "is_zswap_on", lambda: True)
    monkeypatch.setattr(cli, "ask", lambda _path, _command: status_of_a_store())


def status_of_a_store() -> dict[str, object]:
    store = small_store(budget_frames=16, below_frames=16)
    return gather_status(store, new_object(store, 16), {})


@pytest.mark.usefixtures("machine")
def test_status_shows_all_areas_in_that_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["zcache", "status"])
    assert cli.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["NAME", "/dev/zram0", "/dev/nbd0", "/dev/vda2"]
    assert lines[-3].split() == ["/dev/zram0", "partition", "512.0M", "1.0M", "200"]
    assert lines[-5] == "all swap, as the kernel fills it: zswap, and then"


@pytest.mark.usefixtures("machine")
def test_status_as_json_has_them_beside_all_that_was_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["zcache", "status", "--json"])
    assert cli.main() == 0
    status = json.loads(capsys.readouterr().out)
    assert status_of_a_store().keys() <= status.keys()
    assert status["zswap"] is True and status["swap_areas"][1] == {
        "path": "/dev/nbd0",
        "type": "partition",
        "size_bytes": 1048572 << 10,
        "used_bytes": 2816 << 10,
        "priority": 100,
    }


@pytest.mark.usefixtures("machine")
def test_a_machine_without_swap_has_no_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> ProcSwaps:
        raise FileNotFoundError

    monkeypatch.setattr(cli, "ProcSwaps", refuse)
    monkeypatch.setattr(sys, "argv", ["zcache", "status"])
    assert cli.main() == 0
    assert "all swap" not in capsys.readouterr().out

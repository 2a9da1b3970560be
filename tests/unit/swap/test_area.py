"""/proc/swaps, the tools, and what swapoff's end means."""

import errno
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from zcache.errors import SwapError
from zcache.linux.proc_swaps import ProcSwaps, SwapEntry, parse_swaps
from zcache.swap import area, room, swapoff

HEADING = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
NBD = "/dev/nbd0                               partition\t1048572\t\t2816\t\t100\n"
FILE = r"/mnt/my\040swap (deleted)               file" + "\t\t4092\t\t0\t\t-2\n"


def test_parse() -> None:
    assert parse_swaps(HEADING + NBD + FILE) == [
        SwapEntry("/dev/nbd0", 1048572, 2816, 100),
        SwapEntry("/mnt/my swap", 4092, 0, -2, "file"),
    ]
    assert parse_swaps(HEADING) == []
    assert parse_swaps("") == []


def test_find_reads_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "swaps"
    path.write_text(HEADING)
    swaps = ProcSwaps(path)
    assert swaps.find("/dev/nbd0") is None
    path.write_text(HEADING + NBD)
    entry = swaps.find("/dev/nbd0")
    assert entry is not None
    assert entry.used_kib == 2816
    assert swaps.find("/dev/nbd1") is None
    assert swaps.find(None) is None
    swaps.close()


def test_verify_believes_the_kernel_only(tmp_path: Path) -> None:
    path = tmp_path / "swaps"
    path.write_text(HEADING + NBD)
    swaps = ProcSwaps(path)
    assert area.verify_on("/dev/nbd0", 100, swaps).size_kib == 1048572
    with pytest.raises(SwapError, match="priority 100 instead of 5"):
        area.verify_on("/dev/nbd0", 5, swaps)
    with pytest.raises(SwapError, match="not in /proc/swaps"):
        area.verify_on("/dev/nbd1", 100, swaps)
    swaps.close()


def test_commands() -> None:
    ran: list[Sequence[str]] = []
    area.make_swap("/dev/nbd0", ran.append)
    area.swap_on("/dev/nbd0", 7, discard=False, runner=ran.append)
    area.swap_on("/dev/nbd0", 7, discard=True, runner=ran.append)
    assert ran == [
        ["mkswap", "--label", "zcache", "/dev/nbd0"],
        ["swapon", "--priority", "7", "/dev/nbd0"],
        ["swapon", "--priority", "7", "--discard", "/dev/nbd0"],
    ]


def test_a_failing_tool_speaks_for_itself() -> None:
    with pytest.raises(SwapError, match=r"^sh failed: no such luck$"):
        area.run(["sh", "-c", "echo first; echo no such luck >&2; exit 3"])
    with pytest.raises(SwapError, match=r"^false failed: exit status 1$"):
        area.run(["false"])
    with pytest.raises(SwapError, match="not installed"):
        area.run(["no-such-program-of-zcache"])


def test_how_swapoff_ended() -> None:
    assert swapoff.explain(0) is None
    for wait_status, words in (
        (signal.SIGKILL, "memory ran out"),
        (signal.SIGINT, "ended by SIGINT"),
        (errno.ENOMEM << 8, "too little memory"),
        (errno.EINVAL << 8, "Invalid argument"),
    ):
        said = swapoff.explain(wait_status)
        assert said is not None
        assert words in said
        assert "still on" in said


def test_swapoff_of_what_is_no_swap_fails_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(SwapError, match="swapoff failed"):
        swapoff.swap_off(str(tmp_path / "absent"), progress=lambda: None, interval_seconds=1)


def test_room_for_what_is_out(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       1000000 kB\nMemFree:          50000 kB\nMemAvailable:     200000 kB\n")
    ours = SwapEntry("/dev/nbd0", 1000000, 150000, 100)
    assert room.shortage_kib("/dev/nbd0", [ours], meminfo) == 0
    more = SwapEntry("/dev/nbd0", 1000000, 190000, 100)
    assert room.shortage_kib("/dev/nbd0", [more], meminfo) == 190000 + 1000000 // 32 - 200000
    other = SwapEntry("/dev/sdb2", 500000, 300000, 1)
    assert room.shortage_kib("/dev/nbd0", [more, other], meminfo) == 0
    meminfo.write_text("MemTotal:      64000000 kB\nMemAvailable:     200000 kB\n")
    assert room.shortage_kib("/dev/nbd0", [more], meminfo) == 190000 + room.RESERVE_MOST_KIB - 200000
    meminfo.write_text("MemTotal: 1000000 kB\nMemAvailable: 0 kB\n")
    assert room.shortage_kib("/dev/nbd0", [SwapEntry("/dev/nbd0", 1000000, 0, 100)], meminfo) == 0
    assert room.shortage_kib("/dev/nbd0", [], meminfo) == 0

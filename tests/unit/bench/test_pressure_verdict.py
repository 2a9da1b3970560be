"""scripts/pressure: what makes a cell fail, and which cell bears it when the guest goes down."""

import json
from pathlib import Path
from typing import Any

import pytest

from zcache.bench.pressure.__main__ import judge_guest
from zcache.bench.pressure.results import Cell, read_results, summary, write_results
from zcache.bench.pressure.verdict import judge_report
from zcache.bench.run.__main__ import LOSSES
from zcache.testvm import VmResult

MARK = "[  10.000000] zcache pressure: cell {}\n"


def good_report() -> dict[str, Any]:
    return {
        "programs": [
            {"command": ["heap.py"], "exit_status": 0, "said": "", "longest_touch_seconds": 0.2},
            {"command": ["reader.py"], "exit_status": 0, "said": "", "read_mib": 2000},
        ],
        "pages_out": 30_000,
        "pages_in": 20_000,
        "oom_kills": 0,
        "longest_gap_seconds": 0.3,
        "status": dict.fromkeys(LOSSES, 0),
        "check": {"balanced": True},
        "server_replaced": False,
    }


def test_a_good_report_passes() -> None:
    assert judge_report(good_report(), 512) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pages_out": 0}, "hardly swapped: pages_out"),
        ({"pages_in": 100}, "hardly swapped: pages_in"),
        ({"oom_kills": 1}, "killed for memory"),
        ({"check": {"balanced": False, "imbalance": "one too many"}}, "one too many"),
        ({"server_replaced": True}, "server did not live"),
        ({"status": dict.fromkeys(LOSSES, 0) | {"lost_pages": 2}}, "lost_pages is 2"),
        ({"longest_gap_seconds": None}, "ticker"),
        ({"error": "swap-up failed"}, "swap-up failed"),
        ({"programs": [{"command": ["x"], "exit_status": 1, "said": "page 3 is WRONG"}]}, "page 3 is WRONG"),
        ({"programs": [{"command": ["x"], "exit_status": None, "said": ""}]}, "did not end"),
        ({"programs": [{"command": ["x"], "exit_status": 0, "said": "", "read_mib": 100}]}, "less than memory"),
    ],
)
def test_each_thing_that_is_wrong_is_said(change: dict[str, Any], said: str) -> None:
    (failure,) = judge_report(good_report() | change, 512)
    assert said in failure


class Share:
    """A guest's folder and log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "kernel.log"
        (folder / "output").write_text("")

    def report(self, load: str) -> None:
        (self.folder / f"{load}.json").write_text(json.dumps(good_report()))

    def judge(self, exit_status: int | None, status: dict[str, Any] | None = None) -> list[Cell]:
        failure = None if exit_status is not None else "no end after 60 s"
        result = VmResult(exit_status, exit_status is None, False, self.log, 1.0, failure, status)
        cells = [Cell(512, "self", load, 1, 85) for load in ("stress", "heartbeat", "cache")]
        return judge_guest(cells, self.folder, result)


@pytest.fixture
def share(tmp_path: Path) -> Share:
    return Share(tmp_path)


def test_a_wedged_guest_fails_the_cell_it_wedged_in_and_leaves_the_rest_to_another(share: Share) -> None:
    share.log.write_text("booting\n" + MARK.format("stress") + "all is well\n" + MARK.format("heartbeat"))
    share.report("stress")
    stress, heartbeat = share.judge(None)
    assert stress.failures == []
    assert heartbeat.failures == ["no report", "the guest: no end after 60 s"]


def test_a_guest_that_does_not_boot_fails_its_first_cell(share: Share) -> None:
    share.log.write_text("")
    (stress,) = share.judge(None)
    assert stress.verdict == "FAILED"


def test_trouble_in_the_kernel_log_belongs_to_the_cell_it_came_in(share: Share) -> None:
    marks = [MARK.format(load) for load in ("stress", "heartbeat", "cache")]
    kill = "[ 11.0] Out of memory: Killed process 12 (nbdkit) total-vm:1kB\n"
    share.log.write_text(marks[0] + marks[1] + kill + marks[2])
    for load in ("stress", "heartbeat", "cache"):
        share.report(load)
    cells = share.judge(0)
    assert [bool(cell.failures) for cell in cells] == [False, True, False]
    assert cells[1].failures[0] == "the kernel killed nbdkit"


def test_what_the_server_outside_says_counts_for_all_cells_of_its_guest(share: Share) -> None:
    share.log.write_text(MARK.format("stress") + MARK.format("heartbeat"))
    share.report("stress")
    share.report("heartbeat")
    cells = share.judge(0, dict.fromkeys(LOSSES, 0) | {"checksum_errors": 1})
    assert [cell.failures for cell in cells] == [["checksum_errors is 1"]] * 2


def test_the_summary_shows_the_longest_stall_of_all_runs_and_what_failed(tmp_path: Path) -> None:
    cells = []
    for run, seconds in ((1, 0.3), (2, 1.25)):
        report = good_report() | {"longest_gap_seconds": seconds}
        cells += [
            Cell(256, "self", "stress", run, 32, report=report),
            Cell(256, "self", "cache", run, 32, failures=["no report"] if run == 2 else [], report=good_report()),
            Cell(384, "host", "cache", run, 48, failures=["no report"]),
        ]
    assert summary(cells) == (
        ["memory MiB", "swap", "budget MiB", "stress s", "cache s"],
        [["256", "self", "32", "1.2", "0.3, 1 of 2 FAILED"], ["384", "host", "48", "-", "-, 2 of 2 FAILED"]],
    )
    write_results(cells, tmp_path)
    assert read_results(tmp_path) == cells
    assert "| 256 | self | 32 | 1.2 | 0.3, 1 of 2 FAILED |" in (tmp_path / "pressure.md").read_text()

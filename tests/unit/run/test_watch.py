"""What is counted and said of a job."""

import signal
from pathlib import Path
from typing import Any

import pytest

from zcache.errors import EnvironmentProblem
from zcache.run.report import report
from zcache.run.watch import Watch


def said(number: int, **words: int) -> dict[str, Any]:
    """A store's status."""
    figures = {"frame_bytes": 65536, "resident_frames": 3, "backing_frames": 0, "puts": 0, "gets": 0, "failed_puts": 0}
    return {**figures, "server_number": number, "region_faults": 0, "regions": [], **words}


def test_what_pagers_had_counted_that_were_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers: list[dict[str, Any] | None] = [
        said(1, puts=5, gets=2, region_faults=9),
        said(1, puts=50, gets=20, region_faults=90),
        None,
        said(2, puts=1, gets=1, region_faults=0),
        said(4, puts=2, gets=1, region_faults=3),
    ]

    def ask(_path: Path, command: str) -> dict[str, Any]:
        assert command == "status"
        if (answer := answers.pop(0)) is None:
            raise EnvironmentProblem("nobody answers")
        return answer

    monkeypatch.setattr("zcache.run.watch.ask", ask)
    watch = Watch(1, tmp_path)
    assert watch.count("puts") == 0
    while answers:
        watch.look_at_store()
    assert [watch.count(name) for name in ("puts", "gets", "region_faults")] == [53, 22, 93]


def test_pythons_that_ran_one_after_the_other_are_not_added_up(tmp_path: Path) -> None:
    watch = Watch(1, tmp_path)
    assert "no array was in a region" in list(report(watch, 1 << 20, tmp_path, 0))[-1]
    for pid, size in ((8, 3 << 20), (9, 4 << 20)):
        (tmp_path / f"{pid}.arrays").write_text(str(size))
    first, _, _ = report(watch, 1 << 20, tmp_path, 0)
    assert "arrays of up to 4.0M" in first
    watch.array_bytes = 7 << 20  # both at once
    first, _, _, _ = (line for line in report(watch, 1 << 20, tmp_path, -signal.SIGKILL))
    assert first == "the job was ended by SIGKILL"
    first, *_ = report(watch, 1 << 20, tmp_path, -40)  # a real-time signal, of which Python knows no name
    assert first == "the job was ended by signal 40"

"""`scripts/bench remote --faults`, one scene of it: engines that are killed and paused under load;
and that its load sees what is wrong."""

from pathlib import Path

import pytest
from rich.console import Console

from tests.nbd.conftest import Serve
from zcache.bench.remote import faults
from zcache.bench.remote.engines import program
from zcache.bench.remote.load import PAGE_BYTES, Load, content
from zcache.bench.report import Report
from zcache.bench.served import Served
from zcache.errors import EnvironmentProblem


@pytest.fixture
def _has_engines() -> None:
    try:
        program()
    except EnvironmentProblem as error:
        pytest.skip(f"NOT run: {error}")


@pytest.mark.thorough
@pytest.mark.usefixtures("_has_engines")
def test_an_engine_is_killed_then_another_is_paused_and_no_page_is_lost_wrong_or_late(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(tmp_path, Console(width=190))
    scene = faults.Scene("kill-and-pause", [(faults.KILL, 0), (faults.PAUSE, 1)], [faults.TWO])
    assert faults.measure(report, [scene], faults.LEAST_FAULT_SECONDS, seed), capsys.readouterr().out
    report.save()
    said = capsys.readouterr().out
    assert "kill-and-pause, copies 2" in said and "BAD" not in said


@pytest.mark.thorough
@pytest.mark.usefixtures("_has_engines")
def test_two_engines_that_are_gone_together_are_seen_and_reads_fail_in_time(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "MENDED_SECONDS", 0.0)
    report = Report(tmp_path, Console(width=190))
    scene = faults.Scene("both", [(faults.KILL_FOR_GOOD, 0), (faults.KILL_FOR_GOOD, 1)], [faults.TWO])
    assert not faults.measure(report, [scene], faults.LEAST_FAULT_SECONDS, seed)
    said = capsys.readouterr().out
    assert "both, copies 2" in said and "BAD" in said and "failed" in said


def test_a_page_that_is_not_what_was_written_is_seen(serve: Serve) -> None:
    server = serve("size=16M", "budget=16M")
    load = Load(Served(server.socket, server.control, server.process.pid), page_count=64, seed=1)
    load.fill()
    load.verify()
    assert load.wrong == 0 and len(load.read_seconds) == 4
    client = server.connect()
    client.pwrite(content(3, 0), 5 * PAGE_BYTES)  # another page's
    client.pwrite(content(7, 9), 7 * PAGE_BYTES)  # of a time that has not come
    client.pwrite(content(8, 0)[:-1] + b"\1", 8 * PAGE_BYTES)
    client.pwrite(bytes(PAGE_BYTES), 9 * PAGE_BYTES)  # zeros, for a page that is not there
    client.shutdown()
    load.verify()
    assert load.wrong == 4 and load.failed_reads == 0

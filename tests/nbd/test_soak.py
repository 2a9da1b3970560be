"""scripts/bench soak, for a few seconds: that it measures, and writes down what it measured.
Whether the server is flat takes longer to see."""

import csv
from pathlib import Path

import pytest

from zcache.bench.soak import __main__ as soak
from zcache.bench.soak.traffic import Traffic


def test_a_short_soak_verifies_measures_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = soak.main(["--seconds", "4", "--size", "16", "--folder", str(tmp_path), "--failures", "100"])
    said = capsys.readouterr().out
    assert status in (0, 1, 3) and "do not balance" not in said and "each of 100 failed requests kept" in said
    with (tmp_path / "soak.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= soak.LEAST_SAMPLES and int(rows[-1]["requests"]) > 500
    assert set(rows[0]) == {"seconds", "requests", *soak.LIMITS}
    assert all(float(row["malloc_kib"]) > 1000 and float(row["gc_objects"]) > 1000 for row in rows)
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_a_server_that_gives_back_something_else_ends_the_soak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def keeps_no_promise(self: Traffic, *_: object) -> None:
        self._forget(0, 8)

    monkeypatch.setattr(Traffic, "trim", keeps_no_promise)
    assert soak.main(["--seconds", "4", "--size", "16", "--folder", str(tmp_path)]) == 1
    assert "are not what was written to them" in capsys.readouterr().out

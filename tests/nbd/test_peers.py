"""scripts/bench peers, for a second each: that every server is really measured."""

import json
from pathlib import Path

import pytest

from zcache.bench.nbd import peers


@pytest.mark.thorough
def test_all_peers_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "LOADS", peers.LOADS[1:4:2])
    assert peers.main(["--size", "16", "--seconds", "1", "--rounds", "1", "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    tables = json.loads((tmp_path / "report.json").read_text())["tables"]
    assert [row["server"] for row in tables["nbd"]] == ["zcache", "memory", "memory -t 1", "memory zstd", "file"] * 2
    assert all(
        row["iops"] > 100 and row["server_us"] > 0 and row["p99_us"] >= row["p50_us"] > 0 for row in tables["nbd"]
    )
    stored = {row["server"]: row["MiB for each GiB stored"] for row in tables["nbd_memory"]}
    assert 300 < stored["zcache"] < 450 and stored["memory"] > 900
    assert len({(row["policy"], row["locked"]) for row in tables["nbd_memory"]}) == 1
    assert len(tables["where"]) == 2
    for row in tables["where"]:
        parts = [row[name] for name in ("kernel", "codec", "rest of callbacks", "nbdkit, and into Python")]
        assert min(parts[:3]) > 0 and sum(parts) == pytest.approx(row["all of the server"])
    assert "report.json" in said and (tmp_path / "nbd.png").exists()

"""The remote tier on paper: figures that were worked out by hand."""

import json
import math
from pathlib import Path

import pytest

from zcache.bench.remote import plan
from zcache.bench.remote.plan import WIRE_RATIO, Load, Site, death, limits, link_frames_per_second, node_frames

#: Round numbers: a frame of 1,000 bytes, 10 % more when it is paid for; 1,000 frames a second on a
#: link; 400 read and 200 written by a processor.
SITE = Site(
    nodes=3,
    node_memory_bytes=1_100_000,
    node_reads_per_second=400,
    node_writes_per_second=200,
    link_bits_per_second=8e6 * WIRE_RATIO,
    frame_bytes=1000,
    copies=2,
    bytes_paid_ratio=1.1,
    mirrored_per_second=50,
    mirror_share=0.5,
)
LOAD = Load("a load", remote_bytes=100_000, reads_per_second=10, writes_per_second=5)


def test_what_a_node_and_a_link_carry() -> None:
    assert node_frames(SITE) == 1000
    assert link_frames_per_second(SITE) == pytest.approx(1000)


def test_all_nodes_but_one_carry_both_copies_of_all_machines() -> None:
    found = limits(SITE, LOAD)
    assert found["memory"] == pytest.approx(2 * 1000 / (100 * 2))
    assert found["engine's CPU"] == pytest.approx(2 / (10 / 400 + 10 / 200))
    assert found["link out"] == pytest.approx(2 * 1000 / 10)
    assert found["link in"] == pytest.approx(2 * 1000 / 10)
    assert plan.machines_that_fit(SITE, LOAD) == (10, "memory")


def test_one_copy_needs_half_of_the_memory_and_of_the_writes() -> None:
    found = limits(SITE._replace(copies=1), LOAD)
    assert found["memory"] == pytest.approx(20)
    assert found["engine's CPU"] == pytest.approx(2 / (10 / 400 + 5 / 200))
    assert found["link in"] == pytest.approx(400)


def test_of_two_nodes_one_has_to_carry_all_but_once() -> None:
    assert limits(SITE._replace(nodes=2), LOAD)["memory"] == pytest.approx(1000 / 100)


def test_a_node_alone_carries_what_there_is() -> None:
    assert limits(SITE._replace(nodes=1, copies=1), LOAD)["memory"] == pytest.approx(1000 / 100)


def test_what_a_machine_never_does_limits_nothing() -> None:
    found = limits(SITE, LOAD._replace(reads_per_second=0, writes_per_second=0))
    assert found["engine's CPU"] == found["link out"] == found["link in"] == math.inf
    assert found["memory"] == pytest.approx(10)


def test_a_death_costs_a_third_of_the_copies_twice_on_links() -> None:
    found = death(SITE, LOAD, machines=6)
    assert found.frames == pytest.approx(6 * 100 * 2 / 3)
    assert found.mirrored_bytes == pytest.approx(400_000)
    assert found.traffic_bytes == pytest.approx(800_000 * WIRE_RATIO)


@pytest.mark.parametrize(
    ("site", "per_second", "limited_by"),
    [
        (SITE, 2 * 0.5 / (1 / 400 + 1 / 200), "engine's CPU"),
        (SITE._replace(mirrored_per_second=10), 6 * 10, "machines"),
        (SITE._replace(link_bits_per_second=8e5 * WIRE_RATIO), 2 * 100 * 0.5, "links"),
    ],
)
def test_mirroring_again_takes_as_long_as_what_is_slowest(site: Site, per_second: float, limited_by: str) -> None:
    found = death(site, LOAD, machines=6)
    assert found.seconds == pytest.approx(400 / per_second)
    assert found.limited_by == limited_by


@pytest.mark.parametrize("site", [SITE._replace(copies=1), SITE._replace(nodes=1)])
def test_what_has_one_copy_is_not_mirrored(site: Site) -> None:
    found = death(site, LOAD, machines=6)
    assert found.frames > 0 and found.seconds == found.traffic_bytes == 0 and found.limited_by == "nothing"


def test_the_command_takes_ones_own_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--nodes", "2", "--node-memory", "10", "--frame-bytes", "65520", "--bytes-paid-ratio", "1"]
    words += ["--machine-memory", "2", "--machine-reads", "1", "--machine-writes", "1", "--folder", str(tmp_path)]
    assert plan.main(words) == 0
    assert "yours" in capsys.readouterr().out
    tables = json.loads((tmp_path / "report.json").read_text())["tables"]
    (row,) = tables["machines"]
    assert (row["machines"], row["limited by"]) == (4, "memory")  # 10 GiB, less what is no whole frame
    assert tables["death"][0]["GiB mirrored"] == pytest.approx(8)


@pytest.mark.parametrize("wrong", ["0", "-1", "much", "nan", "inf"])
def test_a_figure_that_is_none_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan.main(["--link-gbit", wrong])
    assert "must be a number above 0" in capsys.readouterr().err

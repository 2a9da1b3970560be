"""What `scripts/run --pager` shows, in small."""

from pathlib import Path

import pytest

from tests.support.regions import why_not
from zcache.bench.pager.demo import command_of, follow, verdict
from zcache.bench.pager.demo_job import KINDS

MIB = 1 << 20


def test_all_ways_come_to_the_same(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    if why_not():
        pytest.skip(f"NOT run, no region can be made here: {why_not()}")
    courses = {kind: follow(command_of(kind, tmp_path, 12 * MIB)) for kind in KINDS}
    assert len({course.result["digest"] for course in courses.values()}) == 1
    for course in courses.values():
        assert course.steps[-1][1] == 3 * 12 and max(course.memory) > 5
        assert sum(course.result[part] for part in ("fill", "sort", "group")) == pytest.approx(course.result["seconds"])
    assert "times as long" in verdict(courses)

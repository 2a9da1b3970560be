"""What `scripts/bench pager` measures, in small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.regions import why_not
from zcache.bench.pager.__main__ import PROGRAMS_MIB, shares_mib
from zcache.bench.pager.touches import PATTERNS

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("kind", ["region", "memmap", "memory"])
def test_a_job_says_what_it_took(kind: str, tmp_path: Path) -> None:
    if kind == "region" and why_not():
        pytest.skip(f"NOT run, no region can be made here: {why_not()}")
    command = [sys.executable, "-m", "zcache.bench.pager.job", kind, "4", "1", "4", "1", str(tmp_path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fill_seconds"] > 0
    for pattern in PATTERNS:
        figures = found[pattern]
        assert figures["touches_per_second"] > 0
        if kind == "region":
            assert figures["faults"] and figures["p99_us"] >= figures["p50_us"] > 0
            assert found["status"]["faults"] > 100


@pytest.mark.parametrize("times", [2, 5])
def test_what_a_limit_is_divided_into(times: int) -> None:
    resident, budget = shares_mib(384, times * 384)
    assert 384 - PROGRAMS_MIB - 20 < resident + budget < 384 - PROGRAMS_MIB and min(resident, budget) > 48

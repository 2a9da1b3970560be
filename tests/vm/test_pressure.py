"""The short row of scripts/pressure: a small guest that swaps to itself, under one of its loads."""

import json
import subprocess
from pathlib import Path

import pytest

from zcache.testvm import REPOSITORY


@pytest.mark.thorough
def test_the_short_row_passes(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(REPOSITORY / "scripts/pressure"), "--short", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads((tmp_path / "pressure.json").read_text())["cells"]
    assert [(cell["load"], cell["verdict"]) for cell in cells] == [("heartbeat", "passed")]
    assert "| 384 | self | heartbeat |" in (tmp_path / "pressure.md").read_text()

"""The unit that is shipped, by systemd's own account where systemd is."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
UNIT = REPOSITORY / "scripts/systemd/zcache.service"


def test_its_commands_are_there() -> None:
    commands = re.findall(r"^Exec\w+=.*@ROOT@/([\w/-]+)", UNIT.read_text(), re.MULTILINE)
    assert commands == ["scripts/swap-up", "scripts/swap-upgrade", "scripts/swap-down", "scripts/swap-down"]
    assert all((REPOSITORY / command).is_file() for command in commands)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_has_nothing_to_say_against_it(tmp_path: Path) -> None:
    unit = tmp_path / "zcache.service"
    unit.write_text(UNIT.read_text().replace("@ROOT@", str(REPOSITORY)))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")

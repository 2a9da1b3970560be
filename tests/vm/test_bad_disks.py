"""A server on disks that are really bad; what they go through is in bad_disks.py."""

import io
import sys
from pathlib import Path

import pytest

from zcache.testvm import VmConfig
from zcache.testvm.vm import run_in_vm

pytestmark = pytest.mark.thorough


def test_bad_disks(tmp_path: Path) -> None:
    disks = (tmp_path / "disk0", tmp_path / "disk1")
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(64 << 20)
    config = VmConfig(
        memory="500M", disks=disks, kernel_log=tmp_path / "kernel.log", timeout_seconds=600, hung_task_panic=True
    )
    output = io.BytesIO()
    scenes = ["write_errors", "flipped_bits", "truncated"]  # the others take too long for CI
    result = run_in_vm(config, [sys.executable, "-m", "tests.vm.bad_disks", *scenes], output, output)
    assert result.exit_status == 0, f"{result.failure}\n{output.getvalue().decode(errors='replace')}"

"""A file system on a clean export, under memory pressure; what it goes through is in
clean_exports.py."""

import io
import sys
from pathlib import Path

import pytest

from zcache.bench.run.__main__ import kernel_troubles
from zcache.testvm import VmConfig
from zcache.testvm.vm import run_in_vm


@pytest.mark.thorough
def test_a_file_system_on_a_clean_export_while_the_guest_swaps(tmp_path: Path, seed: int) -> None:
    disks = tmp_path / "backing", tmp_path / "disk"
    for disk, mebibytes in zip(disks, (560, 200), strict=True):
        with disk.open("wb") as file:
            file.truncate(mebibytes << 20)
    config = VmConfig(
        memory="500M", disks=disks, kernel_log=tmp_path / "kernel.log", timeout_seconds=480, hung_task_panic=True
    )
    output = io.BytesIO()
    result = run_in_vm(config, [sys.executable, "-m", "tests.vm.clean_exports", str(seed)], output, output)
    assert result.exit_status == 0, f"{result.failure}\n{output.getvalue().decode(errors='replace')}"
    assert kernel_troubles(result.kernel_log.read_text(errors="replace")) == []

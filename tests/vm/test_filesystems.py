"""What only the test VM's kernel has of what a backing may lie on: device-mapper, and a file system without holes."""

import io
import re
import sys
from pathlib import Path

import pytest

from zcache.testvm import VmConfig
from zcache.testvm.vm import run_in_vm

pytestmark = pytest.mark.thorough


def test_thin_pools_are_warned_of_and_mappings_work(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(1500 << 20)
    config = VmConfig(memory="700M", disks=(disk,), kernel_log=tmp_path / "kernel.log", timeout_seconds=900)
    output = io.BytesIO()
    words = ["--disk", "/dev/disk/by-id/virtio-vmdisk0", "--folder", "/tmp/table", "--size", "16", "--rounds", "2"]
    command = [sys.executable, "-P", "-m", "zcache.bench", "filesystems", *words, "thin pool", "LUKS", "vfat"]
    result = run_in_vm(config, command, output, output)
    text = output.getvalue().decode(errors="replace")
    assert result.exit_status == 0, f"{result.failure}\n{text}"  # 1 if a page was lost where it works
    assert re.search(r"thin pool +warned .* thin pool, which may run full", text), text
    for name in ("LUKS", "vfat"):
        assert re.search(rf"{name} +works +0 +0", text), text

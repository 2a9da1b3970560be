"""scripts/swap-up and scripts/swap-down against a real kernel; what they go through is in swap_commands.py."""

import io
import sys
from pathlib import Path

from zcache.testvm import VmConfig
from zcache.testvm.vm import run_in_vm


def test_swap_up_and_down_on_good_and_bad_days(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(480 << 20)
    config = VmConfig(
        memory="500M",
        disks=(disk,),
        kernel_log=tmp_path / "kernel.log",
        timeout_seconds=600,
        hung_task_panic=True,
    )
    output = io.BytesIO()
    scenes = ["two_areas_at_once", "dead_server", "too_little_memory_to_swap_off"]  # the others take too long for CI
    result = run_in_vm(config, [sys.executable, "-m", "tests.vm.swap_commands", *scenes], output, output)
    assert result.exit_status == 0, f"{result.failure}\n{output.getvalue().decode(errors='replace')}"

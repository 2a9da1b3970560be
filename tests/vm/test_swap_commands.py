"""scripts/swap-up and scripts/swap-down against a real kernel; what they go through is in
swap_commands.py."""

import io
import sys
from pathlib import Path

import pytest

from tests.vm.swap_commands import SCENES
from zcache.testvm import VmConfig
from zcache.testvm.vm import run_in_vm

IN_CI = ["dead_server"]


@pytest.mark.parametrize(
    "scenes",
    [
        pytest.param(IN_CI, id="the server dies"),
        pytest.param([name for name in SCENES if name not in IN_CI], id="the others", marks=pytest.mark.thorough),
    ],
)
def test_swap_up_and_down_on_good_and_bad_days(tmp_path: Path, scenes: list[str]) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(560 << 20)
    config = VmConfig(
        memory="500M",
        disks=(disk,),
        kernel_log=tmp_path / "kernel.log",
        timeout_seconds=300 * len(scenes),
        hung_task_panic=True,
    )
    output = io.BytesIO()
    result = run_in_vm(config, [sys.executable, "-m", "tests.vm.swap_commands", *scenes], output, output)
    assert result.exit_status == 0, f"{result.failure}\n{output.getvalue().decode(errors='replace')}"

"""The unit under a real systemd; what it goes through is in systemd_unit.py."""

import io
import re
import sys
from pathlib import Path

import pytest

from zcache.testvm import VmConfig
from zcache.testvm.run import kernel_troubles
from zcache.testvm.vm import run_in_vm

pytestmark = pytest.mark.thorough

#: In the kernel log, in this order.
SHUTDOWN = (
    "Stopping zcache.service",
    "swap-down: /dev/nbd0: [1-9][0-9]* KiB still out",
    "swap-down: /dev/nbd0: swap is off",
    "swap-down: /dev/nbd0: detached",
    r"swap-down: keeper \(pid \d+\): ended",
    "Stopped zcache.service",
    "systemd-shutdown.*: Deactivating swaps",
    "reboot: Power down",
)
#: systemd's own swapoff, which does not ask whether there is memory for what is out.
NOT_ITS_OWN = "Deactivating swap dev-"


def test_a_machine_that_shuts_down_with_the_swap_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(512 << 20)
    config = VmConfig(
        disks=(disk,), kernel_log=tmp_path / "kernel.log", timeout_seconds=900, hung_task_panic=True, systemd=True
    )
    output = io.BytesIO()
    result = run_in_vm(config, [sys.executable, "-m", "tests.vm.systemd_unit"], output, output)
    said = output.getvalue().decode(errors="replace")
    assert result.exit_status == 0, f"{result.failure}\n{said}"
    log = result.kernel_log.read_text(errors="replace")
    shutdown = log[log.rindex(SHUTDOWN[0]) :]  # it was stopped before, in the middle of a reload
    found = [re.search(pattern, shutdown) for pattern in SHUTDOWN]
    assert all(found), [pattern for pattern, match in zip(SHUTDOWN, found, strict=True) if not match]
    places = [match.start() for match in found if match]
    assert places == sorted(places)
    assert kernel_troubles(log, disturbed=True) == []
    assert NOT_ITS_OWN not in log

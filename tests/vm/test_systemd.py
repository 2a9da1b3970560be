"""The unit under a real systemd; what it goes through is in systemd_unit.py."""

import io
import re
import sys
from pathlib import Path

import pytest

from zcache.bench.run.__main__ import kernel_troubles
from zcache.testvm import VmConfig
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
#: Nobody stops anything, so the swap is on when all processes but keeper and servers are killed.
FORCED = (
    "systemd-shutdown.*: Sending SIGTERM to remaining processes",
    "systemd-shutdown.*: Sending SIGKILL to remaining processes",
    "systemd-shutdown.*: Deactivating swaps",
    "systemd-shutdown.*: Deactivating swap /dev/nbd0",
    "systemd-shutdown.*: All swaps deactivated",
    "reboot: Power down",
)
#: systemd's own swapoff, which does not ask whether there is memory for what is out.
NOT_ITS_OWN = "Deactivating swap dev-"


def kernel_log_of(folder: Path, *words: str) -> str:
    """Of a machine that ran systemd_unit.py and went down."""
    disk = folder / "disk"
    with disk.open("wb") as file:
        file.truncate(512 << 20)
    config = VmConfig(
        disks=(disk,), kernel_log=folder / "kernel.log", timeout_seconds=900, hung_task_panic=True, systemd=True
    )
    output = io.BytesIO()
    result = run_in_vm(config, [sys.executable, "-m", "tests.vm.systemd_unit", *words], output, output)
    said = output.getvalue().decode(errors="replace")
    assert result.exit_status == 0, f"{result.failure}\n{said}"
    return result.kernel_log.read_text(errors="replace")


def has_in_order(log: str, patterns: tuple[str, ...]) -> None:
    found = [re.search(pattern, log) for pattern in patterns]
    assert all(found), [pattern for pattern, match in zip(patterns, found, strict=True) if not match]
    places = [match.start() for match in found if match]
    assert places == sorted(places)


def test_a_machine_that_shuts_down_with_the_swap_on(tmp_path: Path) -> None:
    log = kernel_log_of(tmp_path)
    has_in_order(log[log.rindex(SHUTDOWN[0]) :], SHUTDOWN)  # it was stopped before, in the middle of a reload
    assert kernel_troubles(log, disturbed=True) == []
    assert NOT_ITS_OWN not in log


@pytest.mark.parametrize("words", [("forced",), ("forced", "by-hand")], ids=" ".join)
def test_a_machine_that_is_shut_down_by_force(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Whoever turned the swap on: keeper and servers outlive the last round of killing, and systemd
    takes it off."""
    log = kernel_log_of(tmp_path, *words)
    has_in_order(log, FORCED)
    assert kernel_troubles(log) == []

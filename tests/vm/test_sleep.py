"""Suspend and hibernation with the swap on; what the guest goes through is in sleep_scenes.py.

`freezer` is the level of the kernel's own test of suspending that ends when all programs and kernel
threads are frozen: that is where a swap server in user space is in the way.
"""

import io
import sys
from pathlib import Path

import pytest

from tests.vm.sleep_scenes import DEVICES_PASSED
from zcache.bench.run.__main__ import kernel_troubles
from zcache.testvm import VmConfig, VmResult
from zcache.testvm.vm import run_in_vm

#: Secret memory, by which newer kernels can be kept from hibernating, is off in Debian 12's by
#: default.
SECRET_MEMORY = ("secretmem.enable=1",)


def sleep_in_vm(tmp_path: Path, *scenes: str, systemd: bool, kernel_args: tuple[str, ...] = ()) -> None:
    """The scenes pass, and the kernel log says the same."""
    count = sum(int(scene.partition(":")[2] or 0) for scene in scenes)
    result, said = run_scenes(tmp_path, scenes, count, systemd, kernel_args)
    assert result.exit_status == 0, f"{result.failure}\n{said}"
    log = result.kernel_log.read_text(errors="replace")
    assert "refusing to freeze" not in log and log.count("PM: suspend entry") == count
    assert kernel_troubles(log, disturbed=True) == []


def run_scenes(
    tmp_path: Path, scenes: tuple[str, ...], count: int, systemd: bool = False, kernel_args: tuple[str, ...] = ()
) -> tuple[VmResult, str]:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(600 << 20)
    config = VmConfig(
        memory="700M",
        disks=(disk,),
        kernel_log=tmp_path / "kernel.log",
        kernel_args=kernel_args,
        timeout_seconds=900 + 90 * count,
        systemd=systemd,
    )
    output = io.BytesIO()
    command = [sys.executable, "-m", "tests.vm.sleep_scenes", "freezer", *scenes]
    result = run_in_vm(config, command, output, output)
    return result, output.getvalue().decode(errors="replace")


@pytest.mark.thorough
def test_suspends_by_hand_under_load_and_a_refused_hibernation(tmp_path: Path) -> None:
    sleep_in_vm(tmp_path, "by_hand:3", systemd=False, kernel_args=SECRET_MEMORY)


@pytest.mark.thorough
def test_twenty_suspends_by_hand_and_a_hibernation_that_was_asked_for(tmp_path: Path) -> None:
    sleep_in_vm(tmp_path, "by_hand:20", "hibernating", systemd=False)


@pytest.mark.thorough
def test_a_suspend_of_devices_too(tmp_path: Path) -> None:
    """The guest cannot say how the scene ended: `sleep_scenes.devices` has why."""
    result, said = run_scenes(tmp_path, ("devices",), 1)
    log = result.kernel_log.read_text(errors="replace")
    assert DEVICES_PASSED in log, f"{result.failure}\n{said}"
    assert "refusing to freeze" not in log and kernel_troubles(log, disturbed=True) == []


@pytest.mark.thorough
def test_forty_suspends_under_systemd_with_the_load_in_either_slice(tmp_path: Path) -> None:
    sleep_in_vm(tmp_path, "under_systemd:40", systemd=True)

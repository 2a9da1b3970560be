"""A real kernel swaps real pages: to a server inside the guest, and to one outside through QEMU's
NBD driver."""

import json
import sys
from pathlib import Path

import pytest

from zcache.bench.run.__main__ import judge, kernel_troubles
from zcache.testvm import VmConfig
from zcache.testvm.vm import run_in_vm

KEEPER_AND_STANDBY_KIB = 30 << 10


def test_the_guest_swaps_to_a_server_inside_it(tmp_path: Path) -> None:
    disk, report_path = tmp_path / "disk", tmp_path / "share" / "report.json"
    report_path.parent.mkdir()
    with disk.open("wb") as file:
        file.truncate(560 << 20)
    config = VmConfig(
        memory="500M",
        disks=(disk,),
        share=report_path.parent,
        kernel_log=tmp_path / "kernel.log",
        timeout_seconds=480,
        hung_task_panic=True,
    )
    command = [sys.executable, "-m", "zcache.bench.run.guest", str(report_path), "size=512M", "budget=48M"]
    command += ["backing=/dev/disk/by-id/virtio-vmdisk0", "hardening=require", "--", "stress-ng", "--vm", "2"]
    # Filling takes the first half of the time, less where nothing else runs; pages come in after
    # that.
    command += ["--vm-bytes", "520M", "--timeout", "60s"]
    result = run_in_vm(config, [*command, "--vm-keep", "--vm-method", "rand-set", "--verify"])
    report = json.loads(report_path.read_text()) if report_path.exists() else None
    assert judge(result, report) == []
    assert report
    assert report["pages_out"] > 20_000 and report["pages_in"] > 500
    status = report["status"]
    locked_limit = status["budget_bytes"] + (40 << 20) + 16 * status["stored_pages"]
    assert status["locked_bytes"] < locked_limit
    assert report["keeper_kib"] < 24 << 10
    assert report["keeper_kib"] + report["standby_kib"] < KEEPER_AND_STANDBY_KIB


@pytest.mark.thorough
def test_the_guest_swaps_to_a_server_on_the_host(tmp_path: Path) -> None:
    config = VmConfig(
        memory="400M",
        kernel_log=tmp_path / "kernel.log",
        timeout_seconds=400,
        hung_task_panic=True,
        host_swap=("size=512M", "budget=48M", f"backing={tmp_path}/backing"),
    )
    load = ["stress-ng", "--vm", "2", "--vm-bytes", "450M", "--vm-keep", "--vm-method", "rand-set", "--verify"]
    result = run_in_vm(config, [*load, "--timeout", "30s"])
    assert result.exit_status == 0, result.failure
    assert kernel_troubles(result.kernel_log.read_text(errors="replace")) == []
    status = result.server_status
    assert status
    assert status["puts"] > 10_000 and status["gets"] > 500 and status["written_back_frames"] > 0
    assert status["failed_puts"] == status["lost_pages"] == status["checksum_errors"] == 0

"""The unit beside systemd-oomd, earlyoom, nohang and needrestart; what is done to it is in
other_daemons.py."""

import io
import re
import sys
from pathlib import Path

import pytest

from tests.support.debian_packages import unpack
from tests.vm.other_daemons import DAEMONS, PERL
from zcache.bench.run.__main__ import kernel_troubles
from zcache.testvm import VmConfig
from zcache.testvm.vm import run_in_vm

pytestmark = pytest.mark.thorough

#: One is asked for.
OOM_KILL = re.compile("Out of memory|oom-kill")


def test_keeper_server_and_standby_outlive_other_daemons(tmp_path: Path) -> None:
    """The packages are fetched (`apt-get download`) and unpacked, not installed: systemd-oomd's
    would be at work in every machine under systemd that the other tests boot."""
    packages, disk = tmp_path / "packages", tmp_path / "disk"
    packages.mkdir()
    if problem := unpack((*DAEMONS, *PERL), packages):
        pytest.skip(f"the daemons' packages are not to be had: {problem}")
    with disk.open("wb") as file:
        file.truncate(192 << 20)
    config = VmConfig(
        memory="700M",
        disks=(disk,),
        share=packages,
        kernel_log=tmp_path / "kernel.log",
        timeout_seconds=2400,
        systemd=True,
    )
    output = io.BytesIO()
    result = run_in_vm(config, [sys.executable, "-m", "tests.vm.other_daemons", str(packages)], output, output)
    said = output.getvalue().decode(errors="replace")
    assert result.exit_status == 0, f"{result.failure}\n{said}"
    troubles = kernel_troubles(result.kernel_log.read_text(errors="replace"))
    assert [line for line in troubles if not OOM_KILL.search(line)] == []

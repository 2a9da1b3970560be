"""QEMU's iotests, as `check -raw -nbd` runs them: qemu-io and qemu-img over NBD, whose output is
compared with what it should be.

Those of the groups rw and auto are run. Its qemu-nbd, which they export their image with, is a
stand-in.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.suites import sources
from tests.suites.running import Case, Reading, Run, Runner, Verdict, read_automake, require

NAME: Final = "qemu"
CONTROL: Final = "002"

EXCLUDED: Final[Mapping[str, str]] = {}

_MEMBERS: Final = ("tests/qemu-iotests/*", "python/*", "scripts/*.py")
_GROUPS: Final = ("rw", "auto")


def prepare(runner: Runner) -> Iterator[Case]:
    """One case for each test, by `check`, which writes where it is."""
    require({"qemu-img": "qemu-utils", "qemu-system-x86_64": "qemu-system-x86", "bc": "bc"})
    iotests = sources.unpacked(NAME, _MEMBERS) / "tests/qemu-iotests"
    runner.stand_in(runner.work / "qemu-nbd", "stand_in_qemu_nbd")
    environment = {
        "QEMU_PROG": "/usr/bin/qemu-system-x86_64",
        "QEMU_IMG_PROG": "/usr/bin/qemu-img",
        "QEMU_IO_PROG": "/usr/bin/qemu-io",
        "QEMU_NBD_PROG": str(runner.work / "qemu-nbd"),
        "QSD_PROG": "/usr/bin/qemu-storage-daemon",
        "TEST_DIR": str(runner.work / "images"),
    }
    check = ("/usr/bin/python3", "./check", "-raw", "-nbd")
    for name in sorted(set.intersection(*(_members(check, group, iotests, environment) for group in _GROUPS))):
        yield Case(name, (*check, name), iotests, environment, _read)


def _members(check: tuple[str, ...], group: str, folder: Path, environment: Mapping[str, str]) -> set[str]:
    command = [*check, "-n", "-g", group]
    listed = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, check=True)
    return {Path(name).name for name in listed.stdout.decode().split()}


def _read(run: Run) -> Reading:
    not_run = re.search(r"not run .*\.\.\. +(.*?)\s*$", run.output, re.MULTILINE)
    if not_run:
        return Reading(Verdict.LEFT_OUT, f"skips itself: {not_run[1]}")
    if run.status == 0 and "Passed all 1 " not in run.output:
        return Reading(Verdict.FAILED, "exit status 0, and it did not say that it passed")
    return read_automake(run)

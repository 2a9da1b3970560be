"""Clients of a pager, and whether there can be any here."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from zcache.errors import EnvironmentProblem
from zcache.pager.region import Region

MIB = 1 << 20
REPOSITORY = Path(__file__).parents[2]


@functools.cache
def why_not() -> str:
    """Why this machine cannot have regions; "" if it can."""
    try:
        with Region(2 * MIB, MIB):
            return ""
    except EnvironmentProblem as problem:
        return str(problem)


#: For the tests of a module.
needs_regions = pytest.mark.skipif(bool(why_not()), reason=f"NOT run, no region can be made here: {why_not()}")


def run(program: str) -> "subprocess.CompletedProcess[str]":
    """A client of its own."""
    lines = f"import os, signal, time\nfrom zcache.pager.region import Region\n{program}"
    return subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, check=False, timeout=60, cwd=REPOSITORY
    )


def with_pagers_that(change: str) -> str:
    """A client's first lines, whose pagers run some lines first."""
    pager = f"import errno, os, sys\n{change}\nfrom zcache.pager.worker import main\nmain(int(sys.argv[1]))\n"
    keeper = (
        f"import sys\nfrom zcache.pager import keeper\nkeeper.PAGER[:] = [sys.executable, '-c', {pager!r}]\n"
        "keeper.main(int(sys.argv[1]))\n"
    )
    return f"""
import subprocess, sys
from zcache.pager import link
def start(client):
    command = [sys.executable, "-c", {keeper!r}, str(client.fileno())]
    return subprocess.Popen(command, pass_fds=[client.fileno()])
link._start_keeper = start
"""


#: As before Linux 6.6.
WITHOUT_POISON = with_pagers_that(
    "from zcache.linux import userfaultfd\n"
    "def poison(*_): raise OSError(errno.ENOTTY, 'no such ioctl')\n"
    "userfaultfd.poison = poison"
)


def damaged(backing: Path) -> str:
    """A client's lines that make a region, of whose pages below a part is overwritten."""
    return (
        "import random\n"
        f"region = Region('16M', '1M', budget='2M', backing={str(backing)!r}, encrypt='no')\n"
        "for at in range(0, len(region), 4096):\n"
        "    region.buffer[at:at + 4096] = random.Random(at).randbytes(4096)\n"
        "time.sleep(1)\n"
        f"with open({str(backing)!r}, 'r+b') as file:\n"
        "    size = file.seek(0, 2)\n"
        "    file.seek(size // 2)\n"
        "    file.write(bytes(1 << 20))\n"
    )

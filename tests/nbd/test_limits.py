"""Limits of the shell that a server inherits: lifted where that is allowed, else refused in one
line, before anything is made. What could only be met later, on the way to a successor, would be the
end of the swap."""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zcache.keeper import launch as keeper_process
from zcache.keeper.state import StateFolder, SwapState
from zcache.linux import process

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 60

#: A process without CAP_SYS_RESOURCE, whatever the machine gives: what cannot be lifted is lifted
#: nowhere.
WITHOUT_CAPABILITY = (
    "import ctypes, os, resource, sys;"
    "libc = ctypes.CDLL(None, use_errno=True);"
    "libc.prctl(24, *map(ctypes.c_ulong, (24, 0, 0, 0)));"  # PR_CAPBSET_DROP: root's next program has not got it
    "number, limit = int(sys.argv[1]), int(sys.argv[2]);"
    "resource.setrlimit(number, (limit, limit));"
    "os.execv(sys.argv[3], sys.argv[3:])"
)


def limited(number: int, limit: int, *command: str) -> list[str]:
    return [sys.executable, "-c", WITHOUT_CAPABILITY, str(number), str(limit), *command]


def serve(folder: Path, number: int, limit: int, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "nbd_plugin.serve", "-U", str(folder / "socket"), "-P", str(folder / "pid")]
    return subprocess.run(
        limited(number, limit, *command, f"control={folder / 'control'}", *words),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
        cwd=REPOSITORY,
    )


@pytest.mark.parametrize(
    ("number", "limit", "words", "said"),
    [
        # The two that were reported: a traceback, and advice about the file system.
        (resource.RLIMIT_AS, 280_000 << 10, ["budget=64M", "overcommit=yes"], ["ulimit -v", "274 MiB", "give less"]),
        (resource.RLIMIT_FSIZE, 40_000 << 10, ["budget=290M", "backing="], ["ulimit -f", "40 MiB", "backing=", "MiB"]),
        (resource.RLIMIT_DATA, 230_000 << 10, ["budget=290M", "overcommit=yes"], ["ulimit -d", "225 MiB", "give less"]),
        (resource.RLIMIT_NOFILE, 40, ["budget=64M", "overcommit=yes"], ["ulimit -n", "is 40"]),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    tmp_path: Path, number: int, limit: int, words: list[str], said: list[str]
) -> None:
    words = [f"backing={tmp_path / 'backing'}" if word == "backing=" else word for word in words]
    done = serve(tmp_path, number, limit, "size=384M", *words)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert all(part in lines[0] for part in said), lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_soft_limit_is_lifted_by_a_keeper_for_all_its_servers(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.create()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    program = "import os, resource, sys; resource.setrlimit({0}, (1 << 20, {1})); os.execv(sys.argv[1], sys.argv[1:])"
    command = keeper_process.command(folder, ["size=64M", "budget=16M", "overcommit=yes"])
    with folder.log.open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-c", program.format(resource.RLIMIT_FSIZE, hard), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        identity = process.identify(keeper.pid)
        assert identity
        folder.save(SwapState(identity))
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not keeper_process.is_answering(folder.control):
            assert keeper.poll() is None and time.monotonic() < deadline, folder.log.read_text()
            time.sleep(0.05)
        assert resource.prlimit(keeper.pid, resource.RLIMIT_FSIZE) == (hard, hard)
    finally:
        keeper.send_signal(signal.SIGTERM)
        keeper.wait(DEADLINE_SECONDS)
